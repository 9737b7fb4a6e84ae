# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts that hang, raise, change their minds or keep state: one finding each, whatever else."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_command import PLANTED, fuzz, fuzz_json
from held import run_here

HOSTS = Path(__file__).with_name("misbehaving_hosts.py")
RANDOM = ("--engine", "random", "--seed", "1")


def found(name: str, *words: str, target: str = "hypercall", cwd: Path) -> dict[str, str]:
    host = f"{HOSTS}:{name}"
    figures = fuzz_json(target, "--host", host, *words, *RANDOM, cwd=cwd, status=1)
    assert figures["infrastructure"] == []
    (finding,) = figures["findings"]
    return finding


@pytest.mark.parametrize(
    ("name", "words"),
    [("Hangs", "Hangs.hypercall did not return"), ("Raises", "Raises.hypercall raised KeyError")],
)
def test_a_host_that_fails_is_one_finding_with_a_program(name, words, tmp_path):
    finding = found(name, "--execs", "150", cwd=tmp_path)
    assert finding["check"] == "host-failed"
    text = (tmp_path / finding["program"]).read_text()
    assert words in text
    (op,) = [line for line in text.splitlines() if line.startswith("hypercall")]
    assert "a1=3" in op if name == "Hangs" else "a1=0" in op


def test_a_host_that_ends_its_process_is_a_finding_and_the_campaign_goes_on(tmp_path):
    figures = fuzz_json(
        *("hypercall", "--host", f"{HOSTS}:Ends", "--execs", "150"),
        *RANDOM,
        cwd=tmp_path,
        status=1,
    )
    assert (figures["executions"], figures["infrastructure"]) == (150, [])
    programs = {found["program"]: found["check"] for found in figures["findings"]}
    assert list(programs.values()) == ["host-failed"] * 3
    texts = sorted((tmp_path / program).read_text() for program in programs)
    for words in (
        "Ends.hypercall ended by a segmentation fault",
        "Ends.hypercall ended with status 3",
        "Ends.hypercall did not return: it computed for ever in machine code",
    ):
        (text,) = [text for text in texts if words in text]
        assert len([line for line in text.splitlines() if line.startswith("hypercall")]) == 1
    program = next(iter(programs))
    done = run_here("run", program, "--plugins", str(HOSTS.parent), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "host-failed" in done.stdout


def test_an_end_that_does_not_come_again_is_not_lost(tmp_path):
    finding = found("EndsOnce", "--execs", "400", cwd=tmp_path)
    assert finding["check"] == "not-reproducible"
    text = (tmp_path / finding["program"]).read_text()
    assert "the process ended once, and not when the program ran again" in text


def test_what_does_not_show_again_is_a_finding_that_says_so(tmp_path):
    finding = found("NowAndThen", "--execs", "600", cwd=tmp_path)
    assert finding["check"] == "not-reproducible"
    program = tmp_path / finding["program"]
    assert "did not show again" in program.read_text()
    plugins = ("--plugins", str(HOSTS.parent))
    assert run_here("run", str(program), *plugins, cwd=tmp_path).returncode == 0
    done = run_here("triage", str(program.parents[1]), *plugins, cwd=tmp_path)
    assert done.returncode == 1
    assert "(not shown again)" in done.stdout


def test_state_that_survives_a_reset_shows_over_a_reset(tmp_path):
    finding = found("KeepsReady", "--execs", "300", target="msr", cwd=tmp_path)
    assert finding["check"] == "migration-control"
    text = (tmp_path / finding["program"]).read_text()
    assert "vm_reset" in text.splitlines()
    assert "host: a VM that has not run is ready for migration" in text


def test_an_accepted_finding_is_counted_and_no_reason_for_status_1(tmp_path):
    words = ("hypercall", "--host", f"{PLANTED}:WrongErrno", "--execs", "60", *RANDOM)
    (finding,) = fuzz_json(*words, "--workdir", "a", cwd=tmp_path, status=1)["findings"]
    assert not finding["accepted"]
    known = tmp_path / "known.txt"
    known.write_text(f"# mended next week\n{finding['key']}\n")
    for accept in (finding["key"], str(known)):
        figures = fuzz_json(
            *words, "--accept", accept, "--workdir", accept[-5:], cwd=tmp_path, status=0
        )
        assert [found["accepted"] for found in figures["findings"]] == [True]
    done = fuzz(*words, "--accept", "no key", "--workdir", "d", cwd=tmp_path)
    assert done.returncode == 2
    assert "--accept no key" in done.stderr


def test_a_bound_of_ops_that_no_campaign_has_is_refused(tmp_path):
    done = fuzz("hypercall", "--max-ops", "65", "--execs", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "--max-ops 65: give a number from 1 to 64" in done.stderr


def test_a_status_kept_for_each_vcpu_shows_on_a_second_one(tmp_path):
    finding = found("ReadyPerVcpu", "--execs", "3000", target="msr", cwd=tmp_path)
    assert finding["check"] == "migration-control"
    lines = (tmp_path / finding["program"]).read_text().splitlines()
    assert "vcpus 2" in lines
    assert len({("vcpu=1" in line) for line in lines if "msr " in line}) == 2
    program = str(tmp_path / finding["program"])
    words = ("run", program, "--plugins", str(HOSTS.parent), "--vcpus", "1")
    done = run_here(*words, cwd=tmp_path)
    assert (done.returncode, "vcpu" in done.stderr) == (2, True), done.stderr


def test_the_number_of_vcpus_is_the_users(tmp_path):
    host = f"{HOSTS}:ReadyPerVcpu"
    words = ("--vcpus", "1", "--execs", "500", *RANDOM)
    assert fuzz_json("msr", "--host", host, *words, cwd=tmp_path, status=0)["findings"] == []
    refused = fuzz("msr", "--vcpus", "0", "--execs", "1", cwd=tmp_path)
    assert refused.returncode == 2
    assert "vcpus 0 is out of range" in refused.stderr
