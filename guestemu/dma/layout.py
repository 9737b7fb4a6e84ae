# SPDX-License-Identifier: GPL-2.0-or-later
"""How a driver's coherent buffers are described: what it asks for, by parameters, and when.

A driver's buffers are of three sorts: those it keeps while it is bound; its rings, which it
replaces when they are resized or the device is reset; and pages of its DMA pools, which come with
the first I/O and stay (B7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from guestemu.guest.dma.coherent import Origin
from guestemu.guest.dma.gfp import GFP_KERNEL

Values: TypeAlias = Mapping[str, int]


class Want(msgspec.Struct, frozen=True):
    """One allocation a driver makes: bytes, flags, and who shares it."""

    size: int
    gfp: frozenset[str] = GFP_KERNEL
    origin: Origin = Origin.DMA


class Layout(msgspec.Struct, frozen=True):
    """A driver's buffers in the order they are allocated; see the module's docstring. `commands`
    are allocated and freed one by one while the driver works."""

    bound: tuple[Want, ...]
    rings: tuple[Want, ...]
    pools: tuple[Want, ...] = ()
    commands: tuple[Want, ...] = ()


class Parameter(msgspec.Struct, frozen=True):
    """A number that shapes a pattern, with its default, smallest and largest value."""

    default: int
    low: int
    high: int
    help: str


class Driver(msgspec.Struct, frozen=True):
    """A driver: name of its module, parameters, layout; `ring_size` is the parameter that an
    administrator can change at run time, or None."""

    module: str
    help: str
    parameters: dict[str, Parameter]
    layout: Callable[[Values], Layout]
    ring_size: str | None = None
