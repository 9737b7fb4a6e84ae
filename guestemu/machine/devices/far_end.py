# SPDX-License-Identifier: GPL-2.0-or-later
"""The other end of a network device's cable.

It answers frames of type 0x88B5 (for experiments, IEEE 802) as PID 1's `frame` command sends them:
addresses change places, and each byte of the payload is inverted, so that an answer shows that the
data went both ways. All other frames are lost.
"""

from __future__ import annotations

from typing import Final

OWN: Final = bytes.fromhex("52540067656d")
"""The device's address."""

LONGEST: Final = 1514
_SHORTEST: Final = 60
_PEER: Final = bytes.fromhex("525400706572")
_ETHERNET: Final = 14
_TYPE: Final = b"\x88\xb5"


def answer(sent: bytes) -> bytes | None:
    """What comes back for the frame `sent`; None for one that is lost."""
    if sent[_ETHERNET - len(_TYPE) : _ETHERNET] != _TYPE:
        return None
    payload = bytes(byte ^ 0xFF for byte in sent[_ETHERNET:])
    return sent[6:12] + _PEER + _TYPE + payload


def frame_command(interface: str, size: int) -> str:
    """The command of PID 1 that sends a frame of `size` bytes and returns its answer."""
    return f"frame {interface} {min(max(size, _SHORTEST), LONGEST)}"


def is_answer(data: bytes) -> bool:
    """Whether `data` is the answer to a frame of PID 1's of its size."""
    sent = bytes(0xA0 + (at & 15) for at in range(len(data) - _ETHERNET))
    return len(data) >= _SHORTEST and data == answer(b"\xff" * 6 + OWN + _TYPE + sent)
