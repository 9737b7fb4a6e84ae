# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of the zoo: a variant of the snippet's code, another memory map, another DMA policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from guestemu.abi.addresses import PAGE_SHIFT, Gpa
from guestemu.campaign.planted.variants import GENERATION, load_variant
from guestemu.guest.base import CallOutcome, Guest
from guestemu.guest.dma.policy import AllocatorRules
from guestemu.guest.registry import SNIPPET_STATUS, GuestSettings
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.machine.machine import MachineConfig
from guestemu.program.program import SevKind

GuestFactory = Callable[[GuestSettings], Guest]


def _machine_config(settings: GuestSettings) -> MachineConfig:
    return MachineConfig(
        frames=settings.memory << 20 >> PAGE_SHIFT,
        cbit=settings.cbit,
        vcpus=settings.vcpus,
        sev_status=SNIPPET_STATUS[settings.sev],
        coherent=settings.coherent,
        cache=settings.cache,
        cache_seed=settings.cache_seed,
        tdx=settings.sev == SevKind.TDX.value,
    )


class PolicyGuest(SnippetGuest):
    """A snippet guest whose coherent allocator follows `policy` instead of its generation's."""

    def __init__(self, settings: GuestSettings, policy: AllocatorRules) -> None:
        image = load_variant("clean")
        super().__init__(GENERATION, _machine_config(settings), settings.budget, image)
        self._policy = policy

    def dma_alloc_coherent(self, size: int, may_block: bool) -> CallOutcome:
        """See `Guest`."""
        self._coherent().coherent.policy = self._policy
        return super().dma_alloc_coherent(size, may_block)

    def dma_free_coherent(self, gpa: Gpa) -> CallOutcome:
        """See `Guest`."""
        self._coherent().coherent.policy = self._policy
        return super().dma_free_coherent(gpa)


def variant_guest(name: str) -> GuestFactory:
    """Guests that run variant `name` (see `variants`)."""

    def make(settings: GuestSettings) -> Guest:
        config = _machine_config(settings)
        return SnippetGuest(GENERATION, config, settings.budget, load_variant(name))

    return make


def policy_guest(policy: AllocatorRules) -> GuestFactory:
    """Guests of clean code whose coherent allocator follows `policy`."""
    return lambda settings: PolicyGuest(settings, policy)


def mapped_guest(e820: Callable[[int], Sequence[tuple[int, int, int]]]) -> GuestFactory:
    """Guests of clean code with the memory map `e820(size)`: (GPA, bytes, type) for each line."""

    def make(settings: GuestSettings) -> Guest:
        config = _machine_config(settings)
        guest = SnippetGuest(GENERATION, config, settings.budget, load_variant("clean"))
        guest.info.write_e820(e820(config.frames << PAGE_SHIFT))
        guest.machine.checkpoint()
        return guest

    return make
