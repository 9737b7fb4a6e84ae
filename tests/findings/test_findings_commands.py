# SPDX-License-Identifier: GPL-2.0-or-later
"""`minimize`, `triage`, `status`, `report` and `show` on what a campaign found."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from guestemu.cli.main import main

HOSTS = Path(__file__).parents[1] / "quality" / "planted_hosts.py"
MINE = f"{HOSTS}:WordBoundary"
ALLOW = ("--plugins", HOSTS.parent)
KEY = "record-hypercall-b4bf85c4"
PLOTS = (
    *("rate-over-time", "corpus-over-time", "guest-blocks-over-time", "model-states-over-time"),
    *("near-misses-over-time", "findings-over-time", "coverage", "ops-by-kind"),
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("campaign") / "work"
    words = ["--engine", "random", "--execs", "2000", "--seed", "1", "--workdir", str(workdir)]
    assert main(["fuzz", "hypercall", "--host", MINE, "--json", *words]) == 1
    return workdir


@pytest.fixture
def answer(capsys):
    def run(*words, status=0):
        capsys.readouterr()
        assert main([*map(str, words), "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return run


def test_status_has_the_keys_of_fuzz_and_sums(campaign, answer):
    one, two = answer("status", campaign), answer("status", campaign, campaign)
    assert (one["executions"], two["executions"]) == (2000, 4000)
    assert (one["running"], one["campaigns"][0]["target"]) == (0, "hypercall")
    assert set(one["coverage"]) == {"guest_blocks", "model_states", "near_misses"}
    (found,) = one["findings"]
    assert set(found) == {"key", "check", "program", "first_seen_s", "count"}
    assert Path(found["program"]).is_file()


def test_triage_explains_and_writes_a_test(campaign, answer, tmp_path):
    workdir = Path(shutil.copytree(campaign, tmp_path / "copy"))
    (found,) = answer("triage", *ALLOW, workdir, status=1)["findings"]
    assert (found["key"], found["check"], found["state"]) == (KEY, "record", "shown")
    assert found["fact"] == "H.4 item 7, K3-d"
    assert found["places"][-1].endswith("call = msgspec.structs.replace(call, a1=call.a1 - 1)")
    program = Path(found["program"])
    assert f"guestemu run {program}" in program.with_suffix(".md").read_text()
    assert program.with_name(f"test_{KEY.replace('-', '_')}.py").is_file()


def test_triage_counts_two_campaigns_of_one_defect_once(campaign, answer, tmp_path):
    other = shutil.copytree(campaign, tmp_path / "other")
    (one,) = answer("triage", *ALLOW, "--no-write", campaign, status=1)["findings"]
    (both,) = answer("triage", *ALLOW, "--no-write", campaign, other, status=1)["findings"]
    assert (both["count"], len(both["programs"])) == (2 * one["count"], 2)


def test_triage_says_what_was_mended_and_what_cannot_run(campaign, answer, tmp_path):
    workdir = Path(shutil.copytree(campaign, tmp_path / "copy"))
    program = workdir / "findings" / f"{KEY}.prog"
    (found,) = answer("triage", workdir, status=2)["findings"]
    assert found["state"].startswith("error: ")
    assert "--plugins DIR" in found["state"]
    text = program.read_text()
    host = re.compile(r"^host .*:WordBoundary$", re.MULTILINE)
    program.write_text(host.sub("host map-gpa-range", text))
    (found,) = answer("triage", workdir)["findings"]
    assert found["state"] == "gone"
    good = tmp_path / "good.py"
    good.write_text(
        "from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost\n"
        "class Good(MapGpaRangeHost):\n    pass\n"
    )
    program.write_text(host.sub("host good.py:Good", text))
    (found,) = answer("triage", "--plugins", tmp_path, workdir)["findings"]
    assert found["state"] == "gone"
    assert "--plugins" in found["commands"][0]
    program.write_text(host.sub("host xen", text))
    (found,) = answer("triage", workdir, status=2)["findings"]
    assert found["state"].startswith("error: ")
    assert "xen" in found["state"]


def test_a_directory_that_is_no_campaign_is_bad_input(tmp_path, capsys):
    for words in (["triage"], ["status"], ["report", "-o", str(tmp_path / "x.html")]):
        assert main([*words, str(tmp_path)]) == 2
        assert str(tmp_path) in capsys.readouterr().err


def test_minimize_ends_in_the_program_of_the_finding(campaign, answer, tmp_path):
    program = tmp_path / "long.prog"
    program.write_text(
        f"guestemu-program 1\nhost {HOSTS.name}:WordBoundary\nbudget 200000\n---\n"
        "set_memory_decrypted D[3] pages=2\n"
        "wrmsr msr=0x4b564d08 value=1\nset_memory_decrypted L[0] pages=512\nread D[9]\n"
    )
    out = tmp_path / "small.prog"
    found = answer("minimize", *ALLOW, program, "-o", out)
    assert (found["key"], found["ops_before"], found["ops_after"]) == (KEY, 4, 1)
    ops = [line for line in out.read_text().splitlines() if line.startswith("hypercall")]
    assert ops == ["hypercall nr=12 a0=0x3e000 a1=2 a2=0 a3=0"]
    assert ops[0] in (campaign / "findings" / f"{KEY}.prog").read_text()
    assert answer("replay", *ALLOW, out)["passed"] == 1


def test_minimize_without_anything_wrong_or_with_an_unknown_key(campaign, capsys):
    program = campaign / "findings" / f"{KEY}.prog"
    assert main(["minimize", str(program), "--host", "map-gpa-range"]) == 2
    assert "no check fails" in capsys.readouterr().err
    assert main(["minimize", str(program), "--key", "x", *map(str, ALLOW)]) == 2
    assert KEY in capsys.readouterr().err


def test_show_explains_a_finding(campaign, answer, capsys):
    program = campaign / "findings" / f"{KEY}.prog"
    (op,) = answer("show", *ALLOW, "-n", "2", program, status=1)["ops"]
    assert op["violations"][0].startswith("violation of record")
    assert [line["text"] for line in op["code"]] == ["vmmcall", "hlt"]
    assert main(["show", str(program), *map(str, ALLOW)]) == 1
    assert "The host's record is not what it was told" in capsys.readouterr().out


@pytest.fixture(scope="module")
def page(campaign, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(campaign), "-o", str(out), *map(str, ALLOW)]) == 0
    return out.read_text()


def test_the_page_is_one_file_with_every_plot_and_finding(page):
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    found = [root.get("id") for root in map(ET.fromstring, plots)]
    assert found == [f"strip-{KEY}", *PLOTS]
    assert not re.search(r"src\s*=|href=\"[^#]|url\(|@import", page)
    assert f'<h3 id="{KEY}">' in page
    assert "hypercall nr=12 a0=0x3e000 a1=2 a2=0 a3=0" in page


def test_a_browser_draws_the_page(page, draw):
    drawn = draw(page)
    assert drawn.width == 1000
    assert drawn.colours > 50
    assert [name for name in PLOTS if f'id="{name}"' in drawn.document] == list(PLOTS)
    assert KEY in drawn.document


def test_a_campaign_that_found_nothing(tmp_path, answer):
    workdir = tmp_path / "work"
    words = ["--engine", "random", "--execs", "50", "--seed", "1", "--workdir", workdir]
    assert answer("fuzz", "msr", *words)["findings"] == []
    assert answer("triage", workdir)["findings"] == []
    out = tmp_path / "x.html"
    assert answer("report", workdir, "-o", out)["findings"] == []
    assert "<h2>Findings</h2><p>none</p>" in out.read_text()
