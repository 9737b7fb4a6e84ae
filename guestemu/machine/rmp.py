# SPDX-License-Identifier: GPL-2.0-or-later
"""The reverse map table (RMP) and the nested page table: who owns a frame, and what that refuses.

The RMP has an entry for each *system* frame; the nested table says which system frame is behind a
guest frame. Only with both can a remapped page, an alias and a double validation be said. Frames 0
to `frames` - 1 are behind the guest frame of the same number until the hypervisor remaps one; the
spare frames after them are its own.

The hypervisor's instructions are RMPUPDATE and PSMASH, the guest's PVALIDATE and RMPADJUST. Each
access of the guest is checked in the order of APM volume 2, table 15-39: covered, ASID, GPA,
immutable, size, then validated, then VMPL. Source: APM volume 2, 15.36, volume 3; facts N27 to N32.
What the sources leave open is marked there as a guess.

A VMSA page holds the registers of a vCPU. VMRUN takes only a page with the VMSA bit, and while its
vCPU is in the guest the page is in use: every access of the guest to it is an #NPF that KVM cannot
resolve, RMPADJUST and RMPUPDATE fail. KVM's zap of a page, before it takes the page back, has the
vCPU leave. Facts N57 and N58.

Entries that are as a guest expects them are kept as a byte each, all others as records: a rollback
then copies bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.abi import ghcb as abi
from guestemu.machine.restorable_bytes import RestorableBytes

SHARED: Final = 0
ASSIGNED: Final = 1
VALIDATED: Final = 2
FOREIGN: Final = 3
"""States of the frame behind a guest frame: the hypervisor's, this guest's and not validated,
validated; FOREIGN: not this guest's at this address, or restricted (`Rmp.entry` says how)."""

_STATE: Final = 3
_STATES: Final = bytes(code & _STATE for code in range(256))
_LARGE: Final = 4
_VMSA: Final = 8
_NAMES: Final = ("shared", "assigned", "validated", "foreign")

NPF_RMP: Final = 1 << 31
NPF_ENCRYPTED: Final = 1 << 34
NPF_SIZE_MISMATCH: Final = 1 << 35
NPF_VMPL: Final = 1 << 36
"""EXITINFO1 of an #NPF."""

PF_RMP: Final = 1 << 31
PF_PRESENT_RESERVED: Final = 0b1001
PAGE_NOT_VALIDATED: Final = abi.EXIT_PAGE_NOT_VALIDATED

READ: Final = 1
WRITE: Final = 2
USER_FETCH: Final = 4
FETCH: Final = 8
ALL_RIGHTS: Final = 0x0F
_NEEDED: Final = {"read": READ, "write": WRITE, "fetch": FETCH, "walk": WRITE}

OWN_ASID: Final = 1
PAGES_2M: Final = 512


_Kept = tuple[dict[int, "RmpEntry"], dict[int, int], frozenset[int], frozenset[int]]
_NOTHING_STRANGE: Final[_Kept] = ({}, {}, frozenset(), frozenset())


class RmpEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry. `gfn` is the guest frame it is for; `permissions` one mask for each VMPL.

    `is_2m` of each of the 512 frames that one 2 MiB entry covers; their `gfn` are their own.
    """

    assigned: bool = False
    asid: int = 0
    gfn: int = 0
    is_2m: bool = False
    immutable: bool = False
    vmsa: bool = False
    validated: bool = False
    permissions: tuple[int, int, int, int] = (ALL_RIGHTS, 0, 0, 0)


HYPERVISOR: Final = RmpEntry()


class What(enum.Enum):
    """What becomes of an access or an instruction."""

    PLAIN = "plain"
    CIPHERTEXT = "ciphertext"
    VC = "#VC"
    NPF = "#NPF"
    PF = "#PF"
    GP = "#GP"
    RESULT = "EAX"


class RmpOutcome(msgspec.Struct, frozen=True):
    """`code` is an error code, EXITINFO1 of an #NPF, or EAX of a `RESULT` with `carry` = CF."""

    what: What
    code: int = 0
    carry: bool = False

    def __str__(self) -> str:
        carry = "+CF" if self.carry else ""
        if self.what is What.RESULT:
            return f"{self.code}{carry}"
        return f"{self.what.value} {self.code:#x}" if self.code else self.what.value


