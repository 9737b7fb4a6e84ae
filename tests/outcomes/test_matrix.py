# SPDX-License-Identifier: GPL-2.0-or-later
"""One answer and one host plug-in under every guest kind."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from guestemu.abi.errno import EAGAIN, EINVAL
from guestemu.host.base import Hypercall
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.plugin import load_plugin
from guestemu.program.ops import Op, OpKind, Region
from guestemu.runner.testbed import Testbed
from guestemu.study.outcomes.guests import SNIPPET, outcome_guest
from guestemu.study.outcomes.matrix import MatrixCell, matrix_page, run_matrix, verdicts
from guestemu.study.outcomes.stops import StopCell, run_stops, stop_lines

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


@pytest.fixture(scope="module")
def stops() -> dict[str, StopCell]:
    return {cell.kind: cell for cell in run_stops([SNIPPET])}


@pytest.mark.parametrize(
    ("kind", "exits", "mapped", "converted", "result"),
    [
        ("sev", 1000, 1000, 999, "0"),
        ("snp", 2, 0, 64, "terminates 1/1"),
        ("tdx", 2, 1000, 512, "-5"),
    ],
)
def test_only_a_sev_guest_reports_the_rest_after_a_refusal(
    stops: dict[str, StopCell], kind: str, exits: int, mapped: int, converted: int, result: str
) -> None:
    """C20: of 1000 pages the second exit is refused; what the first was about is converted."""
    cell = stops[kind]
    assert (cell.exits, cell.mapped, cell.converted, cell.result) == (
        exits,
        mapped,
        converted,
        result,
    )
    assert (cell.word == "goes on") is (kind == "sev")


def test_the_page_has_the_refusal_in_the_middle(
    cells: list[MatrixCell], stops: dict[str, StopCell]
) -> None:
    page = matrix_page(cells, stop_lines(list(stops.values())))
    assert f"| {SNIPPET} | tdx | 2 | no | 1000 shared | 512 shared | -5 |" in page
    assert f"made by `guestemu outcomes matrix --guest {SNIPPET} --page" in page


class TruthHost(MapGpaRangeHost):
    """Takes the attributes word for a boolean: 0 is shared, all else private."""

    def hypercall(self, call: Hypercall) -> int:
        return super().hypercall(msgspec.structs.replace(call, a2=0x10 if call.a2 else 0))


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_read_as_a_boolean_show_in_an_snp_guest_only(kind: str) -> None:
    """KVM puts the size of an SNP guest's 2 MiB entry into the word: shared is 1. Linux names 4 KiB
    in a SEV guest's hypercall, KVM in a TD's chunk (T26): shared is 0."""
    testbed = Testbed(outcome_guest(SNIPPET, kind), TruthHost())
    outcome = testbed.run([Op(OpKind.SET_MEMORY_DECRYPTED, (512, 0), Region.L, 0)])
    assert bool(outcome.violations) is (kind == "snp")


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
