# SPDX-License-Identifier: GPL-2.0-or-later
"""DMA mappings that are alive, by the kernel's own dma:* trace events (include/trace/events/dma.h).

The functions that write an enabled event into the trace buffer (trace_event_raw_event_dma_*) are
hooked at their entry: the kernel reports each mapping at the moment when it exists and each unmap
before it goes, with the arguments that its BTF names. The events exist from 6.12 on (fact U21).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from guestemu.abi.addresses import Gva
from guestemu.events.devices import DmaMapping
from guestemu.guest.linux.kernel import Kernel
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE
from guestemu.machine.machine import Machine

PREFIX: Final = "trace_event_raw_event_"
BOOT_OPTIONS: Final = "trace_event=dma:* trace_clock=global trace_buf_size=2M"
"""Without a trace clock the buffer is emptied late in the boot (fact U21)."""

_REGISTERS: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
_BEGINS: Final = {"dma_alloc_class": "dma_addr", "dma_map": "dma_addr"}
_ENDS: Final = {"dma_free_class": "dma_addr", "dma_unmap": "addr"}
_LISTS: Final = {"dma_map_sg": True, "dma_unmap_sg": False}
_TABLES: Final = {"dma_alloc_sgt": True, "dma_free_sgt": False}
_MAX_ENTRIES: Final = 1024
_MAX_NAME: Final = 64
_KEPT: Final = 1024
"""Mappings that ended, for telling a late access from a wild one."""


class Span(msgspec.Struct, frozen=True):
    """One mapping: `size` bytes from `gpa` on, the event that made it, the device."""

    gpa: int
    size: int
    event: str
    device: str

    def covers(self, gpa: int, size: int) -> bool:
        """Whether the access lies inside."""
        return self.gpa <= gpa and gpa + size <= self.gpa + self.size


class DmaMappings:
    """Which spans are mapped now. `counts` are the events by name; `is_known` tells whether this
    kernel has the events at all."""

    def __init__(
        self, kernel: Kernel, machine: Machine, notify: Callable[[DmaMapping], None]
    ) -> None:
        """Hooks the kernel's events; before the code first runs."""
        self.live: list[Span] = []
        self.ended: list[Span] = []
        self.counts: dict[str, int] = {}
        self._kernel = kernel
        self._machine = machine
        self._notify = notify
        self._names: dict[int, str] = {}
        handlers = {
            **dict.fromkeys(_BEGINS, self._begin),
            **dict.fromkeys(_ENDS, self._end),
            **dict.fromkeys(_LISTS, self._list),
            **dict.fromkeys(_TABLES, self._table),
        }
        hooked = [self._hook(event, handler) for event, handler in handlers.items()]
        self.is_known = any(hooked)

    def span_of(self, gpa: int, size: int) -> Span | None:
        """A live mapping that covers the access."""
        return next((span for span in self.live if span.covers(gpa, size)), None)

    def ended_span_of(self, gpa: int, size: int) -> Span | None:
        """The mapping that covered the access and ended last."""
        return next((span for span in reversed(self.ended) if span.covers(gpa, size)), None)

    # Hooks ------------------------------------------------------------------------------------

    def _hook(self, event: str, handler: Callable[[str, dict[str, int]], None]) -> bool:
        address = self._kernel.symbols.get(PREFIX + event)
        prototype = self._kernel.btf.prototype(PREFIX + event)
        if address is None or prototype is None:
            return False
        names = prototype.parameters
        hooks = self._machine.hooks

        def on_event(_uc: object, _rip: int, _size: int, _user: object) -> None:
            try:
                self.counts[event] = self.counts.get(event, 0) + 1
                handler(event, self._arguments(names))
            except BaseException as error:
                hooks.errors.append(error)
                hooks.engine.stop()

        hooks.engine.add_hook(HOOK_CODE, CodeHook(on_event), begin=address, end=address)
        return True

    def _arguments(self, names: tuple[str, ...]) -> dict[str, int]:
        """The parameters by name (System V calling convention)."""
        vcpu = self._machine.current
        values = [vcpu.read_register(name) for name in _REGISTERS]
        stack = vcpu.read_register("rsp") + 8
        values += [self._word(stack + 8 * index) for index in range(len(names) - len(values))]
        return dict(zip(names, values, strict=False))

    def _word(self, address: int, size: int = 8) -> int:
        return int.from_bytes(
            self._machine.current.read_memory(Gva(address), size) or b"", "little"
        )

    def _begin(self, event: str, arguments: dict[str, int]) -> None:
        if event == "dma_alloc_class" and not arguments.get("virt_addr"):
            return  # the allocation failed
        self._add(event, arguments["dev"], arguments[_BEGINS[event]], arguments["size"])

    def _end(self, event: str, arguments: dict[str, int]) -> None:
        self._remove(event, arguments["dev"], arguments[_ENDS[event]], arguments["size"])

    def _list(self, event: str, arguments: dict[str, int]) -> None:
        count = arguments.get("ents", arguments["nents"])
        change = self._add if _LISTS[event] else self._remove
        for gpa, size in self._entries(arguments["sgl"], count):
            change(event, arguments["dev"], gpa, size)

    def _table(self, event: str, arguments: dict[str, int]) -> None:
        btf = self._kernel.btf
        table = arguments["sgt"]
        head = self._word(table + btf.offset("sg_table.sgl"))
        count = self._word(table + btf.offset("sg_table.nents"), 4)
        change = self._add if _TABLES[event] else self._remove
        for gpa, size in self._entries(head, count):
            change(event, arguments["dev"], gpa, size)

    def _entries(self, address: int, count: int) -> Iterator[tuple[int, int]]:
        """DMA addresses and lengths of a scatterlist (include/linux/scatterlist.h)."""
        btf = self._kernel.btf
        size = btf.size("scatterlist")
        address_at, length_at = (
            btf.offset("scatterlist.dma_address"),
            btf.offset("scatterlist.dma_length"),
        )
        for _ in range(min(count & 0xFFFFFFFF, _MAX_ENTRIES)):
            link = self._word(address)
            if link & 1:  # a chain entry: the list goes on elsewhere
                address = link & ~3
                link = self._word(address)
            length = self._word(address + length_at, 4)
            if length:
                yield self._word(address + address_at), length
            if link & 2:
                return
            address += size

    # Spans ------------------------------------------------------------------------------------

    def _add(self, event: str, device: int, gpa: int, size: int) -> None:
        span = self._tell(event, device, gpa, size)
        self.live.append(span)

    def _remove(self, event: str, device: int, gpa: int, size: int) -> None:
        gone = self._tell(event, device, gpa, size)
        for index in range(len(self.live) - 1, -1, -1):
            if self.live[index].gpa == gone.gpa:
                self.ended.append(self.live.pop(index))
                del self.ended[:-_KEPT]
                return

    def _tell(self, event: str, device: int, gpa: int, size: int) -> Span:
        bit = self._machine.bit.mask
        span = Span(gpa & ~bit, size, event, self._device(device))
        self._notify(DmaMapping(name=span.event, device=span.device, gpa=span.gpa, size=span.size))
        return span

    def _device(self, address: int) -> str:
        """The device's name: dev_name()."""
        name = self._names.get(address)
        if name is None:
            pointer = self._word(address + self._kernel.btf.offset("device.kobj.name"))
            raw = self._machine.current.read_memory(Gva(pointer), _MAX_NAME) or b"?\0"
            name = raw.partition(b"\0")[0].decode("ascii", "replace")
            self._names[address] = name
        return name
