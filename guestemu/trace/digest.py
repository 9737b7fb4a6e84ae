# SPDX-License-Identifier: GPL-2.0-or-later
"""The canonical hash of a trace: equal for equal runs, in any process and on any machine.

Hashed are the events as compact JSON lines, without what may change while behaviour does not:
instruction addresses and the wording of messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from guestemu.trace.events import Event, Oops, Raised, Stopped, Violated

_VERSION: Final = b"guestemu-trace 1\n"


def _canonical(event: Event) -> Event:
    if isinstance(event, Raised | Oops):
        return msgspec.structs.replace(event, rip=0)
    if isinstance(event, Stopped):
        return msgspec.structs.replace(event, rip=0, detail="")
    if isinstance(event, Violated):
        return msgspec.structs.replace(event, message="", fact="")
    return event


def trace_hash(events: Iterable[Event]) -> str:
    """SHA-256 of the canonical events as 64 hexadecimal digits."""
    digest = hashlib.sha256(_VERSION)
    encode = msgspec.json.Encoder().encode
    for event in events:
        digest.update(encode(_canonical(event)))
        digest.update(b"\n")
    return digest.hexdigest()
