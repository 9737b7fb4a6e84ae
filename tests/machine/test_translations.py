# SPDX-License-Identifier: GPL-2.0-or-later
"""Translations that each vCPU keeps (Intel SDM volume 3, section 4.10)."""

from __future__ import annotations

import pytest
from bare_machine import DATA, FRAMES, HLT, PRIVATE, Bare, load, store

from guestemu.abi.addresses import PAGE_SIZE, Gpa, Gva
from guestemu.abi.x86 import PTE_GLOBAL, PTE_RW
from guestemu.machine.machine import MachineConfig

PAGE = Gva(PRIVATE + DATA)
OLD, NEW = DATA, DATA + PAGE_SIZE


@pytest.fixture(params=[39, 47])
def two(request):
    """Two vCPUs that keep translations; the pages at OLD and NEW hold 1 and 2."""
    bare = Bare(MachineConfig(frames=FRAMES, vcpus=2, cbit=request.param))
    bare.machine.keep_translations()
    for gpa, value in ((OLD, 1), (NEW, 2)):
        bare.machine.ram.write_u64(Gpa(gpa), value)
    return bare


def read(bare, vcpu):
    bare.machine.activate(vcpu)
    bare.run(load(PAGE) + HLT)
    return bare.register("rax")


def test_only_the_vcpu_that_invalidates_sees_the_change(two):
    held = two.machine.keep_translations()
    assert [read(two, 0), read(two, 1)] == [1, 1]
    two.tables.map(PAGE, Gpa(NEW))
    two.machine.activate(0)
    held.drop(PAGE)
    two.machine.engine.flush_tlb()
    assert [read(two, 0), read(two, 1), read(two, 1)] == [2, 1, 1]
    held.drop(PAGE)  # on vCPU 1, which executes
    two.machine.engine.flush_tlb()
    assert read(two, 1) == 2


def test_global_pages_outlive_a_new_root(two):
    held = two.machine.keep_translations()
    for flags, expected in ((PTE_RW, 2), (PTE_RW | PTE_GLOBAL, 1)):
        two.tables.map(PAGE, Gpa(OLD), flags=flags)
        held.drop_all()
        assert read(two, 0) == 1
        two.tables.map(PAGE, Gpa(NEW), flags=flags)
        held.drop_local()
        assert read(two, 0) == expected


def test_a_refused_access_is_walked_again_before_it_faults(two):
    two.tables.map(PAGE, Gpa(OLD), flags=0)
    assert read(two, 0) == 1
    two.tables.map(PAGE, Gpa(OLD), flags=PTE_RW)
    two.run(store(PAGE, 7) + load(PAGE) + HLT)
    assert two.register("rax") == 7


def test_a_rollback_brings_translations_back(two):
    held = two.machine.keep_translations()
    read(two, 1)
    two.machine.checkpoint()
    held.drop_all()
    assert held.find(PAGE, 1) is None
    two.machine.rollback()
    assert held.find(PAGE, 1).entry & ~0xFFF & (1 << 30) - 1 == OLD
