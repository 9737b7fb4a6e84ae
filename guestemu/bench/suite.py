# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of benchmarks and how a run goes through it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.bench import (
    dma,
    execution,
    exponents,
    fuzzing,
    kernel,
    long_runs,
    mirror,
    native_hosts,
    oracle,
    parts,
    programs,
    status,
    userland,
)
from guestemu.bench.figure import TURN_SECONDS, Figure, Pair, measure
from guestemu.bench.scene import BenchScene

ROUNDS: Final = 7
FUZZ_SECONDS: Final = 8

_PREPARED: Final[Mapping[str, Callable[[BenchScene], Pair]]] = {
    "execution": execution.bare,
    "execution-python": execution.bare_hooked,
    "two-views": execution.two_views,
    "execution-host": execution.hosted,
    "execution-checks": execution.checked,
    "hypercall-checks": execution.hypercall,
    "hypercall-loop": execution.loop,
    "cbit-51": execution.walker,
    "snp": execution.snp,
    "tdx": execution.tdx,
    "programs": programs.unhooked,
    "programs-hooked": programs.hooked,
    "programs-8g": programs.large,
    "decode": parts.decode,
    "rollback": parts.rollback,
    "settle": parts.settle,
    "read-other-view": parts.read_views,
    "boot": parts.boot,
    "trace-parse": parts.parse,
    "dma-model": dma.model,
    "dma-snippet": dma.snippet,
    "linux-call": kernel.call,
    "linux-restore": kernel.restore,
    "linux-boot": kernel.boot,
    "userland-read": userland.hooks,
    "userland-plain": userland.plain,
    "handler-save": mirror.save,
    "handler-transfer": mirror.transfer,
    "status-1": status.one,
    "status-512": status.leaf,
    "status-1M": status.million,
    "status-export": status.export,
}
_CAMPAIGNS: Final = {f"fuzz-{target}": target for target in fuzzing.TARGETS}
_ONE_OP: Final = {f"fuzz-{target}-1": target for target in fuzzing.ONE_OP_TARGETS}
_PEERS: Final = {f"peer-{tool}": tool for tool in fuzzing.PEERS}
_LONG: Final = {
    long_runs.JOBS: long_runs.JOBS_HELP,
    long_runs.MEMORY: long_runs.MEMORY_HELP,
}
_ONE_OP_ROUNDS: Final = 3
_ONE_OP_EXECUTIONS: Final = 20_000
"""For each second that a campaign has."""
_LONG_EXECUTIONS: Final = 50_000
"""The same."""
_HELP: Final = "executions per second of a campaign under atheris, with coverage feedback"
_ONE_OP_HELP: Final = "one op, all checks, under atheris, beside C under libFuzzer: target"
_PEER_HELP: Final = "one hypercall, all checks, under atheris, beside Unicorn's own binding under"


class FigureEntry(msgspec.Struct, frozen=True):
    """One line of `guestemu bench --list`."""

    name: str
    summary: str


def entries() -> tuple[FigureEntry, ...]:
    """Every figure, in the order of the report."""
    timed = (FigureEntry(name, _summary(make)) for name, make in _PREPARED.items())
    return (
        *timed,
        *(FigureEntry(name, f"target {_CAMPAIGNS[name]}: {_HELP}") for name in _CAMPAIGNS),
        *(FigureEntry(name, f"{_ONE_OP_HELP} {target}") for name, target in _ONE_OP.items()),
        *(FigureEntry(name, f"{_PEER_HELP} {tool}") for name, tool in _PEERS.items()),
        *(FigureEntry(name, f"target {long_runs.TARGET}: {text}") for name, text in _LONG.items()),
        *(FigureEntry(name, text) for name, text in exponents.FIGURES.items()),
        *(FigureEntry(name, text) for name, text in native_hosts.FIGURES.items()),
        FigureEntry(oracle.NAME, oracle.HELP),
    )


def _summary(make: Callable[[BenchScene], Pair]) -> str:
    return " ".join((make.__doc__ or "").split()).rstrip(".")


def choose(names: Collection[str]) -> tuple[str, ...]:
    """The figures called `names` in the suite's order; all for none. Raises `InputError`."""
    known = [entry.name for entry in entries()]
    for name in names:
        if name not in known:
            raise InputError(f"--only {name}: no such figure; use one of {', '.join(known)}")
    return tuple(name for name in known if not names or name in names)


def run(
    names: Collection[str],
    rounds: int = ROUNDS,
    turn: float = TURN_SECONDS,
    fuzz_seconds: int = FUZZ_SECONDS,
    progress: Callable[[str], None] = lambda _line: None,
) -> Iterator[Figure]:
    """Measures the figures called `names` (all for none); `progress` gets one line per step.

    `turn` is the CPU time of one side's turn in a round, `fuzz_seconds` the time of a campaign.
    Raises `InputError` for a name that does not exist.
    """
    chosen = choose(names)
    scene = BenchScene()
    pairs: dict[str, Pair] = {}
    for name in chosen:
        if name in _PREPARED:
            progress(f"preparing {name}")
            pairs[name] = _PREPARED[name](scene)
    if pairs:
        yield from measure(pairs, rounds, turn, lambda n: progress(f"round {n + 1} of {rounds}"))
    campaigns = [name for name in chosen if name in _CAMPAIGNS]
    if campaigns:
        yield from _run_campaigns(campaigns, fuzz_seconds, progress)
    apart = _measured_apart(rounds, turn, fuzz_seconds)
    for name in filter(apart.__contains__, chosen):
        progress(name)
        yield apart[name]()
    native_names = [name for name in chosen if name in native_hosts.FIGURES]
    if native_names:
        progress(f"native hosts, {rounds} rounds")
        yield from native_hosts.measure(native_names, rounds)
    if oracle.NAME in chosen:
        progress(oracle.NAME)
        yield oracle.measure()


def _measured_apart(
    rounds: int, turn: float, fuzz_seconds: int
) -> Mapping[str, Callable[[], Figure]]:
    """The figures that are measured one after the other."""
    count = _ONE_OP_EXECUTIONS * fuzz_seconds
    campaigns: dict[str, Callable[[], Figure]] = {
        **{
            name: partial(fuzzing.measure_one_op, target, count, _ONE_OP_ROUNDS)
            for name, target in _ONE_OP.items()
        },
        **{
            name: partial(fuzzing.measure_peer, tool, count, _ONE_OP_ROUNDS)
            for name, tool in _PEERS.items()
        },
        long_runs.JOBS: partial(long_runs.measure_jobs, fuzz_seconds),
        long_runs.MEMORY: partial(long_runs.measure_memory, _LONG_EXECUTIONS * fuzz_seconds),
    }
    if note := fuzzing.why_not():
        campaigns = {name: partial(fuzzing.missing, name, note) for name in campaigns}
    growth = {name: partial(exponents.measure, name, rounds, turn) for name in exponents.FIGURES}
    return {**campaigns, **growth}


def _run_campaigns(
    names: list[str], seconds: int, progress: Callable[[str], None]
) -> Iterator[Figure]:
    note = fuzzing.why_not()
    if note:
        yield from (fuzzing.missing(name, note) for name in names)
        return
    progress(f"an empty atheris target for {seconds} s")
    null = fuzzing.measure_null(seconds)
    for name in names:
        progress(f"{name} for {seconds} s")
        yield fuzzing.measure_target(_CAMPAIGNS[name], seconds, null)
