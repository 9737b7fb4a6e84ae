# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmap generations: the handlers, the ioctls and their defects as posted."""

import tracemalloc

import pytest

from guestemu.host.base import GuestFault
from guestemu.host.kvm.findings import FindingKind
from guestemu.host.kvm.page_enc_ioctls import pack_argument
from guestemu.host.registry import load_host
from guestemu.host.standin import StandInVcpu

U64 = (1 << 64) - 1
EINVAL, ENOMEM, EFAULT, ENOTTY = -22, -12, -14, -25
MSR = 0x4B564D08


def make(version, *switches, frames=256):
    if version == "v6":  # its gate has a test of its own
        switches = ("gate", *switches)
    host = load_host(f"bitmap-{version}", switches)
    host.reset(frames)
    return host


def call(host, gpa, pages, enc):
    number = 11 if host.name in ("bitmap-v1", "bitmap-v2", "bitmap-v3") else 12
    result = host.hypercall(StandInVcpu().hypercall(number, gpa, pages, enc))
    return result - (1 << 64) if result >> 63 else result


def shared(host):
    return [gfn for gfn, bit in enumerate(host.private_map()) if not bit]


def get(host, start, pages, buffer):
    return host.get_page_enc_bitmap(pack_argument(start, pages), buffer)


def enable(host):
    host.wrmsr(MSR, 1, StandInVcpu())
    return host


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v6", "v8"])
def test_any_nonzero_enc_is_encrypted_and_low_bits_are_dropped(version):
    host = make(version)
    assert call(host, 0x3FFF, 2, 0) == 0
    assert shared(host) == [3, 4]
    assert call(host, 0x3000, 1, 1 << 63) == 0
    assert shared(host) == [4]
    assert call(host, 0x5000, 0, 0) == 0
    assert shared(host) == [4]


def test_numbers_11_of_2019_and_12_of_2020():
    old, new = make("v3"), make("v6")
    for host, number, other in ((old, 11, 12), (new, 12, 11)):
        vcpu = StandInVcpu()
        host.hypercall(vcpu.hypercall(other, 0x1000, 1, 0))
        assert shared(host) == []
        host.hypercall(vcpu.hypercall(number, 0x1000, 1, 0))
        assert shared(host) == [1]


def test_cfirs_wrap_is_an_out_of_bounds_write_in_v1():
    host = make("v1")
    assert call(host, 0x2000, U64, 0) == 0
    assert host.bitmap.size == 1
    assert [finding.kind for finding in host.findings] == [FindingKind.OUT_OF_BOUNDS]
    assert shared(host) == []
    assert call(make("v1", "wrap"), 0x2000, U64, 0) == EINVAL
    assert call(make("v3"), 0x2000, U64, 0) == EINVAL


def test_v6_order_of_checks():
    host = make("v6")
    host.slots.error_frames = {5, 9}
    host.is_sev_guest = False
    assert call(host, 0, 0, 0) == EINVAL
    host.is_sev_guest = True
    assert call(host, 0x5000, 0, 0) == 0
    assert call(host, 0x5000, U64, 0) == EINVAL
    assert call(host, 0x5000, 1, 0) == EINVAL
    # the exclusive end is translated, the pages between are not
    assert call(host, 0x7000, 2, 0) == EINVAL
    assert call(host, 0x8000, 2, 0) == 0
    assert call(host, 0x4000, 4, 0) == 0
    assert shared(host) == [4, 5, 6, 7, 8, 9]
    assert host.slots.leaked_references == 1 + 1 + 2 + 2  # refused ranges took theirs as well


def test_v6_end_frame_repaired():
    host = make("v6", "end-frame")
    host.slots.error_frames = {9}
    assert call(host, 0x7000, 2, 0) == 0
    assert call(host, 0x8000, 2, 0) == EINVAL
    assert host.slots.leaked_references == 0


def test_gfn_without_a_slot_is_allowed_and_grows_the_bitmap():
    host = make("v6")
    assert call(host, 0x8000_0000, 1, 0) == 0
    assert host.bitmap.size == 0x8_0001
    assert host.findings == ()
    buffer = bytearray(1)
    assert get(enable(host), 0x7_FFFF, 3, buffer) == 0
    assert buffer[0] & 7 == 0b101


def test_growth_is_counted_and_not_suffered():
    host = make("v6")
    tracemalloc.start()
    assert call(host, 1 << 46, 1, 0) == 0
    assert call(host, (1 << 46) - (1 << 30), 1 << 17, 1) == 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    (finding,) = host.findings
    assert finding.kind is FindingKind.HOST_MEMORY
    assert finding.amount == ((1 << 34) + 1 + 63) // 64 * 8


def test_more_than_the_host_has_is_enomem():
    host = make("v6")
    assert call(host, 0, 1 << 51, 0) == ENOMEM
    assert host.bitmap.size == 0
    assert host.findings == ()
    assert shared(host) == []


