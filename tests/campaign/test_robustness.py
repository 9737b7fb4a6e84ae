# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is lost, and it is said clearly: dead workers, full disks, damaged files, two campaigns.

What was seen is compared with the write-ahead record (`campaign.journal`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import planted_hosts
import pytest
from fuzz_command import PLANTED, fuzz, fuzz_json
from held import DEADLINE_S, end_of, start, wait_for
from test_fuzz_command import RANDOM, processes

from guestemu.campaign.journal import (
    FindingFiled,
    InputNoted,
    Journal,
    ViolationMet,
    input_name,
    journal_files,
    journal_path,
    read_journals,
    unsettled,
)
from guestemu.campaign.session import Plan, Session
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.campaign.targets import find_target
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.program.binary import encode_ops
from guestemu.program.ops import Op, OpKind

UNALIGNED = encode_ops([Op(OpKind.HYPERCALL, (12, 0x5001, 1, 0, 0))])
HYPERCALL = find_target("hypercall")


def new_store(root: Path, resume: bool = False) -> Store:
    return Store.create(root, CampaignRecord("hypercall", "", "", 39, False), resume)


# SIGKILL ----------------------------------------------------------------------------------------


def noted(workdir: Path) -> int:
    """Inputs in the journals."""
    entries = read_journals(journal_files(workdir / "journal"))
    return sum(isinstance(entry, InputNoted) for entry in entries)


def kill_each_time_it_moves(workdir: Path, times: int) -> int:
    """Kills one worker each time the campaign has noted more inputs, at last when it has filed a
    finding and noted 100 inputs."""
    for number in range(times):
        before = noted(workdir) + 5
        wait_for(lambda wanted=before: noted(workdir) >= wanted, "more inputs")
        if number == times - 1:
            wait_for(lambda: noted(workdir) > 100, "100 inputs")
            wait_for(lambda: any(workdir.glob("findings/*.prog")), "a finding")
        os.kill(processes(workdir)[0], signal.SIGKILL)
        wait_for(lambda wanted=number: deaths(workdir) > wanted, "the worker's death")
    return times


def kill_now_and_then(workdir: Path, process: subprocess.Popen[str], every: float) -> int:
    kills = 0
    while process.poll() is None:
        time.sleep(every)
        for worker in processes(workdir)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                kills += 1
    return kills


def deaths(workdir: Path) -> int:
    return len(list((workdir / "infrastructure").glob("death-*.bin")))


def check_nothing_lost(workdir: Path, result: dict[str, object]) -> tuple[int, int]:
    """Every entry of the journals is where it belongs; how many inputs and findings those are."""
    entries = read_journals(journal_files(workdir / "journal"))
    assert unsettled(entries) == []
    noted = {input_name(entry.data) for entry in entries if isinstance(entry, InputNoted)}
    kept = {path.name for path in (workdir / "corpus").iterdir()}
    assert noted <= kept
    for name in kept:
        assert input_name((workdir / "corpus" / name).read_bytes()) == name
    keys = {entry.key for entry in entries if isinstance(entry, FindingFiled)}
    assert keys <= {finding["key"] for finding in result["findings"]}
    assert keys <= {path.stem for path in (workdir / "findings").iterdir()}
    return len(noted), len(keys)


def start_under_fire(workdir: Path, engine: str, *arguments: str) -> subprocess.Popen[str]:
    process = start(
        *("fuzz", "hypercall", "--json", "--jobs", "2", "--engine", engine, *arguments),
        *("--host", f"{PLANTED}:Wraps", "--workdir", str(workdir)),
        cwd=workdir.parent,
    )
    wait_for(lambda: processes(workdir), "workers")
    return process


def check_deaths(workdir: Path, engine: str, result: dict[str, object], kills: int) -> None:
    """Each death is told, and what the dead had met is filed by the next session."""
    told = [line for line in result["infrastructure"] if "died of signal 9" in line]
    assert 0 < len(told) <= kills
    left = unsettled(read_journals(journal_files(workdir / "journal")))
    assert bool(left) == any("--resume files" in line for line in result["infrastructure"])
    result = fuzz_json(
        *("hypercall", "--execs", "2", "--resume", "--engine", engine),
        *("--host", f"{PLANTED}:Wraps", "--workdir", str(workdir)),
        cwd=workdir.parent,
        status=1,
    )
    inputs, findings = check_nothing_lost(workdir, result)
    assert inputs > 100
    assert findings > 0


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("random", marks=pytest.mark.soak),
        pytest.param("atheris", marks=pytest.mark.atheris),
    ],
)
def test_killed_workers_lose_nothing(engine, tmp_path):
    if engine == "atheris":
        pytest.importorskip("atheris")
    workdir = tmp_path / "w"
    process = start_under_fire(workdir, engine)
    try:
        kills = kill_each_time_it_moves(workdir, 3)
    finally:
        process.send_signal(signal.SIGINT)
        status, output, errors = end_of(process)
    assert status == 130, errors
    check_deaths(workdir, engine, json.loads(output), kills)


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["random", "atheris"])
def test_a_worker_killed_every_5_s_for_a_minute_loses_nothing(engine, tmp_path):
    workdir = tmp_path / "w"
    process = start_under_fire(workdir, engine, "--time", "60")
    kills = kill_now_and_then(workdir, process, 5)
    status, output, errors = end_of(process)
    assert status == 1, errors
    check_deaths(workdir, engine, json.loads(output), kills)


