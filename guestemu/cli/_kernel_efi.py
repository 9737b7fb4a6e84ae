# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel efi` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from guestemu.kernel.efi import OptIn

_BUDGET: Final = 20_000_000


def opt_in(
    image: str, variables: Sequence[str], memory: int, cbit: int, sev: str
) -> tuple[OptIn, ...]:
    """Each of `variables` (all if empty) in a kernel; `memory` in MiB. Raises `InputError`."""
    from guestemu.abi.errors import InputError
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import LOADER, linux_config
    from guestemu.kernel.efi import Variable, efi_opt_in

    known = {variable.value: variable for variable in Variable}
    for name in variables:
        if name not in known:
            raise InputError(f"variable {name!r}: take one of {', '.join(known)}")
    guest = LOADER.guest(find_image(image), linux_config(memory, cbit, sev), _BUDGET)
    return tuple(efi_opt_in(guest, known[name]) for name in variables or known)
