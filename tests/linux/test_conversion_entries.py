# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu kernel entries`: which functions of a kernel convert pages, and who reaches them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.cli import _kernel_entries
from guestemu.cli._kernel_entries import KernelEntries
from guestemu.guest.linux.load import LOADER
from guestemu.study.outcomes.cells import BEGIN, END
from guestemu.study.outcomes.entries import ConversionEntry, Reached, find_entries, measure_entries


def entries_of(kernel: str, *entries: ConversionEntry) -> KernelEntries:
    return KernelEntries(kernel=kernel, version=f"{kernel}.0", entries=entries)


FOUND = (
    entries_of(
        "6.1",
        ConversionEntry(function="free_page", calls=("set_memory_encrypted",), needs="a reason"),
        ConversionEntry(
            function="make_page.isra.0",
            calls=("set_memory_decrypted",),
            reached=(Reached("sev", "dma"), Reached("es", "dma"), Reached("sev", "boot")),
        ),
    ),
    entries_of(
        "7.3",
        ConversionEntry(function="make_page", calls=("accept_memory",)),
        ConversionEntry(function="new_page", calls=("accept_memory",)),
    ),
)


def test_kernels_are_one_table_by_function() -> None:
    assert _kernel_entries.table(FOUND) == [
        ("free_page", "6.1", "set_memory_encrypted", "none: for a reason"),
        (
            "make_page",
            "6.1, 7.3",
            "set_memory_decrypted, accept_memory",
            "dma (sev es); boot (sev)",
        ),
        ("new_page", "7.3", "accept_memory", "no row"),
    ]


def test_the_table_takes_the_place_of_the_one_in_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN.format(command=_kernel_entries.COMMAND)}\nold\n{END}\nafter\n")
    _kernel_entries.write_table(page, FOUND)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-2:]) == ("before", [END, "after"])
    assert lines[2] == "| function | kernels | converts by | rows |"
    assert lines[4] == "| `free_page` | 6.1 | set_memory_encrypted | none: for a reason |"
    page.write_text("no place\n")
    with pytest.raises(InputError, match="has no place for this table"):
        _kernel_entries.write_table(page, FOUND)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="--kind sew: did you mean sev"):
        _kernel_entries.find([], ["sew"])


def test_calls_are_found_in_the_code(image_of: Callable[[str], Path]) -> None:
    image = image_of("6.12")
    entries = {entry.function: entry for entry in find_entries(image, LOADER.kernel(image))}
    assert entries["swiotlb_update_mem_attributes"].calls == ("set_memory_decrypted",)
    assert entries["atomic_pool_expand"].calls == ("set_memory_decrypted", "set_memory_encrypted")
    assert entries["kvm_init_platform"].calls == ("early_set_mem_enc_dec_hypercall",)
    assert entries["swiotlb_exit"].needs == "a guest that bounces nothing"
    assert "set_memory_decrypted" not in entries


@pytest.mark.soak
def test_each_is_reached_or_has_a_reason(series: str, image_of: Callable[[str], Path]) -> None:
    _, entries = measure_entries(image_of(series), ["sev", "snp"], lambda _kind: None)
    unknown = [one.function for one in entries if not (one.reached or one.needs)]
    assert [name for name in unknown if not name.startswith("tdx_")] == []
    by_name = {entry.function: entry.reached for entry in entries}
    assert Reached("sev", "boot") in by_name["swiotlb_update_mem_attributes"]
    assert Reached("sev", "dma") in by_name["dma_direct_alloc"]
    assert Reached("snp", "decrypt") in by_name["amd_enc_status_change_prepare"]
    assert Reached("sev", "bss") in by_name["mem_encrypt_free_decrypted_mem"]
