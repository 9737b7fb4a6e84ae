# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration through handlers as operations of a program, on a host that has two ends of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from guestemu.abi.errno import ENOTTY
from guestemu.host.base import Host

if TYPE_CHECKING:
    from guestemu.host.mirror.world import MirrorWorld


@runtime_checkable
class HasMirrorWorld(Protocol):
    """A host with a guest that leaves, a destination, and handlers at both ends."""

    def mirror_world(self) -> MirrorWorld:
        """Both ends as they are now."""

    def mirror_context(self, is_move: bool, between: int) -> int:
        """See `ContextRace`: the capability's result; `context_problem` tells what is wrong."""

    @property
    def context_problem(self) -> str:
        """Of the last `mirror_context`; empty if nothing is."""


def mirror_setup(host: Host, proposal: int, other_build: int) -> int:
    """See `MirrorWorld.set_up`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_world().set_up(proposal, bool(other_build))


def mirror_write(host: Host, place: int, page: int, value: int, shared: int) -> int:
    """See `MirrorWorld.write`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_world().write(place, page, value, bool(shared))


def mirror_tell(host: Host, place: int, page: int, private: int) -> int:
    """See `MirrorWorld.tell`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_world().tell(place, page, bool(private))


def mirror_poke(host: Host, page: int, value: int) -> int:
    """See `MirrorWorld.poke`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_world().poke(page, value)


def mirror_plug(host: Host, change: int) -> int:
    """See `MirrorWorld.plug`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_world().plug(change)


def mirror_load(host: Host, place: int, page: int) -> int:
    """See `MirrorWorld.load`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_world().load(place, page)


def mirror_migrate(host: Host, place: int, page: int) -> int:
    """See `MirrorWorld.migrate`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_world().migrate(place, page)


def mirror_save(host: Host, place: int, page: int) -> int:
    """See `MirrorWorld.save`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_world().save(place, page)


def mirror_restore(host: Host, packet: int, place: int, page: int) -> int:
    """See `MirrorWorld.restore`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_world().restore(packet, place, page)


def mirror_inject(host: Host, kind: int, place: int, page: int) -> int:
    """See `MirrorWorld.inject`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_world().inject(kind, place, page)


def mirror_command(host: Host, destination: int, nr: int, address: int) -> int:
    """See `MirrorWorld.command`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_world().command(bool(destination), nr, address)


def mirror_context(host: Host, move: int, between: int) -> int:
    """See `HasMirrorWorld`."""
    if not isinstance(host, HasMirrorWorld):
        return -ENOTTY
    return host.mirror_context(bool(move), between)
