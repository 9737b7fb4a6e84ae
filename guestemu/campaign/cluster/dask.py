# SPDX-License-Identifier: GPL-2.0-or-later
"""The only module that knows Dask: connects, names workers, starts nodes and tasks there.

`local` makes a scheduler in this process and worker processes on 127.0.0.1, which end with it.
`tcp://HOST:PORT` is a running scheduler (`dask scheduler`). Calls to a node go by way of the
scheduler, since its worker may be where the submitter cannot reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import queue
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

import msgspec

from guestemu.abi.errors import GuestemuError, InputError, MissingError
from guestemu.campaign.cluster.node import Node
from guestemu.campaign.cluster.wire import identity

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

LOCAL: Final = "local"
_SCHEME: Final = "tcp://"
_CONNECT_S: Final = 10
_START_S: Final = 60
"""Seconds for a node to begin: its directory is filled, its processes are started."""

NOBODY_S: Final = 60.0
"""Seconds without any worker after which there is no use in waiting."""

_LOOK_S: Final = 1.0

REMEDY: Final = "pip install 'guestemu[cluster]'"


class NodeLost(GuestemuError):
    """The Dask worker of a node cannot be reached any more."""


class _Call(Protocol):
    """What a call of an actor's method gives."""

    def done(self) -> bool:
        """Whether the answer is there."""

    def result(self, timeout: float) -> bytes:
        """The answer."""


class RemoteNode:
    """A node on the worker at `address`; one call at a time. Raises `NodeLost`."""

    def __init__(self, address: str, future: Future) -> None:
        self.address = address
        self._future = future
        try:
            self._actor = future.result(timeout=_START_S)
        except GuestemuError:
            raise
        except Exception as error:
            self.drop()
            raise NodeLost(f"{type(error).__name__}: {error}") from error

    def call(self, post: bytes) -> Callable[[], bytes | None]:
        """Sends a `Post`; the result gives the `News`, None while they are on their way."""
        try:
            call: _Call = self._actor.exchange(post)
        except Exception as error:
            raise NodeLost(str(error)) from error

        def answer() -> bytes | None:
            if not call.done():
                return None
            try:
                return call.result(timeout=_CONNECT_S)
            except GuestemuError:
                raise
            except Exception as error:
                raise NodeLost(f"{type(error).__name__}: {error}") from error

        return answer

    def drop(self) -> None:
        """Gives the node up without asking it."""
        with contextlib.suppress(Exception):  # the scheduler may be gone, too
            self._future.cancel()

    def close(self) -> None:
        """Ends the node, as far as it can be reached."""
        with contextlib.suppress(Exception):  # it is gone, or ends by its lease
            self._actor.close().result(timeout=_CONNECT_S)
        self.drop()


