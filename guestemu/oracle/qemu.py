# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU as the machine under test: TCG with nested SVM, which needs no hardware virtualization.

The guest has no network and no directory of this machine. The channel and the console are files in
memory without a name. The process dies with this one, whatever ends it (PR_SET_PDEATHSIG), and is
not in the terminal's process group: Ctrl-C comes through this process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import MissingError
from guestemu.oracle import wire
from guestemu.oracle.image import candidates

CPU: Final = "max,+svm,-cx16"
"""Without CMPXCHG16B: Linux 6.12 crashed in SLUB right after it under QEMU 7.2's TCG."""
MEMORY_MIB: Final = 512
APPEND: Final = (
    "console=ttyS0 quiet loglevel=5 panic=-1 oops=panic mitigations=off nokaslr tsc=reliable "
    "random.trust_cpu=on rcupdate.rcu_expedited=1 no5lvl"
)
"""Level 5 prints what WARN() says. Four levels of page tables instead of five: TCG walks them again
after every entry and exit of a guest."""
START_S: Final = 400.0
"""A machine that is not ready by then counts as hung; a start takes 10 to 14 s of CPU time."""
_FIRST_PAUSE_S: Final = 2e-5
_LONGEST_PAUSE_S: Final = 1e-3
_END_S: Final = 5.0
_SHOWN: Final = 4096
_LAUNCHER: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""
_SPLAT: Final = re.compile(
    r"(?:WARNING: |BUG: |Oops|Kernel panic|general protection fault|KASAN|UBSAN|KCSAN|"
    r"kernel BUG at |double fault|soft lockup|rcu_\w+ detected|stack segment|INFO: task )[^\n]*"
)

_FATAL: Final = re.compile(
    r"kernel BUG at |BUG: (?:unable to handle|kernel NULL|stack guard)|Oops|Kernel panic|"
    r"general protection|double fault|stack segment"
)
"""What ends a kernel that is told oops=panic. It goes on after the other complaints."""
_QEMUS: Final = re.compile(r"qemu[\w-]*: |\*\*|ERROR:")
"""How a line of QEMU's own starts; it shares the console with the kernel."""


class MachineEnded(MissingError):
    """The machine under test ended, hung or crashed. `done` steps of the batch were finished;
    `console` is what the kernel printed last; `is_own_fault` is False where QEMU was ended from
    outside."""

    def __init__(
        self, how: str, done: int = 0, console: str = "", *, is_own_fault: bool = True
    ) -> None:
        super().__init__(how)
        self.how = how
        self.is_own_fault = is_own_fault
        self.done = done
        self.console = console


class Accelerator(msgspec.Struct, frozen=True):
    """What QEMU runs the machine with, the processor it gives it, and further options."""

    name: str
    cpu: str
    options: tuple[str, ...] = ()


TCG: Final = Accelerator("tcg", CPU)
PACED: Final = Accelerator("tcg", CPU, ("-icount", "shift=3,sleep=on"))
"""TCG whose clock counts instructions: on a busy computer the kernel's timer does not interrupt
every other step. Starting takes longer; for campaigns."""
NATIVE: Final = Accelerator("kvm", "host")


def find_qemu() -> str:
    """The path of QEMU. Raises `MissingError` where there is none."""
    for name in candidates():
        path = shutil.which(name)
        if path is not None:
            return path
    raise MissingError(
        "no qemu-system-x86_64 on this machine; install the package qemu-system-x86, or name the "
        "program in GUESTEMU_QEMU"
    )


