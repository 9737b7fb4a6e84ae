# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions without Python where nothing is out of the ordinary.

Python costs ten times what the emulated guest does. Most inputs of a campaign are ordinary: known
ops, a guest that ends where it should, an answer that every check is content with. Machine code
(the C beside this file) decodes such an input, puts the testbed back, runs the guest, asks the host
for each hypercall, does what the checks do, and counts what `Feedback` counts. The default host is
in C, too (host.c); every other one is asked in Python as ever. As soon as anything is not ordinary
it gives up, and Python runs the same input from the start: only Python ever reports anything.
tests/campaign/test_fastpath.py holds the two against each other.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from guestemu import native
from guestemu.abi.x86 import Mode
from guestemu.campaign.executor import Executor
from guestemu.campaign.fastpath.library import FastLibrary, load_library
from guestemu.campaign.fastpath.records import (
    MAX_OPS,
    RECENT,
    STATES,
    FastRecord,
    InputRecord,
    StubRecord,
)
from guestemu.campaign.fastpath.shadow import Shadow, why_no_shadow
from guestemu.campaign.fastpath.tables import Tables, regions
from guestemu.campaign.feedback import (
    GUEST_COUNTERS,
    MODEL_COUNTERS,
    NEAR_COUNTERS,
    SIZE,
)
from guestemu.campaign.ranges import limit_ops
from guestemu.checks.base import Check
from guestemu.checks.conversion import ConversionCheck, MappingCheck
from guestemu.checks.free import FreePagesCheck
from guestemu.checks.guest_memory import GuestMemoryCheck
from guestemu.checks.migration_control import MigrationControlCheck
from guestemu.checks.page_enc import NUMBERS
from guestemu.checks.progress import ProgressCheck
from guestemu.checks.ready import ReadyCheck
from guestemu.checks.record import RecordCheck
from guestemu.checks.results import CONTRACT, ResultCheck
from guestemu.checks.td import TdCheck
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.host.base import Host, Hypercall, VcpuAccess
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.native.host import NativeHost
from guestemu.machine import layout
from guestemu.machine.engine import Engine
from guestemu.machine.launch import Entry
from guestemu.machine.memory import GuestRam
from guestemu.machine.pc_sync import find_switch
from guestemu.machine.vcpu import Vcpu
from guestemu.program.ops import OpKind

if TYPE_CHECKING:
    from guestemu.campaign.session import Session

_KNOWN: Final[frozenset[type[Check]]] = frozenset(
    {
        *(ProgressCheck, MappingCheck, ConversionCheck, ResultCheck, RecordCheck),
        *(MigrationControlCheck, ReadyCheck, FreePagesCheck, TdCheck),
    }
)
"""The checks that the C knows, or that never concern an op that it runs."""

_FUNCTIONS: Final = {
    OpKind.SET_MEMORY_ENCRYPTED: "set_memory_encrypted",
    OpKind.SET_MEMORY_DECRYPTED: "set_memory_decrypted",
    OpKind.EARLY_SET_MEMORY_ENCRYPTED: "early_set_memory_encrypted",
    OpKind.EARLY_SET_MEMORY_DECRYPTED: "early_set_memory_decrypted",
    OpKind.WRITE: "guest_memset",
    OpKind.READ: "guest_load8",
}
_RUN: Final = frozenset({OpKind.HYPERCALL, OpKind.STOP_CONVERSION, *_FUNCTIONS})
"""The ops that the C runs; a check of other ops does not concern it."""
_STOP: Final = "set_memory_enc_stop_conversion"
_HERE, _NO_FUNCTION = 1, 2
PROGRAMS: Final = 1 << 21
"""Programs that the machine code remembers having run."""
_LEVELS: Final = 4
_VMMCALL_LENGTH: Final = 3
_WORD_BITS: Final = 64
_PUT_SAID: Final = struct.Struct("4Q").pack_into


