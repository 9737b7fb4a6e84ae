# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's half of SNP page-state changes: snp_begin_psc(), snp_complete_psc(), snp_begin_psc_msr().

The guest's request is in its GHCB's shared buffer or in the GHCB MSR; what KVM makes of it goes to
user space as KVM_EXIT_HYPERCALL with number 12, and the answer comes back to the guest. A guest may
be hostile and change its buffer at any time, so the model reads guest memory exactly where KVM does
and as often.

Source: arch/x86/kvm/svm/sev.c of 6.12.117, 7.2.13 and 7.3.4 (the last two are equal here); "6.18"
from a stable tree of 2026, "6.11" from the series as posted (merged for 6.11). Facts N1 to N13.
`hypercall.ret` before the exit (not set before 6.18) is the host's matter: `KvmKernel.zeroes_ret`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, U64_MASK, Gpa
from guestemu.abi.errno import EAGAIN, EINVAL
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED, MAP_GPA_RANGE_PAGE_SZ_2M
from guestemu.machine.ghcb import frame_of, psc_answer, psc_operation
from guestemu.machine.memory import GuestRam

SHARED_BUFFER: Final = 0x800
SHARED_BUFFER_END: Final = 0xFF0
SCRATCH_LIMIT: Final = 16 * PAGE_SIZE
"""GHCB_SCRATCH_AREA_LIMIT: the most that KVM copies from a buffer outside of the GHCB."""

_HEADER: Final = 8
_GFN_MASK: Final = (1 << 40) - 1
_IS_2M: Final = 1 << 56
_MEANT: Final = (1 << 57) - 1
"""The bits of an entry that KVM looks at."""
_PAGES_2M: Final = 512
_OPERATIONS: Final = frozenset({abi.PSC_OP_PRIVATE, abi.PSC_OP_SHARED})
_MAX_ROUNDS: Final = 4096
"""Exits of one request; a guest that moves its header back at each exit makes more (N9)."""

AskUserSpace = Callable[[int, int, int], int]
"""(gpa, pages, attributes) -> `hypercall.ret`, 64 bits."""


class PscDefect(enum.Enum):
    """Defects of all versions modelled; the repaired form is ours."""

    HALF_DONE_BATCH = "half-done-batch"
    """After a 2 MiB entry that was begun, its neighbour is compared with the frame where the entry
    starts, not with where it goes on: another frame is changed than the one reported done (N13)."""
    EAGAIN_IS_FATAL = "eagain-is-fatal"
    """EAGAIN, documented as "retried at the next run", becomes the generic error (N10)."""


class PscKernel(msgspec.Struct, frozen=True, kw_only=True):
    """One KVM's page-state changes and AP creation.

    `trusts_length`: the guest's EXITINFO2 is taken for the buffer's length, a buffer outside of the
    GHCB is copied, and the entry limit is 253 whatever the length (N12, to May 2026).
    `reads_header_once`: else it is read before every exit. `checks_answer`: an answer other than 0,
    EAGAIN and EINVAL makes KVM_RUN fail. `refuses_unregistered`: a GHCB that is not registered is
    an error for the guest, else for KVM_RUN. `event_first`: an SNP event in a guest without SNP is
    an invalid event, else a missing input. `matches_features`: the SEV_FEATURES of an AP have to be
    the VM's, else only their injection modes; `refusal_stops_ap`: a refused AP creation takes the
    vCPU's VMSA all the same (to March 2025).
    """

    name: str
    trusts_length: bool = False
    reads_header_once: bool = False
    checks_answer: bool = False
    refuses_unregistered: bool = False
    event_first: bool = False
    matches_features: bool = False
    refusal_stops_ap: bool = False


_FIRST: Final = PscKernel(name="6.11", trusts_length=True, refusal_stops_ap=True)
_FIXED: Final = PscKernel(name="6.12")
_LATER: Final = PscKernel(
    name="7.2",
    reads_header_once=True,
    checks_answer=True,
    refuses_unregistered=True,
    event_first=True,
    matches_features=True,
)
_COLUMNS: Final = (
    _FIRST,
    _FIXED,
    msgspec.structs.replace(_FIXED, name="6.18", matches_features=True),
    _LATER,
    msgspec.structs.replace(_LATER, name="7.3"),
)

