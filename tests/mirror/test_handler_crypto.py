# SPDX-License-Identifier: GPL-2.0-or-later
"""The handler's packets are AES-128-GCM, and it takes nothing that is not authentic."""

from __future__ import annotations

import random

import pytest
from mirror_world import KEY, PAGE, Side, content, pair, seal

from guestemu.host.mirror.mailbox import PageForm, PageHeader, Ret


@pytest.mark.parametrize("form", [PageForm.BOUND, PageForm.UNBOUND])
@pytest.mark.parametrize("native", [True, False])
def test_packets_are_those_of_the_cryptography_package(form: PageForm, native: bool) -> None:
    for seed in range(3 if native else 1):
        key = random.Random(seed).randbytes(16)
        side = Side(seed + 1, 2, key, form=form, native_hooks=native).ready()
        for number, page in enumerate((bytes(4096), b"\xff" * 4096, content(seed))):
            side.write(PAGE, page)
            saved = side.handler.save(PAGE)
            header = PageHeader.unpack(saved.header)
            assert saved.ret == 0
            assert header is not None
            assert header.sequence == 1 << 32 | number
            assert (saved.header, saved.page) == seal(key, header, page)


def test_a_header_names_sender_address_and_sequence() -> None:
    side = Side(0xABCD_1234_5678_9ABC, 2, key=KEY, machine=Side().machine).ready()
    first, second = (side.handler.save(address) for address in (PAGE, 0x7000))
    headers = [PageHeader.unpack(saved.header) for saved in (first, second)]
    assert [header.address for header in headers if header] == [PAGE, 0x7000]
    assert [header.sequence for header in headers if header] == [1 << 32, (1 << 32) + 1]
    assert {header.sender for header in headers if header} == {0xABCD_1234_5678_9ABC}


def test_the_unbound_form_has_no_address() -> None:
    side = Side(form=PageForm.UNBOUND).ready()
    header = PageHeader.unpack(side.handler.save(PAGE).header)
    assert header is not None
    assert (header.form, header.address) == (2, 0)


def test_a_page_arrives() -> None:
    source, target = pair()
    saved = source.handler.save(PAGE)
    assert target.handler.restore(PAGE, saved.header, saved.page) == 0
    assert target.read() == content(PAGE)
    assert target.read(private=False) != source.read(private=False)


def test_a_packet_of_our_own_making_is_taken() -> None:
    _, target = pair()
    header = PageHeader(1, PAGE, 7 << 32, 1, bytes(16))
    assert target.handler.restore(PAGE, *seal(KEY, header, content("made"))) == 0
    assert target.read() == content("made")


def test_every_changed_part_of_a_packet_is_refused_and_nothing_written() -> None:
    source, target = pair()
    saved = source.handler.save(PAGE)
    target.write(PAGE, content("before"))
    for bit in (*range(0, 48 * 8, 5), *range(48 * 8, 4144 * 8, 3001), 4144 * 8 - 1):
        packet = bytearray(saved.header + saved.page)
        packet[bit >> 3] ^= 1 << (bit & 7)
        ret = target.handler.restore(PAGE, bytes(packet[:48]), bytes(packet[48:]))
        assert ret == Ret.AUTHENTICATION, bit
        assert target.read() == content("before"), bit
    assert target.handler.restore(PAGE, saved.header, saved.page) == 0


@pytest.mark.parametrize("length", [0, 32, 47, 49, 1024])
def test_headers_of_another_length_are_refused(length: int) -> None:
    source, target = pair()
    saved = source.handler.save(PAGE)
    header = saved.header.ljust(1024, b"\0")[:length]
    assert target.handler.restore(PAGE, header, saved.page) == Ret.AUTHENTICATION


def test_another_key_is_refused() -> None:
    source = Side(1, 2, bytes(16)).ready()
    target = Side(2, 1, KEY).ready()
    saved = source.handler.save(PAGE)
    assert target.handler.restore(PAGE, saved.header, saved.page) == Ret.AUTHENTICATION


def test_the_bound_form_refuses_another_address_order_and_sender() -> None:
    source, target = pair()
    first, second = source.handler.save(PAGE), source.handler.save(PAGE)
    restore = target.handler.restore
    assert restore(PAGE, second.header, second.page) == Ret.AUTHENTICATION
    assert restore(0x600000, first.header, first.page) == Ret.AUTHENTICATION
    assert restore(PAGE, first.header, first.page) == 0
    assert restore(PAGE, first.header, first.page) == Ret.AUTHENTICATION
    assert restore(PAGE, second.header, second.page) == 0


@pytest.mark.parametrize("form", [PageForm.BOUND, PageForm.UNBOUND])
def test_a_packet_is_not_taken_by_its_own_sender(form: PageForm) -> None:
    source, target = pair(form=form)
    saved = source.handler.save(PAGE)
    assert source.handler.restore(PAGE, saved.header, saved.page) == Ret.AUTHENTICATION
    assert target.handler.restore(PAGE, saved.header, saved.page) == 0


def test_the_unbound_form_takes_any_packet_anywhere_any_number_of_times() -> None:
    source, target = pair(form=PageForm.UNBOUND)
    first, second = source.handler.save(PAGE), source.handler.save(0x7000)
    for saved, address in ((second, 0x600000), (first, 0x600000), (first, 0x7000)):
        assert target.handler.restore(address, saved.header, saved.page) == 0
    assert target.read(0x600000) == target.read(0x7000) == content(PAGE)


def test_forms_do_not_mix() -> None:
    source = Side(1, 2, form=PageForm.UNBOUND).ready()
    target = Side(2, 1).ready()
    saved = source.handler.save(PAGE)
    assert target.handler.restore(PAGE, saved.header, saved.page) == Ret.AUTHENTICATION


def test_the_prototypes_form_is_a_copy_without_header() -> None:
    source, target = pair(form=PageForm.COPY)
    saved = source.handler.save(PAGE)
    assert (saved.header, saved.page) == (b"", content(PAGE))
    assert target.handler.restore(PAGE, b"", saved.page) == 0
    assert target.read() == content(PAGE)


def test_after_reset_no_iv_comes_twice_and_no_old_packet_is_taken() -> None:
    source, target = pair()
    old = source.handler.save(PAGE)
    assert target.handler.restore(PAGE, old.header, old.page) == 0
    for side in (source, target):
        assert side.handler.reset() == 0
        assert side.handler.save(PAGE).ret == Ret.INVALID_FUNCTION
        side.ready()
    new = source.handler.save(PAGE)
    headers = [PageHeader.unpack(saved.header) for saved in (old, new)]
    assert len({header.iv for header in headers if header}) == 2
    assert target.handler.restore(PAGE, old.header, old.page) == Ret.AUTHENTICATION
    assert target.handler.restore(PAGE, new.header, new.page) == 0


def test_what_the_host_sees_holds_neither_key_nor_content() -> None:
    source, target = pair()
    secret = content("secret")
    source.write(PAGE, secret)
    saved = source.handler.save(PAGE)
    target.handler.restore(PAGE, saved.header, saved.page)
    for side in (source, target):
        dram = b"".join(side.ram.dram(gfn) for gfn in range(16, side.ram.frames))
        context = side.read(side.placement.context.ram_addr)
        rounds = [context[at : at + 16] for at in range(0x60, 0x120, 16)]
        assert rounds[0] == KEY
        assert not any(part in dram for part in (secret[:16], secret[-16:], *rounds))
        assert side.handler.vcpu.engine.read_xmm() == bytes(256)