def why_not(executor: Executor) -> str:
    """Why the executions of `executor` need Python; empty if machine code may do them."""
    without = native.why_not()
    if without:
        return f"there is no machine code: {without}"
    testbed = executor.testbed
    guest = testbed.guest
    machine = guest.machine
    if type(guest) is not SnippetGuest or guest.boot_exits:
        return f"guest {guest.name} is not a snippet"
    if type(machine.ram) is not GuestRam or not machine.code.available or machine.tlb is not None:
        return "the machine has caches or a page walk of its own, or no native hooks"
    host = testbed.host
    is_native = isinstance(host, NativeHost)
    known = _KNOWN | {GuestMemoryCheck} if is_native else _KNOWN
    unknown = [
        check.name
        for check in testbed.checks
        if type(check) not in known and (check.kinds is None or check.kinds & _RUN)
    ]
    if executor.target.max_ops > MAX_OPS:
        return f"programs have more than {MAX_OPS} ops"
    if executor.target.order or unknown:
        return " ".join([f"target {executor.target.name} has checks of its own", *unknown])
    if host.contract in NUMBERS:
        return f"host {host.name} has another contract"
    if isinstance(host, NativeHost) and why_no_shadow(host):
        return why_no_shadow(host)
    if host.memory_slots and not is_native:
        return "the VM has a layout of memory slots"
    if guest.td is not None:
        return "the guest is a TD"
    if machine.devices or machine.hooks.reflects_vmmcall:
        return "the guest's hypercalls go through a GHCB"
    if executor.target.limit not in (None, limit_ops):
        return f"target {executor.target.name} has limits of its own"
    return ""


def open_fast_path(session: Session, leave: Callable[[BaseException], None]) -> FastPath | None:
    """The fast path of `session`; None where there is none. `leave` gets `SessionOver`, and what
    else Python raises while libFuzzer drives."""
    library = load_library()
    if library is None or not session.may_be_native or why_not(session.executor):
        return None
    return FastPath(session, library, leave)


