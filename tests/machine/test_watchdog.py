# SPDX-License-Identifier: GPL-2.0-or-later
"""A bound of time beside the budgets: whatever runs, it ends and is said."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import held
import msgspec
import pytest

from guestemu.cli.main import main
from guestemu.conformance.hosts import suite
from guestemu.host import plugin
from guestemu.program.text import parse_text
from guestemu.replay.pool import run_batches
from guestemu.replay.suite import Bench
from guestemu.report.trace.run import run_program
from guestemu.report.trace.words import OK, run_word
from guestemu.runner.testbed import TIME_UP

ENDLESS = (
    "guestemu-program 1\nbudget 1000000000\n---\nunmap D[3]\nset_memory_decrypted D[3] pages=1\n"
)
GOOD = "guestemu-program 1\n---\nset_memory_decrypted D[3] pages=1\n"
HOST = """import time
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
class Host(MapGpaRangeHost):
    def hypercall(self, call):
        {}
"""
LIMIT = 0.2

Captured = pytest.CaptureFixture[str]


def test_an_endless_loop_of_the_guest_ends_long_before_its_budget() -> None:
    before = signal.getsignal(signal.SIGRTMIN + 9)
    threads = set(threading.enumerate())
    run = run_program(parse_text(ENDLESS, "a.prog"), LIMIT)
    assert run_word(run) == TIME_UP
    (violation,) = run.outcome.violations
    assert (violation.check, violation.op) == (TIME_UP, 1)
    assert "more than 0.2 s of CPU time or 1.2 s in all" in violation.message
    assert signal.getsignal(signal.SIGRTMIN + 9) == before
    assert set(threading.enumerate()) <= threads


def test_outside_of_the_main_thread_the_cpu_is_stopped() -> None:
    words: list[str] = []
    program = parse_text(ENDLESS, "a.prog")
    thread = threading.Thread(target=lambda: words.append(run_word(run_program(program, LIMIT))))
    thread.start()
    thread.join()
    assert words == [TIME_UP]


def test_many_operations_that_are_each_short_count_together() -> None:
    one = parse_text(GOOD, "a.prog")
    program = msgspec.structs.replace(one, ops=one.ops * 200_000)  # 20 µs each, or more
    run = run_program(program, LIMIT)
    assert run_word(run) == TIME_UP
    assert len(run.outcome.results) < len(program.ops)


def test_a_bench_takes_another_testbed_for_the_next_program() -> None:
    bench = Bench(LIMIT)
    assert run_word(bench.run(parse_text(ENDLESS, "a.prog"))) == TIME_UP
    calm = Bench()
    assert run_word(calm.run(parse_text(GOOD, "b.prog"))) == OK
    bench.close()
    calm.close()


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "time.sleep(1000)",
        "while True:\n            try: 1 / 0\n            except Exception: pass",
    ],
)
def test_a_host_that_does_not_return_is_the_hosts_defect(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text(HOST.format(body))
    Path("a.prog").write_text(GOOD)
    Path("slow.prog").write_text(GOOD.replace("---", "host slow.py:Host\n---"))
    limit = ["--limit", str(LIMIT)]
    assert main(["run", "a.prog", "--host", "slow.py:Host", "--json", *limit]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == "host-failed"
    (violation,) = found["violations"]
    assert violation["message"].startswith("slow.py:")
    assert "Host.hypercall did not return: it took more than" in violation["message"]
    words = ["--plugins", ".", "--json", "--jobs", "1", "--junit", "out.xml", *limit]
    assert main(["replay", "slow.prog", "a.prog", *words]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["programs"], found["passed"]) == (2, 1)
    assert Path("out.xml").is_file()


FINALIZER = """
class Held:
    def __del__(self):
        while True:
            pass
