# SPDX-License-Identifier: GPL-2.0-or-later
"""guest_memfd as user space sees it: each rule of GM1, GM3, GM4 and GM6 that is modelled."""

from __future__ import annotations

import pytest

from guestemu.abi.errno import EINVAL, ENOMEM, EOPNOTSUPP
from guestemu.host.kvm.guest_memory import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    MADV_DONTNEED,
    PUNCH,
    GuestMemory,
    MemoryFaultExit,
    Slot,
)

PAGE = 0x1000
MIB = 1 << 20
FRAMES = 512
PRIVATE = KVM_MEMORY_ATTRIBUTE_PRIVATE


@pytest.fixture
def memory() -> GuestMemory:
    """Slot 0: 1 MiB with guest_memfd; slot 1: 1 MiB plain memory; nothing above."""
    return GuestMemory(FRAMES, (Slot(0, MIB), Slot(MIB, MIB, has_guest_memfd=False)))


@pytest.mark.parametrize(
    ("gpa", "size", "attributes", "flags", "result"),
    [
        (0, PAGE, 1, 0, -EINVAL),
        (0, PAGE, PRIVATE, 1, -EINVAL),
        (0, 0, PRIVATE, 0, -EINVAL),
        (1, PAGE, PRIVATE, 0, -EINVAL),
        (0, PAGE + 1, PRIVATE, 0, -EINVAL),
        ((1 << 64) - PAGE, 2 * PAGE, PRIVATE, 0, -EINVAL),
        ((1 << 64) - PAGE, PAGE, PRIVATE, 0, -EINVAL),
        (4 * MIB, PAGE, PRIVATE, 0, 0),
        (1 << 60, PAGE, PRIVATE, 0, 0),
        (MIB, PAGE, PRIVATE, 0, 0),
        (MIB - PAGE, 2 * PAGE, PRIVATE, 0, 0),
    ],
)
def test_set_memory_attributes_as_recorded_on_a_real_kvm(
    memory: GuestMemory, gpa: int, size: int, attributes: int, flags: int, result: int
) -> None:
    assert memory.set_memory_attributes(gpa, size, attributes, flags) == result
    assert memory.calls[-1].result == result


def test_attributes_beyond_ram_are_kept(memory: GuestMemory) -> None:
    memory.set_memory_attributes(1 << 40, 1 << 34, PRIVATE)
    memory.set_memory_attributes((1 << 40) + PAGE, PAGE, 0)
    assert memory.is_private(1 << 28)
    assert not memory.is_private((1 << 28) + 1)
    assert memory.is_private((1 << 28) + 2)


@pytest.mark.parametrize(
    ("mode", "offset", "length", "result"),
    [
        (PUNCH, 1, PAGE, -EINVAL),
        (PUNCH, 0, 0, -EINVAL),
        (FALLOC_FL_PUNCH_HOLE, 0, PAGE, -EOPNOTSUPP),
        (PUNCH, MIB, PAGE, 0),
        (PUNCH, MIB - PAGE, MIB, 0),
        (FALLOC_FL_KEEP_SIZE, MIB - PAGE, 2 * PAGE, -EINVAL),
    ],
)
def test_fallocate_as_recorded_on_a_real_kvm(
    memory: GuestMemory, mode: int, offset: int, length: int, result: int
) -> None:
    assert memory.fallocate(0, mode, offset, length) == result


def test_a_conversion_moves_no_content_and_a_punch_does(memory: GuestMemory) -> None:
    memory.set_memory_attributes(0, PAGE, 0)
    assert memory.private_pages[0], "the private page stays until it is punched (GM3)"
    memory.fallocate(0, PUNCH, 0, PAGE)
    assert not memory.private_pages[0]
    memory.set_memory_attributes(0, PAGE, PRIVATE)
    assert memory.shared_pages[0], "the shared copy stays until it is discarded"
    memory.madvise(0, 0, PAGE, MADV_DONTNEED)
    assert not memory.shared_pages[0]


def test_a_hole_is_cut_to_its_slot() -> None:
    memory = GuestMemory(FRAMES, (Slot(0, MIB), Slot(MIB, MIB)))
    memory.fallocate(0, PUNCH, MIB - PAGE, MIB)
    assert not memory.private_pages[255]
    assert memory.private_pages[256]


def test_plain_memory_has_no_private_page_and_rom_no_shared_one() -> None:
    rom = Slot(MIB, MIB, has_guest_memfd=False, is_read_only=True)
    memory = GuestMemory(FRAMES, (Slot(0, MIB // 2, has_guest_memfd=False), rom))
    assert not memory.private_pages.any()
    for attributes in (0, PRIVATE):
        memory.set_memory_attributes(0, 2 * MIB, attributes)
    assert not memory.private_pages.any()
    assert memory.shared_pages.count() == memory.shared_pages[:128].count() == 128


def test_the_access_that_exits(memory: GuestMemory) -> None:
    assert memory.access(0x2008, True) is None
    assert memory.access(0x2008, False) == MemoryFaultExit(0x2000, PAGE, False)
    assert memory.access(MIB, True) == MemoryFaultExit(MIB, PAGE, True)
    assert memory.access(8 * MIB, True) == MemoryFaultExit(8 * MIB, PAGE, True)
    assert memory.access(8 * MIB, False) is None, "MMIO"
    assert memory.access(0x2008, False, by_attribute=True) is None


def test_the_nth_call_fails_on_order_and_does_nothing(memory: GuestMemory) -> None:
    memory.order_failure(1, ENOMEM)
    assert memory.set_memory_attributes(0, PAGE, 0) == 0
    assert memory.fallocate(0, PUNCH, 0, PAGE) == -ENOMEM
    assert memory.private_pages[0]
    assert memory.fallocate(0, PUNCH, 0, PAGE) == 0
    assert [call.result for call in memory.calls] == [0, -ENOMEM, 0]


def test_a_restored_memory_is_new(memory: GuestMemory) -> None:
    memory.set_memory_attributes(0, 4 * MIB, 0)
    memory.map_for_device(0, PAGE, True)
    memory.order_failure(0, EINVAL)
    memory.restore()
    fresh = GuestMemory(FRAMES, memory.slots)
    for name in ("attributes", "private_pages", "shared_pages", "device_map", "calls"):
        assert getattr(memory, name) == getattr(fresh, name)
    assert memory.set_memory_attributes(0, PAGE, 0) == 0