class FastPath:
    """The fast path of one session, ready to run. See the module's docstring.

    `record` is what both sides work on.
    """

    def __init__(
        self, session: Session, library: FastLibrary, leave: Callable[[BaseException], None]
    ) -> None:
        testbed = session.executor.testbed
        guest = testbed.guest
        assert isinstance(guest, SnippetGuest)
        self.library = library
        self.record = FastRecord()
        self._session = session
        self._testbed = testbed
        self._guest = guest
        self._leave = leave
        self._tables = Tables()
        self._shadow: Shadow | None = None
        testbed.reset()
        self._fill_session()
        self._fill_programs()
        self._fill_machine()
        self._fill_stubs()
        self._fill_status()
        self._connect()
        library.use(self.record)

    def close(self) -> None:
        """Gives the machine back to Python alone."""
        self._ask_shadow()
        self.library.use(None)
        self._guest.machine.ram.watch.slow = self.record.slow_access
        self._guest.forget_state()

    # The record -------------------------------------------------------------------------------

    def _fill_session(self) -> None:
        record, session = self.record, self._session
        feedback = session.feedback
        record.programs = self._tables.zeroes(PROGRAMS) if session.skips_known else 0
        record.programs_mask = PROGRAMS - 1
        record.lengths = session.lengths.buffer_info()[0]
        if session.current is not None:
            record.current = self._tables.keep(ctypes.c_char.from_buffer(session.current))
        deadly = [InputRecord(self._tables.octets(data), len(data)) for data in session.deadly]
        record.deadly = self._tables.keep((InputRecord * len(deadly))(*deadly))
        record.deadly_count = len(deadly)
        record.area = feedback.address
        record.unseen = feedback.unseen_address
        record.area_words = SIZE // ctypes.sizeof(ctypes.c_uint64)
        record.model_offset = GUEST_COUNTERS
        record.model_mask = MODEL_COUNTERS - 1
        record.near_offset = GUEST_COUNTERS + MODEL_COUNTERS
        record.near_mask = NEAR_COUNTERS - 1

    def _fill_programs(self) -> None:
        record, tables = self.record, self._tables
        executor = self._session.executor
        target = executor.target
        record.max_size = executor.max_size
        record.vcpus = executor.decoder.vcpus
        record.limits = target.limit is limit_ops
        record.is_lawful = executor.kinds.isdisjoint(target.fault_kinds)
        record.plans = tables.plans(executor.decoder)
        record.places = tables.places(executor.decoder)
        for number, region in enumerate(regions(self._guest)):
            record.regions[number] = region

    def _fill_machine(self) -> None:
        record, machine = self.record, self._guest.machine
        engine, watch = machine.engine, machine.ram.watch
        record.launch = machine.code.launch
        record.rollback = machine.code.rollback
        record.flush = engine.function("uc_ctl")
        record.uc = engine.handle.value or 0
        record.flush_command = Engine.FLUSH_TLB_COMMAND
        at = ctypes.addressof(watch)
        record.memory = at
        record.dirty_count = at + type(watch).dirty_count.offset
        record.log_count = at + type(watch).log_count.offset
        record.log = watch.log
        record.flags = watch.flags
        record.private_view = watch.private
        record.slow_access = watch.slow or 0
        watch.slow = self.library.slow_access
        blocks = machine.hooks.watch
        record.blocks_left = ctypes.addressof(blocks) + type(blocks).left.offset
        record.budget = self._guest.budget
        record.unsynced = ctypes.addressof(blocks) + type(blocks).unsynced.offset
        switch = find_switch()
        record.sync_switch = 0 if switch is None else record.uc + switch
        registers, answer = machine.hooks.exit_registers
        record.in_values = registers.values_address
        record.out_values = answer.values_address
        decide = machine.hooks.invalid_watch
        record.decide = ctypes.addressof(decide) + type(decide).decide.offset
        record.original_decide = decide.decide or 0
        record.ended = machine.launcher.ended_address

    def _fill_stubs(self) -> None:
        record, guest = self.record, self._guest
        for state in range(STATES):
            mode, cpl = Mode(state // _LEVELS), state % _LEVELS
            if mode is Mode.REAL16 and cpl:
                continue
            start = guest.raw_stubs.vmmcall(mode, cpl)
            record.stubs[state] = _stub(start.entry, start.rip, start.end_rip, bool(cpl))
        entry, end, stack = guest.kernel_call
        record.kernel = _stub(entry, 0, end, False)
        record.kernel_stack = stack
        record.user_stack = layout.USER_STACK
        record.functions[OpKind.HYPERCALL] = _HERE
        for kind, name in _FUNCTIONS.items():
            record.functions[kind] = guest.symbols.get(name, 0)
        record.no_such_function = _NO_FUNCTION
        record.functions[OpKind.STOP_CONVERSION] = guest.symbols.get(_STOP, _NO_FUNCTION)

    def _fill_status(self) -> None:
        record, tables, host = self.record, self._tables, self._testbed.host
        leaf_map = self._guest.leaf_map
        frames = self._guest.machine.config.frames
        record.frames = frames
        record.tables = tables.table_pages(leaf_map, frames)
        record.cbit = self._guest.machine.ram.cbit_mask
        record.direct, record.alias = tables.windows(leaf_map)
        private = host.private_map()
        record.host_base.assign(private)
        host.restore(frames)
        self._map = private
        self._copy: memoryview | None = None
        if isinstance(host, NativeHost):
            self._shadow = Shadow(self._session, self.library, record, host)
        if type(host) is MapGpaRangeHost or isinstance(host, NativeHost):
            record.has_host = True
            record.compares_untruncated = host.kernel.compares_untruncated_nr
        else:
            record.host_words = frames // _WORD_BITS
            record.host_seen = tables.zeroes(record.host_words)
            record.host_map = private.buffer_info()[0]
            if host.private_map() is not private:
                copy = ctypes.create_string_buffer(private.tobytes(), frames // 8)
                record.host_map = tables.keep(copy)
                self._copy = memoryview(copy).cast("B")
            record.recent = tables.zeroes(
                record.max_size * RECENT // ctypes.sizeof(ctypes.c_uint64) + 1
            )
        record.base_state = host.state
        record.base_ready = host.migration_ready
        record.answers_judged = host.contract == CONTRACT
        record.record_judged = host.contract_state
        record.is_foreign = True

    # What the C asks of Python ----------------------------------------------------------------

    def _connect(self) -> None:
        record, api = self.record, ctypes.pythonapi
        self._asked = (
            *(self._execute, self._tick, self._keep_if_new, self._reset),
            *(self._answerer(), self._look),
        )
        names = ("execute", "tick", "news", "reset", "answer", "look")
        for name, function in zip(names, self._asked, strict=True):
            setattr(record, name, id(function))
        record.truth = id(True)
        record.call = _address(api.PyObject_CallNoArgs)
        record.release = _address(api.Py_DecRef)
        record.clear_error = _address(api.PyErr_Clear)

    @property
    def _input(self) -> bytes:
        return ctypes.string_at(self.record.data, self.record.size)

    def _settle(self) -> None:
        """Tells the session how many executions it has not seen."""
        record = self.record
        self._session.executions += record.executions
        self._session.distinct += record.distinct
        record.executions = 0
        record.distinct = 0
        record.attention = 0

    def _ask_shadow(self) -> None:
        """Nothing that ran is left unjudged."""
        if self._shadow is not None:
            self._settle()
            self._guest.forget_state()
            self._shadow.ask()

    def _execute(self) -> None:
        """The input is not ordinary."""
        try:
            self._settle()
            self._guest.forget_state()
            objected, self.record.objected = self.record.objected, 0
            data, session = self._input, self._session
            before = self._recent()
            if not objected:
                session.execute(data, before)
            elif not session.pass_over(data):
                with session.aside():
                    session.execute(data, before)
                    session.confirm(data, before)
            self._keep(data)
        except BaseException as error:
            self._end(error)

    def _recent(self) -> list[bytes]:
        """The last inputs that ran, oldest first."""
        record = self.record
        last = range(max(0, record.recent_count - RECENT), record.recent_count)
        return [
            ctypes.string_at(
                record.recent + number % RECENT * record.max_size,
                record.recent_sizes[number % RECENT],
            )
            for number in last
        ]

    def _keep(self, data: bytes) -> None:
        """Adds `data` to them."""
        record = self.record
        if not record.recent:
            return
        place = record.recent_count % RECENT
        data = data[: record.max_size]
        ctypes.memmove(record.recent + place * record.max_size, data, len(data))
        record.recent_sizes[place] = len(data)
        record.recent_count += 1

    def _end(self, over: BaseException) -> None:
        try:
            self._ask_shadow()
        except BaseException as error:
            self._leave(error)
        else:
            self._leave(over)

    def _tick(self) -> None:
        """It is time to look at the clock."""
        try:
            self._settle()
            self.record.attention = self._session.allow()
        except BaseException as error:
            self._end(error)

    def _keep_if_new(self) -> None:
        try:
            self._session.keep_if_new(self._input)
        except BaseException as error:
            self._leave(error)

    def _reset(self) -> bool:
        """Python ran before: everything back to the first state."""
        guest = self._guest
        guest.forget_state()
        self._testbed.reset()
        guest.activate(0)
        hooks = guest.machine.hooks
        hooks.clear()
        hooks.vcpu = guest.machine.current
        return not hooks.errors and not guest.machine.ram.errors

    def _look(self) -> bool:
        """Whether the CPU stands at a VMMCALL; at which level and in which mode."""
        machine = self._guest.machine
        rip, *_, selector = machine.hooks.exit_registers[0].values.tolist()
        self.record.cpl, self.record.is_64bit = machine.current.privilege(selector)
        return machine.hooks.is_vmmcall(rip)

    def _answerer(self) -> Callable[[], bool]:
        """The function that asks the host; False where the answer is not an ordinary one."""
        host: Host = self._testbed.host
        frames = self._guest.machine.config.frames
        hooks = self._guest.machine.hooks
        vcpu = self._guest.machine.current
        registers, answer = hooks.exit_registers
        values, answered = registers.values, answer.values
        private, copy = self._map, self._copy
        octets = memoryview(self.record).cast("B")
        words = octets.cast("Q")
        stale = FastRecord.is_stale.offset // words.itemsize
        said = FastRecord.state.offset
        number = FastRecord.vcpu.offset // words.itemsize
        vcpus: tuple[VcpuAccess, ...] = (vcpu,)
        vcpus += tuple(_OtherVcpu(vcpu, index) for index in range(1, self.record.vcpus))
        is_vmmcall, restore, answer_of = hooks.is_vmmcall, host.restore, host.hypercall
        privilege, private_map = vcpu.privilege, host.private_map

        def ask() -> bool:
            rip, nr, a0, a1, a2, a3, selector = values.tolist()
            if not is_vmmcall(rip):
                return False
            if words[stale]:
                restore(frames)
            cpl, is_64bit = privilege(selector)
            value = answer_of(Hypercall(nr, a0, a1, a2, a3, cpl, is_64bit, vcpus[words[number]]))
            if hooks.rip_moved:
                hooks.rip_moved = False
                return False
            answered[0] = value
            answered[1] = rip + _VMMCALL_LENGTH
            _PUT_SAID(octets, said, host.state, host.migration_ready, cpl, is_64bit)
            if copy is not None:
                copy[:] = private_map().tobytes()
                return True
            return private_map() is private

        return ask


class _OtherVcpu:
    """`vcpu` under another number: what a host sees where machine code runs the hypercall of one
    vCPU on another. The hypercall's stub sets every register, so that both have the same."""

    def __init__(self, vcpu: Vcpu, index: int) -> None:
        self._vcpu = vcpu
        self.index = index

    def read_register(self, name: str) -> int:
        """See `VcpuAccess`."""
        return self._vcpu.read_register(name)

    def write_register(self, name: str, value: int) -> None:
        """See `VcpuAccess`."""
        self._vcpu.write_register(name, value)

    @property
    def cpl(self) -> int:
        """See `VcpuAccess`."""
        return self._vcpu.cpl

    @property
    def is_64bit(self) -> bool:
        """See `VcpuAccess`."""
        return self._vcpu.is_64bit

    def read_code(self, size: int) -> bytes:
        """See `VcpuAccess`."""
        return self._vcpu.read_code(size)

    def patch_code(self, code: bytes) -> None:
        """See `VcpuAccess`."""
        self._vcpu.patch_code(code)


def _stub(entry: Entry, start: int, end: int, is_trap: bool) -> StubRecord:
    launch, values = entry.addresses
    return StubRecord(launch, launch, values, start, end, is_trap)


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
