# SPDX-License-Identifier: GPL-2.0-or-later
"""Which blocks of a user's host run, as feedback for a campaign.

The file is executed a second time from a syntax tree in which each block of a function first sets a
counter. The campaign runs that copy. What names a finding, and what shows its program again, is the
file as it is: the byte code of the copy has other places.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

HITS: Final = "__guestemu_hits__"
"""The global of the copy that holds the counters."""

_BLOCKS: Final = ("body", "orelse", "finalbody")


class _Counting(ast.NodeTransformer):
    """Adds a store to a counter, number modulo `counters`, to each block."""

    def __init__(self, counters: int) -> None:
        self._counters = counters
        self._next = 0
        self._is_inside = False

    def _store(self, at: ast.AST) -> ast.stmt:
        number = self._next % self._counters
        self._next += 1
        (store,) = ast.parse(f"{HITS}[{number}] = 1").body
        for node in ast.walk(store):
            ast.copy_location(node, at)
        return store

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        outer, self._is_inside = self._is_inside, True
        self.generic_visit(node)
        self._is_inside = outer
        has_text = ast.get_docstring(node, clean=False) is not None
        node.body.insert(int(has_text), self._store(node.body[0]))
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """A function's own block."""
        return self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """A function's own block."""
        return self._visit_function(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """The blocks of a statement inside a function; also the empty one of an `if` without an
        `else`."""
        super().generic_visit(node)
        is_block = isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case)
        if not self._is_inside or not is_block or isinstance(node, ast.ClassDef | ast.FunctionDef):
            return node
        if isinstance(node, ast.If) and not node.orelse:
            node.orelse = [self._store(node)]
        for name in _BLOCKS:
            block = getattr(node, name, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                block.insert(0, self._store(block[0]))
        return node


def counting_code(path: Path, counters: int) -> CodeType:
    """The code of the file at `path` with its blocks counted. Raises SyntaxError, ValueError and
    OSError."""
    tree = ast.parse(path.read_bytes(), str(path))
    return compile(_Counting(counters).visit(tree), str(path), "exec", dont_inherit=True)


def counting_copy(owner: type[object], hits: memoryview) -> type[object] | None:
    """A copy of the class `owner` whose blocks set `hits`; None where its file cannot be copied,
    or is not as it was when `owner` was imported."""
    original = sys.modules[owner.__module__]
    copy = ModuleType(original.__name__)
    for name in ("__file__", "__package__", "__spec__", "__loader__", "__path__"):
        if hasattr(original, name):
            setattr(copy, name, getattr(original, name))
    setattr(copy, HITS, hits)
    sys.modules[original.__name__] = copy
    try:
        exec(counting_code(Path(str(original.__file__)), len(hits)), vars(copy))
        found = getattr(copy, owner.__name__, None)
    except KeyboardInterrupt:
        raise
    except BaseException:  # what the user's code raises when it runs a second time
        found = None
    finally:
        sys.modules[original.__name__] = original
    return found if isinstance(found, type) else None
