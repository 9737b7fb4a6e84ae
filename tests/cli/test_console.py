# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import sys
import threading

import pytest

from guestemu.cli import _busy, console
from guestemu.cli.errors import one_line
from guestemu.program.program import Header


def test_a_table_is_as_wide_as_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit_table(("name", "n"), [("a", 1), ("longer", 22)])
    assert capsys.readouterr().out == "name    n\na       1\nlonger  22\n"


def test_json_writes_records(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit_json({"header": Header(guest="g"), "big": 2**64 - 1})
    out = capsys.readouterr().out
    assert out.startswith('{"schema":"guestemu/1","header":{"guest":"g",')
    assert out.endswith('"big":18446744073709551615}\n')


@pytest.mark.parametrize(
    ("terminal", "no_color", "term", "painted"),
    [
        (True, "", "xterm", "\x1b[31mx\x1b[0m"),
        (True, "1", "xterm", "x"),
        (True, "", "dumb", "x"),
        (False, "", "xterm", "x"),
    ],
)
def test_colour_needs_a_terminal_and_no_no_color(
    terminal: bool, no_color: str, term: str, painted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", term)
    assert console.paint("x", "red") == painted


def test_notes_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.notes().print("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_one_line_escapes_what_a_terminal_would_obey() -> None:
    assert one_line("a\n b\x1b[31m\x00é") == "a b\\x1b[31m\\x00é"


class Screen(io.StringIO):
    """A terminal that says when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count


def test_a_long_command_shows_the_time_until_it_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(_busy, "DELAY_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    console.begin("kernel.boot")
    with console.busy("guestemu kernel boot"):
        assert screen.written.wait(60)
        console.emit("reached")
        shown = screen.getvalue()
    assert shown.startswith("\r\x1b[Kguestemu kernel boot: 0 s")
    assert shown.endswith("\r\x1b[K"), "the line is taken away before the result"
    assert capsys.readouterr().out == "reached\n"
    assert screen.getvalue() == shown, "and does not come back"


def test_no_terminal_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with console.busy("guestemu kernel boot"):
        pass
    assert capsys.readouterr() == ("", "")
