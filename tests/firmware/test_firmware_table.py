# SPDX-License-Identifier: GPL-2.0-or-later
"""Every firmware command in every state with each bad argument, against facts E.1 to E.3."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from firmware_cells import NEW_GUEST, RULES, Cell, cells, expected
from firmware_world import (
    AMD,
    CERTIFICATE,
    CHAIN,
    GUEST,
    HEADER,
    MEASURE,
    PACKET,
    PDH,
    SESSION,
    SPARE,
    guest_in,
    identity,
    launch,
    offer,
    receive_start_buffer,
    send_start_buffer,
    state_of,
    update_buffer,
    working,
)

from guestemu.abi.sev_firmware import Command, GuestState, Policy, Status
from guestemu.host.firmware.buffers import (
    ActivateBuffer,
    CommandBuffer,
    CopyBuffer,
    DebugBuffer,
    GuestStatusBuffer,
    HandleBuffer,
    LaunchMeasureBuffer,
    LaunchUpdateBuffer,
    Nothing,
    StartBuffer,
)
from guestemu.host.firmware.dispatch import buffer_kind, execute
from guestemu.host.firmware.identity import generate_authority
from guestemu.host.firmware.platform import Platform

CELLS = cells()
MISSING_HANDLE, OWN_ASID, OTHER_ASID, FREE_ASID, DIRTY_ASID = 77, 8, 9, 10, 11


_FIRST = frozenset({"es", "policy_reserved", "policy_version", "old_api", "oca_foreign"})


def _turn(bad: str) -> int:
    """What replaces a whole blob comes first, then sharing, then changes to single bytes."""
    return 0 if bad in _FIRST else 1 if bad.startswith("share") else 3 if bad == "full" else 2


class World:
    """Platform and guest of one cell, and the buffer that its command gets."""

    def __init__(self, cell: Cell) -> None:
        self.rule = RULES[cell.rule]
        self.command = Command[cell.rule.split(" ")[0]]
        self.policy = self.rule.policy
        self.platform = working("target", es="es:es" not in cell.bad)
        self.handle = MISSING_HANDLE
        self.bystander = 0
        if cell.platform == "UNINIT":
            execute(self.platform, Command.SHUTDOWN, Nothing())
        elif cell.platform == "WORKING":
            self._fill(cell)
        self.buffer: CommandBuffer = self._buffer(cell)
        for bad in sorted((bad.split(":")[0] for bad in cell.bad), key=_turn):
            BREAK[bad](self)

    def _fill(self, cell: Cell) -> None:
        platform = self.platform
        dirty = launch(platform, 0, DIRTY_ASID)
        self.bystander = launch(platform, self.policy & ~Policy.NOSEND, OTHER_ASID, run=False)
        execute(platform, Command.DEACTIVATE, HandleBuffer(dirty))
        execute(platform, Command.DECOMMISSION, HandleBuffer(dirty))
        if cell.state:
            asid = OWN_ASID if cell.bound else 0
            self.handle = guest_in(platform, GuestState(cell.state), self.policy, asid)

    def _buffer(self, cell: Cell) -> CommandBuffer:
        handle, command = self.handle, self.command
        if command is Command.SEND_START:
            return send_start_buffer(self.platform, handle, identity("other"))
        if command is Command.RECEIVE_START:
            return receive_start_buffer(self.platform, offer(0))
        if command in (Command.RECEIVE_UPDATE_DATA, Command.RECEIVE_UPDATE_VMSA):
            given = offer(self.policy)
            self.platform.memory.write(HEADER, given.header)
            self.platform.memory.write(PACKET, given.packet)
        if command in (Command.SEND_UPDATE_VMSA, Command.RECEIVE_UPDATE_VMSA):
            return update_buffer(handle, SPARE)
        table: dict[type[CommandBuffer], Callable[[], CommandBuffer]] = {
            HandleBuffer: lambda: HandleBuffer(handle),
            ActivateBuffer: lambda: ActivateBuffer(handle, FREE_ASID),
            GuestStatusBuffer: lambda: GuestStatusBuffer(handle, state=99),
            CopyBuffer: lambda: CopyBuffer(handle, 8192, GUEST, SPARE),
            StartBuffer: StartBuffer,
            LaunchUpdateBuffer: lambda: LaunchUpdateBuffer(handle, GUEST, 4096),
            LaunchMeasureBuffer: lambda: LaunchMeasureBuffer(handle, MEASURE, 48),
            DebugBuffer: lambda: DebugBuffer(handle, GUEST, SPARE, 4096),
        }
        kind = buffer_kind(command)
        return table[kind]() if kind in table else update_buffer(handle)

    def set(self, **fields: int) -> None:
        for name, value in fields.items():
            assert hasattr(self.buffer, name)
            setattr(self.buffer, name, value)

    def flip(self, address: int, mask: int = 1) -> None:
        memory = self.platform.memory
        memory.write(address, bytes([memory.read(address, 1)[0] ^ mask]))

    def share(self, policy: int) -> None:
        """Asks to share the key of a guest with this policy."""
        other = StartBuffer(policy=policy)
        if execute(self.platform, Command.LAUNCH_START, other) is Status.SUCCESS:
            self.set(handle=other.handle)
        else:
            self.set(handle=self.bystander or 1)

    def fill_slots(self) -> None:
        while execute(self.platform, Command.LAUNCH_START, StartBuffer()) is Status.SUCCESS:
            pass

    def want(self, policy: int) -> None:
        """The new guest's policy gets these bits; a session for it lies in memory."""
        assert isinstance(self.buffer, StartBuffer)
        policy |= self.buffer.policy
        if self.command is Command.RECEIVE_START:
            self.platform.memory.write(SESSION, offer(policy).session)
        self.set(policy=policy)

    def share_noks(self) -> None:
        self.want(Policy.NOKS)
        assert isinstance(self.buffer, StartBuffer)
        self.share(self.buffer.policy)

    def use_foreign_root(self) -> None:
        self.platform.memory.write(AMD, FOREIGN.chain())


