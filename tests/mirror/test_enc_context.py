# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_CAP_VM_COPY_ENC_CONTEXT_FROM, KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM: tests, references, races."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from guestemu.abi.errno import EBADF, EBUSY, EINVAL, EIO
from guestemu.abi.kvm_caps import (
    KVM_CAP_VM_COPY_ENC_CONTEXT_FROM as COPY,
)
from guestemu.abi.kvm_caps import (
    KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM as MOVE,
)
from guestemu.abi.sev_firmware import KvmSevCommand as Id
from guestemu.abi.sev_firmware import Status
from guestemu.host.firmware.kvm import MIRROR_COMMANDS, register_region
from guestemu.host.firmware.kvm_params import DebugParams, GuestStatusParams, StartParams
from guestemu.host.firmware.kvm_vm import KvmSevVm, SevDefect, WouldBlock
from guestemu.host.firmware.world import GUESTS, OUTPUT, SevWorld
from guestemu.host.mirror.enc_context import (
    begin_create_vcpu,
    enable_cap,
    finish_create_vcpu,
)

NOT_A_VM = 7


class World(SevWorld):
    """SevWorld's host with descriptors 10 (running SEV guest) and 11 upwards for new VMs; 7 is
    open and no VM's."""

    def __init__(self, *defects: SevDefect) -> None:
        super().__init__(defects=frozenset(defects))
        self.running, self.empty, first_mirror = self.vms
        first_mirror.put()
        self.files: dict[int, KvmSevVm | None] = {NOT_A_VM: None, 10: self.running, 11: self.empty}

    def new(self) -> KvmSevVm:
        vm = KvmSevVm(self.kvm)
        self.files[max(self.files) + 1] = vm
        return vm

    def es_guest(self, vcpus: int, measured: bool = True) -> KvmSevVm:
        vm = self.new()
        assert self.call(vm, Id.ES_INIT) == 0
        for _ in range(vcpus):
            finish_create_vcpu(vm, begin_create_vcpu(vm))
        assert self.call(vm, Id.LAUNCH_START, StartParams(policy=4)) == 0
        if measured:
            assert self.call(vm, Id.LAUNCH_UPDATE_VMSA) == 0
        return vm

    def cap(
        self,
        cap: int,
        target: KvmSevVm,
        source: KvmSevVm | int,
        between: Callable[[], object] = lambda: None,
    ) -> int:
        fd = source if isinstance(source, int) else self.fd(source)
        return enable_cap(target, cap, fd, self.files, lambda: (between(), None)[1])

    def fd(self, vm: KvmSevVm) -> int:
        return next(fd for fd, found in self.files.items() if found is vm)


def add_vcpu(vm: KvmSevVm) -> None:
    finish_create_vcpu(vm, begin_create_vcpu(vm))


def test_a_mirror_has_asid_handle_and_key_of_its_owner() -> None:
    world = World()
    mirror = world.new()
    assert world.cap(COPY, mirror, world.running) == 0
    assert (mirror.asid, mirror.handle) == (world.running.asid, world.running.handle)
    params = DebugParams(GUESTS[0], OUTPUT, 32)
    assert world.call(mirror, Id.DBG_DECRYPT, params) == 0
    assert world.user.read(OUTPUT, 32) == bytes(world.plain[:32])


@pytest.mark.parametrize("cap", [COPY, MOVE])
def test_bad_descriptors(cap: int) -> None:
    world = World()
    assert world.cap(cap, world.new(), 99) == -EBADF
    assert world.cap(cap, world.new(), NOT_A_VM) == -EBADF


def test_other_capabilities() -> None:
    world = World()
    assert world.cap(198, world.new(), world.running) == -EINVAL


@pytest.mark.parametrize("cap", [COPY, MOVE])
def test_what_source_and_target_must_be(cap: int) -> None:
    world = World()
    plain = world.new()
    assert world.cap(cap, world.running, world.running) == -EINVAL
    assert world.cap(cap, world.new(), plain) == -EINVAL
    assert world.cap(cap, world.empty, world.running) == -EINVAL
    assert world.running.is_sev
    assert not plain.is_sev


def test_a_mirror_is_not_mirrored_again() -> None:
    world = World()
    mirror = world.new()
    assert world.cap(COPY, mirror, world.running) == 0
    assert world.cap(COPY, world.new(), mirror) == -EINVAL


