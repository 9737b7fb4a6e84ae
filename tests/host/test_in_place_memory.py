# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest_memfd that converts in place, and a VMM that follows the ioctl's documentation (GM10)."""

from __future__ import annotations

import pytest

from guestemu.abi.errno import EAGAIN, EEXIST, EINVAL, ENOMEM
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.kvm.guest_memory import KVM_MEMORY_ATTRIBUTE_PRIVATE, PUNCH, Slot
from guestemu.host.kvm.in_place_memory import InPlaceMemory
from guestemu.host.standin import StandInVcpu
from guestemu.host.userspace.base import VmStopped
from guestemu.host.userspace.in_place import TRIES, InPlaceHost

PAGE = 0x1000
MIB = 1 << 20
FRAMES = 1024
PRIVATE = KVM_MEMORY_ATTRIBUTE_PRIVATE
SLOTS = (Slot(0, MIB), Slot(2 * MIB, MIB, MIB), Slot(3 * MIB, MIB, has_guest_memfd=False))
"""Two parts of one file with a hole between them in GPAs, and plain memory."""
SECOND = 512
"""The first frame of the second slot."""


@pytest.fixture
def memory() -> InPlaceMemory:
    return InPlaceMemory(FRAMES, SLOTS)


@pytest.fixture
def host() -> InPlaceHost:
    made = InPlaceHost()
    made.describe_vm(SLOTS, 1)
    made.reset(FRAMES)
    return made


def ask(host: InPlaceHost, first: int, pages: int, is_private: bool) -> int:
    attributes = MAP_GPA_RANGE_ENCRYPTED if is_private else 0
    return host.hypercall(StandInVcpu().hypercall(12, first * PAGE, pages, attributes))


def shared(memory: InPlaceMemory) -> list[int]:
    backed = ~memory.attributes & memory.private_backing
    return list(backed.search(1))


@pytest.mark.parametrize(
    ("slot", "offset", "size", "attributes", "flags"),
    [
        (0, 0, PAGE, PRIVATE | 1, 0),
        (0, 0, PAGE, PRIVATE, 1),
        (0, 0, 0, PRIVATE, 0),
        (0, 1, PAGE, PRIVATE, 0),
        (0, 0, PAGE + 1, PRIVATE, 0),
        (0, MIB - PAGE, 2 * PAGE, 0, 0),
        (0, (1 << 64) - PAGE, 2 * PAGE, 0, 0),
        (1, MIB - PAGE, PAGE, 0, 0),
        (2, 0, PAGE, 0, 0),
        (3, 0, PAGE, 0, 0),
    ],
)
def test_what_the_ioctl_refuses(
    memory: InPlaceMemory, slot: int, offset: int, size: int, attributes: int, flags: int
) -> None:
    assert memory.convert(slot, offset, size, attributes, flags) == -EINVAL
    assert shared(memory) == []


def test_a_page_changes_its_kind_and_stays(memory: InPlaceMemory) -> None:
    assert memory.convert(1, MIB, 2 * PAGE, 0) == 0
    assert shared(memory) == [SECOND, SECOND + 1]
    assert memory.shared_pages.count() == 2
    assert not memory.private_pages[SECOND]
    assert memory.convert(1, MIB, PAGE, PRIVATE) == 0
    assert shared(memory) == [SECOND + 1]
    assert memory.take_lost() is None


def test_attributes_are_the_file_s_and_not_the_vm_s(memory: InPlaceMemory) -> None:
    assert memory.set_memory_attributes(0, PAGE, PRIVATE) == -EINVAL
    assert memory.set_memory_attributes(0, PAGE, 0) == 0
    assert shared(memory) == []


def test_a_page_in_use_refuses_its_range_and_names_itself(memory: InPlaceMemory) -> None:
    memory.convert(1, MIB, 4 * PAGE, 0)
    memory.pin(SECOND + 2, 2)
    memory.pin(SECOND + 3, 1)
    for _ in range(2):
        assert memory.convert(1, MIB, 4 * PAGE, PRIVATE) == -EAGAIN
        assert memory.error_offset == MIB + 2 * PAGE
        assert len(shared(memory)) == 4
    assert memory.has_failed
    assert memory.convert(1, MIB, 4 * PAGE, PRIVATE) == -EAGAIN
    assert memory.error_offset == MIB + 3 * PAGE
    assert memory.convert(1, MIB, 4 * PAGE, PRIVATE) == 0


