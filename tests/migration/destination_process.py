# SPDX-License-Identifier: GPL-2.0-or-later
"""A destination in a process of its own: takes a guest from standard input, lets it go on."""

from __future__ import annotations

import json
import os
import sys

from migration_world import KEY, host_for, snippet

from guestemu.abi.regions import Region
from guestemu.migration.stream import MessageChannel, accept_guest
from guestemu.runner.exit_recorder import ExitRecorder


def main(kind: str) -> None:
    guest = snippet(KEY)
    host = host_for(guest)
    output = os.fdopen(os.dup(1), "wb")
    channel = MessageChannel(sys.stdin.buffer, output)
    accept_guest(channel, guest, host, kind == "firmware")
    recorder = ExitRecorder(host, guest)
    guest.machine.hooks.handler = recorder
    vcpu = guest.machine.current
    end = vcpu.run(vcpu.read_register("rip"), guest.budget)
    page, shared = guest.gva(Region.D, 0), guest.gva(Region.D, 1)
    found = {
        "pid": os.getpid(),
        "end": type(end).__name__,
        "loads": [guest.load(page).value, guest.load(shared).value],
        "shared": list(host.private_map().search(0)),
        "ready": host.migration_ready,
        "calls": [record.nr for record in recorder.records],
        "again": guest.set_memory_encrypted(shared, 1).value,
    }
    output.write(json.dumps(found).encode())
    output.close()


if __name__ == "__main__":
    main(sys.argv[1])
