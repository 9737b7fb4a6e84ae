# SPDX-License-Identifier: GPL-2.0-or-later
"""What guest RAM and the native memory hook share: its record, the flags of a page's view."""

from __future__ import annotations

import ctypes
from typing import Final

FLAG_DIRTY: Final = 1
FLAG_STALE: Final = 2
FLAG_TABLE: Final = 4
FLAG_APART: Final = 8
"""A store leaves the other view alone: it is the same memory (a mirrored page), or other memory (a
TD's)."""
FLAG_WATCHED: Final = 16


class MemoryWatch(ctypes.Structure):
    """The record that the native memory hook works on; layout as in native/hooks.c."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("frames", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("dirty_count", ctypes.c_uint64),
        ("log", ctypes.c_uint64),
        ("log_count", ctypes.c_uint64),
        ("log_capacity", ctypes.c_uint64),
        ("slow", ctypes.c_void_p),
        ("cbit_mask", ctypes.c_uint64),
        ("base_flags", ctypes.c_uint64),
        ("base_pages", ctypes.c_uint64),
        ("private", ctypes.c_uint64),
        ("shared", ctypes.c_uint64),
        ("low", ctypes.c_uint64),
        ("zero_page", ctypes.c_uint64),
    )
