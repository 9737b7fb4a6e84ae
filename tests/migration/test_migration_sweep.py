# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that is migrated before every instruction of memset; set_memory_decrypted; memset ends
as one that never moved: registers, hypercalls, host record, page tables, defined content."""

from __future__ import annotations

import pytest
from migration_world import snippet
from sweep import Sweep

from guestemu.abi.regions import Region
from guestemu.migration.handler_link import HandlerSender
from guestemu.migration.links import PlainSender


def conversion(
    region: Region, size: int, generation: str = "6.1", by_handler: bool = False
) -> Sweep:
    guest = snippet(None, generation)
    gva = guest.gva(region, 1)
    calls = [
        ("guest_memset", (gva, 0x11, size)),
        ("set_memory_decrypted", (gva, 1)),
        ("guest_memset", (gva, 0x42, size)),
    ]
    return Sweep(calls, {guest.gpa(region, 1) >> 12: size}, generation, by_handler)


def test_at_every_instruction_of_a_conversion() -> None:
    sweep = conversion(Region.D, 4096)
    assert sweep.run() == []
    assert sweep.points > 1000


@pytest.mark.parametrize("generation", ["2020", "6.12"])
def test_other_generations_of_the_guest(generation: str) -> None:
    sweep = conversion(Region.D, 64, generation)
    assert sweep.run() == []
    assert sweep.points > 200


def test_while_a_large_leaf_is_split() -> None:
    """The new page table is filled before it is linked: it moves although nothing points to it."""
    sweep = conversion(Region.L, 64)
    assert sweep.run(every=3) == []
    assert sweep.points > 500


@pytest.mark.parametrize("region", [Region.D, Region.L])
def test_through_migration_handlers(region: Region) -> None:
    sweep = conversion(region, 64, by_handler=True)
    assert sweep.run(every=1 if region is Region.D else 7) == []
    assert sweep.points > 200


def test_a_status_that_is_not_asked_for_shows_through_handlers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F15: whatever is exported comes back as C=1 reads it."""
    send = HandlerSender.send
    monkeypatch.setattr(HandlerSender, "send", lambda self, gfn, _status: send(self, gfn, True))
    found = conversion(Region.D, 64, by_handler=True).run(every=5)
    assert found
    assert all(line.startswith("call 2") and line.endswith("frame 0x401") for line in found)


def test_there_and_back() -> None:
    guest = snippet()
    gva = guest.gva(Region.D, 1)
    calls = [
        ("set_memory_decrypted", (gva, 1)),
        ("guest_memset", (gva, 0x42, 64)),
        ("set_memory_encrypted", (gva, 1)),
        ("guest_memset", (gva, 0x43, 64)),
    ]
    sweep = Sweep(calls, {guest.gpa(Region.D, 1) >> 12: 64})
    assert sweep.run() == []


def test_a_wrong_status_shows_in_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Always sent as private: only stops after the first shared store lose something."""
    send = PlainSender.send
    monkeypatch.setattr(PlainSender, "send", lambda self, gfn, _status: send(self, gfn, True))
    sweep = conversion(Region.D, 64)
    found = sweep.run()
    assert found
    assert all(line.startswith("call 2") and line.endswith("frame 0x401") for line in found)
