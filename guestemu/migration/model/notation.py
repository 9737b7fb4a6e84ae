# SPDX-License-Identifier: GPL-2.0-or-later
"""Scripts, orders and interleavings as text, such as `PTE- E HC- t1! D S E D S STOP`.

| text | step |
| --- | --- |
| `PTE-`, `PTE+` | the guest's leaf becomes shared (C-bit 0), private (C-bit 1) |
| `HC-`, `HC+` | hypercall: shared, private |
| `CH-`, `CH+` | a TD's MapGPA: a chunk that the page is not in, before its own (`HC`) |
| `tN!` | the guest writes the value N through its PTE, N from 0 (the value at the start) to 99 |
| `D`, `G`, `C`, `E`, `S`, `L` | host: auto-clear fetch, GET, CLEAR, enc, send, send-live |
| `STOP` | the guest stops, the final pass runs, the guest goes on at the destination |

Blanks or commas separate steps; the letters of an order may stand together (`EDS`). Orders also
take the words `auto`, `GET`, `CLEAR`, `enc`, `send`, `send-live`; case does not matter. A guest's
steps keep `-` for "to shared" in both directions of the C-bit: it is the encryption that goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from guestemu.abi.errors import InputError
from guestemu.migration.model.rules import Rules
from guestemu.migration.model.steps import (
    ORDERS,
    SCRIPTS,
    SENDS,
    Chunk,
    GuestStep,
    HostStep,
    Order,
    Pte,
    Script,
    StatusHypercall,
    Write,
)

MAX_SCRIPT: Final = 32
"""Guest steps; the number of interleavings grows with the binomial coefficient."""

MAX_ORDER: Final = 16
"""Host steps of one pass."""

STOP: Final = "STOP"

_GUEST: Final = re.compile(r"(?:(pte|hc|ch)([+-])|t([0-9]{1,2})!)", re.IGNORECASE)
_KINDS: Final[Mapping[str, type[Pte | StatusHypercall | Chunk]]] = {
    "pte": Pte,
    "hc": StatusHypercall,
    "ch": Chunk,
}
_WORDS: Final = {
    "auto": HostStep.AUTO_CLEAR,
    "get": HostStep.GET,
    "clear": HostStep.CLEAR,
    "enc": HostStep.ENC,
    "send": HostStep.SEND,
    "send-live": HostStep.SEND_LIVE,
    **{step.value.lower(): step for step in HostStep},
}


_LETTERS: Final = frozenset(step.value for step in HostStep)


def _words(text: str) -> list[str]:
    return re.split(r"[\s,]+", text.strip(" ,\t\n")) if text.strip(" ,\t\n") else []


def parse_script(text: str) -> Script:
    """A script of the table by its name, or steps such as "PTE- HC- t1!".

    Raises `InputError` naming the word that is not a step.
    """
    for script in SCRIPTS:
        if script.name.lower() == text.strip().lower():
            return script
    words = _words(text)
    steps = tuple(_guest_step(word, place) for place, word in enumerate(words, 1))
    if not 1 <= len(steps) <= MAX_SCRIPT:
        raise InputError(
            f"--script: {len(steps)} steps; give 1 to {MAX_SCRIPT}, such as 'PTE- HC- t1!'"
        )
    return Script(format_script(steps), steps)


def _guest_step(word: str, place: int) -> GuestStep:
    match = _GUEST.fullmatch(word)
    if match is None:
        names = ", ".join(script.name for script in SCRIPTS)
        raise InputError(
            f"--script, step {place}: no guest step {word!r}; use PTE- PTE+ HC- HC+ CH- CH+ tN!, "
            f"or the name of a script: {names}"
        )
    kind, sign, token = match.groups()
    if token is not None:
        return Write(int(token))
    return _KINDS[kind.lower()](sign == "-")


def parse_order(text: str) -> Order:
    """An order of the table by its row (1 to 6), or steps such as "E D S", "EDS" or "enc, auto,
    send".

    Raises `InputError` naming the word that is not a step, or an order that never sends.
    """
    words = _words(text)
    if len(words) == 1 and words[0].isdecimal():
        if words[0] in (rows := {str(order.row): order for order in ORDERS}):
            return rows[words[0]]
        raise InputError(f"--order: no row {words[0]} in the table; rows are 1 to {len(ORDERS)}")
    if len(words) == 1 and words[0].lower() not in _WORDS and _LETTERS.issuperset(words[0].upper()):
        words = list(words[0])
    steps = tuple(_host_step(word, place) for place, word in enumerate(words, 1))
    if not 1 <= len(steps) <= MAX_ORDER:
        raise InputError(f"--order: {len(steps)} steps; give 1 to {MAX_ORDER}, such as 'D E S'")
    if SENDS.isdisjoint(steps):
        raise InputError(f"--order {text!r}: nothing is ever sent; add S (send) or L (send-live)")
    known = next((order for order in ORDERS if order.steps == steps), None)
    return known or Order(format_order(steps), steps)


def _host_step(word: str, place: int) -> HostStep:
    step = _WORDS.get(word.lower())
    if step is None:
        raise InputError(
            f"--order, step {place}: no host step {word!r}; use D (auto), G (GET), C (CLEAR), "
            f"E (enc), S (send), L (send-live), or a row of the table, 1 to {len(ORDERS)}"
        )
    return step


def parse_rules(names: Iterable[str]) -> Rules:
    """Rules with the switches `names` on, each a field of `Rules` with - for _.

    Raises `InputError` for an unknown rule.
    """
    fields = {field.replace("_", "-"): field for field in Rules.__struct_fields__}
    chosen: dict[str, bool] = {}
    for name in names:
        if name not in fields:
            raise InputError(f"--rule: no rule {name!r}; there are {', '.join(fields)}")
        chosen[fields[name]] = True
    return Rules(**chosen)


def format_guest_step(step: GuestStep) -> str:
    """One guest step in the notation."""
    match step:
        case Pte(to_shared):
            return "PTE-" if to_shared else "PTE+"
        case StatusHypercall(to_shared):
            return "HC-" if to_shared else "HC+"
        case Chunk(to_shared):
            return "CH-" if to_shared else "CH+"
        case Write(token):
            return f"t{token}!"


def format_script(steps: Iterable[GuestStep]) -> str:
    """Guest steps in the notation."""
    return " ".join(format_guest_step(step) for step in steps)


def format_order(steps: Iterable[HostStep]) -> str:
    """Host steps of a pass in the notation."""
    return " ".join(step.value for step in steps)
