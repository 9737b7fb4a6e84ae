# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign on the security processor takes for new: cells of the state table, not pairs of
commands (there are hundreds of either, and a corpus of pairs finds nothing)."""

from __future__ import annotations

import pytest

from guestemu.abi.sev_firmware import KvmSevCommand as Id
from guestemu.campaign.planted.cell import OURS, HuntCell, make_session
from guestemu.campaign.planted.session import ZooSession
from guestemu.program.ops import Op, OpKind


def ioctl(command: int, vm: int = 0) -> Op:
    return Op(OpKind.SEV_IOCTL, (vm, command, 0x1000, 0, 0x1000))


@pytest.fixture(scope="module")
def session() -> ZooSession:
    return make_session(HuntCell("M13", False, "random", OURS, 1, None))


def is_new(session: ZooSession, *ops: Op) -> bool:
    session.feedback.clear()
    session.executor.run(ops)
    return session.feedback.take()


def test_the_order_of_commands_that_change_no_state_is_nothing_new(session: ZooSession):
    status, measure = ioctl(Id.GUEST_STATUS), ioctl(Id.LAUNCH_MEASURE)
    assert is_new(session, status, status)
    assert is_new(session, measure, measure)
    assert not is_new(session, status, measure)
    assert not is_new(session, measure, status)


def test_a_command_in_another_state_is_new(session: ZooSession):
    status, start = ioctl(Id.GUEST_STATUS), ioctl(Id.SEND_START)
    is_new(session, status, status)
    assert is_new(session, start)
    assert is_new(session, start, status)
    assert not is_new(session, start, status)


def test_a_command_on_another_vm_is_new(session: ZooSession):
    is_new(session, ioctl(Id.SEND_CANCEL))
    assert is_new(session, ioctl(Id.SEND_CANCEL, vm=1))
    assert not is_new(session, ioctl(Id.SEND_CANCEL, vm=4)), "VM 4 is VM 1"
