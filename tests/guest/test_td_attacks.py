# SPDX-License-Identifier: GPL-2.0-or-later
"""A hostile VMM around a TD: pages that it takes, replaces and blocks, events that it injects, at
any instruction. The guest ends, waits or goes on with what it wrote; a guest that accepts each page
twice goes on with an empty page."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errors import InputError
from guestemu.abi.regions import Region
from guestemu.campaign.near_misses import near_misses
from guestemu.campaign.planted.catalogue_td import TD_BUGS
from guestemu.campaign.targets import find_target
from guestemu.checks.page_states import CONTENT
from guestemu.checks.td import TWICE
from guestemu.guest.base import GuestOops
from guestemu.host.kvm.map_gpa_lies import MAP_GPA_LIES
from guestemu.host.registry import load_host
from guestemu.machine.exits import BudgetExhausted, Shutdown
from guestemu.machine.sept import ACCEPTED, BLOCKED, PENDING, SHARED, SecureEpt
from guestemu.machine.sept_attacks import SEPT_ATTACKS
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header, SevKind
from guestemu.runner.testbed import Testbed, build_testbed

PAGE = 3
VALUE = 0x5A
SIZE = 8
WORD = int.from_bytes(bytes([VALUE]) * SIZE, "little")
NOW = 0
ATTACKS = {name: number for number, name in enumerate(SEPT_ATTACKS)}
DECRYPT = Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), Region.D, PAGE)
ENCRYPT = Op(OpKind.SET_MEMORY_ENCRYPTED, (1, 0), Region.D, PAGE)
WRITE = Op(OpKind.WRITE, (VALUE, 0, SIZE), Region.D, PAGE)
READ = Op(OpKind.READ, (0,), Region.D, PAGE)
NMI, INTERRUPT, PAGE_FAULT = 2, 0x40, 14
LIAR = "hostile-hypervisor:"
DECEIVED = {"mapgpa-undone", "mapgpa-half", "mapgpa-skip"}
"""Lies after which the caller reads success."""


def attack(name: str, after: int = NOW) -> Op:
    return Op(OpKind.HYPERVISOR_PAGE, (ATTACKS[name], after), Region.D, PAGE)


def wait(events: int) -> Op:
    return Op(OpKind.HYPERVISOR_WAIT, (events,))


def inject(vector: int, after: int = NOW) -> Op:
    return Op(OpKind.HYPERVISOR_INJECT, (vector, 0, after))


@pytest.fixture(scope="module")
def testbed() -> Testbed:
    return build_testbed(find_target("hostile-host:tdx").header)


@pytest.mark.parametrize(
    ("names", "state"),
    [
        (("remove",), SHARED),
        (("replace",), PENDING),
        (("block",), ACCEPTED | BLOCKED),
        (("block", "unblock"), ACCEPTED),
    ],
)
def test_what_an_attack_leaves_in_the_secure_ept(names: tuple[str, ...], state: int) -> None:
    sept = SecureEpt(1)
    for name in names:
        SEPT_ATTACKS[name].carry_out(sept, 0)
    assert sept.dump() == bytes([state])


@pytest.mark.parametrize("name", ["remove", "replace"])
def test_a_guest_ends_at_the_first_access_to_a_page_that_was_taken(
    testbed: Testbed, name: str
) -> None:
    outcome = testbed.run([WRITE, attack(name), READ])
    end = outcome.results[-1].outcome.end
    assert isinstance(end, Shutdown)
    assert "guest access before accepting" in end.reason
    assert not outcome.violations


def test_a_store_to_a_blocked_page_waits_until_it_is_unblocked(testbed: Testbed) -> None:
    outcome = testbed.run([attack("block"), WRITE, READ])
    assert outcome.results[-1].outcome.value == WORD
    assert not outcome.violations


def test_only_interrupts_and_the_nmi_come(testbed: Testbed) -> None:
    """The snippet has interrupts disabled and no handler for the NMI."""
    ends = [
        testbed.run([inject(vector), WRITE]).results[-1].outcome
        for vector in (INTERRUPT, PAGE_FAULT)
    ]
    assert [end.end for end in ends] == [None, None]
    end = testbed.run([inject(NMI), WRITE]).results[-1].outcome.end
    assert isinstance(end, GuestOops)
    assert end.vector == NMI


def test_an_event_that_kills_the_holder_of_a_lock_is_no_loop_of_the_guests(
    testbed: Testbed,
) -> None:
    """The first decryption splits a leaf; the second is hit inside of its lock."""
    outcome = testbed.run(
        [
            Op(OpKind.SET_MEMORY_DECRYPTED, (12, 0), Region.D, 676),
            inject(NMI, 0x445),
            Op(OpKind.SET_MEMORY_DECRYPTED, (3, 0), Region.D, 537),
            Op(OpKind.SET_MEMORY_ENCRYPTED, (3, 0), Region.D, 676),
        ]
    )
    hit, waits = (result.outcome.end for result in outcome.results[2:])
    assert isinstance(hit, GuestOops)
    assert isinstance(waits, BudgetExhausted)
    assert not outcome.violations


def violations(testbed: Testbed, after: range) -> set[str]:
    """Of an encryption during which the page is replaced."""
    return {
        violation.check
        for number in after
        for violation in testbed.run([DECRYPT, attack("replace", number), ENCRYPT]).violations
    }


def test_a_page_that_is_accepted_twice_can_be_replaced_between(testbed: Testbed) -> None:
    during = range(100, 220, 8)
    (twice,) = (bug for bug in TD_BUGS if bug.id == "T14")
    assert TWICE in violations(twice.planted.build(), during)
    assert violations(testbed, during) == set()


def test_a_search_sees_in_which_state_an_attack_met_its_page(testbed: Testbed) -> None:
    """Shared at the begin of an encryption, accepted behind its end; another page is no hit."""
    seen: list[set[int]] = []
    other = Op(OpKind.HYPERVISOR_PAGE, (ATTACKS["block"], NOW), Region.D, PAGE + 1)
    testbed.observe = lambda view: seen.append({*near_misses(view, False)})
    try:
        for hostile in (attack("block"), attack("block", 1 << 14), other):
            testbed.run([DECRYPT, hostile, ENCRYPT, READ])
    finally:
        testbed.observe = None
    early, late, missed = seen[2], seen[6], seen[10]
    read_early, read_late = seen[3], seen[7]
    assert early - late
    assert early - missed
    assert read_early != read_late


def test_a_guest_that_accepts_an_empty_page_goes_on_with_what_it_did_not_write(
    testbed: Testbed,
) -> None:
    accept = Op(OpKind.PAGE_ACCEPT, (0, 0), Region.D, PAGE)
    outcome = testbed.run([WRITE, attack("replace"), accept, READ])
    assert [(found.check, found.op) for found in outcome.violations] == [(CONTENT, 3)]
    give = Op(OpKind.MAP_GPA, (PAGE_SIZE, 0, 0), Region.D, PAGE)
    take = Op(OpKind.MAP_GPA, (PAGE_SIZE, 0, 1), Region.D, PAGE)
    outcome = testbed.run([WRITE, give, take, accept, READ])
    assert outcome.results[-1].outcome.value == 0
    assert not outcome.violations  # it gave the page away by itself


def test_the_next_program_starts_unattacked(testbed: Testbed) -> None:
    td = testbed.guest.td
    assert td is not None
    testbed.run([attack("remove"), WRITE])
    assert td.attacked
    assert testbed.run([WRITE, READ]).results[-1].outcome.value == WORD
    assert not td.attacked


@pytest.mark.parametrize("lie", MAP_GPA_LIES)
def test_a_vmm_that_lies_gets_an_error_or_a_page_that_is_the_guests(lie: str) -> None:
    """After any lie the caller reads -EIO, or what it uses as shared holds no private content."""
    testbed = build_testbed(Header(guest="snippet:6.12", sev=SevKind.TDX, host=LIAR + lie))
    many = Op(OpKind.SET_MEMORY_DECRYPTED, (4, 0), Region.D, PAGE)
    outcome = testbed.run([WRITE, many, READ])
    converted, seen = (result.outcome.value for result in outcome.results[1:])
    assert converted == (0 if lie in DECEIVED else -5)
    assert seen != WORD
    assert not outcome.violations
    testbed.close()


@pytest.mark.parametrize(("number", "lie"), [*enumerate(MAP_GPA_LIES)])
def test_a_program_can_have_its_vmm_lie(testbed: Testbed, number: int, lie: str) -> None:
    """The same results as under the host of that name; the next program's VMM is honest."""
    many = Op(OpKind.SET_MEMORY_DECRYPTED, (4, 0), Region.D, PAGE)
    outcome = testbed.run([Op(OpKind.HYPERVISOR_LIE, (number,)), WRITE, many, READ])
    assert outcome.results[2].outcome.value == (0 if lie in DECEIVED else -5)
    assert outcome.results[3].outcome.value != WORD
    assert not outcome.violations
    assert testbed.run([WRITE, many, WRITE, READ]).results[-1].outcome.value == WORD


