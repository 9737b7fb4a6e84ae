# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of docs/*.md run, page by page and in order, and print what the page shows below them.

What needs a kernel or long runs with the soak tests, and so do the commands of generated pages.
`NOT_RUN` names the commands that no test runs as they stand, and why.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from guestemu.cli.main import main
from guestemu.guest.linux.images import fetched_images

ROOT = Path(__file__).parents[2]
GENERATED = {"claims.md", "zoo.md"}
PAGES = sorted((ROOT / "docs").glob("*.md"))

LONG = re.compile(
    r"guestemu kernel |oracle doctor|outcomes|linux:|kvm:|pages\.prog|ledger( --json)?$"
    r"|fuzz hypercall|--threats"
)
_BUILT: Final = "a kernel that the reader builds; tests/linux tests the verb on fetched ones"
_VMM: Final = "the library of the reader's VMM; tests/native builds and tests some"
_DOWNLOADS: Final = "downloads; tests/cli/test_kernel.py fetches from a stand-in"
_HOURS: Final = "takes longer than ten minutes; tests of the verb run a part of it"
_VM: Final = "builds or boots a host kernel for minutes; tests/oracle does it in the soak"
_OWN: Final = "a file or work directory of the reader; tests of the verb make one"
NOT_RUN: Final[Mapping[str, str]] = {
    r"bzImage": _BUILT,
    r"my_vmm\.so": _VMM,
    r"--cluster": _HOURS,
    r"--workload nvme\.txt": _OWN,
    r"kernel fetch": _DOWNLOADS,
    r"kernel (matrix|entries|hostile)": _HOURS,
    r"kernel defects(?! 6\.12 --only half-way)": _HOURS,
    r"ledger --kernels": _HOURS,
    r"oracle (fuzz|record|build)": _VM,
    r"linux-6\.1\.jsonl\.gz": _VM,
    r"fuzz (device|conversion)": _HOURS,
    r"explore kernel-migration": _HOURS,
    r"zoo (run|table)": _HOURS,
    r"merge guestemu-work|triage work|minimize long\.prog": _OWN,
}
"""Commands by pattern, with the reason."""

_NOT_RUN: Final = re.compile("|".join(NOT_RUN))
_PROGRAM = re.compile(
    r"^(guestemu-program 1\n(?:(?!\$|```).*\n)*)\$ guestemu run PROGRAM$", re.MULTILINE
)
"""A page's program above the command that runs it."""
_RELEASE = re.compile(r"\d+\.\d+\.\d+[\w+~-]*")
_FIGURE = re.compile(r"0x[0-9a-f]+|\d[\d,.]*")
_MEASURED = re.compile(r"instructions$|executions|blocks used up| s$|/s|Freeing|\d in \d")


class Typed(NamedTuple):
    """A line to type, and what the page shows below it."""

    line: str
    shown: list[str]


def typed(text: str) -> Iterator[Typed]:
    """The lines of code blocks that begin with `$` or `guestemu`; below the latter, which may have
    a remark behind two blanks, stands no output."""
    indent, is_fenced = 4, False
    current: Typed | None = None
    for line in re.sub(r"\\\n *", "", text).splitlines():
        fence = re.match(r"( *)(```|~~~)", line)
        if fence:
            indent, is_fenced = (4, False) if is_fenced else (len(fence[1]), True)
        body = line[indent:].rstrip()
        is_bare = body.startswith("guestemu ")
        is_end = fence or (line.strip() and not is_fenced and not line.startswith("    "))
        if is_end or is_bare or body.startswith("$ "):
            if current is not None:
                yield current
            current = Typed(body[2:], []) if body.startswith("$ ") and not is_end else None
            if is_bare and not is_end:
                yield Typed(re.split(r"  +", body)[0], [])
        elif current is not None:
            current.shown.append(body)
    if current is not None:
        yield current


def as_compared(line: str) -> str:
    """A line without what depends on the machine and on a kernel's point release."""
    text = _RELEASE.sub("R", line.strip())
    return _FIGURE.sub("N", text) if _MEASURED.search(text) else text


def follow(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_long: bool) -> None:
    for name in ("corpora", "examples", "tests", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "boot.trace").symlink_to(ROOT / "tests/data/dma-traces/linux-6.12-q35-boot.trace")
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    programs = iter(_PROGRAM.findall(text))
    for line, shown in typed(text):
        if line == "guestemu run PROGRAM":
            (tmp_path / "PROGRAM").write_text(next(programs))
        if line.startswith("cat "):
            (tmp_path / line.removeprefix("cat ").strip()).write_text("\n".join(shown) + "\n")
        if made := re.fullmatch(r"printf '(.*)' > (\S+)", line):
            (tmp_path / made[2]).write_text(made[1].replace("\\n", "\n"))
        if not line.startswith("guestemu ") or _NOT_RUN.search(line):
            continue
        if bool(LONG.search(line) or page.name in GENERATED) != is_long:
            continue
        words = shlex.split(line, comments=True)[1:]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
        if status == 3 and is_long:
            continue  # a kernel that this machine does not have
        assert status in (0, 1), (line, err.getvalue())
        printed = {as_compared(one) for one in (out.getvalue() + err.getvalue()).splitlines()}
        wanted = [one for one in shown if one.strip() not in ("", "...")]
        missing = [one for one in wanted if as_compared(one) not in printed]
        assert missing == [], (line, out.getvalue())


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_commands_print_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(page, tmp_path, monkeypatch, is_long=False)


@pytest.mark.soak
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_long_commands_print_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not {"6.1", "6.12"} <= {image.series for image in fetched_images()}:
        pytest.skip("no kernel was fetched")
    follow(page, tmp_path, monkeypatch, is_long=True)


def test_every_reason_why_a_command_is_not_run_is_one_of_a_page() -> None:
    lines = [one.line for page in PAGES for one in typed(page.read_text(encoding="utf-8"))]
    unused = [one for one in NOT_RUN if not any(re.search(one, line) for line in lines)]
    assert unused == []


def test_lines_to_type_and_what_they_show() -> None:
    text = (
        "text\n\n    $ guestemu a \\\n        --b\n    one\n      two\n\nend\n"
        "```console\n$ cat p.prog\nx\n\n$ guestemu c\ny\n```\n"
        "    guestemu d --e   a remark\n    z\n"
    )
    assert list(typed(text)) == [
        Typed("guestemu a --b", ["one", "  two", ""]),
        Typed("cat p.prog", ["x", ""]),
        Typed("guestemu c", ["y"]),
        Typed("guestemu d --e", []),
    ]
