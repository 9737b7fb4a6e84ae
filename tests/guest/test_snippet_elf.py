# SPDX-License-Identifier: GPL-2.0-or-later
"""The committed ELF files: what the loader reads from them, and that they match their sources."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.guest.snippet.elf import (
    SNP_IMAGE,
    TDX_IMAGE,
    assembly_of,
    load_snippet,
    parse_snippet,
)
from guestemu.guest.snippet.generations import GENERATIONS
from guestemu.guest.snippet.info import E820_ENTRIES, INFO_SIZE, OFFSETS, InfoBlock
from guestemu.machine.assemble import SNIPPETS, SOURCES, AssemblySource, build

CODE = {
    "vmmcall": {b"\x0f\x01\xd9", b"\x0f\x01\xc1"},
    "msr": {b"\x0f\x30", b"\x0f\x32"},
}


def code_at(generation: str, address: int, size: int) -> bytes:
    for segment in load_snippet(generation).segments:
        offset = address - segment.address
        if 0 <= offset < len(segment.data):
            return segment.data[offset : offset + size]
    raise AssertionError(f"{address:#x} is in no segment")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_info_offsets_are_those_of_the_assembly(generation: str) -> None:
    symbols = load_snippet(generation).symbols
    exported = {
        name.removeprefix("INFO_"): value
        for name, value in symbols.items()
        if name.startswith("INFO_") and name != "INFO_SIZE"
    }
    assert exported == OFFSETS
    assert symbols["INFO_SIZE"] == INFO_SIZE


@pytest.mark.parametrize("generation", GENERATIONS)
def test_segments_are_low_and_on_pages_of_their_own(generation: str) -> None:
    image = load_snippet(generation)
    assert image.segments[0].address == 0x10000
    assert [(s.is_code, s.is_writable) for s in image.segments] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    pages = [
        page
        for s in image.segments
        for page in range(s.address >> 12, (s.address + s.size + 0xFFF) >> 12)
    ]
    assert len(pages) == len(set(pages))
    assert max(pages) < 0x30
    data = image.segments[2]
    assert data.address <= image.info < image.info + INFO_SIZE <= data.address + len(data.data)
    assert image.symbols["early_buffer"] % 4096 == 0
    assert image.symbols["early_buffer"] + 4096 <= data.address + data.size


@pytest.mark.parametrize("generation", GENERATIONS)
def test_sites_are_the_instructions_they_name(generation: str) -> None:
    image = load_snippet(generation)
    for site in image.vmmcall_sites:
        assert code_at(generation, site, 3) in CODE["vmmcall"]
    for site in image.msr_sites:
        assert code_at(generation, site, 2) in CODE["msr"]
    text = image.segments[0].data
    assert len(image.vmmcall_sites) == sum(text.count(code) for code in CODE["vmmcall"])
    assert len(image.msr_sites) == sum(text.count(code) for code in CODE["msr"])
    for address in image.warnings:
        assert code_at(generation, address, 2) == b"\x0f\x0b"
    for name, code in {
        "stub_vmmcall": b"\x0f\x01\xd9\xf4",
        "stub_vmcall": b"\x0f\x01\xc1\xf4",
        "stub_rdmsr": b"\x0f\x32\xf4",
        "stub_wrmsr": b"\x0f\x30\xf4",
        "guest_return": b"\xf4",
        "guest_oops": b"\xf4",
    }.items():
        assert code_at(generation, image.address(name), len(code)) == code


def test_each_generation_has_its_own_warnings() -> None:
    common = {"misaligned", "unchecked_msr"}
    merged = common | {"lookup", "level"}
    assert {name: set(load_snippet(name).warnings.values()) for name in GENERATIONS} == {
        "5.10": common,
        "2020": common,
        "5.17": merged,
        "6.1": merged,
        "6.12": merged | {"vmm_fail"},
        "7.3": merged | {"vmm_fail"},
    }


def test_every_generation_has_a_source() -> None:
    named = dict.fromkeys(assembly_of(name) for name in GENERATIONS)
    assert (*named, TDX_IMAGE, SNP_IMAGE) == SNIPPETS


def test_unknown_names_are_refused_with_the_choice() -> None:
    with pytest.raises(InputError, match=r"'7\.0'.*5\.10, 2020, 5\.17, 6\.1, 6\.12, 7\.3"):
        load_snippet("7.0")
    with pytest.raises(InputError, match="no symbol 'set_memory_enc_stop_conversion'"):
        load_snippet("6.1").address("set_memory_enc_stop_conversion")
    assert load_snippet("6.12").address("set_memory_enc_stop_conversion")


def test_foreign_files_are_refused() -> None:
    with pytest.raises(InputError, match="not an ELF file"):
        parse_snippet("x", b"MZ" + bytes(100))
    modes = next(source for source in SOURCES if source.path.endswith("modes.S"))
    with pytest.raises(InputError, match="symbol 'exception_31' is missing"):
        parse_snippet("x", modes.output.read_bytes())


def test_a_memory_map_with_too_many_lines_is_refused() -> None:
    class Nothing:
        def read_u64(self, gpa: int) -> int:
            return 0

        def write_u64(self, gpa: int, value: int) -> None:
            raise AssertionError

    lines = [(n << 20, 1 << 20, 1) for n in range(E820_ENTRIES + 1)]
    with pytest.raises(InputError, match=r"9 lines.*room for 8"):
        InfoBlock(Nothing(), load_snippet("6.1").info).write_e820(lines)


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("ld")), reason="needs binutils")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.path)
def test_committed_files_are_what_their_sources_build(
    source: AssemblySource, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.elf", tmp_path / "second.elf"
    build(source, first)
    build(source, second)
    assert first.read_bytes() == second.read_bytes()
    assert str(tmp_path).encode() not in first.read_bytes()
    if "snippet" in source.path:
        # Contents, not bytes: another binutils may order its tables differently.
        built = parse_snippet("x", first.read_bytes())
        committed = parse_snippet("x", source.output.read_bytes())
        assert built == committed
    else:
        assert first.read_bytes() == source.output.read_bytes()
