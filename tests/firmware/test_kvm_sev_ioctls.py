# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's SEV ioctls: order of tests, error codes, lengths, limits, historic defects (E20 to E28)."""

from __future__ import annotations

import pytest
from firmware_world import content, identity
from kvm_world import (
    DATA,
    GUEST,
    GUEST_AT,
    GUEST_PAGES,
    HOLE,
    LAZY,
    PACKET,
    READ_ONLY,
    SEV_FD,
    Host,
    carry,
    pair,
    update,
)

from guestemu.abi.errno import EBADF, EBUSY, EFAULT, EINVAL, EIO, ENOMEM, ENOTTY, EPERM
from guestemu.abi.sev_firmware import KvmSevCommand as Id
from guestemu.abi.sev_firmware import Policy
from guestemu.host.firmware.kvm import (
    memory_encrypt_op,
    mirror_of,
    register_region,
    unregister_region,
)
from guestemu.host.firmware.kvm_params import (
    BlobParams,
    DebugParams,
    GuestStatusParams,
    SendStartParams,
    SevCmd,
    StartParams,
    UpdateParams,
)
from guestemu.host.firmware.kvm_vm import KvmSevVm, SevDefect

MIRROR_MAY = {Id.LAUNCH_UPDATE_VMSA, Id.GUEST_STATUS, Id.DBG_DECRYPT, Id.DBG_ENCRYPT}
MIGRATION = [
    Id.SEND_START,
    Id.SEND_UPDATE_DATA,
    Id.SEND_FINISH,
    Id.SEND_CANCEL,
    Id.RECEIVE_START,
    Id.RECEIVE_UPDATE_DATA,
    Id.RECEIVE_FINISH,
]


def test_layouts_are_those_of_the_uapi_header() -> None:
    sizes = [kind.layout.size for kind in (SevCmd, StartParams, BlobParams, SendStartParams)] + [
        kind.layout.size for kind in (UpdateParams, GuestStatusParams, DebugParams)
    ]
    assert sizes == [24, 40, 16, 72, 48, 12, 24]
    packed = update().pack()
    assert int.from_bytes(packed[16:24], "little") == GUEST
    assert int.from_bytes(packed[40:44], "little") == 4096


def test_sev_off_comes_before_everything() -> None:
    host = Host(has_sev=False)
    assert memory_encrypt_op(host.vm, 0) == -ENOTTY


def test_a_null_argument_is_a_success() -> None:
    assert memory_encrypt_op(Host().vm, 0) == 0


def test_a_bad_argument_faults() -> None:
    assert memory_encrypt_op(Host().vm, HOLE) == -EFAULT


@pytest.mark.parametrize("command", [*range(30), 99, 100, 101, 0xFFFFFFFF])
def test_what_a_mirror_may(command: int) -> None:
    host = Host()
    host.launched()
    mirror = mirror_of(host.vm)
    result = host.op(command, DebugParams(GUEST, PACKET, 16), vm=mirror)
    assert (result == -EINVAL) == (command not in MIRROR_MAY)


@pytest.mark.parametrize("command", [*MIGRATION, Id.SEND_UPDATE_VMSA, Id.INIT, 23, 99])
def test_a_snp_vm_takes_no_legacy_command(command: int) -> None:
    host = Host()
    host.vm.is_snp = True
    assert host.op(command) == -EPERM


@pytest.mark.parametrize("command", [Id.SEND_UPDATE_VMSA, Id.RECEIVE_UPDATE_VMSA, 23, 1000])
def test_unknown_ids_leave_the_command_alone(command: int) -> None:
    host = Host()
    host.launched()
    assert host.raw(SevCmd(command, 0, DATA, 77, SEV_FD)) == -EINVAL
    assert host.error == 77


@pytest.mark.parametrize("command", MIGRATION)
def test_a_vm_without_sev(command: int) -> None:
    expected = -EINVAL if command is Id.RECEIVE_UPDATE_DATA else -ENOTTY
    assert Host().op(command) == expected


def test_firmware_errors_are_eio_with_the_code() -> None:
    host = Host()
    host.launched()
    assert host.op(Id.SEND_FINISH) == -EIO
    assert host.error == 0x02


def test_before_any_start_there_is_no_descriptor() -> None:
    host = Host()
    assert host.op(Id.INIT) == 0
    assert host.op(Id.SEND_FINISH) == -EBADF


