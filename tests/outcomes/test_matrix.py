# SPDX-License-Identifier: GPL-2.0-or-later
"""One answer and one host plug-in under every guest kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestemu.abi.errno import EAGAIN, EINVAL
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.plugin import load_plugin
from guestemu.program.ops import Op, OpKind, Region
from guestemu.runner.testbed import Testbed
from guestemu.study.outcomes.guests import SNIPPET, outcome_guest
from guestemu.study.outcomes.matrix import MatrixCell, run_matrix, verdicts

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_host.py"
KINDS = ("sev", "snp", "tdx")


@pytest.fixture(scope="module")
def cells() -> list[MatrixCell]:
    return run_matrix([SNIPPET])


def cell_of(cells: list[MatrixCell], kind: str, operation: str, answer: int) -> MatrixCell:
    (found,) = (
        cell
        for cell in cells
        if (cell.kind, cell.operation, cell.answer) == (kind, operation, answer)
    )
    return found


def test_without_a_refusal_nothing_is_lost(cells: list[MatrixCell]) -> None:
    assert not [cell for cell in cells if cell.answer == 0 and (cell.is_lost or cell.is_told)]


def test_a_refused_decryption_is_lost_under_sev_and_told_under_tdx(cells: list[MatrixCell]) -> None:
    sev = cell_of(cells, "sev", "set_memory_decrypted", EINVAL)
    assert (sev.result, sev.entry, sev.host, sev.is_lost) == ("0", "shared", "private", True)
    tdx = cell_of(cells, "tdx", "set_memory_decrypted", EINVAL)
    assert (tdx.result, tdx.module, tdx.is_told) == ("-5", "accepted", True)


def test_only_a_td_tries_again(cells: list[MatrixCell]) -> None:
    """A retry that is not looked at matters under SEV and not in a TD."""
    assert cell_of(cells, "sev", "set_memory_decrypted", EAGAIN).is_lost
    tdx = cell_of(cells, "tdx", "set_memory_decrypted", EAGAIN)
    assert (tdx.result, tdx.host, tdx.is_lost) == ("0", "shared", False)


def test_a_refusal_ends_an_snp_guest_and_the_page_stays_assigned(cells: list[MatrixCell]) -> None:
    snp = cell_of(cells, "snp", "set_memory_decrypted", EINVAL)
    assert (snp.result, snp.module, snp.is_lost) == ("terminates 1/1", "assigned", False)


def test_verdicts_differ_by_kind(cells: list[MatrixCell]) -> None:
    """C19 and C21 hold for plain SEV alone: elsewhere a refusal is read, or ends the guest."""
    rows = {line.split()[1]: line for line in list(verdicts(cells))[2:]}
    assert "| 3 | 0 | 0 | 2 | 0 | confirmed: 2 lost | true here" in rows["sev"]
    assert rows["snp"].endswith("| does not arise: the guest ends |")
    assert rows["tdx"].endswith("| met: the error is propagated | false here: 2 told |")


def conversions(testbed: Testbed) -> tuple[list[int | None], set[str]]:
    ops = [
        Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), Region.D, 3),
        Op(OpKind.SET_MEMORY_ENCRYPTED, (1, 0), Region.D, 3),
        Op(OpKind.SET_MEMORY_DECRYPTED, (2, 0), Region.L, 0),
    ]
    outcome = testbed.run(ops)
    values = [result.outcome.value for result in outcome.results]
    return values, {violation.check for violation in outcome.violations}


@pytest.mark.parametrize("kind", KINDS)
def test_one_host_works_under_every_kind(kind: str) -> None:
    testbed = Testbed(outcome_guest(SNIPPET, kind), MapGpaRangeHost())
    assert conversions(testbed) == ([0, 0, 0], set())


@pytest.mark.parametrize("kind", KINDS)
def test_a_plug_in_runs_unchanged_under_every_kind(kind: str) -> None:
    """The example's bug, a last page that is dropped at a multiple of 64 frames, shows in a TD's
    range as in a SEV guest's hypercall; an SNP guest's request is cut by leaf and PSC entry."""
    testbed = Testbed(outcome_guest(SNIPPET, kind), load_plugin(f"{EXAMPLE}:MyHost", str(EXAMPLE)))
    ops = [Op(OpKind.SET_MEMORY_DECRYPTED, (64, 0), Region.L, 0)]
    outcome = testbed.run(ops)
    assert outcome.results[0].outcome.value == 0
    if kind == "tdx":
        assert {violation.check for violation in outcome.violations} == {"status", "td"}
