# SPDX-License-Identifier: GPL-2.0-or-later
"""All claims that have an experiment, and the running of them.

A group of claims is a module with `CLAIMS`; `all_claims` names them. A claim whose experiment
needs something that does not exist yet is not here: nothing is listed as decided that is not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest
from guestemu.study.claims import (
    coherent_memory,
    failure_policies,
    firmware_promises,
    guest_addresses,
    host_records,
    instruction_boundaries,
    kexec_reset,
    migration_control,
    notification_failures,
    re_execution,
    rewriting,
    send_by_status,
    sync_orders,
)
from guestemu.study.claims.claim import Claim, Lab, Need
from guestemu.study.claims.result import ClaimResult, ClaimVerdict


class Decided(msgspec.Struct, frozen=True):
    """A claim with the outcome of its experiment, which took `seconds`."""

    claim: Claim
    result: ClaimResult
    seconds: float

    @property
    def is_decided(self) -> bool:
        """The experiment had one of its known outcomes."""
        return self.result.verdict is not ClaimVerdict.UNDECIDED


def _key(claim: Claim) -> tuple[int, str]:
    match = re.fullmatch(r"C(\d+)([a-z]?)", claim.ident)
    if match is None:
        raise ValueError(f"{claim.ident}: claims are named C1, C3b")
    return int(match[1]), match[2]


def all_claims() -> tuple[Claim, ...]:
    """Every claim with an experiment, by number."""
    groups = (
        sync_orders.CLAIMS,
        rewriting.CLAIMS,
        send_by_status.CLAIMS,
        firmware_promises.CLAIMS,
        migration_control.CLAIMS,
        host_records.CLAIMS,
        re_execution.CLAIMS,
        notification_failures.CLAIMS,
        kexec_reset.CLAIMS,
        failure_policies.CLAIMS,
        instruction_boundaries.CLAIMS,
        guest_addresses.CLAIMS,
        coherent_memory.CLAIMS,
    )
    return tuple(sorted((claim for group in groups for claim in group), key=_key))


def find_claims(idents: Iterable[str]) -> tuple[Claim, ...]:
    """The claims named, in the debate's order; all if none is named.

    Raises `InputError` for an unknown name.
    """
    claims = {claim.ident.lower(): claim for claim in all_claims()}
    wanted = list(idents)
    for ident in wanted:
        if ident.lower() not in claims:
            known = [claim.ident for claim in claims.values()]
            raise InputError(f"claims: no claim {ident!r}; {nearest(ident, known)}")
    chosen = {ident.lower() for ident in wanted} or set(claims)
    return tuple(claim for name, claim in claims.items() if name in chosen)


def can_run(claim: Claim, lab: Lab) -> bool:
    """Whether the machine has what the experiment needs."""
    return claim.needs is not Need.KERNEL or bool(lab.kernels)


def decide_claim(claim: Claim, lab: Lab) -> Decided:
    """Runs the experiment of a claim that `can_run`."""
    start = time.perf_counter()
    result = claim.experiment(lab)
    return Decided(claim, result, time.perf_counter() - start)