def test_init_twice_and_without_free_asids() -> None:
    host = Host(min_asid=1, max_asid=1)
    assert host.op(Id.INIT) == 0
    assert host.op(Id.INIT) == -EINVAL
    assert host.op(Id.INIT, vm=KvmSevVm(host.kvm)) == -EBUSY
    host.vm.destroy()
    assert host.op(Id.INIT, vm=KvmSevVm(host.kvm)) == 0


# SEND_START ---------------------------------------------------------------------------------------


def test_session_length_query_in_any_state() -> None:
    host = Host()
    host.launched()
    assert host.op(Id.SEND_START, SendStartParams()) == -EIO
    assert (host.error, host.params(SendStartParams).session_len) == (0x04, 128)


def test_send_start_gives_session_and_policy() -> None:
    host = Host()
    host.sending(Policy.SEV)
    params = host.params(SendStartParams)
    assert (params.policy, params.session_len) == (Policy.SEV, 128)
    assert any(host.user.read(params.session_uaddr, 128))


@pytest.mark.parametrize(
    "field",
    [
        "pdh_cert_uaddr",
        "pdh_cert_len",
        "plat_certs_uaddr",
        "plat_certs_len",
        "amd_certs_uaddr",
        "amd_certs_len",
        "session_uaddr",
    ],
)
def test_all_blobs_are_mandatory_whatever_the_policy(field: str) -> None:
    host = Host()
    host.launched()
    params = host.send_start_params(identity("other"))
    setattr(params, field, 0)
    assert host.op(Id.SEND_START, params) == -EINVAL


@pytest.mark.parametrize(
    "field", ["pdh_cert_len", "plat_certs_len", "amd_certs_len", "session_len"]
)
def test_blobs_end_at_16_kib(field: str) -> None:
    host = Host()
    host.launched()
    params = host.send_start_params(identity("other"))
    setattr(params, field, 0x4001)
    assert host.op(Id.SEND_START, params) == -EINVAL
    setattr(params, field, 0x4000)
    assert host.op(Id.SEND_START, params) in (-EIO, 0)


# SEND_UPDATE_DATA ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"hdr_len": 0}, {"trans_len": 0}])
def test_header_length_query(changes: dict[str, int]) -> None:
    host = Host()
    host.sending()
    assert host.op(Id.SEND_UPDATE_DATA, update(**changes)) == -EIO
    params = host.params(UpdateParams)
    assert (host.error, params.hdr_len, params.trans_len) == (0x04, 52, 0)


@pytest.mark.parametrize("field", ["hdr_uaddr", "guest_uaddr", "guest_len", "trans_uaddr"])
@pytest.mark.parametrize("command", [Id.SEND_UPDATE_DATA, Id.RECEIVE_UPDATE_DATA])
def test_required_fields(command: Id, field: str) -> None:
    host = Host()
    host.sending()
    assert host.op(command, update(**{field: 0})) == -EINVAL


@pytest.mark.parametrize("command", [Id.SEND_UPDATE_DATA, Id.RECEIVE_UPDATE_DATA])
@pytest.mark.parametrize(
    ("offset", "size", "crosses"),
    [(0, 4096, False), (16, 4080, False), (16, 4096, True), (4080, 32, True), (0, 4112, True)],
)
def test_a_range_stays_within_a_page(command: Id, offset: int, size: int, crosses: bool) -> None:
    host = Host()
    host.sending()
    params = update(GUEST + offset, size, trans_len=max(size, 16))
    result = host.op(command, params)
    assert (result == -EINVAL) == crosses


@pytest.mark.parametrize("command", [Id.SEND_UPDATE_DATA, Id.RECEIVE_UPDATE_DATA])
@pytest.mark.parametrize("size", [0xFFFFFFF0, 0xFFFFFFFF])
def test_length_overflow(command: Id, size: int) -> None:
    """M13: repaired KVM refuses; before, the firmware is asked and refuses the length."""
    new, old = Host(), Host("target", SevDefect.LENGTH_OVERFLOW)
    for host, expected in ((new, -EINVAL), (old, -EIO)):
        host.sending()
        params = update(GUEST + 16, size, trans_len=4096)
        assert host.op(command, params) == expected


def test_transport_length_is_copied_out_as_given() -> None:
    host = Host()
    host.sending()
    host.user.write(PACKET, b"\xee" * 0x6000)
    assert host.op(Id.SEND_UPDATE_DATA, update(trans_len=0x5800, hdr_len=100)) == 0
    assert host.user.read(PACKET + 4096, 0x5800 - 4096) == bytes(0x5800 - 4096)
    assert host.user.read(PACKET + 0x5800, 1) == b"\xee"
    assert host.params(UpdateParams).trans_len == 0x5800


