# SPDX-License-Identifier: GPL-2.0-or-later
"""The plots of C9 to C12: what they show, the files of `--plots`, and those of docs/claims."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from guestemu.cli.main import main
from guestemu.dma.clearing import ClearingPath as DmaPath
from guestemu.report.charts import bar_chart, step_chart, svg_file
from guestemu.study.claims import kernels
from guestemu.study.claims.debate import Decided
from guestemu.study.claims.dma_plots import boot_plot, rewritten_plot
from guestemu.study.claims.page import section

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_bars_are_percent_of_the_converted_pages() -> None:
    paths = [("a<b", DmaPath("alloc", False, 4, 3)), ("c", DmaPath("free", True, 8, 0))]
    plot = rewritten_plot("c9", paths)
    assert texts(plot.svg) == ["a<b: alloc", "75 %", "c: free", "0 %"]
    widths = [bar.get("width") for bar in ElementTree.fromstring(plot.svg).iter(f"{SVG}rect")]
    assert widths == ["470.0", "0.0"]


def test_a_boot_is_counted_in_exits() -> None:
    shown = texts(boot_plot("c12", "linux:6.1", [0, 512, 512, 100]).svg)
    ticks = ["0", "200", "400", "0 exits", "1 exits", "2 exits", "3 exits"]
    assert shown == ["shared pages", *ticks]
    assert "0 s" in texts(svg_file(step_chart([(0.0, 1.0, 1.0)], "pages", "x")))


def test_nothing_to_plot_is_no_file() -> None:
    with pytest.raises(ValueError, match="nothing to plot"):
        svg_file(bar_chart([], "empty"))


def test_the_lifetimes_are_those_of_the_evidence(decided: dict[str, Decided]) -> None:
    result = decided["C11"].result
    counts = [str(line.value) for line in result.evidence if "lived from" in line.name]
    never = next(line.value for line in result.evidence if line.name == "trace churn: never freed")
    plot = result.plots[0]
    assert plot.name == "c11-lifetimes"
    assert texts(plot.svg)[1::2] == [*counts, str(never)]


def test_the_page_embeds_every_plot_and_has_its_file(decided: dict[str, Decided]) -> None:
    embedded = re.findall(r"\]\(claims/(.*)\.svg\)", (DOCS / "claims.md").read_text("utf-8"))
    assert {name.split("-")[0] for name in embedded} == {"c9", "c10", "c11", "c12"}
    assert sorted(embedded) == sorted(path.stem for path in (DOCS / "claims").iterdir())
    for name in embedded:
        ElementTree.parse(DOCS / "claims" / f"{name}.svg")
    for plot in decided["C11"].result.plots:
        assert (DOCS / "claims" / f"{plot.name}.svg").read_text("utf-8") == plot.svg
        assert f"![{plot.title}](claims/{plot.name}.svg)" in list(section(decided["C11"]))


def test_the_command_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "found_kernels", tuple)
    directory = tmp_path / "new" / "plots"
    assert main(["claims", "C9", "C2", "--plots", str(directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [claim["plots"] for claim in found["claims"]] == [[], ["c9.svg"]]
    assert [path.name for path in directory.iterdir()] == ["c9.svg"]
    assert texts((directory / "c9.svg").read_text())[0] == "snippet:5.10: dma_alloc_coherent"


def test_a_directory_that_cannot_be_is_said_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["claims", "--plots", str(tmp_path / "file" / "plots")]) == 2
    assert "give a directory" in capsys.readouterr().err
