# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a program and applying the overrides of `run` and `show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from guestemu.cli._options import sev_kind

if TYPE_CHECKING:
    from guestemu.program.ops import Op
    from guestemu.program.program import Header, Program

_OVERRIDE_LINE = 1


class Overrides(msgspec.Struct, frozen=True):
    """What the command line says instead of the program's header; None: as the header says.

    `memory` in MiB; `faults` are operations in text form that run before the program's own;
    `plugins` the directories whose code the program may name as its host.
    """

    guest: str | None = None
    host: str | None = None
    sev: str | None = None
    cbit: int | None = None
    memory: int | None = None
    faults: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = ()
    vcpus: int | None = None
    layout: str | None = None


def load(path: Path, overrides: Overrides) -> Program:
    """The program in `path` with the overrides applied, without its expectations, which are about
    the program as it is in the file. Raises `InputError` for either, and for a host that is code
    which the user neither named nor allowed."""
    from guestemu.program.text import load_program

    program = load_program(path)
    header = _header(program.header, overrides, path)
    faults = tuple(_fault(text, header) for text in overrides.faults)
    return msgspec.structs.replace(
        program, header=header, ops=faults + program.ops, expectations=()
    )


def _header(header: Header, overrides: Overrides, path: Path) -> Header:
    from guestemu.abi.errors import InputError
    from guestemu.host.permission import named_by_user, permissions
    from guestemu.program.validity import header_problem

    if overrides.host is not None and "," in overrides.host:
        raise InputError(
            f"--host {overrides.host}: this verb takes one host; `guestemu run` compares several"
        )
    if overrides.host is not None:
        host, plugin = named_by_user(overrides.host)
    else:
        host = header.host
        plugin = permissions(overrides.plugins).find(host, path)
    changed = msgspec.structs.replace(
        header,
        guest=overrides.guest or header.guest,
        host=host,
        # repairs belong to the header's own host
        switches=header.switches if host == header.host else (),
        plugin=plugin,
        sev=header.sev if overrides.sev is None else sev_kind(overrides.sev),
        cbit=header.cbit if overrides.cbit is None else overrides.cbit,
        memory=header.memory if overrides.memory is None else overrides.memory,
        vcpus=header.vcpus if overrides.vcpus is None else overrides.vcpus,
        layout=header.layout if overrides.layout is None else overrides.layout,
    )
    problem = header_problem(changed)
    if problem is not None:
        option = "--memory: " if problem[0] == "layout" else ""
        raise InputError(f"{option}{problem[1]}")
    return changed


def _fault(text: str, header: Header) -> Op:
    from guestemu.program.lexer import Place, split_words
    from guestemu.program.op_text import parse_op

    place = Place("--fault", _OVERRIDE_LINE)
    words = split_words(text, place)
    if not words:
        raise place.error("is empty; give an op such as 'fail_split after=0'")
    return parse_op(words, place, header)
