# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers in a user's code: what `npages == 77` compares with.

A campaign that has to guess 77 needs it among the values that it tries. The numbers are read from
the byte code, so the user's code runs as it is, and its byte code keeps its places.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, ModuleType
from typing import Final

from guestemu.host.plugin_import import came_with_a_plugin

_COMPARES: Final = frozenset({"COMPARE_OP", "CONTAINS_OP", "BINARY_OP", "IS_OP"})
_NEAR: Final = 3
"""Instructions after which a number has been used: perhaps another operand, then the test."""

_MOST: Final = 400


def numbers_of(owner: type[object]) -> tuple[int, ...]:
    """The integers in the code of the module that defines `owner`, and of the modules that were
    imported with it: operands of comparisons and arithmetic first, then all others."""
    used: dict[int, None] = {}
    others: dict[int, None] = {}
    for code, values in _parts_of(_modules_of(owner)):
        for value in values:
            others.setdefault(value)
        if code is not None:
            _read(code, used, others)
    return tuple(dict.fromkeys([*used, *others]))[:_MOST]


def _modules_of(owner: type[object]) -> list[ModuleType]:
    own = sys.modules[owner.__module__]
    others = [module for module in sys.modules.values() if came_with_a_plugin(module)]
    return [own, *(module for module in others if module is not own)]


def _parts_of(modules: list[ModuleType]) -> Iterator[tuple[CodeType | None, list[int]]]:
    """The functions of modules and of their classes, and the numbers that these name."""
    for module in modules:
        spaces: list[Mapping[str, object]] = [vars(module)]
        spaces += [
            vars(member)
            for member in vars(module).values()
            if inspect.isclass(member) and member.__module__ == module.__name__
        ]
        for space in spaces:
            yield None, [value for value in space.values() if type(value) is int]
            for member in space.values():
                function = getattr(member, "fget", None) or getattr(member, "__func__", member)
                code = getattr(function, "__code__", None)
                if isinstance(code, CodeType) and code.co_filename == module.__file__:
                    yield code, []


def _read(code: CodeType, used: dict[int, None], others: dict[int, None]) -> None:
    instructions = list(dis.get_instructions(code))
    for place, instruction in enumerate(instructions):
        if isinstance(instruction.argval, CodeType):
            _read(instruction.argval, used, others)
        if not instruction.opname.startswith(("LOAD_CONST", "LOAD_SMALL_INT")):
            continue
        after = instructions[place + 1 : place + 1 + _NEAR]
        is_used = any(one.opname in _COMPARES for one in after)
        for value in _integers(instruction.argval):
            (used if is_used else others).setdefault(value)


def _integers(value: object) -> Iterator[int]:
    if type(value) is int:
        yield value
    elif isinstance(value, tuple | frozenset):
        for member in value:
            yield from _integers(member)
