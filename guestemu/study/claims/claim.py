# SPDX-License-Identifier: GPL-2.0-or-later
"""A claim: who said what, and the experiment that decides it."""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec

from guestemu.study.claims.result import ClaimResult


class Need(enum.StrEnum):
    """What an experiment needs from the machine it runs on."""

    NOTHING = "nothing"
    KERNEL = "kernel"
    """An image of a distribution's kernel; `Lab.kernels` has at least one."""


class Lab(msgspec.Struct, frozen=True):
    """What an experiment may use.

    `kernels` are guests as `--guest` takes them ("linux:6.1"), those whose image is on the machine.
    """

    kernels: tuple[str, ...] = ()


class Claim(msgspec.Struct, frozen=True):
    """One claim.

    `ident` is its number in the debate ("C3b"), `text` the statement in one sentence, `who` said it
    and where, `experiment` decides it. `needs` says what the experiment cannot do without.
    `real_test` names what outside this project could decide the claim; it is required where the
    experiment runs models only.
    """

    ident: str
    text: str
    who: str
    experiment: Callable[[Lab], ClaimResult]
    needs: Need = Need.NOTHING
    real_test: str = ""