PSC_KERNELS: Final[Mapping[str, PscKernel]] = {kernel.name: kernel for kernel in _COLUMNS}
OLDEST_FIXED: Final = "6.12"
"""For a host whose kernel is older than SNP support in KVM."""


def psc_kernel(name: str) -> PscKernel:
    """The model of kernel `name` ("7.2"); `OLDEST_FIXED` for one that has no SNP."""
    return PSC_KERNELS.get(name, PSC_KERNELS[OLDEST_FIXED])


def range_attributes(private: int, is_2m: int) -> int:
    """`hypercall.args[2]` of a range whose first entry is of 2 MiB if `is_2m` (N8)."""
    attributes = MAP_GPA_RANGE_ENCRYPTED if private else 0
    return attributes | MAP_GPA_RANGE_PAGE_SZ_2M if is_2m else attributes


class RunFails(Exception):
    """KVM_RUN returns an error to user space: the guest hears nothing and is not entered again."""


class Malformed(Exception):
    """A request that KVM refuses: SW_EXITINFO1 = 2 with this reason in SW_EXITINFO2."""

    def __init__(self, reason: abi.GhcbError) -> None:
        super().__init__(reason.name)
        self.reason = reason


class OutOfBounds(msgspec.Struct, frozen=True):
    """An access of KVM behind the memory that it has for the request, at `offset` of the buffer."""

    is_write: bool
    offset: int


class PscEntry(msgspec.Struct, frozen=True):
    """One entry: `done` 4 KiB pages of it are changed already, `gfn` is its first frame."""

    done: int
    gfn: int
    operation: int
    is_2m: bool

    @property
    def pages(self) -> int:
        """Its size in 4 KiB pages."""
        return _PAGES_2M if self.is_2m else 1


def decode_entry(word: int) -> PscEntry:
    """cur_page [11:0], gfn [51:12], operation [55:52], pagesize [56] (N2)."""
    return PscEntry(word & 0xFFF, frame_of(word), word >> 52 & 0xF, bool(word >> 56 & 1))


