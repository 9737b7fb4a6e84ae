# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger's parts: the committed code, names, steps, counts, the page."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from guestemu.abi.errors import InputError
from guestemu.report.document import document_page
from guestemu.study.ledger.cell import Row
from guestemu.study.ledger.code import build_policy_code, load_policy_code
from guestemu.study.ledger.document import ledger_document
from guestemu.study.ledger.failures import FAILURES, FaultPoint
from guestemu.study.ledger.flows import FLOWS, find_flows
from guestemu.study.ledger.matrix import find_failures, plan, run_flow_rows
from guestemu.study.ledger.policies import POLICIES, find_policies, kernel_policy
from guestemu.study.ledger.rig import Rig
from guestemu.study.ledger.summary import by_policy, is_unnoticed, tally

ROW = Row("lookup", "decrypt-3", 0, "warn", "before", (), "completed", "", 0, 0, 0, 0, 0)


def row(**changes: object) -> Row:
    return msgspec.structs.replace(ROW, **changes)


@pytest.mark.skipif(shutil.which("as") is None, reason="binutils are not installed")
def test_the_committed_code_is_built_from_its_source(tmp_path: Path) -> None:
    output = tmp_path / "policy.elf"
    build_policy_code(output)
    committed = Path(__file__).parents[2] / "guestemu/study/ledger/snippets/policy.elf"
    assert output.read_bytes() == committed.read_bytes()


def test_the_policy_code_has_the_word_that_selects() -> None:
    assert "error_policy" in load_policy_code().symbols


def test_a_fault_point_fails_once() -> None:
    point = FaultPoint()
    point.arm(1)
    assert [point.hit() for _ in range(4)] == [False, True, False, False]
    assert point.count == 4


@pytest.mark.parametrize(
    ("find", "name"),
    [
        (lambda name: find_policies((name,), ()), "policy"),
        (lambda name: find_flows((name,)), "flow"),
        (lambda name: find_failures((name,)), "failure"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(find: object, name: str) -> None:
    assert callable(find)
    with pytest.raises(InputError, match=f"{name} 'x': unknown, take one of "):
        find("x")


def test_no_name_means_all() -> None:
    assert find_policies((), ()) == POLICIES
    assert find_flows(()) == FLOWS
    assert find_failures(()) == FAILURES
    assert find_policies((), ("linux:6.1",))[-1] == kernel_policy("linux:6.1")


def test_a_kernel_does_not_run_flows_it_cannot() -> None:
    planned = plan((kernel_policy("linux:6.1"),), FLOWS)
    names = {flow.name for _, flow in planned}
    assert "decrypt-3" in names
    assert not names & {"boot", "kexec", "kexec-window"}


def test_every_step_is_run_if_asked_for() -> None:
    rig = Rig(find_policies(("ignore",), ())[0])
    flow, failure = find_flows(("dma-pool",))[0], find_failures(("lookup",))
    steps = [one.step for one in run_flow_rows(rig, flow, failure) if one.when == "before"]
    assert steps == [-1, 0, 1, 48, 94, 95]
    every = run_flow_rows(rig, flow, failure, every_step=True)
    assert [one.step for one in every if one.when == "before"] == list(range(-1, 96))
    rig.close()


def test_each_run_is_counted_once() -> None:
    rows = [
        row(failure="none", step=-1, lost=7),
        row(lost=3),
        row(lost=2, noticed_by=("checks",)),
        row(lost=1, noticed_by=("guest log",)),
        row(migration="timed out", noticed_by=("vmm", "migration")),
        row(migration="guest dead", noticed_by=("guest death",)),
        row(leaked=3, noticed_by=("caller",)),
        row(leaked=None),
    ]
    one = tally(rows)
    assert (one.runs, one.unnoticed, one.noticed, one.stopped, one.dead) == (7, 2, 1, 1, 1)
    assert (one.harmless, one.leaked, one.pages) == (2, 1, 3)
    assert by_policy(rows)[0].policy == "warn"
    assert is_unnoticed(rows[1])
    assert not is_unnoticed(rows[3])


def test_the_page_has_every_run_and_escapes() -> None:
    rows = [row(lost=2), row(policy="<b>", migration="guest dead")]
    page = document_page(ledger_document(rows, POLICIES))
    assert '<tr id="run-0"><td>warn<td>decrypt-3<td>' in page
    assert '<td class="v-bad">2<td>' in page
    assert "&lt;b&gt;" in page
    assert "<td><b>" not in page
    assert ">1 of 1 lost</a>" in page
    assert ">1 of 1 dead</a>" in page


def test_runs_with_one_outcome_share_a_line_and_no_run_is_left_out() -> None:
    alike = [
        row(failure=failure, step=step, when=when)
        for when in ("before", "during")
        for failure in ("host-einval", "host-ebusy")
        for step in (0, 2)
    ]
    others = [row(failure="none", step=-1), row(failure="cpa", step=0), row(lost=1, step=2)]
    page = document_page(ledger_document([*alike, *others], POLICIES))
    start = page.index('<tr id="run-0">')
    lines = page[start : page.index("</table>", start)].split("<tr")[1:]
    assert [line.split("<td>")[3:6] for line in lines] == [
        ["before, during", "host-einval, host-ebusy", "0, 2"],
        ["before", "none", "-"],
        ["before", "cpa", "0"],
        ["before", "lookup", "2"],
    ]


def test_a_cell_leads_to_its_figures_its_run_and_its_command() -> None:
    rows = [row(), row(lost=2), row(flow="boot", failure="cpa", migration="guest dead")]
    document = ledger_document(rows, POLICIES, only={"flow": ["decrypt-3", "boot"]}, options=["-x"])
    page = document_page(document)
    assert '<a href="#failure-0">1 of 2 lost</a>' in page
    assert '<h3 id="failure-0">warn, lookup: 1 of 2 lost</h3><p>2 runs: 1 lost pages' in page
    assert (
        '<a href="#run-1">lookup at step 0 of decrypt-3, before a migration: 2 pages lost' in page
    )
    flows = "--flow decrypt-3 --flow boot"
    for words in (f"--failure lookup {flows}", f"--failure cpa {flows}", "--flow boot"):
        assert f"<pre>guestemu ledger --policy warn {words} -x --rows</pre>" in page