def test_growth_repaired_refuses_what_is_beyond_ram():
    host = make("v6", "growth")
    assert call(host, 255 << 12, 2, 0) == EINVAL
    assert shared(host) == []


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v6"])
def test_growth_repaired_does_nothing_for_no_pages(version):
    """Found by a campaign on a repaired configuration of the zoo."""
    host = make(version, "growth")
    assert call(host, 0xFF_FFFF_FFFF << 12, 0, 0) == 0
    assert host.findings == ()
    assert shared(host) == []


def test_get_merges_the_last_partial_byte_with_the_users():
    host = enable(make("v6"))
    call(host, 0x1000, 1, 0)
    call(host, 0xB000, 1, 0)
    buffer = bytearray(b"\x00\x50\x77")
    assert get(host, 0, 12, buffer) == 0
    assert buffer == b"\xfd\x57\x77"
    buffer = bytearray(b"\x00\xa0")
    assert get(host, 4, 12, buffer) == 0
    assert buffer == b"\x7f\xaf"


def test_get_writes_whole_words_before_v6():
    for switches, wanted in (((), b"\xfd" + b"\xff" * 7), (("get-words",), b"\x0d" + bytes(7))):
        host = make("v3", *switches)
        call(host, 0x1000, 1, 0)
        buffer = bytearray(8)
        assert get(host, 0, 4, buffer) == 0
        assert buffer == wanted
    assert get(make("v3"), 0, 4, bytearray(1)) == EFAULT


def test_get_beyond_the_bitmap_reads_encrypted():
    host = enable(make("v6"))
    call(host, 0, 4, 0)
    assert host.bitmap.size == 4
    buffer = bytearray(1)
    assert get(host, 2, 8, buffer) == 0
    assert buffer == b"\xfc"


def test_get_errors():
    host = make("v6")
    assert get(host, 0, 8, bytearray(8)) == ENOTTY, "until the guest opted in"
    enable(host)
    assert get(host, 0, 64, bytearray(7)) == EFAULT
    assert get(host, 0, 64, None) == EFAULT
    assert host.get_page_enc_bitmap(b"short", bytearray(8)) == EFAULT
    assert get(host, 0, 8 * (4 << 20) + 1, bytearray(8)) == ENOMEM
    assert get(host, 0, U64, bytearray(8)) == ENOMEM
    host.is_sev_guest = False
    assert get(host, 0, 8, bytearray(8)) == ENOTTY
    assert get(make("v3"), 0, 8, bytearray(8)) == 0, "v3 has no gate"


def set_bits(host, start, pages, data):
    return host.set_page_enc_bitmap(pack_argument(start, pages), data)


@pytest.mark.parametrize(
    ("switches", "start", "wanted"),
    [
        ((), 0, [0, 2]),
        # index start of a buffer whose bit 0 is start: only bits from 2 on are looked at
        ((), 2, [4]),
        ((), 64, []),
        (("set-ioctl",), 2, [2, 4]),
        (("set-ioctl",), 64, [64, 66]),
    ],
)
def test_v6_set_scans_from_the_wrong_index(switches, start, wanted):
    host = make("v6", *switches)
    assert set_bits(host, start, 64, bytearray(b"\xfa" + b"\xff" * 7)) == 0
    assert shared(host) == wanted


def test_v6_set_only_clears():
    for switches, wanted in (((), [1]), (("set-ioctl",), [])):
        host = make("v6", *switches)
        call(host, 0x1000, 1, 0)
        assert set_bits(host, 0, 8, bytearray(b"\xff" * 8)) == 0
        assert shared(host) == wanted


def test_set_errors():
    host = make("v6")
    assert set_bits(host, 0, 64, bytearray(7)) == EFAULT
    assert set_bits(host, 0, 64, None) == EFAULT
    assert set_bits(host, 0, U64, bytearray(8)) == ENOMEM
    assert set_bits(host, 1 << 50, 64, bytearray(8)) == ENOMEM
    host.is_sev_guest = False
    assert set_bits(host, 0, 64, bytearray(8)) == ENOTTY


def test_reset_ioctl_of_v6_and_its_end_in_v8():
    host = make("v6")
    call(host, 0, 8, 0)
    assert host.reset_page_enc_bitmap() == 0
    assert shared(host) == []
    assert make("v8").reset_page_enc_bitmap() == ENOTTY


def test_v8_ignores_what_ends_above_the_slots():
    host = make("v8")
    assert call(host, 255 << 12, 2, 0) == 0
    assert call(host, 1 << 40, 1, 0) == 0
    assert shared(host) == []
    assert host.findings == ()
    assert call(make("v8", "silent-range"), 255 << 12, 2, 0) == EINVAL
    host.commit_memory_region(256, 16)
    assert call(host, 255 << 12, 2, 0) == 0
    assert shared(host) == [255]


