# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-status hypercalls tested without guestemu: `python -m guestemu.bench.peer TOOL EXECUTIONS`.

TOOL is `atheris` or `hypothesis`. A harness as its user writes one by their manuals: Unicorn by
its own Python binding executes VMMCALL, a hook passes the registers to a handler that keeps a
record, and after each call its answer and its record are compared with what the contract of
KVM_HC_MAP_GPA_RANGE (Documentation/virt/kvm/x86/hypercalls.rst) demands. Prints the CPU seconds of
an execution.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Final, Never

from unicorn import UC_ARCH_X86, UC_HOOK_INSN_INVALID, UC_MODE_64, Uc, x86_const

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U64_MASK
from guestemu.abi.hypercalls import (
    KVM_EINVAL,
    KVM_ENOSYS,
    KVM_HC_MAP_GPA_RANGE,
    MAP_GPA_RANGE_ENCRYPTED,
)

_CODE_AT: Final = 0x1000
_VMMCALL: Final = bytes.fromhex("0f01d9")
_FRAMES: Final = 1 << 14
_PAGES: Final = 64
_INPUT_BYTES: Final = 48
_NUMBER: Final = x86_const.UC_X86_REG_RAX
_ARGUMENTS: Final = (
    x86_const.UC_X86_REG_RBX,
    x86_const.UC_X86_REG_RCX,
    x86_const.UC_X86_REG_RDX,
)


def answer(number: int, gpa: int, pages: int) -> int:
    """The RAX that the contract demands."""
    if number != KVM_HC_MAP_GPA_RANGE:
        return -KVM_ENOSYS & U64_MASK
    end = (gpa >> PAGE_SHIFT) + pages
    is_bad = gpa & PAGE_MASK or not pages or end > _FRAMES
    return -KVM_EINVAL & U64_MASK if is_bad else 0


class Harness:
    """A CPU that executes one VMMCALL, and the handler behind it."""

    def __init__(self) -> None:
        self.shared: set[int] = set()
        self.cpu = Uc(UC_ARCH_X86, UC_MODE_64)
        self.cpu.mem_map(_CODE_AT, PAGE_SIZE)
        self.cpu.mem_write(_CODE_AT, _VMMCALL)
        self.cpu.hook_add(UC_HOOK_INSN_INVALID, self._on_invalid)

    def _on_invalid(self, cpu: Uc, _user_data: object) -> bool:
        number = cpu.reg_read(_NUMBER)
        gpa, pages, attributes = map(cpu.reg_read, _ARGUMENTS)
        cpu.reg_write(_NUMBER, self.handle(number, gpa, pages, attributes))
        cpu.reg_write(x86_const.UC_X86_REG_RIP, _CODE_AT + len(_VMMCALL))
        return True

    def handle(self, number: int, gpa: int, pages: int, attributes: int) -> int:
        """The VMM's side: the answer, as RAX has it."""
        result = answer(number, gpa, pages)
        if result == 0:
            frames = range(gpa >> PAGE_SHIFT, (gpa >> PAGE_SHIFT) + pages)
            change = (
                self.shared.difference_update
                if attributes & MAP_GPA_RANGE_ENCRYPTED
                else self.shared.update
            )
            change(frames)
        return result

    def call(self, number: int, gpa: int, pages: int, attributes: int) -> None:
        """One hypercall from the first state; raises `AssertionError` where it is answered or
        recorded wrongly."""
        self.shared.clear()
        self.cpu.reg_write(_NUMBER, number)
        for register, value in zip(_ARGUMENTS, (gpa, pages, attributes), strict=True):
            self.cpu.reg_write(register, value)
        self.cpu.emu_start(_CODE_AT, _CODE_AT + len(_VMMCALL))
        result = self.cpu.reg_read(_NUMBER)
        assert result == answer(number, gpa, pages)
        told = range(gpa >> PAGE_SHIFT, (gpa >> PAGE_SHIFT) + pages)
        is_shared = result == 0 and not attributes & MAP_GPA_RANGE_ENCRYPTED
        assert self.shared == (set(told) if is_shared else set())


def run_atheris(harness: Harness, executions: int) -> Never:
    """Inputs of libFuzzer, which also ends the process."""
    import atheris

    start = time.process_time()
    done = 0

    def test_one_input(data: bytes) -> None:
        nonlocal done
        provider = atheris.FuzzedDataProvider(data)
        number = provider.PickValueInList([KVM_HC_MAP_GPA_RANGE, provider.ConsumeInt(8)])
        address = provider.ConsumeIntInRange(0, _FRAMES) << PAGE_SHIFT
        gpa = provider.PickValueInList([address, provider.ConsumeIntInRange(0, U64_MASK)])
        pages = provider.ConsumeIntInRange(0, _PAGES)
        harness.call(number & U64_MASK, gpa, pages, provider.ConsumeIntInRange(0, U64_MASK))
        done += 1
        if done == executions:
            print((time.process_time() - start) / executions, flush=True)
            os._exit(0)

    instrumented = atheris.instrument_func(test_one_input)
    atheris.Setup([sys.argv[0], f"-max_len={_INPUT_BYTES}"], instrumented)
    atheris.Fuzz()
    raise SystemExit(1)


def run_hypothesis(harness: Harness, executions: int) -> None:
    """Examples of Hypothesis' strategies."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    words = st.integers(0, U64_MASK)
    addresses = st.integers(0, _FRAMES).map(lambda frame: frame << PAGE_SHIFT)

    @settings(
        max_examples=executions,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.just(KVM_HC_MAP_GPA_RANGE) | words, addresses | words, st.integers(0, _PAGES), words)
    def calls(number: int, gpa: int, pages: int, attributes: int) -> None:
        harness.call(number, gpa, pages, attributes)

    start = time.process_time()
    calls()
    print((time.process_time() - start) / executions, flush=True)


def main() -> None:
    """See the module's docstring."""
    tool, executions = sys.argv[1:]
    run = {"atheris": run_atheris, "hypothesis": run_hypothesis}[tool]
    run(Harness(), int(executions))


if __name__ == "__main__":
    main()
