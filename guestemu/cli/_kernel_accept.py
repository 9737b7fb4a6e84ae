# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel accept` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from guestemu.kernel.unaccepted import AcceptStep

_BUDGET: Final = 20_000_000


def accept_steps(image: str, memory: int, cbit: int, sev: str) -> tuple[AcceptStep, ...]:
    """The steps on a kernel; `memory` in MiB. Raises `InputError`."""
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import LOADER, linux_config
    from guestemu.kernel.unaccepted import unaccepted_memory

    guest = LOADER.guest(find_image(image), linux_config(memory, cbit, sev), _BUDGET)
    return unaccepted_memory(guest)
