# SPDX-License-Identifier: GPL-2.0-or-later
"""A command that is ended from outside exits with 130 and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from held import HOSTS, Hold, children, end_of, is_alive, start, wait_for

from guestemu.processes import EndSignals, end_signals_held

ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
HELD = f"{HOSTS}:Held"


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal: its command has begun."""
    text = Path(f"/proc/{pid}/status").read_text()
    mask = re.search(r"^SigCgt:\s*([0-9a-f]+)", text, re.MULTILINE)
    return mask is not None and bool(int(mask[1], 16) >> number - 1 & 1)


def programs(directory: Path, count: int) -> Path:
    directory.mkdir()
    for number in range(count):
        head = f"guestemu-program 1\nhost {HOSTS.name}:Held\n---\n"
        text = f"{head}hypercall nr=12 a0={number << 12:#x} a1=1\n"
        (directory / f"{number:02}.prog").write_text(text)
    return directory


def start_replay(tmp_path: Path):
    """`replay` whose two workers are in a host that does not return."""
    hold = Hold(tmp_path / "hold")
    process = start(
        *("replay", "--jobs", "2", "--plugins", str(HOSTS.parent)),
        str(programs(tmp_path / "programs", 24)),
        cwd=tmp_path,
        environment=hold.environment,
    )
    return process, hold.wait(process, 2)


@pytest.mark.parametrize("number", ENDS)
def test_replay_ends_at_once_with_its_workers(number, tmp_path):
    process, workers = start_replay(tmp_path)
    os.killpg(process.pid, number)
    status, _, errors = end_of(process)  # also the end of whatever holds its stdout
    assert status == 130
    assert errors == "guestemu: interrupted\n"
    wait_for(lambda: not any(map(is_alive, workers)), "the end of what it started")


def test_workers_of_a_killed_replay_die_with_it(tmp_path):
    process, workers = start_replay(tmp_path)
    process.kill()
    status, _, _ = end_of(process)
    assert status == -signal.SIGKILL
    wait_for(lambda: not any(map(is_alive, workers)), "the end of the workers")


def hammer(process) -> tuple[int, str, str]:
    """Ctrl-C again and again until the command is over, as an impatient user does."""
    while process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    return end_of(process)


def test_replay_bears_repeated_ctrl_c(tmp_path):
    process, workers = start_replay(tmp_path)
    status, _, errors = hammer(process)
    assert status == 130
    assert errors == "guestemu: interrupted\n"
    wait_for(lambda: not any(map(is_alive, workers)), "the end of the workers")


def start_fuzz(tmp_path: Path):
    hold = Hold(tmp_path / "hold", after=50)
    process = start(
        *("fuzz", "hypercall", "--host", HELD, "--engine", "random", "--jobs", "2"),
        *("--workdir", "w"),
        cwd=tmp_path,
        environment=hold.environment,
    )
    return process, hold.wait(process, 2)


def test_fuzz_bears_repeated_ctrl_c(tmp_path):
    """Its workers do not answer: they are in a host that does not return."""
    process, workers = start_fuzz(tmp_path)
    status, _, errors = hammer(process)
    assert status == 130
    assert errors.splitlines()[-1] == "guestemu: interrupted"
    wait_for(lambda: not any(map(is_alive, workers)), "the end of the workers")


def test_workers_that_do_not_answer_die_with_a_killed_campaign(tmp_path):
    process, workers = start_fuzz(tmp_path)
    process.kill()
    end_of(process)
    wait_for(lambda: not any(map(is_alive, workers)), "the end of the workers")


@pytest.mark.parametrize("number", ENDS)
def test_run_ends_inside_of_a_host_that_does_not_return(number, tmp_path):
    hold = Hold(tmp_path / "hold")
    program = programs(tmp_path / "programs", 1) / "00.prog"
    process = start(
        *("run", str(program), "--plugins", str(HOSTS.parent)),
        cwd=tmp_path,
        environment=hold.environment,
    )
    hold.wait(process)
    process.send_signal(number)
    status, _, errors = end_of(process)
    assert status == 130
    assert errors.splitlines()[-1] == "guestemu: interrupted"


LONG = [
    ("zoo", "run", "--execs", "1000000", "--jobs", "2"),
    ("explore", "--confirm", "100000"),
    ("ledger",),
    ("claims",),
]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("arguments", LONG, ids=lambda arguments: arguments[0])
def test_a_long_verb_ends_with_130(arguments, number, tmp_path):
    """Wherever it is: the signal comes as soon as the command would see it."""
    process = start(*arguments, cwd=tmp_path)
    wait_for(lambda: catches(process.pid, number), "the handler")
    below = children(process.pid)
    process.send_signal(number)
    status, _, errors = end_of(process)
    assert status == 130, errors
    assert "Traceback" not in errors
    wait_for(lambda: not any(map(is_alive, below)), "the end of what it started")


@pytest.mark.parametrize("number", ENDS)
def test_campaigns_of_the_zoo_end_with_it(number, tmp_path):
    process = start(
        *("zoo", "run", "--execs", "1000000", "--jobs", "2", "--engine", "random"), cwd=tmp_path
    )
    wait_for(lambda: len(children(process.pid)) == 2, "two campaigns")
    below = children(process.pid)
    process.send_signal(number)
    status, _, errors = end_of(process)
    assert status == 130, errors
    wait_for(lambda: not any(map(is_alive, below)), "the end of what it started")


def test_an_interrupt_at_an_import_that_builds_a_class_is_130_as_well(tmp_path):
    """CPython kills a process for it at its end, although it was caught."""
    (tmp_path / "verbs").mkdir()
    (tmp_path / "verbs/__init__.py").touch()
    (tmp_path / "verbs/stop.py").write_text(
        'def command():\n    """Stops."""\n    exec("raise KeyboardInterrupt")\n'
    )
    (tmp_path / "entry.py").write_text(
        "import sys\nfrom guestemu.cli.main import main\nsys.exit(main(package='verbs'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "entry", "stop"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "guestemu: interrupted\n"


def test_too_little_memory_is_one_line_and_status_3(tmp_path):
    program = tmp_path / "one.prog"
    program.write_text("guestemu-program 1\n---\nhypercall nr=12\n")
    done = subprocess.run(
        [
            *("bash", "-c", 'ulimit -v 1000000; exec "$@"', "-"),
            *(sys.executable, "-m", "guestemu", "run", str(program)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("guestemu: not enough memory")
    assert done.stderr.count("\n") == 1


def test_a_signal_while_a_process_is_started_comes_when_it_is_listed():
    listed = []

    def begin():
        with end_signals_held():
            signal.raise_signal(signal.SIGTERM)
            listed.append("process")
        listed.append("more")

    with EndSignals(), pytest.raises(KeyboardInterrupt):
        begin()
    assert listed == ["process"]
