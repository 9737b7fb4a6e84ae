# SPDX-License-Identifier: GPL-2.0-or-later
"""The functions, methods and classes of guestemu/ that only tests reach.

`python tests/house/unreached.py` prints them. Such code gets a caller that a user reaches, or goes;
unreached.toml has the exceptions with their reasons.

A definition is reached from what runs at once (the tops of modules, functions under a decorator
that registers them, the words of C, assembly, Markdown and TOML files) and from the definitions
that are reached themselves. A bare name leads to what the file imports or defines under it; an
attribute or a string leads to every definition of that name. An import alone, `__all__` and a
docstring reach nothing.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
EXCEPTIONS = Path(__file__).with_name("unreached.toml")
PLACES = ("guestemu", "fuzz", "examples", "docs", "README.md", "pyproject.toml", "hatch_build.py")
TEXTS = frozenset({".c", ".h", ".S", ".md", ".toml", ".sh", ".rs"})

DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_PASSIVE = frozenset(
    "abstractmethod cache cached_property classmethod contextmanager dataclass deleter final "
    "lru_cache overload override property runtime_checkable setter staticmethod".split()
)
"""Decorators that reach nothing. Every other one registers what it decorates."""

_HOOKS = ("pytest_", "visit_", "generic_visit")
"""How the names begin that pytest and `ast.NodeVisitor` call by name."""


class Definition(NamedTuple):
    """A definition by its file and its name there, with the classes around it."""

    path: str
    name: str

    @property
    def last(self) -> str:
        """The name as an attribute."""
        return self.name.rpartition(".")[2]

    @property
    def outer(self) -> Definition:
        """The class of a method; the module of everything else."""
        return Definition(self.path, self.name.rpartition(".")[0])


Use = Definition | str
"""What a use leads to: one definition, or all of a name."""


class House:
    """Definitions and what uses them."""

    def __init__(self, files: Mapping[str, str]) -> None:
        """`files` maps paths to the text of the files."""
        self._paths = files.keys()
        self._named: dict[str, set[Definition]] = defaultdict(set)
        self._uses: dict[Definition, set[Use]] = defaultdict(set)
        self._imports: dict[Definition, set[Definition]] = defaultdict(set)
        self._starts = [Definition(path, "") for path in files]
        for path, text in files.items():
            if path.endswith(".py"):
                self._read(ast.parse(text), Definition(path, ""))
            else:
                self._uses[Definition(path, "")] |= set(re.findall(r"\w+", text))

    def unreached(self) -> list[str]:
        """The definitions below guestemu/ that nothing reaches, as `path:name`."""
        reached = self._reach()
        rest = {one for names in self._named.values() for one in names} - reached
        return sorted(f"{path}:{name}" for path, name in rest if path.startswith("guestemu/"))

    def _reach(self) -> set[Definition]:
        reached = set(self._starts)
        waiting: dict[Definition, set[Definition]] = defaultdict(set)  # methods, by their classes
        todo = list(self._starts)
        while todo:
            for one in self._used(todo.pop()):
                waiting[one.outer].add(one)
                new = [one] if one.outer in reached else []
                while new:
                    found = new.pop()
                    if found not in reached:
                        reached.add(found)
                        todo.append(found)
                        new += waiting[found]
        return reached

    def _used(self, owner: Definition) -> Iterator[Definition]:
        for use in self._uses.get(owner, ()):
            if isinstance(use, str):
                yield from self._named.get(use, ())
            else:
                yield from self._resolved(use)

    def _resolved(self, name: Definition) -> Iterator[Definition]:
        """What a bare name of a module means, through the modules that hand it on."""
        seen = {name}
        todo = [name]
        while todo:
            one = todo.pop()
            yield one
            todo += self._imports.get(one, set()) - seen
            seen |= self._imports.get(one, set())

    def _read(self, tree: ast.Module, module: Definition) -> None:
        """Notes definitions, uses and imports of a file. Functions inside of functions, and methods
        that Python calls itself, belong to what is around them."""
        todo: list[tuple[Definition, ast.AST]] = [(module, tree)]
        while todo:
            owner, node = todo.pop()
            if isinstance(node, ast.Name):
                self._uses[owner].add(Definition(module.path, node.id))
            elif isinstance(node, ast.Constant):
                self._uses[owner] |= _names_in(node.value)
            elif isinstance(node, ast.ImportFrom):
                self._import(node, module.path)
            elif not _is_silent(node):
                if isinstance(node, ast.Attribute):
                    self._uses[owner].add(node.attr)
                is_outside = isinstance(node, (ast.Module, ast.ClassDef))
                for child in ast.iter_child_nodes(node):
                    if (
                        is_outside
                        and isinstance(child, DEFINES)
                        and not child.name.startswith("__")
                    ):
                        todo.append((self._define(child, owner), child))
                    elif not isinstance(child, ast.expr_context):
                        todo.append((owner, child))

    def _define(self, node: Node, owner: Definition) -> Definition:
        mine = Definition(owner.path, f"{owner.name}.{node.name}".strip("."))
        self._named[node.name].add(mine)
        if _is_called(node):
            self._uses[owner].add(mine)
        return mine

    def _import(self, node: ast.ImportFrom, path: str) -> None:
        place = self._file_of(node.module or "")
        for alias in node.names:
            here = Definition(path, alias.asname or alias.name)
            self._imports[here].add(Definition(place, alias.name))

    def _file_of(self, module: str) -> str:
        path = module.replace(".", "/")
        return f"{path}.py" if f"{path}.py" in self._paths else f"{path}/__init__.py"


def _is_silent(node: ast.AST) -> bool:
    """A docstring, or the names that a module hands on."""
    if isinstance(node, ast.Assign):
        return any(isinstance(one, ast.Name) and one.id == "__all__" for one in node.targets)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_called(node: Node) -> bool:
    """Whether others call it by its name, or a decorator registers it."""
    if node.name.startswith(_HOOKS):
        return True
    for mark in node.decorator_list:
        name = mark.func if isinstance(mark, ast.Call) else mark
        if ast.unparse(name).rpartition(".")[2] not in _PASSIVE:
            return True
    return False


def _names_in(value: object) -> set[str]:
    """The names that a string constant may stand for: `"name"`, `"package.module:name"`."""
    if isinstance(value, str) and re.fullmatch(r"[\w.:]+", value):
        return set(re.findall(r"\w+", value))
    return set()


def product() -> dict[str, str]:
    """The text of every file that a user or the installation may run or read."""
    found = {}
    for place in PLACES:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.suffix in TEXTS | {".py"} and file.is_file():
                found[file.relative_to(ROOT).as_posix()] = file.read_text(encoding="utf-8")
    return found


def exceptions() -> dict[str, str]:
    """The definitions that may stay, with the reason of each."""
    with EXCEPTIONS.open("rb") as file:
        known: dict[str, dict[str, str]] = tomllib.load(file)
    return {
        f"guestemu/{path}:{name}": reason
        for path, names in known.items()
        for name, reason in names.items()
    }


if __name__ == "__main__":
    sys.stdout.writelines(f"{one}\n" for one in House(product()).unreached())
