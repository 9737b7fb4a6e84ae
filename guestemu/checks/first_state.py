# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host holds when a VM starts: every frame private, the guest not ready for migration.

SEV guests start with all of RAM encrypted (K2-a), and MSR_KVM_MIGRATION_CONTROL reads 0 until the
guest writes it (K5-c). A host that keeps either over a reset gives the next VM the last one's.
"""

from __future__ import annotations

from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import gpa_text
from guestemu.checks.base import Violation

_NEW_VM: Final = "VM that has not run"


def is_of_new_vm(violation: Violation) -> bool:
    """Whether `first_state` found it."""
    return _NEW_VM in violation.message


def first_state(index: int, private: bitarray, is_ready: bool) -> list[Violation]:
    """The violations in a host's record of a VM before it runs, named by operation `index`."""
    found: list[Violation] = []
    if not private.all():
        frame, total = private.index(0), private.count(0)
        found.append(
            Violation(
                "record",
                index,
                f"host: {gpa_text(frame)} is recorded as shared in a {_NEW_VM} "
                f"({total} frame{'s differ' if total > 1 else ' differs'})",
                "K2-a",
            )
        )
    if is_ready:
        message = f"host: a {_NEW_VM} is ready for migration"
        found.append(Violation("migration-control", index, message, "K5-c"))
    return found