def version(program: str) -> str:
    """The version of QEMU, as it says it."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run: {error}"
    found = re.search(r"version (\S+)", done.stdout)
    return found[1] if found else "of an unknown version"


def splats(console: str) -> tuple[str, ...]:
    """Lines in which a kernel says that something is wrong with it, each once."""
    return tuple(dict.fromkeys(found[0].strip() for found in _SPLAT.finditer(console)))


def cause_of_end(console: str) -> str:
    """The line in which a kernel says why it ended; empty if it does not. Complaints that it went
    on after come earlier."""
    found = splats(console)
    return next((line for line in found if _FATAL.match(line)), found[-1] if found else "")


class Qemu:
    """A running machine under test. `accelerator` is TCG unless the user wants this computer's KVM.

    Raises `MachineEnded` where it does not come up, `MissingError` without QEMU.
    """

    def __init__(
        self,
        kernel: Path,
        initramfs: bytes,
        accelerator: Accelerator = TCG,
        *,
        append: str = "",
        start_s: float = START_S,
    ) -> None:
        program = find_qemu()
        begin = time.monotonic()
        self._channel = os.memfd_create("guestemu-channel", os.MFD_CLOEXEC)
        self._console = os.memfd_create("guestemu-console", os.MFD_CLOEXEC)
        archive = os.memfd_create("guestemu-initramfs", os.MFD_CLOEXEC)
        image = os.open(kernel, os.O_RDONLY | os.O_CLOEXEC)
        files = (self._channel, self._console, archive, image)
        self._child: subprocess.Popen[bytes] | None = None
        try:
            for file in files[:3]:
                os.fchmod(file, 0o600)
            os.truncate(self._channel, wire.CHANNEL_BYTES)
            with os.fdopen(os.dup(archive), "wb") as stream:
                stream.write(initramfs)
            self.memory = mmap.mmap(self._channel, wire.CHANNEL_BYTES)
            self._words = memoryview(self.memory).cast("I")
            self._child = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())),
                    *_command(program, accelerator, files, append),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._console,
                pass_fds=files,
                start_new_session=True,
                close_fds=True,
            )
            self.wait(start_s)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(archive)
            os.close(image)
        self.start_up = time.monotonic() - begin

    @property
    def pid(self) -> int:
        """The process's id; 0 when it has ended."""
        return 0 if self._child is None else self._child.pid

    def console(self, start: int = 0) -> str:
        """What the kernel has printed from byte `start` on."""
        size = os.fstat(self._console).st_size
        data = os.pread(self._console, max(0, size - start), start)
        return data.decode("utf-8", "replace").replace("\r", "")

    @property
    def console_size(self) -> int:
        """Bytes that were printed."""
        return os.fstat(self._console).st_size

    def post(self, count: int) -> None:
        """Orders the `count` requests that lie in the channel."""
        self._words[wire.COUNT_AT // 4] = count
        self._words[wire.DONE_AT // 4] = 0
        self._words[wire.STATE_AT // 4] = wire.REQUESTED

    def wait(self, seconds: float, tell: Callable[[], None] | None = None) -> None:
        """Until the machine is idle. Raises `MachineEnded`."""
        limit = time.monotonic() + seconds
        pause = _FIRST_PAUSE_S
        state = wire.STATE_AT // 4
        progress, seen = -1, time.monotonic()
        while self._words[state] != wire.IDLE:
            child = self._child
            if child is None or child.poll() is not None:
                raise self._ended()
            now = time.monotonic()
            done = self._words[wire.DONE_AT // 4]
            if done != progress:
                progress, seen = done, now
            if now > limit and now - seen > min(seconds, 30.0):
                raise MachineEnded(
                    f"hangs: no answer for {now - seen:.0f} s",
                    self._done(),
                    self.console()[-_SHOWN:],
                )
            if tell is not None:
                tell()
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)

    def play(self, tape: bytes, program: Path) -> float:
        """Has `program` (harness/client.c) post what is on `tape`; its seconds."""
        done = subprocess.run(
            [str(program), str(self._channel)],
            input=tape,
            capture_output=True,
            pass_fds=(self._channel,),
            timeout=START_S * 4,
            check=False,
        )
        if done.returncode or not done.stdout.strip().isdigit():
            raise MissingError(f"{program} ended with status {done.returncode}")
        return int(done.stdout) / 1e9

    def _done(self) -> int:
        return min(self._words[wire.DONE_AT // 4], wire.CAPACITY)

    def _ended(self) -> MachineEnded:
        console = self.console()
        child, status = self._child, 0
        if child is not None:
            status = child.wait()
        cause = cause_of_end(console)
        if cause:
            how = f"the kernel died: {cause}"
        elif status < 0:
            how = f"QEMU was ended by {signal.Signals(-status).name}"
            own_words = [line for line in console.splitlines() if _QEMUS.match(line)]
            how += f": {own_words[-1]}" if own_words else ""
        else:
            words = console.strip().splitlines()
            how = f"QEMU ended with status {status}" + (f": {words[-1]}" if words else "")
        own = bool(cause) or status >= 0
        return MachineEnded(how, self._done(), console[-_SHOWN:], is_own_fault=own)

    def close(self) -> None:
        """Ends the machine, if it runs, and frees the channel."""
        child, self._child = self._child, None
        if child is not None:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
            child.wait()
        if hasattr(self, "memory"):
            self._words.release()
            self.memory.close()
        for file in (self._channel, self._console):
            with contextlib.suppress(OSError):
                os.close(file)
        self._channel = self._console = -1


def _command(
    program: str, accelerator: Accelerator, files: tuple[int, ...], append: str
) -> list[str]:
    channel, console, archive, image = (f"/dev/fd/{file}" for file in files)
    backend = f"memory-backend-file,id=channel,share=on,mem-path={channel}"
    return [
        program,
        *("-accel", accelerator.name, "-cpu", accelerator.cpu, *accelerator.options),
        *("-machine", "q35", "-smp", "1"),
        *("-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config", "-display", "none"),
        *("-nic", "none", "-no-reboot", "-monitor", "none", "-parallel", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-kernel", image, "-initrd", archive, "-append", f"{APPEND} {append}".strip()),
        *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
        *("-object", f"{backend},size={wire.CHANNEL_BYTES}"),
        *("-device", "ivshmem-plain,memdev=channel"),
    ]
