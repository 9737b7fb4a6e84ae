# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace on a guest without a CPU: what the conversions do is computed, not run.

The allocator is the one the snippet guest has, the direct map the one it boots with, so both place
every buffer alike and make the same hypercalls; a test holds them together. Memory that a snippet
cannot have (8 GiB and more) can also be modelled. There is no host and nothing is checked.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, Gfn
from guestemu.abi.errors import InputError
from guestemu.dma.analysis import Analysis, Analyst
from guestemu.dma.leaves import DirectMap
from guestemu.dma.live import Accountant
from guestemu.dma.observer import Observer, Observers
from guestemu.dma.policies import BATCH, KERNEL, allocator_for
from guestemu.dma.report import MachineCounts, PoolCounts
from guestemu.dma.run import NO_OPTIONS, DmaRun, RunOptions
from guestemu.guest.dma.coherent import CoherentDma
from guestemu.guest.dma.policy import POLICIES, AllocatorRules
from guestemu.guest.dma.zones import ZonedAllocator
from guestemu.guest.registry import GuestEntry

PREFIX: Final = "model:"
MIN_MEMORY: Final = 32
MAX_MEMORY: Final = 1 << 20
ARENA: Final = 0x1000000
"""Where the memory for buffers begins, in bytes, as in the snippet guest."""
SNIPPET_ARENA_END: Final = 1 << 30
"""Where the snippet guest's ends; the model's ends there up to 8 GiB of memory, else with it."""
_SNIPPET_MEMORY: Final = 8192
_SILENT: Final = "5.10"


class ModelConversions:
    """`CoherentGuest` that computes; every conversion succeeds.

    Counts pages and hypercalls and tells `observer`, as `is_pool` for the atomic pools.
    """

    def __init__(self, direct: DirectMap, observer: Observer, is_pool: bool) -> None:
        self.decrypted = 0
        self.encrypted = 0
        self.hypercalls = 0
        self.peak_shared = 0
        self._convert = direct.convert
        self._converted = observer.converted
        self._cleared = observer.cleared
        self._is_pool = is_pool

    def set_memory_decrypted(self, gfn: Gfn, pages: int, /) -> int:
        """See `CoherentGuest`."""
        conversion = self._convert(gfn, pages, False)
        self.decrypted = decrypted = self.decrypted + conversion.changed
        self.hypercalls += conversion.calls_4k
        if conversion.calls_4k != pages:
            self.hypercalls += conversion.calls_2m + conversion.calls_1g
        shared = decrypted - self.encrypted
        if shared > self.peak_shared:
            self.peak_shared = shared
        self._converted(conversion, self._is_pool)
        return 0

    def set_memory_encrypted(self, gfn: Gfn, pages: int, /) -> int:
        """See `CoherentGuest`."""
        conversion = self._convert(gfn, pages, True)
        self.encrypted += conversion.changed
        self.hypercalls += conversion.calls_4k
        if conversion.calls_4k != pages:
            self.hypercalls += conversion.calls_2m + conversion.calls_1g
        self._converted(conversion, self._is_pool)
        return 0

    def memset(self, gfn: Gfn, size: int, /) -> None:
        """See `CoherentGuest`."""
        self._cleared(gfn, size)


class ModelRun(DmaRun):
    """One trace on the model of a kernel generation with `memory` MiB.

    `policy` is one of `guestemu.dma.policies`. InputError when there is no such generation or the
    memory is too small or too large.
    """

    def __init__(
        self,
        generation: str,
        memory: int,
        observers: tuple[Observer, ...] = (),
        accountant: Accountant | None = None,
        policy: str = KERNEL,
        options: RunOptions = NO_OPTIONS,
    ) -> None:
        rules = model_policy(generation)
        frames = model_frames(memory)
        self._direct = DirectMap(frames, generation != _SILENT, policy == BATCH)
        analyst = Analyst(self._direct.private)
        migrations = options.migrations(self._direct.private)
        watching: tuple[Observer, ...] = (analyst, *migrations, *observers)
        observer: Observer = Observers(watching) if len(watching) > 1 else analyst
        self.buffers = ModelConversions(self._direct, observer, False)
        self.pools = ModelConversions(self._direct, observer, True)
        arena = ZonedAllocator(Gfn(ARENA >> PAGE_SHIFT), arena_frames(memory))
        kernel = CoherentDma(
            self.buffers, arena, rules, pool_guest=self.pools, cma_pages=options.cma_pages
        )
        dma = allocator_for(policy, kernel, self.buffers, arena)
        super().__init__(dma, (self.buffers, self.pools), observer, analyst, accountant, migrations)

    def counts(self) -> MachineCounts:
        """See `DmaRun`; nothing was checked, so there is nothing about violations."""
        buffers = self.buffers
        return MachineCounts(
            pages_decrypted=buffers.decrypted,
            pages_encrypted=buffers.encrypted,
            hypercalls=buffers.hypercalls,
            peak_shared_pages=buffers.peak_shared,
            violations=None,
            violation_count=None,
            pools=PoolCounts(self.pools.decrypted, self.pools.hypercalls),
        )

    def analyze(self) -> Analysis:
        """See `DmaRun`."""
        return self._analyst.result(self._direct.private, frozenset(self._direct.split_leaves))

    @property
    def direct_map(self) -> DirectMap:
        """The guest's page tables as they are; for reading."""
        return self._direct


def models() -> tuple[GuestEntry, ...]:
    """The models, oldest kernel first, as `guestemu guests` lists them."""
    return tuple(
        GuestEntry(f"{PREFIX}{name}", f"DMA code of {name} computed without a CPU (guestemu dma)")
        for name in POLICIES
    )


def is_model(guest: str) -> bool:
    """Whether `--guest` asks for a model."""
    return guest.startswith(PREFIX)


def model_policy(generation: str) -> AllocatorRules:
    """The DMA code of a generation. InputError lists the names when it is none."""
    policy = POLICIES.get(generation)
    if policy is None:
        names = ", ".join(f"{PREFIX}{name}" for name in POLICIES)
        raise InputError(f"guest '{PREFIX}{generation}': no such model; use {names}")
    return policy


def model_frames(memory: int) -> int:
    """Frames of `memory` MiB. InputError when a model cannot have that."""
    if not MIN_MEMORY <= memory <= MAX_MEMORY or memory % 2:
        raise InputError(
            f"memory {memory}M: a model takes {MIN_MEMORY}M to {MAX_MEMORY}M, in steps of 2M"
        )
    return memory << 20 >> PAGE_SHIFT


def arena_frames(memory: int) -> int:
    """Frames that buffers are taken from, for `memory` MiB."""
    end = memory << 20
    if memory <= _SNIPPET_MEMORY:
        end = min(end, SNIPPET_ARENA_END)
    return (end - ARENA) >> PAGE_SHIFT
