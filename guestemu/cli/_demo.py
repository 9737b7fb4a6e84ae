# SPDX-License-Identifier: GPL-2.0-or-later
"""The acts of `guestemu demo`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from guestemu.abi.names import command_line
from guestemu.abi.shipped import shipped_path
from guestemu.cli import console
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from guestemu.program.program import Program

FORGOTTEN: Final = "forgotten-error.prog"
HOST: Final = "my_host.py"
SERIES: Final = "6.1"
_PACKAGE: Final = Path(__file__).parents[1]
_MESSAGE_BYTES: Final = 8


class Bytes(msgspec.Struct, frozen=True):
    """What the guest read of the page before and after its migration."""

    written: bytes
    arrived: bytes


def play(seconds: float, may_fetch: bool, workdir: Path) -> int:
    """All acts; `workdir` gets the files. The exit status: 1 if an act did not go as expected."""
    for name in (FORGOTTEN, HOST):
        shutil.copyfile(shipped_path(f"demo/{name}"), workdir / name)
    good = [
        first_act(workdir),
        second_act(workdir, ("--time", f"{seconds:g}s")),
        third_act(workdir, may_fetch),
    ]
    _say_next()
    return EXIT_OK if all(good) else EXIT_FINDINGS


def first_act(workdir: Path) -> bool:
    """A host forgets an error, the guest is migrated, the page is garbage."""
    from guestemu.program.text import load_program

    _title(1, "a host forgets an error, and a migration loses a page")
    _say("The guest makes a page shared and tells the host, which answers -EINVAL and")
    _say("records nothing. Linux throws the answer away and fills the page with 'A'.")
    _say("Then the guest is migrated: the host sends the page by its record, as private.")
    program = load_program(workdir / FORGOTTEN)
    refused = migrated_bytes(program)
    answered = migrated_bytes(msgspec.structs.replace(program, ops=program.ops[1:]))
    _say()
    _dump("the guest wrote", refused.written)
    _dump("arrived, if the host recorded it", answered.arrived)
    _dump("arrived, as the host forgot it", refused.arrived)
    _say()
    _say("Nothing warned: not the guest, not the host. guestemu's checks do:")
    status = _run(("run", FORGOTTEN), workdir, shown=_first_violation)
    return (
        status == EXIT_FINDINGS
        and answered.arrived == answered.written
        and refused.arrived != refused.written
    )


def migrated_bytes(program: Program) -> Bytes:
    """The first bytes of the page that `program` reads before and after its migration."""
    from guestemu.program.ops import OpKind
    from guestemu.report.trace.run import run_program
    from guestemu.report.trace.words import value_of

    results = run_program(program).outcome.results
    read = [
        (value_of(result.op, result.outcome) or 0).to_bytes(_MESSAGE_BYTES, "little")
        for result in results
        if result.op.kind is OpKind.READ
    ]
    half = len(read) // 2
    return Bytes(b"".join(read[:half]), b"".join(read[half:]))


def second_act(workdir: Path, limit: tuple[str, ...]) -> bool:
    """A host with a bug, found by a campaign of `limit`, explained."""
    _title(2, "a host of your own, with a bug")
    _say(f"{HOST} is a host in ten lines. A range that ends at a multiple of 64 frames")
    _say("loses its last page. The campaign has to find that by itself.")
    work = "found"
    campaign = (
        *("fuzz", "hypercall", "--host", f"{HOST}:MyHost"),
        *(*limit, "--workdir", work),
    )
    status = _run(campaign, workdir)
    told = _run(("triage", work, "--plugins", "."), workdir)
    _say(f"The line of {HOST} is named, and a program of one operation shows the bug.")
    return status == told == EXIT_FINDINGS


def third_act(workdir: Path, may_fetch: bool) -> bool:
    """The real kernel converts a page."""
    from guestemu.guest.linux.images import fetched_images

    _title(3, "an unmodified Linux kernel converts a page")
    here = {image.series for image in fetched_images()}
    series = SERIES if SERIES in here else max(here, key=_numbers, default=None)
    if series is None and may_fetch:
        _say("No kernel is here yet; Debian's package is fetched (about 30 MB).")
        if _run(("kernel", "fetch", SERIES), workdir) == EXIT_OK:
            series = SERIES
    if series is None:
        _say("Left out: there is no kernel image here. `guestemu kernel fetch` gets one")
        _say("where this machine's apt can; --image takes any .deb, vmlinuz or bzImage.")
        return True
    _say("Debian's kernel boots as a SEV guest; then its own set_memory_decrypted() runs.")
    call = ("kernel", "call", "set_memory_decrypted", "page:0", "1", "--image", series)
    return _run(call, workdir) == EXIT_OK


def _say(text: str = "") -> None:
    """A line that stands between the outputs of commands, as they come."""
    console.emit(text)


def _numbers(series: str) -> tuple[int, ...]:
    return tuple(int(part) for part in series.split(".") if part.isdecimal())


def _say_next() -> None:
    _say()
    _say(console.paint("Where to go", "bold"))
    for command, what in (
        (("init", "my-host"), "a project of your own: a host, programs, a CI workflow"),
        (("explain", "A17"), "the fact behind act 1"),
        (("fuzz", "conversion", "--time", "10m"), "a campaign on page conversions"),
        (("kernel", "boot", "--console"), "watch a kernel boot as a SEV guest"),
        (("--help",), "everything else"),
    ):
        _say(f"  {command_line(*command):<38}  {what}")


def _title(number: int, text: str) -> None:
    _say()
    _say(console.paint(f"Act {number}: {text}", "bold"))


def _dump(what: str, data: bytes) -> None:
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
    _say(f"  {what:<34} {data.hex(' ')}  {text}")


def _first_violation(lines: Sequence[str]) -> list[str]:
    """The lines of the first violation in the output of `guestemu run`."""
    start = next((n for n, line in enumerate(lines) if "! violation" in line), 0)
    return [*lines[start : start + 3], *lines[-1:]]


def _run(
    words: tuple[str, ...],
    directory: Path,
    shown: Callable[[Sequence[str]], list[str]] | None = None,
) -> int:
    """Runs a command in `directory` as a user would; its status.

    Of its output the lines that `shown` chooses are printed, all of them without it. Raises
    KeyboardInterrupt after Ctrl-C, when the command has ended.
    """
    _say(console.paint(f"$ {command_line(*words)}", "dim"))
    sys.stdout.flush()
    path = os.pathsep.join(filter(None, (str(_PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [sys.executable, "-m", "guestemu", *words],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE if shown else None,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:
            process.wait()
            raise
    if process.returncode == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    for line in shown(output.splitlines()) if shown else ():
        _say(line)
    return process.returncode