def test_what_a_dead_session_met_is_filed_by_the_next(tmp_path):
    store = new_store(tmp_path / "w")
    Journal(journal_path(store.journals, 3)).add(ViolationMet("left behind", UNALIGNED, 1.0))
    plan = Plan(HYPERCALL, HYPERCALL.header, jobs=3)  # number 3 of another run: 0 looks after it
    session = Session(plan, store, host=planted_hosts.WrongErrno())
    session.recover()
    (finding,) = session.make_report().findings
    assert store.finding_path(finding.key).exists()
    assert store.unsettled() == []


def test_findings_of_a_killed_supervisor_are_known_to_the_next(tmp_path):
    workdir = tmp_path / "w"
    host = ("--host", f"{PLANTED}:ReservedBits", "--workdir", str(workdir))
    process = start("fuzz", "msr", *RANDOM, *host, cwd=tmp_path)
    try:
        wait_for(lambda: any(workdir.glob("findings/*.prog")), "a finding")
        wait_for(lambda: b"filed" in (workdir / "journal/worker-0.jsonl").read_bytes(), "its key")
    finally:
        process.kill()
        end_of(process)
    wait_for(lambda: not processes(workdir), "the end of the worker")
    (workdir / "findings.json").unlink(missing_ok=True)
    saved = {path.stem for path in workdir.glob("findings/*.prog")}
    result = fuzz_json("msr", "--execs", "1", "--resume", *RANDOM, *host, cwd=tmp_path, status=1)
    assert saved <= {finding["key"] for finding in result["findings"]}


# Crashes of the emulator ------------------------------------------------------------------------


def test_a_crash_inside_the_emulator_is_infrastructure_and_its_input_is_kept(tmp_path):
    workdir = tmp_path / "w"
    arguments = ("fuzz", "hypercall", "--json", *RANDOM, "--workdir", str(workdir))
    process = start(*arguments, cwd=tmp_path)
    wait_for(lambda: noted(workdir) > 5, "inputs")
    (worker,) = processes(workdir)
    os.kill(worker, signal.SIGSEGV)  # no code of a user's runs there
    wait_for(lambda: set(processes(workdir)) - {worker}, "its replacement")
    process.send_signal(signal.SIGINT)
    status, output, errors = end_of(process)
    assert status == 130, errors
    result = json.loads(output)
    assert result["findings"] == []
    (death,) = result["infrastructure"]
    assert "died of signal 11" in death
    (kept,) = (workdir / "infrastructure").glob("crash-*.bin")
    assert len(kept.read_bytes()) % 48 == 0


def test_an_input_that_crashed_a_worker_is_not_run_again(tmp_path):
    class Counting(MapGpaRangeHost):
        calls = 0

        def hypercall(self, call):
            self.calls += 1
            return super().hypercall(call)

    store = new_store(tmp_path / "w")
    store.save_death("1-1", UNALIGNED, is_crash=True)
    host = Counting()
    session = Session(Plan(HYPERCALL, HYPERCALL.header), store, host=host)
    assert not session.execute(UNALIGNED)
    assert host.calls == 0
    assert session.execute(encode_ops([Op(OpKind.HYPERCALL, (12, 0x5000, 1, 0, 0))]))
    assert host.calls == 1


# Damaged files ----------------------------------------------------------------------------------


