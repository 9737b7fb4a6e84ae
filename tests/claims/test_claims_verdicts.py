# SPDX-License-Identifier: GPL-2.0-or-later
"""Every claim that needs no kernel is decided as the research expects (G.3), with evidence."""

from __future__ import annotations

import shlex

import pytest

from guestemu.cli.main import main
from guestemu.program.text import parse_text
from guestemu.runner.testbed import build_testbed
from guestemu.study.claims.claim import Need
from guestemu.study.claims.debate import Decided, all_claims, find_claims
from guestemu.study.claims.result import ClaimResult, ClaimVerdict, decide

C, R, IF = ClaimVerdict.CONFIRMED, ClaimVerdict.REFUTED, ClaimVerdict.CONDITIONAL

EXPECTED = {
    "C1": IF,
    "C2": R,
    "C3": R,
    "C3b": IF,
    "C4": IF,
    "C5": IF,
    "C6": IF,
    "C7": C,
    "C9": C,
    "C10": IF,
    "C11": IF,
    "C14": IF,
    "C15": R,
    "C15b": IF,
    "C17": IF,
    "C18": C,
    "C19": C,
    "C20": IF,
    "C22": IF,
    "C23": R,
    "C24": IF,
    "C25": R,
    "C26": IF,
    "C27": R,
    "C28": R,
    "C29": IF,
    "C30": R,
    "C31": IF,
}
CHEAP = [claim for claim in all_claims() if claim.needs is Need.NOTHING]


@pytest.fixture
def results(decided: dict[str, Decided]) -> dict[str, ClaimResult]:
    return {ident: each.result for ident, each in decided.items()}


@pytest.mark.parametrize("ident", [claim.ident for claim in CHEAP])
def test_a_claim_is_decided_as_expected(ident: str, results: dict[str, ClaimResult]) -> None:
    result = results[ident]
    if ident in EXPECTED:
        assert result.verdict is EXPECTED[ident]
    assert result.verdict is not ClaimVerdict.UNDECIDED
    assert result.evidence
    assert result.guests
    assert result.verdict is not IF or result.condition


def test_a_claim_that_rests_on_models_alone_names_what_could_decide_it(
    results: dict[str, ClaimResult],
) -> None:
    alone = {ident for ident, result in results.items() if result.is_model_only}
    named = {claim.ident for claim in all_claims() if claim.real_test}
    assert alone == named
    assert {"C6", "C14", "C31"} <= alone


def test_every_expected_claim_is_there() -> None:
    assert set(EXPECTED) <= {claim.ident for claim in CHEAP}
    idents = [claim.ident for claim in all_claims()]
    assert len(set(idents)) == len(idents)


def test_the_order_is_that_of_the_debate() -> None:
    idents = [claim.ident for claim in find_claims(())]
    assert idents.index("C3") + 1 == idents.index("C3b") == idents.index("C4") - 1
    assert [claim.ident for claim in find_claims(["c31", "C2"])] == ["C2", "C31"]


def test_the_figures_of_the_race_model(results: dict[str, ClaimResult]) -> None:
    values = [evidence.value for evidence in results["C2"].evidence]
    assert values == [7, 68, 0, 0, 60]  # the last: migrations that agree
    values = [evidence.value for evidence in results["C7"].evidence]
    assert values == [328, 104, 385, 786, 110, 338, 0, 60]


def test_a_witness_program_runs_and_shows_what_it_is_for(results: dict[str, ClaimResult]) -> None:
    shown: dict[str, set[str]] = {}
    for ident, result in results.items():
        for witness in result.witnesses:
            if witness.text.startswith("guestemu-program"):
                program = parse_text(witness.text, ident)
                bed = build_testbed(program.header)
                found = bed.run(program.ops).violations
                shown.setdefault(ident, set()).update(one.check for one in found)
                bed.close()
    assert {"C15", "C15b", "C17", "C19", "C20", "C26", "C28"} <= set(shown)
    assert shown["C15"] == {"lost_strict", "lost_defined", "mirror_exported", "mirror_lost"}
    assert shown["C15b"] == {"lost_strict"}
    assert "lost_defined" in shown["C19"]
    assert "lost_defined" in shown["C20"]
    assert "mirror_stopped" in shown["C29"]


def test_the_command_of_a_witness_shows_it(
    results: dict[str, ClaimResult], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = 0
    for result in results.values():
        for witness in result.witnesses:
            if witness.command.startswith("guestemu explore"):
                assert main(shlex.split(witness.command)[1:]) == 1
                assert capsys.readouterr().out.startswith(f"The page is lost: {witness.text}\n")
                seen += 1
    assert seen > 10


def test_a_verdict_is_one_condition_that_holds() -> None:
    assert decide(confirmed=True) is C
    assert decide(refuted=True) is R
    assert decide(conditional=True) is IF
    assert decide() is ClaimVerdict.UNDECIDED
    assert decide(confirmed=True, refuted=True) is ClaimVerdict.UNDECIDED
