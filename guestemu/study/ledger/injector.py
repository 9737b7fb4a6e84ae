# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures inside the guest's own functions, of our code and of real kernels alike.

A hook at the first instruction of a function counts its calls and, at the ordered one, returns at
once with an error. For the notifier's lookup only calls from the notifier count: a hole in the page
tables would not do, since the change of the page tables fills it first (A26c).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from guestemu.abi.addresses import U64_MASK, Gva
from guestemu.abi.errno import EINVAL
from guestemu.guest.base import Guest
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE, REGISTERS
from guestemu.study.ledger.failures import Failure, FaultPoint, Point
from guestemu.study.ledger.host import LedgerHost

_NOTIFIER: Final = "enc_dec_hypercall"
_LOOKUP: Final = "lookup_address"
_CPA: Final = ("change_page_attr", "__change_page_attr_set_clr")
"""A leaf of our code; of a kernel, where the compiler has inlined the step, a whole request."""

_INSIDE: Final = ("warn_", "once_", "__pfx_")
"""Symbols that begin no function."""


class Injector:
    """The fault points of one guest under one host."""

    def __init__(self, guest: Guest, host: LedgerHost, symbols: Mapping[str, int]) -> None:
        self._guest = guest
        self._host = host
        self._lookups = FaultPoint()
        self._changes = FaultPoint()
        self._splits = False
        if _NOTIFIER in symbols:  # our code of SNP guests and TDs has none
            self._hook(symbols[_LOOKUP], self._lookups, 0, _extent(symbols, _NOTIFIER))
        cpa = next(symbols[name] for name in _CPA if name in symbols)
        self._hook(cpa, self._changes, -EINVAL, None)
        guest.machine.engine.flush_blocks()

    def _hook(self, address: int, point: FaultPoint, value: int, callers: range | None) -> None:
        """At `address`, for calls from `callers` (None: from anywhere): RAX = `value`, RET."""
        engine = self._guest.machine.engine
        vcpu = self._guest.machine.current

        def on_call(_uc: object, _rip: int, _size: int, _user: object) -> None:
            stack = engine.read(REGISTERS["rsp"])
            data = vcpu.read_memory(Gva(stack), 8)
            if data is None:
                return
            caller = int.from_bytes(data, "little")
            if (callers is None or caller in callers) and point.hit():
                engine.write(REGISTERS["rax"], value & U64_MASK)
                engine.write(REGISTERS["rsp"], stack + 8)
                engine.write(REGISTERS["rip"], caller)

        engine.add_hook(HOOK_CODE, CodeHook(on_call), begin=address, end=address)

    def begin(self, failure: Failure | None, step: int, page: Callable[[int], Gva] | None) -> bool:
        """Orders `failure` at `step` from now on (None: only counts). `page` gives the address of
        the range's n-th page; False if that cannot be made to fail."""
        for point in self._points().values():
            point.begin()
        if failure is None:
            return True
        if failure.point is Point.SPLIT:
            self._guest.fail_split(step)
            self._splits = True
        elif failure.point is Point.PAGE:
            return page is not None and self._guest.edit_entry(page(step), bool(failure.value))
        else:
            self._host.answer = failure.value
            self._points()[failure.point].arm(step)
        return True

    def end(self) -> None:
        """Nothing fails any more."""
        for point in self._points().values():
            point.disarm()
        if self._splits:
            self._guest.clear_faults()
            self._splits = False

    def counts(self) -> dict[Point, int]:
        """How often each point was reached since `begin`."""
        return {kind: point.count for kind, point in self._points().items()}

    def _points(self) -> dict[Point, FaultPoint]:
        return {
            Point.ANSWER: self._host.answers,
            Point.MSR: self._host.msr_writes,
            Point.LOOKUP: self._lookups,
            Point.CPA: self._changes,
        }


def _extent(symbols: Mapping[str, int], name: str) -> range:
    """The addresses of function `name`: up to the next function."""
    start = symbols[name]
    later = (
        address
        for other, address in symbols.items()
        if address > start and not other.startswith(_INSIDE) and "_site_" not in other
    )
    return range(start, min(later))


def guest_symbols(guest: Guest, own: Mapping[str, int]) -> Mapping[str, int]:
    """A real kernel's symbols, or `own`, those of our code."""
    return guest.kernel.symbols if isinstance(guest, LinuxGuest) else own
