# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests by the name that `--guest` and program headers use.

The Linux guest's modules are imported where they are needed: a snippet run does without them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.caches import CacheModel
from guestemu.abi.errors import InputError
from guestemu.abi.msrs import SEV_STATUS_SEV, SEV_STATUS_SEV_ES, SEV_STATUS_SEV_SNP
from guestemu.abi.names import nearest
from guestemu.guest.base import Guest
from guestemu.guest.snippet.generations import GENERATIONS
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.machine.machine import MachineConfig

SNIPPET_STATUS: Final = {
    "sev": SEV_STATUS_SEV,
    "snp": SEV_STATUS_SEV | SEV_STATUS_SEV_ES | SEV_STATUS_SEV_SNP,
    "tdx": SEV_STATUS_SEV,
}
"""SEV_STATUS of a snippet guest, by the word of `--sev`."""


class GuestSettings(msgspec.Struct, frozen=True):
    """The part of a program's header that shapes a guest; memory in MiB, budget in basic blocks.

    `key` is the memory key of a snippet guest (None: every machine's usual one); `cache` and
    `cache_seed` as in `MachineConfig`."""

    guest: str
    cbit: int
    memory: int
    vcpus: int
    budget: int
    coherent: bool
    sev: str = "sev"
    key: bytes | None = None
    cache: CacheModel = CacheModel.NONE
    cache_seed: int = 0


class GuestEntry(msgspec.Struct, frozen=True):
    """One line of `guestemu guests`."""

    name: str
    summary: str


def guests() -> tuple[GuestEntry, ...]:
    """All guests that can be run here, oldest kernel first, then the fetched kernels."""
    from guestemu.guest.linux.images import fetched_images

    snippets = tuple(GuestEntry(f"snippet:{row.name}", row.summary) for row in GENERATIONS.values())
    images = fetched_images()
    newest = {image.series: image for image in reversed(images)}
    return snippets + tuple(
        GuestEntry(f"linux:{series}", f"Debian's kernel {image.version}, booted; or linux:IMAGE")
        for series, image in sorted(newest.items(), key=lambda item: _numbers(item[0]))
    )


def _numbers(series: str) -> tuple[int, ...]:
    return tuple(int(part) for part in series.split("."))


def load_guest(settings: GuestSettings) -> Guest:
    """Boots a guest. Raises `InputError` for a name or a configuration that does not exist."""
    kind, _, generation = settings.guest.partition(":")
    if kind == "linux":
        return _load_linux(generation, settings)
    if kind == "userland":
        return _load_userland(generation, settings)
    if kind != "snippet" or generation not in GENERATIONS:
        names = [*(f"snippet:{name}" for name in GENERATIONS), "linux:IMAGE"]
        names.append("userland:DEVICE@IMAGE")
        raise InputError(
            f"guest {settings.guest!r}: no such guest; {nearest(settings.guest, names)}"
        )
    if settings.sev not in SNIPPET_STATUS:
        raise InputError(
            f"sev {settings.sev}: snippet guests run as plain SEV, SNP or TDX; write `sev sev`, "
            "`sev snp` or `sev tdx` in the header"
        )
    if settings.cbit not in range(32, 52):
        raise InputError(f"cbit {settings.cbit}: take a bit from 32 to 51 (39 is the fast one)")
    config = MachineConfig(
        frames=settings.memory << 20 >> PAGE_SHIFT,
        cbit=settings.cbit,
        vcpus=settings.vcpus,
        sev_status=SNIPPET_STATUS[settings.sev],
        coherent=settings.coherent,
        cache=settings.cache,
        cache_seed=settings.cache_seed,
        tdx=settings.sev == "tdx",
    )
    if settings.key is not None:
        config = msgspec.structs.replace(config, key=settings.key)
    return SnippetGuest(generation, config, settings.budget)


def _load_linux(image: str, settings: GuestSettings) -> Guest:
    """`linux:IMAGE`: booted once for each configuration in this process."""
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.load import BUDGET_FACTOR, LOADER, MIN_MEMORY, linux_config

    if settings.cache is not CacheModel.NONE:
        raise InputError(
            f"cache {settings.cache.value}: only snippet guests have it; write `cache none`"
        )
    memory = max(settings.memory, MIN_MEMORY)
    config = linux_config(memory, settings.cbit, settings.sev, settings.coherent)
    if settings.vcpus != 1:
        raise InputError(f"vcpus {settings.vcpus}: a linux guest has one; write `vcpus 1`")
    return LOADER.guest(find_image(image), config, settings.budget * BUDGET_FACTOR)


def _load_userland(spec: str, settings: GuestSettings) -> Guest:
    """`userland:DEVICE@IMAGE`: brought to user space once for each configuration in this
    process."""
    from guestemu.guest.linux.userland.guest import USERLAND
    from guestemu.guest.linux.userland.session import Setting

    if settings.cache is not CacheModel.NONE or settings.vcpus != 1:
        raise InputError(f"guest {settings.guest}: it has one vCPU and no caches; write `vcpus 1`")
    setting = Setting(sev=settings.sev, memory=settings.memory, cbit=settings.cbit)
    return USERLAND.guest(spec, setting, settings.budget)
