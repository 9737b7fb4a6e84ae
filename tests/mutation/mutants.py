# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of code that a test has to notice: one small change each, of Python and of C."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from typing import NamedTuple


class Mutant(NamedTuple):
    """`name` says what was changed where, the same as long as the changed code is the same. `where`
    is the function ("" outside of one); `first` and `last` are the lines of the changed code."""

    name: str
    source: str
    where: str = ""
    first: int = 0
    last: int = 0


_COMPARED: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Lt: ast.LtE(),
    ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(),
    ast.GtE: ast.Gt(),
    ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(),
    ast.In: ast.NotIn(),
    ast.NotIn: ast.In(),
    ast.Is: ast.IsNot(),
    ast.IsNot: ast.Is(),
}
_COMPUTED: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.BitAnd: ast.BitOr(),
    ast.BitOr: ast.BitAnd(),
    ast.BitXor: ast.BitOr(),
    ast.LShift: ast.RShift(),
    ast.RShift: ast.LShift(),
}
_TESTED = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)


def _is_for_types(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _not(node: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), node)


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """What `node` may become."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in _COMPARED:
            yield ast.Compare(node.left, [_COMPARED[type(op)]], node.comparators)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for place, value in enumerate(values):
                if isinstance(value, _TESTED):
                    yield ast.BoolOp(op, [*values[:place], _not(value), *values[place + 1 :]])
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.BinOp(op=op) if type(op) in _COMPUTED:
            yield ast.BinOp(node.left, _COMPUTED[type(op)], node.right)
        case ast.IfExp(test=test) if isinstance(test, _TESTED):
            yield ast.IfExp(_not(test), node.body, node.orelse)
        case ast.If(test=test) if isinstance(test, _TESTED) and not _is_for_types(test):
            yield ast.If(_not(test), node.body, node.orelse)
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1)
        case ast.Set(elts=elements) if len(elements) > 1:
            for place in range(len(elements)):
                yield ast.Set([*elements[:place], *elements[place + 1 :]])
        case ast.Continue() | ast.Break() | ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield ast.Pass()


def _places(tree: ast.AST, where: str = "") -> Iterator[tuple[str, ast.AST, str, int | None]]:
    """(function, parent, field, index) of every node that may be changed."""
    for field, value in ast.iter_fields(tree):
        if field in {"annotation", "returns", "decorator_list", "type_params", "keywords"} and (
            field != "keywords" or isinstance(tree, ast.ClassDef)
        ):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Import | ast.ImportFrom):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue  # of zip(): unequal lengths are a defect elsewhere
            name = where
            if field == "args" and isinstance(tree, ast.FunctionDef):
                name = where.rpartition(".")[0]  # defaults belong to who defines the function
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{where}.{child.name}".strip(".")
            if not isinstance(child, ast.JoinedStr):
                yield where, tree, field, index
                yield from _places(child, name)


def _word(node: ast.AST) -> str:
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())[:90]


def python_mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a Python module; sentences, annotations and imports are left as they are."""
    tree = ast.parse(source)
    seen: dict[str, int] = {}
    for where, parent, field, index in list(_places(tree)):
        holder = getattr(parent, field)
        node = holder if index is None else holder[index]
        for change in _changes(node):
            name = f"{where or 'module'}: {_word(node)} => {_word(change)}"
            seen[name] = seen.get(name, 0) + 1
            if seen[name] > 1:
                name += f" ({seen[name]})"
            _put(parent, field, index, change)
            source = ast.unparse(ast.fix_missing_locations(tree))
            first = getattr(node, "lineno", 0)
            yield Mutant(name, source, where, first, getattr(node, "end_lineno", first))
            _put(parent, field, index, node)


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


_TOKENS = (
    (r"==", "!="),
    (r"!=", "=="),
    (r"&&", "||"),
    (r"\|\|", "&&"),
    (r"<=", "<"),
    (r">=", ">"),
    (r"(?<![<>-])>(?![>=])", ">="),
    (r"(?<![<])<(?![<=])", "<="),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" & ", " | "),
    (r"(?<=[ (])!(?=[\w(])", ""),
    (r"\btrue\b", "false"),
    (r"\bfalse\b", "true"),
    (r"(?<![\w.])(\d+)(?!\w)", ""),
    (r"\bcontinue;", ";"),
)


def c_mutants(source: str) -> Iterator[Mutant]:
    """Mutants of a C file by its tokens, comments and directives left out."""
    where = "file"
    is_comment = False
    lines = source.splitlines(keepends=True)
    for number, line in enumerate(lines):
        is_comment = is_comment or line.lstrip().startswith("/*")
        if is_comment or line.startswith(("//", "#")):
            is_comment = is_comment and "*/" not in line
            continue
        if found := re.match(r"[\w ]+[ *](\w+)\(", line):
            where = found[1]
        for pattern, put in _TOKENS:
            for count, match in enumerate(re.finditer(pattern, line)):
                text = put if match.re.groups == 0 else str(int(match[1]) + 1)
                changed = line[: match.start()] + text + line[match.end() :]
                name = f"{where}: {' '.join(line.split())} => {' '.join(changed.split())}"
                name += f" ({count + 1})" if count else ""
                source = "".join([*lines[:number], changed, *lines[number + 1 :]])
                yield Mutant(name, source, where)
