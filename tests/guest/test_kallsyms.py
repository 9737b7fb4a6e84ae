# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol reader over tables of every layout and every length: nothing depends on padding."""

from __future__ import annotations

import pytest

from guestemu.abi.errors import InputError
from guestemu.guest.linux.kallsyms import read_kallsyms
from tests.guest.kallsyms_tables import (
    ADDRESS,
    PER_CPU,
    TEXT,
    Layout,
    name_of,
    tokens,
    write_tables,
)

SYMBOLS = 1024


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("rest", range(8))
def test_tables_of_every_length_are_found(layout: Layout, rest: int) -> None:
    # the number of symbols moves the end of the order (3 bytes each), of markers and offsets; the
    # longer name moves the end of the names; the tokens move the end of token_table
    names = [name_of(number) for number in range(SYMBOLS + rest)]
    names[7] = name_of(7, rest)
    table = tokens(b"set_memory_"[: rest + 1])
    data, symbols = write_tables(layout, names, table, lead=rest)

    assert read_kallsyms(data, ADDRESS, "vmlinux") == symbols


@pytest.mark.parametrize("rest", range(8))
def test_the_order_of_names_may_end_on_the_boundary_without_a_nul(rest: int) -> None:
    # as in a 6.1 of one's own: the byte before token_table belongs to the table before it
    names = [name_of(number) for number in range(SYMBOLS + rest)]
    data, symbols = write_tables(Layout.WITH_ORDER, names, tokens())
    before = data[: data.index(b"set_\0" + tokens()[1] + b"\0")]
    assert (before[-1] != 0) == (3 * len(names) % 8 == 0)

    assert read_kallsyms(data, ADDRESS, "vmlinux") == symbols


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("length", [0, 200, 1000])
def test_names_of_two_byte_lengths_and_an_empty_first_token(layout: Layout, length: int) -> None:
    names = [name_of(number) for number in range(SYMBOLS)]
    names[100] = name_of(100, length)
    data, symbols = write_tables(layout, names, tokens(b""))

    assert read_kallsyms(data, ADDRESS, "vmlinux") == symbols


@pytest.mark.parametrize("layout", Layout)
def test_a_name_longer_than_any_of_a_kernel_is_cut(layout: Layout) -> None:
    names = [name_of(number) for number in range(SYMBOLS)]
    names[100] = name_of(100, 5000)
    data, symbols = write_tables(layout, names, tokens(b""))

    found = read_kallsyms(data, ADDRESS, "vmlinux")

    assert found == {name[:1023]: address for name, address in symbols.items()}


@pytest.mark.parametrize("layout", Layout)
def test_per_cpu_variables_are_offsets_where_the_kernel_keeps_them_so(layout: Layout) -> None:
    data, _symbols = write_tables(layout, [name_of(n) for n in range(SYMBOLS)], tokens())

    first = read_kallsyms(data, ADDRESS, "vmlinux")[name_of(0)]

    assert first == (PER_CPU if layout.has_per_cpu else TEXT)


@pytest.mark.parametrize("layout", Layout)
def test_a_second_set_of_tokens_in_front_does_not_mislead(layout: Layout) -> None:
    names = [name_of(number) for number in range(SYMBOLS)]
    digits = b"\0".join(b"%d" % digit for digit in range(10))
    decoy = b"\0".join(tokens()[1:40]) + b"\0" + digits + b"\0"
    data, symbols = write_tables(layout, names, tokens(), lead=0)
    lead = decoy.ljust(4096, b"\x5a")

    assert read_kallsyms(lead + data, ADDRESS - len(lead), "vmlinux") == symbols


@pytest.mark.parametrize("layout", Layout)
def test_addresses_out_of_order_are_not_a_table(layout: Layout) -> None:
    names = [name_of(number) for number in range(SYMBOLS)]
    data, _symbols = write_tables(layout, names, tokens())
    if layout in {Layout.OFFSETS_FIRST, Layout.WITH_ORDER}:
        place = 4 * (SYMBOLS // 2)
    else:
        place = data.index(b"".join(map(bytes, ([0, 0], [5, 0])))) + 512 + 4 * (SYMBOLS // 2)
    broken = data[:place] + b"\xff\xff\xff\x7f" + data[place + 4 :]

    with pytest.raises(InputError, match=r"^vmlinux: no kallsyms tables found"):
        read_kallsyms(broken, ADDRESS, "vmlinux")


@pytest.mark.parametrize("layout", Layout)
def test_tables_that_end_early_are_refused(layout: Layout) -> None:
    data, _symbols = write_tables(layout, [name_of(n) for n in range(SYMBOLS)], tokens())

    for end in range(0, len(data) - 8 * SYMBOLS, 997):
        with pytest.raises(InputError, match="no kallsyms tables found"):
            read_kallsyms(data[:end], ADDRESS, "vmlinux")