class Cluster:
    """A connection; a context manager. `address` is as on the command line.

    Raises `MissingError` without the extra, or where no scheduler answers or it has no worker.
    """

    def __init__(self, address: str, jobs: int) -> None:
        self.address = address
        self._local: LocalCluster | None = None
        _check_extra()
        _silence()
        if address == LOCAL:
            self._client = self._start(jobs)
        else:
            self._client = _connect(address)
        self._known: set[str] = set()

    def _start(self, jobs: int) -> Client:
        from distributed import Client, LocalCluster

        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for us alone
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a busy disk is not worth a warning
                self._local = LocalCluster(
                    n_workers=jobs,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address=None,
                    memory_limit=None,
                    silence_logs=logging.CRITICAL,
                    env={"PYTHONWARNINGS": "ignore"},
                )
        finally:
            signal.signal(signal.SIGINT, before)
        return Client(self._local, timeout=_CONNECT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(Exception):
            self._client.close()
        if self._local is not None:
            self._local.close()

    def workers(self) -> dict[str, int]:
        """Threads by address of each worker that is there now. Raises `MissingError` when the
        scheduler does not answer."""
        try:
            found: dict[str, int] = self._client.nthreads()
        except (Exception, asyncio.CancelledError) as error:
            raise MissingError(
                f"--cluster {self.address}: the scheduler does not answer any more "
                f"({type(error).__name__}); what was found is kept"
            ) from error
        return found

    def check(self, addresses: Iterable[str]) -> None:
        """Asks workers for their guestemu. Raises `MissingError` naming one that has none or
        another."""
        new = [address for address in addresses if address not in self._known]
        if not new:
            return
        answers = self._client.run(_identity, workers=new, on_error="return")
        for address in new:
            _compare(address, answers.get(address))
        self._known.update(new)

    def start(self, address: str, start: bytes) -> RemoteNode:
        """Starts a node on a worker. Raises `NodeLost`, `InputError`."""
        future = self._client.submit(
            Node,
            start,
            actor=True,
            workers=[address],
            allow_other_workers=False,
            pure=False,
        )
        return RemoteNode(address, future)

    def run(self, work: Callable[[bytes], bytes], jobs: Iterable[bytes]) -> Iterator[bytes]:
        """Runs `work` on each of `jobs` somewhere; results as they come, in any order. What a
        lost worker had is run again elsewhere. Raises `MissingError` when that does not help, or
        when there was no worker for a minute."""
        futures = [self._client.submit(work, job, pure=False) for job in jobs]
        done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        for future in futures:
            future.add_done_callback(done.put)
        seen = time.monotonic()
        try:
            for _ in futures:
                while True:
                    try:
                        future = done.get(timeout=_LOOK_S)
                        break
                    except queue.Empty:
                        seen = self._see_workers(seen)
                yield self._result(future)
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel(futures)

    def _see_workers(self, seen: float) -> float:
        """When a worker was last seen, given that it was at `seen`."""
        now = time.monotonic()
        if self.workers():
            return now
        if now - seen > NOBODY_S:
            raise MissingError(
                f"--cluster {self.address}: no worker for {NOBODY_S:g} s; start some with "
                "`dask worker`"
            )
        return seen

    def _result(self, future: Future) -> bytes:
        try:
            data: bytes = future.result(timeout=_CONNECT_S)
        except GuestemuError:
            raise
        except Exception as error:
            raise MissingError(
                f"--cluster {self.address}: a task could not be run ({type(error).__name__}: "
                f"{error}); look at the workers' logs"
            ) from error
        return data


def _check_extra() -> None:
    if importlib.util.find_spec("distributed") is None:
        raise MissingError(f"--cluster: the distributed package is not installed ({REMEDY})")


def _silence() -> None:
    """What Dask logs of lost connections, the campaign reports by itself."""
    import distributed  # sets the levels of its loggers

    for name in logging.root.manager.loggerDict:
        if name.partition(".")[0] == distributed.__name__:
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _connect(address: str) -> Client:
    from distributed import Client

    host, colon, port = address.removeprefix(_SCHEME).rpartition(":")
    if not (address.startswith(_SCHEME) and host and colon and port.isdecimal()):
        raise InputError(
            f"--cluster {address}: give `local` or the scheduler's address, such as "
            "tcp://192.0.2.1:8786"
        )
    try:
        return Client(address, timeout=_CONNECT_S)
    except OSError as error:
        raise MissingError(
            f"--cluster {address}: no scheduler answers there; start one with `dask scheduler`"
        ) from error


def _identity() -> dict[str, str]:
    """The worker's side of `Cluster.check`."""
    return {name: str(value) for name, value in msgspec.structs.asdict(identity()).items()}


def _compare(address: str, answer: object) -> None:
    """Raises `MissingError` unless the worker has the same guestemu."""
    own = _identity()
    if isinstance(answer, Mapping) and dict(answer) == own:
        return
    if isinstance(answer, Mapping):
        other = dict(answer)
        names = ", ".join(
            f"{name} {other.get(name)} (here {own[name]})"
            for name in own
            if other.get(name) != own[name]
        )
        raise MissingError(
            f"--cluster: worker {address} has another guestemu: {names}; install the same on both"
        )
    raise MissingError(
        f"--cluster: worker {address} cannot load guestemu ({answer!r}); there, {REMEDY}"
    )
