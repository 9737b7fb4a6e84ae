# SPDX-License-Identifier: GPL-2.0-or-later
"""What KVM's SEV ioctls and the firmware below them must answer: a table from facts E.1 to E.6.

Written without calling the firmware's or KVM's model. For each command the tests in their order,
each with its answer: a negative errno of KVM's layer or the firmware's status (positive). The state
of each VM's guest is followed from the commands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, U32_MASK
from guestemu.abi.errno import EBADF, EINVAL, ENOMEM, ENOTTY
from guestemu.abi.sev_firmware import KvmSevCommand, Status

GUEST_BYTES: Final = 8 * PAGE_SIZE
BUFFER_LIMIT: Final = 0x8000
REGION_OFFSETS: Final = 0xFFFF
_BLOCK: Final = 16
_BLOB_MAX: Final = 0x4000
_MEASUREMENT: Final = 48
_MIRROR: Final = 2
_ID = KvmSevCommand

NONE, LUPDATE, LSECRET, RUNNING, SUPDATE, RUPDATE, SENT = range(7)


class Call(msgspec.Struct, frozen=True):
    """A `sev_ioctl` as its caller sees it: state of the VM's guest, lengths and offset in bytes."""

    state: int
    size: int
    offset: int
    size2: int

    @property
    def other(self) -> int:
        """The length of the second buffer."""
        return self.size2 % BUFFER_LIMIT

    @property
    def length(self) -> int:
        """`size` as the 32-bit field that KVM's structures have."""
        return self.size & U32_MASK


Answer = tuple[int, int]
"""The ioctl's answer and the state of the guest afterwards."""


def _refuse(status: int, call: Call) -> Answer:
    return status, call.state


def _start(state: int) -> Callable[[Call], Answer]:
    """LAUNCH_START, RECEIVE_START: a second guest finds the VM's ASID owned (E24, E11)."""

    def answer(call: Call) -> Answer:
        if call.state != NONE:
            return _refuse(Status.ASID_OWNED, call)
        return Status.SUCCESS, state

    return answer


def _transition(before: int, after: int) -> Callable[[Call], Answer]:
    """A command without arguments (E1)."""

    def answer(call: Call) -> Answer:
        if call.state == NONE:
            return _refuse(-EBADF, call)
        if call.state != before:
            return _refuse(Status.INVALID_GUEST_STATE, call)
        return Status.SUCCESS, after

    return answer


def _launch_update_data(call: Call) -> Answer:
    if not call.length:
        return _refuse(-EINVAL, call)
    if call.offset + call.length > GUEST_BYTES:
        return _refuse(-ENOMEM, call)
    if call.state == NONE:
        return _refuse(-EBADF, call)
    if call.state != LUPDATE:
        return _refuse(Status.INVALID_GUEST_STATE, call)
    if call.offset % _BLOCK:
        return _refuse(Status.INVALID_ADDRESS, call)
    return _refuse(Status.INVALID_LEN if call.length % _BLOCK else Status.SUCCESS, call)


def _launch_measure(call: Call) -> Answer:
    if call.other > _BLOB_MAX:
        return _refuse(-EINVAL, call)
    if call.state == NONE:
        return _refuse(-EBADF, call)
    if call.state != LUPDATE:
        return _refuse(Status.INVALID_GUEST_STATE, call)
    if call.other < _MEASUREMENT:
        return _refuse(Status.INVALID_LEN, call)
    return Status.SUCCESS, LSECRET


def _send_start(call: Call) -> Answer:
    """E5: the length query is answered in any state."""
    if call.state == NONE:
        return _refuse(-EBADF, call)
    if not call.other:
        return _refuse(Status.INVALID_LEN, call)
    if call.state != RUNNING:
        return _refuse(Status.INVALID_GUEST_STATE, call)
    return Status.SUCCESS, SUPDATE


def _crosses_page(call: Call) -> bool:
    return not call.length or call.offset + call.length > PAGE_SIZE


