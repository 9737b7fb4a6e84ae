# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes corpora small: of all inputs, a set that covers the same, the shortest first.

Every input runs once on the campaign's testbed, in order of size and then of name, and is kept if
it sets a bit of a counter that no input before it has set (what libFuzzer's -merge=1 does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.files import read_regular
from guestemu.campaign.conversion import reader_of
from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.journal import input_name
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.campaign.targets import find_target
from guestemu.machine.watchdog import Watchdog
from guestemu.program.ops import OpKind
from guestemu.report.trace.run import seconds_for


class Merged(msgspec.Struct, frozen=True):
    """The result: inputs by size, how many are not needed, and what all of them cover."""

    inputs: list[bytes]
    dropped: int
    guest_blocks: int
    model_states: int
    near_misses: int


def corpus_of(path: Path) -> Path:
    """The directory of inputs that `path` means: a campaign's corpus, or itself.

    Raises `InputError` where there is none.
    """
    corpus = path / "corpus"
    if corpus.is_dir():
        return corpus
    if path.is_dir():
        return path
    raise InputError(f"{path}: no such directory; name a work directory or a directory of inputs")


def collect(
    paths: Sequence[Path], left_out: frozenset[bytes], kinds: frozenset[OpKind]
) -> list[bytes]:
    """The inputs in `paths`, each once, the shortest first, as bytes under the table of `kinds`.

    Raises `InputError`, also if there are none, or a file cannot be read.
    """
    found: dict[str, bytes] = {}
    for path in paths:
        is_campaign = (path / "campaign.json").exists()
        convert = reader_of(Store(path), kinds) if is_campaign else bytes
        for file in sorted(corpus_of(path).iterdir()):
            if file.name.startswith(".") or file.is_dir():
                continue
            try:
                data = convert(read_regular(file))
            except OSError as error:
                raise InputError(f"{file}: {error.strerror}; remove it or put it right") from error
            if data not in left_out:
                found[input_name(data)] = data
    if not found:
        raise InputError(f"{paths[0]}: no inputs to merge; name a directory with a corpus")
    return [data for _, data in sorted(found.items(), key=lambda item: (len(item[1]), item[0]))]


def make_executor(record: CampaignRecord, feedback: Feedback, plugin: str = "") -> Executor:
    """The testbed of a campaign, from its record; `plugin` is the path of a host of the user's.
    Raises `InputError`."""
    target = find_target(record.target)
    header = msgspec.structs.replace(
        target.header,
        guest=record.guest,
        host=record.host,
        cbit=record.cbit,
        memory=record.memory,
        vcpus=record.vcpus,
        layout=record.layout,
        plugin=plugin,
    )
    return Executor(target, header, target.kinds_with(record.faults, record.layout), feedback)


def minimise_corpus(
    executor: Executor, feedback: Feedback, inputs: list[bytes], step: Callable[[], None]
) -> Merged:
    """Runs `inputs`, each for as long as a program of `run` may take; `step` is called after each.
    Raises `InputError` if none covers anything."""
    kept = []
    with Watchdog(lambda: executor.testbed.guest.machine, seconds_for(executor.header)) as bound:
        bound.rest()
        executor.bound = bound
        for data in inputs:
            feedback.clear()
            executor.run(executor.decode(data))
            if feedback.take():
                kept.append(data)
            step()
        executor.bound = None
    if not kept:
        raise InputError("no input covers anything; is this a corpus of the target?")
    return Merged(
        kept,
        len(inputs) - len(kept),
        feedback.guest_blocks,
        feedback.model_states,
        feedback.near_misses,
    )


def replace_corpus(store: Store, kept: list[bytes]) -> None:
    """Makes `kept` the corpus of `store`: first everything new is written, then the rest goes."""
    for data in kept:
        store.save_input(data)
    store.forget_inputs()
    for path in _others(store.corpus, {input_name(data) for data in kept}):
        path.unlink(missing_ok=True)


def _others(corpus: Path, names: set[str]) -> Iterator[Path]:
    return (path for path in list(corpus.iterdir()) if path.name not in names and path.is_file())


def write_corpus(directory: Path, kept: list[bytes]) -> None:
    """Writes `kept` into an empty or new directory. Raises `InputError`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise InputError(f"{directory}: not empty; name another directory")
        for data in kept:
            (directory / input_name(data)).write_bytes(data)
    except OSError as error:
        raise InputError(f"{directory}: {error.strerror}; name another directory") from error