def test_the_target_of_a_copy_has_no_vcpu_not_even_a_coming_one() -> None:
    world = World()
    target = world.new()
    vcpu = begin_create_vcpu(target)
    assert world.cap(COPY, target, world.running) == -EINVAL
    finish_create_vcpu(target, vcpu)
    assert world.cap(COPY, target, world.running) == -EINVAL


@pytest.mark.parametrize("cap", [COPY, MOVE])
def test_an_snp_source(cap: int) -> None:
    for defects, expected in (((), -EINVAL), ((SevDefect.MIRROR_OF_SNP,), 0)):
        world = World(*defects)
        world.running.is_snp = True
        assert world.cap(cap, world.new(), world.running) == expected


def test_the_owner_lives_until_its_last_mirror_goes() -> None:
    world = World()
    mirrors = [world.new(), world.new()]
    for mirror in mirrors:
        assert world.cap(COPY, mirror, world.running) == 0
    assert world.running.users == 3
    world.running.put()
    handle = world.running.handle
    assert handle in world.platform.guests
    assert world.call(mirrors[0], Id.GUEST_STATUS, GuestStatusParams()) == 0
    mirrors[0].put()
    assert handle in world.platform.guests
    mirrors[1].put()
    assert handle not in world.platform.guests


def test_a_mirror_that_goes_frees_nothing() -> None:
    world = World()
    mirror = world.new()
    world.cap(COPY, mirror, world.running)
    mirror.put()
    assert world.running.users == 1
    assert world.running.mirrors == []
    assert world.call(world.running, Id.GUEST_STATUS, GuestStatusParams()) == 0


@pytest.mark.parametrize("command", [*range(30), 99, 100, 101, 0xFFFFFFFF])
def test_the_command_filter(command: int) -> None:
    """M28: a mirror may issue four commands; before the repair it was none."""
    for defects, allowed in (
        ((), MIRROR_COMMANDS),
        ((SevDefect.MIRROR_NO_COMMANDS,), frozenset[int]()),
    ):
        world = World(*defects)
        mirror = world.new()
        world.cap(COPY, mirror, world.running)
        result = world.call(mirror, command, DebugParams(GUESTS[0], OUTPUT, 16))
        assert (result == -EINVAL) == (command not in allowed)


@pytest.mark.parametrize(
    "command", [Id.LAUNCH_FINISH, Id.SEND_FINISH, Id.SEND_CANCEL, Id.RECEIVE_FINISH]
)
def test_a_filter_that_lets_everything_through(command: int) -> None:
    """M28, the other way: the command reaches the owner's guest in the firmware."""
    results = []
    for defects in ((), (SevDefect.MIRROR_ALL_COMMANDS,)):
        world = World(*defects)
        mirror = world.new()
        world.cap(COPY, mirror, world.running)
        results.append(world.call(mirror, command))
    assert results == [-EINVAL, Status.INVALID_GUEST_STATE]


def test_a_move_takes_everything_and_leaves_the_source_dead() -> None:
    world = World()
    source, target, mirror = world.running, world.new(), world.new()
    assert register_region(source, GUESTS[0], 8192) == 0
    assert world.cap(COPY, mirror, source) == 0
    asid, handle = source.asid, source.handle
    assert world.cap(MOVE, target, source) == 0
    assert (target.asid, target.handle, target.pages_locked) == (asid, handle, 2)
    assert len(target.regions) == 1
    assert mirror.owner is target
    assert (source.is_sev, source.users, target.users) == (False, 1, 2)
    assert world.memory_encrypt_op(source) == -EIO
    assert register_region(source, GUESTS[0], 4096) == -EIO
    source.put()
    assert handle in world.platform.guests
    target.put()
    mirror.put()
    assert handle not in world.platform.guests


def test_the_descriptor_is_not_moved() -> None:
    world = World()
    target = world.new()
    assert world.cap(MOVE, target, world.running) == 0
    assert world.call(target, Id.GUEST_STATUS, GuestStatusParams()) == -EBADF


def test_a_mirror_can_be_moved() -> None:
    world = World()
    mirror, target = world.new(), world.new()
    world.cap(COPY, mirror, world.running)
    assert world.cap(MOVE, target, mirror) == 0
    assert target.owner is world.running
    assert world.running.mirrors == [target]
    assert world.running.users == 2
    mirror.put()
    assert world.running.users == 2
    target.put()
    assert world.running.users == 1