class _Scratch:
    """The buffer as KVM reaches it: a part of the mapped GHCB page, or KVM's own copy.

    `length` is what KVM takes for its size, `reach` the bytes that are really there.
    """

    def __init__(self, length: int, reach: int, outside: list[OutOfBounds]) -> None:
        self.length = length
        self._reach = reach
        self._outside = outside

    def load(self, offset: int, size: int) -> bytes:
        raise NotImplementedError

    def store(self, offset: int, data: bytes) -> None:
        raise NotImplementedError

    def read(self, offset: int, size: int) -> int:
        if offset + size > self._reach:
            self._outside.append(OutOfBounds(False, offset))
            return 0
        return int.from_bytes(self.load(offset, size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if offset + size > self._reach:
            self._outside.append(OutOfBounds(True, offset))
        else:
            self.store(offset, value.to_bytes(size, "little"))

    def words(self, index: int, end: int) -> list[int]:
        """Entries `index` to `end` as far as they are really there."""
        count = min(end + 1 - index, (self._reach - _HEADER) // 8 - index)
        if count <= 0:
            return []
        return memoryview(self.load(_HEADER + 8 * index, 8 * count)).cast("Q").tolist()

    def store_words(self, index: int, words: list[int]) -> None:
        """Entries from `index` on; those that are not really there are accesses outside."""
        offset = _HEADER + 8 * index
        there = max(min(len(words), (self._reach - offset) // 8), 0)
        if there:
            self.store(offset, struct.pack(f"<{there}Q", *words[:there]))
        for missing in range(there, len(words)):
            self.write(offset + 8 * missing, 8, words[missing])

    def close(self) -> None:
        """When the GHCB is unmapped."""


class _Mapped(_Scratch):
    def __init__(self, ram: GuestRam, gpa: int, length: int, outside: list[OutOfBounds]) -> None:
        super().__init__(length, PAGE_SIZE - (gpa & PAGE_MASK), outside)
        self._ram = ram
        self._gpa = gpa

    def load(self, offset: int, size: int) -> bytes:
        return self._ram.read(Gpa(self._gpa + offset), size, private=False)

    def store(self, offset: int, data: bytes) -> None:
        self._ram.write(Gpa(self._gpa + offset), data, private=False)


class _Copied(_Scratch):
    """Written back when the request ends (ghcb_sa_sync)."""

    def __init__(self, ram: GuestRam, gpa: int, length: int, outside: list[OutOfBounds]) -> None:
        super().__init__(length, length, outside)
        self._ram = ram
        self._gpa = gpa
        self._copy = bytearray(ram.read(Gpa(gpa), length, private=False)) if length else bytearray()

    def load(self, offset: int, size: int) -> bytes:
        return bytes(self._copy[offset : offset + size])

    def store(self, offset: int, data: bytes) -> None:
        self._copy[offset : offset + len(data)] = data

    def close(self) -> None:
        if self._copy:
            self._ram.write(Gpa(self._gpa), bytes(self._copy), private=False)


class SnpPsc:
    """KVM of one SNP guest, for page-state changes.

    `kernel` may be changed between requests; `repaired` names the defects that this KVM does not
    have. `exits_enabled`: user space enabled KVM_CAP_EXIT_HYPERCALL for number 12.
    `out_of_bounds` are the accesses behind KVM's own memory since it was emptied last (N12).
    """

    def __init__(self, ram: GuestRam, kernel: PscKernel = PSC_KERNELS[OLDEST_FIXED]) -> None:
        self.kernel = kernel
        self.repaired: frozenset[PscDefect] = frozenset()
        self.exits_enabled = True
        self.out_of_bounds: list[OutOfBounds] = []
        self._ram = ram

    # The MSR protocol ---------------------------------------------------------------------------

    def begin_psc_msr(self, request: int, ask: AskUserSpace) -> int:
        """snp_begin_psc_msr(): one page; returns the response word (N1).

        Raises `RunFails`.
        """
        operation = psc_operation(request)
        if operation not in _OPERATIONS or not self.exits_enabled:
            return psc_answer(abi.MSR_PSC_ERROR)
        attributes = MAP_GPA_RANGE_ENCRYPTED if operation == abi.PSC_OP_PRIVATE else 0
        answer = self._ask(ask, frame_of(request), 1, attributes)
        return psc_answer(abi.MSR_PSC_ERROR if answer else 0)

    # The buffer -------------------------------------------------------------------------------

    def begin_psc(self, ghcb_gpa: int, scratch: int, info_2: int, ask: AskUserSpace) -> int:
        """SVM_VMGEXIT_PSC: returns SW_EXITINFO2; SW_EXITINFO1 is then 0.

        `ghcb_gpa` is the registered GHCB, `scratch` and `info_2` what the guest gave. Raises
        `Malformed` and `RunFails`.
        """
        buffer = self._setup_vmgexit_scratch(ghcb_gpa, scratch, info_2)
        try:
            return self._begin(buffer, ask)
        finally:
            buffer.close()

    def _setup_vmgexit_scratch(self, ghcb_gpa: int, scratch: int, info_2: int) -> _Scratch:
        trusts = self.kernel.trusts_length
        least = info_2 if trusts else _HEADER
        refused = Malformed(abi.GhcbError.INVALID_SCRATCH_AREA)
        end = scratch + least
        if not scratch or end > U64_MASK:
            raise refused
        if scratch & ~PAGE_MASK == ghcb_gpa:
            if scratch < ghcb_gpa + SHARED_BUFFER or end > ghcb_gpa + SHARED_BUFFER_END:
                raise refused
            length = least if trusts else ghcb_gpa + SHARED_BUFFER_END - scratch
            return _Mapped(self._ram, scratch, length, self.out_of_bounds)
        if not trusts or least > SCRATCH_LIMIT:
            raise refused
        if end > self._ram.frames * PAGE_SIZE:
            raise refused  # kvm_read_guest() fails
        return _Copied(self._ram, scratch, least, self.out_of_bounds)

    def _begin(self, buffer: _Scratch, ask: AskUserSpace) -> int:
        kernel = self.kernel
        if not self.exits_enabled:
            return abi.PSC_ERROR_GENERIC
        limit = abi.PSC_MAX_COUNT if kernel.trusts_length else (buffer.length - _HEADER) // 8
        current, end = _indices(buffer)
        for _round in range(_MAX_ROUNDS):
            if end >= limit:
                return abi.PSC_ERROR_INVALID_HDR
            result = self._one_range(buffer, current, end, ask)
            if result < 0:
                return ~result
            current = result
            if not kernel.reads_header_once:
                current, end = _indices(buffer)
        raise RunFails(f"the guest has KVM make more than {_MAX_ROUNDS} exits of one request")

    def _one_range(self, buffer: _Scratch, index: int, end: int, ask: AskUserSpace) -> int:
        """One contiguous range from entry `index` on; the next index, or ~SW_EXITINFO2."""
        if index > end:
            return ~0
        entries = _Entries(buffer, index, end)
        while True:
            word = entries.word(index)
            done, gfn = word & 0xFFF, word >> PAGE_SHIFT & _GFN_MASK
            size = _PAGES_2M if word & _IS_2M else 1
            if done > size or gfn % size:
                return ~abi.PSC_ERROR_INVALID_ENTRY
            if done < size:
                break
            index += 1
            buffer.write(0, 2, buffer.read(0, 2) + 1 & 0xFFFF)
            if index > end:
                return ~0
        stop, pages = self._batch(entries, word, index + 1, end)
        operation = word >> 52 & 0xF
        if operation in _OPERATIONS:
            attributes = range_attributes(operation == abi.PSC_OP_PRIVATE, size > 1)
            if self._ask(ask, gfn + done, pages, attributes):
                return ~abi.PSC_ERROR_GENERIC
        entries = _Entries(buffer, index, stop - 1)
        words = [entries.word(one) for one in range(index, stop)]
        buffer.store_words(
            index, [word & ~0xFFF | (_PAGES_2M if word & _IS_2M else 1) for word in words]
        )
        buffer.write(0, 2, stop & 0xFFFF)
        return stop

    def _batch(self, entries: _Entries, first: int, index: int, end: int) -> tuple[int, int]:
        """How far the range of the entry `first` goes on in those from `index` on: the first entry
        that is not part of it, and the pages of all."""
        start = decode_entry(first)
        if index > end:
            return index, start.pages - start.done
        origin = start.gfn if self._has(PscDefect.HALF_DONE_BATCH) else start.gfn + start.done
        is_whole = start.is_2m and not start.done
        step = _PAGES_2M if is_whole else 1
        kind = start.operation << 52 | (_IS_2M if is_whole else 0)
        pages = start.pages - start.done
        while index <= end:
            wanted = (origin + pages & _GFN_MASK) << PAGE_SHIFT | kind
            if entries.word(index) & _MEANT != wanted or origin + pages > _GFN_MASK:
                break
            pages += step
            index += 1
        return index, pages

    def refused(
        self, ask: AskUserSpace, gfn: int, pages: int, attributes: int, *, answer: int
    ) -> int:
        """SW_EXITINFO2 of a range in a buffer whose exit user space answered with `answer`, not 0.
        Raises `RunFails`."""
        error = self._answered(ask, gfn, pages, attributes, answer=answer)
        return abi.PSC_ERROR_GENERIC if error else 0

    def _ask(self, ask: AskUserSpace, gfn: int, pages: int, attributes: int) -> int:
        """User space's answer to one exit; 0 or an error for the guest. Raises `RunFails`."""
        answer = ask(gfn << PAGE_SHIFT, pages, attributes)
        return answer and self._answered(ask, gfn, pages, attributes, answer=answer)

    def _answered(
        self, ask: AskUserSpace, gfn: int, pages: int, attributes: int, *, answer: int
    ) -> int:
        if answer == EAGAIN and not self._has(PscDefect.EAGAIN_IS_FATAL):
            for _again in range(_MAX_ROUNDS):
                answer = ask(gfn << PAGE_SHIFT, pages, attributes)
                if answer != EAGAIN:
                    break
            else:
                raise RunFails("user space answers EAGAIN for ever")
        if self.kernel.checks_answer and answer not in {0, EAGAIN, EINVAL}:
            raise RunFails(f"user space answered a page-state change with {answer:#x}: -EINVAL")
        return answer

    def _has(self, defect: PscDefect) -> bool:
        return defect not in self.repaired


def _indices(buffer: _Scratch) -> tuple[int, int]:
    """cur_entry and end_entry of the header."""
    word = buffer.read(0, 4)
    return word & 0xFFFF, word >> 16


class _Entries:
    """Entries from `first` to `end`, read at once: they do not change until user space is asked.
    Those behind the buffer are read one by one, when KVM comes to them."""

    def __init__(self, buffer: _Scratch, first: int, end: int) -> None:
        self._buffer = buffer
        self._first = first
        self._words = buffer.words(first, end)

    def word(self, index: int) -> int:
        place = index - self._first
        if place < len(self._words):
            return self._words[place]
        return self._buffer.read(_HEADER + 8 * index, 8)
