# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of others is shown on a terminal, never sent to it; and files that are no files."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from guestemu.abi.text import visible
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.cli import console
from guestemu.cli.main import main
from guestemu.program.table import op_table

Captured = pytest.CaptureFixture[str]

HOSTILE = "a\x1b[2Jb\nok: 0 violations\x9b31m\x7f\u202e\u2028c"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def test_what_is_not_printable_becomes_visible() -> None:
    shown = visible(HOSTILE)
    assert shown == r"a\x1b[2Jb\nok: 0 violations\x9b31m\x7f\u202e\u2028c"
    assert visible("héllo 日本 €") == "héllo 日本 €"
    assert visible("\udcff") == r"\udcff"


def test_every_way_out_shows_it(capsys: Captured) -> None:
    console.emit(HOSTILE)
    console.note(HOSTILE)
    console.emit_table(("name",), [(HOSTILE,)])
    out, err = capsys.readouterr()
    assert out.count("\n") == 3
    assert err.count("\n") == 1
    assert not RAW.search(out + err)
    console.emit_json({"name": HOSTILE, "file": "\udcff"})
    text = capsys.readouterr().out
    assert not RAW.search(text)
    found = json.loads(text)
    assert found["name"] == HOSTILE
    assert found["file"] == r"\udcff"


def test_only_the_programs_own_colours_are_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(console, "has_colour", lambda: True)
    console.emit(console.paint(f"bad {HOSTILE}", "red"))
    out = capsys.readouterr().out
    assert out.startswith("\x1b[31mbad a\\x1b[2Jb\\nok")
    assert out.endswith("c\x1b[0m\n")


def work(root: Path, findings: object) -> Path:
    record = CampaignRecord(
        "hypercall", "snippet:6.1", "map-gpa-range", 39, False, ops=op_table([])
    )
    Store.create(root, record, resume=False)
    (root / "findings.json").write_text(json.dumps(findings))
    return root


@pytest.mark.parametrize("key", ["../../secret", "/etc/passwd", HOSTILE, "", "a/b", "..", ".x-"])
def test_a_findings_key_is_a_file_name(tmp_path: Path, capsys: Captured, key: str) -> None:
    (tmp_path / "secret.prog").write_text("the secret")
    found = {"key": key, "check": HOSTILE, "count": 1, "first_seen_s": 0.0}
    root = work(tmp_path / "w", [found])
    assert main(["report", str(root), "-o", str(tmp_path / "out.html")]) == 2
    assert main(["status", str(root)]) == 2
    out, err = capsys.readouterr()
    assert "is not the name of a finding" in err
    assert not RAW.search(out + err)
    assert not (tmp_path / "out.html").exists()


def test_a_page_does_not_show_what_lies_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the secret")
    root = work(tmp_path / "w", [{"key": "a-b", "check": "c", "count": 1, "first_seen_s": 0.0}])
    (root / "findings" / "a-b.prog").symlink_to(tmp_path / "secret")
    assert main(["report", str(root), "-o", str(tmp_path / "out.html")]) == 0
    assert "the secret" not in (tmp_path / "out.html").read_text()


def test_a_pipe_in_a_directory_is_not_waited_for(tmp_path: Path, capsys: Captured) -> None:
    root = tmp_path / "w"
    words = ["fuzz", "hypercall", "--workdir", str(root), "--engine", "random", "--execs", "20"]
    assert main(words) == 0
    os.mkfifo(root / "corpus" / "0123456789012345678901234567890123456789")
    os.mkfifo(root / "journal" / "worker-7.jsonl")
    (root / "corpus" / "long").write_bytes(bytes(48 * 100))
    assert main([*words, "--resume"]) == 0
    assert main(["status", str(root)]) == 0
    assert main(["report", str(root), "-o", str(tmp_path / "out.html")]) == 0
    assert main(["merge", str(root)]) == 2
    assert "not a regular file" in capsys.readouterr().err


def test_names_that_are_not_utf_8(tmp_path: Path, capsys: Captured) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.prog")
    Path(path).write_text("guestemu-program 1\n---\nset_memory D[0]\n")
    out = tmp_path / "out"
    words = ["--sarif", f"{out}.sarif", "--junit", f"{out}.xml", "--json"]
    assert main(["replay", path, *words]) == 2
    assert r"\udcff.prog" in json.loads(capsys.readouterr().out)["bad"][0]["program"]
    assert b"%FF.prog" in Path(f"{out}.sarif").read_bytes()
    assert Path(f"{out}.xml").is_file()


@pytest.mark.parametrize(
    "row",
    [
        "alloc,e,0,4096,18446744073709551615,0",
        "alloc,e,0,4096,0,18446744073709551615",
        "alloc,e,0,18446744073709551615,0,0",
        "alloc,e,0xffffffffffffffff,4096,0,0",
    ],
)
def test_numbers_near_the_end_of_64_bits_are_lines_that_cannot_be_read(
    tmp_path: Path, capsys: Captured, row: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"event,device,address,size,time_ns,cpu\nalloc,e,0x1000,4096,1,0\n{row}\n")
    words = ["dma", str(path), "--guest", "model:6.1", "--json"]
    words += ["--parquet", str(tmp_path / "p.parquet"), "--perfetto", str(tmp_path / "o.trace")]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["input"]["garbage"] == 1
