# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration, `python -m guestemu.demo`: three acts, each a command a user would give.

It runs from a checkout, whose recorded trace and regression programs it shows. Exit status 0: every
act went as expected (findings of the campaign are expected: they are told, not judged); 1: one did
not; 2: no checkout; 130: Ctrl-C.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.cli import console
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_OK, report

TRACE: Final = "tests/data/dma-traces/linux-6.12-q35-io.trace"
CORPORA: Final = "corpora"
FUZZ_SECONDS: Final = 20
SHOWN_FINDINGS: Final = 10
_ROOT: Final = Path(__file__).parents[1]


class Finding(msgspec.Struct, frozen=True):
    """What the demonstration reads of one finding of `guestemu fuzz --json`."""

    key: str
    check: str
    first_seen_s: float
    count: int


class Campaign(msgspec.Struct, frozen=True):
    """What the demonstration reads of `guestemu fuzz --json`."""

    executions: int
    execs_per_second: float
    findings: list[Finding]


class Act(msgspec.Struct, frozen=True):
    """One act: headline, what it shows, the arguments of `guestemu`, the statuses that are as
    expected. With `tell`, stdout is read and told by it instead of being shown."""

    title: str
    about: str
    arguments: tuple[str, ...]
    expected: frozenset[int] = frozenset({EXIT_OK})
    tell: Callable[[bytes], None] | None = None


def acts(fuzz_seconds: int, workdir: Path) -> tuple[Act, ...]:
    """The three acts; the campaign works in `workdir`, which must be empty or not there."""
    return (
        Act(
            "A real kernel's DMA allocations, on a guest",
            "Linux 6.12 with a dozen devices was traced from boot to I/O. Each of its coherent\n"
            "buffers is now decrypted, cleared and encrypted again by guest code; the checks\n"
            "compare page tables with what the host was told.",
            ("dma", TRACE),
        ),
        Act(
            f"A {fuzz_seconds}-second fuzz campaign on page conversions",
            "Random programs of conversions and memory accesses run against the\n"
            "guest code of a Linux kernel and a model of KVM, one machine reset for each.",
            (
                *("fuzz", "conversion", "--time", str(fuzz_seconds)),
                *("--workdir", str(workdir), "--json"),
            ),
            frozenset({EXIT_OK, EXIT_FINDINGS}),
            tell_campaign,
        ),
        Act(
            "The regression programs",
            "Every known finding is a short program with its expected outcome.",
            ("replay", CORPORA),
        ),
    )


def tell_campaign(output: bytes) -> None:
    """Says what a campaign found and why that is no failure of the demonstration."""
    try:
        campaign = msgspec.json.decode(output, type=Campaign)
    except msgspec.DecodeError:
        raise InputError("guestemu fuzz --json printed no campaign; run it by hand") from None
    console.emit(
        f"{campaign.executions} programs ran, {campaign.execs_per_second:.0f} per second; "
        f"{len(campaign.findings)} findings"
    )
    for finding in campaign.findings[:SHOWN_FINDINGS]:
        console.emit(
            f"  {finding.check}: {finding.key} (after {finding.first_seen_s:.1f} s, "
            f"{finding.count} times)"
        )
    hidden = len(campaign.findings) - SHOWN_FINDINGS
    if hidden > 0:
        console.emit(f"  and {hidden} more")
    if campaign.findings:
        console.emit(
            "A finding is a program after which a property did not hold. Guest and host do"
        )
        console.emit("what the sources say those kernels do, so these are theirs: no failure here.")


def perform(number: int, act: Act) -> bool:
    """Runs one act; True when it ended with an expected status. Raises KeyboardInterrupt after
    Ctrl-C, when the act has ended, and `InputError` for output that cannot be read."""
    console.emit(console.paint(f"\nAct {number}: {act.title}", "bold"))
    console.emit(act.about)
    shown = [argument for argument in act.arguments if argument != "--json"]
    console.emit(console.paint(f"$ guestemu {' '.join(shown)}", "dim"))
    sys.stdout.flush()
    output = subprocess.PIPE if act.tell else None
    command = [sys.executable, "-m", "guestemu", *act.arguments]
    with subprocess.Popen(command, cwd=_ROOT, stdout=output) as process:
        try:
            text, _ = process.communicate()
        except KeyboardInterrupt:
            process.wait()
            raise
    if process.returncode == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if process.returncode not in act.expected:
        return False
    if act.tell is not None:
        act.tell(text)
    return True


def play(fuzz_seconds: int) -> int:
    """All acts and a closing table; returns the exit status. Raises `InputError` outside of a
    checkout."""
    for needed in (TRACE, CORPORA):
        if not (_ROOT / needed).exists():
            raise InputError(
                f"demo: {needed} is not there; run `make demo` in a checkout of the repository"
            )
    rows = []
    failed = False
    with TemporaryDirectory(prefix="guestemu-demo-") as workdir:
        for number, act in enumerate(acts(fuzz_seconds, Path(workdir) / "fuzz"), start=1):
            start = time.monotonic()
            is_good = perform(number, act)
            failed |= not is_good
            outcome = "as expected" if is_good else "FAILED"
            rows.append((number, act.title, outcome, f"{time.monotonic() - start:.1f} s"))
    console.emit()
    console.emit_table(("act", "what", "outcome", "time"), rows)
    return EXIT_FINDINGS if failed else EXIT_OK


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: parses `arguments` (default: the process's) and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m guestemu.demo", description="Shows guestemu at work, in three acts."
    )
    parser.add_argument(
        "--time", type=int, default=FUZZ_SECONDS, metavar="S", help="seconds of fuzzing (20)"
    )
    console.prepare_streams()
    options = parser.parse_args(arguments)
    seconds: int = options.time
    try:
        if seconds < 1:
            raise InputError(f"demo: --time {seconds}: give at least 1 second")
        return play(seconds)
    except (KeyboardInterrupt, InputError) as error:
        return report(error)


if __name__ == "__main__":
    sys.exit(main())