PLAIN: Final = RmpOutcome(What.PLAIN)
CIPHERTEXT: Final = RmpOutcome(What.CIPHERTEXT)
_NOT_VALIDATED: Final = RmpOutcome(What.VC, PAGE_NOT_VALIDATED)
_DONE: Final = RmpOutcome(What.RESULT)
_UNCHANGED: Final = RmpOutcome(What.RESULT, 0, True)
_NPF: Final = NPF_RMP | NPF_ENCRYPTED


def host_access(entry: RmpEntry, is_write: bool) -> RmpOutcome:
    """A load or store of the host's kernel; its user space gets SIGBUS where this is a #PF."""
    if is_write and entry.assigned:
        return RmpOutcome(What.PF, PF_RMP)
    return CIPHERTEXT if entry.assigned else PLAIN


class Rmp:
    """The table of a machine with one SNP guest of ASID `OWN_ASID`. A `Device`.

    `frames` of guest memory, all validated at first as a firmware leaves them, and `spare` frames.
    `large_pages`: the hypervisor backs aligned ranges of 512 frames with one page, so that entries
    of 2 MiB exist; guest_memfd of Linux up to 7.3 does not. `changed` is told of guest frames
    (first, count) behind which something changed; `became` of a guest frame and the state that it
    has now, where no more than this is known to be needed.
    """

    def __init__(self, frames: int, spare: int = 512, large_pages: bool = False) -> None:
        self.large_pages = large_pages
        self.vmpl = 0
        """The privilege level that the guest runs at; 0 is the highest."""
        self.changed: Callable[[int, int], None] | None = None
        self.became: Callable[[int, int], None] | None = None
        self.small_mappings: set[int] = set()
        """Blocks of 512 guest frames that the nested table maps with 4 KiB though the entry is of
        2 MiB."""
        whole = frames // PAGES_2M * PAGES_2M if large_pages else 0
        self._frames = frames
        self._codes = bytearray([VALIDATED | _LARGE]) * whole
        self._codes += bytearray([VALIDATED]) * (frames - whole) + bytearray(spare)
        self._kept_codes = RestorableBytes(self._codes)
        self._odd: dict[int, RmpEntry] = {}
        self._behind: dict[int, int] = {}
        self._in_use: set[int] = set()
        self._base = self._kept()

    @property
    def frames(self) -> int:
        """Frames of guest memory."""
        return self._frames

    @property
    def system_frames(self) -> int:
        """Guest memory and spare frames."""
        return len(self._codes)

    # The two tables ---------------------------------------------------------------------------

    def entry(self, sfn: int) -> RmpEntry:
        """The entry of a system frame."""
        odd = self._odd.get(sfn)
        if odd is not None:
            return odd
        code = self._codes[sfn]
        state = code & _STATE
        if state == SHARED:
            return HYPERVISOR
        return RmpEntry(
            assigned=True,
            asid=OWN_ASID,
            gfn=sfn,
            is_2m=bool(code & _LARGE),
            vmsa=bool(code & _VMSA),
            validated=state == VALIDATED,
        )

    def system_frame(self, gfn: int) -> int:
        """The frame behind guest frame `gfn`."""
        return self._behind.get(gfn, gfn)

    def guest_frames(self, sfn: int) -> list[int]:
        """The guest frames that a system frame is behind."""
        found = [gfn for gfn, frame in self._behind.items() if frame == sfn]
        if sfn < self._frames and sfn not in self._behind:
            found.append(sfn)
        return found

    def map(self, gfn: int, sfn: int) -> None:
        """The hypervisor maps `gfn` to system frame `sfn` (its nested page table)."""
        if sfn == gfn:
            self._behind.pop(gfn, None)
        else:
            self._behind[gfn] = sfn
        self._note(gfn, 1)

    def state(self, gfn: int) -> int:
        """SHARED, ASSIGNED, VALIDATED or FOREIGN: the frame behind a guest frame."""
        if not self._is_strange:
            return self._codes[gfn] & _STATE
        sfn = self.system_frame(gfn)
        entry = self.entry(sfn)
        if not entry.assigned and not entry.immutable:
            return SHARED
        is_own = self._is_own(entry, gfn) and sfn not in self._in_use
        if not is_own or self._is_cut(entry, gfn) or not entry.permissions[self.vmpl] & WRITE:
            return FOREIGN
        return VALIDATED if entry.validated else ASSIGNED

    def states(self, gfn: int, pages: int) -> bytes:
        """`state` of `pages` guest frames from `gfn` on, one byte each."""
        if self.small_mappings or self.vmpl:
            return bytes(map(self.state, range(gfn, gfn + pages)))
        states = bytearray(self._codes[gfn : gfn + pages].translate(_STATES))
        for odd in self._odd.keys() | self._behind.keys() | self._in_use:
            if gfn <= odd < gfn + pages:
                states[odd - gfn] = self.state(odd)
        return bytes(states)

    @property
    def _is_strange(self) -> bool:
        """Whether anything is not as a guest expects it, so that a frame's code is not all."""
        return bool(self._odd or self._behind or self._in_use or self.small_mappings or self.vmpl)

    def describe(self, gfn: int) -> str:
        """The state in a few words."""
        if self.is_in_use(gfn):
            return "a VMSA in use"
        return _NAMES[self.state(gfn)]

    def _store(self, sfn: int, entry: RmpEntry) -> None:
        plain = RmpEntry(
            assigned=True,
            asid=OWN_ASID,
            gfn=sfn,
            is_2m=entry.is_2m,
            vmsa=entry.vmsa,
            validated=entry.validated,
        )
        self._odd.pop(sfn, None)
        self._kept_codes.note(sfn, 1)
        if entry == HYPERVISOR:
            self._codes[sfn] = SHARED
        elif entry == plain:
            state = VALIDATED if entry.validated else ASSIGNED
            size = _LARGE if entry.is_2m else 0
            self._codes[sfn] = state | size | (_VMSA if entry.vmsa else 0)
        else:
            self._odd[sfn] = entry
        for gfn in self.guest_frames(sfn):
            self._note(gfn, 1)

    def _become(self, gfn: int, state: int) -> None:
        """The frame behind `gfn`, which is that of the same number, becomes `state`."""
        self._kept_codes.note(gfn, 1)
        self._codes[gfn] = state
        became = self.became
        if became is not None:
            became(gfn, state)

    def _note(self, gfn: int, pages: int) -> None:
        changed = self.changed
        if changed is not None:
            changed(gfn, pages)

    # The hypervisor's instructions ---------------------------------------------------------------

    def rmpupdate(self, sfn: int, entry: RmpEntry) -> int:
        """RMPUPDATE of one frame; RAX. It always clears validated, the VMSA bit and the rights of
        all but VMPL 0. A frame inside of a 2 MiB entry has to be smashed first."""
        old = self.entry(sfn)
        if sfn in self._in_use:
            return abi.RMP_FAIL_IN_USE
        if old.immutable:
            return abi.RMP_FAIL_PERMISSION
        if old.is_2m and not entry.is_2m:
            return abi.RMP_FAIL_OVERLAP
        if not entry.assigned:
            entry = RmpEntry(immutable=entry.immutable)
        fresh = msgspec.structs.replace(
            entry, validated=False, vmsa=False, permissions=HYPERVISOR.permissions
        )
        self._store(sfn, fresh)
        return abi.RMP_OK

    def psmash(self, sfn: int) -> int:
        """PSMASH of the 2 MiB entry that covers `sfn`; RAX. All but the size is kept."""
        first = sfn & ~(PAGES_2M - 1)
        for frame in range(first, min(first + PAGES_2M, self.system_frames)):
            entry = self.entry(frame)
            if entry.is_2m:
                self._store(frame, msgspec.structs.replace(entry, is_2m=False))
        return abi.RMP_OK

    def assign(self, gfn: int, pages: int) -> None:
        """KVM gives the frames behind guest frames to the guest (sev_gmem_prepare()); those that it
        owns stay as they are."""
        end = min(gfn + pages, self._frames)
        if pages == 1 and gfn < end and not self._is_strange:
            if self._codes[gfn] == SHARED:
                self._become(gfn, ASSIGNED)
            return
        is_large = self.large_pages and not gfn % PAGES_2M
        for frame in range(gfn, end):
            if self.state(frame) == SHARED:
                size = is_large and end - (frame & ~(PAGES_2M - 1)) >= PAGES_2M
                wanted = RmpEntry(assigned=True, asid=OWN_ASID, gfn=frame, is_2m=size)
                self.rmpupdate(self.system_frame(frame), wanted)

    def release(self, gfn: int, pages: int) -> None:
        """KVM takes the frames behind guest frames back (sev_gmem_invalidate(): PSMASH, then
        RMPUPDATE)."""
        end = min(gfn + pages, self._frames)
        if pages == 1 and gfn < end and not self._is_strange and not self._codes[gfn] & _LARGE:
            if self._codes[gfn]:
                self._become(gfn, SHARED)
            return
        span = self._codes[gfn:end]
        if not self._is_strange and not any(code & _LARGE for code in set(span)):
            self._kept_codes.note(gfn, len(span))
            self._codes[gfn:end] = bytes(len(span))
            self._note(gfn, len(span))
            return
        for frame in range(gfn, end):
            sfn = self.system_frame(frame)
            self._in_use.discard(sfn)
            if self.entry(sfn).is_2m:
                self.psmash(sfn)
            self.rmpupdate(sfn, HYPERVISOR)

    # Accesses of the guest -----------------------------------------------------------------------

    def access(self, gfn: int, kind: str, private: bool) -> RmpOutcome:
        """An access of `kind` ("read", "write", "fetch", "walk") at guest frame `gfn`; `private` is
        the C-bit of its leaf. Fetches and page walks are private whatever it is."""
        sfn = self.system_frame(gfn)
        entry = self.entry(sfn)
        if not private and kind in {"read", "write"}:
            if kind == "write" and (entry.assigned or entry.immutable):
                return RmpOutcome(What.NPF, NPF_RMP)
            return CIPHERTEXT if entry.assigned or entry.immutable else PLAIN
        if not self._is_own(entry, gfn) or self._is_cut(entry, gfn) or sfn in self._in_use:
            return RmpOutcome(What.NPF, _NPF)
        if not entry.validated:
            return _NOT_VALIDATED
        if not entry.permissions[self.vmpl] & _NEEDED[kind]:
            return RmpOutcome(What.NPF, _NPF | NPF_VMPL)
        return PLAIN

    def _is_own(self, entry: RmpEntry, gfn: int) -> bool:
        owner = (entry.assigned, entry.asid, entry.gfn, entry.immutable)
        return owner == (True, OWN_ASID, gfn, False)

    def _is_cut(self, entry: RmpEntry, gfn: int) -> bool:
        return entry.is_2m and gfn // PAGES_2M in self.small_mappings

    # The guest's instructions ---------------------------------------------------------------------

    def pvalidate_page(self, gfn: int, validate: bool, is_backed: bool) -> RmpOutcome | None:
        """PVALIDATE of one 4 KiB page where nothing is as no guest expects it, together with what
        KVM does about its #NPF if the host has private memory for the frame (`is_backed`). None:
        not such a case, and nothing is done."""
        if self._odd or self._behind or self._in_use or self.small_mappings or self.vmpl:
            return None
        code = self._codes[gfn]
        wanted = VALIDATED if validate else ASSIGNED
        if code > VALIDATED or (code == SHARED and not is_backed):
            return None
        if code == wanted:
            return _UNCHANGED
        if code == SHARED and not validate:  # assigned at the fault, and not validated
            self._become(gfn, ASSIGNED)
            return _UNCHANGED
        self._become(gfn, wanted)
        return _DONE

    def pvalidate(self, gfn: int, is_2m: bool, validate: bool) -> RmpOutcome:
        """PVALIDATE at a guest frame that the guest's own tables map with the C-bit.

        Above VMPL 0 #GP (a guess); ownership before size (a guess), as for accesses. A VMSA in use
        is an #NPF, as for accesses (a guess: fact N58 has both readings); the VMSA bit stays (a
        guess).
        """
        if self.vmpl:
            return RmpOutcome(What.GP)
        if not is_2m:
            outcome = self.pvalidate_page(gfn, validate, is_backed=False)
            if outcome is not None:
                return outcome
        if is_2m and gfn % PAGES_2M:
            return RmpOutcome(What.RESULT, abi.RMP_FAIL_INPUT)
        entry = self.entry(self.system_frame(gfn))
        if not self._is_own(entry, gfn) or self.is_in_use(gfn):
            return RmpOutcome(What.NPF, _NPF)
        if is_2m and (not entry.is_2m or self._is_cut(entry, gfn)):
            return RmpOutcome(What.RESULT, abi.RMP_FAIL_SIZE_MISMATCH)
        if not is_2m and entry.is_2m:
            return RmpOutcome(What.NPF, _NPF | NPF_SIZE_MISMATCH)
        carry = entry.validated == validate
        if not carry:
            for frame in range(gfn, gfn + (PAGES_2M if is_2m else 1)):
                sfn = self.system_frame(frame)
                self._store(sfn, msgspec.structs.replace(self.entry(sfn), validated=validate))
        return RmpOutcome(What.RESULT, abi.RMP_OK, carry)

    def rmpadjust(self, gfn: int, is_2m: bool, attributes: int) -> RmpOutcome:
        """RMPADJUST: `attributes` as in RDX, target VMPL in [7:0], rights in [15:8], VMSA in [16].

        A write right without the read right is bad input. The VMSA bit changes at VMPL 0 only. An
        entry in use is not changed: FAIL_INUSE (APM volume 2, 15.36.12; AMD's answer on the list,
        fact N58), so that a guest has the vCPU destroyed first (N26).
        """
        target, rights = attributes & 0xFF, attributes >> 8 & 0xFF
        vmsa = bool(attributes & abi.RMPADJUST_VMSA)
        if target > 3 or (rights & WRITE and not rights & READ) or (is_2m and gfn % PAGES_2M):
            return RmpOutcome(What.RESULT, abi.RMP_FAIL_INPUT)
        if target <= self.vmpl:
            return RmpOutcome(What.RESULT, abi.RMP_FAIL_PERMISSION)
        entry = self.entry(self.system_frame(gfn))
        if not self._is_own(entry, gfn):
            return RmpOutcome(What.NPF, _NPF)
        if self.is_in_use(gfn):
            return RmpOutcome(What.RESULT, abi.RMP_FAIL_IN_USE)
        if is_2m != entry.is_2m:
            if is_2m:
                return RmpOutcome(What.RESULT, abi.RMP_FAIL_SIZE_MISMATCH)
            return RmpOutcome(What.NPF, _NPF | NPF_SIZE_MISMATCH)
        if not entry.validated:
            return _NOT_VALIDATED
        if rights & ~entry.permissions[self.vmpl]:
            return RmpOutcome(What.RESULT, abi.RMP_FAIL_PERMISSION)
        permissions = list(entry.permissions)
        permissions[target] = rights
        for frame in range(gfn, gfn + (PAGES_2M if is_2m else 1)):
            sfn = self.system_frame(frame)
            self._store(
                sfn,
                msgspec.structs.replace(
                    self.entry(sfn),
                    permissions=tuple(permissions),
                    vmsa=vmsa if not self.vmpl else entry.vmsa,
                ),
            )
        return RmpOutcome(What.RESULT, abi.RMP_OK)

    # The hypervisor's VMRUN of another vCPU -------------------------------------------------------

    def enter(self, gfn: int) -> int | None:
        """VMRUN with the VMSA at a guest frame: the system frame that is then in use, None where
        the processor refuses it. It takes a page of 4 KiB of this guest's that is validated and has
        the VMSA bit, and that no other vCPU is using."""
        sfn = self.system_frame(gfn)
        entry = self.entry(sfn)
        is_vmsa = entry.validated and entry.vmsa and not entry.is_2m
        if not self._is_own(entry, gfn) or not is_vmsa or sfn in self._in_use:
            return None
        self._in_use.add(sfn)
        self._note(gfn, 1)
        return sfn

    def leave(self, sfn: int) -> None:
        """The vCPU with the VMSA in this system frame is out of the guest."""
        self._in_use.discard(sfn)
        for gfn in self.guest_frames(sfn):
            self._note(gfn, 1)

    def uses(self, sfn: int) -> bool:
        """Whether a system frame is the VMSA of a vCPU that is in the guest."""
        return sfn in self._in_use

    def frames_in_use(self) -> list[int]:
        """The system frames that are VMSAs of vCPUs that are in the guest."""
        return sorted(self._in_use)

    def vmsa_frames(self) -> list[int]:
        """The guest frames behind which there is a page with the VMSA bit."""
        return [gfn for gfn in range(self._frames) if self.entry(self.system_frame(gfn)).vmsa]

    def is_in_use(self, gfn: int) -> bool:
        """Whether the frame behind a guest frame is the VMSA of a vCPU that is in the guest."""
        return self.system_frame(gfn) in self._in_use

    # What must never be -------------------------------------------------------------------------

    def validated_twice(self) -> list[int]:
        """Guest frames for which two system frames are validated: the guest can then be shown old
        content in place of new (N55)."""
        seen: dict[int, int] = {}
        for sfn, entry in self._odd.items():
            if entry.validated and entry.asid == OWN_ASID:
                seen[entry.gfn] = seen.get(entry.gfn, 0) + 1
                plain = entry.gfn
                if plain != sfn and plain not in self._odd and plain < self.system_frames:
                    seen[plain] += self._codes[plain] & _STATE == VALIDATED
        return sorted(gfn for gfn, count in seen.items() if count > 1)

    # State ------------------------------------------------------------------------------------

    def dump(self) -> bytes:
        """The states of all guest frames, one byte each: with 4 for a part of a 2 MiB entry and 8
        for a VMSA. For a guest that no hypervisor attacks: remapped frames are not in it, nor is
        what other vCPUs use."""
        return bytes(self._codes[: self._frames])

    def load(self, states: bytes) -> None:
        """States as `dump` returned them, for as many frames."""
        self._odd.clear()
        self._behind.clear()
        self._in_use.clear()
        self._kept_codes.note(0, self._frames)
        self._codes[: self._frames] = states
        self._note(0, self._frames)

    def checkpoint(self) -> None:
        """See `Device`."""
        self._base = self._kept()
        self._kept_codes.checkpoint()

    def _kept(self) -> _Kept | None:
        """None where nothing is strange."""
        if not self._is_strange:
            return None
        small, in_use = frozenset(self.small_mappings), frozenset(self._in_use)
        return dict(self._odd), dict(self._behind), small, in_use

    def rollback(self) -> None:
        """See `Device`; `changed` is not called, the gates have a checkpoint of their own."""
        self._kept_codes.rollback()
        if self._base is not None or self._is_strange:
            odd, behind, small, in_use = self._base or _NOTHING_STRANGE
            self._odd = dict(odd)
            self._behind = dict(behind)
            self.small_mappings = set(small)
            self._in_use = set(in_use)