@pytest.mark.parametrize(
    ("source_vcpus", "measured", "target_vcpus", "expected"),
    [(2, True, 2, 0), (2, True, 1, -EINVAL), (2, False, 2, -EINVAL), (0, False, 0, 0)],
)
def test_vcpus_of_an_es_guest(
    source_vcpus: int, measured: bool, target_vcpus: int, expected: int
) -> None:
    world = World()
    source, target = world.es_guest(source_vcpus, measured), world.new()
    for _ in range(target_vcpus):
        add_vcpu(target)
    assert world.cap(MOVE, target, source) == expected
    if not expected:
        assert all(vcpu.has_vmsa and vcpu.is_protected for vcpu in target.vcpus)


def test_vcpus_of_a_plain_sev_guest_need_not_match() -> None:
    world = World()
    target = world.new()
    add_vcpu(target)
    assert world.cap(MOVE, target, world.running) == 0


def test_a_vcpu_in_creation_keeps_a_move_away() -> None:
    for defects, expected in (((), -EBUSY), ((SevDefect.MOVE_DURING_VCPU_CREATION,), 0)):
        world = World(*defects)
        source, target = world.es_guest(1), world.new()
        add_vcpu(target)
        late = begin_create_vcpu(target)
        assert world.cap(MOVE, target, source) == expected
        finish_create_vcpu(target, late)
        # With the defect a SEV-ES VM has a vCPU without a save area.
        assert (target.is_es and not late.has_vmsa) == (not expected)


@pytest.mark.parametrize("cap", [COPY, MOVE])
@pytest.mark.parametrize("other", [COPY, MOVE])
def test_two_at_once(cap: int, other: int) -> None:
    world = World()
    results: list[int] = []

    def race() -> None:
        results.append(world.cap(other, world.new(), world.running))

    assert world.cap(cap, world.new(), world.running, race) == 0
    assert results == [-EBUSY]


@pytest.mark.parametrize("cap", [COPY, MOVE])
def test_ioctls_and_vcpus_wait_for_the_lock(cap: int) -> None:
    world = World()
    target = world.new()

    def race() -> None:
        with pytest.raises(WouldBlock):
            world.call(world.running, Id.GUEST_STATUS)
        with pytest.raises(WouldBlock):
            register_region(world.running, GUESTS[0], 4096)
        with pytest.raises(WouldBlock):
            begin_create_vcpu(target)

    assert world.cap(cap, target, world.running, race) == 0
    assert world.cap(cap, target, world.running) == -EINVAL
    begin_create_vcpu(target)


def test_a_source_that_moves_while_it_is_copied() -> None:
    """M27: the mirror keeps the context of a VM that has none, and outlives it."""
    world = World(SevDefect.MIRROR_SOURCE_UNLOCKED)
    source, mirror, target = world.running, world.new(), world.new()
    results: list[int] = []
    handle = source.handle

    def race() -> None:
        results.append(world.cap(MOVE, target, source))

    assert world.cap(COPY, mirror, source, race) == 0
    assert results == [0]
    assert (mirror.asid, mirror.handle, mirror.owner) == (target.asid, handle, source)
    target.put()
    assert handle not in world.platform.guests
    assert mirror.is_sev
    assert world.call(mirror, Id.DBG_DECRYPT, DebugParams(GUESTS[0], OUTPUT, 16)) != 0


def test_the_unlocked_copy_makes_the_same_tests() -> None:
    world = World(SevDefect.MIRROR_SOURCE_UNLOCKED)
    mirror, late = world.new(), world.new()
    assert world.cap(COPY, mirror, world.running) == 0
    assert (mirror.asid, world.running.users) == (world.running.asid, 2)
    assert world.cap(COPY, world.new(), mirror) == -EINVAL
    assert world.cap(COPY, late, world.running, lambda: begin_create_vcpu(late)) == -EINVAL
    assert world.running.users == 2


def test_asids_of_a_moved_guest_come_back_once() -> None:
    world = World()
    target = world.new()
    world.cap(MOVE, target, world.running)
    asid = target.asid
    world.running.put()
    target.put()
    world.kvm.flush_asids()
    config = world.kvm.config
    free = config.max_asid - config.min_asid  # one of them is the empty VM's
    assert [world.kvm.new_asid(False) for _ in range(free)].count(asid) == 1
    assert world.call(world.new(), Id.INIT) == -EBUSY
