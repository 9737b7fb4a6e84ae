# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs programs in a copy of this process first, because the host's code may end it.

A user's host in Python, and a library loaded into this process, can crash in machine code, abort or
exit. The scout is forked from this process and runs each program before it runs here. Where that
ends the scout, the call that did raises `HostFailedError` here, and another scout is forked for the
next program. A program costs twice its time, and a death the time of a fork.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import struct
import warnings
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from typing import Final, NoReturn

import msgspec

from guestemu.abi.errors import HostFailedError, TimeUp
from guestemu.host.base import Host
from guestemu.host.calls import Calls, how_it_ended
from guestemu.host.hang_guard import HangGuard
from guestemu.host.native.host import NativeHost
from guestemu.host.plugin_guard import PluginHost
from guestemu.host.userspace.base import VmStopped
from guestemu.processes import follow_parent
from guestemu.program.ops import Op
from guestemu.runner.testbed import Testbed

_HEAD: Final = struct.Struct("<I?")
_DONE: Final = b"."
_ANSWER_S: Final = 10.0
"""Wall-clock bound for a program: a host that sleeps."""

_FIRST_DESCRIPTOR: Final = 3
_MOST_DESCRIPTORS: Final = 1 << 16
_SNIPPET: Final = "snippet:"


def may_end_process(host: Host) -> bool:
    """Whether `host` is a user's code that runs in this process."""
    return isinstance(host, PluginHost) or (isinstance(host, NativeHost) and host.is_in_process)


def guard_process(testbed: Testbed, is_scout: bool = False) -> None:
    """Ends calls of the testbed's host that compute for ever: in Python by an exception, in machine
    code with the process. A guest that boots a kernel computes for long itself."""
    frames = testbed.guest.machine.config.frames
    _guard_of(testbed.host).start(frames, testbed.guest.name.startswith(_SNIPPET), is_scout)


def _guard_of(host: Host) -> HangGuard:
    return host.guard if isinstance(host, PluginHost | NativeHost) else HangGuard()


class Scout:
    """The scout of `testbed`, whose host `may_end_process`. A program that it does not end in time
    has a call that does not return; with `patience` one that it does not end in so many seconds
    runs here, where a watchdog bounds it."""

    def __init__(self, testbed: Testbed, patience: float | None = None) -> None:
        self._testbed = testbed
        self._patience = patience
        self._calls = Calls()
        self._pid = 0
        self._encode = msgspec.msgpack.Encoder().encode
        host = testbed.host
        self._guard = _guard_of(host)
        if isinstance(host, NativeHost):
            host.watch_calls(self._calls)
        elif isinstance(host, PluginHost):
            host.calls = self._calls

    def try_out(self, ops: Iterable[Op], is_new: bool = False) -> bool:
        """Runs `ops`, on a new object of the user's host with `is_new`. False where the scout died
        outside of the host's code, so that the program must not run here."""
        calls = self._calls
        calls.begin()
        if not self._pid:
            self._fork()
        data = self._encode(tuple(ops))
        message = _HEAD.pack(len(data), is_new) + data
        with suppress(BrokenPipeError):  # the end of the other side is read below
            while message:
                message = message[os.write(self._out, message) :]
        seconds = _ANSWER_S if self._patience is None else self._patience
        is_late = not self._poll.poll(seconds * 1000)
        if not is_late and os.read(self._in, 1):
            return True
        status = self._reap()
        self._guard.knows_stuck |= status == -signal.SIGPROF
        how = how_it_ended(status)
        if is_late and self._patience is not None:
            return True
        return calls.learn(f"did not return within {_ANSWER_S:g} s" if is_late else how)

    @property
    def met_end(self) -> bool:
        """Whether the last program would end this process."""
        return self._calls.is_fatal

    def close(self) -> None:
        """Ends the scout."""
        if self._pid:
            self._reap()

    def _reap(self) -> int:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # of no effect on one that is dead
        _, status = os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def _fork(self) -> None:
        theirs_in, out = os.pipe()
        into, theirs_out = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which only wait here
            pid = os.fork()
        if not pid:
            try:
                self._serve(theirs_in, theirs_out)
            finally:
                os._exit(0)
        os.close(theirs_in)
        os.close(theirs_out)
        self._pid, self._in, self._out = pid, into, out
        self._poll = select.poll()
        self._poll.register(into, select.POLLIN)

    def _serve(self, requests: int, replies: int) -> NoReturn:
        """The life of the scout."""
        follow_parent()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        low, high = sorted((requests, replies))
        os.closerange(_FIRST_DESCRIPTOR, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, _MOST_DESCRIPTORS)
        testbed = self._testbed
        testbed.observe = None
        testbed.scout = None
        host = testbed.host
        gc.freeze()  # collecting what was copied takes as long as a call that does not return
        self._calls.note(host.path if isinstance(host, PluginHost) else None)
        guard_process(testbed, is_scout=True)
        decode = msgspec.msgpack.Decoder(tuple[Op, ...]).decode
        while True:
            size, is_new = _HEAD.unpack(_read(requests, _HEAD.size))
            ops = decode(_read(requests, size))
            self._calls.begin()
            with host.as_new() if is_new and isinstance(host, PluginHost) else nullcontext():
                _run(testbed, ops)
            os.write(replies, _DONE)


def _run(testbed: Testbed, ops: tuple[Op, ...]) -> None:
    try:
        testbed.reset()
        for index, op in enumerate(ops):
            testbed.step(index, op, None, [])
    except (VmStopped, TimeUp, HostFailedError, NotImplementedError):
        testbed.guest.machine.hooks.clear()


def _read(descriptor: int, size: int) -> bytes:
    """`size` bytes; ends the process at the end of the pipe."""
    data = b""
    while len(data) < size:
        part = os.read(descriptor, size - len(data))
        if not part:
            os._exit(0)
        data += part
    return data
