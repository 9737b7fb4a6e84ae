# SPDX-License-Identifier: GPL-2.0-or-later
"""One op per execution under libFuzzer: `python -m guestemu.bench.one_op TARGET EXECUTIONS [c]`.

An execution is decode, restore, one op, all checks, guest and state feedback. With `c` the same op
from C under the same libFuzzer and libunicorn: guestemu's hooks of memory and blocks, a host that
is a bitmap, restore, guest feedback; no decoding, no checks. The target "conversion" is one 4 KiB
leaf of region D, which needs no split.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Final, NoReturn

import msgspec

from guestemu.bench.floor import Floor, FloorLibrary, cache_directory, compile_floor
from guestemu.bench.scene import BenchScene
from guestemu.campaign.engines.atheris import AtherisEngine, drive, load_core, register
from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.session import Plan, Session
from guestemu.campaign.targets import find_target
from guestemu.machine import layout
from guestemu.machine.hooks import COUNTER_SIZE
from guestemu.program.binary import OpDecoder
from guestemu.program.ops import OpKind, Region

CONVERSION: Final = "conversion"
_KINDS: Final = frozenset({OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED})
_ONE_PAGE: Final = (1, 0)
_PLAIN_POSTURE: Final = 0x80
BYTE_VALUES: Final = 256
_OnExit = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)
_REGISTERS: Final = ("rax", "rbx", "rcx", "rdx", "rsi")


class _OnePage(OpDecoder):
    """Makes every op one of a single page of region D."""

    def __init__(self, kinds: frozenset[OpKind]) -> None:
        super().__init__(1, False, kinds)
        plain = self.plans[0].postures[_PLAIN_POSTURE]
        palettes = tuple((value,) * BYTE_VALUES for value in _ONE_PAGE)
        self.plans = tuple(
            plan._replace(palettes=palettes, postures=(plain,) * BYTE_VALUES) for plan in self.plans
        )
        self.places = (self.places[Region.D],) * BYTE_VALUES


def make_session(name: str, executions: int) -> Session:
    """A session of programs of one op of target `name`."""
    target = msgspec.structs.replace(find_target(name), max_ops=1)
    if name == CONVERSION:
        target = msgspec.structs.replace(target, kinds=_KINDS)

    def build(feedback: Feedback) -> Executor:
        executor = Executor(target, target.header, target.kinds, feedback)
        if name == CONVERSION:
            executor.decoder = _OnePage(target.kinds)
        return executor

    return Session(Plan(target, target.header, execs=executions), build=build)


def run_python(name: str, executions: int) -> None:
    """Fuzzes and prints the CPU seconds of an execution; does not return."""
    session = make_session(name, executions)
    start = time.process_time()

    def leave(error: BaseException | None) -> NoReturn:
        if error is None:
            print((time.process_time() - start) / executions, flush=True)
        os._exit(0 if error is None else 3)

    AtherisEngine().run(session, leave)


def run_c(name: str, executions: int) -> None:
    """Fuzzes the C floor and prints the same at the exit, which is libFuzzer's doing."""
    scene = BenchScene()
    library = FloorLibrary(compile_floor(cache_directory()))
    floor = scene.hooked_floor
    if name != CONVERSION:
        registers = dict.fromkeys(_REGISTERS, 0)
        machine = scene.testbed.guest.machine
        floor = Floor(library, machine, layout.STUB, registers, [], hooks=True)
    if floor is None:
        raise SystemExit(f"no C floor: {scene.floor_note}")
    core = load_core()
    table = register(core, floor.counters, COUNTER_SIZE)
    library.fuzz(ctypes.byref(floor.state), ctypes.c_bool(name != CONVERSION))
    start = time.process_time()

    def report(_status: int, _argument: object) -> None:
        print((time.process_time() - start) / executions, flush=True)

    at_exit = _OnExit(report)
    ctypes.CDLL(None).on_exit(at_exit, None)
    arguments = ["floor", "-max_len=48", "-len_control=0", f"-runs={executions}"]
    drive(core, arguments, library.one)
    del table, at_exit


def main() -> None:
    """See the module's docstring."""
    name, executions, *rest = sys.argv[1:]
    run = run_c if rest == ["c"] else run_python
    run(name, int(executions))


if __name__ == "__main__":
    main()
