# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that went back to its first state answers as a new one."""

from __future__ import annotations

import random

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.host.firmware.checkpoint import Checkpoint
from guestemu.host.firmware.host import SevFirmwareHost
from guestemu.host.firmware.world import CMD, DATA, GUEST_PAGES, GUESTS, SevWorld
from guestemu.host.mirror.host import MirrorHost
from guestemu.program.generate import generate_ops
from guestemu.program.ops import SEV_SPECS, Op, OpKind
from guestemu.program.program import Header

FRAMES = 1024
KINDS = frozenset(SEV_SPECS) | {OpKind.MIRROR_CONTEXT}


def answers(host: MirrorHost, ops: tuple[Op, ...]) -> list[tuple[int, int]]:
    does = host.operations()
    return [(does[op.kind](*op.arguments), host.state) for op in ops]


def test_a_restored_host_answers_as_a_new_one() -> None:
    rng = random.Random(1)
    programs = [generate_ops(rng, Header(), KINDS, 6) for _ in range(40)]
    used = MirrorHost()
    used.reset(FRAMES)
    kinds_of_answers = set()
    for ops in programs:
        used.restore(FRAMES)
        fresh = MirrorHost()
        fresh.reset(FRAMES)
        found = answers(used, ops)
        assert found == answers(fresh, ops)
        assert used.sev_world().plain == fresh.sev_world().plain
        kinds_of_answers |= {answer for answer, _ in found}
    assert 0 in kinds_of_answers
    assert len(kinds_of_answers) > 4


def test_a_checkpoint_puts_back_everything_that_is_reached() -> None:
    host = SevFirmwareHost()
    host.reset(FRAMES)
    world = host.sev_world()
    before = memory_of(world), world.platform.random(8)
    checkpoint = Checkpoint(world)
    drawn = world.platform.random(8)
    world.ioctl(0, 0x10, 4096, 0, 4096)
    world.user.write(DATA, b"changed")
    world.warnings.append("a warning")
    world.platform.guests.clear()
    checkpoint.restore()
    assert (memory_of(world), world.warnings) == (before[0], [])
    assert world.platform.random(8) == drawn
    assert world.guest_state(0) != 0


def memory_of(world: SevWorld) -> bytes:
    read = world.user.read
    return read(GUESTS[0], GUEST_PAGES * PAGE_SIZE) + read(CMD, 0x80 * PAGE_SIZE)
