# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign from its options to its figures."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from guestemu import native
from guestemu.abi.errors import InputError
from guestemu.campaign.bounds import Bounds, parse_bounds
from guestemu.campaign.conversion import bring_up_to_date
from guestemu.campaign.engines import choose_engine
from guestemu.campaign.engines.atheris import AtherisEngine
from guestemu.campaign.engines.exhaustive import ExhaustiveEngine
from guestemu.campaign.executor import Executor
from guestemu.campaign.fastpath.fastpath import why_not
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.figures import Figures
from guestemu.campaign.seeds import FLOWS_WORD, seed_inputs
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.campaign.supervisor import Supervisor
from guestemu.campaign.targets import Target, find_target
from guestemu.campaign.triage.identify import digest_of
from guestemu.campaign.worker import WorkerConfig
from guestemu.host.kvm.guest_memory import HasGuestMemory
from guestemu.host.permission import is_code, named_by_user
from guestemu.host.registry import load_host
from guestemu.program.ops import OpKind
from guestemu.program.program import Header, SevKind
from guestemu.program.table import op_table
from guestemu.program.validity import header_problem

MAX_JOBS: Final = 256
MAX_OPS: Final = 64
"""The longest program of a campaign."""

_STATEFUL_OPS: Final = 12
"""Ops in the longest program for a host of the user's: nine ranges overflow a table of eight."""

_CODE_VCPUS: Final = 2
_LIVE: Final = "kvm:"
_SPLIT_MEMORY: Final = 32
"""MiB; the guest's regions lie in the lower 16."""
_RAW: Final = frozenset({OpKind.HYPERCALL, OpKind.WRMSR})

_SEED_STEP: Final = 1_000_003
_NAMED_FIELDS: Final = ("guest", "host", "sev", "cbit", "memory", "vcpus", "layout")
_LONGEST_NAME: Final = 120
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9.+_]+")


class Options(msgspec.Struct, frozen=True):
    """What a user may choose; None means the default.

    `seconds` and `execs` bound the whole campaign, as does the number of its new findings,
    `until_finding`; `jobs` is the number of worker processes, `bounds` and `seeds` are as on the
    command line, `max_ops` ops are in the longest program, findings with a key in `accepted` are
    known.
    """

    target: str
    seconds: float | None = None
    execs: int | None = None
    jobs: int = 1
    engine: str | None = None
    workdir: Path | None = None
    resume: bool = False
    seed: int = 0
    host: str | None = None
    guest: str | None = None
    cbit: int | None = None
    memory: int | None = None
    faults: bool = False
    bounds: str | None = None
    max_ops: int | None = None
    accepted: frozenset[str] = frozenset()
    seeds: tuple[str, ...] = (FLOWS_WORD,)
    until_finding: int | None = None
    vcpus: int | None = None
    layout: str | None = None
    sev: SevKind | None = None


class Campaign(msgspec.Struct, frozen=True):
    """A checked campaign: its directory exists and its configuration boots. `notes` are lines for
    the user; findings with a key in `accepted` are known."""

    target: Target
    engine: str
    store: Store
    configs: list[WorkerConfig]
    notes: list[str]
    accepted: frozenset[str] = frozenset()

    def is_accepted(self, key: str) -> bool:
        """Whether the user knows this finding, by whichever check it showed."""
        return digest_of(key) in map(digest_of, self.accepted)

    def is_clean(self, figures: Figures) -> bool:
        """Whether nothing was found that the user does not know."""
        return all(self.is_accepted(found.key) for found in figures.findings)

    def run(self, watch: Callable[[Figures], None]) -> Figures:
        """See `Supervisor.run`."""
        return Supervisor(self.configs, self.store, watch).run()


