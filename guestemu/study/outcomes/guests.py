# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests on which outcomes are looked at: real kernels and the snippet, as any guest kind."""

from __future__ import annotations

from typing import Final

from guestemu.abi.errors import InputError
from guestemu.guest.base import Guest
from guestemu.guest.linux.boot import lacking
from guestemu.guest.linux.images import fetched_images, find_image
from guestemu.guest.linux.load import LOADER
from guestemu.guest.registry import GuestSettings, load_guest

SNIPPET: Final = "snippet:6.12"
TDX_SERIES: Final = ("6.12", "6.18", "7.3")
"""Series whose kernels are held to the tables."""

_MEMORY: Final = 128
_BIT: Final = 39
_BUDGET: Final = 5_000_000


def outcome_guest(name: str, sev: str) -> Guest:
    """Guest `name` ("snippet:6.12", "linux:6.12") of kind `sev`, in its first state."""
    guest = load_guest(
        GuestSettings(
            guest=name, cbit=_BIT, memory=_MEMORY, vcpus=1, budget=_BUDGET, coherent=True, sev=sev
        )
    )
    guest.reset()
    return guest


def has_kind(name: str, kind: str) -> bool:
    """Whether the guest can run as `kind`: snippets have no SEV-ES, and a kernel may have been
    built without the code for one. Raises `InputError`, `MissingError` for an image that is not
    there."""
    family, _, image = name.partition(":")
    if family != "linux":
        return kind != "es"
    return not lacking(LOADER.kernel(find_image(image)), kind)


def known_guests() -> tuple[str, ...]:
    """The snippet, and the fetched kernels of `TDX_SERIES`."""
    fetched = {image.series for image in fetched_images()}
    return (SNIPPET, *(f"linux:{series}" for series in TDX_SERIES if series in fetched))


def chosen_guests(names: list[str] | None) -> tuple[str, ...]:
    """`names`, or `known_guests`. Raises `InputError` for an unknown guest."""
    if not names:
        return known_guests()
    for name in names:
        if not name.startswith(("linux:", "snippet:")):
            raise InputError(f"--guest {name}: take {SNIPPET} or linux:IMAGE")
    return tuple(names)
