# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of threats: each cell is a program that ran; who noticed, what was lost."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

import msgspec

from guestemu.abi.addresses import to_signed
from guestemu.abi.errno import EIO
from guestemu.host.mirror.operations import HasMirrorWorld
from guestemu.program.ops import Op, OpKind, canonical_op
from guestemu.program.program import Header, Program
from guestemu.runner.testbed import Outcome, Testbed, build_testbed
from guestemu.study.mirror.cases import Naming
from guestemu.study.mirror.table import GUEST, annotated, fill_of
from guestemu.study.mirror.threats import Threat


class ThreatWitness(enum.StrEnum):
    """Who of those at the migration noticed an attack."""

    HANDLER = "handler"
    """It refused: its answer to the command is an error."""
    VMM = "VMM"
    """It got no answer in time, or the vCPU stopped; the migration ends with -EIO (F13)."""
    NOBODY = "nobody"


class ThreatCell(msgspec.Struct, frozen=True):
    """One cell. `lost`: what the guest does not have any more at the destination, empty for
    nothing; `program`: the witness as text."""

    handlers: str
    threat: str
    actor: str
    noticed_by: ThreatWitness
    lost: str
    program: str


def threat_program(naming: Naming, threat: Threat) -> Program:
    """The program of a cell: what leads to the attack, the attack, the guest's loads."""
    ops = [
        Op(OpKind.MIRROR_SETUP, (int(naming.proposal), int(threat.other_build))),
        *threat.before,
        *threat.attack,
        *(Op(OpKind.MIRROR_LOAD, (load.place, load.page)) for load in threat.loads),
    ]
    header = Header(guest=GUEST, host=naming.host, switches=naming.switches)
    return Program(header, tuple(map(canonical_op, ops)))


def _noticed(threat: Threat, outcome: Outcome, has_stopped: bool) -> ThreatWitness:
    """A handler that has stopped was noticed by the VMM that waited for it."""
    first = 1 + len(threat.before)
    results = [
        to_signed(result.outcome.value or 0, 64)
        for result in outcome.results[first : first + len(threat.attack)]
    ]
    if all(result >= 0 for result in results):
        return ThreatWitness.NOBODY
    return ThreatWitness.VMM if has_stopped and -EIO in results else ThreatWitness.HANDLER


def _lost(threat: Threat, outcome: Outcome, damaged: Iterable[int]) -> str:
    pages = [f"{address:#x}" for address in damaged]
    if pages:
        return f"the destination's handler ({', '.join(pages)})"
    loaded = outcome.results[len(outcome.results) - len(threat.loads) :]
    for load, result in zip(threat.loads, loaded, strict=True):
        found = result.outcome.value or 0
        if found != fill_of(load.value):
            return f"a page: the guest loads {found:#x}, it wrote {fill_of(load.value):#x}"
    return ""


def threat_cells(handlers: Iterable[Naming], threats: Iterable[Threat]) -> Iterator[ThreatCell]:
    """Runs every cell, handler by handler. Raises what `build_testbed` raises.

    Where an attack was noticed nothing counts as lost: the migration fails and the guest is still
    where it was.
    """
    rows = tuple(threats)
    for naming in handlers:
        testbed: Testbed | None = None
        try:
            for threat in rows:
                program = threat_program(naming, threat)
                testbed = testbed or build_testbed(program.header)
                outcome = testbed.run(program.ops)
                yield _cell(naming, threat, program, outcome, testbed)
        finally:
            if testbed is not None:
                testbed.close()


def _cell(
    naming: Naming, threat: Threat, program: Program, outcome: Outcome, testbed: Testbed
) -> ThreatCell:
    host = testbed.host
    assert isinstance(host, HasMirrorWorld)  # HANDLERS name such hosts only
    world = host.mirror_world()
    noticed = _noticed(threat, outcome, bool(world.source.stop or world.target.stop))
    lost = _lost(threat, outcome, world.target.damaged()) if noticed is ThreatWitness.NOBODY else ""
    comment = f"Handlers: {naming.name}; {threat.actor}: {threat.name}; noticed by {noticed}."
    places = range(1 + len(threat.before), len(program.ops))
    text = annotated(program, outcome, places, comment)
    return ThreatCell(naming.name, threat.name, threat.actor, noticed, lost, text)