def header_of(target: Target, options: Options) -> Header:
    """The target's header with the user's guest, its kind, host, C-bit, memory (MiB), layout and
    vCPUs.

    Raises `InputError`.
    """
    chosen: dict[str, str | int | SevKind | None] = {}
    if options.host is not None:
        chosen["host"], chosen["plugin"] = named_by_user(options.host)
    if options.guest is not None:
        chosen["guest"] = options.guest
    if options.sev is not None:
        chosen["sev"] = options.sev
    if options.cbit is not None:
        chosen["cbit"] = options.cbit
    if options.memory is not None:
        chosen["memory"] = options.memory
    chosen["vcpus"] = options.vcpus
    if options.vcpus is None:
        chosen["vcpus"] = _usual_vcpus(target, options.host, options.guest)
    header = msgspec.structs.replace(target.header, **chosen)
    layout = _usual_layout(target, header) if options.layout is None else options.layout
    header = msgspec.structs.replace(header, layout=layout)
    problem = header_problem(header)
    if problem is not None:
        option = "memory" if problem[0] == "layout" else problem[0]
        raise InputError(f"--{option}: {problem[1]}")
    return header


def _usual_vcpus(target: Target, host: str | None, guest: str | None) -> int:
    """The number of vCPUs that a campaign has if the user names none: two where a host of the
    user's answers raw exits of a small guest, for it may keep a status for each."""
    is_own = host is not None and _is_own(target, host) and guest is None
    return _CODE_VCPUS if is_own else target.header.vcpus


def _is_own(target: Target, host: str) -> bool:
    """Whether a host of the user's answers raw exits on this target."""
    is_raw = bool(target.kinds & _RAW) and target.limit is None
    return is_raw and is_code(host) and not host.startswith(_LIVE)


def _usual_layout(target: Target, header: Header) -> str:
    """The layout of a campaign on a user's exit handler: two slots, and a hole in the second."""
    memory = header.memory
    if memory < _SPLIT_MEMORY or not _is_own(target, header.host):
        return target.header.layout
    if not isinstance(load_host(header.host, plugin=header.plugin), HasGuestMemory):
        return target.header.layout
    return f"slot@{memory // 2}M,hole@{memory * 3 // 4}M+1M"


def target_of(options: Options) -> Target:
    """The target, with programs of the length that the user wants: for a host of the user's, which
    may hold any state, longer ones than ours need. Raises `InputError`."""
    target = find_target(options.target)
    most = options.max_ops
    if most is None and options.host is not None and is_code(options.host):
        most = max(target.max_ops, _STATEFUL_OPS) if not target.order else None
    if most is None:
        return target
    if not 1 <= most <= MAX_OPS:
        raise InputError(f"--max-ops {most}: give a number from 1 to {MAX_OPS}")
    if target.order:
        raise InputError(
            f"--max-ops {most}: a program of {target.name} is a migration; leave it out"
        )
    return msgspec.structs.replace(target, max_ops=most)


def _check(options: Options, most_jobs: int) -> None:
    if options.seconds is not None and not 0 < options.seconds < float("inf"):
        raise InputError(f"--time {options.seconds:g}: give a positive number of seconds")
    if options.execs is not None and options.execs < 1:
        raise InputError(f"--execs {options.execs}: give a positive number")
    if options.until_finding is not None and options.until_finding < 1:
        raise InputError(f"--until-finding {options.until_finding}: give a positive number")
    if not 1 <= options.jobs <= most_jobs:
        raise InputError(f"--jobs {options.jobs}: give a number from 1 to {most_jobs}")
    if options.execs is not None and options.execs < options.jobs:
        raise InputError(
            f"--execs {options.execs} is less than --jobs {options.jobs}; use fewer jobs"
        )


def _bounds(options: Options, engine: str, target: Target) -> Bounds:
    if options.bounds is not None and engine != ExhaustiveEngine.name:
        raise InputError(f"--bounds {options.bounds}: only with --engine {ExhaustiveEngine.name}")
    return parse_bounds(options.bounds, target.max_ops)


