# SPDX-License-Identifier: GPL-2.0-or-later
"""State of a device as one record: what a checkpoint keeps and a snapshot file holds."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

S = TypeVar("S", bound=msgspec.Struct, covariant=True)


class StatefulDevice(Generic[S]):
    """A `Device` (machine.py) whose mutable state is the record `state` and nothing else.

    Fields are plain data, so that a checkpoint is their MessagePack encoding.
    """

    def __init__(self, state: S) -> None:
        self.state = state
        self._kept = self.dump()

    def dump(self) -> bytes:
        """The state, for a snapshot file."""
        return msgspec.msgpack.encode(self.state)

    def restore(self, data: bytes) -> None:
        """The state as `dump` returned it. Raises msgspec.DecodeError for other bytes."""
        self.state = msgspec.msgpack.decode(data, type=type(self.state))

    def checkpoint(self) -> None:
        """Keeps the present state."""
        self._kept = self.dump()

    def rollback(self) -> None:
        """Returns to the state kept last."""
        self.restore(self._kept)
