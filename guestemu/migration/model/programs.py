# SPDX-License-Identifier: GPL-2.0-or-later
"""An interleaving of the order model as a program for the machine.

The guest's steps are single operations on one page (D[0]): the C-bit is flipped with INVLPG, the
hypercall is a raw VMMCALL, a write fills the page with a byte that stands for the token. The host's
steps are the migration operations. STOP is the order's steps once more, then `migrate_stop`. The
last operation is the guest's read of the page, at which the checks give the verdict.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import (
    KVM_HC_MAP_GPA_RANGE,
    MAP_GPA_RANGE_DECRYPTED,
    MAP_GPA_RANGE_ENCRYPTED,
)
from guestemu.checks.lost import LOST_DEFINED, LOST_STRICT
from guestemu.migration.host_ops import HOST_OPS
from guestemu.migration.model.notation import format_order, format_script
from guestemu.migration.model.order_model import START_TOKEN
from guestemu.migration.model.rules import Rules
from guestemu.migration.model.steps import Chunk, GuestStep, Order, Pte, StatusHypercall, Write
from guestemu.migration.model.witness import PassStep, Stop, Witness, format_witness
from guestemu.program.ops import Op, OpKind, canonical_op
from guestemu.program.program import Expectation, Header, Program

FIRST_BYTE: Final = 0x10
"""A write of token N fills the page with FIRST_BYTE + N: 0x10 to 0x73, never 0."""

PAGE: Final = 0
"""The page's index in region D."""


class LinkKind(enum.StrEnum):
    """How private pages travel: re-encrypted by the hosts, as packets of the SEV firmware, or by
    migration handlers in mirror VMs."""

    PLAIN = "plain"
    FIRMWARE = "firmware"
    HANDLER = "handler"


_STARTS: Final = {
    LinkKind.PLAIN: Op(OpKind.MIGRATE_START, (1, 0), page=PAGE),
    LinkKind.FIRMWARE: Op(OpKind.MIGRATE_START, (1, 1), page=PAGE),
    LinkKind.HANDLER: Op(OpKind.MIGRATE_HANDLER, (1,), page=PAGE),
}


def guest_op(step: GuestStep) -> Op:
    """The operation of a guest's step."""
    match step:
        case Pte(to_shared):
            return Op(OpKind.TOUCH_CBIT, (int(not to_shared),), page=PAGE)
        case StatusHypercall(to_shared):
            status = MAP_GPA_RANGE_DECRYPTED if to_shared else MAP_GPA_RANGE_ENCRYPTED
            arguments = (KVM_HC_MAP_GPA_RANGE, 0, 1, status, 0)
            return Op(OpKind.HYPERCALL, arguments, page=PAGE, has_page=True)
        case Chunk():
            raise InputError("explore: CH has no meaning on the machine; leave it out")
        case Write(token):
            return Op(OpKind.WRITE, (FIRST_BYTE + token, 0, PAGE_SIZE), page=PAGE)


def interleaving_ops(
    order: Order,
    steps: Iterable[GuestStep | PassStep | Stop],
    link: LinkKind = LinkKind.PLAIN,
) -> tuple[Op, ...]:
    """The program's operations; private pages travel by `link`."""
    ops = [guest_op(Write(START_TOKEN)), _STARTS[link]]
    for step in steps:
        if isinstance(step, PassStep):
            ops.append(HOST_OPS[step.step])
        elif isinstance(step, Stop):
            ops += (HOST_OPS[one] for one in order.steps)
            ops.append(Op(OpKind.MIGRATE_STOP))
        else:
            ops.append(guest_op(step))
    ops.append(Op(OpKind.READ, (0,), page=PAGE))
    return tuple(map(canonical_op, ops))


def check_rules(rules: Rules) -> None:
    """Raises `InputError` unless `rules` are those of G.2: the machine has no others."""
    if rules != Rules():
        raise InputError("explore: --rule has no meaning on the machine; leave it out")


def witness_program(witness: Witness, link: LinkKind = LinkKind.PLAIN) -> Program:
    """The replayable program of an interleaving, with the model's verdict as its expectation.

    Raises `InputError` for a witness under other rules than those of G.2.
    """
    scenario = witness.scenario
    check_rules(scenario.rules)
    ops = interleaving_ops(scenario.order, (moment.step for moment in witness.moments), link)
    verdict = witness.verdict
    last = len(ops) - 1
    found = [
        Expectation("violation", name, last)
        for name, is_lost in (
            (LOST_STRICT, verdict.lost_strict),
            (LOST_DEFINED, verdict.lost_defined),
        )
        if is_lost
    ]
    return Program(Header(), ops, tuple(found or [Expectation("violation", "none")]))


def witness_comment(witness: Witness) -> str:
    """What the program is, for the top of its file."""
    scenario = witness.scenario
    number = "" if witness.rank is None else f", losing interleaving {witness.rank}"
    return (
        f"Order {format_order(scenario.order.steps)}, script "
        f"{format_script(scenario.script.steps)}{number}:\n{format_witness(witness)}"
    )
