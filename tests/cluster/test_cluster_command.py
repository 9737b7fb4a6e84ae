# SPDX-License-Identifier: GPL-2.0-or-later
"""`--cluster` from the outside: a scheduler and workers of their own, dead workers, Ctrl-C."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
from pathlib import Path

import pytest
from cluster_command import PLANTED, guestemu, listening
from held import HOSTS, children, end_of, is_alive, run_here, start, wait_for

HAS_DASK = importlib.util.find_spec("distributed") is not None
needs_dask = pytest.mark.skipif(not HAS_DASK, reason="the extra `cluster` is not installed")

HOST = f"{PLANTED}:ReservedBits"
HELD = f"{HOSTS}:HeldReservedBits"
EXECS = 2000


def campaign_workers(pid: int) -> list[int]:
    """Worker processes of campaigns below `pid`."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if b"guestemu.campaign.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


@needs_dask
@pytest.mark.soak
def test_a_worker_is_killed_half_way_and_the_campaign_ends_whole(cluster, tmp_path):
    process = start(
        *("fuzz", "msr", "--host", HELD, "--engine", "random", "--seed", "1"),
        *("--execs", str(EXECS), "--cluster", cluster.address, "--workdir", "w", "--json"),
        cwd=tmp_path,
    )
    findings = tmp_path / "w/findings"
    wait_for(lambda: findings.is_dir() and any(findings.glob("*.prog")), "a finding")
    cluster.hold.wait(process, 2)  # both shares are half way
    cluster.workers[0].kill()
    cluster.workers[0].wait()
    cluster.hold.release()
    status, output, errors = end_of(process)
    assert status == 1, errors
    figures = json.loads(output)
    assert figures["executions"] == EXECS
    # A share that was held while it looked for the cause files its program as it was found.
    assert {finding["check"] for finding in figures["findings"]} == {"migration-control"}
    finding = figures["findings"][0]
    text = (tmp_path / finding["program"]).read_text()
    assert f"guestemu run {finding['program']}" in text
    allowed = ("--plugins", str(Path(HOSTS).parent))
    assert guestemu("run", finding["program"], *allowed, cwd=tmp_path).returncode == 1
    lost, again = figures["infrastructure"]
    assert lost.startswith("cluster worker tcp://127.0.0.1:")
    assert "was lost" in lost
    assert "goes on at worker" in again
    assert figures["cluster"]["nodes"] == 3
    assert figures["cluster"]["lost"] == 1
    assert figures["corpus_size"] == len(list((tmp_path / "w/corpus").iterdir()))
    assert not list((tmp_path / "w/infrastructure").iterdir())


@needs_dask
@pytest.mark.soak
def test_replay_and_confirm_say_the_same_as_without_a_cluster(cluster, tmp_path):
    (tmp_path / "good.prog").write_text("guestemu-program 1\n---\ninit_platform\n")
    (tmp_path / "wrong.prog").write_text(
        f"guestemu-program 1\nhost {HOST}\n---\nwrmsr msr=0x4b564d08 value=2\n"
    )
    (tmp_path / "bad.prog").write_text("guestemu-program 1\n---\nno_such_op\n")
    address = ("--cluster", cluster.address)
    for arguments, status, ignored in (
        (("replay", "good.prog", "wrong.prog", "bad.prog"), 2, ("seconds",)),
        (("explore", "--confirm", "20", "--order", "2", "--script", "S2"), 0, ("seconds",)),
    ):
        here = run_here(*arguments, "--json", cwd=tmp_path)
        there = guestemu(*arguments, "--json", *address, cwd=tmp_path)
        assert (here.returncode, there.returncode) == (status, status), there.stderr
        one, other = json.loads(here.stdout), json.loads(there.stdout)
        for key in ignored:
            del one[key], other[key]
        assert one == other


@needs_dask
def test_ctrl_c_on_a_local_cluster_keeps_what_was_found_and_leaves_no_process(tmp_path):
    process = start(
        *("fuzz", "msr", "--host", HOST, "--engine", "random", "--cluster", "local"),
        *("--workdir", "w"),
        cwd=tmp_path,
    )
    findings = tmp_path / "w/findings"
    wait_for(lambda: findings.is_dir() and any(findings.glob("*.prog")), "a finding")
    wait_for(lambda: campaign_workers(process.pid), "a worker")
    below = children(process.pid)
    assert listening(process.pid) == {"127.0.0.1"}
    os.killpg(process.pid, signal.SIGINT)
    status, output, errors = end_of(process)
    assert status == 130
    assert "migration-control-wrmsr" in output
    assert errors.strip().splitlines()[-1] == "guestemu: interrupted"
    assert (tmp_path / "w/findings.json").stat().st_size > 10
    wait_for(lambda: not any(map(is_alive, below)), "the end of the workers")


@needs_dask
@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("fuzz", "msr", "--cluster", "here"), 2, "--cluster here: give `local` or"),
        (("fuzz", "msr", "--cluster", "tcp://127.0.0.1"), 2, "tcp://192.0.2.1:8786"),
        (("fuzz", "msr", "--cluster", "tcp://127.0.0.1:1", "--jobs", "2"), 2, "leave --jobs out"),
        (("replay", ".", "--cluster", "local", "--record"), 2, "--record"),
        (("explore", "--table", "--cluster", "local"), 2, "--cluster goes with --confirm"),
    ],
)
def test_bad_options_are_one_line(arguments, status, words, tmp_path):
    (tmp_path / "good.prog").write_text("guestemu-program 1\n---\ninit_platform\n")
    done = run_here(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
