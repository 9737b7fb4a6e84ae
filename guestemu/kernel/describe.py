# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel is: the functions that matter here, and the behaviour that follows from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.guest.linux.kernel import Kernel

SYMBOLS: Final = (
    "set_memory_decrypted",
    "set_memory_encrypted",
    "early_set_memory_decrypted",
    "early_set_memory_encrypted",
    "__set_memory_enc_pgtable",
    "__change_page_attr_set_clr",
    "cpa_flush",
    "amd_enc_status_change_prepare",
    "amd_enc_status_change_finish",
    "enc_dec_hypercall",
    "kvm_sev_hc_page_enc_status",
    "kvm_init_platform",
    "kvm_guest_cpu_offline",
    "set_memory_enc_stop_conversion",
    "dma_alloc_attrs",
    "dma_free_attrs",
    "dma_atomic_pool_init",
    "swiotlb_update_mem_attributes",
    "rest_init",
)

_FIXED_A9: Final = {(6, 1): 53, (6, 4): 16, (6, 5): 3}
_FIRST_FIXED_A9: Final = (6, 6)
_GUEST_HALF: Final = (5, 16)
_CALLBACKS: Final = (5, 19)


class Fact(msgspec.Struct, frozen=True):
    """A behaviour of this kernel, by the number it has in the documentation of the checks."""

    id: str
    text: str


def version_numbers(version: str) -> tuple[int, int, int]:
    """The first three numbers: (6, 12, 117) for 6.12.117+deb12; zeros where there are none."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if match is None:
        return 0, 0, 0
    return int(match[1]), int(match[2]), int(match[3] or 0)


def upstream_version(kernel: Kernel, elf: bytes) -> str:
    """The upstream version: Debian names it in the banner only ("Debian 6.1.192-2")."""
    banner = re.search(rb"Linux version \d[^\n\0]{0,400}", elf)
    names = re.findall(rb"Debian (\d+\.\d+\.\d+)", banner.group()) if banner else []
    series = kernel.version.split(".")[:2]
    for name in reversed(names):
        if name.decode().split(".")[:2] == series:
            return str(name.decode())
    return kernel.version


def facts_of(kernel: Kernel, upstream: str) -> tuple[Fact, ...]:
    """The behaviours that the symbols and the version of `kernel` imply."""
    major, minor, patch = version_numbers(upstream)
    version = (major, minor)

    def has(name: str) -> bool:
        return name in kernel.symbols

    fixed_in = _FIXED_A9.get(version)
    is_fixed = version >= _FIRST_FIXED_A9 or (fixed_in is not None and patch >= fixed_in)
    rules: tuple[tuple[Callable[[], bool], str, str], ...] = (
        (lambda: version < _GUEST_HALF, "A10", "converts pages and never tells the host"),
        (
            lambda: _GUEST_HALF <= version < _CALLBACKS,
            "A12",
            "tells the host also when the page-table change failed",
        ),
        (
            lambda: has("amd_enc_status_change_finish"),
            "A17",
            "the host's answer to a notification is ignored",
        ),
        (
            lambda: has("amd_enc_status_change_finish"),
            "A19",
            "a change that fails half-way is not told to the host and not rolled back",
        ),
        (
            lambda: has("enc_dec_hypercall"),
            "A14",
            "a range that starts at frame 0 or at a hole loops for ever",
        ),
        (
            lambda: has("enc_dec_hypercall"),
            "A20",
            "2 GiB and more in one call: converted, not told to the host, success",
        ),
        (
            lambda: has("__change_page_attr_set_clr"),
            "A26c",
            "a hole in the range is mapped to frame 0 instead of refused",
        ),
        (
            lambda: has("enc_dec_hypercall") and not is_fixed,
            "A9",
            "early_set_memory_*: one page too many for an unaligned start (CVE-2023-53996)",
        ),
        (
            lambda: has("kvm_guest_cpu_offline"),
            "A44",
            "a CPU that goes off line disables migration, nothing enables it again",
        ),
        (
            lambda: has("set_memory_enc_stop_conversion"),
            "A21",
            "conversions take mem_enc_lock: -EBUSY after set_memory_enc_stop_conversion()",
        ),
    )
    return tuple(Fact(number, text) for holds, number, text in rules if holds())
