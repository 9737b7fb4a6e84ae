# SPDX-License-Identifier: GPL-2.0-or-later
"""Which byte code of a host an operation executed.

A host is Python, so the place of its defect can be looked for: what it executes when it is wrong
and never when it is right. Tracing costs some fifty times the run, so it is for programs that
failed. For a user's host only the user's code counts, which keeps the reference model below it out
of suspicion; for a host of `guestemu.host` the code of that package does.
"""

from __future__ import annotations

import linecache
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Final, TypeAlias

import guestemu
from guestemu.abi.tdx import MapGpaAnswer
from guestemu.guest.td import MapGpaHandler
from guestemu.host.base import Hypercall, MapGpaRange, VcpuAccess
from guestemu.machine.exits import ExitHandler, RunFailed
from guestemu.machine.sept import SecureEpt
from guestemu.machine.view_bit import ViewBit

if TYPE_CHECKING:
    from _typeshed import TraceFunction

Spots: TypeAlias = frozenset[int]
"""Byte code locations, numbered by the `ByteCodeTrace` that recorded them."""

_OWN: Final = f"{Path(guestemu.__file__).parent}/"
_MODELS: Final = f"{_OWN}host/"
_PLANTED: Final = f"{_OWN}campaign/planted/"
_SHIFT: Final = 20
_Tracer: TypeAlias = Callable[[FrameType, str, object], "_Tracer | None"]


def _foreign() -> tuple[str, ...]:
    """Directories of the interpreter and of installed packages."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return (*(f"{sysconfig.get_path(name)}/" for name in names), "<frozen")


class CodeTracedExits:
    """Stands between vCPU and recorder and traces while an exit is answered."""

    def __init__(self, code: ByteCodeTrace, handler: ExitHandler) -> None:
        self._code = code
        self._handler = handler

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitHandler`."""
        self._code.start()
        try:
            return self._handler.hypercall(call)
        finally:
            self._code.stop()

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitHandler`."""
        self._code.start()
        try:
            return self._handler.map_gpa_range(call)
        finally:
            self._code.stop()

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """See `ExitHandler`."""
        self._code.start()
        try:
            return self._handler.rdmsr(index, vcpu)
        finally:
            self._code.stop()

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `ExitHandler`."""
        self._code.start()
        try:
            self._handler.wrmsr(index, value, vcpu)
        finally:
            self._code.stop()


class CodeTracedMapGpa(CodeTracedExits):
    """The same before a TD's hypervisor, which answers MapGPA as a whole."""

    def __init__(self, code: ByteCodeTrace, handler: ExitHandler, whole: MapGpaHandler) -> None:
        super().__init__(code, handler)
        self._whole = whole

    def tdx_map_gpa(
        self, gpa: int, size: int, bit: ViewBit, vcpu: VcpuAccess, sept: SecureEpt
    ) -> MapGpaAnswer | RunFailed:
        """See `MapGpaHandler`."""
        self._code.start()
        try:
            return self._whole.tdx_map_gpa(gpa, size, bit, vcpu, sept)
        finally:
            self._code.stop()


def traced_exits(code: ByteCodeTrace, handler: ExitHandler) -> CodeTracedExits:
    """`handler` behind a trace of what it executes; it answers everything that it did before."""
    whole: object = handler
    if isinstance(whole, MapGpaHandler):
        return CodeTracedMapGpa(code, handler, whole)
    return CodeTracedExits(code, handler)


class ByteCodeTrace:
    """Records byte code between `start` and `stop`; `is_model`: of `guestemu.host`."""

    def __init__(self, is_model: bool) -> None:
        self._is_model = is_model
        self._foreign = _foreign()
        self._numbers: dict[CodeType, int] = {}
        self._codes: list[CodeType] = []
        self._hit: set[int] = set()
        self._before: TraceFunction | None = None
        self._is_on = False

    def start(self) -> None:
        """Traces from now on; whatever traced before has to wait."""
        if not self._is_on:
            self._before = sys.gettrace()
            self._is_on = True
            sys.settrace(self._on_call)

    def stop(self) -> None:
        """Ends tracing."""
        if self._is_on:
            self._is_on = False
            sys.settrace(self._before)

    def take(self) -> Spots:
        """What ran since the last call."""
        spots = frozenset(self._hit)
        self._hit.clear()
        return spots

    def _is_host(self, name: str) -> bool:
        if name.startswith(_MODELS):
            return self._is_model
        if name.startswith(_OWN):
            return name.startswith(_PLANTED)
        return not name.startswith(self._foreign)

    def _number(self, code: CodeType) -> int:
        number = self._numbers.get(code)
        if number is None:
            number = -1
            if self._is_host(code.co_filename):
                number = len(self._codes)
                self._codes.append(code)
            self._numbers[code] = number
        return number

    def _on_call(self, frame: FrameType, event: str, argument: object) -> _Tracer | None:
        number = self._number(frame.f_code)
        if number < 0:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        base = number << _SHIFT
        hit = self._hit

        def on_opcode(frame: FrameType, event: str, argument: object) -> _Tracer:
            hit.add(base | frame.f_lasti)
            return on_opcode

        return on_opcode

    def anchors(self, spots: Iterable[int]) -> tuple[str, ...]:
        """Where the source lines of `spots` begin, as "Class.method+OFFSET" in bytes of byte code,
        sorted: the same whatever comments, names and texts a line has, wherever the file lies and
        whatever stands above the function."""
        return tuple(sorted({self._anchor(spot) for spot in spots}))

    def _anchor(self, spot: int) -> str:
        code = self._codes[spot >> _SHIFT]
        line = self._line(spot)[1]
        start = min(start for start, _, number in code.co_lines() if number == line)
        return f"{code.co_qualname}+{start}"

    def places(self, spots: Iterable[int]) -> tuple[str, ...]:
        """The source lines of `spots` as "FILE:LINE: text", for people."""
        found = {self._line(spot) for spot in spots}
        return tuple(f"{path}:{line}: {text}" for path, line, _, text in sorted(found))

    def _line(self, spot: int) -> tuple[str, int, str, str]:
        code = self._codes[spot >> _SHIFT]
        offset = spot & (1 << _SHIFT) - 1
        line = code.co_firstlineno
        for start, end, number in code.co_lines():
            if start <= offset < end and number is not None:
                line = number
                break
        text = linecache.getline(code.co_filename, line).strip()
        return code.co_filename, line, code.co_qualname, text
