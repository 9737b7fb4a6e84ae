# SPDX-License-Identifier: GPL-2.0-or-later
"""The ASIDs: which guest owns one, and which may not be used before the caches were flushed.

An ASID that a running guest used is *dirty* after DEACTIVATE: lines tagged with it may still be in
caches. WBINVD on all cores and then DF_FLUSH make it clean again. One that never got beyond a
pending activation stays clean (E11). Source: AMD's published firmware, activate_common,
mcmd_df_flush_common and sev_mcmd_deactivate; all cores are taken as one.
"""

from __future__ import annotations

import enum

from guestemu.abi.sev_firmware import Status
from guestemu.host.firmware.state import FirmwareGuest, Refused


class AsidState(enum.Enum):
    """Free and flushed, bound but not enabled, enabled, used and not flushed."""

    CLEAN = "clean"
    ALLOCATED = "allocated"
    IN_USE = "in use"
    DIRTY = "dirty"


class AsidTable:
    """ASIDs 1 to `count`, all dirty at first, as after INIT."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._states: dict[int, AsidState] = {}
        self._flushed = False
        self._wbinvd_done = False

    def state(self, asid: int) -> AsidState:
        """The state of one ASID."""
        return self._states.get(asid, AsidState.CLEAN if self._flushed else AsidState.DIRTY)

    def wbinvd(self) -> None:
        """Every core executed WBINVD."""
        self._wbinvd_done = True

    def df_flush(self) -> None:
        """DF_FLUSH: dirty ASIDs become clean, or WBINVD_REQUIRED."""
        if not self._wbinvd_done:
            raise Refused(Status.WBINVD_REQUIRED)
        self._flushed = True
        self._states = {
            asid: state for asid, state in self._states.items() if state is not AsidState.DIRTY
        }

    def check_free(self, asid: int) -> None:
        """The tests of ACTIVATE that need no guest: INVALID_ASID, then ASID_OWNED."""
        if not 1 <= asid <= self.count:
            raise Refused(Status.INVALID_ASID)
        if self.state(asid) in (AsidState.ALLOCATED, AsidState.IN_USE):
            raise Refused(Status.ASID_OWNED)

    def check_flushed(self, asid: int) -> None:
        """DFFLUSH_REQUIRED for a dirty ASID."""
        if self.state(asid) is AsidState.DIRTY:
            raise Refused(Status.DFFLUSH_REQUIRED)

    def bind(self, guest: FirmwareGuest, asid: int, enable: bool) -> None:
        """Gives `guest` the ASID; without `enable` the activation stays pending."""
        guest.asid = asid
        guest.is_pending = not enable
        self._states[asid] = AsidState.IN_USE if enable else AsidState.ALLOCATED

    def finish_pending(self, guest: FirmwareGuest) -> None:
        """LAUNCH_FINISH and RECEIVE_FINISH enable the cores of a pending activation (E10, E11)."""
        if guest.is_pending:
            self.bind(guest, guest.asid, True)

    def release(self, guest: FirmwareGuest) -> None:
        """DEACTIVATE: the ASID goes; dirty if the guest was enabled on it."""
        if guest.is_pending:
            self._states[guest.asid] = AsidState.CLEAN
        else:
            self._states[guest.asid] = AsidState.DIRTY
            self._wbinvd_done = False
        guest.asid = 0
        guest.is_pending = False
