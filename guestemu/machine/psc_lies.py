# SPDX-License-Identifier: GPL-2.0-or-later
"""A hypervisor that lies to an SNP guest: about its progress, with its answers, by its page tables.

Each lie stands for one thing that a hostile host can do when its guest asks for a page-state change
(N40 to N53), by name. `answer` is what the guest finds in SW_EXITINFO1 and 2, after the lie has
done to the shared buffer and to the RMP what it does. A guest is right if it goes on with memory
that only it can read, ends itself, or stands still.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from guestemu.abi import ghcb as abi
from guestemu.abi.addresses import Gpa
from guestemu.abi.x86 import VECTOR_GP, VECTOR_PF
from guestemu.machine.ghcb import psc_answer
from guestemu.machine.memory import GuestRam
from guestemu.machine.page_attacks import ATTACKS, Attacked
from guestemu.machine.snp_psc import RunFails

_HEADER: Final = struct.Struct("<HHI")
_OTHER_FRAMES: Final = 0x10 << 12
_VICTIM: Final = 8
"""The victim of an attack on pages is this many frames behind the first one asked for."""

_PATIENCE: Final = 64
"""Requests of a guest that sees no progress, after which the run ends."""

Answer = tuple[int, int]


class PscRequest(msgspec.Struct):
    """One page-state request in the shared buffer at `scratch`; `honest` answers it as KVM does and
    returns SW_EXITINFO2. `number` counts requests since the last reset, from 1."""

    ram: GuestRam
    scratch: int
    honest: Callable[[], int]
    snp: Attacked
    number: int

    @property
    def header(self) -> tuple[int, int]:
        """cur_entry and end_entry."""
        return _HEADER.unpack(self.ram.read(Gpa(self.scratch), 8, private=False))[:2]

    def set_header(self, current: int, end: int, reserved: int = 0) -> None:
        """Stores the header."""
        self.ram.write(Gpa(self.scratch), _HEADER.pack(current, end, reserved), private=False)

    def entry(self, index: int) -> int:
        """The word of one entry."""
        at = Gpa(self.scratch + 8 + 8 * index)
        return int.from_bytes(self.ram.read(at, 8, private=False), "little")

    def change_entries(self, change: Callable[[int], int]) -> None:
        """Rewrites every entry up to the last."""
        for index in range(self.header[1] + 1):
            word = change(self.entry(index)).to_bytes(8, "little")
            self.ram.write(Gpa(self.scratch + 8 + 8 * index), word, private=False)

    def take_victim(self) -> int:
        """The frame that an attack is on; it is noted as attacked."""
        gfn = self.entry(0) >> 12 & 0xFF_FFFF_FFFF
        found = min(gfn + _VICTIM, self.snp.rmp.frames - 2)
        self.snp.attacked.add(found)
        return found


class Lie(msgspec.Struct, frozen=True):
    """One lie: `text` says what the hypervisor does, `fact` where it is judged.

    `answer` is to a request in the buffer; `answer_msr`, where there is one, makes the response of
    the MSR protocol of KVM's own.
    """

    name: str
    fact: str
    text: str
    answer: Callable[[PscRequest], Answer]
    answer_msr: Callable[[int], int] | None = None


def _honest(request: PscRequest) -> Answer:
    return 0, request.honest()


def _stall(request: PscRequest) -> Answer:
    if request.number > _PATIENCE:
        raise RunFails(f"the guest made the same request {_PATIENCE} times, and would for ever")
    return 0, 0


def _claim(request: PscRequest) -> Answer:
    end = request.header[1]
    request.set_header(end + 1, end)
    return 0, 0


def _shrink(request: PscRequest) -> Answer:
    request.set_header(1, 0)
    return 0, 0


def _grow(request: PscRequest) -> Answer:
    end = request.header[1]
    answer = request.honest()
    request.set_header(end + 1, end + 5)
    return 0, answer


def _far(request: PscRequest) -> Answer:
    end = request.header[1]
    answer = request.honest()
    request.set_header(0xFFFF, end)
    return 0, answer


def _backwards(request: PscRequest) -> Answer:
    end = request.header[1]
    if request.number < 3:
        request.set_header(min(3 if request.number == 1 else 1, end), end)
        return 0, 0
    request.set_header(0, end)
    return 0, request.honest()


def _reserved(request: PscRequest) -> Answer:
    end = request.header[1]
    answer = request.honest()
    request.set_header(end + 1, end, 1)
    return 0, answer


def _error(request: PscRequest) -> Answer:
    request.honest()
    return 0, 0x1234


def _malformed(_request: PscRequest) -> Answer:
    return abi.RESP_MALFORMED_INPUT, abi.GhcbError.INVALID_SCRATCH_AREA


def _inject(vector: int) -> Callable[[PscRequest], Answer]:
    word = vector | abi.EVTINJ_TYPE_EXCEPTION | abi.EVTINJ_VALID
    return lambda _request: (abi.RESP_ISSUE_EXCEPTION, word)


def _high_bits(request: PscRequest) -> Answer:
    return 1 << 32, request.honest()


def _rewrite(request: PscRequest) -> Answer:
    answer = request.honest()
    request.change_entries(lambda word: (word ^ _OTHER_FRAMES) | 0xFFF)
    return 0, answer


def _redirect(request: PscRequest) -> Answer:
    request.change_entries(lambda word: word ^ _OTHER_FRAMES)
    return 0, request.honest()


def _attack(name: str) -> Callable[[PscRequest], Answer]:
    """The request is done, then the page attack `name` on the victim."""
    carry_out = ATTACKS[name].carry_out

    def answer(request: PscRequest) -> Answer:
        victim = request.take_victim()
        result = request.honest()
        carry_out(request.snp, victim)
        return 0, result

    return answer


def _alias(request: PscRequest) -> Answer:
    victim = request.take_victim()
    answer = request.honest()
    request.snp.remap(victim, victim + 1)
    return 0, answer


def _wrong_code(response: int) -> int:
    return response ^ (abi.MSR_PSC_RESP ^ abi.MSR_PSC_REQ)


def _msr_error(_response: int) -> int:
    return psc_answer(abi.MSR_PSC_ERROR)


_ALL: Final = (
    Lie("stall", "N40", "success, nothing done and nothing advanced", _stall),
    Lie("claim", "N41", "success, cur_entry behind the end, nothing done", _claim),
    Lie("shrink", "N42", "end_entry made smaller, nothing done", _shrink),
    Lie("grow", "N43", "done, then end_entry made larger", _grow),
    Lie("far", "N44", "done, then cur_entry 0xffff", _far),
    Lie("backwards", "N45", "cur_entry goes back from 3 to 1, then done", _backwards),
    Lie("reserved", "N46", "done, then the header's reserved word set", _reserved),
    Lie("error", "N47", "done, and SW_EXITINFO2 says otherwise", _error),
    Lie("malformed", "N48", "SW_EXITINFO1 = 2: malformed input", _malformed),
    Lie("inject-gp", "N48", "SW_EXITINFO1 = 1 with #GP", _inject(VECTOR_GP)),
    Lie("inject-pf", "N48", "SW_EXITINFO1 = 1 with #PF", _inject(VECTOR_PF)),
    Lie("high-bits", "N49", "done, SW_EXITINFO1 bit 32 set", _high_bits),
    Lie("rewrite", "N49", "done, then gfn and cur_page of the shared copy rewritten", _rewrite),
    Lie("redirect", "N50", "other frames changed than asked", _redirect),
    Lie("take-back", "N51", "done, and a validated page taken back", _attack("take-back")),
    Lie("remap", "N51", "done, and other memory put behind a validated page", _attack("remap")),
    Lie("alias", "N52", "done, and a frame put behind a second guest frame", _alias),
    Lie("other-guest", "N52", "done, and a frame given to another guest", _attack("other-guest")),
    Lie("msr-code", "N53", "done, the MSR protocol's response code wrong", _honest, _wrong_code),
    Lie("msr-error", "N53", "done, the MSR protocol's response an error", _honest, _msr_error),
)

LIES: Final[Mapping[str, Lie]] = {lie.name: lie for lie in _ALL}
"""Every lie by its name."""
