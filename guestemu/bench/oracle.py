# SPDX-License-Identifier: GPL-2.0-or-later
"""The figure of the real KVM in the loop: a campaign's steps a second beside a client in C."""

from __future__ import annotations

from typing import Final

from guestemu.abi.errors import MissingError
from guestemu.bench.figure import Figure
from guestemu.conformance.recordings.kernel_choice import choose_kernel
from guestemu.oracle.image import find_kernel
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.qemu import MachineEnded
from guestemu.oracle.speed import measure as measure_speed

NAME: Final = "oracle"
HELP: Final = (
    "random steps a second on the KVM of a fetched 6.12, in wall time, beside a client in C"
)
_KERNEL: Final = "6.12"
_AGAINST: Final = "a client in C on the same channel"
_BATCHES: Final = 2


def measure() -> Figure:
    """Starts the machine, measures and ends it; start-up and the model alone are in the note."""
    try:
        with LiveKvm(find_kernel(_KERNEL)) as kvm:
            choice = choose_kernel(kvm.machine.release, _KERNEL)
            found = measure_speed(kvm, choice.kernel, _BATCHES)
    except (MissingError, MachineEnded) as error:
        return Figure(NAME, None, "/s", None, None, against=_AGAINST, note=str(error))
    return Figure(
        name=NAME,
        value=round(found.campaign, 1),
        unit="/s",
        floor=round(found.channel, 1),
        ratio=round(1 / found.ratio, 3),
        against=_AGAINST,
        note=f"start-up {found.start_up:.1f} s, model alone {found.model:.0f} /s",
    )
