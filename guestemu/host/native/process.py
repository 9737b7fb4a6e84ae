# SPDX-License-Identifier: GPL-2.0-or-later
"""A native handler in a process of its own: its death costs one program and nothing else.

The process forks the one in which the handler runs, and forks it again after a death. The sequence
of records on which the handler died is remembered, so that the search for the smallest program does
not pay for the same death twice.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
import sys
from pathlib import Path
from typing import IO, Final

from guestemu.abi.errors import HostFailedError, MissingError, PluginError
from guestemu.host.calls import how_it_ended
from guestemu.host.kvm.guest_memory import GuestMemory
from guestemu.host.native import wire
from guestemu.native import why_not

COMMAND: Final = "cmd:"
_ANSWER_S: Final = 10.0
"""Wall-clock bound for one message: a handler that sleeps. One that computes for ever is ended by
its own timer long before (guestemu_serve.c)."""

_START_S: Final = 30.0
_MAX_KILLERS: Final = 1024
_STATUS: Final = (1 << wire.DONE_SHIFT) - 1
_FEW_CALLS: Final = 8
"""Calls that are read together with the replies."""

_SHOWN: Final = 4096


class Died(Exception):
    """The handler ended; the text says how. The process that forked it is there. `done` records of
    the message were answered before."""

    def __init__(self, how: str, done: int) -> None:
        super().__init__(how)
        self.done = done


class Lost(Exception):
    """The process ended, did not answer in time or sent nonsense; the text says how."""


class HandlerProcess:
    """The process that runs the shared object or the command `spec` for a VM with `memory`.

    `has_map` and `takes_slots` say which of the header's optional functions the handler has.
    """

    def __init__(self, spec: str, memory: GuestMemory, vcpus: int = 1) -> None:
        self.spec = spec
        self.has_map = False
        self._knows_fresh = False
        self.takes_slots = False
        self.starts = 0
        self._hello = wire.hello(memory, vcpus)
        self._frames = memory.frames
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._killers: dict[bytes, str] = {}

    def serves(self, memory: GuestMemory, vcpus: int) -> bool:
        """Whether the process runs, and for a VM with memory of this layout and as many vCPUs."""
        return self._child is not None and self._hello == wire.hello(memory, vcpus)

    def start(self) -> int:
        """Starts the process; returns the handler's features. Raises `PluginError` where it cannot
        be started or has another ABI, `MissingError` without guestemu's C libraries."""
        command = self._command()
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        self._errors = os.fdopen(os.memfd_create("stderr"), "w+b")
        pipes = {wire.DESCRIPTORS: f"{theirs_in},{theirs_out}", "RUST_BACKTRACE": "0"}
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs_in, theirs_out],
                env={**os.environ, **pipes},
            )
        except OSError as error:
            self._close()
            raise PluginError(f"host {self.spec}: cannot be started: {error.strerror}") from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._poll = select.poll()
        self._poll.register(self._in, select.POLLIN)
        self.starts += 1
        try:
            os.write(self._out, self._hello)
            magic, abi, features, has_map = wire.READY.unpack(
                self._read(wire.READY.size, seconds=_START_S)
            )
        except (Lost, OSError) as error:
            why = self._last_words() or str(error)
            self.stop()
            raise PluginError(f"host {self.spec}: does not start: {why}") from None
        if magic != wire.MAGIC or abi != wire.ABI:
            self.stop()
            raise PluginError(f"host {self.spec}: has ABI {abi}, this guestemu has {wire.ABI}")
        self.has_map = bool(has_map)
        self._knows_fresh = bool(features & wire.FEATURE_FRESH)
        self.takes_slots = bool(features & wire.FEATURE_PLUG)
        return int(features)

    def _command(self) -> list[str]:
        if self.spec.startswith(COMMAND):
            command = shlex.split(self.spec.removeprefix(COMMAND))
            if not command:
                raise PluginError(f"host {self.spec}: no command; write cmd:PROGRAM")
            return command
        path = Path(self.spec)
        if not path.is_file():
            raise PluginError(f"host {self.spec}: no such file")
        why = why_not()
        if why:
            raise MissingError(f"host {self.spec}: needs guestemu's C libraries: {why}")
        return [sys.executable, "-m", f"{__package__}.server", str(path)]

    def renew(self) -> None:
        """Lets go of what the handler keeps outside of its VM, such as static data: what is asked
        next is asked of a handler that has run nothing. Costs a fork."""
        if self._child is not None and self._knows_fresh:
            with contextlib.suppress(OSError):  # of a process that is gone
                self._write(wire.FRESH)

    def ask(self, requests: bytes, story: bytes) -> tuple[int, int, int, bytes]:
        """Outcome, answer and data of the last of the `requests`, and the calls made for it.
        `story` are all requests since the reset, these included; a story that ended in death before
        is not told again.

        Raises `HostFailedError` where the process dies, does not answer, or answers nonsense.
        """
        known = self._killers.get(story)
        if known is not None:
            raise HostFailedError(known)
        if self._child is None:
            self.start()
        try:
            return self._ask(requests)
        except (Died, Lost, OSError) as error:
            raise HostFailedError(self._remember(story, error)) from None

    def exchange(self, requests: bytes) -> tuple[bytes, int] | int:
        """Sends whole requests that belong to no story, each program's behind a reset; the replies
        as they came, with the number of calls behind them. Where the handler dies, the number of
        the request on which it died: the story is remembered. Raises `HostFailedError` where the
        process is lost."""
        if self._child is None:
            self.start()
        try:
            return self._exchange(requests)
        except Died as error:
            size = wire.REQUEST.size
            start = end = error.done * size
            while start and requests[start : start + size] != wire.RESET:
                start -= size
            self._remember(requests[start + size : end + size], error)
            return error.done
        except (Lost, OSError) as error:
            raise HostFailedError(f"the native handler {self._why(error)}") from None

    def _remember(self, story: bytes, error: Exception) -> str:
        text = f"the native handler {self._why(error)}"
        if len(self._killers) < _MAX_KILLERS:
            self._killers[story] = text
        return text

    def _exchange(self, requests: bytes) -> tuple[bytes, int]:
        count = len(requests) // wire.REQUEST.size
        self._write(wire.HEAD.pack(count, 0) + requests)
        expected = wire.HEAD.size + count * wire.REPLY.size
        message = self._read(wire.HEAD.size, expected + _FEW_CALLS * wire.CALL.size)
        done, calls = wire.HEAD.unpack_from(message)
        if done == wire.DIED:
            status, answered = calls & _STATUS, calls >> wire.DONE_SHIFT
            raise Died(how_it_ended(os.waitstatus_to_exitcode(status)), min(answered, count - 1))
        if done != count or calls > wire.MAX_CALLS:
            raise Lost(f"sent a wrong reply: {done} records and {calls} calls for {count} records")
        expected += calls * wire.CALL.size
        if len(message) < expected:
            message += self._read(expected - len(message))
        return message[wire.HEAD.size : expected], calls

    def _ask(self, requests: bytes) -> tuple[int, int, int, bytes]:
        message, calls = self._exchange(requests)
        end = len(message) - calls * wire.CALL.size
        outcome, made, answer, data = wire.REPLY.unpack_from(message, end - wire.REPLY.size)
        if outcome > wire.STOP or made != calls:
            raise Lost(f"sent a wrong reply: outcome {outcome}, {made} calls")
        return outcome, answer, data, message[end:]

    def read_map(self) -> bytes:
        """The handler's own record, one bit for each frame. Raises `HostFailedError`."""
        try:
            self._write(wire.READ_MAP)
            (size,) = wire.MAP_SIZE.unpack(self._read(wire.MAP_SIZE.size))
            if size != (self._frames + 7) // 8:
                raise Lost(f"sent a map of {size} bytes for {self._frames} frames")
            return self._read(size)
        except (Died, Lost, OSError) as error:
            raise HostFailedError(f"the native handler {self._why(error)}") from None

    def _write(self, message: bytes) -> None:
        written = os.write(self._out, message)
        while written < len(message):
            written += os.write(self._out, message[written:])

    def _read(self, size: int, most: int = 0, seconds: float = _ANSWER_S) -> bytes:
        """At least `size` bytes, at most `most` where that is more. Raises `Lost` where the other
        side closes the pipe, or sends nothing for `seconds`."""
        data = b""
        while len(data) < size:
            if not self._poll.poll(seconds * 1000):
                raise Lost(f"did not return within {seconds:g} s")
            part = os.read(self._in, max(size, most) - len(data))
            if not part:
                raise Lost("ended")
            data += part
        return data

    def _why(self, error: Exception) -> str:
        """What to say about the end of the handler; a process that is lost is ended."""
        how, words = str(error), self._last_words()
        if not isinstance(error, Died):
            if isinstance(error, OSError):
                how = "closed its pipe"
            self.stop()
        elif self._errors is not None:
            self._errors.truncate(0)
        return f"{how}: {words}" if words else how

    def _last_words(self) -> str:
        """The last line that the process wrote to its standard error."""
        if self._errors is None:
            return ""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _SHOWN))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return " ".join(lines[-1].split()) if lines else ""

    def __del__(self) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the process, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            self._close()

    def _close(self) -> None:
        os.close(self._in)
        os.close(self._out)
        if self._errors is not None:
            self._errors.close()
            self._errors = None