"""


def test_a_finalizer_that_does_not_return_is_interrupted_without_a_word(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body = "held = Held(); del held; return super().hypercall(call)"
    Path("slow.py").write_text(FINALIZER + HOST.format(body))
    Path("a.prog").write_text(GOOD)
    assert main(["run", "a.prog", "--host", "slow.py:Host", "--json", "--limit", str(LIMIT)]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["outcome"] == TIME_UP
    assert captured.err == ""


SWALLOWS = "while True:\n            try: time.sleep(1)\n            except: pass"
KEEPS_THE_LOCK = "import re; re.match('(a*)*b', 'a' * 60)"


@pytest.mark.parametrize("body", [SWALLOWS, KEEPS_THE_LOCK], ids=["swallows", "keeps the lock"])
def test_a_host_that_cannot_be_interrupted_ends_the_process(tmp_path: Path, body: str) -> None:
    (tmp_path / "slow.py").write_text(HOST.format(body))
    (tmp_path / "a.prog").write_text(GOOD)
    command = [sys.executable, "-m", "guestemu", "run", "a.prog", "--host", "slow.py:Host"]
    done = subprocess.run(
        [*command, "--limit", "0.1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("in all, and does not stop when it is interrupted")


def test_replay_keeps_the_results_of_the_others(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text(HOST.format(SWALLOWS))
    Path("b.prog").write_text(GOOD)
    for name in ("a", "c"):
        Path(f"{name}.prog").write_text(GOOD.replace("---", "host slow.py:Host\n---"))
    words = ["--plugins", ".", "--json", "--jobs", "1", "--junit", "out.xml", "--limit", "0.1"]
    assert main(["replay", "a.prog", "b.prog", *words]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["programs"], found["passed"], found["bad"]) == (2, 1, [])
    (failed,) = found["failed"]
    assert failed["program"] == "a.prog"
    assert "did not stop when it was interrupted" in failed["found"]
    assert Path("out.xml").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["show", "a.prog", "--host", "slow.py:Host", "--limit", str(LIMIT)],
        ["minimize", "a.prog", "--host", "slow.py:Host", "--limit", str(LIMIT)],
        ["run", "a.prog", "--host", "map-gpa-range,slow.py:Host", "--limit", str(LIMIT)],
    ],
    ids=lambda words: " ".join(words[:1]),
)
def test_a_host_that_does_not_return_is_said_by_every_verb(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text(HOST.format("while True: pass"))
    Path("a.prog").write_text(GOOD)
    status = main(words)
    out = capsys.readouterr().out
    assert status == (0 if words[0] == "minimize" else 1)
    assert "did not return" in out or "host-failed" in out


def test_the_conformance_suite_bounds_each_check(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "LIMIT_S", LIMIT)
    Path("slow.py").write_text(HOST.format("while True: pass"))
    assert main(["hosts", "--check", "slow.py:Host"]) == 1
    assert "Host.hypercall did not return" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["minimize", "show"])
def test_a_program_that_does_not_end_is_said(tmp_path: Path, capsys: Captured, verb: str) -> None:
    path = tmp_path / "a.prog"
    path.write_text(ENDLESS)
    assert main([verb, str(path), "--limit", str(LIMIT)]) == 1
    out, err = capsys.readouterr()
    assert "it took more than" in out + err
    assert err.count("\n") <= 1


def test_a_host_whose_construction_does_not_end_cannot_be_loaded(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugin, "LOAD_LIMIT_S", LIMIT)
    Path("slow.py").write_text(
        HOST.format("pass")
        .replace("def hypercall(self, call)", "def __init__(self)")
        .replace("pass", "while True: pass")
    )
    Path("a.prog").write_text(GOOD)
    assert main(["run", "a.prog", "--host", "slow.py:Host"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "slow.py:5: Host() failed: TimeUp: it took more than" in err


def _sleep(batch: Sequence[str]) -> Iterator[str]:
    for item in batch:
        if item == "stuck":
            time.sleep(held.DEADLINE_S)
        yield item


def test_a_worker_that_says_nothing_is_ended() -> None:
    answers = dict(run_batches(_sleep, [["a", "stuck", "b"]], 1, lambda item: f"{item}!", 1.0))
    assert answers == {"a": "a", "stuck": "stuck!", "b": "b"}
