# SPDX-License-Identifier: GPL-2.0-or-later
"""The house rules that a machine can check. Each rule takes the parsed package and returns its
offenders, one line each: `file:line what`.

`python tests/house/rules.py` prints the number of offenders of each rule with a limit, and with
`--lower` writes the lower ones into limits.toml.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
LIMITS = Path(__file__).with_name("limits.toml")

LICENSE = "# SPDX-License-Identifier: GPL-2.0-or-later"
MAX_FIELDS = 5
MAX_POSITIONAL = 6
MAX_COMPLEXITY = 10
MAX_EMITS = 3

FLOORS = {
    "abi": 0,
    "native": 0,
    "events": 1,
    "machine": 1,
    "program": 1,
    "guest": 2,
    "host": 2,
    "checks": 3,
    "migration": 3,
    "runner": 4,
    "cli": 6,
    "demo": 6,
    "pytest_plugin": 6,
}
TESTBED = 4
"""The floor of the modules directly below guestemu/ that FLOORS does not name."""

TOOLS = 5
"""The floor of the packages that FLOORS does not name."""

SIDEWAYS = frozenset({("machine", "program"), ("guest", "host")})
"""Rooms of one floor that must not know each other, in either direction."""


class Source(NamedTuple):
    """One file: its path below guestemu/, its text, its syntax tree and all nodes of that."""

    path: Path
    text: str
    tree: ast.Module
    nodes: list[ast.AST]

    @property
    def room(self) -> str:
        """The package or module directly below guestemu/ that this file belongs to."""
        return self.path.parts[0].removesuffix(".py")

    def at(self, node: ast.AST, what: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)} {what}"


House = list[Source]


def read_house(root: Path = ROOT / "guestemu") -> House:
    return [
        parse(path.read_text(encoding="utf-8"), path.relative_to(root))
        for path in sorted(root.rglob("*.py"))
    ]


def parse(text: str, path: str | Path = "machine/sample.py") -> Source:
    tree = ast.parse(text)
    return Source(Path(path), text, tree, list(ast.walk(tree)))


# Rooms and what they import -----------------------------------------------------------------------


def imported(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """The rooms that a file imports from, at the place of the import."""
    for node in source.nodes:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
            if node.module == "guestemu":
                names = [f"guestemu.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            if package == "guestemu" and room and not room.startswith("__"):
                yield node, room


def floor_of(room: str, house: House) -> int:
    is_module = any(source.path == Path(f"{room}.py") for source in house)
    return FLOORS.get(room, TESTBED if is_module else TOOLS)


def upward_imports(house: House) -> list[str]:
    """A room imports from floors below its own, and never from a neighbour of SIDEWAYS."""
    found = []
    floors = {room: floor_of(room, house) for room in {source.room for source in house}}
    for source in house:
        room = source.room
        if room.startswith("__"):
            continue
        for node, other in imported(source):
            is_up = floors.get(other, FLOORS.get(other, TOOLS)) > floors[room]
            if is_up or (room, other) in SIDEWAYS or (other, room) in SIDEWAYS:
                found.append(source.at(node, f"{room} imports {other}"))
    return found


def relative_imports(house: House) -> list[str]:
    """Imports are absolute."""
    return [
        source.at(node, "relative import")
        for source in house
        for node in source.nodes
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def circles(house: House) -> list[str]:
    """Rooms that need each other: each reaches the other through imports. One line for a room."""
    edges: dict[str, set[str]] = defaultdict(set)
    for source in house:
        edges[source.room] |= {room for _, room in imported(source) if room != source.room}
    reach = {room: _reached(room, edges) for room in list(edges)}
    return [f"{room} is in a circle of rooms" for room in sorted(edges) if room in reach[room]]


def _reached(start: str, edges: Mapping[str, set[str]]) -> set[str]:
    """All rooms on a way from `start`; `start` itself only if a way leads back."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = edges.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen


# Names and docstrings -----------------------------------------------------------------------------


def classes_of(house: House) -> Iterator[tuple[Source, ast.ClassDef]]:
    for source in house:
        for node in source.nodes:
            if isinstance(node, ast.ClassDef):
                yield source, node


def repeated_classes(house: House) -> list[str]:
    """A public class name stands for one thing."""
    places: dict[str, list[str]] = defaultdict(list)
    for source in house:
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(source.path))
    return [f"{name}: {', '.join(at)}" for name, at in sorted(places.items()) if len(at) > 1]


def _base_names(node: ast.ClassDef) -> Iterator[str]:
    for base in node.bases:
        inner = base.value if isinstance(base, ast.Subscript) else base
        if isinstance(inner, ast.Name | ast.Attribute):
            yield inner.id if isinstance(inner, ast.Name) else inner.attr


