# SPDX-License-Identifier: GPL-2.0-or-later
"""Names for the shell to complete. Each function gets the word so far."""

from __future__ import annotations

from collections.abc import Iterable


def targets(word: str) -> list[str]:
    """Targets of campaigns."""
    from guestemu.campaign.targets import TARGETS

    return _those(word, TARGETS)


def engines(word: str) -> list[str]:
    """Engines of campaigns."""
    from guestemu.campaign.engines import ENGINES

    return _those(word, ENGINES)


def hosts(word: str) -> list[str]:
    """Built-in hosts."""
    from guestemu.host.registry import hosts as entries

    return _those(word, [entry.name for entry in entries()])


def guests(word: str) -> list[str]:
    """Guests, with the kernels that were fetched."""
    from guestemu.guest.registry import guests as entries

    return _those(word, [entry.name for entry in entries()])


def claims(word: str) -> list[str]:
    """Claims of the debate."""
    from guestemu.study.claims.debate import all_claims

    return _those(word, [claim.ident for claim in all_claims()])


def bugs(word: str) -> list[str]:
    """Planted bugs."""
    from guestemu.campaign.planted.catalogue import BUGS

    return _those(word, BUGS)


def ids(word: str) -> list[str]:
    """Facts."""
    from guestemu.abi.facts import facts

    return _those(word, facts())


def images(word: str) -> list[str]:
    """Series of the kernels that were fetched."""
    from guestemu.guest.linux.images import fetched_images

    return _those(word, dict.fromkeys(image.series for image in fetched_images()))


def _those(word: str, known: Iterable[str]) -> list[str]:
    return [name for name in known if name.startswith(word)]
