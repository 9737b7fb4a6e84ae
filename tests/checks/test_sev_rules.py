# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's SEV ioctls at their borders (E.1 to E.6): the answers by hand, and what the check says of a
host that gives others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from guestemu.abi.sev_firmware import KvmSevCommand as Id
from guestemu.checks.sev_firmware import SevFirmwareCheck
from guestemu.checks.sev_reference import Call, sev_answer
from guestemu.program.ops import Op, OpKind

NONE, LUPDATE, LSECRET, RUNNING, SUPDATE, RUPDATE, SENT = range(7)
EBADF, ENOMEM, EINVAL, ENOTTY = 9, 12, 22, 25
STATE, LENGTH, ADDRESS, MEASUREMENT, OWNED = 0x02, 0x04, 0x09, 0x0B, 0x0C
"""The firmware's status codes (E.5)."""

PAGE = 4096
END = 8 * PAGE
"""Of the memory of a VM."""

LENGTHS = {
    Id.LAUNCH_UPDATE_DATA: {"size": 16},
    Id.LAUNCH_MEASURE: {"size2": 48},
    Id.SEND_START: {"size2": 128},
    Id.SEND_UPDATE_DATA: {"size": 16, "size2": 16},
    Id.RECEIVE_UPDATE_DATA: {"size": PAGE, "size2": PAGE},
    Id.DBG_DECRYPT: {"size": 1},
    Id.DBG_ENCRYPT: {"size": 1},
}


def told(command: int, state: int, vm: int = 0, **lengths: int) -> tuple[int, int]:
    fields = {"size": 0, "offset": 0, "size2": 0} | lengths
    return sev_answer(vm, command, Call(state=state, **fields))


# State machine (E1), and what is said before the state is looked at -------------------------------


@pytest.mark.parametrize(
    ("command", "without", "works", "after", "else_"),
    [
        (Id.LAUNCH_START, 0, {NONE}, LUPDATE, OWNED),
        (Id.RECEIVE_START, 0, {NONE}, RUPDATE, OWNED),
        (Id.LAUNCH_UPDATE_DATA, -EBADF, {LUPDATE}, None, STATE),
        (Id.LAUNCH_MEASURE, -EBADF, {LUPDATE}, LSECRET, STATE),
        (Id.LAUNCH_FINISH, -EBADF, {LSECRET}, RUNNING, STATE),
        (Id.SEND_START, -EBADF, {RUNNING}, SUPDATE, STATE),
        (Id.SEND_UPDATE_DATA, -EBADF, {SUPDATE}, None, STATE),
        (Id.SEND_FINISH, -EBADF, {SUPDATE}, SENT, STATE),
        (Id.SEND_CANCEL, -EBADF, {SUPDATE}, RUNNING, STATE),
        (Id.RECEIVE_UPDATE_DATA, -EBADF, {RUPDATE}, None, STATE),
        (Id.RECEIVE_FINISH, -EBADF, {RUPDATE}, RUNNING, STATE),
        (Id.GUEST_STATUS, -EBADF, set(range(1, 7)), None, STATE),
        (Id.DBG_DECRYPT, -EBADF, set(range(1, 7)), None, STATE),
        (Id.DBG_ENCRYPT, -EBADF, set(range(1, 7)), None, STATE),
        (Id.INIT, -EINVAL, set(), None, -EINVAL),
        (Id.ES_INIT, -EINVAL, set(), None, -EINVAL),
        (Id.LAUNCH_UPDATE_VMSA, -ENOTTY, set(), None, -ENOTTY),
        (Id.SEND_UPDATE_VMSA, -EINVAL, set(), None, -EINVAL),
        (0xFFFF, -EINVAL, set(), None, -EINVAL),
    ],
)
def test_in_which_state_a_command_works_and_where_it_leads(
    command, without, works, after, else_
) -> None:
    for state in range(7):
        if state in works:
            expected = (0, state if after is None else after)
        else:
            expected = (without if state == NONE else else_, state)
        assert told(command, state, **LENGTHS.get(command, {})) == expected


