# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels as people build them: without types, without the names of data, with a map beside them.

The kernel is Debian's 6.12, with its .BTF section renamed and its own table of symbols damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from guestemu.abi.errors import InputError
from guestemu.abi.regions import Region
from guestemu.guest.linux.calls import KernelCalls
from guestemu.guest.linux.dma import KernelDma
from guestemu.guest.linux.guest import LinuxGuest, page_allocators
from guestemu.guest.linux.image import load_image
from guestemu.guest.linux.kernel import Kernel, load_kernel
from guestemu.guest.linux.load import LinuxLoader, linux_config
from guestemu.guest.linux.symbol_map import files_beside, fits, read_symbols
from guestemu.kernel.describe import upstream_version
from guestemu.study.outcomes.cells import ABSENT, Verdict, judge

DIGITS = b"".join(b"%d\0" % digit for digit in range(10))


def write_map(path: Path, symbols: Mapping[str, int]) -> None:
    path.write_text("".join(f"{address:016x} T {name}\n" for name, address in symbols.items()))


@pytest.fixture(scope="module")
def debian(image_of: Callable[[str], Path]) -> Kernel:
    return load_kernel(image_of("6.12"))


@pytest.fixture(scope="module")
def bare(image_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image in a build tree, without types and without names."""
    root = tmp_path_factory.mktemp("linux")
    image = root / "arch" / "x86" / "boot" / "bzImage"
    image.parent.mkdir(parents=True)
    elf = load_image(image_of("6.12")).elf.replace(b"\0.BTF\0", b"\0.XTF\0")
    image.write_bytes(elf.replace(DIGITS, b"0\0" + DIGITS[2:].replace(b"9", b"x")))
    return image


@pytest.mark.parametrize(
    ("version", "upstream"),
    [
        ("7.3.4-local", "7.3.4"),
        ("6.18.0-rc2+", "6.18.0-rc2"),
        ("6.1.192", "6.1.192"),
        ("odd", "odd"),
    ],
)
def test_the_upstream_version_is_in_front_of_a_name_of_one_s_own(
    debian: Kernel, version: str, upstream: str
) -> None:
    kernel = msgspec.structs.replace(debian, version=version)
    assert upstream_version(kernel, b"Linux version 7.3.4-local (me@here)") == upstream


def test_a_kernel_without_names_says_what_brings_them(bare: Path) -> None:
    with pytest.raises(InputError) as error:
        load_kernel(bare)
    assert "CONFIG_KALLSYMS_ALL=y" in str(error.value)
    assert "or the System.map or vmlinux of its build beside it" in str(error.value)


def test_a_map_in_the_build_tree_gives_the_names(bare: Path, debian: Kernel) -> None:
    root = bare.parents[3]
    write_map(root / "System.map", debian.symbols)
    try:
        kernel = load_kernel(bare)
    finally:
        (root / "System.map").unlink()
    assert kernel.symbols == debian.symbols
    assert kernel.sites == debian.sites
    assert (kernel.btf.size("page"), kernel.btf.offset("pt_regs.ip")) == (64, 128)
    assert (debian.btf.size("page"), debian.btf.offset("pt_regs.ip")) == (64, 128)


def test_a_map_of_another_build_is_not_taken(bare: Path, debian: Kernel) -> None:
    root = bare.parents[3]
    moved = {name: address + 0x1000 for name, address in debian.symbols.items()}
    write_map(root / "System.map", moved)
    try:
        with pytest.raises(InputError, match=r"System\.map beside it is of another build"):
            load_kernel(bare)
    finally:
        (root / "System.map").unlink()


def test_a_map_has_to_agree_with_the_names_of_the_image(debian: Kernel) -> None:
    own = {name: debian.symbols[name] for name in ("rest_init", "panic", "vmalloc_noprof")}
    assert fits(debian.symbols, own, has_banner=True)
    assert not fits(debian.symbols, own, has_banner=False)
    assert not fits({**debian.symbols, "panic": 1}, own, has_banner=True)
    without = {name: value for name, value in debian.symbols.items() if name != "physical_mask"}
    assert not fits(without, own, has_banner=True)


def test_maps_are_looked_for_where_builds_and_distributions_put_them(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz-6.12.1"
    for name in (image.name, "System.map-6.12.1", "System.map-6.12.2", "vmlinux"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in files_beside(image)] == ["System.map-6.12.1", "vmlinux"]
    assert [path.name for path in files_beside(tmp_path / "vmlinux")] == []


def test_a_damaged_vmlinux_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(InputError, match="its symbols cannot be read"):
        read_symbols(path)


@pytest.mark.soak
def test_a_kernel_without_types_converts_pages(bare: Path, debian: Kernel) -> None:
    root = bare.parents[3]
    write_map(root / "System.map", debian.symbols)
    guest = LinuxLoader().guest(bare, linux_config(128, 39, "sev"), 20_000_000)
    assert guest.set_memory_decrypted(guest.gva(Region.D, 8), 1).value == 0
    assert guest.set_memory_decrypted(guest.gva(Region.D, 8) + 1, 1).warnings

    def allocate() -> Verdict:
        _device(guest)
        return Verdict("allocated", "")

    verdict = judge(allocate)
    assert verdict.outcome == ABSENT
    assert "CONFIG_DEBUG_INFO_BTF=y" in verdict.detail


def _device(guest: LinuxGuest) -> KernelDma:
    calls: KernelCalls = guest.calls
    return KernelDma(guest.booted, calls)


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        ({"alloc_pages_noprof": 1, "alloc_pages_node_noprof": 2, "__alloc_pages_noprof": 3}, {1}),
        ({"__alloc_pages_noprof": 3}, {3}),
        ({"alloc_pages_node_noprof": 2, "__alloc_pages_noprof": 3}, {2, 3}),  # 7.3 without NUMA
        ({"alloc_frozen_pages_noprof": 4}, set()),
    ],
)
def test_a_split_takes_its_page_table_from_what_the_kernel_has(
    symbols: dict[str, int], expected: set[int]
) -> None:
    assert set(page_allocators(symbols)) == expected