def test_what_is_private_already_and_what_becomes_shared_may_be_in_use(
    memory: InPlaceMemory,
) -> None:
    memory.pin(1, 1)
    assert memory.convert(0, 0, 2 * PAGE, PRIVATE) == 0
    assert memory.convert(0, 0, 2 * PAGE, 0) == 0
    memory.pin(1, 0)
    assert memory.convert(0, 0, 2 * PAGE, PRIVATE) == 0


def test_a_page_that_a_device_reaches_is_in_use(memory: InPlaceMemory) -> None:
    memory.convert(0, 0, 4 * PAGE, 0)
    assert not memory.has_device
    assert memory.map_for_device(PAGE, 2 * PAGE, True) == 0
    assert memory.has_device
    assert memory.map_for_device(2 * PAGE, 2 * PAGE, True) == -EEXIST
    assert memory.convert(0, 0, 4 * PAGE, PRIVATE) == -EAGAIN
    assert memory.error_offset == PAGE
    assert not memory.has_failed, "no order of the program"
    assert memory.map_for_device(0, 4 * PAGE, False) == 0
    assert memory.convert(0, 0, 4 * PAGE, PRIVATE) == 0


def test_a_hole_frees_the_page_whatever_its_kind(memory: InPlaceMemory) -> None:
    memory.convert(0, 0, PAGE, 0)
    memory.fallocate(0, PUNCH, 0, 2 * PAGE)
    lost = memory.take_lost()
    assert lost is not None
    assert list(lost.search(1)) == [0, 1]
    assert shared(memory) == [0], "truncation keeps the kind"


def test_a_reset_takes_references_back(memory: InPlaceMemory) -> None:
    memory.convert(0, 0, PAGE, 0)
    memory.pin(0, 9)
    memory.restore()
    memory.convert(0, 0, PAGE, 0)
    assert memory.convert(0, 0, PAGE, PRIVATE) == 0


def test_the_device_map_follows_each_conversion(host: InPlaceHost) -> None:
    memory = host.guest_memory
    assert ask(host, SECOND, 4, False) == 0
    assert ask(host, SECOND + 1, 8, False) == 0
    assert memory.device_map.count() == 9
    assert ask(host, SECOND, 2, True) == 0
    assert list(memory.device_map.search(1)) == list(range(SECOND + 2, SECOND + 9))


def test_a_reference_that_goes_is_not_seen_by_the_guest(host: InPlaceHost) -> None:
    ask(host, SECOND, 8, False)
    host.guest_memory.pin(SECOND + 3, TRIES - 1)
    assert ask(host, SECOND, 8, True) == 0
    assert shared(host.guest_memory) == []


@pytest.mark.parametrize("pinned", [255, SECOND, SECOND + 3])
def test_a_refusal_takes_everything_back(host: InPlaceHost, pinned: int) -> None:
    memory = host.guest_memory
    host.describe_vm((Slot(0, 2 * MIB), Slot(2 * MIB, MIB, 2 * MIB)), 1)
    host.reset(FRAMES)
    memory = host.guest_memory
    assert ask(host, 200, 400, False) == 0
    assert ask(host, 300, 10, True) == 0
    before = memory.attributes.copy(), memory.device_map.copy()
    memory.pin(pinned, 99)
    assert ask(host, 200, 400, True) == EAGAIN
    assert (memory.attributes, memory.device_map) == before
    memory.pin(pinned, 0)
    assert ask(host, 200, 400, True) == 0
    assert not memory.device_map.any()


@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("is_private", [False, True])
def test_so_does_each_call_that_fails(host: InPlaceHost, is_private: bool, failing: int) -> None:
    memory = host.guest_memory
    ask(host, SECOND, 2, False)
    ask(host, SECOND + 3, 2, False)
    before = memory.attributes.copy(), memory.device_map.copy()
    memory.order_failure(failing, ENOMEM)
    answer = ask(host, SECOND, 5, is_private)
    assert (answer == ENOMEM) == memory.has_failed
    if answer:
        assert (memory.attributes, memory.device_map) == before
    else:
        assert memory.device_map.count() == (0 if is_private else 5)


@pytest.mark.parametrize("first", [250, 500, 760, FRAMES])
def test_a_range_without_guest_memfd_is_refused(host: InPlaceHost, first: int) -> None:
    assert ask(host, first, 16, False) == EINVAL
    assert shared(host.guest_memory) == []


def test_what_cannot_be_taken_back_ends_the_vm(host: InPlaceHost) -> None:
    memory = host.guest_memory
    memory.pin(1, 99)
    memory.order_failure(1, ENOMEM)
    with pytest.raises(VmStopped):
        ask(host, 0, 4, False)
