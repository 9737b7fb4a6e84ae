# SPDX-License-Identifier: GPL-2.0-or-later
"""OVMF as a caller: its two stubs on the CPU, and the storm of a boot."""

import pytest

from guestemu.abi.addresses import Gpa
from guestemu.guest.ovmf import FIRST_STUB, FIXED_STUB, call_stub
from guestemu.program.flows.ovmf import StormPlan, boot_storm
from guestemu.program.program import Header
from guestemu.runner.testbed import build_testbed

RBX = 0x1122_3344_5566_7788


@pytest.fixture(scope="module")
def v8():
    testbed = build_testbed(Header(guest="snippet:2020", host="bitmap-v8"))
    yield testbed
    testbed.guest.machine.close()


def shared(testbed):
    return [gfn for gfn, private in enumerate(testbed.host.private_map()) if not private]


def test_first_stub_loses_rbx_and_says_number_11(v8):
    v8.reset()
    result = call_stub(v8.guest.machine, FIRST_STUB, Gpa(0x400000), 2, False, RBX)
    assert (result.rax, result.rbx) == (0, 0x400000)
    assert shared(v8) == []


def test_fixed_stub_keeps_rbx_and_reaches_the_host(v8):
    v8.reset()
    result = call_stub(v8.guest.machine, FIXED_STUB, Gpa(0x400000), 2, False, RBX)
    assert (result.rax, result.rbx) == (0, RBX)
    assert shared(v8) == [0x400, 0x401]
    call_stub(v8.guest.machine, FIXED_STUB, Gpa(0x400000), 1, True, RBX)
    assert shared(v8) == [0x401]


def test_storm_has_as_many_notifications_as_asked_for():
    for count in (0, 1, 7, 500):
        assert len(boot_storm(StormPlan(notifications=count))) == count
    assert len(boot_storm(StormPlan())) == 18_000


def test_storm_names_flash_mmio_ram_and_memory_that_is_not_there():
    plan = StormPlan(notifications=400, number=11)
    ops = boot_storm(plan)
    assert {op.arguments[0] for op in ops} == {11}
    starts = {op.arguments[1] for op in ops}
    assert {0xFFC00000, 0xFEC00000, 0xFED00000, 0x3F00000, 4 << 30, 63 << 30} <= starts
    assert max(op.arguments[1] + (op.arguments[2] << 12) for op in ops) == 64 << 30
    assert boot_storm(plan) == ops


def test_storm_on_v8_leaves_just_the_acpi_pages_shared(v8):
    outcome = v8.run(boot_storm(StormPlan(notifications=400, acpi_pages=3)))
    assert outcome.is_ok
    assert shared(v8) == [0x3F00, 0x3F01, 0x3F02]
