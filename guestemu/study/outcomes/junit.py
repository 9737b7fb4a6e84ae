# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells as JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from guestemu.replay.junit import to_document, xml_text
from guestemu.study.outcomes.cells import ABSENT, Cell
from guestemu.study.outcomes.experiments import KNOWN_DEFECT, WRONG, verdict_of


def cells_xml(cells: Sequence[Cell], seconds: float, is_strict: bool) -> bytes:
    """One test suite with a class for each guest kind. A wrong cell is a failure, with
    `is_strict` also a known defect; what the kernel does not have is skipped."""
    failing = {WRONG, KNOWN_DEFECT} if is_strict else {WRONG}
    verdicts = [verdict_of(cell) for cell in cells]
    counts = {
        "tests": str(len(cells)),
        "failures": str(sum(verdict in failing for verdict in verdicts)),
        "skipped": str(verdicts.count(ABSENT)),
    }
    root = ElementTree.Element("testsuites", counts)
    name = {"name": "guestemu kernel test", "time": f"{seconds:.3f}"}
    suite = ElementTree.SubElement(root, "testsuite", {**name, **counts})
    for cell, verdict in zip(cells, verdicts, strict=True):
        where = {"classname": xml_text(f"{cell.version}.{cell.kind}"), "name": str(cell.key)}
        case = ElementTree.SubElement(suite, "testcase", where)
        message = {"message": xml_text(f"{cell.defect} {cell.detail}".strip())}
        if verdict in failing:
            ElementTree.SubElement(case, "failure", message)
        elif verdict == ABSENT:
            ElementTree.SubElement(case, "skipped", message)
    return to_document(root)
