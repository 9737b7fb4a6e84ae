# SPDX-License-Identifier: GPL-2.0-or-later
"""Random commands on a few guests against the transition list E1."""

from __future__ import annotations

from firmware_world import (
    MEASURE,
    do,
    identity,
    offer,
    receive_start_buffer,
    send_start_buffer,
    state_of,
    working,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from guestemu.abi.sev_firmware import Command, Status
from guestemu.host.firmware.buffers import (
    ActivateBuffer,
    CommandBuffer,
    HandleBuffer,
    LaunchMeasureBuffer,
    PlatformStatusBuffer,
    StartBuffer,
)
from guestemu.host.firmware.dispatch import execute

E1 = {
    ("LAUNCH_MEASURE", 1): 2,
    ("LAUNCH_FINISH", 2): 3,
    ("SEND_START", 3): 4,
    ("SEND_FINISH", 4): 6,
    ("SEND_CANCEL", 4): 3,
    ("RECEIVE_FINISH", 5): 3,
    **{("DECOMMISSION", state): 0 for state in (1, 2, 3, 4, 5, 6)},
}
GUESTS = st.integers(0, 3)


class Commands(RuleBasedStateMachine):
    """`states` and `asids` are what E1 and E11 say; the platform must agree after each command."""

    def __init__(self) -> None:
        super().__init__()
        self.platform = working("target")
        self.states: dict[int, int] = {}
        self.asids: dict[int, int] = {}

    def pick(self, index: int) -> int:
        known = sorted(self.states)
        return known[index] if index < len(known) else 900

    def run(self, command: Command, buffer: CommandBuffer) -> Status:
        return execute(self.platform, command, buffer)

    @rule()
    def launch_start(self) -> None:
        start = StartBuffer()
        do(self.platform, Command.LAUNCH_START, start)
        self.states[start.handle] = 1

    @rule()
    def receive_start(self) -> None:
        start = receive_start_buffer(self.platform, offer(0))
        do(self.platform, Command.RECEIVE_START, start)
        self.states[start.handle] = 5

    @rule(
        index=GUESTS,
        name=st.sampled_from(
            [
                "LAUNCH_MEASURE",
                "LAUNCH_FINISH",
                "SEND_START",
                "SEND_FINISH",
                "SEND_CANCEL",
                "RECEIVE_FINISH",
                "DECOMMISSION",
            ]
        ),
    )
    def transition(self, index: int, name: str) -> None:
        handle = self.pick(index)
        buffer: CommandBuffer = HandleBuffer(handle)
        if name == "SEND_START":
            buffer = send_start_buffer(self.platform, handle, identity("other"))
        if name == "LAUNCH_MEASURE":
            buffer = LaunchMeasureBuffer(handle, MEASURE, 48)
        status = self.run(Command[name], buffer)
        following = E1.get((name, self.states.get(handle, 0)))
        if name == "DECOMMISSION" and handle in self.asids:
            assert status is Status.ACTIVE
            return
        assert (status is Status.SUCCESS) == (following is not None)
        if following is None:
            return
        if following:
            self.states[handle] = following
        else:
            del self.states[handle]

    @rule(index=GUESTS, asid=st.integers(1, 4))
    def activate(self, index: int, asid: int) -> None:
        handle = self.pick(index)
        is_free = handle in self.states and handle not in self.asids
        may = is_free and self.states[handle] != 6 and asid not in self.asids.values()
        self.platform.asids.wbinvd()
        self.platform.asids.df_flush()
        status = self.run(Command.ACTIVATE, ActivateBuffer(handle, asid))
        assert (status is Status.SUCCESS) == may
        if may:
            self.asids[handle] = asid

    @rule(index=GUESTS)
    def deactivate(self, index: int) -> None:
        handle = self.pick(index)
        status = self.run(Command.DEACTIVATE, HandleBuffer(handle))
        assert (status is Status.SUCCESS) == (handle in self.asids)
        self.asids.pop(handle, None)

    @invariant()
    def states_agree(self) -> None:
        found = {handle: state_of(self.platform, handle) for handle in self.platform.guests}
        assert found == self.states
        status = PlatformStatusBuffer()
        do(self.platform, Command.PLATFORM_STATUS, status)
        assert status.guest_count == len(self.states)

    @invariant()
    def a_guest_runs_only_with_cores_enabled(self) -> None:
        for handle, guest in self.platform.guests.items():
            runs = handle in self.asids and self.states[handle] in (3, 4, 6)
            assert guest.is_active == runs

    @invariant()
    def keys_are_open_only_in_a_session(self) -> None:
        for guest in self.platform.guests.values():
            if guest.state in (3, 6):
                assert guest.channel is None


Commands.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCommands = Commands.TestCase