def bare_methods(house: House) -> list[str]:
    """A public method of a public class has a docstring, unless it overrides one of a base class
    (ruff's D100, D101 and D103 watch over modules, classes and functions)."""
    methods: dict[str, set[str]] = defaultdict(set)
    bases: dict[str, set[str]] = defaultdict(set)
    for _, node in classes_of(house):
        methods[node.name] |= {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
        bases[node.name] |= set(_base_names(node)) - {node.name}
    found = []
    for source, node in classes_of(house):
        above = _reached(node.name, bases) - {node.name}
        inherited = {name for base in above for name in methods[base]}
        is_foreign = any(base not in bases for base in above - _PLAIN)
        if node.name.startswith("_") or is_foreign:
            continue
        found += [
            source.at(one, f"{node.name}.{one.name} has no docstring")
            for one in node.body
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
            and not one.name.startswith("_")
            and one.name not in inherited
            and ast.get_docstring(one) is None
            and not any(isinstance(d, ast.Attribute) for d in one.decorator_list)  # x.setter
        ]
    return found


_PLAIN = frozenset({"Struct", "Protocol", "ABC", "Enum", "IntEnum", "IntFlag", "NamedTuple"})
"""Bases from elsewhere that bring no public method to override."""


# Shapes -------------------------------------------------------------------------------------------


def _is_set(keywords: list[ast.keyword], name: str) -> bool:
    return any(
        one.arg == name and isinstance(one.value, ast.Constant) and one.value.value is True
        for one in keywords
    )


def positional_structs(house: House) -> list[str]:
    """A record of more than five fields is built with keywords."""
    found = []
    for source, node in classes_of(house):
        keywords = list(node.keywords)
        is_record = bool({"Struct", "NamedTuple"} & set(_base_names(node)))
        for mark in node.decorator_list:
            name = mark.func if isinstance(mark, ast.Call) else mark
            if isinstance(name, ast.Name | ast.Attribute) and ast.unparse(name).endswith(
                "dataclass"
            ):
                is_record = True
                keywords += mark.keywords if isinstance(mark, ast.Call) else []
        fields = [
            one
            for one in node.body
            if isinstance(one, ast.AnnAssign) and "ClassVar" not in ast.unparse(one.annotation)
        ]
        if is_record and len(fields) > MAX_FIELDS and not _is_set(keywords, "kw_only"):
            found.append(source.at(node, f"{node.name} has {len(fields)} fields"))
    return found


def long_calls(house: House) -> list[str]:
    """A call names its arguments when they are many."""
    return [
        source.at(node, f"{len(node.args)} positional arguments")
        for source in house
        for node in source.nodes
        if isinstance(node, ast.Call) and len(node.args) > MAX_POSITIONAL
    ]


def splats(house: House) -> list[str]:
    """Arguments stand one by one, not in a tuple that is unpacked at once."""
    return [
        source.at(node, "arguments in an unpacked tuple")
        for source in house
        for node in source.nodes
        if isinstance(node, ast.Call)
        and any(
            isinstance(one, ast.Starred) and isinstance(one.value, ast.Tuple | ast.List)
            for one in node.args
        )
    ]


def complex_functions(house: House) -> list[str]:
    """Ways through a function (McCabe), counted by ruff."""
    del house
    return ruff_complexity(ROOT / "guestemu")


def ruff_complexity(path: Path) -> list[str]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--no-cache",
            "--quiet",
            "--exit-zero",
            "--select=C901",
            f"--config=lint.mccabe.max-complexity={MAX_COMPLEXITY}",
            "--output-format=json",
            str(path),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        f"{Path(one['filename']).name}:{one['location']['row']} {one['message']}"
        for one in json.loads(done.stdout)
    ]


# Lines --------------------------------------------------------------------------------------------


def unlicensed(house: House) -> list[str]:
    """The first line names the licence."""
    return [str(source.path) for source in house if not source.text.startswith(LICENSE + "\n")]


def leftovers(house: House) -> list[str]:
    """Nothing is left to do in a committed file."""
    return lines_with(house, re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|\bbreakpoint\(\)"))


def silenced(house: House) -> list[str]:
    """Warnings are repaired, not silenced."""
    return lines_with(house, re.compile(r"#\s*(type: ignore|noqa|pragma: no cover)"))


def lines_with(house: House, pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{source.path}:{number} {line.strip()}"
        for source in house
        for number, line in enumerate(source.text.splitlines(), 1)
        if pattern.search(line)
    ]


def committed_code(house: House) -> list[str]:
    """Machine code that runs in the user's process is built, not committed."""
    del house
    names = ("fastpath", "mutator", "hooks")
    files = [path for name in names for path in (ROOT / "guestemu").rglob(f"{name}*.elf")]
    return [str(path.relative_to(ROOT)) for path in sorted(files)]


def printed_reports(house: House) -> list[str]:
    """A verb prints lines by `console.emit` only where they are few: a report is a document."""
    found = []
    for source in house:
        if source.room != "cli" or source.path.name == "console.py":
            continue
        calls = [
            node
            for node in source.nodes
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "console.emit"
        ]
        if len(calls) > MAX_EMITS:
            found.append(source.at(calls[0], f"{len(calls)} calls of console.emit"))
    return found


Rule = Callable[[House], list[str]]

STRICT: tuple[Rule, ...] = (
    upward_imports,
    relative_imports,
    bare_methods,
    unlicensed,
    leftovers,
    printed_reports,
)
"""Rules without offenders."""

LIMITED: tuple[Rule, ...] = (
    circles,
    repeated_classes,
    positional_structs,
    long_calls,
    splats,
    complex_functions,
    silenced,
    committed_code,
)
"""Rules with offenders, whose number can only fall: limits.toml has the highest that passes."""


def limits() -> dict[str, int]:
    return tomllib.loads(LIMITS.read_text(encoding="utf-8"))


def main(arguments: list[str]) -> int:
    house = read_house()
    known = limits()
    counts = {rule.__name__: len(rule(house)) for rule in LIMITED}
    for name, count in counts.items():
        print(f"{name} = {count} (limit {known.get(name, 'none')})")
    if arguments == ["--lower"]:
        head = LIMITS.read_text(encoding="utf-8").partition("\n\n")[0]
        lines = [f"{name} = {min(count, known.get(name, count))}" for name, count in counts.items()]
        LIMITS.write_text("\n".join([head, "", *lines, ""]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