FOREIGN = generate_authority()
PEK, OCA, CEK = CHAIN, CHAIN + CERTIFICATE, CHAIN + 2 * CERTIFICATE
SIG1, SIG2 = 1044 + 8, 1044 + 520 + 8

BREAK: dict[str, Callable[[World], None]] = {
    "share_handle": lambda w: w.set(handle=1025),
    "share_policy": lambda w: w.share(Policy.NODBG),
    "share_noks": World.share_noks,
    "full": World.fill_slots,
    "es": lambda w: w.want(Policy.ES),
    "paddr": lambda w: (
        w.set(address=GUEST + 8)
        if isinstance(w.buffer, LaunchUpdateBuffer)
        else w.set(guest_address=GUEST + 8)
    ),
    "len_0": lambda w: w.set(length=0),
    "len_8": lambda w: w.set(length=4088),
    "len_47": lambda w: w.set(length=47),
    "session_len": lambda w: w.set(session_length=129),
    "pdh_len": lambda w: w.set(pdh_length=2083),
    "plat_len": lambda w: w.set(platform_length=3 * 2084 + 1),
    "amd_len": lambda w: w.set(amd_length=100),
    "pdh_usage": lambda w: w.flip(PDH + 8),
    "ark_foreign": lambda w: w.use_foreign_root(),
    "ask_signature": lambda w: w.flip(AMD + 64 + 512),
    "cek_signature": lambda w: w.flip(CEK + SIG1),
    "pek_signature": lambda w: (w.flip(PEK + SIG1), w.flip(PEK + SIG2)),
    "oca_signature": lambda w: w.flip(OCA + SIG1),
    "pdh_signature": lambda w: w.flip(PDH + SIG1),
    "old_api": lambda w: old_api(w),
    "oca_foreign": lambda w: foreign_domain(w),
    "hdr_51": lambda w: w.set(header_length=51),
    "guest_len_0": lambda w: w.set(guest_length=0),
    "guest_len_16": lambda w: w.set(guest_length=4088),
    "guest_len_5010": lambda w: w.set(guest_length=0x5010, transport_length=0x6000),
    "guest_len_less": lambda w: w.set(guest_length=4080),
    "both_len_odd": lambda w: w.set(guest_length=4088, transport_length=4088),
    "trans_len_0": lambda w: w.set(transport_length=0),
    "trans_len_short": lambda w: w.set(transport_length=4095),
    "trans_len_big": lambda w: w.set(guest_length=0x5010, transport_length=0x5010),
    "not_vmsa": lambda w: w.set(guest_address=GUEST),
    "compressed": lambda w: w.flip(HEADER),
    "flags": lambda w: w.flip(HEADER, 2),
    "mac": lambda w: w.flip(HEADER + 51),
    "wrap_mac": lambda w: w.flip(SESSION + 64),
    "policy_mac": lambda w: w.set(policy=w.buffer.policy ^ 1),
    "policy_reserved": lambda w: w.want(1 << 6),
    "policy_version": lambda w: w.want(1 << 16 | 56 << 24),
    "asid_0": lambda w: w.set(asid=0),
    "asid_510": lambda w: w.set(asid=510),
    "asid_owned": lambda w: w.set(asid=OTHER_ASID),
    "asid_dirty": lambda w: w.set(asid=DIRTY_ASID),
    "length_0": lambda w: w.set(length=0),
    "length_8": lambda w: w.set(length=8),
    "length_16": lambda w: w.set(length=4112),
    "src": lambda w: w.set(source_address=GUEST + 8),
    "dst": lambda w: w.set(target_address=SPARE + 8),
}


