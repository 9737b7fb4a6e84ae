# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hostile VMM does to one page of its TD, at any time (T10 to T12, T14, T34).

It has the SEAMCALLs of the Secure EPT and no key: it can take a private page away, put an empty one
in its place and block a page for writing. The guest must then end, or wait; it must not go on with
the empty page, which happens only if it accepts a page a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from guestemu.machine.sept import SecureEpt


class SeptAttack(msgspec.Struct, frozen=True):
    """One attack on a guest frame; `text` says what is done."""

    name: str
    text: str
    carry_out: Callable[[SecureEpt, int], None]


def _remove(sept: SecureEpt, gfn: int) -> None:
    sept.make_shared(gfn, 1)


def _replace(sept: SecureEpt, gfn: int) -> None:
    sept.make_shared(gfn, 1)
    sept.make_private(gfn, 1)


def _block(sept: SecureEpt, gfn: int) -> None:
    sept.block(gfn, is_blocked=True)


def _unblock(sept: SecureEpt, gfn: int) -> None:
    sept.block(gfn, is_blocked=False)


_ALL: Final = (
    SeptAttack("remove", "the private page is removed", _remove),
    SeptAttack("replace", "it is removed, and an empty one added: pending", _replace),
    SeptAttack("block", "it is blocked for writing", _block),
    SeptAttack("unblock", "it is unblocked", _unblock),
)

SEPT_ATTACKS: Final[Mapping[str, SeptAttack]] = {attack.name: attack for attack in _ALL}
"""Every attack by its name; programs name them by their place."""
