# SPDX-License-Identifier: GPL-2.0-or-later
"""Snippet guests do what the real kernels of their generation do, program by program.

Compared for each op: value, end, whether it warned, exits with their answers, C-bit changes and how
many exits came before each. Known differences are named below with their reason.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from comparison import is_comparable, stories, story
from drawn import generate_program

from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.host.registry import load_host
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header, SevKind
from guestemu.program.text import load_program, parse_text
from guestemu.runner.testbed import Testbed, build_testbed
from tests.linux.newest import expected

CORPUS = sorted(Path(__file__).parents[2].joinpath("corpora/conversion").glob("*.prog"))
BUDGET = 1_000_000
KERNEL_BUDGET = 1_500_000
SEEDS = range(40)
NEWEST_SNIPPET = "7.3"
"""Beside the newest series that Debian offers."""

A9 = "early_set_memory_* of an unaligned start: fixed in 6.1.53, the snippet models 6.1.20 (M1)"
DIFFERS = {"early-unaligned-6.1": A9, "early-per-cpu": A9}
"""Programs whose stories differ on 6.1, and why."""

HAND_WRITTEN = {
    "round trip over a leaf boundary": """
set_memory_decrypted L[500] pages=24
write L[500] value=0x41 size=4096
read L[500]
set_memory_encrypted L[500] pages=24
read L[500]
""",
    "alias and direct map in turns": """
set_memory_decrypted V[3] pages=4
set_memory_encrypted D[4] pages=2
write V[3] value=0x5a
read D[3]
set_memory_encrypted V[3] pages=4
""",
    "hole behind the first page": """
unmap D[11]
set_memory_decrypted D[10] pages=4
write D[12] value=0x11
""",
    "split fails, then works": """
fail_split after=0
set_memory_decrypted L[700] pages=1
set_memory_decrypted L[700] pages=1
set_memory_encrypted L[512] pages=512
""",
    "the host refuses, the guest goes on": """
answer value=0xffffffffffffffea count=2
set_memory_decrypted D[20] pages=4
set_memory_encrypted D[20] pages=4
""",
    "nothing and too little": """
set_memory_decrypted D[30] pages=0
set_memory_decrypted D[31] pages=1 offset=0x800
set_memory_decrypted D[32] pages=1 offset=0x800
""",
    "off line, then converts": """
cpu_offline
set_memory_decrypted D[40] pages=1
rdmsr msr=0x4b564d08
""",
    "conversions stopped": """
stop_conversion
set_memory_decrypted D[50] pages=1
""",
}


@pytest.fixture(params=("6.1", pytest.param("6.12", marks=pytest.mark.soak), NEWEST_SNIPPET))
def series(request):
    return request.param


@pytest.fixture
def pair(series, image_of):
    """A snippet and a kernel of the same generation under hosts of the same kind."""
    kernel = expected().series if series == NEWEST_SNIPPET else series
    guest = LOADER.guest(image_of(kernel), linux_config(128, 39, "sev"), KERNEL_BUDGET)
    snippet = build_testbed(Header(guest=f"snippet:{series}", memory=128, budget=BUDGET))
    yield snippet, Testbed(guest, load_host("map-gpa-range", ()))
    snippet.guest.close()
    guest.reset()


def is_a9(op: Op, series: str) -> bool:
    return (
        series == "6.1"
        and op.kind in (OpKind.EARLY_SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_DECRYPTED)
        and op.arguments[1] != 0
    )


def test_corpus_programs_tell_the_same_story(series, pair):
    seen: set[tuple[Op, ...]] = set()
    for path in CORPUS:
        program = load_program(path)
        ops = program.ops
        if ops in seen or not all(map(is_comparable, ops)):
            continue
        seen.add(ops)
        ours, theirs = stories(*pair, ops)
        is_known = series == "6.1" and any(is_a9(op, series) for op in ops)
        assert (ours != theirs) == is_known, path.name
    assert len(seen) >= 25


def test_the_named_differences_are_there(pair, series):
    for name, reason in DIFFERS.items():
        ops = load_program(CORPUS[0].parent / f"{name}.prog").ops
        ours, theirs = stories(*pair, ops)
        assert (ours == theirs) == (series != "6.1"), reason


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_hand_written_programs_tell_the_same_story(name, pair):
    ops = parse_text(f"guestemu-program 1\n---{HAND_WRITTEN[name]}", name).ops
    ours, theirs = stories(*pair, ops)
    assert ours == theirs


def test_random_programs_tell_the_same_story(series, pair):
    for seed in SEEDS:
        program = generate_program(seed, Header(memory=128))
        ops = tuple(op for op in program.ops if is_comparable(op) and not is_a9(op, series))
        ours, theirs = stories(*pair, ops)
        assert ours == theirs, f"seed {seed}"


def test_a_story_depends_on_the_program_alone(pair):
    ops = parse_text("guestemu-program 1\n---\nset_memory_decrypted D[3] pages=2\n", "x").ops
    _, linux = pair
    first = story(linux, ops)
    linux.run(parse_text("guestemu-program 1\n---\nwrite D[3] value=1\nunmap D[9]\n", "y").ops)
    assert story(linux, ops) == first


def test_host_and_page_tables_agree_when_a_program_starts(pair):
    """But for .bss..decrypted: shared in the kernel image's mapping and for the host, while the
    direct map keeps its C-bit (A35)."""
    _, linux = pair
    linux.reset()
    difference = linux.host.private_map() ^ linux.guest.leaf_map.private
    [bss] = [told.args for told in linux.guest.boot_exits if told.args[1:3] == (512, 0)][:1]
    expected = range(bss[0] >> 12, (bss[0] >> 12) + 512)
    assert set(difference.search(1)) == set(expected)
    assert linux.host.migration_ready


EARLY_IN_A_TD = """
early_set_memory_decrypted D[3] size=8192 offset=0
unmap D[11]
early_set_memory_decrypted D[11] size=4096 offset=0
early_set_memory_encrypted D[10] size=12288 offset=0x800
early_set_memory_decrypted L[700] size=4096 offset=0
write D[3] value=0x41 size=4096
read D[3]
"""


def test_early_conversions_in_a_td_tell_the_same_story(image_of):
    """Nothing is converted there, but a hole is an error: early_set_memory_enc_dec() looks up the
    entries before it changes none of them."""
    ops = parse_text(f"guestemu-program 1\n---{EARLY_IN_A_TD}", "early").ops
    header = Header(guest="snippet:6.12", sev=SevKind.TDX, memory=128, budget=BUDGET)
    snippet = build_testbed(header)
    kernel = LOADER.guest(image_of("6.12"), linux_config(128, 39, "tdx"), KERNEL_BUDGET)
    ours, theirs = stories(snippet, Testbed(kernel, load_host("map-gpa-range", ())), ops)
    snippet.guest.close()
    kernel.reset()
    assert ours == theirs
    assert [line[1] for line in ours[:5]] == [0, 1, 1, 1, 0]
