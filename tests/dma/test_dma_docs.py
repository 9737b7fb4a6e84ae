# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation's example inputs and the notebook work as printed."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from guestemu.dma.parquet import CONVERSION_COLUMNS, EVENT_COLUMNS
from guestemu.dma.policies import POLICY_NAMES
from guestemu.dma.source import reader_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dma.md").read_text(encoding="utf-8")


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    notebook = json.loads((ROOT / "examples" / "dma.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    figures = names["figures"]
    assert isinstance(figures, dict)
    assert tuple(figures) == POLICY_NAMES


def test_the_csv_of_the_documentation_is_read() -> None:
    text = "".join(
        f"{line.strip()}\n" for line in PAGE.splitlines() if re.match(r" {4}\w+,[\w]+,", line)
    )
    reader = reader_of(io.BufferedReader(io.BytesIO(text.encode())), "docs")
    assert len(list(reader)) == 3
    assert reader.report().garbage == 0


def test_every_column_and_policy_is_documented() -> None:
    words = set(re.findall(r"[\w-]+", PAGE))
    assert not {*EVENT_COLUMNS, *CONVERSION_COLUMNS, *POLICY_NAMES} - words
