# SPDX-License-Identifier: GPL-2.0-or-later
"""What each firmware command must answer: written from facts E.1 to E.3, not from the model.

For a command: its tests in order, each with its error code. A test is `platform` (the states that
pass), `handle`, `state` (the numbers of E.1 that pass), `asid` (bound or not), or a bad argument
(`argument:field`; two of one field never occur together). The first test that fails gives the code;
if none fails, the guest goes to `next`. Entries marked FW come from AMD's published firmware where
the facts give no order.
"""

from __future__ import annotations

from dataclasses import dataclass

W, IW = ("WORKING",), ("INIT", "WORKING")
P, H, S, A = "platform", "handle", "state", "asid"


@dataclass(frozen=True)
class Rule:
    """One command: `order` of (test, code); which platform states, guest states and ASID pass; the
    guest's `next` state (None: unchanged; "new": the new guest's state); `policy` of the guest."""

    order: tuple[tuple[str, int], ...]
    platform: tuple[str, ...] = W
    states: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    bound: bool | None = None
    next: int | None = None
    policy: int = 0
    written: tuple[str, str, int] | None = None
    """A length query: (bad argument, field, the value that is written back)."""


NOSEND, DOMAIN, SEV, ES, NODBG = 8, 16, 32, 4, 1
_SHARING = (
    ("share_handle:handle", 0x10),
    ("share_policy:handle", 0x07),
    ("share_noks:handle", 0x07),
    ("full:slots", 0x17),
    ("es:es", 0x15),
)
_SEND_LENGTHS = (
    ("guest_len_0:guest", 0x04),
    ("guest_len_16:guest", 0x04),
    ("guest_len_5010:guest", 0x04),
    ("trans_len_0:trans", 0x04),
    ("trans_len_short:trans", 0x04),
    ("paddr:paddr", 0x09),
)
_RECEIVE_LENGTHS = (
    ("trans_len_0:trans", 0x04),
    ("trans_len_big:trans", 0x04),
    ("guest_len_0:guest", 0x04),
    ("guest_len_less:guest", 0x04),
    ("both_len_odd:trans", 0x04),
    ("hdr_51:hdr", 0x04),
    ("paddr:paddr", 0x09),
    ("compressed:flags", 0x15),
    ("mac:mac", 0x0B),
    ("flags:flags", 0x0B),
)
_DEBUG = (
    (P, 1),
    ("src:src", 0x09),
    ("dst:dst", 0x09),
    ("length_8:length", 0x04),
    (H, 0x10),
)

_SEND_QUERY = ("hdr_51:hdr", "header_length", 52)
_PLATFORM_CHAIN = (
    ("plat_len:plat", 0x04),
    ("pdh_len:pdh", 0x04),
    ("amd_len:amd", 0x04),
    ("ark_foreign:amd", 0x06),
    ("ask_signature:amd", 0x0A),
    ("cek_signature:plat", 0x0A),
    ("pek_signature:plat", 0x0A),
    ("pdh_signature:pdh", 0x0A),
    ("old_api:plat", 0x07),
)
_START = ((P, 1), (H, 0x10), ("session_len:session", 0x04), (S, 2))
_SESSION_QUERY = ("session_len:session", "session_length", 128)

