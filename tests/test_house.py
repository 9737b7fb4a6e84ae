# SPDX-License-Identifier: GPL-2.0-or-later
"""The house rules that a machine can check: floors, docstrings, size, first lines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import guestemu

ROOT = Path(guestemu.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

FLOORS = {
    "abi": 0,
    "machine": 1,
    "guest": 2,
    "host": 2,
    "program": 2,
    "checks": 3,
    "migration": 3,
    "demo.py": 6,
    "pytest_plugin.py": 6,
    "cli": 6,
    "__main__.py": 6,
}
TESTBED = 4
"""The floor of the testbed and of the modules beside it."""

TOOLS = 5
"""The floor of every package that is not named above."""

SIDEWAYS = frozenset({("program", "guest"), ("program", "host"), ("guest", "host")})
"""Rooms of one floor that must not know each other, in either direction."""

MAX_LINES = 400
MAX_FUNCTION = 60
LICENSE = "# SPDX-License-Identifier: GPL-2.0-or-later"


def room_of(parts: tuple[str, ...]) -> str:
    name = parts[0]
    return name if (ROOT / name).is_dir() else f"{name.removesuffix('.py')}.py"


def floor_of(room: str) -> int:
    return FLOORS.get(room, TESTBED if room.endswith(".py") else TOOLS)


def imported(tree: ast.Module) -> Iterator[tuple[int, tuple[str, ...]]]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
            if node.module == "guestemu":
                names = [f"guestemu.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("guestemu."):
                yield node.lineno, tuple(name.split(".")[1:])


def complaints(room: str, tree: ast.Module) -> list[str]:
    found = []
    for line, parts in imported(tree):
        if parts[0].startswith("__"):
            continue
        other = room_of(parts)
        if room == other:
            continue
        is_sideways = (room, other) in SIDEWAYS or (other, room) in SIDEWAYS
        if floor_of(other) > floor_of(room) or is_sideways:
            found.append(f"line {line}: {room} imports {other}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_down(name: str) -> None:
    room = room_of(Path(name).parts)
    if room == "__init__.py":
        return
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    assert complaints(room, tree) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("machine", "from guestemu.guest.base import Guest"),
        ("abi", "import guestemu.machine.engine"),
        ("program", "from guestemu.host.base import Host"),
        ("host", "from guestemu.program.ops import Op"),
        ("guest", "if True:\n    from guestemu.testbed import Testbed"),
        ("checks", "from guestemu import testbed"),
        ("dma", "from guestemu.cli import console"),
    ],
)
def test_the_rule_finds_an_import_that_goes_up(room: str, source: str) -> None:
    assert len(complaints(room, ast.parse(source))) == 1


def test_the_rule_allows_what_goes_down() -> None:
    source = "from guestemu.machine.engine import Engine\nfrom guestemu.abi import x86\n"
    assert complaints("guest", ast.parse(source)) == []


def undocumented(tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "module"
    todo: list[tuple[str, ast.AST]] = [("", tree)]
    while todo:
        prefix, node = todo.pop()
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if child.name.startswith("_"):
                continue
            if not ast.get_docstring(child):
                yield prefix + child.name
            if isinstance(child, ast.ClassDef):
                todo.append((f"{prefix}{child.name}.", child))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_thing_has_a_docstring(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    tree = ast.parse(text)
    if not tree.body:
        return
    assert list(undocumented(tree)) == []


@pytest.mark.parametrize("name", NAMES)
def test_files_and_functions_are_small_and_licensed(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == LICENSE
    assert len(lines) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            # The statements: a command's options and its help are declarations, not logic.
            body = node.body[1:] if ast.get_docstring(node) else node.body
            first = body[0].lineno if body else node.lineno
            assert (node.end_lineno or 0) - first < MAX_FUNCTION, node.name


@pytest.mark.parametrize("name", NAMES)
def test_no_leftovers(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for word in ("TODO", "FIXME", "XXX", "breakpoint()"):
        assert word not in text
