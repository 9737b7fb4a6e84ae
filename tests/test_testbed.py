# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn
from guestemu.abi.errors import InputError
from guestemu.abi.regions import Instruction
from guestemu.abi.x86 import Mode
from guestemu.events.base import kind_of
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.host.base import Host, Hypercall
from guestemu.host.registry import load_host
from guestemu.machine.exits import BudgetExhausted
from guestemu.machine.machine import MachineConfig
from guestemu.program.generate import generate_ops
from guestemu.program.ops import SPECS, Op, OpKind, Region, canonical_op
from guestemu.program.program import Header, Program, SevKind
from guestemu.report.trace.run import run_program
from guestemu.runner.testbed import Testbed, build_testbed

GENERATIONS = ["5.10", "2020", "5.17", "6.1", "6.12"]
HEADER = Header(vcpus=2, budget=20_000)


def op(kind: OpKind, *arguments: int, region: Region = Region.D, page: int = 0, **more: int) -> Op:
    return canonical_op(msgspec.structs.replace(Op(kind, arguments, region, page), **more))


PROGRAM = [
    op(OpKind.INIT_PLATFORM, 0),
    op(OpKind.SET_MEMORY_DECRYPTED, 2, 0, page=3),
    op(OpKind.WRITE, 0x41, 0, 6000, page=3),
    op(OpKind.READ, 0xFFC, page=3),
    op(OpKind.SET_MEMORY_ENCRYPTED, 2, 0, page=3),
    op(OpKind.READ, 8, page=4),
    op(OpKind.SET_MEMORY_DECRYPTED, 600, 0, region=Region.L, page=100),
    op(OpKind.SET_MEMORY_DECRYPTED, 2, 0, region=Region.V, page=9),
    op(OpKind.READ, 0, page=10),
    op(OpKind.HYPERCALL, 12, 0x1001, 1, 0x10, 0, instruction=Instruction.VMCALL),
    op(OpKind.HYPERCALL, 12, 0x1000, 1, 0, 0, mode=Mode.COMPAT32, cpl=3),
    op(OpKind.HYPERCALL, 2**32 + 12, 0, 1, 0, 0, mode=Mode.PROT32),
    op(OpKind.RDMSR, 0x4B564D08, mode=Mode.REAL16),
    op(OpKind.WRMSR, 0x4B564D08, 2),
    op(OpKind.DMA_ALLOC, 1, 9000, 0),
    op(OpKind.UNMAP, page=40),
    op(OpKind.READ, 0, page=40, vcpu=1),
    op(OpKind.TOUCH_CBIT, 0, page=41),
    op(OpKind.FAIL_SPLIT, 0),
    op(OpKind.SET_MEMORY_DECRYPTED, 1, 0, region=Region.L, page=1600),
    op(OpKind.DMA_FREE, 1),
    op(OpKind.CPU_OFFLINE),
]


@cache
def bed_of(generation: str, cbit: int = 39, native: bool = True) -> Testbed:
    config = MachineConfig(
        frames=64 << 20 >> PAGE_SHIFT, cbit=cbit, vcpus=HEADER.vcpus, native_hooks=native
    )
    return Testbed(SnippetGuest(generation, config, HEADER.budget), load_host("map-gpa-range"))


def random_program(seed: int, length: int = 8) -> list[Op]:
    return list(generate_ops(random.Random(seed), HEADER, length=length))


def memory_of(bed: Testbed) -> list[bytes]:
    ram = bed.guest.machine.ram
    first = bed.guest.gpa(Region.D, 0)
    return [ram.read(first, 64 << 12, private) for private in (True, False)]


# A program's outcome depends on nothing but the program -------------------------------------------


@settings(max_examples=40, deadline=None, database=None)
@given(st.sampled_from(GENERATIONS), st.integers(0, 2**32), st.integers(0, 2**32))
def test_a_run_does_not_depend_on_the_one_before(generation: str, one: int, other: int) -> None:
    bed = bed_of(generation)
    program = random_program(one)
    first = bed.run(program), memory_of(bed)
    bed.run(random_program(other))
    assert (bed.run(program), memory_of(bed)) == first


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_fresh_testbed_gives_the_same_outcome_as_a_used_one(generation: str) -> None:
    used = build_testbed(msgspec.structs.replace(HEADER, guest=f"snippet:{generation}"))
    for seed in range(5):
        used.run(random_program(seed))
    fresh = build_testbed(msgspec.structs.replace(HEADER, guest=f"snippet:{generation}"))
    assert used.run(PROGRAM) == fresh.run(PROGRAM)
    assert memory_of(used) == memory_of(fresh)


