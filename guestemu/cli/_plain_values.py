# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes the plain values of a command line without pydantic.

Newer versions of typer hand every value to pydantic, and importing that takes longer than most
verbs do. A word for a `str`, digits for an `int`, a path, and what was left out need no validation.
Everything else goes to typer, so that its messages and conversions stay what they are. Where a
version of typer works in another way nothing is changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol, get_args, get_origin, runtime_checkable

_ELSE: Final = object()
"""Not a plain value."""


class _Info(Protocol):
    """What `typer.Option` or `typer.Argument` was given."""

    parser: object
    min: float | None
    max: float | None
    clamp: bool
    exists: bool
    file_okay: bool
    dir_okay: bool
    readable: bool
    writable: bool
    resolve_path: bool
    allow_dash: bool
    path_type: object


class _Descriptor(Protocol):
    """The type of a parameter."""

    annotation: object
    parameter_info: _Info


class _Coercion(NamedTuple):
    """What typer asks to make a value of what stands on the command line."""

    coerce: Callable[..., object]


@runtime_checkable
class _Parameter(Protocol):
    """A parameter of a typer that validates with pydantic."""

    multiple: bool
    nargs: int
    type_descriptor: _Descriptor
    get_runtime_param: Callable[[], _Coercion]


@runtime_checkable
class _Command(Protocol):
    """A command of typer, in any of its versions."""

    get_params: Callable[[object], Sequence[object]]


class _PlainValues:
    """The coercion of one parameter: plain values here, the others by typer."""

    def __init__(self, parameter: _Parameter) -> None:
        self._is_many = parameter.multiple or parameter.nargs == -1
        self._type = parameter.type_descriptor
        self._typers = parameter.get_runtime_param
        self._coercion = _Coercion(self._take)

    def __call__(self) -> _Coercion:
        """In place of the parameter's `get_runtime_param`."""
        return self._coercion

    def _take(self, value: object, param: object, ctx: object) -> object:
        """The value. Raises typer's BadParameter."""
        plain = self._plain(value)
        return self._typers().coerce(value, param, ctx) if plain is _ELSE else plain

    def _plain(self, value: object) -> object:
        info = self._type.parameter_info
        kind = self._type.annotation
        if value is None:
            return () if self._is_many else None
        if info.parser is not None:
            return _ELSE
        if not self._is_many:
            return _plain_value(value, kind, info)
        if get_origin(kind) is not list or not isinstance(value, list | tuple):
            return _ELSE
        items = [_plain_value(item, get_args(kind)[0], info) for item in value]
        return _ELSE if _ELSE in items else items


def _plain_value(value: object, kind: object, info: _Info) -> object:
    if kind is str and isinstance(value, str):
        return value
    if kind is int and info.clamp is False:
        return _plain_number(value, info)
    if kind is Path and isinstance(value, str | Path):
        return Path(value) if _is_plain_path(value, info) else _ELSE
    return _ELSE


def _plain_number(value: object, info: _Info) -> object:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return _ELSE
    is_small = info.min is not None and value < info.min
    is_large = info.max is not None and value > info.max
    return _ELSE if is_small or is_large else value


def _is_plain_path(path: str | Path, info: _Info) -> bool:
    """Whether all that is asked of a path is that it can be read where there is one."""
    if info.exists or info.resolve_path or info.allow_dash or info.path_type is not None:
        return False
    if info.writable or not (info.file_okay and info.dir_okay):
        return False
    return not info.readable or not os.path.exists(path) or os.access(path, os.R_OK)


def take_plain_values(command: object) -> None:
    """Makes the parameters of `command`, and of those below it, take plain values by themselves."""
    if isinstance(command, _Command):
        given = command.get_params
        command.get_params = lambda context: [_with_plain_values(one) for one in given(context)]
    below: object = getattr(command, "commands", None)
    if isinstance(below, Mapping):
        for one in below.values():
            take_plain_values(one)


def _with_plain_values(parameter: object) -> object:
    if isinstance(parameter, _Parameter) and not isinstance(
        parameter.get_runtime_param, _PlainValues
    ):
        parameter.get_runtime_param = _PlainValues(parameter)
    return parameter
