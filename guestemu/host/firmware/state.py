# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest in the firmware and the transitions of its state (E1).

A command that is not listed for a state does not lead anywhere: there is no way out of SENT but
DECOMMISSION, and a receive has no cancel (E2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from guestemu.abi.sev_firmware import Command, GuestState, Policy, Status
from guestemu.host.firmware.session import TransportKeys

_S = GuestState
_C = Command

TRANSITIONS: Final[Mapping[tuple[GuestState, Command], GuestState]] = {
    (_S.INVALID, _C.LAUNCH_START): _S.LUPDATE,
    (_S.LUPDATE, _C.LAUNCH_MEASURE): _S.LSECRET,
    (_S.LSECRET, _C.LAUNCH_FINISH): _S.RUNNING,
    (_S.RUNNING, _C.SEND_START): _S.SUPDATE,
    (_S.SUPDATE, _C.SEND_FINISH): _S.SENT,
    (_S.SUPDATE, _C.SEND_CANCEL): _S.RUNNING,
    (_S.INVALID, _C.RECEIVE_START): _S.RUPDATE,
    (_S.RUPDATE, _C.RECEIVE_FINISH): _S.RUNNING,
    **{(state, _C.DECOMMISSION): _S.INVALID for state in _S if state is not _S.INVALID},
}
"""The complete list E1: (state, command) to the next state."""


class Refused(Exception):
    """A command ends with `status` and without further effect."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass(slots=True)
class FirmwareGuest:
    """What the firmware keeps of a guest.

    `key` is the 16-byte memory key; `asid` is 0 while none is bound; `is_pending` says that an ASID
    is bound but the cores are not enabled for it (E11). `vmsas` are checksums of the save areas
    that the firmware set up. `digest_input` is the launch digest's input so far.
    """

    handle: int
    policy: int
    key: bytes
    state: GuestState = GuestState.INVALID
    asid: int = 0
    is_pending: bool = False
    channel: TransportKeys | None = None
    digest_input: bytearray = field(default_factory=bytearray)
    vmsas: set[int] = field(default_factory=set)

    @property
    def is_active(self) -> bool:
        """The cores are enabled for the guest's ASID: it can run."""
        return self.asid != 0 and not self.is_pending

    @property
    def has_es(self) -> bool:
        """The guest's policy asks for SEV-ES."""
        return bool(self.policy & Policy.ES)


def require_state(guest: FirmwareGuest, *states: GuestState) -> None:
    """INVALID_GUEST_STATE unless `guest` is in one of `states`."""
    if guest.state not in states:
        raise Refused(Status.INVALID_GUEST_STATE)


def require_asid(guest: FirmwareGuest) -> None:
    """INACTIVE unless an ASID is bound; a pending activation is enough (E6, E9, E11)."""
    if not guest.asid:
        raise Refused(Status.INACTIVE)


def advance(guest: FirmwareGuest, command: Command) -> None:
    """Moves `guest` along E1, or INVALID_GUEST_STATE."""
    following = TRANSITIONS.get((guest.state, command))
    if following is None:
        raise Refused(Status.INVALID_GUEST_STATE)
    guest.state = following