@pytest.mark.parametrize("cbit", [33, 36, 47, 51])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_cbit_gives_the_same_outcome(generation: str, cbit: int) -> None:
    """33 and 36 are walked by the emulated MMU, 47 and 51 by our own walker."""
    expected, found = bed_of(generation), bed_of(generation, cbit)
    for program in [PROGRAM, *(random_program(seed) for seed in range(12))]:
        assert found.run(program) == expected.run(program)
        assert memory_of(found) == memory_of(expected)


@settings(max_examples=25, deadline=None, database=None)
@given(st.sampled_from(GENERATIONS), st.integers(0, 2**32))
def test_python_hooks_give_the_same_outcome(generation: str, seed: int) -> None:
    native, python = bed_of(generation), bed_of(generation, native=False)
    assert native.guest.machine.code.available
    assert not python.guest.machine.code.available
    program = random_program(seed)
    assert python.run(program) == native.run(program)
    assert memory_of(python) == memory_of(native)


# What a run reports -------------------------------------------------------------------------------


def test_a_conversion_reports_exits_and_flips_in_order() -> None:
    outcome = bed_of("6.1").run([op(OpKind.SET_MEMORY_DECRYPTED, 2, 0, page=3)])
    (result,) = outcome.results
    assert result.outcome.value == 0
    gpa = bed_of("6.1").guest.gpa(Region.D, 3)
    assert [(r.nr, r.args[0], r.args[1], r.ret) for r in result.exits] == [
        (12, gpa, 1, 0),
        (12, gpa + 4096, 1, 0),
    ]
    assert [(flip.gfn, flip.private) for flip in result.flips] == [
        (gpa >> 12, False),
        ((gpa >> 12) + 1, False),
    ]
    assert [kind_of(event) for event in result.events] == ["flip", "flip", "hypercall", "hypercall"]
    assert outcome.is_ok


def test_observe_sees_every_operation_with_the_state_before_it() -> None:
    bed = bed_of("6.1")
    seen: list[tuple[int, int]] = []
    bed.observe = lambda view: seen.append((view.index, view.private_before.count(0)))
    try:
        bed.run([op(OpKind.SET_MEMORY_DECRYPTED, 2, 0, page=3), op(OpKind.READ, 0, page=3)])
    finally:
        bed.observe = None
    assert [index for index, _ in seen] == [0, 1]
    assert seen[1][1] >= seen[0][1]


def test_an_ordered_answer_is_used_up_by_exits_and_forgotten_by_a_reset() -> None:
    bed = bed_of("6.1")
    call = op(OpKind.HYPERCALL, 12, 0x400000, 1, 0x10, 0)
    program = [op(OpKind.ANSWER, 2**64 - 22, 1), call, call]
    values = [result.outcome.value for result in bed.run(program).results]
    assert values == [0, 2**64 - 22, 0]
    assert bed.run(program[:1]).is_ok
    assert [result.outcome.value for result in bed.run([call]).results] == [0]


def test_a_failing_split_ends_with_the_operation() -> None:
    bed = bed_of("6.1")
    convert = op(OpKind.SET_MEMORY_DECRYPTED, 1, 0, region=Region.L, page=3)
    values = [
        r.outcome.value for r in bed.run([op(OpKind.FAIL_SPLIT, 0), convert, convert]).results
    ]
    assert values == [0, -12, 0]


def test_each_vcpu_runs_its_own_operations() -> None:
    program = [
        op(OpKind.SET_MEMORY_DECRYPTED, 1, 0, page=1, vcpu=1),
        op(OpKind.WRITE, 7, 0, 8, page=1),
        op(OpKind.READ, 0, page=1, vcpu=1),
    ]
    outcome = bed_of("6.12").run(program)
    assert outcome.results[2].outcome.value == 0x0707070707070707
    assert outcome.is_ok


