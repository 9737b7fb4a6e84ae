# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame of the command line, with verbs made for the test."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guestemu import __version__
from guestemu.cli.main import _command, find_verbs, main

PACKAGE = "frame_verbs"

VERBS = {
    "echo": '''
from typing import Annotated
import typer
from guestemu.cli import console

RENAMED = {"--rows": "--lines"}
NUMBERS = {"--times": "2"}

def command(
    words: Annotated[list[str], typer.Argument(help="What to say.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    lines: int = 1,
    times: int = 1,
) -> None:
    """Says words.

    For example:

      guestemu echo hello --lines 3 and a command line that is longer than any help column is

      guestemu echo twice
    """
    console.note("working")
    for _ in range(lines * times):
        if as_json:
            console.emit_json({"words": words, "count": len(words)})
        else:
            console.emit(" ".join(words))
''',
    "fail": '''
import typer
from typing import Annotated
from guestemu.abi import errors as abi
from guestemu.cli import console
from guestemu.abi.errors import InputError, MissingError, PluginError
from guestemu.cli.errors import EXIT_FINDINGS

def command(how: str, as_json: Annotated[bool, typer.Option("--json")] = False) -> int:
    """Fails."""
    if how == "late":
        console.emit_json({"how": how})
        raise KeyboardInterrupt
    if how == "findings":
        return EXIT_FINDINGS
    if how == "exit":
        raise typer.Exit(1)
    if how == "open":
        open("/nonexistent/file")
    raise {
        "input": InputError("a.prog:3: no op 'x';\\n did you mean y?"),
        "plugin": PluginError("my.py: class Host has no hypercall; add it"),
        "missing": MissingError("atheris is not installed; pip install guestemu[fuzz]"),
        "interrupt": KeyboardInterrupt(),
        "abort": typer.Abort(),
        "memory": MemoryError(),
        "full": OSError(28, "No space left on device"),
        "bug": KeyError("slot"),
        "engine": abi.EngineError("emu_start returned 21"),
    }[how]
''',
    "status": 'GROUP = "Search"\ndef command() -> None:\n    """Shows nothing."""\n',
    "stop": 'GROUP = "Start"\nORDER = 2\ndef command() -> None:\n    """Stops."""\n',
    "go": 'GROUP = "Start"\nORDER = 1\ndef command() -> None:\n    """Goes."""\n',
    "big_group": '''
import typer
app = typer.Typer(help="A verb with verbs of its own.")

@app.command("list")
def list_() -> None:
    """Lists."""
    print("listed")

@app.command("run")
def run() -> None:
    """Runs."""
''',
    "_helper": "raise AssertionError('a helper is no verb')\n",
    "main": "raise AssertionError('the frame is no verb')\n",
}


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    directory = tmp_path / PACKAGE
    directory.mkdir()
    (directory / "__init__.py").touch()
    package = directory / "package"
    package.mkdir()
    (package / "__init__.py").write_text('"""A verb that is a package."""\n')
    (package / "one.py").write_text(
        "from guestemu.cli import console\n"
        'def command() -> None:\n    """Is one."""\n    console.emit_json({"one": 1}, "small")\n'
    )
    for name, source in VERBS.items():
        (directory / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("GUESTEMU_TRACEBACK", raising=False)
    _command.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    return str(tmp_path)


def run_process(
    verbs: str, *arguments: str, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.Popen[str]:
    """The command in a process of its own, with stdout buffered as usual behind a pipe."""
    code = f"import sys; from guestemu.cli.main import main; sys.exit(main(package={PACKAGE!r}))"
    path = os.pathsep.join([verbs, *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "", **environment},
    )


@pytest.mark.usefixtures("verbs")
def test_a_result_goes_to_stdout_and_a_note_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["echo", "two", "words"], PACKAGE) == 0
    assert capsys.readouterr() == ("two words\n", "working\n")


@pytest.mark.usefixtures("verbs")
def test_json_is_exactly_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["echo", "--json", "é"], PACKAGE) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == {"schema": "guestemu.echo/1", "words": ["é"], "count": 1}


