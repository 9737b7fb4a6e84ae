# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration that a kernel was built with."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Final

from guestemu.guest.linux.image import package_file

_IKCONFIG: Final = b"IKCFG_ST"
_ASSIGNMENT: Final = re.compile(r"^(CONFIG_\w+)=(.*)$", re.MULTILINE)
_MAX_CONFIG: Final = 4 << 20

RELEVANT: Final = (
    "CONFIG_AMD_MEM_ENCRYPT",
    "CONFIG_KVM_GUEST",
    "CONFIG_PARAVIRT",
    "CONFIG_PARAVIRT_XXL",
    "CONFIG_INTEL_TDX_GUEST",
    "CONFIG_HYPERV",
    "CONFIG_EFI",
    "CONFIG_SWIOTLB",
    "CONFIG_DMA_COHERENT_POOL",
    "CONFIG_DEBUG_PAGEALLOC",
    "CONFIG_KALLSYMS_ALL",
    "CONFIG_DEBUG_INFO_BTF",
    "CONFIG_RANDOMIZE_BASE",
    "CONFIG_SMP",
    "CONFIG_HOTPLUG_CPU",
)
"""What the page-encryption paths and this emulator depend on."""


def kernel_config(path: Path, elf: bytes) -> dict[str, str]:
    """Every CONFIG_ symbol that is set: from the image itself (CONFIG_IKCONFIG), else from the
    package's /boot/config-*; empty if neither has it.

    A linux-binary-* package has none. Its linux-base-* is looked for beside it, where `kernel
    fetch` puts it.
    """
    text = _embedded(elf)
    if text is None:
        base = path.with_name(path.name.replace("linux-binary-", "linux-base-", 1))
        found = package_file(base if base.exists() else path, ("config-", "config"))
        text = found.decode("utf-8", "replace") if found is not None else ""
    return dict(_ASSIGNMENT.findall(text))


def _embedded(elf: bytes) -> str | None:
    start = elf.find(_IKCONFIG + b"\x1f\x8b")
    if start < 0:
        return None
    try:
        data = zlib.decompressobj(31).decompress(elf[start + len(_IKCONFIG) :], _MAX_CONFIG)
    except zlib.error:
        return None
    return data.decode("utf-8", "replace")
