# SPDX-License-Identifier: GPL-2.0-or-later
"""A page of each kind that the product writes, with hostile texts wherever a text comes from a
program, a trace, a kernel or a file of results.

`WRITERS` names the functions that write pages, found in the code by `page_writers`, and the pages
that stand for each: a new writer without a page here fails a test.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from guestemu.campaign.planted.catalogue import BUGS
from guestemu.campaign.planted.cell import CellResult, HuntCell
from guestemu.campaign.planted.tried import zoo_document
from guestemu.cli import _kernel_cells, _kernel_test
from guestemu.migration.model.count import Space
from guestemu.migration.model.notation import parse_order, parse_script
from guestemu.migration.model.order_model import Scenario
from guestemu.migration.model.witness import unrank
from guestemu.migration.sweep.heat import KEPT, LOST, UNDEFINED, Heat
from guestemu.migration.sweep.instants import SweepPoint
from guestemu.migration.sweep.run import InstructionWindow, SweepReport, Tuples
from guestemu.report.charts import bar_chart, svg_file
from guestemu.report.document import Document
from guestemu.report.sweep import sweep_document
from guestemu.report.witness import race_of_witness, witness_document
from guestemu.study.claims.claim import Claim
from guestemu.study.claims.debate import Decided
from guestemu.study.claims.document import claims_document
from guestemu.study.claims.result import ClaimResult, ClaimVerdict, ClaimWitness, Evidence, Plot
from guestemu.study.outcomes.cells import Cell
from guestemu.study.outcomes.experiments import KNOWN_DEFECT, RIGHT, WRONG
from guestemu.study.outcomes.matrix import MatrixCell
from guestemu.study.outcomes.snp_answers import SnpAnswer
from guestemu.study.outcomes.td_table import RowResult
from guestemu.study.outcomes.tried import answers_document, conversions_document, kinds_document

PACKAGE: Final = Path(__file__).parents[2] / "guestemu"
HOSTILE: Final = (
    '"><script>document.title="owned"</script><img src=x onerror=document.title="owned">'
)

WRITERS: Final[Mapping[str, tuple[str, ...]]] = {
    "cli/report.py": ("campaign",),
    "cli/dma.py": ("dma",),
    "cli/ledger.py": ("ledger",),
    "cli/race.py": ("race",),
    "cli/_explore.py": ("explore", "witness"),
    "cli/_kernel_migration.py": ("sweep",),
    "cli/kernel.py": ("kernels", "tested"),
    "cli/outcomes/matrix.py": ("kinds",),
    "cli/outcomes/snp.py": ("answers",),
    "cli/outcomes/table.py": ("conversions",),
    "cli/zoo.py": ("zoo",),
    "cli/claims.py": ("claims",),
}


def page_writers() -> set[str]:
    """The files whose code writes a page."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name in ("report/page.py", "report/document.py", "cli/console.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func
                word = called.attr if isinstance(called, ast.Attribute) else None
                word = called.id if isinstance(called, ast.Name) else word
                if word in ("html_page", "document_page", "write_document"):
                    found.add(name)
    return found


def documents() -> dict[str, Document]:
    """Pages of the documents that take long to measure, of made-up figures."""
    return {
        "witness": _witness(),
        "sweep": sweep_document(_sweep(), f"guestemu explore {HOSTILE}"),
        "kernels": _kernel_cells.document("defects", _cells()),
        "tested": _kernel_test.document(_tested(), False),
        "kinds": kinds_document(_kinds()),
        "answers": answers_document(
            [SnpAnswer(HOSTILE, way, "EINVAL", "7.2", did) for way, did in _DID.items()], {}
        ),
        "conversions": conversions_document({"snippet:6.12": _rows("0"), HOSTILE: _rows("-5")}),
        "zoo": zoo_document(tuple(BUGS.values()), _results()),
        "claims": claims_document([_claim()]),
    }


_DID: Final = {"boot-msr": f"terminates {HOSTILE}", "msr": "goes on", "buffer": "triple fault"}


def _space() -> Space:
    return Space(Scenario(parse_order("2"), parse_script("S1"), 2))


def _witness() -> Document:
    space = _space()
    return witness_document(space, unrank(space, 3), f"guestemu explore {HOSTILE}")


