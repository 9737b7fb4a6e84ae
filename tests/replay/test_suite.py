# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding, replaying and recording files; JUnit."""

from __future__ import annotations

import os
import signal
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.program.text import load_program
from guestemu.replay import suite
from guestemu.replay.expectations import Mismatch
from guestemu.replay.files import find_programs
from guestemu.replay.junit import junit_xml
from guestemu.replay.suite import Result, replay_all, replay_file

GOOD = "guestemu-program 1\n# Why.\n---\nset_memory_decrypted D[3] pages=2\n"


def program(directory: Path, name: str, text: str = GOOD) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_directories_are_searched_and_each_file_comes_once(tmp_path: Path) -> None:
    deep = program(tmp_path, "a/b/deep.prog")
    flat = program(tmp_path, "flat.prog")
    program(tmp_path, "note.txt", "no program")
    odd = program(tmp_path, "odd.text")
    assert find_programs([tmp_path]) == (deep, flat)
    assert find_programs([odd, tmp_path, deep]) == (odd, deep, flat)


def test_paths_without_programs_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such file"):
        find_programs([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"no \.prog file in this directory"):
        find_programs([tmp_path])


def test_bad_input_is_a_result_with_the_place(tmp_path: Path) -> None:
    broken = program(tmp_path, "broken.prog", "guestemu-program 1\n---\nset_memory D[3]\n")
    host = program(tmp_path, "host.prog", "guestemu-program 1\nhost xen\n---\nread D[0]\n")
    results = replay_all([broken, host])
    assert not any(result.passed for result in results)
    assert str(results[0].bad).startswith(f"{broken}:3: no op 'set_memory'")
    assert str(results[1].bad).startswith(f"{host}: host 'xen': no such host")


def test_recorded_expectations_hold_and_other_lines_stay(tmp_path: Path) -> None:
    text = GOOD.replace("---", "---\n# expect the pages of a ring\n")
    path = program(tmp_path, "new.prog", f"{text}\nexpect hypercalls 99\n# end\n")
    assert not replay_file(path).passed
    assert replay_file(path, recording=True).is_new
    written = path.read_text()
    assert written.startswith("guestemu-program 1\n# Why.\n---\n# expect the pages of a ring\n")
    assert "# end" in written
    assert written.endswith("\nexpect outcome ok\nexpect hypercalls 2\nexpect result 0 at 0\n")
    assert replay_file(path).passed
    assert not replay_file(path, recording=True).is_new


def test_a_trace_hash_is_recorded_only_where_one_was(tmp_path: Path) -> None:
    path = program(tmp_path, "hash.prog", f"{GOOD}expect trace_hash 00\n")
    replay_file(path, recording=True)
    (line,) = [x for x in load_program(path).expectations if x.name == "trace_hash"]
    assert len(line.value) == 64
    assert replay_file(path).passed


def test_recording_says_what_a_replay_would_check(tmp_path: Path) -> None:
    ops = "answer value=-22\nset_memory_decrypted D[3] pages=1 offset=8\nunmap D[9]\nread D[9]\n"
    path = program(tmp_path, "all.prog", f"guestemu-program 1\n---\n{ops}")
    replay_file(path, recording=True)
    lines = [line for line in path.read_text().splitlines() if line.startswith("expect")]
    assert lines == [
        "expect outcome violation",
        "expect violation status at 1",
        "expect hypercalls 1",
        "expect result 0 at 1",
        "expect warning misaligned at 1",
        "expect exception 14 at 3",
    ]


def test_several_processes_give_the_same_results_in_the_order_of_the_files(tmp_path: Path) -> None:
    paths = [program(tmp_path, f"{i}.prog") for i in range(4)]
    paths.append(program(tmp_path, "bad.prog", "nothing"))
    paths.append(program(tmp_path, "fails.prog", f"{GOOD}expect hypercalls 5\n"))
    seen: list[str] = []
    parallel = replay_all(paths, jobs=2, progress=lambda result: seen.append(result.program))
    assert [(r.program, r.mismatches, r.bad) for r in parallel] == [
        (r.program, r.mismatches, r.bad) for r in replay_all(paths)
    ]
    assert sorted(seen) == sorted(map(str, paths))


def _kill_the_worker(batch: Sequence[Path], **_rest: object) -> Iterator[Result]:
    for path in batch:
        if path.name == "killer.prog":
            os.kill(os.getpid(), signal.SIGKILL)
        yield Result(str(path))


def test_a_worker_that_dies_fails_its_own_program_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "_results", _kill_the_worker)
    names = ("a.prog", "killer.prog", "z.prog")
    a, killer, z = replay_all([tmp_path / name for name in names], jobs=2)
    assert a.passed
    assert z.passed
    assert killer.mismatches[0].found == "the process that ran it died"


def test_junit_counts_and_messages_survive_any_text() -> None:
    results = [
        Result("corpora/msr/a.prog", seconds=0.25),
        Result("b.prog", (Mismatch("expect outcome ok", "outcome <oops> \x00"),)),
        Result("c.prog", bad="c.prog:1: no program"),
    ]
    root = ElementTree.fromstring(junit_xml(results, 1.5))
    (found,) = root
    assert (found.get("tests"), found.get("failures"), found.get("errors")) == ("3", "1", "1")
    assert found.get("time") == "1.500"
    passed, failed, bad = found
    assert (passed.get("classname"), passed.get("name")) == ("corpora.msr", "a.prog")
    assert failed[0].tag == "failure"
    assert failed[0].get("message") == "expected: expect outcome ok; found: outcome <oops> ?"
    assert bad[0].tag == "error"
