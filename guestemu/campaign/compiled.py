# SPDX-License-Identifier: GPL-2.0-or-later
"""What the compiled parts of a campaign have in common (`build` makes them)."""

from __future__ import annotations

import ctypes


def source_of(library: ctypes.CDLL, name: str) -> str:
    """The digest of the sources that `library` was made from (`build.Source.digest`), which it has
    in its variable `name`."""
    text = ctypes.c_char.in_dll(library, name)
    return ctypes.string_at(ctypes.addressof(text)).decode()
