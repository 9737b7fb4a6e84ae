# SPDX-License-Identifier: GPL-2.0-or-later
"""The mailbox protocol, time-outs, and what a handler does with its own and others' pages."""

from __future__ import annotations

import pytest
from mirror_world import KEY, PAGE, SCATTERED, Side, content, pair

from guestemu.abi.addresses import Gpa, RamAddr
from guestemu.abi.errors import InputError
from guestemu.host.mirror.context import handler_code
from guestemu.host.mirror.driver import MailboxHandler
from guestemu.host.mirror.interface import Handler, HandlerError, StopCause
from guestemu.host.mirror.mailbox import PageForm, Ret, pack_command
from guestemu.host.mirror.placement import place_identity
from guestemu.host.mirror.vm import SharedRamMirror


def stop_of(side: Side, nr: int, address: int = PAGE) -> tuple[StopCause, int]:
    with pytest.raises(HandlerError) as caught:
        side.handler.command(nr, address)
    record = caught.value.record
    assert (record.nr, record.address) == (nr, address)
    return record.cause, record.detail


def test_the_interfaces_are_kept() -> None:
    side = Side()
    handler: Handler = side.handler
    assert handler.init() == 0
    assert side.vm.ram is side.machine.ram


def test_the_mailbox_is_where_the_prototype_has_it() -> None:
    side = Side().ready()
    side.write(PAGE, content(1))
    saved = side.handler.save(PAGE)
    mailbox = side.read(0x820000, 0x2000, private=False)
    assert mailbox[:32] == bytes.fromhex(
        "0100000000000000 0000500000000000 00000000 00000000 00000000 01000000".replace(" ", "")
    )
    assert mailbox[0x800:0x804] == (48).to_bytes(4, "little")
    assert mailbox[0x804:0x834] == saved.header
    assert mailbox[0x1000:] == saved.page


@pytest.mark.parametrize("nr", [4, 5, 0xFFFF_FFFF, 1 << 32, (1 << 64) - 1])
def test_unknown_functions(nr: int) -> None:
    assert Side().ready().handler.command(nr) == Ret.INVALID_FUNCTION


def test_nothing_but_init_and_reset_before_init() -> None:
    side = Side()
    assert side.handler.save(PAGE).ret == Ret.INVALID_FUNCTION
    assert side.handler.restore(PAGE, bytes(48), bytes(4096)) == Ret.INVALID_FUNCTION
    assert side.handler.reset() == 0
    assert side.handler.init() == 0


def test_a_command_without_go_is_not_done() -> None:
    side = Side().ready()
    side.handler.write_mailbox(0, pack_command(1, PAGE))
    assert side.handler.vcpu.run(1000) is None
    assert side.handler.read_mailbox(28, 4) == bytes(4)


def test_a_slow_handler_times_out_and_its_answer_comes_later() -> None:
    side = Side().ready()
    side.write(PAGE, content(1))
    side.handler.timeout_blocks = 100
    assert stop_of(side, 1) == (StopCause.TIMEOUT, 100)
    assert side.handler.vcpu.run(1 << 16) is None
    assert side.handler.read_mailbox(28, 4) == (1).to_bytes(4, "little")


def test_a_handler_that_is_gone_times_out() -> None:
    side = Side().ready()
    side.write(SCATTERED[0], b"\xf4\xeb\xfd" * 1000)
    cause, _ = stop_of(side, 1)
    assert cause is StopCause.TIMEOUT


def test_an_exception_is_a_shutdown() -> None:
    side = Side().ready()
    assert [side.handler.save(PAGE).ret for _ in range(2)] == [0, 0]
    side.write(SCATTERED[0], b"\x06" * 4096)
    assert stop_of(side, 1) == (StopCause.SHUTDOWN, 6)


def test_an_address_beyond_the_slots_is_mmio() -> None:
    side = Side().ready()
    beyond = side.ram.frames << 12
    assert stop_of(side, 1, beyond) == (StopCause.MMIO, beyond)


def test_an_address_beyond_the_tables_is_a_page_fault() -> None:
    side = Side().ready()
    assert stop_of(side, 1, 512 << 30) == (StopCause.SHUTDOWN, 14)


