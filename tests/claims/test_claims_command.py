# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu claims` and docs/claims.md."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import msgspec
import pytest

from guestemu.cli.main import main
from guestemu.study.claims import debate, kernels, rewriting
from guestemu.study.claims.claim import Claim, Lab, Need
from guestemu.study.claims.debate import Decided, all_claims
from guestemu.study.claims.page import page, section
from guestemu.study.claims.result import ClaimResult, ClaimVerdict, Evidence

Captured = pytest.CaptureFixture[str]
PAGE = (Path(__file__).parents[2] / "docs" / "claims.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real kernels are for tests/linux."""
    monkeypatch.setattr(kernels, "found_kernels", tuple)


@pytest.fixture
def unforeseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """C7's experiment gives something that nobody foresaw; C4 is interrupted."""

    def shrug(_lab: Lab) -> ClaimResult:
        return ClaimResult(ClaimVerdict.UNDECIDED, (Evidence("what", "?"),), ("order model",))

    def interrupt(_lab: Lab) -> ClaimResult:
        raise KeyboardInterrupt

    def changed(claim: Claim) -> Claim:
        experiments = {"C7": shrug, "C4": interrupt}
        experiment = experiments.get(claim.ident, claim.experiment)
        return msgspec.structs.replace(claim, experiment=experiment)

    claims = tuple(map(changed, rewriting.CLAIMS))
    monkeypatch.setattr(debate, "all_claims", lambda: claims)


def test_json_is_the_contract(capsys: Captured) -> None:
    assert main(["claims", "C27", "c24", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [claim["id"] for claim in found["claims"]] == ["C24", "C27"]
    first, second = found["claims"]
    assert {"id", "text", "verdict", "evidence"} <= set(first)
    assert second["verdict"] == "refuted"
    assert second["condition"] == ""
    assert first["condition"].startswith("the kernel keeps a bitmap that grows")
    assert first["evidence"][0]["value"] == 2147483656


def test_evidence_and_witness_are_printed_for_a_claim_that_is_named(capsys: Captured) -> None:
    assert main(["claims", "C2"]) == 0
    out = capsys.readouterr().out
    assert "    refuted\n" in out
    assert "order 2 (enc, auto, send), script S1: 7 losing interleavings" in out
    assert "$ guestemu explore --order 2 --script S1 --witness 0" in out


def test_an_unknown_claim_is_bad_input(capsys: Captured) -> None:
    assert main(["claims", "C99"]) == 2
    assert "no claim 'C99'; did you mean C9?" in capsys.readouterr().err


def test_two_forms_at_once_are_bad_usage(capsys: Captured) -> None:
    assert main(["claims", "C2", "--json", "--markdown"]) == 2
    assert "give one" in capsys.readouterr().err


def test_a_claim_about_kernels_needs_one(capsys: Captured) -> None:
    assert main(["claims", "C13", "C2"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "C13 needs a kernel image; run `guestemu kernel fetch`" in captured.err


def test_without_a_kernel_the_rest_runs_and_says_so(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tuple(claim for claim in all_claims() if claim.ident in {"C23", "C13"})
    monkeypatch.setattr(debate, "all_claims", lambda: few)
    assert main(["claims"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].startswith("C23 ")
    assert "C13" not in captured.out
    assert "not tested without a kernel image: C13" in captured.err
    assert main(["claims", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == [{"id": "C13", "needs": "kernel"}]


@pytest.mark.usefixtures("unforeseen")
def test_an_outcome_that_nobody_foresaw_is_a_finding(capsys: Captured) -> None:
    assert main(["claims", "C6", "C7"]) == 1
    assert "undecided" in capsys.readouterr().out


def test_ctrl_c_waits_for_the_end_of_an_experiment(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_lab: Lab) -> ClaimResult:
        os.kill(os.getpid(), signal.SIGINT)
        return ClaimResult(ClaimVerdict.CONFIRMED, (Evidence("what", 1),), ("order model",))

    claims = tuple(
        msgspec.structs.replace(claim, experiment=interrupted) for claim in rewriting.CLAIMS
    )
    monkeypatch.setattr(debate, "all_claims", lambda: claims)
    assert main(["claims", "--json"]) == 130
    found = json.loads(capsys.readouterr().out)
    assert [claim["id"] for claim in found["claims"]] == [claims[0].ident]


@pytest.mark.usefixtures("unforeseen")
def test_ctrl_c_keeps_what_was_found(capsys: Captured) -> None:
    assert main(["claims", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["claims"] == []


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(
            claim,
            id=claim.ident,
            marks=[pytest.mark.soak] if claim.ident == "C1" else [],
        )
        for claim in all_claims()
        if claim.needs is Need.NOTHING
    ],
)
def test_the_page_shows_what_the_experiment_gives(
    claim: Claim, decided: dict[str, Decided]
) -> None:
    text = PAGE.partition(f"## {claim.ident}\n")[2].partition("\n## ")[0]
    if "linux:" in text:  # with figures of kernels, which are not here
        verdict = decided[claim.ident].result.verdict
        assert f"**{verdict.value}**" in text
    else:
        assert "\n".join(section(decided[claim.ident])) in PAGE


def test_the_page_has_every_claim_and_no_other() -> None:
    headings = [line[3:] for line in PAGE.splitlines() if line.startswith("## ")]
    assert headings == [claim.ident for claim in all_claims()]
    for claim in all_claims():
        assert f"> {claim.text}\n" in PAGE
    assert PAGE.startswith(page((), ())[:200])