def test_a_mirror_takes_four_commands() -> None:
    """E20."""
    for command in Id:
        lengths = LENGTHS.get(command, {})
        expected = (-EINVAL, RUNNING)
        if command in {Id.LAUNCH_UPDATE_VMSA, Id.GUEST_STATUS, Id.DBG_DECRYPT, Id.DBG_ENCRYPT}:
            expected = told(command, RUNNING, **lengths)
        assert told(command, RUNNING, vm=2, **lengths) == expected
    assert told(Id.SEND_START, RUNNING, vm=1, size2=128) == (0, SUPDATE)


@pytest.mark.parametrize(
    ("command", "state", "size", "offset", "size2", "expected"),
    [
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, 0, 0, 0, -EINVAL),
        (Id.LAUNCH_UPDATE_DATA, NONE, 0, 0, 0, -EINVAL),
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, 1 << 32, 0, 0, -EINVAL),
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, 1 << 32 | 16, 0, 0, 0),
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, END, 0, 0, 0),
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, 16, END - 16, 0, 0),
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, 16, END, 0, -ENOMEM),
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, END + 1, 0, 0, -ENOMEM),
        (Id.LAUNCH_UPDATE_DATA, NONE, END + 1, 0, 0, -ENOMEM),
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, 16, 8, 0, ADDRESS),
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, 8, 8, 0, ADDRESS),
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, 8, 16, 0, LENGTH),
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, 17, 17, 0, ADDRESS),
        (Id.LAUNCH_UPDATE_DATA, LUPDATE, 17, 0, 0, LENGTH),
        (Id.LAUNCH_MEASURE, LUPDATE, 0, 0, 0x4000, 0),
        (Id.LAUNCH_MEASURE, LUPDATE, 0, 0, 0x4001, -EINVAL),
        (Id.LAUNCH_MEASURE, NONE, 0, 0, 0x4001, -EINVAL),
        (Id.LAUNCH_MEASURE, LUPDATE, 0, 0, 47, LENGTH),
        (Id.LAUNCH_MEASURE, LUPDATE, 0, 0, 0x8000, LENGTH),
        (Id.LAUNCH_MEASURE, LUPDATE, 0, 0, 0x7FFF, -EINVAL),
        (Id.SEND_START, RUNNING, 0, 0, 0, LENGTH),
        (Id.SEND_START, SENT, 0, 0, 0, LENGTH),
        (Id.SEND_START, NONE, 0, 0, 0, -EBADF),
        (Id.SEND_UPDATE_DATA, NONE, 16, 0, 0, -EBADF),
        (Id.SEND_UPDATE_DATA, RUNNING, 0, 0, 0, LENGTH),
        (Id.SEND_UPDATE_DATA, SUPDATE, 0, 0, 16, -EINVAL),
        (Id.SEND_UPDATE_DATA, NONE, 0, 0, 16, -EINVAL),
        (Id.SEND_UPDATE_DATA, SUPDATE, PAGE, 0, PAGE, 0),
        (Id.SEND_UPDATE_DATA, SUPDATE, 16, PAGE - 16, 16, 0),
        (Id.SEND_UPDATE_DATA, SUPDATE, 17, PAGE - 16, 32, -EINVAL),
        (Id.SEND_UPDATE_DATA, SUPDATE, 17, 0, 32, LENGTH),
        (Id.SEND_UPDATE_DATA, SUPDATE, 32, 0, 31, LENGTH),
        (Id.SEND_UPDATE_DATA, SUPDATE, 32, 0, 33, 0),
        (Id.SEND_UPDATE_DATA, SUPDATE, 17, 8, 32, LENGTH),
        (Id.SEND_UPDATE_DATA, SUPDATE, 16, 8, 16, ADDRESS),
        (Id.RECEIVE_UPDATE_DATA, RUPDATE, 0, 0, 16, -EINVAL),
        (Id.RECEIVE_UPDATE_DATA, RUPDATE, 16, 0, 0, -EINVAL),
        (Id.RECEIVE_UPDATE_DATA, RUPDATE, 16, PAGE, 16, -EINVAL),
        (Id.RECEIVE_UPDATE_DATA, NONE, 16, 0, 0x4001, -EINVAL),
        (Id.RECEIVE_UPDATE_DATA, RUPDATE, 16, 0, 0x4001, -EINVAL),
        (Id.RECEIVE_UPDATE_DATA, RUPDATE, 16, 0, 0x4000, LENGTH),
        (Id.RECEIVE_UPDATE_DATA, RUPDATE, 24, 0, 24, LENGTH),
        (Id.RECEIVE_UPDATE_DATA, RUPDATE, 16, 8, 16, ADDRESS),
        (Id.RECEIVE_UPDATE_DATA, RUPDATE, 16, 8, 32, LENGTH),
        (Id.RECEIVE_UPDATE_DATA, RUPDATE, 16, 0, 16, MEASUREMENT),
        (Id.DBG_DECRYPT, RUNNING, 0, 0, 0, -EINVAL),
        (Id.DBG_DECRYPT, NONE, 0x8000, 0, 0, -EINVAL),
        (Id.DBG_DECRYPT, RUNNING, 1, END - 1, 0, 0),
        (Id.DBG_DECRYPT, RUNNING, 0x8001, END - 1, 0, 0),
        (Id.DBG_DECRYPT, RUNNING, 2, END - 1, 0, -ENOMEM),
        (Id.DBG_DECRYPT, RUNNING, 0x7FFF, 0, 0, 0),
    ],
)
def test_lengths_and_places_at_their_borders(command, state, size, offset, size2, expected) -> None:
    answer, after = told(command, state, size=size, offset=offset, size2=size2)
    assert answer == expected
    assert answer == 0 or after == state, "what is refused changes nothing"