RULES: dict[str, Rule] = {
    # E1, E3 (platform INIT passes: FW; without it no guest could ever be launched)
    "LAUNCH_START": Rule(((P, 1), *_SHARING), IW, next=1),
    # FW (order)
    "LAUNCH_UPDATE_DATA": Rule(
        (
            (P, 1),
            (H, 0x10),
            (S, 2),
            (A, 8),
            ("paddr:paddr", 9),
            ("len_0:len", 4),
            ("len_8:len", 4),
        ),
        states=(1,),
        bound=True,
    ),
    "LAUNCH_UPDATE_VMSA": Rule(
        (("len_0:len", 4), ("len_8:len", 4), (P, 1), (H, 0x10), (S, 2), (A, 8), ("paddr:paddr", 9)),
        states=(1,),
        bound=True,
        policy=ES,
    ),
    "LAUNCH_UPDATE_VMSA without ES": Rule(
        (("len_0:len", 4), (P, 1), (H, 0x10), (S, 2), ("always:", 0x15)), states=(1,)
    ),
    "LAUNCH_MEASURE": Rule(
        ((P, 1), (H, 0x10), (S, 2), ("len_47:len", 4)),
        states=(1,),
        next=2,
        written=("len_47:len", "length", 48),
    ),
    "LAUNCH_FINISH": Rule(((P, 1), (H, 0x10), (S, 2)), states=(2,), next=3),
    # E5, by policy
    "SEND_START": Rule(
        (*_START, ("pdh_len:pdh", 4), ("pdh_usage:pdh", 6)),
        states=(3,),
        next=4,
        written=_SESSION_QUERY,
    ),
    "SEND_START with NOSEND": Rule(
        (*_START, ("always:", 7)), states=(3,), policy=NOSEND, written=_SESSION_QUERY
    ),
    "SEND_START with SEV": Rule(
        (*_START, *_PLATFORM_CHAIN), states=(3,), next=4, policy=SEV, written=_SESSION_QUERY
    ),
    "SEND_START with DOMAIN": Rule(
        (
            *_START,
            ("plat_len:plat", 4),
            ("pdh_len:pdh", 4),
            ("oca_signature:plat", 0x0A),
            ("pdh_signature:pdh", 0x0A),
            ("oca_foreign:plat", 7),
        ),
        states=(3,),
        next=4,
        policy=DOMAIN,
        written=_SESSION_QUERY,
    ),
    "SEND_START with SEV and DOMAIN": Rule(
        (*_START, ("cek_signature:plat", 0x0A), ("oca_foreign:plat", 7)),
        states=(3,),
        next=4,
        policy=SEV | DOMAIN,
    ),
    # E6
    "SEND_UPDATE_DATA": Rule(
        ((P, 1), ("hdr_51:hdr", 4), (H, 0x10), (S, 2), (A, 8), *_SEND_LENGTHS),
        states=(4,),
        bound=True,
        written=_SEND_QUERY,
    ),
    "SEND_UPDATE_VMSA": Rule(
        (
            (P, 1),
            ("hdr_51:hdr", 4),
            (H, 0x10),
            (S, 2),
            (A, 8),
            *_SEND_LENGTHS,
            ("not_vmsa:paddr", 0x16),
        ),
        states=(4,),
        bound=True,
        policy=ES,
        written=_SEND_QUERY,
    ),
    "SEND_UPDATE_VMSA without ES": Rule(
        ((P, 1), ("hdr_51:hdr", 4), (H, 0x10), (S, 2), ("always:", 0x15)), states=(4,)
    ),
    # E7
    "SEND_FINISH": Rule(((P, 1), (H, 0x10), (S, 2)), states=(4,), next=6),
    "SEND_CANCEL": Rule(((P, 1), (H, 0x10), (S, 2)), states=(4,), next=3),
    # E8 (certificate, policy version and reserved bits: FW)
    "RECEIVE_START": Rule(
        (
            (P, 1),
            ("session_len:session", 4),
            ("pdh_len:pdh", 4),
            ("pdh_usage:pdh", 6),
            ("wrap_mac:keys", 0x0B),
            ("policy_mac:policy", 0x0B),
            ("policy_reserved:policy", 7),
            ("policy_version:policy", 7),
            *_SHARING,
        ),
        IW,
        next=5,
    ),
    # E9
    "RECEIVE_UPDATE_DATA": Rule(
        ((P, 1), (H, 0x10), (S, 2), (A, 8), *_RECEIVE_LENGTHS), states=(5,), bound=True
    ),
    "RECEIVE_UPDATE_VMSA": Rule(
        ((P, 1), (H, 0x10), (S, 2), (A, 8), *_RECEIVE_LENGTHS),
        states=(5,),
        bound=True,
        policy=ES,
    ),
    "RECEIVE_UPDATE_VMSA without ES": Rule(
        ((P, 1), (H, 0x10), (S, 2), ("always:", 0x15)), states=(5,)
    ),
    # E10
    "RECEIVE_FINISH": Rule(((P, 1), (H, 0x10), (S, 2)), states=(5,), next=3),
    # E1; ACTIVE: FW
    "DECOMMISSION": Rule(((P, 1), (H, 0x10), (A, 0x12)), bound=False, next=0),
    # E11 (SENT); the rest and the order: FW
    "ACTIVATE": Rule(
        (
            (P, 1),
            (H, 0x10),
            ("asid_0:number", 0x0D),
            ("asid_510:number", 0x0D),
            ("asid_owned:number", 0x0C),
            (A, 0x12),
            (S, 2),
            ("asid_dirty:number", 0x0F),
        ),
        states=(1, 2, 3, 4, 5),
        bound=False,
    ),
    "DEACTIVATE": Rule(((P, 1), (H, 0x10), (A, 8)), bound=True),
    # E4
    "GUEST_STATUS": Rule(((P, 1),), IW),
    # E12
    "COPY": Rule(
        (
            (P, 1),
            (H, 0x10),
            (A, 8),
            ("length_0:length", 4),
            ("length_16:length", 4),
            ("src:src", 9),
            ("dst:dst", 9),
        ),
        bound=True,
    ),
    # E18, order: FW
    "DBG_DECRYPT": Rule((*_DEBUG, (A, 8)), bound=True),
    "DBG_ENCRYPT": Rule((*_DEBUG, (A, 8)), bound=True),
    "DBG_DECRYPT with NODBG": Rule((*_DEBUG, ("always:", 7)), policy=NODBG),
    "DBG_ENCRYPT with NODBG": Rule((*_DEBUG, ("always:", 7)), policy=NODBG),
}

