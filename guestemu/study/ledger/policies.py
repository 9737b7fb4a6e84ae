# SPDX-License-Identifier: GPL-2.0-or-later
"""What guest and VMM do when a notification fails: upstream's ways, and those of May 2021 (R5, R6).

The guest's part is machine code (`snippets/policy.S`, or a kernel generation's own snippet, or a
real kernel); the VMM's part is `aborts_on_zero`. DMA follows `callers`, the generation whose
dma_direct_alloc() gets the error (A.9): up to 6.8.5 it frees pages that are half shared.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.errors import InputError

LINUX: Final = "linux:"


class LedgerRow(msgspec.Struct, frozen=True):
    """A row of the ledger's table. `guest` is a name as `--guest` takes it, or "" for the policy
    code with `word` in `error_policy`; `sev` is its kind, as the word of `--sev`."""

    name: str
    text: str
    word: int = 0
    guest: str = ""
    aborts_on_zero: bool = False
    callers: str = "6.1"
    sev: str = "sev"

    @property
    def is_kernel(self) -> bool:
        """A real kernel."""
        return self.guest.startswith(LINUX)

    @property
    def asks_to_migrate(self) -> bool:
        """The guest writes MIGRATION_CONTROL: KVM never offers that to SNP guests and TDs (A48)."""
        return self.sev in {"sev", "es"}


POLICIES: Final = (
    LedgerRow("ignore", "the error is dropped", 0),
    LedgerRow("warn", "WARN_ONCE, then on as if nothing had happened", 1),
    LedgerRow("propagate", "-EIO to the caller, who acts as in 6.1", 2),
    LedgerRow("propagate-leak", "-EIO to the caller, who acts as in 6.12", 2, callers="6.12"),
    LedgerRow("msr-zero", "MIGRATION_CONTROL = 0; the VMM looks when a migration starts", 3),
    LedgerRow(
        "msr-zero-abort",
        "MIGRATION_CONTROL = 0; the VMM also aborts a running migration",
        3,
        aborts_on_zero=True,
    ),
    LedgerRow("stop-call", "a hypercall that stops this and every later migration", 4),
    LedgerRow("permanent", "MIGRATION_CONTROL = disabled for good, unlike a reboot's 0", 5),
    LedgerRow("bug", "BUG()", 6),
    LedgerRow("upstream-5.17", "Linux 5.16 to 5.18 as they are", guest="snippet:5.17"),
    LedgerRow("upstream-6.1", "Linux 5.19 to about 6.6 as they are", guest="snippet:6.1"),
    LedgerRow("upstream-6.12", "Linux 6.12 as it is", guest="snippet:6.12", callers="6.12"),
)
"""Those of our own code; `kernel_policy` adds a real kernel."""

UPSTREAM: Final = ("6.12", "7.3")
"""Generations of our own code that are SNP guests and TDs."""


def kernel_policy(guest: str, sev: str = "sev") -> LedgerRow:
    """The row of a real kernel, `guest` as in `linux:6.1`, as a guest of kind `sev`."""
    return LedgerRow(guest, "a real, unmodified kernel", guest=guest, sev=sev)


def find_policies(
    names: tuple[str, ...], kernels: tuple[str, ...], sev: str = "sev"
) -> tuple[LedgerRow, ...]:
    """The policies of these names, all for none; `kernels` are those that can be booted here.

    The proposals of May 2021 concern plain SEV: of the other kinds there are only Linux's own ways.
    Raises `InputError` for a name that does not exist.
    """
    every = (*_own_code(sev), *(kernel_policy(kernel, sev) for kernel in kernels))
    by_name = {policy.name: policy for policy in every}
    for name in names:
        if name not in by_name:
            raise InputError(f"policy {name!r}: unknown, take one of {', '.join(by_name)}")
    return tuple(by_name[name] for name in names) or every


def _own_code(sev: str) -> tuple[LedgerRow, ...]:
    if sev == "sev":
        return POLICIES
    if sev == "es":
        return ()
    return tuple(
        LedgerRow(
            f"upstream-{name}",
            f"Linux {name} as it is",
            guest=f"snippet:{name}",
            callers=name,
            sev=sev,
        )
        for name in UPSTREAM
    )
