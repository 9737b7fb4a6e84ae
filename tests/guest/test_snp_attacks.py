# SPDX-License-Identifier: GPL-2.0-or-later
"""A hypervisor that injects events and attacks pages at any instruction of its SNP guest (N55): the
guest goes on right, ends itself or stands still, and the check sees where it does not."""

from __future__ import annotations

import pytest

from guestemu.campaign.planted.catalogue import BUGS
from guestemu.campaign.seeds import seed_inputs
from guestemu.campaign.targets import find_target
from guestemu.checks import page_states
from guestemu.checks.page_states import CONTENT, PLAINTEXT
from guestemu.checks.psc import NO_VMSA
from guestemu.guest.base import GuestOops
from guestemu.guest.linux.snp import Snp
from guestemu.machine.cipher import PageCipher
from guestemu.machine.exits import RunFailed, Terminated
from guestemu.machine.page_attacks import ATTACKS
from guestemu.machine.rmp import PLAIN, VALIDATED, Rmp
from guestemu.program.binary import OpDecoder
from guestemu.program.ops import OpKind
from guestemu.program.program import Header, SevKind
from guestemu.program.text import parse_text
from guestemu.runner.testbed import Outcome, Testbed, build_testbed

HOST = "hostile-hypervisor:far"
ROUND_TRIP = ("set_memory_decrypted D[3] pages=3", "set_memory_encrypted D[3] pages=3")
LENGTH = 1700
"""Instructions of a round trip, and a few more."""


def run_on(testbed: Testbed, *lines: str) -> Outcome:
    text = f"guestemu-program 1\nguest snippet:6.12\nsev snp\nhost {HOST}\n---\n"
    return testbed.run(parse_text(text + "\n".join(lines) + "\n", "test").ops)


@pytest.fixture(scope="module")
def testbed() -> Testbed:
    return build_testbed(Header(guest="snippet:6.12", sev=SevKind.SEV_SNP, host=HOST, budget=6_000))


def names(outcome: Outcome) -> set[str]:
    return {violation.check for violation in outcome.violations}


def test_an_interrupt_anywhere_changes_nothing(testbed: Testbed) -> None:
    for after in range(0, LENGTH, 23):
        outcome = run_on(testbed, f"hypervisor_inject vector=0xec after={after}", *ROUND_TRIP)
        assert [one.outcome.value for one in outcome.results] == [0, 0, 0], after
        assert outcome.is_ok


def test_a_vc_anywhere_is_the_guests_end(testbed: Testbed) -> None:
    """The snippet has no instruction that needs #VC, so every one is the hypervisor's."""
    reached = 0
    for after in range(0, LENGTH, 97):
        outcome = run_on(
            testbed, f"hypervisor_inject vector=29 code=0x72 after={after}", *ROUND_TRIP
        )
        ends = [one.outcome.end for one in outcome.results if one.outcome.end is not None]
        if not ends:
            continue
        reached += 1
        assert isinstance(ends[0], GuestOops)
        assert (ends[0].vector, ends[0].error_code) == (29, 0x72)
    assert reached > 10


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_anywhere_is_survived(testbed: Testbed, name: str) -> None:
    number = list(ATTACKS).index(name)
    for after in range(0, LENGTH, 151):
        attack = f"hypervisor_page D[4] attack={number} after={after}"
        outcome = run_on(testbed, "write D[4] value=3", attack, *ROUND_TRIP, "read D[4]")
        ends = [one.outcome.end for one in outcome.results]
        assert all(
            end is None or isinstance(end, Terminated | RunFailed | GuestOops) for end in ends
        )
        assert outcome.is_ok, (after, outcome.violations)


def test_orders_end_with_the_program(testbed: Testbed) -> None:
    run_on(testbed, "hypervisor_inject vector=29 after=60000")
    assert run_on(testbed, *ROUND_TRIP, *ROUND_TRIP).is_ok
    assert run_on(testbed, "read D[3]").results[0].outcome.end is None


