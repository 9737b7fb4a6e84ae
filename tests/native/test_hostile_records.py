# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes and exits that nobody would write do the fast path no harm. `make sanitize` runs this file
with ASan and UBSan, and longer."""

from __future__ import annotations

import ctypes
import os
import random

import pytest
from scene import FIRST, FRAMES, PAGES, U64, NativeJudge, Scene

from guestemu.campaign.fastpath.fastpath import open_fast_path
from guestemu.campaign.session import Plan, Session
from guestemu.campaign.targets import find_target
from guestemu.native import build
from guestemu.program.binary import RECORD_SIZE
from guestemu.program.ops import Op, OpKind

EXECUTIONS = int(os.environ.get("GUESTEMU_HOSTILE_EXECUTIONS", "4000"))
EDGES = (0, 1, 0x7F, 0x80, 0xFF)
WORDS = (0, 1, 0xFFF, 0x1000, 1 << 31, (1 << 32) - 1, 1 << 52, 1 << 63, U64 - 4095, U64)
CONVERSIONS = (
    OpKind.SET_MEMORY_ENCRYPTED,
    OpKind.SET_MEMORY_DECRYPTED,
    OpKind.EARLY_SET_MEMORY_ENCRYPTED,
    OpKind.EARLY_SET_MEMORY_DECRYPTED,
)

if build.find_compiler() is None:
    pytest.skip("no C compiler", allow_module_level=True)


def fail(error: BaseException) -> None:
    raise error


def hostile_bytes(rng: random.Random, kinds: list[int]) -> bytes:
    """Records, most of known kinds, with fields at their edges; often cut off or too many."""
    data = bytearray()
    for _ in range(rng.choice((0, 1, 1, 2, 3, 16, 17, 30))):
        record = bytearray(rng.randbytes(RECORD_SIZE))
        if rng.random() < 0.9:
            record[0] = rng.choice(kinds)
        for _ in range(rng.randrange(6)):
            record[rng.randrange(RECORD_SIZE)] = rng.choice(EDGES)
        if rng.random() < 0.5:
            at = 8 + 8 * rng.randrange(5)
            record[at : at + 8] = rng.choice(WORDS).to_bytes(8, "little")
        if rng.random() < 0.3:
            record[4:8] = rng.choice((b"\xff" * 4, bytes(4), b"\x00\x00\x00\x80"))
        data += record
    return bytes(data[: len(data) - rng.choice((0, 0, 0, 1, 47))])


@pytest.mark.parametrize("name", ["hypercall", "conversion"])
def test_hostile_bytes(name: str) -> None:
    target = find_target(name)
    session = Session(Plan(target, target.header, faults=name == "conversion"))
    fast = open_fast_path(session, fail)
    assert fast is not None
    kinds = [byte for byte in range(256) if session.executor.decoder.plans[byte].is_call] or [0]
    rng = random.Random(3)
    common = 0
    for _ in range(EXECUTIONS // 8):
        data = hostile_bytes(rng, kinds)
        # memory of exactly that size, so that a sanitizer sees a byte too far
        buffer = ctypes.create_string_buffer(data, max(len(data), 1))
        common += fast.library.run_at(ctypes.addressof(buffer), len(data))
        assert fast.record.ops_count <= 16
    fast.close()
    assert common > 10


def test_hostile_exits(tmp_path) -> None:
    made = tmp_path / "judge.so"
    build.compile_library(build.FASTPATH, made, ("-fvisibility=default",))
    judge = NativeJudge(ctypes.PyDLL(str(made)))
    rng = random.Random(5)

    def word() -> int:
        return rng.choice(WORDS) if rng.random() < 0.7 else rng.getrandbits(64)

    for _ in range(EXECUTIONS):
        kind = rng.choice((OpKind.HYPERCALL, *CONVERSIONS))
        page = rng.choice((0, PAGES - 1, PAGES, FRAMES, (1 << 32) - 1))
        op = Op(kind, (word(), word()), rng.choice(list(FIRST)), page)
        scene = Scene(op, rng.choice((0, 1, -5, -(1 << 63))))
        scene.exits = [
            (
                *(rng.choice((12, 12, 12, word())), word(), word(), word()),
                *(rng.choice((0, word())), rng.choice((0, 3)), rng.random() < 0.7),
            )
            for _ in range(rng.randrange(4))
        ]
        judge.is_right(scene)
