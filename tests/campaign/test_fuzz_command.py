# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu fuzz` from the outside: figures, status, directories, Ctrl-C, dead workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from fuzz_command import PLANTED, fuzz, fuzz_json
from held import HOSTS, Hold, end_of, is_alive, run_here, start, wait_for

RANDOM = ("--engine", "random", "--seed", "1")


def processes(workdir: Path) -> list[int]:
    """The workers of a campaign, by the directory in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"guestemu.campaign.worker" in words and str(workdir).encode() in words:
                found.append(int(entry.name))
    return found


def test_clean_campaign_reports_its_figures_and_exits_0(tmp_path):
    figures = fuzz_json("hypercall", "--execs", "500", *RANDOM, cwd=tmp_path, status=0)
    assert figures["executions"] == 500
    assert figures["execs_per_second"] > 0
    assert figures["findings"] == []
    assert figures["corpus_size"] == len(
        list((tmp_path / "guestemu-work/hypercall/corpus").iterdir())
    )
    assert figures["coverage"]["guest_blocks"] > 0
    assert figures["coverage"]["model_states"] > 10


def test_findings_exit_1_and_their_programs_reproduce_and_replay(tmp_path):
    host = f"{PLANTED}:ReservedBits"
    figures = fuzz_json("msr", "--execs", "500", "--host", host, *RANDOM, cwd=tmp_path, status=1)
    (finding,) = figures["findings"]
    assert finding["check"] == "migration-control"
    assert finding["count"] > 1
    program = tmp_path / finding["program"]
    text = program.read_text()
    assert "K5-f" in text
    assert f"guestemu run {finding['program']}" in text
    assert program.name == f"{finding['key']}.prog"
    for verb, status in (("run", 1), ("replay", 0)):
        words = (verb, finding["program"], "--plugins", str(PLANTED.parent))
        done = run_here(*words, cwd=tmp_path)
        assert done.returncode == status, done.stdout + done.stderr


def test_a_campaign_ends_at_the_finding_that_is_wanted_and_an_old_one_does_not_count(tmp_path):
    wanted = ("msr", "--host", f"{PLANTED}:ReservedBits", "--until-finding", *RANDOM)
    figures = fuzz_json(*wanted, "--jobs", "2", cwd=tmp_path, status=1)
    (finding,) = figures["findings"]
    assert not figures["interrupted"]
    assert (tmp_path / finding["program"]).exists()
    figures = fuzz_json(*wanted, "--execs", "300", "--resume", cwd=tmp_path, status=1)
    assert figures["executions"] == 300
    assert [found["key"] for found in figures["findings"]] == [finding["key"]]


def test_same_seed_and_executions_give_the_same_campaign(tmp_path):
    figures = [
        fuzz_json(
            *("msr", "--execs", "400", "--host", f"{PLANTED}:ReadsZero", "--workdir", name),
            *RANDOM,
            cwd=tmp_path,
            status=1,
        )
        for name in ("a", "b")
    ]
    for key in ("executions", "corpus_size", "coverage"):
        assert figures[0][key] == figures[1][key]
    corpora = [sorted(p.name for p in (tmp_path / name / "corpus").iterdir()) for name in "ab"]
    assert corpora[0] == corpora[1]
    counts = [[(f["key"], f["count"]) for f in each["findings"]] for each in figures]
    assert counts[0] == counts[1]


def test_jobs_share_executions(tmp_path):
    figures = fuzz_json(
        "hypercall", "--execs", "501", "--jobs", "2", *RANDOM, cwd=tmp_path, status=0
    )
    assert figures["executions"] == 501


def test_directory_in_use_needs_resume_and_resume_goes_on(tmp_path):
    host = ("--host", f"{PLANTED}:ReservedBits")
    first = fuzz_json("msr", "--execs", "400", *host, *RANDOM, cwd=tmp_path, status=1)
    refused = fuzz("msr", "--execs", "400", *host, *RANDOM, cwd=tmp_path)
    assert refused.returncode == 2
    assert "guestemu-work/msr+planted_hosts.py-ReservedBits: not empty" in refused.stderr
    assert "--resume" in refused.stderr
    second = fuzz_json("msr", "--execs", "400", "--resume", *host, *RANDOM, cwd=tmp_path, status=1)
    assert second["corpus_size"] >= first["corpus_size"]
    assert second["findings"][0]["count"] > first["findings"][0]["count"]
    workdir = ("--workdir", "guestemu-work/msr+planted_hosts.py-ReservedBits")
    other = fuzz("msr", "--resume", "--execs", "400", *workdir, *RANDOM, cwd=tmp_path)
    assert other.returncode == 2
    assert "that campaign has host" in other.stderr


def test_each_host_and_guest_has_its_directory(tmp_path):
    for options in ((), ("--host", "qemu-v4"), ("--guest", "snippet:5.17"), ("--faults",)):
        done = fuzz(
            "conversion", "--execs", "1", "--inputs", "none", *options, *RANDOM, cwd=tmp_path
        )
        assert done.returncode in (0, 1), done.stderr
    assert {path.name for path in (tmp_path / "guestemu-work").iterdir()} == {
        *("conversion", "conversion+qemu-v4", "conversion+snippet-5.17", "conversion+faults"),
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("syn",), "target 'syn': no such target; did you mean sync?"),
        (("msr", "--engine", "afl"), "use one of atheris, blind"),
        (("msr", "--execs", "0"), "--execs 0: give a positive number"),
        (("msr", "--time", "0"), "'--time': '0': give a duration such as"),
        (("msr", "--jobs", "0"), "--jobs 0"),
        (("msr", "--host", "nothing"), "host 'nothing': no such host"),
        (("msr", "--guest", "snippet:9"), "snippet:9"),
        (("msr", "--cbit", "20"), "cbit 20"),
        (("msr", "--workdir", "/dev/null/x"), "/dev/null/x"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(arguments, words, tmp_path):
    done = fuzz(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_plugin_that_raises_is_a_finding_with_its_line(tmp_path):
    figures = fuzz_json(
        *("hypercall", "--execs", "5", "--host", f"{PLANTED}:Raises", *RANDOM),
        cwd=tmp_path,
        status=1,
    )
    (finding,) = figures["findings"]
    assert finding["check"] == "host-failed"
    line = PLANTED.read_text().splitlines().index('        raise KeyError("no such slot")') + 1
    assert f"planted_hosts.py:{line}" in (tmp_path / finding["program"]).read_text()


def test_ctrl_c_keeps_everything_and_exits_130(tmp_path):
    host = ("--host", f"{PLANTED}:ReservedBits")
    process = start("fuzz", "msr", *host, *RANDOM, "--workdir", "w", cwd=tmp_path)
    findings = tmp_path / "w/findings"
    wait_for(lambda: findings.is_dir() and any(findings.glob("*.prog")), "a finding")
    process.send_signal(signal.SIGINT)
    status, output, errors = end_of(process)
    assert status == 130
    assert "migration-control-wrmsr" in output
    assert errors.strip().splitlines()[-1] == "guestemu: interrupted"
    assert (tmp_path / "w/findings.json").stat().st_size > 10


def test_killed_worker_is_replaced_and_is_no_finding(tmp_path):
    workdir = tmp_path / "w"
    hold = Hold(tmp_path / "hold", after=300)
    process = start(
        *("fuzz", "hypercall", "--execs", "600", "--json", *RANDOM, "--workdir", str(workdir)),
        *("--host", f"{HOSTS}:Held"),
        cwd=tmp_path,
        environment=hold.environment,
    )
    (worker,) = hold.wait(process)
    assert processes(workdir) == [worker]
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not is_alive(worker), "the death of the worker")
    hold.wait(process)  # its replacement
    hold.release()
    status, output, errors = end_of(process)
    assert status == 0, errors
    figures = json.loads(output)
    assert figures["findings"] == []
    assert figures["executions"] == 600
    (death,) = figures["infrastructure"]
    assert "died of signal 9" in death
    (kept,) = (workdir / "infrastructure").glob("death-*.bin")
    assert len(kept.read_bytes()) % 48 == 0


def test_workers_end_when_the_supervisor_is_killed(tmp_path):
    workdir = tmp_path / "w"
    process = start("fuzz", "hypercall", *RANDOM, "--workdir", str(workdir), cwd=tmp_path)
    wait_for(lambda: processes(workdir), "a worker")
    process.kill()
    end_of(process)
    wait_for(lambda: not processes(workdir), "the end of the worker")
