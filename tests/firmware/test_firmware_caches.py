# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's cache flushes around the firmware, on a host with incoherent caches (E25, E28, E32)."""

from __future__ import annotations

import pytest
from firmware_world import content
from kvm_world import GUEST, GUEST_AT, Host, carry, pair, update

from guestemu.abi.addresses import PAGE_SIZE, Gpa
from guestemu.abi.sev_firmware import KvmSevCommand as Id
from guestemu.host.firmware.kvm import register_region, unregister_region
from guestemu.host.firmware.kvm_vm import SevDefect
from guestemu.machine.cache import CachedRam
from guestemu.machine.cipher import PageCipher
from guestemu.machine.engine import Engine
from guestemu.machine.view_bit import sev_bit

FRAMES = 16
LOW = Gpa(0)
NEW = b"\x55" * PAGE_SIZE


def attached(host: Host) -> CachedRam:
    """The guest memory of `host`, behind a cache from now on."""
    engine = Engine()
    ram = CachedRam(engine, FRAMES, sev_bit(39), PageCipher(bytes(16)))
    ram.checkpoint()
    host.platform.memory.attach(GUEST_AT, ram, host.platform.memory_key(host.vm.handle))
    return ram


def received(*defects: SevDefect) -> tuple[bytes, bytes]:
    """A page that user space wrote just before its packet was received: what the guest reads
    there, at once and after the cache threw its lines out; and what was sent."""
    source, target = pair(*defects)
    ram = attached(target)
    target.user.write(GUEST, NEW)
    carry(source, target, 0)
    assert target.op(Id.RECEIVE_UPDATE_DATA, update(GUEST)) == 0
    ram.flush_lines(LOW, PAGE_SIZE, private=False)
    return ram.read(LOW, PAGE_SIZE), content(8 * PAGE_SIZE)[:PAGE_SIZE]


def test_a_received_page_is_what_was_sent():
    found, sent = received()
    assert found == sent


def test_without_the_flush_a_line_of_user_space_goes_over_the_received_page():
    found, sent = received(SevDefect.MISSING_CLFLUSH)
    assert found != sent


@pytest.mark.parametrize("defects", [(), (SevDefect.MISSING_CLFLUSH,)], ids=["flushed", "not"])
def test_a_registered_page_is_flushed(defects):
    host = Host("target", *defects)
    assert host.op(Id.INIT) == 0
    assert host.op(Id.LAUNCH_START) == 0
    ram = attached(host)
    host.user.write(GUEST, NEW)
    assert register_region(host.vm, GUEST, PAGE_SIZE) == 0
    assert (ram.read_dram(LOW, PAGE_SIZE) == NEW) == (not defects)


def launched(*defects: SevDefect) -> tuple[Host, CachedRam]:
    host = Host("target", *defects)
    host.launched()
    return host, attached(host)


def test_unregistering_writes_dirty_private_lines_back():
    host, ram = launched()
    assert register_region(host.vm, GUEST, PAGE_SIZE) == 0
    ram.write(LOW, NEW)
    assert unregister_region(host.vm, GUEST, PAGE_SIZE) == 0
    assert ram.flush_lines(LOW, PAGE_SIZE, private=True) == 0


@pytest.mark.parametrize(
    "defects", [(), (SevDefect.MISSING_RECLAIM_FLUSH,)], ids=["flushed", "M19"]
)
def test_a_reclaimed_page_belongs_to_the_host(defects):
    """CVE-2022-0171: the host uses the page again; then the guest's lines leave the cache."""
    host, ram = launched(*defects)
    ram.write(LOW, b"\x11" * PAGE_SIZE)
    host.kvm.memory_reclaimed()
    host.user.write(GUEST, NEW)
    ram.flush_lines(LOW, PAGE_SIZE, private=False)
    ram.flush_lines(LOW, PAGE_SIZE, private=True)
    assert (host.user.read(GUEST, PAGE_SIZE) == NEW) == (not defects)


def test_one_page_is_flushed_by_its_private_alias():
    host, ram = launched()
    ram.write(LOW, NEW)
    ram.write(Gpa(PAGE_SIZE), NEW)
    host.kvm.flush_encrypted_page(GUEST_AT)
    assert ram.flush_lines(LOW, PAGE_SIZE, private=True) == 0
    assert ram.flush_lines(Gpa(PAGE_SIZE), PAGE_SIZE, private=True) == 64


def test_the_firmware_reads_what_the_guest_has_in_its_cache():
    """SEND_UPDATE_DATA is not preceded by a flush (E23), and needs none."""
    source, target = pair()
    ram = attached(source)
    ram.write(LOW, NEW)
    carry(source, target, 0)
    assert target.op(Id.RECEIVE_UPDATE_DATA, update(GUEST)) == 0
    key = target.platform.memory_key(target.vm.handle)
    dram = target.user.read(GUEST, PAGE_SIZE)
    cipher = PageCipher(key)
    assert cipher.decrypt(GUEST_AT >> 12, dram) == NEW


def test_the_vmm_reads_stale_ciphertext_until_its_lines_are_flushed():
    """C30: its mapping has C=0."""
    host, ram = launched()
    before = host.user.read(GUEST, PAGE_SIZE)
    ram.write(LOW, NEW)
    ram.flush_lines(LOW, PAGE_SIZE, private=True)
    assert host.user.read(GUEST, PAGE_SIZE) == before
    host.kvm.flush_pages([GUEST_AT])
    assert host.user.read(GUEST, PAGE_SIZE) != before