@pytest.mark.parametrize(
    ("defects", "tail"), [((), bytes(16)), ((SevDefect.UNINITIALISED_TAIL,), b"\x5a" * 16)]
)
def test_the_tail_of_the_transport_buffer(defects: tuple[SevDefect, ...], tail: bytes) -> None:
    """M15: before the repair it shows what the kernel kept there before."""
    host = Host("target", *defects)
    host.sending()
    heap = host.kvm.heap
    buffer = heap.allocate(0x5800)
    assert buffer is not None
    host.platform.memory.write(buffer, b"\x5a" * 0x5800)
    heap.release(buffer, 0x5800)
    assert host.op(Id.SEND_UPDATE_DATA, update(trans_len=0x5800)) == 0
    assert host.user.read(PACKET + 4096, 16) == tail


def test_a_transport_buffer_beyond_kmalloc() -> None:
    host = Host()
    host.sending()
    assert host.op(Id.SEND_UPDATE_DATA, update(trans_len=(4 << 20) + 1)) == -ENOMEM
    assert host.vm.pages_locked == 0


def test_sending_from_a_hole_cannot_pin() -> None:
    host = Host()
    host.sending()
    assert host.op(Id.SEND_UPDATE_DATA, update(HOLE)) == -ENOMEM


def test_sending_does_not_flush_but_receiving_does() -> None:
    source, target = pair()
    source.kvm.flushed.clear()
    target.kvm.flushed.clear()
    carry(source, target, 0)
    assert target.op(Id.RECEIVE_UPDATE_DATA, update(GUEST)) == 0
    assert source.kvm.flushed == []
    assert target.kvm.flushed == [GUEST_AT]


# Receiving ----------------------------------------------------------------------------------------


def test_a_vm_moves_from_host_to_host() -> None:
    source, target = pair()
    for page in range(GUEST_PAGES):
        carry(source, target, page)
        assert target.op(Id.RECEIVE_UPDATE_DATA, update(GUEST + page * 4096)) == 0
    assert source.op(Id.SEND_FINISH) == 0
    assert target.op(Id.RECEIVE_FINISH) == 0
    size = GUEST_PAGES * 4096
    plain = target.platform.keys.read(target.vm.asid, GUEST_AT, size)
    assert plain == content(size)
    assert target.user.read(GUEST, size) != source.user.read(GUEST, size)
    assert target.op(Id.GUEST_STATUS, GuestStatusParams()) == 0
    assert target.params(GuestStatusParams).state == 3


@pytest.mark.parametrize("field", ["dh_uaddr", "dh_len", "session_uaddr", "session_len"])
def test_receive_start_needs_all(field: str) -> None:
    source, target = Host("source"), Host()
    source.sending(peer="target")
    target.op(Id.INIT)
    params = target.receive_params(source)
    setattr(params, field, 0)
    assert target.op(Id.RECEIVE_START, params) == -EINVAL


def test_a_packet_is_at_most_16_kib() -> None:
    _source, target = pair()
    assert target.op(Id.RECEIVE_UPDATE_DATA, update(trans_len=0x4001)) == -EINVAL
    assert target.op(Id.RECEIVE_UPDATE_DATA, update(hdr_len=0x4001)) == -EINVAL


def test_a_read_only_target_cannot_be_pinned() -> None:
    source, target = pair()
    carry(source, target, 0)
    assert target.op(Id.RECEIVE_UPDATE_DATA, update(READ_ONLY)) == -ENOMEM


def test_receiving_to_an_untouched_page() -> None:
    """M16: pinned for read only, the firmware writes the zero page that everybody shares."""
    for defects, is_torn in (((), False), ((SevDefect.READ_ONLY_PIN,), True)):
        source, target = pair(*defects)
        carry(source, target, 0)
        assert target.op(Id.RECEIVE_UPDATE_DATA, update(LAZY)) == 0
        assert (target.user.read(LAZY + 4096, 4096) != bytes(4096)) == is_torn


def test_a_second_receive_start_finds_its_asid_owned() -> None:
    source, target = pair()
    before = len(target.platform.guests)
    assert target.op(Id.RECEIVE_START, target.receive_params(source)) == -EIO
    assert target.error == 0x0C
    assert len(target.platform.guests) == before


