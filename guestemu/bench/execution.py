# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of executions: the fixed conversion, a raw hypercall, hypercalls in a guest loop."""

from __future__ import annotations

from guestemu.bench.figure import Pair, Work
from guestemu.bench.floor import Floor
from guestemu.bench.scene import CONVERSION, HYPERCALL, LOOP_CALLS, ROUND_TRIP, BenchScene, NoHost
from guestemu.machine.exits import ExitHandler
from guestemu.program.ops import Op
from guestemu.runner.testbed import Testbed

_C_FLOOR = "the same in C, one hook"
_C_HOOKED = "the same in C with guestemu's hooks"


def _conversions(scene: BenchScene, testbed: Testbed, handler: ExitHandler | None) -> Work:
    """Reset and conversion, with exits answered by `handler` (None: the testbed's recorder)."""
    guest = testbed.guest
    hooks = guest.machine.hooks
    gva = scene.conversion.gva

    def run(count: int) -> None:
        hooks.handler = testbed.recorder if handler is None else handler
        for _ in range(count):
            guest.reset()
            guest.set_memory_decrypted(gva, 1)
        hooks.handler = testbed.recorder

    return run


def _programs(testbed: Testbed, ops: tuple[Op, ...]) -> Work:
    def run(count: int) -> None:
        for _ in range(count):
            testbed.run(ops)

    return run


def _against(scene: BenchScene, work: Work, floor: Floor | None, name: str) -> Pair:
    return Pair(work, floor.run if floor else None, name, note=scene.floor_note)


def bare(scene: BenchScene) -> Pair:
    """Reset and conversion from Python with a handler that answers 0."""
    work = _conversions(scene, scene.testbed, NoHost())
    return _against(scene, work, scene.floor, _C_FLOOR)


def two_views(scene: BenchScene) -> Pair:
    """What the hooks of the two-view memory cost, C against C."""
    hooked = scene.hooked_floor
    floor = scene.floor
    if hooked is None or floor is None:
        return Pair(None, None, _C_FLOOR, note=scene.floor_note)
    return Pair(hooked.run, floor.run, _C_FLOOR)


def bare_hooked(scene: BenchScene) -> Pair:
    """The bare execution beside the C loop that has the same memory hooks: what Python costs."""
    work = _conversions(scene, scene.testbed, NoHost())
    return _against(scene, work, scene.hooked_floor, _C_HOOKED)


def hosted(scene: BenchScene) -> Pair:
    """The same with the default host, reset each time, and the exit recorder."""
    testbed = scene.testbed
    guest = testbed.guest
    gva = scene.conversion.gva

    def run(count: int) -> None:
        for _ in range(count):
            testbed.reset()
            testbed.recorder.records = []
            guest.set_memory_decrypted(gva, 1)

    return _against(scene, run, scene.floor, _C_FLOOR)


def checked(scene: BenchScene) -> Pair:
    """A one-op program through the testbed with all checks."""
    return _against(scene, _programs(scene.testbed, CONVERSION), scene.floor, _C_FLOOR)


def hypercall(scene: BenchScene) -> Pair:
    """A one-op program of a raw hypercall with all checks, beside the testbed's empty program."""
    testbed = scene.testbed
    return Pair(_programs(testbed, HYPERCALL), _programs(testbed, ()), "an empty program")


def loop(scene: BenchScene) -> Pair:
    """Hypercalls per second in a guest loop of VMMCALLs under the default host."""
    calls = scene.loop
    floor = calls.floor(scene.library) if scene.library else None
    return Pair(
        calls.run,
        floor.run if floor else None,
        "the same in C",
        unit="/s",
        items=LOOP_CALLS,
        floor_items=LOOP_CALLS,
        note=scene.floor_note,
    )


def snp(scene: BenchScene) -> Pair:
    """A page there and back under SNP (PVALIDATE, a page-state change), beside plain SEV."""
    return _beside_sev(scene, scene.snp_testbed)


def tdx(scene: BenchScene) -> Pair:
    """A page there and back in a TD (MapGPA, ACCEPT), beside plain SEV."""
    return _beside_sev(scene, scene.tdx_testbed)


def _beside_sev(scene: BenchScene, testbed: Testbed) -> Pair:
    return Pair(
        _programs(testbed, ROUND_TRIP), _programs(scene.sev_testbed, ROUND_TRIP), "plain SEV"
    )


def walker(scene: BenchScene) -> Pair:
    """The bare execution with C-bit 51 (our own page walk) beside C-bit 39 (the CPU's)."""
    return Pair(
        _conversions(scene, scene.walker_testbed, NoHost()),
        _conversions(scene, scene.testbed, NoHost()),
        "C-bit 39",
    )
