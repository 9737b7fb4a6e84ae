# SPDX-License-Identifier: GPL-2.0-or-later
"""Claims about real kernels: decided on each as the research expects, and able to fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guestemu.migration.model.rules import Rules
from guestemu.study.claims import (
    coherent_memory,
    instruction_boundaries,
    migration_control,
    notification_failures,
)
from guestemu.study.claims.claim import Lab
from guestemu.study.claims.debate import decide_claim, find_claims
from guestemu.study.claims.kernels import CalledKernel
from guestemu.study.claims.page import section
from guestemu.study.claims.result import ClaimResult, ClaimVerdict

Image = Callable[[str], Path]


REFUSED = {
    "sev": "returns 0, nothing in the log: the page is lost",
    "es": "returns 0, nothing in the log: the page is lost",
    "snp": "the guest ends (terminates 1/1): nothing is lost",
    "tdx": "returns -5, WARN: the caller is told",
}


def lab_for(image_of: Image, series: str) -> Lab:
    image_of(series)
    return Lab((f"linux:{series}",))


def result_of(ident: str, lab: Lab) -> ClaimResult:
    return decide_claim(find_claims([ident])[0], lab).result


@pytest.mark.parametrize(
    ("ident", "verdict"),
    [
        ("C13", ClaimVerdict.REFUTED),
        ("C16", ClaimVerdict.CONFIRMED),
    ],
)
def test_a_claim_about_kernels(
    ident: str, verdict: ClaimVerdict, image_of: Image, series: str
) -> None:
    result = result_of(ident, lab_for(image_of, series))
    assert result.verdict is verdict
    assert result.guests == (f"linux:{series}",)


def test_the_size_hint_of_a_kernel_is_that_of_our_guests(image_of: Image, series: str) -> None:
    result = result_of("C28", lab_for(image_of, series))
    assert result.verdict is ClaimVerdict.REFUTED
    assert result.evidence[-1].value == "512 pages, hint 0"


@pytest.mark.soak  # test_kernel_sweep.py asks the same of the sweep itself
def test_no_instruction_of_a_conversion_loses_a_page(image_of: Image) -> None:
    lab = lab_for(image_of, "6.1")
    result = result_of("C8", lab)
    assert result.verdict is ClaimVerdict.CONDITIONAL
    anywhere, between, control = (evidence.value for evidence in result.evidence[:3])
    assert (anywhere, between) == (0, 0)
    assert isinstance(control, int)
    assert control > 0


@pytest.mark.parametrize("series", [pytest.param("6.1", marks=pytest.mark.soak), "6.12"])
def test_a_kernel_warns_of_a_failed_lookup_and_loses_the_rest(image_of: Image, series: str) -> None:
    lab = lab_for(image_of, series)
    warned = result_of("C19", lab)
    assert warned.verdict is ClaimVerdict.CONFIRMED
    refused = {evidence.name: str(evidence.value) for evidence in warned.evidence}
    for kind, words in REFUSED.items():
        name = f"linux:{series} as {kind}: the host refuses"
        assert (name not in refused) is (kind == "tdx" and series == "6.1")
        assert words in refused.get(name, words)
    single = result_of("C20", lab)
    assert single.verdict is ClaimVerdict.CONDITIONAL
    values = {evidence.name: evidence for evidence in single.evidence}
    lost = [values[f"linux:{series}: lookup fails at page {page} of 3"] for page in range(3)]
    assert [evidence.value for evidence in lost] == [3, 2, 1]
    assert all(evidence.how.startswith("WARN in the log") for evidence in lost)


@pytest.mark.parametrize("ident", ["C11", "C12"])
def test_real_drivers_are_evidence_and_the_page_has_it(ident: str, image_of: Image) -> None:
    decided = decide_claim(find_claims([ident])[0], lab_for(image_of, "6.12"))
    assert decided.result.verdict is ClaimVerdict.CONDITIONAL
    assert not decided.result.is_model_only
    rows = [line for line in section(decided) if line.startswith("| linux:6.12: ")]
    drivers = [row for row in rows if "I/O" in row]
    assert len(drivers) > 2
    page = (Path(__file__).parents[2] / "docs" / "claims.md").read_text().splitlines()
    assert [row for row in rows if row not in page] == []


def test_without_a_kernel_that_could_lose_the_page_c8_is_undecided() -> None:
    assert instruction_boundaries.between_steps(Lab()).verdict is ClaimVerdict.UNDECIDED
    lossy = Rules(final_pass_is_missing=True)
    assert instruction_boundaries.between_steps(Lab(), lossy).verdict is ClaimVerdict.CONFIRMED


@pytest.mark.soak  # test_kexec.py has the same on one kernel
def test_kexec_keeps_the_record_of_an_unaligned_entry(image_of: Image) -> None:
    result = result_of("C26", lab_for(image_of, "6.12"))
    assert result.verdict is ClaimVerdict.CONDITIONAL
    values = {evidence.name: evidence.value for evidence in result.evidence}
    assert values["linux:6.12: kexec, e820 entries of whole pages"] == 0
    assert values["linux:6.12: kexec, e820 entry at 0x4000800"] == 256


def test_an_msr_that_says_why_refutes_c16(image_of: Image, series: str) -> None:
    def saying(value: int) -> tuple[str, str, migration_control.Leave]:
        return (f"way {value}", "-", lambda kernel: (value,))

    lab = lab_for(image_of, series)
    ways = tuple(map(saying, range(3)))
    assert migration_control.one_bit(lab, ways).verdict is ClaimVerdict.REFUTED


def test_the_atomic_pools_grow_at_run_time(
    image_of: Image, series: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = lab_for(image_of, series)
    result = result_of("C12", lab)
    assert result.verdict is ClaimVerdict.CONDITIONAL
    grown = [one.value for one in result.evidence if "growth of the atomic pools" in one.name]
    assert len(grown) == 1
    assert int(grown[0]) > 0
    monkeypatch.setattr(coherent_memory, "run_time_growth", lambda kernel: 0)
    assert coherent_memory.boot_regions(lab).verdict is ClaimVerdict.CONFIRMED


def test_a_refused_notification_reaches_no_caller_as_sev_and_as_es(
    image_of: Image, series: str
) -> None:
    result = result_of("C21", lab_for(image_of, series))
    assert result.verdict is ClaimVerdict.CONDITIONAL
    assert result.guests == (f"linux:{series}",)
    values = {evidence.name: evidence.value for evidence in result.evidence}
    for kind in ("sev", "es"):
        assert values[f"linux:{series} as {kind}: the host refuses"] == "returns 0"
    ended = values[f"linux:{series} as snp: the host refuses"]
    assert ended == "the guest ends itself (set 1, reason 1)"
    if series != "6.1":  # Debian's has no TDX guest code
        assert values[f"linux:{series} as tdx: the host refuses"] == "returns -5, WARN"


def test_kernels_without_the_callback_decide_nothing_about_c21(
    image_of: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notification_failures, "_CALLBACK", "no_such_function")
    result = result_of("C21", lab_for(image_of, "6.12"))
    assert result.verdict is ClaimVerdict.UNDECIDED
    assert result.guests == ()
    assert [evidence.value for evidence in result.evidence] == ["linux:6.12"]


def test_a_kernel_that_faults_confirms_c13(
    image_of: Image, series: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_hole = notification_failures.run_hole

    def without_present(kernel: CalledKernel, hole: int, _all: bool) -> object:
        return run_hole(kernel, hole, False)

    monkeypatch.setattr(notification_failures, "run_hole", without_present)
    lab = lab_for(image_of, series)
    assert notification_failures.page_fault_anyway(lab).verdict is ClaimVerdict.CONFIRMED


def test_a_callback_that_does_not_fail_leaves_c21_confirmed(
    image_of: Image, series: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notification_failures, "_make_callback_fail", lambda kernel: None)
    lab = lab_for(image_of, series)
    assert notification_failures.error_up_the_chain(lab).verdict is ClaimVerdict.CONFIRMED
