# SPDX-License-Identifier: GPL-2.0-or-later
"""What each kind of operation does: a function registered where it stands.

A guest's, the memory's or the testbed's operation is a function of a scene and an op under
`@operation(KIND)`. What the host carries out (`OpSpec.by_host`) the host hands out itself
(`Host.operations`); an ioctl that it lacks answers -ENOTTY, as a kernel without it does, and that
is said here only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Final, Protocol, TypeAlias

from guestemu.abi.errno import ENOTTY
from guestemu.guest.base import CallOutcome, Guest
from guestemu.host.base import Host
from guestemu.host.ioctls import ioctls_of
from guestemu.program.ops import SPECS, Op, OpKind
from guestemu.runner.dma_slots import DmaSlots


class OpContext(Protocol):
    """What an operation acts on; a testbed is one."""

    guest: Guest
    host: Host
    slots: DmaSlots


Operation: TypeAlias = Callable[[OpContext, Op], CallOutcome]

_MODULES: Final = ("guest_operations", "memory_operations", "td_operations", "device_operations")
"""The modules of guestemu whose functions register themselves."""

_OPERATIONS: Final[dict[OpKind, Operation]] = {}


def operation(kind: OpKind) -> Callable[[Operation], Operation]:
    """Registers the decorated function as what an op of `kind` does.

    Raises ValueError for a kind that has a function, or that the host carries out.
    """

    def register(function: Operation) -> Operation:
        if kind in _OPERATIONS or SPECS[kind].by_host:
            raise ValueError(f"op {SPECS[kind].name} has a function already")
        _OPERATIONS[kind] = function
        return function

    return register


def operations_of(scene: OpContext) -> Mapping[OpKind, Callable[[Op], CallOutcome]]:
    """What each kind of operation does in `scene`, on its guest and host as they are now."""
    for module in _MODULES:
        import_module(f"guestemu.runner.{module}")
    own = host_operations(scene.host)
    by_host = {kind: _by_host(own[kind]) for kind, spec in SPECS.items() if spec.by_host}
    return by_host | {kind: partial(function, scene) for kind, function in _OPERATIONS.items()}


def host_operations(host: Host) -> Mapping[OpKind, Callable[..., int]]:
    """What `host` does for each kind of operation that a host carries out; -ENOTTY for a kind that
    it lacks. The functions take the op's arguments."""
    own = {**ioctls_of(host), **host.operations()}
    if host.pluggable:
        own[OpKind.HOST_COMMIT_SLOT] = host.plug
        own[OpKind.UNPLUG_SLOT] = host.unplug
    return {kind: own.get(kind, _lacking) for kind, spec in SPECS.items() if spec.by_host}


def _lacking(*_arguments: int) -> int:
    return -ENOTTY


def _by_host(function: Callable[..., int]) -> Callable[[Op], CallOutcome]:
    return lambda op: CallOutcome(function(*op.arguments))
