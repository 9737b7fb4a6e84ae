# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's half of MapGPA: checks, chunks, answers, events between chunks (K4-b, T26 to T29)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestemu.abi import tdx
from guestemu.abi.tdx import MapGpaAnswer
from guestemu.host.kvm.tdx_map_gpa import EAGAIN, EINVAL, KVM_6_16, KVM_7_2, TdxKvm, tdx_map_gpa
from guestemu.machine.exits import MapGpaRange, RunFailed
from guestemu.machine.view_bit import tdx_bit

BIT = tdx_bit(47)
SHARED = 1 << 47
MIB = 1 << 20


class Vcpu:
    index = 0
    cpl = 0
    is_64bit = True

    def read_register(self, name: str) -> int:
        return 0

    def write_register(self, name: str, value: int) -> None:
        pass

    def read_code(self, size: int) -> bytes:
        return b""

    def patch_code(self, code: bytes) -> None:
        pass


def map_gpa(
    gpa: int,
    size: int,
    answers: tuple[int, ...] = (),
    kvm: TdxKvm = KVM_7_2,
    has_event: Callable[[], bool] | None = None,
) -> tuple[MapGpaAnswer | RunFailed, list[tuple[int, int, int]]]:
    """The answer, and (gpa, pages, attributes) of each exit."""
    seen: list[tuple[int, int, int]] = []
    left = list(answers)

    def ask(call: MapGpaRange) -> int:
        assert call.origin == "mapgpa"
        seen.append((call.gpa, call.pages, call.attributes))
        return left.pop(0) if left else 0

    return tdx_map_gpa(kvm, gpa, size, BIT, ask, Vcpu(), has_event), seen


@pytest.mark.parametrize(
    ("gpa", "size", "status"),
    [
        (0x1000, 0, tdx.VMCALL_INVALID_OPERAND),
        ((1 << 64) - 0x1000, 0x2000, tdx.VMCALL_INVALID_OPERAND),
        (1 << 46, 0x1000, tdx.VMCALL_INVALID_OPERAND),
        ((1 << 46) - 0x1000, 0x2000, tdx.VMCALL_INVALID_OPERAND),
        (SHARED - 0x1000, 0x2000, tdx.VMCALL_INVALID_OPERAND),
        (SHARED | 0x400000005000, 0x3000, tdx.VMCALL_INVALID_OPERAND),
        (0x1008, 0x1000, tdx.VMCALL_ALIGN_ERROR),
        (SHARED | 0x1000, 0x1800, tdx.VMCALL_ALIGN_ERROR),
    ],
)
def test_kvm_refuses_without_asking_user_space(gpa: int, size: int, status: int) -> None:
    assert map_gpa(gpa, size) == (MapGpaAnswer(status, gpa), [])


def test_chunks_are_2_mib_from_the_given_start() -> None:
    start = 0x1FF000
    answer, seen = map_gpa(SHARED | start, 5 * MIB)
    assert answer == MapGpaAnswer(tdx.VMCALL_SUCCESS)
    assert seen == [(start, 512, 0), (start + 2 * MIB, 512, 0), (start + 4 * MIB, 256, 0)]


def test_user_space_sees_the_address_without_the_bit_and_only_one_attribute() -> None:
    assert map_gpa(SHARED | 0x5000, 0x2000)[1] == [(0x5000, 2, 0)]
    assert map_gpa(0x5000, 0x2000)[1] == [(0x5000, 2, 0x10)]


@pytest.mark.parametrize("kvm", [KVM_6_16, KVM_7_2], ids=lambda kvm: kvm.name)
@pytest.mark.parametrize("answer", [EAGAIN, EINVAL, 1000, 2**64 - 22])
def test_an_answer_other_than_0_ends_at_the_refused_chunk(kvm: TdxKvm, answer: int) -> None:
    start = SHARED | 0x400000
    result, seen = map_gpa(start, 6 * MIB, (0, answer), kvm)
    refused = start + 2 * MIB
    assert len(seen) == 2
    if not kvm.knows_retry or answer == EINVAL:
        assert result == MapGpaAnswer(tdx.VMCALL_INVALID_OPERAND, refused)
    elif answer == EAGAIN:
        assert result == MapGpaAnswer(tdx.VMCALL_RETRY, refused)
    else:
        assert isinstance(result, RunFailed)
        assert "-EINVAL" in result.reason


def test_an_event_between_chunks_is_a_retry_with_progress() -> None:
    events = iter([False, True])
    answer, seen = map_gpa(0x400000, 8 * MIB, has_event=lambda: next(events))
    assert answer == MapGpaAnswer(tdx.VMCALL_RETRY, 0x400000 + 4 * MIB)
    assert len(seen) == 2


def test_no_event_is_looked_for_after_the_last_chunk() -> None:
    def fail() -> bool:
        raise AssertionError

    assert map_gpa(0, 2 * MIB, has_event=fail)[0] == MapGpaAnswer(tdx.VMCALL_SUCCESS)


def test_a_vmm_that_runs_again_reports_success_for_the_rest() -> None:
    kvm = TdxKvm(name="7.2, runs again", runs_again=True)
    answer, seen = map_gpa(SHARED, 4 * MIB, (0, 1000), kvm)
    assert answer == MapGpaAnswer(tdx.VMCALL_SUCCESS)
    assert len(seen) == 2
