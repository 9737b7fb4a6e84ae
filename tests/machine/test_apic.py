# SPDX-License-Identifier: GPL-2.0-or-later
"""Local APICs: priorities, EOI, where IPIs go, the deadline timer."""

from __future__ import annotations

import pytest

from guestemu.machine.devices.apic import MSR_APIC_BASE, MSR_TSC_DEADLINE, LocalApics

TPR, EOI, ICR, TIMER, LINT0, SELF = 0x808, 0x80B, 0x830, 0x832, 0x835, 0x83F
INIT_ASSERT, INIT_DEASSERT, STARTUP = 0xC500, 0x8500, 0x600


class Clock:
    now = 0


@pytest.fixture
def apics():
    return LocalApics(3, lambda: Clock.now, lambda: None)


def start(apics, index, vector=0x99):
    apics.write(0, ICR, index << 32 | INIT_ASSERT)
    apics.write(0, ICR, index << 32 | STARTUP | vector)
    return apics.take_start(index)


def test_a_cpu_starts_once_where_the_first_start_up_ipi_says(apics):
    assert apics.take_start(1) is None
    apics.write(0, ICR, 1 << 32 | INIT_ASSERT)
    apics.write(0, ICR, 1 << 32 | INIT_DEASSERT)
    apics.write(0, ICR, 1 << 32 | STARTUP | 0x99)
    assert [apics.take_start(index) for index in range(3)] == [None, 0x99, None]
    apics.write(0, ICR, 1 << 32 | STARTUP | 0x98)
    assert apics.take_start(1) is None
    assert start(apics, 1, 0x42) == 0x42


def test_the_highest_vector_first_and_none_of_its_class_until_eoi(apics):
    for vector in (0x31, 0x35, 0x52):
        apics.request(0, vector)
    assert apics.pending(0) == 0x52
    apics.acknowledge(0, 0x52)
    assert apics.pending(0) is None
    apics.request(0, 0x61)
    assert apics.pending(0) == 0x61
    apics.acknowledge(0, 0x61)
    apics.write(0, EOI, 0)
    assert apics.pending(0) is None
    apics.write(0, EOI, 0)
    assert apics.pending(0) == 0x35
    apics.write(0, TPR, 0x30)
    assert apics.pending(0) is None
    apics.write(0, TPR, 0x20)
    assert apics.pending(0) == 0x35


@pytest.mark.parametrize(
    ("command", "targets"),
    [
        (1 << 32 | 0x40, {1}),
        (0b101 << 32 | 1 << 11 | 0x40, {0, 2}),
        (1 << 48 | 1 << 32 | 1 << 11 | 0x40, set()),
        (0xFFFFFFFF << 32 | 0x40, {0, 1, 2}),
        (1 << 18 | 0x40, {0}),
        (2 << 18 | 0x40, {0, 1, 2}),
        (3 << 18 | 0x40, {1, 2}),
    ],
    ids=["physical", "logical", "other cluster", "broadcast", "self", "all", "others"],
)
def test_where_an_ipi_goes(apics, command, targets):
    apics.write(0, ICR, command)
    assert {index for index in range(3) if apics.pending(index) == 0x40} == targets
    apics.write(2, SELF, 0x41)
    assert apics.pending(2) == 0x41


def test_the_timer_fires_once_at_its_deadline(apics):
    Clock.now = 100
    apics.write(1, TIMER, 2 << 17 | 0xEC)
    apics.write(1, MSR_TSC_DEADLINE, 150)
    assert (apics.deadline(1), apics.pending(1)) == (150, None)
    Clock.now = 150
    assert (apics.pending(1), apics.deadline(1)) == (0xEC, None)
    apics.acknowledge(1, 0xEC)
    apics.write(1, EOI, 0)
    apics.write(1, MSR_TSC_DEADLINE, 200)
    apics.write(1, TIMER, 1 << 16)
    assert apics.read(1, MSR_TSC_DEADLINE) == 0


def test_the_8259s_reach_the_boot_cpu_only(apics):
    assert [apics.takes_extint(index) for index in range(3)] == [True, False, False]
    apics.write(0, LINT0, 1 << 16 | 7 << 8)
    assert not apics.takes_extint(0)
    assert [bool(apics.read(index, MSR_APIC_BASE) & 1 << 8) for index in range(3)] == [
        True,
        False,
        False,
    ]


def test_a_pending_interrupt_outlives_a_rollback(apics):
    apics.request(1, 0xEC)
    apics.request(1, 0x31)
    apics.acknowledge(1, 0xEC)
    apics.request(1, 0xFB)
    apics.checkpoint()
    apics.acknowledge(1, 0xFB)
    apics.rollback()
    assert apics.pending(1) == 0xFB
    assert apics.read(1, 0x817) == 1 << 0xEC % 32, "ISR"
    assert (apics.read(1, 0x821), apics.read(1, 0x827)) == (1 << 0x31 % 32, 1 << 0xFB % 32)


def test_an_nmi_waits_whatever_the_priority_and_init_takes_it_back(apics):
    nmi = 4 << 8
    start(apics, 1)
    apics.write(0, ICR, 3 << 18 | nmi)  # the others; CPU 2 has not been started
    assert [apic.has_nmi for apic in apics.state.apics] == [False, True, False]
    assert apics.pending(1) is None
    apics.write(0, ICR, 1 << 32 | INIT_ASSERT)
    assert not apics.state.apics[1].has_nmi
