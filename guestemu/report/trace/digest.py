# SPDX-License-Identifier: GPL-2.0-or-later
"""The canonical hash of a trace: equal for equal runs, in any process and on any machine.

Hashed are the events as compact JSON lines, without what may change while behaviour does not:
instruction addresses, the wording of messages, and where the guest placed its regions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from guestemu.events.base import event_kinds
from guestemu.events.lines import Line, hashed_part

_VERSION: Final = b"guestemu-trace 1\n"


def trace_hash(lines: Iterable[Line]) -> str:
    """SHA-256 of the canonical lines as 64 hexadecimal digits."""
    digest = hashlib.sha256(_VERSION)
    encode = msgspec.json.Encoder().encode
    kinds = event_kinds()
    for line in lines:
        digest.update(encode(hashed_part(line, kinds)))
        digest.update(b"\n")
    return digest.hexdigest()
