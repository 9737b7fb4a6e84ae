# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of a migrating host as operations of programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guestemu.migration.model.steps import HostStep
from guestemu.program.ops import Op, OpKind

HOST_OPS: Final[Mapping[HostStep, Op]] = {
    HostStep.AUTO_CLEAR: Op(OpKind.HOST_DIRTY_FETCH, (1,)),
    HostStep.GET: Op(OpKind.HOST_DIRTY_FETCH, (0,)),
    HostStep.CLEAR: Op(OpKind.HOST_DIRTY_CLEAR),
    HostStep.ENC: Op(OpKind.HOST_STATUS_COPY),
    HostStep.SEND: Op(OpKind.HOST_SEND, (0,)),
    HostStep.SEND_LIVE: Op(OpKind.HOST_SEND, (1,)),
}
"""The operation of each step."""

HOST_OP_KINDS: Final = frozenset(op.kind for op in HOST_OPS.values())
_STEPS: Final = {(op.kind, any(op.arguments)): step for step, op in HOST_OPS.items()}


def step_of(op: Op) -> HostStep:
    """The step that `op`, of one of `HOST_OP_KINDS`, is; any argument but 0 says yes."""
    return _STEPS[op.kind, any(op.arguments)]
