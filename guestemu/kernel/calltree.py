# SPDX-License-Identifier: GPL-2.0-or-later
"""Who called whom in one call of a kernel function, and where the instructions went.

A code hook sees every instruction: CALL opens a frame, RET closes it, a jump to the start of
another function is a tail call that the same RET closes, an exception's entry is closed by IRET.
Calls of one function from one place in the tree are one node, with the number of times; so a
conversion of 512 pages is as short as one of a page. Hooks cost a call of Python for each
instruction: a second for a million.
"""

from __future__ import annotations

import enum
from typing import Final

import capstone
import msgspec

from guestemu.abi.addresses import Gva
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.machine.callbacks import CodeHook
from guestemu.machine.engine import HOOK_CODE
from guestemu.machine.exits import Hypercall, MapGpaRange, VcpuAccess

_LONGEST: Final = 15
_EXCEPTION: Final = "asm_exc_"
_COLD: Final = ".cold"


class FunctionLine(msgspec.Struct, frozen=True):
    """One node, at `depth` (the called function is at 0): a function that ran `times` times, with
    the instructions of its own and those of it and all below; or, with `is_exit`, an exit there,
    `times` times."""

    depth: int
    name: str
    times: int
    own: int
    total: int
    is_exit: bool = False


class _Flow(enum.Enum):
    NEXT = "next"
    CALL = "call"
    RETURN = "return"


class _Node:
    __slots__ = ("children", "is_exit", "name", "own", "times")

    def __init__(self, name: str, is_exit: bool = False) -> None:
        self.name = name
        self.is_exit = is_exit
        self.times = 0
        self.own = 0
        self.children: dict[str, _Node] = {}

    @property
    def total(self) -> int:
        return self.own + sum(child.total for child in self.children.values())


class _Frame:
    __slots__ = ("is_tail", "node", "start")

    def __init__(self, node: _Node, start: int, is_tail: bool) -> None:
        self.node = node
        self.start = start
        self.is_tail = is_tail


class CallTracer:
    """Builds the tree of what runs between `begin` and `end`. Afterwards the guest stays slow."""

    def __init__(self, guest: LinuxGuest) -> None:
        self._vcpu = guest.machine.current
        self._index = guest.calls.index
        self._starts = self._index.starts
        self._flows: dict[int, _Flow] = {}
        self._capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._is_on = False
        self.begin()
        self._is_on = False
        engine = guest.machine.engine
        engine.add_hook(HOOK_CODE, CodeHook(self._on_instruction))
        engine.flush_blocks()

    def begin(self) -> None:
        """Starts anew, before a call."""
        self._root = _Node("")
        self._stack = [_Frame(self._root, 0, False)]
        self._is_entry = True
        self._is_on = True

    def end(self) -> int:
        """Stops; the number of calls that have not returned."""
        self._is_on = False
        return len(self._stack) - 1

    @property
    def instructions(self) -> int:
        """How many ran."""
        return self._root.total

    def lines(self, max_depth: int) -> tuple[FunctionLine, ...]:
        """The tree from the top, functions down to `max_depth` levels; exits always."""
        found: list[FunctionLine] = []

        def walk(node: _Node, depth: int) -> None:
            for child in node.children.values():
                if child.is_exit or depth < max_depth:
                    found.append(
                        FunctionLine(
                            min(depth, max_depth),
                            child.name,
                            child.times,
                            child.own,
                            child.total,
                            child.is_exit,
                        )
                    )
                walk(child, depth + 1)

        walk(self._root, 0)
        return tuple(found)

    def mark_exit(self, text: str) -> None:
        """An exit where the guest stands."""
        self._child(text, True).times += 1

    def _child(self, name: str, is_exit: bool = False) -> _Node:
        children = self._stack[-1].node.children
        node = children.get(name)
        if node is None:
            node = children[name] = _Node(name, is_exit)
        return node

    def _push(self, address: int, is_tail: bool) -> None:
        node = self._child(self._index.function(address) or f"{address:#x}")
        node.times += 1
        self._stack.append(_Frame(node, address, is_tail))

    def _on_instruction(self, _uc: object, address: int, _size: int, _user: object) -> None:
        if not self._is_on:
            return
        if self._is_entry:
            self._is_entry = False
            self._push(address, False)
        elif address in self._starts:
            self._jump(address)
        top = self._stack[-1].node
        top.own += 1
        flow = self._flows.get(address)
        if flow is None:
            flow = self._flows[address] = self._decode(address)
        if flow is _Flow.CALL:
            self._is_entry = True
        elif flow is _Flow.RETURN:
            while len(self._stack) > 1 and self._stack.pop().is_tail:
                pass

    def _jump(self, address: int) -> None:
        """A jump to, or a fall into, the start of a function."""
        name = self._index.function(address)
        if name.startswith(_EXCEPTION):
            self._push(address, False)
            return
        if name.endswith(_COLD):
            return
        for back in range(len(self._stack) - 1, 0, -1):
            frame = self._stack[back]
            if frame.start == address:  # a loop
                del self._stack[back + 1 :]
                return
            if not frame.is_tail:
                break
        self._push(address, True)

    def _decode(self, address: int) -> _Flow:
        code = self._vcpu.read_memory(Gva(address), _LONGEST) or b""
        for _, _, mnemonic, _ in self._capstone.disasm_lite(code, address, 1):
            if mnemonic == "call":
                return _Flow.CALL
            if mnemonic in {"ret", "iretq"}:
                return _Flow.RETURN
        return _Flow.NEXT


class TracedExits(BootRecorder):
    """Answers exits as its base does and marks them in `tracer`'s tree."""

    def __init__(self, answer: int, tracer: CallTracer) -> None:
        super().__init__(answer)
        self._tracer = tracer

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        self._tracer.mark_exit(f"hypercall {call.nr}")
        return super().hypercall(call)

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`."""
        self._tracer.mark_exit(f"page-state change ({call.origin})")
        return super().map_gpa_range(call)

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `ExitHandler`."""
        self._tracer.mark_exit(f"WRMSR {index:#x} = {value:#x}")
        super().wrmsr(index, value, vcpu)
