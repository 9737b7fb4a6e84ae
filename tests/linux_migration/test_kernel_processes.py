# SPDX-License-Identifier: GPL-2.0-or-later
"""Source and destination in two processes; packets are all that crosses."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from kernel_destination import Arrived
from kernel_stream import send_guest

from guestemu.migration.stream import MessageChannel
from guestemu.migration.sweep.station import touched_frames

INSIDE_THE_SPLIT = 16_000


@pytest.mark.soak  # in one process: test_kernel_sweep.py
def test_a_kernel_goes_on_in_another_process(experiment_of, image_of) -> None:
    experiment = experiment_of("6.1", True)
    departure = experiment.leave(INSIDE_THE_SPLIT)
    reference = experiment.reference
    script = Path(__file__).with_name("kernel_destination.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(image_of("6.1")), str(experiment.scenario.end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        channel = MessageChannel(process.stdout, process.stdin)
        frames = touched_frames(experiment.source.machine)
        assert send_guest(channel, experiment.source, frames) == len(frames) > 5000
        process.stdin.close()
        arrived = msgspec.msgpack.decode(process.stdout.read(), type=Arrived)
    assert process.returncode == 0
    assert arrived.end == experiment.scenario.end
    assert departure.log + arrived.exits == reference.log
    assert arrived.cpu == reference.state.vcpus[0]
    different = [
        gfn
        for gfn, digest in arrived.pages.items()
        if gfn not in reference.undefined
        and digest != hashlib.sha256(reference.content(gfn)).digest()
    ]
    assert different == []
    assert channel.bytes_sent > 4096 * len(frames)