def test_two_orders_both_come(testbed: Testbed) -> None:
    outcome = run_on(
        testbed,
        "hypervisor_inject vector=0x40 after=30",
        "hypervisor_page D[4] attack=0 after=60",
        "write D[4] value=3",
    )
    assert isinstance(outcome.results[2].outcome.end, GuestOops)
    assert outcome.results[2].outcome.end.error_code == 0x404


def test_a_double_validation_is_seen_with_its_content() -> None:
    """N23: a handler of #VC 0x404 that validates whatever it finds."""
    bed = BUGS["N23"].planted.build()
    attack = "hypervisor_page D[4] attack=3"
    outcome = run_on(bed, "write D[4] value=3", attack, "read D[5]", "read D[4]")
    assert names(outcome) == {"page-states", CONTENT}


def test_an_alias_that_could_be_read_is_seen(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Snp, "reads_plain", lambda _snp, _gfn: True)
    alias = f"hypervisor_page D[4] attack={list(ATTACKS).index('alias')}"
    assert names(run_on(testbed, alias, "write D[4] value=3")) == {PLAINTEXT}


def test_an_rmp_that_forgets_the_address_lets_an_alias_read(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rmp, "_is_own", lambda _rmp, entry, _gfn: entry.assigned)
    alias = f"hypervisor_page D[4] attack={list(ATTACKS).index('alias')}"
    outcome = run_on(testbed, alias, "write D[4] value=3")
    assert PLAINTEXT in names(outcome)
    assert "GPA 0x405000 reads" in outcome.violations[0].message


def test_a_host_that_reads_plaintext_is_seen(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_states, "host_access", lambda _entry, is_write: PLAIN)
    second = f"hypervisor_page D[4] attack={list(ATTACKS).index('assign-second')}"
    assert names(run_on(testbed, second, "write D[4] value=3")) == {PLAINTEXT}


def test_memory_without_encryption_is_seen(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PageCipher, "encrypt", lambda _cipher, _gfn, data: bytes(data))
    second = f"hypervisor_page D[4] attack={list(ATTACKS).index('assign-second')}"
    outcome = run_on(testbed, second, "write D[4] value=3")
    assert [v.message for v in outcome.violations] == [
        "GPA 0x404000: an access with C=0 reads the plaintext of a validated page"
    ]


def test_states_after_an_interrupted_round_trip(testbed: Testbed) -> None:
    run_on(testbed, "hypervisor_inject vector=0x40 after=800", *ROUND_TRIP)
    snp = testbed.guest.snp.snp
    assert {snp.rmp.state(gfn) for gfn in range(0x403, 0x406)} == {VALIDATED}


def test_a_caller_that_encrypts_a_private_page_is_not_the_guests_defect(testbed: Testbed) -> None:
    remap = f"hypervisor_page D[4] attack={list(ATTACKS).index('remap')}"
    assert run_on(testbed, remap, "set_memory_encrypted D[4] pages=1", "read D[4]").is_ok


def test_a_frame_in_use_stays_a_vmsa(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor whose RMPADJUST untags a VMSA in use is found (N58)."""
    untag = ("rmpadjust D[5]", "ap_creation D[5]", "rmpadjust D[5] attributes=1")
    assert not run_on(testbed, *untag).violations
    monkeypatch.setattr(Rmp, "is_in_use", lambda _rmp, _gfn: False)
    assert names(run_on(testbed, *untag)) == {NO_VMSA}


@pytest.mark.parametrize("name", ["psc", "hostile-host"])
def test_snp_campaigns_begin_with_vmsa_pages(name: str) -> None:
    target = find_target(name)
    kinds = target.kinds
    decoder = OpDecoder(1, False, kinds)
    programs = [
        decoder.decode(data) for data in seed_inputs(["flows"], target, target.header, kinds)
    ]
    firsts = [[op.kind for op in ops[:2]] for ops in programs]
    assert firsts.count([OpKind.RMPADJUST, OpKind.AP_CREATION]) >= 8
    followers = {op.kind for ops in programs for op in ops[2:] if ops[0].kind is OpKind.RMPADJUST}
    assert {"psc": OpKind.PSC, "hostile-host": OpKind.HYPERVISOR_PAGE}[name] in followers