def test_the_budget_of_the_header_ends_an_endless_operation() -> None:
    program = [op(OpKind.UNMAP, page=3), op(OpKind.SET_MEMORY_DECRYPTED, 1, 0, page=3)]
    outcome = bed_of("6.1").run(program)
    assert isinstance(outcome.results[1].outcome.end, BudgetExhausted)
    assert "progress" in {violation.check for violation in outcome.violations}


# Hosts and headers that are wrong -----------------------------------------------------------------


class _Crashes:
    """Replaces a host's hypercall by one that raises what no host may raise."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.original = host.hypercall
        self.is_on = False

    def __call__(self, call: Hypercall) -> int:
        if self.is_on:
            raise ZeroDivisionError("a defect of the host")
        return self.original(call)


def test_what_a_host_raises_ends_the_run_and_the_testbed_lives_on() -> None:
    host = load_host("map-gpa-range")
    crashes = _Crashes(host)
    host.hypercall = crashes  # type: ignore[method-assign]  # the planted defect
    bed = build_testbed(HEADER, host)
    expected = bed.run(PROGRAM)
    crashes.is_on = True
    with pytest.raises(ZeroDivisionError, match="a defect of the host"):
        bed.run(PROGRAM)
    crashes.is_on = False
    assert bed.run(PROGRAM) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guest": "snippet:4.2"}, r"guest 'snippet:4\.2'.*did you mean snippet:6\.12\?"),
        ({"memory": 16}, r"memory 16M.*32M to 1048576M"),
        ({"memory": 33}, r"steps of 2M"),
        ({"vcpus": 9}, r"vcpus 9.*1 to 8"),
        ({"sev": SevKind.SEV_SNP}, r"sev snp"),
        ({"host": "nobody"}, r"host 'nobody'.*use one of"),
    ],
)
def test_a_header_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_testbed(msgspec.convert(msgspec.structs.asdict(Header()) | change, Header))


def test_region_g_needs_memory() -> None:
    program = Program(Header(), (op(OpKind.READ, 0, region=Region.G),))
    with pytest.raises(InputError, match=r"op 0 .*: region G needs memory of at least 4096 MiB"):
        run_program(program)


@pytest.mark.parametrize(("size", "calls"), [(0, 0), (1, 1), (4095, 1), (4096, 2)])
def test_an_early_conversion_is_asked_for_the_pages_that_have_bytes_of_it(
    size: int, calls: int
) -> None:
    outcome = bed_of("6.12").run([op(OpKind.EARLY_SET_MEMORY_DECRYPTED, size, 1)])
    assert not outcome.violations
    assert len(outcome.results[0].exits) == calls


@pytest.mark.parametrize("kind", list(OpKind), ids=[spec.name for spec in SPECS.values()])
def test_every_kind_of_operation_runs_with_its_defaults(kind: OpKind) -> None:
    (result,) = bed_of("6.12").run([canonical_op(Op(kind))]).results
    assert result.outcome.value is not None or result.outcome.end is not None


@pytest.mark.parametrize(
    ("cbit", "memory"), [(39, 65536), pytest.param(51, 1 << 20, marks=pytest.mark.soak)]
)
def test_a_large_guest_takes_the_memory_that_it_uses(cbit: int, memory: int) -> None:
    """The last frames convert as the first do; a frame costs a few bytes, not a page."""
    before = resident()
    bed = build_testbed(Header(guest="snippet:6.1", cbit=cbit, memory=memory))
    frames = memory << 8
    results = [bed.convert(index, Gfn(frames - 512), 512, False) for index in range(2)]
    assert [(result.outcome.value, found) for result, found in results] == [(0, ())] * 2
    assert bed.host.private_map().count(0, frames - 512) == 512
    bed.reset()
    assert bed.host.private_map().count(0, frames - 512) == 0
    assert bed.guest.leaf_map.private.count(0, frames - 512) == 0
    used = resident() - before
    bed.close()
    assert used < 4 * frames + (64 << 20)


def resident() -> int:
    """Bytes of the process's memory that are in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE
