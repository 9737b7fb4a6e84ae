# SPDX-License-Identifier: GPL-2.0-or-later
"""A destination in a process of its own: takes a kernel from standard input and lets it go on.

Arguments: the image, and where the observer wants it stopped.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import msgspec
from kernel_stream import receive_guest

from guestemu.guest.base import BootExit
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.machine.exits import Trap
from guestemu.migration.stream import MessageChannel
from guestemu.migration.sweep.run import CBIT, MEMORY_MIB
from guestemu.migration.sweep.station import Station, touched_frames


class Arrived(msgspec.Struct):
    """What the observer compares."""

    end: int
    cpu: bytes
    exits: list[BootExit]
    shared: bytes
    pages: dict[int, bytes]


def main(image: str, end: int) -> None:
    config = linux_config(MEMORY_MIB, CBIT, "sev", coherent=False)
    station = Station(LOADER.kernel(Path(image)), config)
    station.stop_at(end)
    output = os.fdopen(os.dup(1), "wb")
    receive_guest(MessageChannel(sys.stdin.buffer, output), station)
    ended = station.go_on()
    shared = bytes(station.host.shared)
    ram = station.machine.ram
    pages = {
        gfn: hashlib.sha256(ram.read(gfn << 12, 4096, not shared[gfn])).digest()
        for gfn in touched_frames(station.machine)
    }
    stopped = ended.rip if isinstance(ended, Trap) else 0
    cpu = station.capture().vcpus[0]
    output.write(msgspec.msgpack.encode(Arrived(stopped, cpu, station.host.exits, shared, pages)))
    output.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