def prepare(options: Options, most_jobs: int = MAX_JOBS) -> Campaign:
    """Checks options, boots the configuration once, opens the directory. `most_jobs` is as many
    workers as there may be. The time that this takes is part of the campaign's, up to half of it.

    Raises `InputError` and `MissingError`.
    """
    began = time.monotonic()
    target = target_of(options)
    _check(options, most_jobs)
    engine, note = choose_engine(options.engine)
    bounds = _bounds(options, engine.name, target)
    header = header_of(target, options)
    kinds = target.kinds_with(options.faults, header.layout)
    seeds = seed_inputs(options.seeds, target, header, kinds)
    executor = Executor(target, header, kinds, Feedback())
    executor.run(())
    in_python = "only the atheris engine has it"
    if engine.name == AtherisEngine.name:
        in_python = why_not(executor)
    root = options.workdir or _default_root(target, header, options)
    record = msgspec.structs.replace(
        CampaignRecord.of(target.name, header, options.faults, op_table(kinds)),
        runs_in=f"Python (no fast path: {in_python})" if in_python else "machine code",
    )
    store = Store.create(root, record, options.resume)
    notes = _notes(note, in_python)
    if options.resume:
        notes += _convert(store, kinds, header)
    elif engine.name != ExhaustiveEngine.name:
        for data in seeds:
            store.save_input(data)
    first = WorkerConfig(
        target=target.name,
        header=header,
        engine=engine.name,
        workdir=str(root),
        index=0,
        seed=options.seed,
        faults=options.faults,
        execs=None,
        seconds=_left(options.seconds, began),
        is_shared=options.jobs > 1,
        jobs=options.jobs,
        bounds=bounds,
        until_finding=options.until_finding,
        max_ops=target.max_ops,
    )
    configs = _share_out(first, options.execs)
    return Campaign(target, engine.name, store, configs, notes, options.accepted)


def _left(seconds: float | None, began: float) -> float | None:
    """What is left of the seconds of a campaign."""
    return seconds and max(seconds - (time.monotonic() - began), seconds / 2)


def _default_root(target: Target, header: Header, options: Options) -> Path:
    """guestemu-work/TARGET, followed by what differs from the target's own configuration: campaigns
    on two hosts, or on two guests, each have a directory."""
    words = [target.name]
    plain = header_of(target, msgspec.structs.replace(options, vcpus=None, layout=None))
    usual = msgspec.structs.replace(target.header, vcpus=plain.vcpus, layout=plain.layout)
    for field in _NAMED_FIELDS:
        chosen = getattr(header, field)
        if isinstance(chosen, SevKind) and chosen is not usual.sev:
            words.append(chosen.value)
        elif chosen != getattr(usual, field):
            is_name = isinstance(chosen, str)
            words.append(chosen.rpartition("/")[2] if is_name else f"{field}{chosen}")
    if options.faults:
        words.append("faults")
    name = _UNSAFE.sub("-", "+".join(words)).strip("-")
    return Path("guestemu-work") / name[:_LONGEST_NAME]


def _convert(store: Store, kinds: frozenset[OpKind], header: Header) -> list[str]:
    """Converts the corpus of a campaign that another guestemu began; what to say about it."""
    store.lock()
    try:
        count = bring_up_to_date(store, kinds, header.vcpus)
    finally:
        store.unlock()
    if not count:
        return []
    return [f"{store.corpus}: {count} inputs converted to this guestemu's table of operations"]


def _notes(engine: str, in_python: str) -> list[str]:
    """What a user hears first: about the engine, and why the programs run in Python."""
    notes = [engine] if engine else []
    if in_python:
        notes.append(f"no fast path: {in_python}")
    if native.why_not():
        notes.append(f"{native.COST}; {native.REMEDY}")
    return notes


def _share_out(first: WorkerConfig, execs: int | None) -> list[WorkerConfig]:
    """`first` for each of its jobs, with a seed of its own and its share of the executions."""
    share, rest = divmod(execs or 0, first.jobs)
    return [
        msgspec.structs.replace(
            first,
            index=index,
            seed=first.seed + index * _SEED_STEP,
            execs=None if execs is None else share + (index < rest),
        )
        for index in range(first.jobs)
    ]