# What the check says of a host --------------------------------------------------------------------


class World:
    """What the check sees of a host: the states of its guests, memory, and the firmware."""

    def __init__(self, *states: int) -> None:
        self.states = list(states or (RUNNING, NONE))
        self.reported = RUNNING
        self.warnings: list[str] = []
        self.plain = bytes(range(256)) * (END // 256)
        self.zero, self.buffer = bytes(PAGE), bytes(0x10000)
        self.user = SimpleNamespace(zero_page=7, read=self._read)
        memory = SimpleNamespace(read=self._read_page)
        guests = [state for state in self.states if state]
        self.platform = SimpleNamespace(guests=guests, memory=memory)

    def _read_page(self, at: int, size: int) -> bytes:
        return self.zero if (at, size) == (self.user.zero_page, PAGE) else b""

    def _read(self, at: int, size: int) -> bytes:
        """Buffers are at multiples of 0x10000: the packet at 0x40000, output at 0x70000."""
        return self.buffer[at & 0xFFFF : (at & 0xFFFF) + size] if at >> 16 in (4, 7) else b""

    def guest_state(self, vm: int) -> int:
        return self.states[vm]

    def reported_state(self) -> int:
        return self.reported


class Host:
    def __init__(self, world: World) -> None:
        self.world = world

    def sev_world(self) -> World:
        return self.world


def after(check: SevFirmwareCheck, host: object, op: Op, value: int, index: int = 1) -> list[str]:
    seen = SimpleNamespace(index=index, op=op, host=host, outcome=SimpleNamespace(value=value))
    found = list(check.after(seen))
    assert all((one.check, one.op) == ("sev-firmware", index) for one in found)
    return [one.message for one in found]


def ioctl(command: int, vm: int = 0, size: int = 0, offset: int = 0, size2: int = 0) -> Op:
    return Op(OpKind.SEV_IOCTL, (vm, command, size, offset, size2))


def said(world: World, op: Op, value: int) -> list[str]:
    return after(SevFirmwareCheck(), Host(world), op, value)


def test_an_answer_and_the_states_behind_it() -> None:
    start = ioctl(Id.SEND_START, size2=128)
    assert said(World(SUPDATE, NONE), start, 0) == []
    assert said(World(SUPDATE, NONE), start, 2) == [
        "SEND_START in state 3 was answered 2, expected 0"
    ]
    assert said(World(), start, 0) == ["SEND_START: the guest of VM 0 is in state 3, not 4"]
    assert said(World(SUPDATE, RUPDATE), start, 0) == [
        "SEND_START: the guest of VM 1 is in state 5, not 0"
    ]
    assert said(World(RUNNING, RUPDATE), ioctl(Id.RECEIVE_START, vm=1), 0) == []
    assert said(World(RUNNING, RUPDATE), ioctl(Id.RECEIVE_START, vm=4), 0) == [], "modulo 3"
    assert said(World(), ioctl(Id.SEND_START, vm=2, size2=128), -EINVAL) == []
    assert said(World(), ioctl(Id.GUEST_STATUS, vm=5), 0) == [], "a mirror has the guest of VM 0"
    assert said(World(), ioctl(0x99), 0) == ["0x99 in state 3 was answered 0, expected -22"]


def test_states_are_followed_and_after_a_violation_the_firmwares_are_believed() -> None:
    check, world = SevFirmwareCheck(), World(SUPDATE, NONE)
    host = Host(world)
    assert after(check, host, ioctl(Id.SEND_START, size2=128), 0, index=0) == []
    world.states[0] = SENT
    assert after(check, host, ioctl(Id.SEND_FINISH), 0) == []
    world.states[0] = RUNNING
    assert len(after(check, host, ioctl(Id.SEND_FINISH), STATE)) == 1
    world.states[0] = SUPDATE
    assert after(check, host, ioctl(Id.SEND_START, size2=128), 0) == []
    world.states[0] = RUNNING
    status = ioctl(Id.GUEST_STATUS)
    assert len(after(check, host, status, 0)) == 2
    assert after(check, host, status, 0, index=0) == [], "a new program begins with a new guest"
    assert after(check, Host(World()), status, 0) == [], "of another host"
    assert after(check, SimpleNamespace(), status, 99) == []
    assert after(check, host, Op(OpKind.READ, (0,)), 99) == []
    world.states[0] = SENT
    other = ioctl(Id.SEND_START, size2=128)
    assert len(after(check, host, other, 0)) == 1
    assert after(check, host, Op(OpKind.READ, (0,)), 0, index=0) == []
    world.states[0] = RUNNING
    assert after(check, host, status, 0) == [], "also if that begins with another operation"


def test_what_guest_status_reports() -> None:
    world = World()
    world.reported = SENT
    assert said(world, ioctl(Id.GUEST_STATUS), 0) == ["GUEST_STATUS reports state 6, not 3"]
    assert said(world, ioctl(Id.GUEST_STATUS), 1) == [
        "GUEST_STATUS in state 3 was answered 1, expected 0"
    ]
    assert said(world, ioctl(Id.DBG_ENCRYPT, size=1), 0) == []


def test_the_firmware_has_as_many_guests_as_vms_have() -> None:
    for handles, guests in ((2, (RUNNING, NONE)), (1, (RUNNING, RUPDATE)), (0, (RUNNING, NONE))):
        world = World(*guests)
        world.platform.guests = list(range(handles))
        (*_, message) = said(world, ioctl(Id.RECEIVE_START, vm=1), 0)
        expected = sum(1 for state in guests if state)
        assert message == (f"RECEIVE_START: the firmware holds {handles} guests for {expected} VMs")


def test_the_zero_page_is_zero() -> None:
    world = World()
    world.zero = bytes(PAGE - 1) + b"\1"
    assert said(world, ioctl(Id.GUEST_STATUS), 0) == [
        "GUEST_STATUS wrote to the zero page that all processes share"
    ]


def test_a_packet_is_followed_by_zeros() -> None:
    """M15."""
    check, world = SevFirmwareCheck(), World(SUPDATE, NONE)
    host = Host(world)
    after(check, host, ioctl(Id.SEND_START, size2=128), 0)
    world.buffer = b"\1" * 32 + b"\2\0\3" + bytes(29) + b"\4" * 64
    send = ioctl(Id.SEND_UPDATE_DATA, size=32, size2=64)
    assert after(check, host, send, 0) == ["2 bytes of kernel memory behind the packet"]
    assert after(check, host, send, 4) == ["SEND_UPDATE_DATA in state 4 was answered 4, expected 0"]
    world.buffer = b"\1" * 32 + bytes(32) + b"\4" * 64
    assert after(check, host, send, 0) == []


def test_dbg_decrypt_gives_what_the_guest_wrote() -> None:
    """M26."""
    world = World()
    decrypt = ioctl(Id.DBG_DECRYPT, size=0x8000 | 16, offset=300)
    world.buffer = world.plain[300:316] + b"\xff"
    assert said(world, decrypt, 0) == []
    assert said(world, ioctl(Id.DBG_DECRYPT, vm=2, size=16, offset=300), 0) == []
    world.buffer = world.plain[300:315] + b"\xff"
    assert said(world, decrypt, 0) == ["DBG_DECRYPT of 16 bytes gave other bytes than the guest's"]
    assert said(world, ioctl(Id.DBG_ENCRYPT, size=16, offset=300), 0) == []
    assert said(world, decrypt, 1) == ["DBG_DECRYPT in state 3 was answered 1, expected 0"]
    received = World(RUNNING, RUPDATE)
    check, host = SevFirmwareCheck(), Host(received)
    after(check, host, ioctl(Id.RECEIVE_START, vm=1), 0)
    received.buffer = b"\xff" * 16
    other = ioctl(Id.DBG_DECRYPT, vm=1, size=16, offset=300)
    assert after(check, host, other, 0) == [], "nothing is known of what VM 1 received"


# Regions (E28) ------------------------------------------------------------------------------------


def region(size: int, offset: int = 0, vm: int = 0, unregister: int = 0) -> Op:
    return Op(OpKind.SEV_REGION, (vm, offset, size, unregister))


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (region(1), 0),
        (region(END), 0),
        (region(END + 1), -ENOMEM),
        (region(PAGE, offset=END - PAGE), 0),
        (region(PAGE, offset=END - PAGE + 1), -ENOMEM),
        (region(PAGE, offset=0x10000), 0),
        (region(PAGE, offset=0xFFFF), -ENOMEM),
        (region(0), -EINVAL),
        (region((1 << 64) - 0x100000), -EINVAL),
        (region((1 << 64) - 0x100001), -EINVAL),
        (region(0x7FFF_FFFF << 12), -ENOMEM),
        (region((0x7FFF_FFFF << 12) + 1), -EINVAL),
        (region((0x7FFF_FFFF << 12) - 1, offset=1), -ENOMEM),
        (region((0x7FFF_FFFF << 12), offset=1), -EINVAL),
        (region(PAGE, vm=2), -EINVAL),
        (region(PAGE, vm=5), -EINVAL),
        (region(PAGE, vm=1), 0),
        (region(PAGE, unregister=1), -EINVAL),
    ],
)
def test_which_regions_can_be_registered(op, expected) -> None:
    assert said(World(), op, expected) == []
    offset, size = op.arguments[1:3]
    word = "UNREG_REGION" if op.arguments[3] else "REG_REGION"
    assert said(World(), op, 7) == [
        f"{word} of {size:#x} bytes at {offset:#x} gave 7, expected {expected}"
    ]


