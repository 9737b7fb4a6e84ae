# SPDX-License-Identifier: GPL-2.0-or-later
"""Defects of Linux that are known, by what shows them: since when, and where in the source.

docs/findings.md tells of each. `shows` are the cells of the battery in which a defect turns up
besides the experiment of its own (outcomes/defects.py): guest kinds, rows, whether the host's
answer matters, and a word of what was wrong (outcomes/battery.py).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from guestemu.study.outcomes.cells import Key

_SEV: Final = frozenset({"sev", "es"})
_SNP: Final = frozenset({"snp"})
_TDX: Final = frozenset({"tdx"})
_ANY: Final = _SEV | _SNP | _TDX
_MEM_ENCRYPT: Final = "arch/x86/mm/mem_encrypt_amd.c"
_SET_MEMORY: Final = "arch/x86/mm/pat/set_memory.c"
_KVM: Final = "arch/x86/kernel/kvm.c"
_SEV_CORE: Final = "arch/x86/coco/sev/core.c"
_TDX_CODE: Final = "arch/x86/coco/tdx/tdx.c"


class Shows(msgspec.Struct, frozen=True):
    """Cells: of these `kinds` and `rows` (none: any), whose wrong has one of `words`. `refused`:
    those in which the host answers something else than 0, or those in which it agrees."""

    kinds: frozenset[str]
    rows: frozenset[str]
    words: frozenset[str]
    refused: bool = False

    def fits(self, key: Key, words: Collection[str]) -> bool:
        """Whether a cell at `key` with these words is one of them."""
        return (
            key.kind in self.kinds
            and (not self.rows or key.row in self.rows)
            and bool(key.answer) is self.refused
            and not self.words.isdisjoint(words)
        )


class KnownDefect(msgspec.Struct, frozen=True):
    """One defect: its row, a sentence, the first kernel that has it as far as is known, and the
    function in the source."""

    name: str
    sentence: str
    since: str
    source: str
    shows: tuple[Shows, ...] = ()


def _shows(kinds: frozenset[str], rows: str, words: str, refused: bool = False) -> Shows:
    return Shows(kinds, frozenset(rows.split()), frozenset(words.split()), refused)


KNOWN: Final = (
    KnownDefect(
        "never-told",
        "Pages are converted and the host is not told",
        "before 5.16",
        f"set_memory_decrypted(), {_SET_MEMORY}",
        (_shows(_SEV, "", "untold"), _shows(_SEV, "", "untold", refused=True)),
    ),
    KnownDefect(
        "told-of-failure",
        "The host is told of a conversion that failed",
        "not in a release",
        f"__set_memory_enc_pgtable(), {_SET_MEMORY}",
    ),
    KnownDefect(
        "2gib-overflow",
        "2 GiB and more in one call are not told to the host",
        "5.16",
        f"enc_dec_hypercall(), {_MEM_ENCRYPT}",
    ),
    KnownDefect(
        "frame-0",
        "A range that holds frame 0 never returns",
        "5.16",
        f"enc_dec_hypercall(), {_MEM_ENCRYPT}",
        (_shows(_SEV, "hole-first", "no-progress progress"),),
    ),
    KnownDefect(
        "hole-mapped",
        "A hole in the range is mapped to another frame",
        "5.10 or before",
        f"__cpa_process_fault(), {_SET_MEMORY}",
        (_shows(_ANY, "hole hole-first", "frames value"),),
    ),
    KnownDefect(
        "half-way",
        "A change that fails half-way is neither told nor taken back",
        "5.16",
        f"__set_memory_enc_pgtable(), {_SET_MEMORY}",
        (_shows(_ANY, "fail-second-split", "record state"),),
    ),
    KnownDefect(
        "early-page-more",
        "early_set_memory_* converts a page too many",
        "5.16 to 6.1.52",
        f"early_set_memory_enc_dec(), {_MEM_ENCRYPT}",
    ),
    KnownDefect(
        "early-buffer",
        "Built with clang: an early conversion copies without its buffer and loses the bytes",
        "6.1 or before",
        f"__sme_early_enc_dec(), {_MEM_ENCRYPT}",
        (_shows(_SEV, "early-content", "one-byte"),),
    ),
    KnownDefect(
        "refusal-ignored",
        "The host's refusal is ignored",
        "5.16",
        f"kvm_sev_hc_page_enc_status(), {_KVM}",
        (_shows(_SEV, "", "status record silent", refused=True),),
    ),
    KnownDefect(
        "cpu-offline",
        "A CPU that goes off line disables migration for good",
        "5.17",
        f"kvm_guest_cpu_offline(), {_KVM}",
    ),
    KnownDefect(
        "kexec-stale",
        "After kexec, RAM that starts inside a page stays shared",
        "5.17",
        f"kvm_init_platform(), {_KVM}",
    ),
    KnownDefect(
        "bss-decrypted",
        ".bss..decrypted is given back page by page",
        "5.16",
        f"mem_encrypt_free_decrypted_mem(), {_MEM_ENCRYPT}",
    ),
    KnownDefect(
        "dma-pool-pages",
        "dma_alloc_pages() returns no struct page",
        "5.10, 6.16 to 7.0",
        "dma_direct_alloc_pages(), kernel/dma/direct.c",
        (_shows(_ANY, "dma-pages-atomic", "no-progress progress oops value warn"),),
    ),
    KnownDefect(
        "snp-repeat",
        "SNP: a page that is converted to what it is ends the guest",
        "6.12 or before",
        f"pvalidate_pages(), {_SEV_CORE}",
        (_shows(_SNP, "decrypt-again encrypt-again in-shared-leaf", "oops terminated"),),
    ),
    KnownDefect(
        "snp-early-encrypt",
        "SNP: early_set_memory_encrypted() of a shared page is an oops",
        "6.12 or before",
        f"__set_clr_pte_enc(), {_MEM_ENCRYPT}",
        (
            _shows(_SNP, "early-encrypt", "oops"),
            _shows(_SNP, "early-encrypt", "oops", refused=True),
        ),
    ),
    KnownDefect(
        "snp-split-failure",
        "SNP: a page is given to the host before a change that can fail",
        "6.12 or before",
        f"__set_memory_enc_pgtable(), {_SET_MEMORY}",
        (_shows(_SNP, "fail-split", "record state"),),
    ),
    KnownDefect(
        "snp-hole",
        "SNP: converting a range with a hole is an oops",
        "6.12 or before",
        f"pvalidate_pages(), {_SEV_CORE}",
        (_shows(_SNP, "hole hole-first", "oops"),),
    ),
    KnownDefect(
        "snp-boot-refused",
        "SNP: a request that is refused early in the boot is a triple fault",
        "6.1 or before, to 6.12",
        f"early_set_pages_state(), {_SEV_CORE}",
        (_shows(_SNP, "boot", "shutdown", refused=True),),
    ),
    KnownDefect(
        "td-boot-refused",
        "TDX: swiotlb is used although its conversion was refused",
        "6.12 or before, to 6.18",
        "swiotlb_update_mem_attributes(), kernel/dma/swiotlb.c",
        (_shows(_TDX, "boot", "silent", refused=True),),
    ),
    KnownDefect(
        "td-repeat",
        "TDX: set_memory_encrypted() of private pages fails with a warning",
        "6.12 or before",
        f"tdx_enc_status_changed(), {_TDX_CODE}",
        (_shows(_TDX, "encrypt-again", "value warn"),),
    ),
    KnownDefect(
        "td-no-pages",
        "TDX: a conversion of no pages fails with a warning",
        "6.12 or before",
        f"tdx_enc_status_changed(), {_TDX_CODE}",
        (_shows(_TDX, "no-pages", "value warn"),),
    ),
    KnownDefect(
        "td-vmalloc",
        "TDX: a vmalloc or vmap range is reported by a wrong address",
        "6.12 or before",
        f"tdx_enc_status_changed(), {_TDX_CODE}",
        (_shows(_TDX, "alias vmalloc", "value record state"),),
    ),
)
"""Every one, in the order of the table."""

BY_NAME: Final = {known.name: known for known in KNOWN}


_BY_DETAIL: Final = sorted(KNOWN, key=lambda known: any(not one.rows for one in known.shows))
"""Defects that show in rows of their own first, those that show in any row last."""


def find_known(key: Key, words: Collection[str]) -> str:
    """The known defect that a wrong with these `words` at `key` shows; "" for a new one."""
    for known in _BY_DETAIL:
        if any(shows.fits(key, words) for shows in known.shows):
            return known.name
    return ""
