# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of a native exit handler: programs of target `hypercall` per second of CPU time.

The handler is `handler.c`, in this process, in one of its own, and in the shadow of the default
host; beside it the default host on the same programs in Python. The time of the handler's processes
counts.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from guestemu.abi.errors import MissingError
from guestemu.bench.figure import Figure
from guestemu.bench.floor import cache_directory, compile_unit
from guestemu.campaign.fastpath.fastpath import open_fast_path
from guestemu.campaign.mutator import Mutator
from guestemu.campaign.session import Plan, Session
from guestemu.campaign.targets import find_target
from guestemu.host.native.host import IN_PROCESS
from guestemu.host.permission import named_by_user

IN: Final = "native-in-process"
ISOLATED: Final = "native-isolated"
SHADOW: Final = "native-shadow"
FIGURES: Final[Mapping[str, str]] = {
    IN: "a C handler in this process, beside the default host, both in Python: hypercall programs",
    ISOLATED: "the same handler in a process of its own, one exit a message",
    SHADOW: "the same in the shadow of the default host in machine code, exits in batches",
}
"""Name and summary of each."""

_AGAINST: Final = "the default host in Python"
_TARGET: Final = "hypercall"
_HEADERS: Final = Path(__file__).parent.parent / "host" / "native"
_INPUTS: Final = 1000
_SEED: Final = 11
_SEED_BITS: Final = 32
_SHADOW_TURNS: Final = 8
"""A turn in Python takes several times as long."""
_NANO: Final = 1e-9


def _fail(error: BaseException) -> None:
    raise error


def _session(host: str) -> Session:
    target = find_target(_TARGET)
    spec, plugin = named_by_user(host)
    return Session(Plan(target, msgspec.structs.replace(target.header, host=spec, plugin=plugin)))


def _inputs(session: Session) -> list[bytes]:
    rng = random.Random(_SEED)
    mutate = Mutator(session.plan.header, session.kinds).mutate
    pool = [b""]
    for _ in range(_INPUTS):
        size = session.executor.max_size
        pool.append(mutate(rng.choice(pool), size, rng.getrandbits(_SEED_BITS)))
    return pool


def _in_python(host: str, inputs: list[bytes]) -> Callable[[], None]:
    executor = _session(host).executor
    programs = [executor.decode(data) for data in inputs]

    def run() -> None:
        for ops in programs:
            executor.run(ops)

    return run


def _in_machine_code(host: str, inputs: list[bytes]) -> Callable[[], None]:
    session = _session(host)
    session.skips_known = False
    fast = open_fast_path(session, _fail)
    if fast is None:
        raise MissingError("there is no machine code here")

    def run() -> None:
        for data in inputs:
            fast.library.test_one_input(data)

    return run


def measure(names: list[str], rounds: int) -> Iterator[Figure]:
    """The figures called `names`, each side once a round."""
    try:
        library = str(compile_unit("handler", cache_directory(), f"-I{_HEADERS}"))
        inputs = _inputs(_session("map-gpa-range"))
        sides = {"": _in_python("map-gpa-range", inputs)}
        for name in names:
            make = _in_machine_code if name == SHADOW else _in_python
            sides[name] = make(library + IN_PROCESS if name == IN else library, inputs)
    except MissingError as error:
        yield from (Figure(one, None, "/s", None, None, _AGAINST, str(error)) for one in names)
        return
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    for _ in range(rounds):
        for name, run in sides.items():
            turns = _SHADOW_TURNS if name == SHADOW else 1
            start = _cpu_seconds()
            for _ in range(turns):
                run()
            rates[name].append(turns * len(inputs) / (_cpu_seconds() - start))
    floor = rates.pop("")
    for name, found in rates.items():
        ratio = median(theirs / ours for ours, theirs in zip(found, floor, strict=True))
        value, beside = round(median(found), 1), round(median(floor), 1)
        yield Figure(name, value, "/s", beside, round(ratio, 3), _AGAINST)


def _cpu_seconds() -> float:
    """CPU time of this process and of those below it that run."""
    return time.process_time() + sum(map(_seconds_of, _below(os.getpid())))


def _below(process: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        for child in map(int, children):
            yield child
            yield from _below(child)


def _seconds_of(process: int) -> float:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) * _NANO
    return 0.0
