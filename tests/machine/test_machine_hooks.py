# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable

import pytest
from bare_machine import (
    BUDGET,
    CODE,
    CPUID,
    DATA,
    FRAMES,
    HLT,
    JUMP_SELF,
    MODES,
    PRIVATE,
    SHARED,
    VMCALL,
    VMMCALL,
    Answers,
    Bare,
    load,
    mov,
    store,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from guestemu.abi.addresses import PAGE_SIZE, Gpa, Gva
from guestemu.abi.errors import EngineError
from guestemu.abi.x86 import Mode
from guestemu.machine import layout
from guestemu.machine.engine import Engine
from guestemu.machine.exits import (
    BudgetExhausted,
    ExceptionExit,
    Exit,
    Halt,
    Hypercall,
    PortOut,
    Trap,
    Unbacked,
    Vmgexit,
)
from guestemu.machine.machine import MachineConfig

NATIVE = [True, False]


def config(native: bool) -> MachineConfig:
    return MachineConfig(frames=FRAMES, native_hooks=native)


# Errors -------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


@pytest.mark.parametrize("native", NATIVE)
def test_what_a_host_raises_comes_out_of_run_and_not_into_c(
    native: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = Bare(config(native))
    answers = Answers()
    answers.error = Broken("in the host")
    bare.machine.hooks.handler = answers
    with pytest.raises(Broken, match="in the host"):
        bare.run(mov(6, 1) + VMMCALL + mov(6, 2) + HLT)
    assert bare.register("rsi") == 1, "the guest went on"
    assert capfd.readouterr().err == ""
    answers.error = None
    assert isinstance(bare.run(VMMCALL + HLT), Halt), "the machine is usable afterwards"


def test_ctrl_c_in_a_hook_is_not_swallowed() -> None:
    bare = Bare()
    answers = Answers()
    answers.error = KeyboardInterrupt()
    bare.machine.hooks.handler = answers
    with pytest.raises(KeyboardInterrupt):
        bare.run(VMMCALL + HLT)


@pytest.mark.parametrize("native", NATIVE)
def test_an_error_in_the_memory_hook_comes_out(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Bare(config(native))

    def fail(*_arguments: object) -> None:
        raise Broken

    bare.place(0x20000, store(PRIVATE + DATA, 1) + load(SHARED + DATA) + HLT)
    bare.enter(Mode.LONG64, 0)
    monkeypatch.setattr(bare.machine.ram, "_settle", fail)
    with pytest.raises(Broken):
        bare.machine.current.run(0x20000, 100)


@pytest.mark.parametrize("native", NATIVE)
def test_an_error_in_the_walker_comes_out(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Bare(MachineConfig(frames=FRAMES, cbit=47, native_hooks=native))
    assert bare.machine.tlb is not None
    not_mapped = 1 << 46  # machine code grants the others
    bare.place(CODE, load(not_mapped) + HLT)
    bare.enter(Mode.LONG64, 0)

    def fail(*_arguments: object) -> bool:
        raise Broken

    monkeypatch.setattr(bare.machine.tlb, "_fill", fail)
    with pytest.raises(Broken):
        bare.machine.current.run(CODE, 100)


def test_the_engine_says_what_it_could_not_do() -> None:
    engine = Engine()
    with pytest.raises(EngineError, match=r"map 0x1000 bytes at 0x123"):
        engine.map(0x123, 0x1000, 0)
    engine.close()
    engine.close()


def test_a_machine_nobody_refers_to_any_more_is_freed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    close = weakref.finalize

    def watch(engine: Engine, free: Callable[..., object], handle: object) -> object:
        return close(engine, lambda: (freed.append(1), free(handle)))

    monkeypatch.setattr(weakref, "finalize", watch)
    bare = Bare(MachineConfig(frames=FRAMES))
    bare.place(CODE, HLT)
    bare.enter(Mode.LONG64, 0)
    bare.machine.current.run(CODE, 100)
    kept = Bare(MachineConfig(frames=FRAMES))
    del bare
    gc.collect()
    assert freed == [1]
    kept.machine.close()
    kept.machine.close()
    del kept
    gc.collect()
    assert freed == [1, 1]


# Budgets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize(
    "code",
    [
        JUMP_SELF,
        VMMCALL + b"\xeb\xfb",
        CPUID + b"\xeb\xfc",
        mov(1, 1 << 40) + b"\xbf\x00\x00\x20\x80" + b"\xf3\xaa",
        b"\x0f\x0b",
        b"\xcc" + b"\xeb\xfd",
    ],
    ids=["jmp .", "vmmcall loop", "cpuid loop", "rep stosb", "ud2 forever", "int3 loop"],
)
def test_every_loop_ends(native: bool, code: bytes) -> None:
    vectors = {6: CODE + 0x800, 3: CODE + 0x800}
    bare = Bare(config(native), vectors)
    bare.place(CODE + 0x800, b"\x48\xcf")
    bare.machine.hooks.handler = Answers()
    end = bare.run(code, deliver=True, budget=300)
    assert isinstance(end, BudgetExhausted)


@pytest.mark.parametrize(("mode", "cpl"), MODES)
def test_a_loop_ends_in_every_mode(mode: Mode, cpl: int) -> None:
    assert Bare().run(JUMP_SELF, mode, cpl, budget=100) == BudgetExhausted(CODE)


@pytest.mark.parametrize("native", NATIVE)
def test_the_budget_counts_basic_blocks(native: bool) -> None:
    bare = Bare(config(native))
    #        mov ecx, 50; dec ecx; jnz -4; hlt
    code = b"\xb9\x32\x00\x00\x00" + b"\xff\xc9" + b"\x75\xfc" + HLT
    assert isinstance(bare.run(code, budget=51), Halt)
    assert isinstance(bare.run(code, budget=49), BudgetExhausted)


@pytest.mark.parametrize("native", NATIVE)
def test_a_run_that_used_up_its_budget_can_go_on(native: bool) -> None:
    bare = Bare(config(native))
    code = b"\xb9\x32\x00\x00\x00" + b"\xff\xc9" + b"\x75\xfc" + HLT
    end = bare.run(code, budget=20)
    assert isinstance(end, BudgetExhausted)
    assert isinstance(bare.machine.current.run(end.rip, BUDGET), Halt)
    assert bare.register("rcx") == 0


def test_block_counters_never_wrap_to_zero() -> None:
    for native in NATIVE:
        bare = Bare(config(native))
        bare.run(JUMP_SELF, budget=256)
        index = (CODE ^ CODE >> 4) & 4095
        assert bare.machine.hooks.counters[index] != 0
        assert sum(map(bool, bare.machine.hooks.counters)) >= 1


# Exits --------------------------------------------------------------------------------------------


def test_vmgexit_and_out_are_exits_of_their_own() -> None:
    bare = Bare()
    assert bare.run(b"\xf3\x0f\x01\xd9" + HLT) == Vmgexit(CODE)
    assert bare.run(b"\xb0\x41\x66\xba\xf8\x03\xee" + HLT) == PortOut(0x3F8, 1, 0x41)


def test_a_warn_site_is_a_trap_only_where_it_was_announced() -> None:
    bare = Bare()
    bare.machine.hooks.traps.add(CODE + 1)
    assert bare.run(b"\x90\x0f\x0b") == Trap(CODE + 1)
    assert bare.run(b"\x0f\x0b") == ExceptionExit(6, None, CODE)


@pytest.mark.parametrize("native", NATIVE)
@pytest.mark.parametrize("private", [True, False])
def test_an_access_without_ram_under_it_is_unbacked(native: bool, private: bool) -> None:
    bare = Bare(config(native))
    beyond = FRAMES * PAGE_SIZE + 0x3000
    gva = Gva(0x7000_0000)
    bare.tables.map(gva, Gpa(beyond), private=private)
    end = bare.run(mov(3, gva + 0x10) + b"\x48\x8b\x03" + HLT)
    assert end == Unbacked(beyond + 0x10, 8, False, CODE + 10)
    end = bare.run(mov(3, gva + 0x10) + b"\x66\x89\x03" + HLT)
    assert end == Unbacked(beyond + 0x10, 2, True, CODE + 10)


def test_a_patched_instruction_is_undone_by_a_rollback() -> None:
    """KVM writes VMMCALL over VMCALL: the next program must find a VMCALL again."""
    bare = Bare()
    bare.place(CODE, VMCALL + HLT)
    bare.machine.checkpoint()
    seen = []
    for _ in range(2):
        bare.enter(Mode.LONG64, 0)
        end = bare.machine.current.run(CODE, 100)
        assert isinstance(end, Hypercall)
        seen.append(end.is_vmcall)
        bare.machine.current.patch_code(VMMCALL)
        assert bare.machine.ram.read(Gpa(CODE), 3) == VMMCALL
        end = bare.machine.current.run(CODE, 100)
        assert isinstance(end, Hypercall)
        assert not end.is_vmcall
        bare.machine.rollback()
    assert seen == [True, True]


def test_a_patch_with_another_instruction_takes_effect_and_is_undone() -> None:
    bare = Bare()
    bare.place(CODE, VMCALL + HLT)
    bare.machine.checkpoint()
    for _ in range(2):
        bare.enter(Mode.LONG64, 0)
        assert isinstance(bare.machine.current.run(CODE, 100), Hypercall)
        bare.machine.current.patch_code(b"\x90\x90" + HLT)
        assert bare.machine.current.run(CODE, 100) == Halt(CODE + 3)
        bare.machine.rollback()


# Hostile code -------------------------------------------------------------------------------------

_PIECES = [
    *(HLT, VMMCALL, VMCALL, CPUID, JUMP_SELF, b"\x48\xcf", b"\xcf", b"\xcb", b"\xc3", b"\xcc"),
    *(b"\x0f\x20\xc0", b"\x0f\x22\xc0", b"\x0f\x22\xd8", b"\x0f\x22\xe0", b"\x0f\x23\xf8"),
    *(b"\x0f\x01\xd8", b"\x0f\x01\xda", b"\x0f\x01\x13", b"\x0f\x01\x1b", b"\x0f\x30"),
    *(b"\x0f\x32", b"\xcd\x80", b"\x0f\x05", b"\x0f\x07", b"\x0f\x34", b"\x0f\x35", b"\xec"),
    *(b"\xee", b"\x8e\xd8", b"\x8e\xd0", b"\x9d", b"\xf0\x0f\xc7\x0b", b"\xff\xe0", b"\x0f\xaa"),
    *(b"\x0f\x00\xd8", b"\x0f\x01\xf8", b"\x0f\x09", b"\x0f\xae\x03", b"\xf3\xaa", b"\x0f\x01\xc8"),
    *(mov(0, 2**64 - 1), mov(3, 0), mov(3, PRIVATE + DATA), mov(3, 1 << 63), mov(1, 1 << 40)),
    *(mov(4, 0), mov(4, 0x7000), mov(4, 1 << 47), mov(1, 0xC0000080), mov(0, 0)),
]
codes = st.one_of(
    st.binary(min_size=1, max_size=64),
    st.lists(st.sampled_from(_PIECES), min_size=1, max_size=10).map(b"".join),
)


@pytest.fixture(scope="module")
def hostile() -> Bare:
    bare = Bare()
    # HLT everywhere, so that a wild jump ends at once instead of executing zeros for long.
    bare.machine.ram.write(Gpa(layout.HANDLERS), HLT * PAGE_SIZE)
    bare.machine.ram.write(Gpa(CODE), HLT * PAGE_SIZE)
    bare.machine.checkpoint()
    return bare


@settings(max_examples=250, deadline=None, database=None)
@given(st.sampled_from(MODES), st.booleans(), codes)
def test_hostile_code_ends_in_a_typed_exit(
    hostile: Bare, where: tuple[Mode, int], deliver: bool, code: bytes
) -> None:
    end = hostile.run(code + HLT * 64, *where, deliver=deliver, budget=300)
    assert isinstance(end, Exit)
    hostile.machine.rollback()
    assert isinstance(hostile.run(HLT), Halt), "the machine survives"
    hostile.machine.rollback()


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(0, 2**32))
def test_native_and_python_hooks_end_alike(seed: int) -> None:
    numbers = random.Random(seed)
    mode, cpl = numbers.choice(MODES)
    code = b"".join(numbers.choice(_PIECES) for _ in range(6)) + HLT
    ends = []
    for native in NATIVE:
        bare = Bare(config(native))
        end = bare.run(code, mode, cpl, budget=60)
        if isinstance(end, Hypercall):
            ends.append((end.nr, end.a0, end.cpl))
            continue
        ends.append((end, bare.register("rax"), bytes(bare.machine.hooks.counters)))
    assert ends[0] == ends[1]