@pytest.mark.usefixtures("verbs")
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["fail", "input"], 2, "a.prog:3: no op 'x'; did you mean y?"),
        (["fail", "missing"], 3, "atheris is not installed; pip install guestemu[fuzz]"),
        (["fail", "interrupt"], 130, "interrupted"),
        (
            ["fail", "--zzz"],
            2,
            "fail: No such option: --zzz; guestemu fail --help shows what there is",
        ),
        (["nothing"], 2, "no command 'nothing'; guestemu --help lists them"),
    ],
)
def test_an_error_is_an_object_under_json(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"], PACKAGE) == status
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found == {"schema": "guestemu.error/1", "status": status, "message": message}
    assert err == f"guestemu: {message}\n"


@pytest.mark.usefixtures("verbs")
def test_an_error_behind_the_object_prints_no_second(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail", "late", "--json"], PACKAGE) == 130
    assert json.loads(capsys.readouterr().out) == {"schema": "guestemu.fail/1", "how": "late"}


@pytest.mark.usefixtures("verbs")
def test_an_old_spelling_still_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["echo", "x", "--rows", "2"], PACKAGE) == 0
    assert main(["echo", "x", "--rows=2"], PACKAGE) == 0
    assert main(["echo", "--", "--rows"], PACKAGE) == 0
    assert capsys.readouterr().out == "x\nx\nx\nx\n--rows\n"
    assert main(["echo", "--help"], PACKAGE) == 0
    assert "--rows" not in capsys.readouterr().out


@pytest.mark.usefixtures("verbs")
def test_an_options_number_may_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--times", "x"], ["x", "--times"], ["x", "--times", "2"], ["x", "--times=2"]):
        assert main(["echo", *words], PACKAGE) == 0
    assert capsys.readouterr().out == "x\n" * 8
    assert main(["echo", "x", "--times", "-1"], PACKAGE) == 0
    assert main(["echo", "--", "--times"], PACKAGE) == 0
    assert capsys.readouterr().out == "--times\n"


def test_the_overview_needs_no_verb_and_no_typer() -> None:
    code = (
        "import sys; from guestemu.cli.main import main; main(['--help']); "
        "print([name for name in sys.modules if name in ('typer', 'unicorn') or "
        "name.startswith('guestemu.cli.') and name.rpartition('.')[2] in ('fuzz', 'zoo')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_list_of_targets_needs_no_machine() -> None:
    code = (
        "import sys; from guestemu.cli.main import main; main(['targets']); "
        "print([name for name in ('unicorn', 'guestemu.checks') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.usefixtures("verbs")
def test_only_the_verb_in_use_is_imported() -> None:
    assert main(["echo", "x"], PACKAGE) == 0
    assert f"{PACKAGE}.echo" in sys.modules
    assert f"{PACKAGE}.fail" not in sys.modules


@pytest.mark.usefixtures("verbs")
@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_the_verbs_in_their_order(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments, PACKAGE) == 0
    out = capsys.readouterr().out
    order = ("go", "stop", "status", "big-group", "echo", "fail", "package")
    positions = [out.index(f"\n  {verb} ") for verb in order]
    assert positions == sorted(positions)
    assert "\nStart:\n  go " in out
    assert "\nSearch:\n  status " in out
    assert "\nMore:\n  big-group " in out
    assert "  echo       Says words\n" in out
    assert "helper" not in out
    assert "main" not in out


@pytest.mark.usefixtures("verbs")
def test_a_verb_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["echo", "--help"], PACKAGE) == 0
    line = "guestemu echo hello --lines 3 and a command line that is longer than any help column is"
    out = capsys.readouterr().out
    assert f"    {line}\n    guestemu echo twice\n" in out, "examples are not wrapped"


@pytest.mark.usefixtures("verbs")
def test_a_verb_may_have_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["big-group", "list"], PACKAGE) == 0
    assert capsys.readouterr().out == "listed\n"


@pytest.mark.usefixtures("verbs")
def test_a_package_is_a_verb_of_its_modules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["package", "one"], PACKAGE) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "guestemu.package.one.small/1"
    assert main(["package", "--help"], PACKAGE) == 0
    out = capsys.readouterr().out
    assert "A verb that is a package." in out
    assert "one  Is one." in out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("guestemu mi", ["minimize"]),
        ("guestemu kernel bo", ["boot"]),
        ("guestemu fuzz --eng", ["--engine"]),
        ("guestemu fuzz conv", ["conversion"]),
        ("guestemu run --host map", ["map-gpa-range"]),
        ("guestemu run --guest snippet:6.12", ["snippet:6.12"]),
        ("guestemu claims C3", ["C3", "C3b", "C30", "C31"]),
    ],
)
def test_the_shell_completes_verbs_options_and_names(
    words: str,
    found: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a bash completes `words` to."""
    monkeypatch.setenv("_GUESTEMU_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == found


def test_summaries_fit() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "guestemu", "--help"], capture_output=True, text=True, check=True
    )
    rows = [line[2:].split("  ", 1) for line in result.stdout.splitlines() if line[:2] == "  "]
    listed = {row[0].strip(): row[1].strip() for row in rows if not row[0].startswith("-")}
    assert set(listed) == set(find_verbs())
    assert {verb: text for verb, text in listed.items() if not 0 < len(text) <= 60} == {}
    assert "More:" not in result.stdout, "each verb names its group"


def test_version_needs_no_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"guestemu {__version__}\n", "")


def test_the_frames_own_modules_are_no_verbs() -> None:
    assert not {"main", "console", "errors"} & find_verbs().keys()


@pytest.mark.usefixtures("verbs")
@pytest.mark.parametrize(
    ("how", "status", "line"),
    [
        ("findings", 1, ""),
        ("exit", 1, ""),
        ("input", 2, "guestemu: a.prog:3: no op 'x'; did you mean y?\n"),
        ("plugin", 2, "guestemu: my.py: class Host has no hypercall; add it\n"),
        ("open", 2, "guestemu: /nonexistent/file: No such file or directory\n"),
        ("missing", 3, "guestemu: atheris is not installed; pip install guestemu[fuzz]\n"),
        ("full", 3, "guestemu: cannot go on: No space left on device\n"),
        ("interrupt", 130, "guestemu: interrupted\n"),
        ("abort", 130, "guestemu: interrupted\n"),
    ],
)
def test_status_and_one_line(
    how: str, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fail", how], PACKAGE) == status
    assert capsys.readouterr() == ("", line)


@pytest.mark.usefixtures("verbs")
@pytest.mark.parametrize(("how", "what"), [("bug", "KeyError: 'slot'"), ("engine", "EngineError")])
def test_a_defect_is_no_finding_and_no_traceback(
    how: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fail", how], PACKAGE) == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"guestemu: internal error: {what}")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("verbs")
def test_a_traceback_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUESTEMU_TRACEBACK", "1")
    assert main(["fail", "input"], PACKAGE) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("guestemu: a.prog:3: no op 'x'; did you mean y?\n")


@pytest.mark.usefixtures("verbs")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["ecko"], ["no command 'ecko'; did you mean echo?"]),
        (["zzz"], ["no command 'zzz'; guestemu --help lists them"]),
        (["--versoin"], ["--versoin", "--version", "guestemu --help shows"]),
        (["echo", "--jsn", "x"], ["echo: ", "--jsn", "--json", "guestemu echo --help shows"]),
        (["echo"], ["echo: Missing argument", "guestemu echo --help shows"]),
        (
            ["echo", "--lines", "x", "y"],
            ["echo: Invalid value for", "--lines", "is not a valid int"],
        ),
        (["big-group", "lst"], ["big-group: No such command 'lst'"]),
    ],
)
def test_bad_usage_is_one_line_with_a_way_on(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments, PACKAGE) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("guestemu: ")
    assert err.count("\n") == 1
    assert [part for part in parts if part not in err] == []


def test_the_reader_going_away_is_no_finding_and_says_nothing(verbs: str) -> None:
    process = run_process(verbs, "echo", "--lines", "100000", "x")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "x\n"
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), errors) == (141, "working\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_on_stdout_is_said(verbs: str) -> None:
    with (
        open("/dev/full", "w") as full,
        run_process(verbs, "echo", "x", stdout=full.fileno()) as process,
    ):
        _, err = process.communicate()
    message = f"guestemu: cannot go on: {os.strerror(errno.ENOSPC)}"
    assert (process.returncode, err.splitlines()) == (3, ["working", message])


def test_an_ascii_terminal_gets_escapes(verbs: str) -> None:
    with run_process(verbs, "echo", "é", PYTHONIOENCODING="ascii") as process:
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "\\xe9\n", "working\n")


def test_python_dash_m() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "guestemu", "--version"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, f"guestemu {__version__}\n")
