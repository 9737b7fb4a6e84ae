# SPDX-License-Identifier: GPL-2.0-or-later
"""A state of a host's firmware and KVM that programs begin with.

Launching the guest again costs ten times what a program does. So what can change is found once, by
following the references from the world: the attributes of this package's objects, and lists, dicts,
sets, byte arrays and generators of random numbers. `restore` puts all of it back in place. Frozen
structs, keys and ciphers have no state.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum
from types import MethodType
from typing import Final

_OURS: Final = "guestemu."


class Checkpoint:
    """What the objects behind `root` are now."""

    def __init__(self, root: object) -> None:
        self._kept: dict[int, object] = {}
        """By identity, which is no other object's as long as they are kept."""
        self._undo: list[Callable[[], None]] = []
        pending = [root]
        while pending:
            one = pending.pop()
            if id(one) not in self._kept:
                self._kept[id(one)] = one
                pending += self._note(one)

    def restore(self) -> None:
        """Back to what they were."""
        for undo in self._undo:
            undo()

    def _note(self, one: object) -> list[object]:
        """Keeps the state of one object; what it refers to."""
        match one:
            case bytearray() | list():
                self._keep_items(one)
                return [] if isinstance(one, bytearray) else list(one)
            case dict():
                self._keep_entries(one, dict(one))
                return [*one.keys(), *one.values()]
            case set():
                self._keep_members(one, frozenset(one))
                return list(one)
            case tuple() | frozenset():
                return list(one)
            case random.Random():
                state = one.getstate()
                self._undo.append(lambda: one.setstate(state))
                return []
            case MethodType():
                return [one.__self__]
        return self._note_object(one)

    def _keep_items(self, one: bytearray | list[object]) -> None:
        if isinstance(one, bytearray):
            content = bytes(one)
            self._undo.append(lambda: one.__setitem__(slice(None), content))
        else:
            items = list(one)
            self._undo.append(lambda: one.__setitem__(slice(None), items))

    def _keep_entries(self, one: dict[object, object], entries: dict[object, object]) -> None:
        def undo() -> None:
            one.clear()
            one.update(entries)

        self._undo.append(undo)

    def _keep_members(self, one: set[object], members: frozenset[object]) -> None:
        def undo() -> None:
            one.clear()
            one.update(members)

        self._undo.append(undo)

    def _note_object(self, one: object) -> list[object]:
        kind = type(one)
        if not kind.__module__.startswith(_OURS) or isinstance(one, type | Enum):
            return []
        attributes: object = getattr(one, "__dict__", None)
        if isinstance(attributes, dict):
            self._keep_entries(attributes, dict(attributes))
            return list(attributes.values())
        names = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
        values = {name: getattr(one, name) for name in names if hasattr(one, name)}

        def undo() -> None:
            for name, value in values.items():
                setattr(one, name, value)

        if not _is_frozen(kind):
            self._undo.append(undo)
        return list(values.values())


def _is_frozen(kind: type) -> bool:
    for name in ("__struct_config__", "__dataclass_params__"):
        if getattr(getattr(kind, name, None), "frozen", False):
            return True
    return False