def _send_update_data(call: Call) -> Answer:
    """E6 under E23."""
    if not call.other:
        return _refuse(-EBADF if call.state == NONE else Status.INVALID_LEN, call)
    if _crosses_page(call):
        return _refuse(-EINVAL, call)
    if call.state == NONE:
        return _refuse(-EBADF, call)
    if call.state != SUPDATE:
        return _refuse(Status.INVALID_GUEST_STATE, call)
    if call.length % _BLOCK or call.other < call.length:
        return _refuse(Status.INVALID_LEN, call)
    return _refuse(Status.INVALID_ADDRESS if call.offset % _BLOCK else Status.SUCCESS, call)


def _receive_update_data(call: Call) -> Answer:
    """E9 under E25. The one packet that there is has a whole page."""
    if _crosses_page(call) or not call.other or call.other > _BLOB_MAX:
        return _refuse(-EINVAL, call)
    if call.state == NONE:
        return _refuse(-EBADF, call)
    if call.state != RUPDATE:
        return _refuse(Status.INVALID_GUEST_STATE, call)
    if call.length != call.other or call.length % _BLOCK:
        return _refuse(Status.INVALID_LEN, call)
    if call.offset % _BLOCK:
        return _refuse(Status.INVALID_ADDRESS, call)
    is_whole = call.length == PAGE_SIZE
    return _refuse(Status.SUCCESS if is_whole else Status.BAD_MEASUREMENT, call)


def _debug(call: Call) -> Answer:
    """DBG_DECRYPT, DBG_ENCRYPT: any range of the guest's memory (E18, M26)."""
    length = call.size % BUFFER_LIMIT
    if not length:
        return _refuse(-EINVAL, call)
    if call.state == NONE:
        return _refuse(-EBADF, call)
    return _refuse(-ENOMEM if call.offset + length > GUEST_BYTES else Status.SUCCESS, call)


def _guest_status(call: Call) -> Answer:
    return _refuse(-EBADF if call.state == NONE else Status.SUCCESS, call)


def _fixed(errno: int) -> Callable[[Call], Answer]:
    return lambda call: _refuse(-errno, call)


_ANSWERS: Final[Mapping[int, Callable[[Call], Answer]]] = {
    _ID.INIT: _fixed(EINVAL),
    _ID.ES_INIT: _fixed(EINVAL),
    _ID.LAUNCH_START: _start(LUPDATE),
    _ID.LAUNCH_UPDATE_DATA: _launch_update_data,
    _ID.LAUNCH_UPDATE_VMSA: _fixed(ENOTTY),
    _ID.LAUNCH_MEASURE: _launch_measure,
    _ID.LAUNCH_FINISH: _transition(LSECRET, RUNNING),
    _ID.SEND_START: _send_start,
    _ID.SEND_UPDATE_DATA: _send_update_data,
    _ID.SEND_FINISH: _transition(SUPDATE, SENT),
    _ID.SEND_CANCEL: _transition(SUPDATE, RUNNING),
    _ID.RECEIVE_START: _start(RUPDATE),
    _ID.RECEIVE_UPDATE_DATA: _receive_update_data,
    _ID.RECEIVE_FINISH: _transition(RUPDATE, RUNNING),
    _ID.GUEST_STATUS: _guest_status,
    _ID.DBG_DECRYPT: _debug,
    _ID.DBG_ENCRYPT: _debug,
}
_MIRROR_MAY: Final = frozenset(
    {_ID.LAUNCH_UPDATE_VMSA, _ID.GUEST_STATUS, _ID.DBG_DECRYPT, _ID.DBG_ENCRYPT}
)


def sev_answer(vm: int, command: int, call: Call) -> Answer:
    """What the command must answer on VM `vm` (2 is a mirror), and the state afterwards (E20)."""
    if vm == _MIRROR and command not in _MIRROR_MAY:
        return _refuse(-EINVAL, call)
    known = _ANSWERS.get(command)
    return _refuse(-EINVAL, call) if known is None else known(call)
