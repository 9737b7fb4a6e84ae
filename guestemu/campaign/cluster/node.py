# SPDX-License-Identifier: GPL-2.0-or-later
"""A node: the Dask actor that runs one share of a campaign on its machine.

The campaign itself runs in processes of its own below the Dask worker, as everywhere: libFuzzer
never returns, the CPU emulator may crash, and while it runs it holds Python's lock, so that inside
the Dask worker it would keep the heart from beating until the scheduler takes the worker for dead.
The processes live as long as the share does, with warm testbeds. A thread of the Dask worker is
their supervisor; calls from the submitter only move files.

A node that gets no call for `LEASE_S` ends its share: its submitter is gone, or has given the
share to another node because it could not reach this one.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from guestemu.abi.errors import InputError, MissingError
from guestemu.campaign.cluster.tail import DirectoryTail, JournalTail
from guestemu.campaign.cluster.wire import News, ShareStart, decode_post, decode_start, encode
from guestemu.campaign.figures import Figures
from guestemu.campaign.journal import Entry, InputNoted, input_name, journal_path
from guestemu.campaign.store import Store
from guestemu.campaign.supervisor import Supervisor
from guestemu.campaign.worker import WorkerConfig, WorkerFailure

LEASE_S: Final = 30.0
"""Seconds without a call after which a node ends."""

_CLOSING_S: Final = 10.0


def _failure(error: BaseException) -> WorkerFailure:
    is_input, is_missing = isinstance(error, InputError), isinstance(error, MissingError)
    text = str(error) if is_input or is_missing else f"{type(error).__name__}: {error}"
    return WorkerFailure(text, is_input, is_missing)


def _fill(store: Store, start: ShareStart) -> None:
    """Puts into the node's directory what the campaign knows so far."""
    for data in start.inputs:
        store.save_input(data)
    for number, data in enumerate(start.deadly):
        store.save_death(f"before-{number}", data, is_crash=True)
    store.note_all(start.entries)


class Node:
    """See the module's docstring. `start` is an encoded `ShareStart`. Raises `InputError` where the
    machine has no room, `MissingError` and `GuestemuError` come with the `News`."""

    lease = LEASE_S

    def __init__(self, start: bytes) -> None:
        plan = decode_start(start)
        self._root = Path(tempfile.mkdtemp(prefix="guestemu-", dir=_scratch()))
        self._workdir = plan.workdir
        self._store = store = Store.create(self._root, plan.record, resume=False)
        _fill(store, plan)
        self._given = {input_name(data) for data in plan.inputs}
        self._journals = [
            (config.index, JournalTail(journal_path(store.journals, config.index)))
            for config in plan.configs
        ]
        self._findings = DirectoryTail(store.findings, "*.prog")
        self._deaths = DirectoryTail(store.infrastructure, "crash-*.bin", "death-*.bin")
        self._logs = DirectoryTail(store.infrastructure, "worker-*.log")
        self._figures: Figures | None = None
        self._problem: WorkerFailure | None = None
        self._over = threading.Event()
        self._is_forgotten = False
        self._called = time.monotonic()
        configs = [_on_this_machine(config, self._root) for config in plan.configs]
        name = f"share{plan.share}-{plan.life}"
        self._thread = threading.Thread(target=self._run, args=(configs, name), daemon=True)
        self._thread.start()

    def _run(self, configs: list[WorkerConfig], name: str) -> None:
        """Supervises the share to its end (in a thread of its own)."""
        try:
            supervisor = Supervisor(configs, self._store, self._watch, name)
            self._figures = supervisor.run(self._over)
        except BaseException as error:
            self._problem = _failure(error)
        if self._is_forgotten:
            shutil.rmtree(self._root, ignore_errors=True)

    def _watch(self, figures: Figures) -> None:
        self._figures = figures
        if time.monotonic() - self._called > self.lease:
            self._is_forgotten = True
            self._over.set()

    def exchange(self, data: bytes) -> bytes:
        """Takes an encoded `Post`, gives encoded `News`. Raises RuntimeError after the lease's
        end."""
        if self._is_forgotten:
            raise RuntimeError(f"no submitter called this node for {self.lease:g} s")
        self._called = time.monotonic()
        post = decode_post(data)
        for one in post.inputs:
            self._given.add(input_name(one))
            self._store.save_input(one)
        if post.is_over:
            self._over.set()
        return encode(self._news())

    def _news(self) -> News:
        is_done = not self._thread.is_alive()  # asked first: what follows is then all there is
        figures, problem = self._figures, self._problem
        inputs: list[bytes] = []
        entries: list[tuple[int, Entry]] = []
        for index, tail in self._journals:
            for entry in tail.read():
                if not isinstance(entry, InputNoted):
                    entries.append((index, entry))
                elif input_name(entry.data) not in self._given:
                    self._given.add(input_name(entry.data))
                    inputs.append(entry.data)
        files = list(self._deaths.read())
        if problem is not None:
            files += self._logs.read()
            problem = WorkerFailure(
                self._told(problem.message), problem.is_input, problem.is_missing
            )
        if figures is not None:
            lines = [self._told(line) for line in figures.infrastructure]
            figures = replace(figures, infrastructure=lines)
        return News(
            inputs=inputs,
            entries=entries,
            findings=[
                (name, self._told(data.decode()).encode()) for name, data in self._findings.read()
            ],
            files=files,
            figures=figures,
            is_done=is_done,
            failure=problem,
        )

    def _told(self, text: str) -> str:
        """`text` with the submitter's directory in place of this machine's."""
        return text.replace(str(self._root), self._workdir)

    def close(self) -> None:
        """Ends the workers and removes the directory."""
        self._over.set()
        self._thread.join(_CLOSING_S)
        shutil.rmtree(self._root, ignore_errors=True)


def _scratch() -> str | None:
    """The Dask worker's own directory, which Dask removes; None outside of one."""
    try:
        from distributed import get_worker

        return str(get_worker().local_directory)
    except (ImportError, ValueError):
        return None


def _on_this_machine(config: WorkerConfig, root: Path) -> WorkerConfig:
    return replace(config, workdir=str(root), is_shared=True)