NEW_GUEST = ("LAUNCH_START", "RECEIVE_START")


@dataclass(frozen=True)
class Cell:
    """One case: where platform and guest stand (state 0: no such guest) and what is wrong."""

    rule: str
    platform: str
    state: int
    bound: bool
    bad: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        words = [self.rule.replace(" ", "_"), self.platform, str(self.state)]
        return "-".join([*words, "bound" if self.bound else "unbound", *self.bad])


def arguments(rule: Rule) -> list[str]:
    return [test for test, _ in rule.order if ":" in test and test != "always:"]


def expected(cell: Cell) -> tuple[int, int]:
    """(status, the guest's state afterwards; of a START the new guest's, 0 if there is none)."""
    rule = RULES[cell.rule]
    for test, code in rule.order:
        fails = {
            P: cell.platform not in rule.platform,
            H: cell.state == 0,
            S: cell.state not in rule.states,
            A: rule.bound is not None and cell.bound != rule.bound,
            "always:": True,
        }.get(test, test in cell.bad)
        if fails:
            return code, 0 if cell.rule in NEW_GUEST else cell.state
    return 0, cell.state if rule.next is None else rule.next


def _places(name: str, rule: Rule) -> list[tuple[str, int, bool]]:
    outside = [("UNINIT", 0, False), ("INIT", 0, False), ("WORKING", 0, False)]
    if name in NEW_GUEST:
        return outside
    reachable = [1, 2, 3] if rule.policy & NOSEND else [1, 2, 3, 4, 5, 6]
    return outside + [("WORKING", state, bound) for state in reachable for bound in (False, True)]


def _good(rule: Rule) -> tuple[str, int, bool]:
    return "WORKING", rule.states[-1], bool(rule.bound)


def cells() -> list[Cell]:
    """Every command in every state, alone and with each single bad argument; and each pair of bad
    arguments where everything else is right, for the order of the tests among arguments."""
    found = []
    for name, rule in RULES.items():
        names = arguments(rule)
        for place in _places(name, rule):
            found += [Cell(name, *place, bad) for bad in ((), *((each,) for each in names))]
        place = ("WORKING", 0, False) if name in NEW_GUEST else _good(rule)
        for index, first in enumerate(names):
            for second in names[index + 1 :]:
                if first.split(":")[1] != second.split(":")[1]:
                    found.append(Cell(name, *place, (first, second)))
    return found