def test_a_region_is_unregistered_as_it_was_registered() -> None:
    check, host = SevFirmwareCheck(), Host(World())

    def answers(op: Op, value: int, index: int = 1) -> bool:
        return after(check, host, op, value, index) == []

    assert answers(region(PAGE, 16), 0, index=0)
    assert answers(region(2 * PAGE, 16, unregister=1), -EINVAL)
    assert answers(region(PAGE, 17, unregister=1), -EINVAL)
    assert answers(region(PAGE, 16, vm=1, unregister=1), -EINVAL)
    assert answers(region(PAGE, 0x10010, vm=3, unregister=1), 0)
    assert answers(region(PAGE, 16, unregister=1), -EINVAL), "once"
    assert not answers(region(PAGE, 16, unregister=1), 0), "and not known since then"
    assert answers(region(PAGE, 16), 0)
    assert answers(region(PAGE, 16), 0)
    assert answers(region(PAGE, 16, unregister=1), 0)
    assert not answers(region(PAGE, 16, unregister=1), -EINVAL)
    assert answers(region(PAGE, 16, unregister=1), 0), "twice, as it was registered"
    assert answers(region(PAGE, 16), 0)
    assert answers(region(PAGE, 16, unregister=1), -EINVAL, index=0), "of the next program"
    assert not answers(region(PAGE, 32), -ENOMEM)
    assert answers(region(PAGE, 32, unregister=1), -EINVAL), "it was refused"


def test_user_space_triggers_no_warn() -> None:
    world = World()
    world.warnings = ["page count", "later"]
    assert said(world, region(PAGE), 0) == ["user space triggered a WARN: page count"]


def test_hosts_with_a_firmware_are_judged() -> None:
    assert SevFirmwareCheck.applies(Host(World()))
    assert not SevFirmwareCheck.applies(SimpleNamespace())
