# SPDX-License-Identifier: GPL-2.0-or-later
"""What KVM sees of a vCPU whose state is encrypted."""

from __future__ import annotations

from collections.abc import Callable

from guestemu.machine import ghcb
from guestemu.machine.ghcb import GhcbPage


class GhcbVcpu:
    """What KVM can reach of a SEV-ES vCPU (a `VcpuAccess`): the registers that the GHCB gave.

    Others read 0. Writes reach the guest for RAX to RDX only; RIP is in the encrypted save area.
    """

    def __init__(self, load: Callable[[], GhcbPage] | None = None, index: int = 0) -> None:
        """`load` reads the page, when a register is asked for first; None for the MSR protocol,
        which shows no register. `written` is what was written, `index` the vCPU's number."""
        self.index = index
        self._load = load
        self._loaded: GhcbPage | None = None
        self.written: dict[str, int] = {}

    @property
    def _page(self) -> GhcbPage | None:
        if self._loaded is None and self._load is not None:
            self._loaded = self._load()
        return self._loaded

    def read_register(self, name: str) -> int:
        """See `VcpuAccess`."""
        written = self.written.get(name)
        if written is not None:
            return written
        offset = ghcb.GENERAL.get(name)
        return 0 if offset is None or self._page is None else self._page.given(offset)

    def write_register(self, name: str, value: int) -> None:
        """See `VcpuAccess`."""
        if name in ghcb.GENERAL and self._load is not None:
            self.written[name] = value

    @property
    def cpl(self) -> int:
        """See `VcpuAccess`."""
        page = self._page
        return page.cpl if page is not None and page.is_valid(ghcb.CPL) else 0

    @property
    def is_64bit(self) -> bool:
        """True: KVM takes a guest with protected state for a 64-bit one."""
        return True

    def read_code(self, size: int) -> bytes:
        """Nothing: the code is encrypted."""
        return b""

    def patch_code(self, code: bytes) -> None:
        """Nothing: the code is encrypted."""
