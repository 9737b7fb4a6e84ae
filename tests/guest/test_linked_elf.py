# SPDX-License-Identifier: GPL-2.0-or-later
"""Our reader of linked ELF files says what pyelftools says, and takes nothing damaged."""

from __future__ import annotations

from importlib.resources import files
from io import BytesIO

import pytest
from elftools.elf.elffile import ELFFile

from guestemu.abi.elf import ElfError, read_elf

MODES = (files("guestemu.machine.native") / "modes.elf").read_bytes()
IMAGES = {
    "modes": MODES,
    **{
        name: (files("guestemu.guest.snippet") / f"snippet-{name}.elf").read_bytes()
        for name in ("2020", "6.1", "6.12-snp")
    },
}


@pytest.mark.parametrize("name", IMAGES)
def test_parts_sections_and_symbols_are_those_of_pyelftools(name: str) -> None:
    image = IMAGES[name]
    elf = ELFFile(BytesIO(image))
    found = read_elf(image)
    assert found.symbols == {
        symbol.name: symbol["st_value"]
        for symbol in elf.get_section_by_name(".symtab").iter_symbols()
        if symbol["st_info"]["bind"] == "STB_GLOBAL"
    }
    assert [(part.address, part.data, part.size, part.flags) for part in found.parts] == [
        (part["p_paddr"], part.data(), part["p_memsz"], part["p_flags"])
        for part in elf.iter_segments("PT_LOAD")
        if part["p_memsz"]
    ]
    text = elf.get_section_by_name(".text")
    assert found.sections[".text"] == (text["sh_addr"], text.data())


def test_a_cut_file_is_refused() -> None:
    for size in range(0, len(MODES), 61):
        with pytest.raises(ElfError, match=r"no 64-bit ELF file|damaged: "):
            read_elf(MODES[:size])


def test_no_changed_byte_of_the_header_makes_anything_but_a_refusal() -> None:
    for place in range(64):
        changed = bytearray(MODES)
        changed[place] ^= 0xFF
        try:
            read_elf(bytes(changed))
        except ElfError:
            continue
