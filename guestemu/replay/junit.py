# SPDX-License-Identifier: GPL-2.0-or-later
"""Replay results as JUnit XML, which CI systems show."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from guestemu.replay.suite import Result

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(results: Sequence[Result], seconds: float) -> bytes:
    """One test suite; a failed expectation is a failure, bad input an error."""
    failed = sum(bool(result.mismatches) for result in results)
    bad = sum(result.bad is not None for result in results)
    counts = {"tests": str(len(results)), "failures": str(failed), "errors": str(bad)}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": "guestemu replay", **counts, "time": f"{seconds:.3f}"}
    )
    for result in results:
        path = Path(result.program)
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {
                "classname": xml_text(".".join(path.parts[:-1]) or "."),
                "name": xml_text(path.name),
                "time": f"{result.seconds:.3f}",
            },
        )
        if result.bad is not None:
            ElementTree.SubElement(case, "error", {"message": xml_text(result.bad)})
        if result.mismatches:
            lines = [f"expected: {m.expectation}; found: {m.found}" for m in result.mismatches]
            failure = ElementTree.SubElement(case, "failure", {"message": xml_text(lines[0])})
            failure.text = xml_text("\n".join(lines))
    return to_document(root)


def to_document(root: ElementTree.Element) -> bytes:
    """The file of a tree."""
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def xml_text(text: str) -> str:
    """`text` without the characters that XML cannot hold."""
    return _NOT_XML.sub("?", text)