@pytest.mark.parametrize(
    ("switches", "start", "wanted"),
    [((), 64, [65]), ((), 70, [65]), (("set-offset",), 70, [71])],
)
def test_v8_set_copies_words(switches, start, wanted):
    host = make("v8", *switches)
    assert set_bits(host, start, 8, bytearray(b"\xfd" + b"\xff" * 7)) == 0
    assert shared(host) == wanted


def test_v8_set_with_null_resets():
    host = make("v8")
    call(host, 0, 8, 0)
    assert set_bits(host, 0, 0, None) == 0
    assert shared(host) == []
    assert not host.migration_ready, "a reset is no migration"
    assert set_bits(host, 250, 64, bytearray(8)) == 0
    assert host.bitmap.size == 314, "grows beyond the slots"
    assert host.migration_ready, "an incoming VM has consented before"


def test_v8_msr_is_set_only_and_write_only():
    host = make("v8")
    assert get(host, 0, 8, bytearray(8)) == EINVAL
    host.wrmsr(MSR, 3, StandInVcpu())
    host.wrmsr(MSR, 0, StandInVcpu())
    assert host.migration_ready
    with pytest.raises(GuestFault):
        host.rdmsr(MSR, StandInVcpu())
    assert get(host, 0, 8, bytearray(8)) == 0
    repaired = make("v8", "msr-zero", "msr-read")
    repaired.wrmsr(MSR, 1, StandInVcpu())
    repaired.wrmsr(MSR, 0, StandInVcpu())
    assert not repaired.migration_ready
    assert repaired.rdmsr(MSR, StandInVcpu()) == 0


def test_v8_translates_both_ends_too():
    host = make("v8")
    host.slots.error_frames = {9}
    assert call(host, 0x7000, 2, 0) == EINVAL
    assert call(make("v8", "end-frame"), 0x7000, 2, 0) == 0


def test_v3_vcpu_reset_loses_the_record_and_frees_twice():
    host = make("v3")
    host.reset_vcpu()
    call(host, 0x1000, 1, 0)
    assert host.findings == (), "no bitmap was there to free"
    host.reset_vcpu()
    assert shared(host) == []
    call(host, 0x2000, 1, 0)
    assert [finding.kind for finding in host.findings] == [FindingKind.USE_AFTER_FREE]
    kept = make("v3", "vcpu-reset")
    call(kept, 0x1000, 1, 0)
    kept.reset_vcpu()
    call(kept, 0x2000, 1, 0)
    assert (shared(kept), kept.findings) == ([1, 2], ())


def test_v6_gate_as_posted_refuses_the_hypercall_until_the_guest_opted_in():
    host = load_host("bitmap-v6")
    host.reset(256)
    assert call(host, 0x1000, 1, 0) == ENOTTY
    assert call(host, 0x1000, 0, 0) == ENOTTY, "the gate is in front of the test of npages"
    assert get(host, 0, 8, bytearray(8)) == 0, "GET has no gate"
    host.is_sev_guest = False
    assert call(host, 0x1000, 1, 0) == EINVAL, "and behind the test for an SEV guest"
    host.is_sev_guest = True
    assert shared(host) == []
    enable(host)
    assert call(host, 0x1000, 1, 0) == 0
    assert shared(host) == [1]


@pytest.mark.parametrize(("version", "posted"), [("v6", True), ("v8", True), ("v3", False)])
def test_opt_in_msr_of_2020_has_number_06(version, posted):
    host = make(version)
    if posted:
        host.wrmsr(0x4B564D06, 1, StandInVcpu())
    else:
        with pytest.raises(GuestFault):
            host.wrmsr(0x4B564D06, 1, StandInVcpu())
    assert host.migration_ready is posted


def test_opt_in_msr_of_v10_left_06_to_async_page_faults():
    host = load_host("shared-list-v10")
    host.reset(8)
    assert host.rdmsr(0x4B564D06, StandInVcpu()) == 0
    with pytest.raises(GuestFault):
        host.wrmsr(0x4B564D06, 1, StandInVcpu())
    assert not host.migration_ready


def test_historic_kernels_have_the_msrs_below_too():
    host = make("v6")
    host.wrmsr(0x4B564D01, 0x1000, StandInVcpu())
    assert host.rdmsr(0x4B564D01, StandInVcpu()) == 0x1000
    with pytest.raises(GuestFault):
        host.rdmsr(0x4B564D01, StandInVcpu(cpl=3))


def test_opt_in_msr_since_v6():
    with pytest.raises(GuestFault):
        make("v3").wrmsr(MSR, 1, StandInVcpu())
    host = make("v6")
    host.wrmsr(MSR, 3, StandInVcpu())
    assert host.rdmsr(MSR, StandInVcpu()) == 3
    assert host.migration_ready
    host.wrmsr(MSR, 2, StandInVcpu())
    assert not host.migration_ready


def test_reset_forgets_everything():
    host = make("v1")
    call(host, 0x2000, U64, 0)
    call(host, 0x1000, 4, 0)
    host.reset(128)
    assert host.findings == ()
    assert len(host.private_map()) == 128
    assert shared(host) == []
