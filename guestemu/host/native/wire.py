# SPDX-License-Identifier: GPL-2.0-or-later
"""The records between guestemu and the process that runs a native handler (guestemu_serve.c).

All are little-endian and of fixed width. A message to the process is a head and its records; the
answer is a head, one reply for each record, and the calls that the handler made. Everything that
comes from the process is hostile input: counts and results are tested before they are used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from guestemu.host.kvm.guest_memory import SET_ATTRIBUTES, GuestMemory, Slot, VmmCall

DESCRIPTORS: Final = "GUESTEMU_HOST_FDS"
"""The environment variable with the process's ends of two pipes: "READ,WRITE"."""

ABI: Final = 1
MAGIC: Final = 0x31484547
MAX_RECORDS: Final = 4096
MAX_CALLS: Final = 4096
MAX_SLOTS: Final = 64

FEATURE_MIGRATION_CONTROL: Final = 1
FEATURE_BLOCKS: Final = 1 << 16
"""The handler was compiled with -fsanitize-coverage. This and the next are not the header's."""

FEATURE_FRESH: Final = 1 << 17
"""The process knows `OP_FRESH`."""

FEATURE_PLUG: Final = 1 << 18
"""The process knows `OP_PLUG`, and the handler has guestemu_layout()."""

SLOT_GUEST_MEMFD: Final = 1
SLOT_READ_ONLY: Final = 2
STOP: Final = 1
DIED: Final = 0xFFFFFFFF
"""In place of the number of replies: the handler died. The second word has its wait status, and
above `DONE_SHIFT` how many records it had answered."""
DONE_SHIFT: Final = 16

OP_RESET: Final = 0
OP_EXIT: Final = 1
OP_MAP: Final = 2
OP_FRESH: Final = 3
OP_PLUG: Final = 4
NO_FAILURE: Final = -1

HELLO: Final = struct.Struct("<4IQ")
SLOT: Final = struct.Struct("<3Q2I")
READY: Final = struct.Struct("<4I")
HEAD: Final = struct.Struct("<2I")
REQUEST: Final = struct.Struct("<3I2iI7Q")
REPLY: Final = struct.Struct("<2I2Q")
CALL: Final = struct.Struct("<Ii4Q")
MAP_SIZE: Final = struct.Struct("<Q")

_NO_EXIT: Final = (0, 0, NO_FAILURE, 0, 0, *[0] * 7)
_ZEROES: Final = (0,) * 7
RESET: Final = REQUEST.pack(OP_RESET, *_NO_EXIT)
READ_MAP: Final = HEAD.pack(1, 0) + REQUEST.pack(OP_MAP, *_NO_EXIT)
FRESH: Final = HEAD.pack(1, 0) + REQUEST.pack(OP_FRESH, *_NO_EXIT)
"""Without an answer: what comes next goes to a handler that has run nothing before."""

CALL_ATTRIBUTES: Final = 1
CALL_FALLOCATE: Final = 2
CALL_MADVISE: Final = 3
CALL_PRE_FAULT: Final = 4
CALL_DEVICE: Final = 5


def hello(memory: GuestMemory, vcpus: int) -> bytes:
    """The first message: the VM's layout."""
    slots = memory.slots[:MAX_SLOTS]
    return HELLO.pack(MAGIC, ABI, vcpus, len(slots), memory.frames) + b"".join(
        SLOT.pack(*slot_words(slot)) for slot in slots
    )


def slot_words(slot: Slot) -> tuple[int, int, int, int, int]:
    """The fields of `struct guestemu_slot`."""
    return slot.gpa, slot.size, slot.memfd_offset, slot_flags(slot), 0


def slot_flags(slot: Slot) -> int:
    """`enum guestemu_slot_flags`."""
    flags = SLOT_GUEST_MEMFD if slot.has_guest_memfd else 0
    return flags | (SLOT_READ_ONLY if slot.is_read_only else 0)


def exit_record(reason: int, words: tuple[int, ...], vcpu: int, failure: tuple[int, int]) -> bytes:
    """An exit with reason KVM_EXIT_*; `words` fill the record of that exit in the header's order,
    at most seven. `failure`: the number of the call that fails and its errno, or (-1, 0)."""
    return REQUEST.pack(OP_EXIT, reason, vcpu, *failure, 0, *words, *_ZEROES[len(words) :])


def plug_record(slot: Slot, failure: tuple[int, int]) -> bytes:
    """A slot that is plugged; `failure` as in `exit_record`. The answer is guestemu_layout()'s."""
    words = (slot.gpa, slot.size, slot.memfd_offset, slot_flags(slot))
    return REQUEST.pack(OP_PLUG, 0, 0, *failure, 0, *words, *_ZEROES[len(words) :])


def replay(memory: GuestMemory, calls: bytes | memoryview) -> str:
    """Does the handler's calls on the VM's memory; what is wrong with one of them, if anything.

    The process has already told the handler each result; memory must come to the same one.
    """
    made: int | None
    for kind, result, a, b, c, d in CALL.iter_unpack(calls):
        if kind == CALL_ATTRIBUTES:  # the usual ones without a call more
            made = memory.set_memory_attributes(a, b, c, d)
        elif kind == CALL_FALLOCATE:
            made = memory.fallocate(a, b, c, d)
        elif kind == CALL_MADVISE:
            made = memory.madvise(a, b, c, d)
        else:
            made = _do(memory, kind, a, b, c)
        if made is None:
            return f"made an unknown call {kind}"
        if made != result:
            return f"was told {result} by a call that returns {made}"
    return ""


_NAMES: Final = {
    CALL_ATTRIBUTES: SET_ATTRIBUTES,
    CALL_FALLOCATE: "fallocate",
    CALL_MADVISE: "madvise",
}


def usual_calls(calls: bytes) -> Iterator[VmmCall]:
    """What `GuestMemory.calls` has of calls that machine code did."""
    for kind, result, *arguments in CALL.iter_unpack(calls):
        yield VmmCall(_NAMES[kind], tuple(arguments), result)


def _do(memory: GuestMemory, kind: int, a: int, b: int, c: int) -> int | None:
    if kind == CALL_PRE_FAULT:
        return memory.pre_fault(a, b)
    if kind == CALL_DEVICE:
        return memory.map_for_device(a, b, bool(c))
    return None