def test_a_damaged_corpus_is_mended_or_named(tmp_path):
    arguments = ("msr", "--execs", "300", *RANDOM, "--workdir", "w")
    fuzz_json(*arguments, cwd=tmp_path, status=0)
    corpus = tmp_path / "w/corpus"
    journal = tmp_path / "w/journal/worker-0.jsonl"
    noted = [e.data for e in read_journals([journal]) if isinstance(e, InputNoted)]
    torn = corpus / input_name(noted[0])
    torn.write_bytes(noted[0][:-1])
    (corpus / input_name(noted[1])).unlink()
    stranger = corpus / ("ab" * 20)
    stranger.write_bytes(b"half of somethi")
    (corpus / "directory").mkdir()
    (corpus / "nowhere").symlink_to("/does/not/exist")
    (corpus / ".half.99").write_bytes(b"x")
    with journal.open("ab") as file:
        file.write(b'{"type":"met","sign":"cut o')
    result = fuzz_json(*arguments, "--resume", cwd=tmp_path, status=0)
    assert torn.read_bytes() == noted[0]
    assert (corpus / input_name(noted[1])).read_bytes() == noted[1]
    assert not stranger.exists()
    assert (tmp_path / f"w/infrastructure/damaged-{stranger.name}").read_bytes() == (
        b"half of somethi"
    )
    assert not (corpus / ".half.99").exists()
    told = "\n".join(result["infrastructure"])
    for name in (stranger.name, "directory", "nowhere"):
        assert name in told


def test_a_line_cut_off_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "worker-0.jsonl"
    journal = Journal(path)
    journal.add(InputNoted(b"one"))
    with path.open("ab") as file:
        file.write(b'{"type":"input","da')
    Journal(path).add(InputNoted(b"two"))
    assert read_journals([path]) == [InputNoted(b"one"), InputNoted(b"two")]


# Full disks -------------------------------------------------------------------------------------


def on_a_small_disk(script: str, disk: Path, kilobytes: int) -> subprocess.CompletedProcess[str]:
    """Runs a shell script with a file system of its own at `disk`."""
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={kilobytes}k none {shlex.quote(str(disk))}"
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False).returncode:
        pytest.skip("no file system of one's own can be mounted here")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && {script}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )


def test_a_full_disk_ends_the_campaign_with_what_it_found(tmp_path):
    disk = tmp_path / "disk"
    campaign = shlex.join(
        [
            *(sys.executable, "-m", "guestemu", "fuzz", "msr", "--engine", "random"),
            *("--seed", "1", "--json", "--host", f"{PLANTED}:ReservedBits"),
            *("--workdir", f"{disk}/w"),
        ]
    )
    copy = shlex.join(["cp", "-r", f"{disk}/w", f"{tmp_path}/saved"])
    command = f"{campaign}; status=$?; {copy}; exit $status"
    done = on_a_small_disk(command, disk, 700)
    assert done.returncode == 3, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert str(disk) in last
    assert "disk is full" in last or "No space left" in last
    saved = tmp_path / "saved"
    (program,) = saved.glob("findings/*.prog")
    assert "wrmsr" in program.read_text()
    counts = json.loads((saved / "findings.json").read_text())
    assert [found["key"] for found in counts] == [program.stem]
    for path in (saved / "corpus").iterdir():
        assert path.name == input_name(path.read_bytes())


def test_a_disk_that_is_full_from_the_start_is_named(tmp_path):
    fuzz_json("msr", "--execs", "50", *RANDOM, "--workdir", "w", cwd=tmp_path, status=0)
    journal = tmp_path / "w/journal/worker-0.jsonl"
    journal.unlink()
    journal.symlink_to("/dev/full")
    shutil.rmtree(tmp_path / "w/corpus")
    done = fuzz("msr", "--execs", "50", "--resume", *RANDOM, "--workdir", "w", cwd=tmp_path)
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert "worker-0.jsonl: No space left on device; make room there" in last
    assert done.stderr.count("guestemu: ") == 1


# Two campaigns ----------------------------------------------------------------------------------


def test_a_directory_serves_one_campaign_at_a_time(tmp_path):
    workdir = tmp_path / "w"
    process = start("fuzz", "msr", *RANDOM, "--workdir", str(workdir), cwd=tmp_path)
    try:
        wait_for(lambda: processes(workdir), "a worker")
        done = fuzz(
            "msr", "--execs", "9", "--resume", *RANDOM, "--workdir", str(workdir), cwd=tmp_path
        )
    finally:
        process.send_signal(signal.SIGINT)
        end_of(process)
    assert done.returncode == 2
    assert "a campaign is running there" in done.stderr
    resumed = fuzz(
        "msr", "--execs", "9", "--resume", *RANDOM, "--workdir", str(workdir), cwd=tmp_path
    )
    assert resumed.returncode == 0, resumed.stderr
