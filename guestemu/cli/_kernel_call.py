# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel call` does."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import msgspec

from guestemu.abi.errors import InputError

if TYPE_CHECKING:
    from guestemu.kernel.call import CallReport


class CallRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to call in which guest: `calls` are a function and its arguments each. `memory` in MiB,
    `budget` in basic blocks, `depth` in levels of the tree of calls (0: none), `at` the function to
    which the kernel is booted."""

    image: str
    calls: tuple[tuple[str, ...], ...]
    memory: int
    cbit: int
    sev: str
    answer: int
    budget: int
    depth: int
    at: str


def call_image(request: CallRequest) -> tuple[CallReport, ...]:
    """Boots and calls. Raises `InputError`."""
    from guestemu.guest.linux.boot import DEFAULT_COMMAND_LINE, INITCALLS, STOP_AT
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import LOADER, linux_config
    from guestemu.kernel.call import Called, call_functions

    config = linux_config(request.memory, request.cbit, request.sev)
    image = find_image(request.image)
    command_line = DEFAULT_COMMAND_LINE
    if request.at != STOP_AT:
        command_line += f" {INITCALLS}"
    guest = LOADER.guest(image, config, request.budget, command_line, request.at)
    calls = [Called(function, tuple(arguments)) for function, *arguments in request.calls]
    return call_functions(guest, calls, request.answer, request.depth)


def split_call(text: str) -> tuple[str, ...]:
    """Function and arguments of `--then`. Raises `InputError`."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise InputError(f"--then {text!r}: {error}") from None
    if not words:
        raise InputError("--then: give a function and its arguments")
    return words