def test_a_lie_takes_no_judgement_from_the_program_before_it() -> None:
    """Entries that are private before their pages are accepted (T16) are found until the VMM
    lies, not after it."""
    (early,) = (bug for bug in TD_BUGS if bug.id == "T16")
    (attacked,) = (bug for bug in TD_BUGS if bug.id == "T14b")
    configuration = msgspec.structs.replace(early.planted, header=attacked.planted.header)
    testbed = configuration.build()
    lie = Op(OpKind.HYPERVISOR_LIE, (0,))
    found = testbed.run([DECRYPT, ENCRYPT, lie]).violations
    assert [violation.check for violation in found] == ["td"]
    assert not testbed.run([lie, DECRYPT, ENCRYPT]).violations
    testbed.close()


def test_an_attack_may_count_from_an_event_of_the_conversion(testbed: Testbed) -> None:
    """MapGPA and ACCEPT are two events: behind the second the page holds what the guest wrote, and
    a replacement ends the guest; behind the first it is pending already."""
    for events, states in ((1, {PENDING}), (2, {ACCEPTED})):
        met = set()
        for act in ("block", "replace"):
            testbed.run([DECRYPT, wait(events), attack(act), ENCRYPT])
            td = testbed.guest.td
            assert td is not None
            met |= {state for state in range(4) if td.met >> 4 * ATTACKS[act] & 1 << state}
        assert met == states
    outcome = testbed.run([wait(3), attack("replace"), DECRYPT])
    assert testbed.guest.td is not None
    assert not testbed.guest.td.attacked, "a decryption has one event"
    assert outcome.results[-1].outcome.value == 0
    testbed.run([wait(3), attack("block"), DECRYPT, ENCRYPT])
    assert not testbed.guest.td.met & 0xF << 4 * ATTACKS["replace"], (
        "a program does not wait for the next one's events"
    )


def test_only_the_next_act_waits(testbed: Testbed) -> None:
    testbed.run([wait(3), attack("block"), attack("replace"), DECRYPT])
    td = testbed.guest.td
    assert td is not None
    assert td.met == 1 << 4 * ATTACKS["replace"] + ACCEPTED


def test_every_lie_and_attack_has_a_program() -> None:
    programs = {path.stem for path in Path(__file__).parents[2].glob("corpora/tdx/*.prog")}
    assert {f"lie-{name.removeprefix('mapgpa-')}" for name in MAP_GPA_LIES} <= programs
    assert {f"attack-{name}" for name in SEPT_ATTACKS} <= programs


def test_a_lie_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="no lie 'mapgpa-stal'; did you mean mapgpa-stall"):
        load_host(LIAR + "mapgpa-stal")


def test_the_target_of_a_td_has_all_acts_of_the_snp_guests() -> None:
    target, snp = find_target("hostile-host:tdx"), find_target("hostile-host")
    assert (target.header.sev, snp.header.sev) == (SevKind.TDX, SevKind.SEV_SNP)
    assert snp.kinds - {OpKind.RMPADJUST, OpKind.AP_CREATION} < target.kinds
    assert OpKind.HYPERVISOR_LIE in target.kinds