def test_missing_decommission_exhausts_the_handles() -> None:
    """M14: each failed bind leaks a handle."""
    source, target = pair(SevDefect.MISSING_DECOMMISSION)
    params = target.receive_params(source)
    errors = set()
    for _ in range(1023):
        assert target.op(Id.RECEIVE_START, params) == -EIO
        errors.add(target.error)
    assert errors == {0x0C}
    assert target.op(Id.RECEIVE_START, params) == -EIO
    assert target.error == 0x17


def test_a_failed_copy_out_unbinds() -> None:
    source, target = Host("source"), Host()
    source.sending(peer="target")
    target.op(Id.INIT)
    params = target.receive_params(source)
    target.platform.memory.write(0x900_0000, params.pack())
    assert target.raw(SevCmd(Id.RECEIVE_START, 0, READ_ONLY, 0, SEV_FD)) == -EFAULT
    assert not target.platform.guests


# Debug --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "size"), [(0, 16), (8, 9), (4090, 12), (1, 8200)])
def test_debug_takes_any_range(offset: int, size: int) -> None:
    host = Host()
    host.launched()
    plain = content(GUEST_PAGES * 4096)
    assert host.op(Id.DBG_DECRYPT, DebugParams(GUEST + offset, PACKET, size)) == 0
    assert host.user.read(PACKET, size) == plain[offset : offset + size]
    host.user.write(PACKET, b"x" * size)
    assert host.op(Id.DBG_ENCRYPT, DebugParams(PACKET, GUEST + offset, size)) == 0
    found = host.platform.keys.read(host.vm.asid, GUEST_AT, len(plain))
    assert found == plain[:offset] + b"x" * size + plain[offset + size :]


def test_debug_of_a_guest_that_forbids_it() -> None:
    host = Host()
    host.launched(Policy.NODBG)
    assert host.op(Id.DBG_DECRYPT, DebugParams(GUEST, PACKET, 16)) == -EIO
    assert host.error == 0x07


# Regions ------------------------------------------------------------------------------------------


def test_regions_pin_flush_and_unpin() -> None:
    host = Host()
    host.op(Id.INIT)
    assert register_region(host.vm, GUEST, 8192) == 0
    assert host.vm.pages_locked == 2
    assert host.kvm.flushed == [GUEST_AT, GUEST_AT + 4096]
    assert unregister_region(host.vm, GUEST, 4096) == -EINVAL
    assert unregister_region(host.vm, GUEST, 8192) == 0
    assert host.vm.pages_locked == 0
    assert unregister_region(host.vm, GUEST, 8192) == -EINVAL


@pytest.mark.parametrize(
    ("addr", "size", "expected"),
    [
        (GUEST, 0, -EINVAL),
        ((1 << 64) - 4096, 8192, -EINVAL),
        (GUEST, 1 << 63, -EINVAL),
        (HOLE, 4096, -ENOMEM),
        (GUEST, (GUEST_PAGES + 1) * 4096, -ENOMEM),
        (READ_ONLY, 4096, -ENOMEM),
    ],
)
def test_regions_that_cannot_be(addr: int, size: int, expected: int) -> None:
    host = Host()
    host.op(Id.INIT)
    assert register_region(host.vm, addr, size) == expected
    assert host.vm.pages_locked == 0


def test_the_memlock_limit_counts_regions_and_short_pins() -> None:
    host = Host(memlock_pages=GUEST_PAGES)
    host.sending()
    assert register_region(host.vm, GUEST, GUEST_PAGES * 4096) == 0
    assert register_region(host.vm, GUEST, 4096) == -ENOMEM
    assert host.op(Id.SEND_UPDATE_DATA, update()) == -ENOMEM
    assert unregister_region(host.vm, GUEST, GUEST_PAGES * 4096) == 0
    assert host.op(Id.SEND_UPDATE_DATA, update()) == 0


def test_regions_of_plain_vms_and_mirrors() -> None:
    host = Host()
    assert register_region(host.vm, GUEST, 4096) == -ENOTTY
    assert unregister_region(host.vm, GUEST, 4096) == -ENOTTY
    host.launched()
    mirror = mirror_of(host.vm)
    assert register_region(mirror, GUEST, 4096) == -EINVAL
    assert unregister_region(mirror, GUEST, 4096) == -EINVAL


def test_destroying_a_vm_frees_firmware_guest_and_pins() -> None:
    host = Host()
    host.launched()
    register_region(host.vm, GUEST, 4096)
    host.vm.destroy()
    assert host.platform.guests == {}
    assert host.vm.pages_locked == 0
