# SPDX-License-Identifier: GPL-2.0-or-later
"""Answers that the testbed orders from user space instead of its own handling (fault ops)."""

from __future__ import annotations

from guestemu.abi.addresses import U64_MASK


class Injection:
    """Pending orders: the next hypercall answers and the number of MSR exits to fail.

    An order of hypercall answers replaces the one before; MSR failures add up to the larger.
    """

    __slots__ = ("answers", "msr_errors", "value")

    def __init__(self) -> None:
        self.answers = 0
        self.value = 0
        self.msr_errors = 0

    def order_answer(self, value: int, count: int) -> None:
        """The next `count` hypercall exits get the 64-bit `value` and are not recorded."""
        self.value = value & U64_MASK
        self.answers = count

    def order_msr_error(self, count: int) -> None:
        """The next `count` MSR exits get an error: #GP in the guest."""
        self.msr_errors = max(self.msr_errors, count)

    def withdraw(self) -> None:
        """Nothing is ordered any more."""
        self.answers = 0
        self.value = 0
        self.msr_errors = 0

    def take_answer(self) -> int:
        """Uses up one ordered answer; only to be called while `answers` is not 0."""
        self.answers -= 1
        return self.value

    def take_msr_error(self) -> bool:
        """Uses up one ordered MSR failure, if there is one."""
        if not self.msr_errors:
            return False
        self.msr_errors -= 1
        return True
