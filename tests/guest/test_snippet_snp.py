# SPDX-License-Identifier: GPL-2.0-or-later
"""The snippet guest under SNP: page states in the kernel's order, what ends it (N17 to N19)."""

from __future__ import annotations

import pytest

from guestemu.abi.errors import InputError
from guestemu.abi.regions import Region
from guestemu.events.snp import PageStateChange, Validation
from guestemu.guest.base import GuestOops
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.machine.exits import MapGpaRange, RunFailed, Terminated
from guestemu.machine.rmp import ASSIGNED, SHARED, VALIDATED
from guestemu.program.program import Header, SevKind
from guestemu.program.text import parse_text
from guestemu.runner.testbed import Testbed, build_testbed


class Scene:
    def __init__(self) -> None:
        self.testbed: Testbed = build_testbed(Header(guest="snippet:6.12", sev=SevKind.SEV_SNP))
        guest = self.testbed.guest
        assert isinstance(guest, SnippetGuest)
        self.guest = guest
        assert guest.sev is not None
        assert guest.sev.snp is not None
        self.snp = guest.sev.snp

    def run(self, *lines: str) -> list[object]:
        """The operations' outcomes: a value, or the end of the guest."""
        text = "\n".join(["guestemu-program 1", "guest snippet:6.12", "sev snp", "---", *lines])
        outcome = self.testbed.run(parse_text(text + "\n", "test").ops)
        self.violations = [violation.check for violation in outcome.violations]
        ends = [result.outcome for result in outcome.results]
        return [end.end if end.value is None else end.value for end in ends]

    def steps(self) -> list[str]:
        """What happened in order, "flip" where page tables were written."""
        steps: list[str] = []
        writes = 0
        for event in self.snp.events:
            if not isinstance(event, Validation | PageStateChange):
                continue
            if event.table_writes > writes:
                steps.append("flip")
            writes = event.table_writes
            if isinstance(event, Validation):
                steps.append("accept" if event.validate else "rescind")
            else:
                steps.append("make private" if event.is_private else "make shared")
        return steps

    def states(self, region: Region, page: int, pages: int) -> set[int]:
        first = self.guest.gpa(region, page) >> 12
        return {self.snp.rmp.state(gfn) for gfn in range(first, first + pages)}


@pytest.fixture(scope="module")
def built() -> Scene:
    return Scene()


@pytest.fixture
def scene(built: Scene) -> Scene:
    built.testbed.reset()
    return built


def test_a_decryption_gives_the_page_up_first(scene: Scene) -> None:
    assert scene.run("set_memory_decrypted D[3] pages=2") == [0]
    assert scene.steps() == ["rescind", "rescind", "make shared"]
    assert scene.states(Region.D, 3, 2) == {SHARED}
    assert scene.states(Region.D, 5, 1) == {VALIDATED}
    assert scene.violations == []


def test_an_encryption_accepts_after_the_flip(scene: Scene) -> None:
    scene.guest.set_memory_decrypted(scene.guest.gva(Region.D, 3), 1)
    scene.snp.events.clear()
    scene.guest.machine.ram.table_writes()
    assert scene.guest.set_memory_encrypted(scene.guest.gva(Region.D, 3), 1).value == 0
    assert scene.steps() == ["flip", "make private", "accept"]
    assert scene.states(Region.D, 3, 1) == {VALIDATED}


def test_a_large_page_is_asked_for_whole_and_validated_in_pieces(scene: Scene) -> None:
    """guest_memfd has no large pages: PVALIDATE of 2 MiB is refused, 512 small ones follow."""
    assert scene.run("set_memory_decrypted L[512] pages=512") == [0]
    changes = [e.pages for e in scene.snp.events if isinstance(e, PageStateChange)]
    results = [e.result for e in scene.snp.events if isinstance(e, Validation)]
    assert changes == [512]
    assert results == [6, *[0] * 512]


def test_more_than_64_entries_are_several_requests(scene: Scene) -> None:
    assert scene.run("set_memory_decrypted D[0] pages=130") == [0]
    changes = [e.pages for e in scene.snp.events if isinstance(e, PageStateChange)]
    assert changes == [64, 64, 2]


def test_an_alias_is_asked_for_by_its_frames(scene: Scene) -> None:
    assert scene.run("set_memory_decrypted V[5] pages=2", "set_memory_encrypted V[5] pages=2") == [
        0,
        0,
    ]
    assert scene.violations == []
    assert scene.states(Region.D, 5, 2) == {VALIDATED}


def test_a_refusal_is_the_guests_end(scene: Scene) -> None:
    (_, end) = scene.run("answer value=-22 count=1", "set_memory_decrypted D[3] pages=1")
    assert isinstance(end, Terminated)
    assert (end.reason_set, end.reason_code) == (1, 1)
    assert scene.violations == []


def test_a_second_validation_is_the_guests_end(scene: Scene) -> None:
    (end,) = scene.run("set_memory_encrypted D[3] pages=1")
    assert isinstance(end, Terminated)
    assert end.reason_code == 2
    assert scene.violations == ["progress"]


def test_a_page_given_up_twice_is_a_page_fault(scene: Scene) -> None:
    """N31: PVALIDATE at a mapping without the C-bit."""
    first, second = scene.run(*["set_memory_decrypted D[3] pages=1"] * 2)
    assert first == 0
    assert isinstance(second, GuestOops)
    assert (second.vector, second.error_code) == (14, 9)


@pytest.mark.parametrize("stops", [False, True])
def test_an_access_with_the_wrong_bit_is_a_memory_fault(stops: bool) -> None:
    class Policy(MapGpaRangeHost):
        name = "policy"

        def map_gpa_range(self, call: MapGpaRange) -> int:
            if stops and call.origin == "memory-fault":
                return 14
            return super().map_gpa_range(call)

    header = Header(guest="snippet:6.12", sev=SevKind.SEV_SNP)
    testbed = build_testbed(header, Policy())
    text = "guestemu-program 1\nguest snippet:6.12\nsev snp\n---\n"
    text += "touch_cbit D[3] private=0\nwrite D[3] value=1 offset=0 size=8\n"
    outcome = testbed.run(parse_text(text, "test").ops)
    end = outcome.results[1].outcome.end
    assert isinstance(end, RunFailed) if stops else end is None
    testbed.close()


def test_states_after_a_hostile_release(scene: Scene) -> None:
    gfn = scene.guest.gpa(Region.D, 3) >> 12
    scene.snp.convert(gfn, 1, private=False)
    outcome = scene.guest.load(scene.guest.gva(Region.D, 3))
    assert isinstance(outcome.end, GuestOops)
    assert (outcome.end.vector, outcome.end.error_code) == (29, 0x404)
    assert scene.snp.rmp.state(gfn) == ASSIGNED


def test_other_generations_have_no_code_for_snp() -> None:
    with pytest.raises(InputError, match=r"take snippet:6\.12"):
        build_testbed(Header(guest="snippet:6.1", sev=SevKind.SEV_SNP))


def test_an_early_decryption_shares_the_page_for_its_copy(scene: Scene) -> None:
    """As 6.12 does it: shared, copied, private and validated again, then given up (snp_memcpy)."""
    assert scene.run("early_set_memory_decrypted D[8] size=4096") == [0]
    steps = [step for step in scene.steps() if step != "flip"]
    round_trip = ["rescind", "make shared", "make private", "accept"]
    assert steps == [*round_trip, "rescind", "make shared"]
    assert scene.states(Region.D, 8, 1) == {SHARED}
