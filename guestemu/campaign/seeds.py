# SPDX-License-Identifier: GPL-2.0-or-later
"""First inputs of a campaign: what the modelled kernels do, and programs that a user names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.campaign.targets import Target
from guestemu.program.binary import encode_ops
from guestemu.program.generate import HOSTILE_FLOWS, flows_of
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header
from guestemu.program.text import load_program
from guestemu.program.validity import problem_of

FLOWS_WORD: Final = "flows"
NONE_WORD: Final = "none"
_EACH: Final = 4
_ATTACKS: Final = 16
"""Variants of each flow; of an attack, whose instants count."""

_SUFFIX: Final = ".prog"


def _flow_seeds(header: Header, kinds: frozenset[OpKind]) -> list[tuple[Op, ...]]:
    rng = random.Random(0)
    flows = [
        flow(rng, header)
        for flow in flows_of(kinds)
        for _ in range(_ATTACKS if flow in HOSTILE_FLOWS else _EACH)
    ]
    return [tuple(op for op in flow if op.kind in kinds) for flow in flows]


def _many_ranges(target: Target) -> tuple[Op, ...]:
    """As many shared pages with private ones between as a program can have: what a table of ranges
    holds at most is beyond what changes of short programs come to."""
    return tuple(
        Op(OpKind.HYPERCALL, (KVM_HC_MAP_GPA_RANGE, 2 * number * PAGE_SIZE, 1, 0, 0))
        for number in range(target.max_ops)
    )


def _files(word: str) -> list[Path]:
    path = Path(word)
    if path.is_dir():
        files = sorted(path.rglob(f"*{_SUFFIX}"))
        if not files:
            raise InputError(f"--inputs {word}: no {_SUFFIX} file in it; name another directory")
        return files
    if not path.exists():
        raise InputError(
            f"--inputs {word}: no such file; use {FLOWS_WORD}, {NONE_WORD}, or a {_SUFFIX} file or "
            "a directory of them"
        )
    return [path]


def seed_inputs(
    words: Sequence[str], target: Target, header: Header, kinds: frozenset[OpKind]
) -> list[bytes]:
    """The inputs that `words` (as in --seeds) stand for, each once, without ops that the target
    does not have or `header` does not allow. Raises `InputError`, also for a file that is no
    program."""
    chosen: list[tuple[Op, ...]] = []
    for word in words:
        if word == FLOWS_WORD:
            chosen += _flow_seeds(header, kinds)
            if header.plugin:
                chosen.append(_many_ranges(target))
        elif word != NONE_WORD:
            chosen += (load_program(path).ops for path in _files(word))
    inputs: dict[bytes, None] = {}
    for ops in chosen:
        fit = [op for op in ops if op.kind in kinds and problem_of(op, header) is None]
        if fit:
            inputs[encode_ops(fit[: target.max_ops])] = None
    return list(inputs)
