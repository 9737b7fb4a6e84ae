# SPDX-License-Identifier: GPL-2.0-or-later
"""Where cells are kept: one file of JSON lines for each kernel in the user's cache. `kernel test`,
`kernel defects`, `kernel matrix` and the tables of `outcomes` are views of it.

A cell follows from the kernel's bytes and from this program's code. Both are in the file's name, so
what is found is right, and a measurement that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Final, TypeVar

import msgspec

import guestemu
from guestemu.guest.linux.cache import CacheKey, build_id, prune, switched_off
from guestemu.guest.linux.images import cache_root, find_image
from guestemu.guest.linux.load import LOADER
from guestemu.study.outcomes.cells import Cell, Key

_Seen = TypeVar("_Seen", bound=msgspec.Struct)

MAX_KERNELS: Final = 64
"""Files that are kept; the ones that were used longest ago go first."""


@functools.cache
def code_id() -> str:
    """Names this program's code, and the emulator's library."""
    digest = hashlib.sha256(build_id().encode())
    root = Path(guestemu.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


class CellStore:
    """The cells of the kernel with this `digest` that were measured before, and those that are
    added; `version` is what new ones say of it.

    With the cache switched off, or where it cannot be written, they live as long as the object.
    """

    def __init__(self, digest: str, version: str = "") -> None:
        self._version = version
        name = CacheKey(("cells", digest, code_id())).name
        self._path = None if switched_off() else cache_root() / "cells" / f"{name}.jsonl"
        self._cells: dict[Key, Cell] = {}
        for cell in self._read():
            self._cells[cell.key] = cell

    def _read(self) -> list[Cell]:
        """What the file holds. A damaged line is skipped: its writer may have been killed."""
        found: list[Cell] = []
        if self._path is None:
            return found
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return found
        for line in lines:
            try:
                found.append(msgspec.json.decode(line, type=Cell))
            except msgspec.MsgspecError:
                continue
        return found

    def find(self, key: Key, is_counted: bool = False) -> Cell | None:
        """The cell of an experiment; with `is_counted` only one whose instructions were counted."""
        cell = self._cells.get(key)
        return None if cell is None or (is_counted and cell.instructions is None) else cell

    def add(self, cell: Cell) -> None:
        """Keeps a cell."""
        self._cells[cell.key] = cell
        if self._path is None:
            return
        try:
            is_new = not self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(cell) + b"\n")
            if is_new:
                prune(self._path.parent, MAX_KERNELS)
        except OSError:
            self._path = None

    def recall(self, key: Key, form: type[_Seen]) -> _Seen | None:
        """What `keep` kept of an experiment whose outcome has more parts than a cell."""
        cell = self.find(key)
        if cell is None:
            return None
        try:
            return msgspec.json.decode(cell.detail, type=form)
        except msgspec.MsgspecError:
            return None

    def keep(self, key: Key, kernel: str, outcome: str, seen: msgspec.Struct) -> None:
        """Keeps an outcome with all its parts, `seen`, which are the cell's detail."""
        self.add(
            Cell(
                kernel=kernel,
                version=self._version,
                kind=key.kind,
                row=key.row,
                answer=key.answer,
                outcome=outcome,
                detail=msgspec.json.encode(seen).decode(),
            )
        )


def store_of(guest: str) -> CellStore:
    """The store of "linux:IMAGE", which is that of its kernel, or of another guest by its name.
    Raises `InputError`, `MissingError` for an image that is not there."""
    family, _, image = guest.partition(":")
    if family != "linux":
        return CellStore(guest)
    kernel = LOADER.kernel(find_image(image))
    return CellStore(kernel.digest, kernel.version)
