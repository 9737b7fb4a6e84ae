# SPDX-License-Identifier: GPL-2.0-or-later
"""Two checkouts side by side: the same figures from each, in turns.

A turn is `guestemu bench` in a process of its own, with one checkout first on Python's path; which
of the two begins changes from round to round. A figure's ratio is the median of the rounds' own
ratios, as everywhere (figure.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final, TypeVar

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.text import visible
from guestemu.bench.figure import Figure

_PATIENCE: Final = 1800
_INNER: Final = "3"
"""Rounds of one turn: a process takes longer to start than to measure a figure once."""
_MODULE: Final = ("-m", "guestemu", "bench", "--json")


class PairedRuns(msgspec.Struct, frozen=True):
    """One figure of this checkout and of the other, in `unit`; `ratio` says how many times more
    time this one takes. None where one of the two could not measure it."""

    name: str
    value: float | None
    unit: str
    other: float | None
    ratio: float | None


_Decoded = TypeVar("_Decoded")


class _Entry(msgspec.Struct):
    name: str


class _List(msgspec.Struct):
    benchmarks: list[_Entry]


class _Figures(msgspec.Struct):
    figures: list[Figure]


def find_checkout(directory: Path) -> Path:
    """The directory as an absolute path. Raises `InputError` if there is no guestemu in it."""
    if not (directory / "guestemu" / "__main__.py").is_file():
        raise InputError(f"--against {directory}: no package guestemu there; name a checkout")
    return directory.resolve()


def run_bench(checkout: Path, arguments: Sequence[str]) -> bytes:
    """What `guestemu bench --json` of `checkout` prints. Raises `InputError` with its last words
    where it fails."""
    try:
        done = subprocess.run(
            [sys.executable, *_MODULE, *arguments],
            env=os.environ | {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"},
            capture_output=True,
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"--against: {checkout} did not end within {_PATIENCE} s") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = visible(lines[-1]) if lines else f"status {done.returncode}"
        raise InputError(f"--against: bench of {checkout} failed: {said}")
    return done.stdout


def common_names(checkouts: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Those of `names` (all for none) that each of `checkouts` has, in the order of the first.
    Raises `InputError` for one that is not."""
    lists = [
        [entry.name for entry in _decode(run_bench(one, ["--list"]), _List).benchmarks]
        for one in checkouts
    ]
    both = [name for name in lists[0] if all(name in known for known in lists)]
    for name in names:
        if name not in both:
            raise InputError(f"--only {name}: one of the two checkouts has no such figure")
    return [name for name in both if not names or name in names]


def _decode(data: bytes, kind: type[_Decoded]) -> _Decoded:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise InputError(f"--against: bench printed no list of figures: {error}") from None


def compare(
    own: Path,
    other: Path,
    names: Sequence[str],
    rounds: int,
    progress: Callable[[str], None] = lambda _line: None,
) -> Iterator[PairedRuns]:
    """Measures the figures `names` (all that both have for none) of two checkouts, `rounds` times
    each. Raises `InputError`."""
    chosen = common_names((own, other), names)
    arguments = ["--rounds", _INNER, *(word for name in chosen for word in ("--only", name))]
    seen: list[dict[Path, Mapping[str, Figure]]] = []
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        order = (own, other) if number % 2 == 0 else (other, own)
        found = {one: _decode(run_bench(one, arguments), _Figures).figures for one in order}
        seen.append({one: {each.name: each for each in found[one]} for one in found})
    for name in chosen:
        yield _summarize(name, [(turn[own].get(name), turn[other].get(name)) for turn in seen])


def _summarize(name: str, pairs: Sequence[tuple[Figure | None, Figure | None]]) -> PairedRuns:
    values = [
        (mine.value, theirs.value)
        for mine, theirs in pairs
        if mine is not None and theirs is not None and mine.value and theirs.value
    ]
    unit = next((mine.unit for mine, _ in pairs if mine is not None), "")
    if not values:
        return PairedRuns(name, None, unit, None, None)
    is_rate = unit == "/s"
    ratios = [theirs / mine if is_rate else mine / theirs for mine, theirs in values]
    mine, theirs = (round(median(side), 4) for side in zip(*values, strict=True))
    return PairedRuns(name, mine, unit, theirs, round(median(ratios), 3))
