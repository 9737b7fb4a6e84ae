# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain values are taken without pydantic, and give what typer gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
import typer.main

from guestemu.cli._plain_values import take_plain_values

_ARGUMENTS = (
    [],
    ["--count", "3"],
    ["--count", "0"],
    ["--count", "9"],
    ["--count", "-1"],
    ["--count", "0x10"],
    ["--count", " 7"],
    ["--count", "1_0"],
    ["--count", "\u0663"],
    ["--word", ""],
    ["--word", "a b"],
    ["--path", "/nowhere/at/all"],
    ["--path", "/"],
    ["--many", "a", "--many", "../b"],
    ["--share", "0.5"],
    ["--share", "half"],
    ["--flag"],
    ["--unknown"],
)


def _answer(arguments: list[str], plain: bool) -> str:
    """What the command makes of `arguments`: its values with their types, or typer's complaint."""
    taken: list[object] = []

    def command(
        count: Annotated[int | None, typer.Option("--count", min=1, max=8)] = None,
        word: Annotated[str, typer.Option("--word")] = "left out",
        path: Annotated[Path, typer.Option("--path")] = Path("default"),
        many: Annotated[list[Path] | None, typer.Option("--many")] = None,
        share: Annotated[float, typer.Option("--share")] = 1.0,
        flag: Annotated[bool, typer.Option("--flag")] = False,
    ) -> None:
        taken.extend((count, word, path, many, share, flag))

    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(command)
    built = typer.main.get_command(app)
    if plain:
        take_plain_values(built)
    try:
        built.main(args=list(arguments), prog_name="it", standalone_mode=False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return repr(taken)


@pytest.mark.parametrize("arguments", _ARGUMENTS, ids=" ".join)
def test_values_and_complaints_are_those_of_typer(arguments: list[str]) -> None:
    assert _answer(arguments, plain=True) == _answer(arguments, plain=False)


def test_a_directory_that_must_be_a_file_is_refused_as_typer_does(tmp_path: Path) -> None:
    def answer(plain: bool) -> str:
        def command(path: Annotated[Path, typer.Argument(dir_okay=False)]) -> None:
            raise AssertionError(path)

        app = typer.Typer(rich_markup_mode=None)
        app.command()(command)
        built = typer.main.get_command(app)
        if plain:
            take_plain_values(built)
        with pytest.raises(Exception, match="is a directory") as caught:
            built.main(args=[str(tmp_path)], prog_name="it", standalone_mode=False)
        return str(caught.value)

    assert answer(plain=True) == answer(plain=False)


def test_a_list_imports_no_validator() -> None:
    code = (
        "import sys; from guestemu.cli.main import main; main(['targets']); "
        "print(any(name.partition('.')[0] == 'pydantic' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