def old_api(world: World) -> None:
    """The receiver's firmware is older than the guest's policy asks for."""
    chain = identity("old", "owner", (0, 17))
    world.platform.memory.write(CHAIN, chain.platform_chain())
    world.platform.memory.write(PDH, chain.pdh.pack())
    if world.handle in world.platform.guests:
        world.platform.guests[world.handle].policy |= 18 << 24


def foreign_domain(world: World) -> None:
    other = identity("foreign", "another owner")
    world.platform.memory.write(CHAIN, other.platform_chain())
    world.platform.memory.write(PDH, other.pdh.pack())


def new_state(platform: Platform, before: set[int]) -> int:
    added = set(platform.guests) - before
    return state_of(platform, added.pop()) if added else 0


def test_the_table_is_large() -> None:
    assert len(CELLS) > 1000
    assert len({cell.id for cell in CELLS}) == len(CELLS)


@pytest.mark.parametrize("cell", CELLS, ids=[cell.id for cell in CELLS])
def test_status_and_state(cell: Cell) -> None:
    world = World(cell)
    platform, buffer = world.platform, world.buffer
    before = set(platform.guests)
    status, following = expected(cell)
    assert execute(platform, world.command, buffer) == status
    if cell.platform == "UNINIT":
        assert not platform.guests
    elif cell.rule in NEW_GUEST:
        assert new_state(platform, before) == following
    else:
        assert state_of(platform, world.handle) == following
    query = world.rule.written
    if query and cell.bad == (query[0],) and status == 0x04:
        assert getattr(buffer, query[1]) == query[2]


def test_unknown_commands() -> None:
    known = {int(command) for command in Command}
    platform = working("target")
    for command in set(range(0x100)) - known:
        assert execute(platform, command, Nothing()) is Status.INVALID_COMMAND


def test_a_bad_handle_has_status_invalid() -> None:
    buffer = GuestStatusBuffer(MISSING_HANDLE, state=99, asid=98)
    assert execute(working("target"), Command.GUEST_STATUS, buffer) is Status.SUCCESS
    assert (buffer.state, buffer.asid) == (0, 98)
