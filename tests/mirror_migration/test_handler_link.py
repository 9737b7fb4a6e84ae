# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages from one machine to another through the handlers of both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guestemu.abi.addresses import PAGE_SIZE, Gfn, Gpa
from guestemu.abi.errors import InputError
from guestemu.host.firmware.memory import PlacedCipher
from guestemu.host.mirror.mailbox import PageForm, Ret
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.migration.handler_link import (
    FIRMWARE_MAILBOX,
    FIRMWARE_PAGES,
    HandlerLink,
    HandlerRefusal,
    handler_link,
)

FRAMES = 0x200
KEY = bytes(range(16, 32))
TEXT = bytes(range(256)) * 16
PAGE = Gfn(0x20)


def view(machine: Machine, private: bool, gfn: int = PAGE) -> bytes:
    return machine.ram.read(Gpa(gfn * PAGE_SIZE), PAGE_SIZE, private)


def fill(machine: Machine, private: bool, gfn: int = PAGE) -> None:
    machine.ram.write(Gpa(gfn * PAGE_SIZE), TEXT, private)


class Pair:
    def __init__(self, form: PageForm = PageForm.BOUND) -> None:
        self.source = Machine(MachineConfig(frames=FRAMES))
        self.target = Machine(MachineConfig(frames=FRAMES, key=KEY))
        self.target.ram.cipher = PlacedCipher(KEY, 1 << 20)
        self.handlers: HandlerLink = handler_link(self.source, self.target, form)
        self.link = self.handlers.link

    def close(self) -> None:
        self.handlers.close()
        self.source.close()
        self.target.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_a_private_page_keeps_its_private_view(pair: Pair) -> None:
    """The content is the same, and the bytes in DRAM are not: the keys differ."""
    fill(pair.source, True)
    pair.link.deliver(pair.link.send(PAGE, True))
    assert view(pair.target, True) == TEXT
    assert view(pair.target, False) != view(pair.source, False)


def test_a_shared_page_keeps_its_shared_view(pair: Pair) -> None:
    fill(pair.source, False)
    pair.link.deliver(pair.link.send(PAGE, False))
    assert view(pair.target, False) == TEXT
    assert view(pair.target, True) != view(pair.source, True)


def test_the_wrong_way_loses_the_view_that_the_guest_uses(pair: Pair) -> None:
    """C15, F15: what a handler exports is what C=1 reads."""
    fill(pair.source, False)
    pair.link.deliver(pair.link.send(PAGE, True))
    assert view(pair.target, False) != TEXT
    assert view(pair.target, True) == view(pair.source, True)


def test_the_host_between_sees_ciphertext_only(pair: Pair) -> None:
    fill(pair.source, True)
    packet = pair.link.send(PAGE, True)
    assert len(packet.data) == PAGE_SIZE
    blocks = {TEXT[at : at + 16] for at in range(0, PAGE_SIZE, 16)}
    assert not blocks & {packet.data[at : at + 16] for at in range(0, PAGE_SIZE, 16)}


@pytest.mark.parametrize("gfn", [FIRMWARE_PAGES[0], FIRMWARE_PAGES[-1], FIRMWARE_MAILBOX])
def test_own_pages_are_refused(pair: Pair, gfn: int) -> None:
    with pytest.raises(HandlerRefusal, match=r"save of .*: answered -3") as caught:
        pair.link.send(Gfn(gfn), True)
    assert (caught.value.ret, caught.value.address) == (Ret.ADDRESS, gfn * PAGE_SIZE)
    assert gfn in pair.handlers.frames


def test_packets_come_in_order_or_not_at_all(pair: Pair) -> None:
    packets = [pair.link.send(Gfn(PAGE + i), True) for i in range(4)]
    pair.link.deliver(packets[0])
    pair.link.deliver(packets[1])
    for wrong in (packets[1], packets[3]):
        with pytest.raises(HandlerRefusal, match=r"restore of .*authentication"):
            pair.link.deliver(wrong)
    pair.link.deliver(packets[2])


def test_the_first_packet_again_ends_the_session(pair: Pair) -> None:
    """The VMM has the handler begin anew for it; what it has seen and what follows is refused."""
    packets = [pair.link.send(Gfn(PAGE + i), True) for i in range(2)]
    pair.link.deliver(packets[0])
    for packet in packets:
        with pytest.raises(HandlerRefusal, match="authentication"):
            pair.link.deliver(packet)


def test_a_new_session_begins_at_any_time(pair: Pair) -> None:
    """Packets of the former one are refused then."""
    old = pair.link.send(PAGE, True)
    pair.handlers.sender.begin()
    pair.link.deliver(pair.link.send(PAGE, True))
    with pytest.raises(HandlerRefusal):
        pair.link.deliver(old)


def test_nothing_enters_behind_the_end(pair: Pair) -> None:
    pair.link.deliver(pair.link.send(PAGE, True))
    late = pair.link.send(Gfn(PAGE + 1), True)
    pair.handlers.receiver.finish()
    pair.handlers.sender.finish()
    with pytest.raises(HandlerRefusal):
        pair.link.deliver(late)
    with pytest.raises(HandlerRefusal, match="save of"):
        pair.link.send(PAGE, True)


def test_handlers_as_new_after_ram_was_put_back(pair: Pair) -> None:
    for machine in (pair.source, pair.target):
        machine.ram.write(Gpa(FIRMWARE_PAGES[0] * PAGE_SIZE), bytes(PAGE_SIZE))
    pair.handlers.open()
    fill(pair.source, True)
    pair.link.deliver(pair.link.send(PAGE, True))
    assert view(pair.target, True) == TEXT


def test_packets_of_the_unbound_form_fit_anywhere() -> None:
    pair = Pair(PageForm.UNBOUND)
    fill(pair.source, True)
    packet = pair.link.send(PAGE, True)
    for _ in range(2):
        pair.link.deliver(packet)
    assert view(pair.target, True) == TEXT
    pair.close()


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (MachineConfig(frames=0x80), "RAM of 128 frames; give it 1 MiB"),
        (MachineConfig(frames=FRAMES, cbit=None), "it needs a machine with a C-bit"),
    ],
)
def test_machines_that_have_no_handler(config: MachineConfig, what: str) -> None:
    machine = Machine(config)
    with pytest.raises(InputError, match=what):
        handler_link(machine, machine)
    machine.close()