def test_a_stopped_handler_can_be_restarted() -> None:
    side = Side().ready()
    stop_of(side, 1, side.ram.frames << 12)
    side.handler.restart()
    assert side.handler.save(PAGE).ret == 0


@pytest.mark.parametrize("address", [PAGE + 1, PAGE + 0x800, PAGE + 0xFFF])
def test_unaligned_addresses(address: int) -> None:
    assert Side().ready().handler.save(address).ret == Ret.ADDRESS


@pytest.mark.parametrize("page", [*SCATTERED[:6], 0x820000, 0x821000])
def test_a_handler_refuses_its_own_pages(page: int) -> None:
    source, target = pair()
    saved = source.handler.save(PAGE)
    assert source.handler.save(page).ret == Ret.ADDRESS
    assert target.handler.restore(page, saved.header, saved.page) == Ret.ADDRESS
    assert target.handler.restore(PAGE, saved.header, saved.page) == 0


def test_without_the_guard_a_handler_overwrites_itself() -> None:
    source, target = pair(guards_itself=False, form=PageForm.UNBOUND)
    source.write(PAGE, b"\x06" * 4096)
    saved = source.handler.save(PAGE)
    with pytest.raises(HandlerError) as caught:
        target.handler.restore(SCATTERED[0], saved.header, saved.page)
    assert caught.value.record.cause is StopCause.SHUTDOWN


def test_a_shared_page_is_exported_as_garbage() -> None:
    source, target = pair()
    source.write(PAGE, content("shared"), private=False)
    saved = source.handler.save(PAGE)
    assert target.handler.restore(PAGE, saved.header, saved.page) == 0
    assert target.read() == source.ram.cipher.decrypt(PAGE >> 12, content("shared"))
    assert target.read(private=False) != content("shared")


def test_what_the_handler_stores_the_guest_loads() -> None:
    source, target = pair()
    saved = source.handler.save(PAGE)
    target.machine.checkpoint()
    target.write(PAGE, content("guest"))
    assert target.handler.restore(PAGE, saved.header, saved.page) == 0
    assert PAGE >> 12 in target.ram.dirty_frames()
    assert target.read() == content(PAGE)
    target.machine.rollback()
    assert target.read() == bytes(4096)
    saved = source.handler.save(PAGE)
    assert target.handler.restore(PAGE, saved.header, saved.page) == Ret.AUTHENTICATION


def test_a_rollback_puts_the_handler_back() -> None:
    source, target = pair()
    for side in (source, target):
        side.machine.checkpoint()
    for _ in range(2):
        source.write(PAGE, content("new"))
        saved = source.handler.save(PAGE)
        assert target.handler.restore(PAGE, saved.header, saved.page) == 0
        assert target.read() == content("new")
        for side in (source, target):
            side.machine.rollback()


def test_the_handler_has_no_symbol_beyond_its_page() -> None:
    code = handler_code()
    assert code.symbols["handler_end"] <= 4096
    assert len(code.data) == 4096


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        (SCATTERED[:5], "handler pages: 5 given; give 7"),
        ((*SCATTERED[:6], SCATTERED[0]), "handler pages: give page-aligned addresses, each once"),
        ((*SCATTERED[:6], 0x821000), "handler pages: give page-aligned addresses, each once"),
        ((*SCATTERED[:6], 0x5001), "handler pages: give page-aligned addresses, each once"),
    ],
)
def test_bad_pages(pages: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        place_identity([RamAddr(page) for page in pages])


def test_bad_keys_and_packets() -> None:
    with pytest.raises(InputError, match="transport key of 15 bytes: give 16"):
        Side(key=KEY[:15])
    side = Side().ready()
    with pytest.raises(InputError, match="packet of 1025 and 4096 bytes"):
        side.handler.restore(PAGE, bytes(1025), bytes(4096))


def test_two_vcpus_of_one_mirror() -> None:
    side = Side().ready()
    other = MailboxHandler(
        SharedRamMirror(side.ram), side.placement, side.config, 39, side.machine.code
    )
    side.write(PAGE, content(1))
    assert other.save(PAGE).ret == 0
    assert side.ram.read(Gpa(PAGE), 4096) == content(1)