def _sweep() -> SweepReport:
    heats = (
        Heat(HOSTILE, KEPT * 40 + LOST),
        Heat("set_memory_decrypted" * 4, UNDEFINED * 3),
        Heat("memset", KEPT * 9000 + LOST * 3000),
    )
    point = SweepPoint(
        index=7,
        difference=HOSTILE,
        lost_strict=False,
        lost_defined=False,
        pages=3,
        function=HOSTILE,
    )
    window = InstructionWindow("no split", 9000, 3, 1, 2, 1, 0.5, 4.0, [point], heats)
    report = SweepReport(HOSTILE, "sev", "plain", 100, "status-first", points=3, differences=1)
    report.windows.append(window)
    report.tuples[HOSTILE] = Tuples(100, 3, 2, False)
    report.kvm["SEND_START"] = HOSTILE
    report.cpu_seconds = report.seconds = 1.0
    return report


def _cells() -> list[Cell]:
    return [
        Cell(kernel=kernel, version=HOSTILE, row=row, outcome=outcome, detail=HOSTILE)
        for kernel in ("6.1", HOSTILE)
        for row, outcome in (("hole", "seen"), ("kexec", "not seen"), ("x", "absent"))
    ]


def _tested() -> _kernel_test.Examined:
    def cell(outcome: str, defect: str = "") -> Cell:
        return Cell(
            kernel=HOSTILE,
            version=HOSTILE,
            kind="sev",
            row="cpu-offline",
            outcome=outcome,
            detail=HOSTILE,
            defect=defect,
        )

    difference = _kernel_test.Difference(
        kind="sev", row="decrypt", answer="", what="verdict", here=HOSTILE, there="right"
    )
    return _kernel_test.Examined(
        image=HOSTILE,
        version=HOSTILE,
        status=1,
        seconds=1.5,
        cells=(cell(WRONG), cell(RIGHT), cell(KNOWN_DEFECT, "cpu-offline")),
        against=HOSTILE,
        against_version=HOSTILE,
        differences=(difference,),
    )


def _kinds() -> list[MatrixCell]:
    def cell(kind: str, result: str, is_told: bool, is_lost: bool) -> MatrixCell:
        return MatrixCell(
            guest=f"linux:{HOSTILE}",
            kind=kind,
            operation="set_memory_decrypted",
            answer=22,
            result=result,
            warned=True,
            entry="shared",
            host="private",
            module=HOSTILE,
            is_told=is_told,
            is_lost=is_lost,
        )

    return [
        cell("sev", "0", False, True),
        cell("snp", "terminates 1/1", True, False),
        cell("tdx", "-5", True, False),
        cell("es", "0", False, False),
    ]


def _rows(value: str) -> list[RowResult]:
    return [
        RowResult(
            to_private=to_private,
            pages=2,
            title=HOSTILE,
            value=value,
            warned=to_private,
            entries="P*2",
            states=HOSTILE,
            map_gpa_calls=1,
            accepts=0,
            next_store="works",
        )
        for to_private in (False, True)
    ]


def _results() -> list[CellResult]:
    def cell(planted: bool, arm: str = "ours", bug: str = "M1") -> HuntCell:
        return HuntCell(bug, planted, "atheris", arm, 1, 900)

    return [
        CellResult(cell(True), True, 120, 0.5, HOSTILE, HOSTILE, (HOSTILE, HOSTILE)),
        CellResult(cell(True, "plain"), False, 900, 0.5),
        CellResult(cell(False), True, 900, 0.5, HOSTILE, HOSTILE),
    ]


def _claim() -> Decided:
    space = _space()
    witnesses = (
        ClaimWitness(HOSTILE, HOSTILE, race_of_witness(space, unrank(space, 0))),
        ClaimWitness(f"guestemu-program 1\n{HOSTILE}"),
    )
    result = ClaimResult(
        ClaimVerdict.CONDITIONAL,
        (Evidence(HOSTILE, 3.5, HOSTILE, HOSTILE),),
        (f"linux:{HOSTILE}", "order model"),
        HOSTILE,
        witnesses,
        HOSTILE,
        (Plot("c1", HOSTILE, svg_file(bar_chart([(HOSTILE, 3.0)], "c1"))),),
    )
    return Decided(Claim("C1", HOSTILE, HOSTILE, lambda _: result), result, 0.5)
