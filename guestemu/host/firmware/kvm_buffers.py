# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel buffers of one ioctl: allocated for the firmware to see, freed at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from guestemu.abi.errno import ENOMEM
from guestemu.host.firmware.kvm_vm import KernelError, KvmSevVm


class KernelBuffers:
    """Buffers by system-physical address; -ENOMEM where kmalloc refuses."""

    def __init__(self, vm: KvmSevVm) -> None:
        self._vm = vm
        self._taken: list[tuple[int, int]] = []

    def filled(self, data: bytes) -> int:
        """A buffer with `data`, or 0 for none."""
        if not data:
            return 0
        address = self.allocated(len(data), False)
        self._vm.host.platform.memory.write(address, data)
        return address

    def zeroed(self, size: int) -> int:
        """As kzalloc."""
        return self.allocated(size, True)

    def allocated(self, size: int, zero: bool) -> int:
        """As kzalloc, or as kmalloc without `zero`."""
        address = self._vm.host.heap.allocate(size, zero)
        if address is None:
            raise KernelError(ENOMEM)
        self._taken.append((address, size))
        return address

    def content(self, address: int, size: int) -> bytes:
        """What a buffer holds now."""
        return self._vm.host.platform.memory.read(address, size)

    def release(self) -> None:
        """Frees all, the last first."""
        for address, size in reversed(self._taken):
            self._vm.host.heap.release(address, size)
        self._taken = []


@contextmanager
def kernel_buffers(vm: KvmSevVm) -> Iterator[KernelBuffers]:
    """Buffers for the body of a `with`."""
    buffers = KernelBuffers(vm)
    try:
        yield buffers
    finally:
        buffers.release()
