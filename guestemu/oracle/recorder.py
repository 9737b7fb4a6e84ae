# SPDX-License-Identifier: GPL-2.0-or-later
"""Carries out cases on a live KVM and writes what happened as a recording (conform/recording.py).

A case whose machine dies is recorded as a failed case with the reason, and the next one finds a new
machine: no case before or behind it is lost.
"""

from __future__ import annotations

import enum
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from guestemu.conformance.recordings.recording import FORMAT, FailedCase, Hex, RecordedStep
from guestemu.oracle import wire
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.matrix import Act, OracleCase
from guestemu.oracle.qemu import MachineEnded
from guestemu.oracle.steps import pack_config, pack_request, read_reply, read_setup

_BATCH_CASES: Final = wire.SLOTS
_GZIP: Final = ".gz"


class CaseResult(msgspec.Struct, frozen=True):
    """The steps of a case, or why it has none."""

    number: int
    case: OracleCase
    steps: tuple[RecordedStep, ...]
    error: str = ""


def requests_of(case: OracleCase, slot: int) -> list[bytes]:
    """The records of a case: its VM is made anew, and dropped behind the last step."""
    records = [
        pack_request(act, slot, 0 if number else wire.FRESH) for number, act in enumerate(case.acts)
    ]
    return [*records, _drop(slot)]


def _drop(slot: int) -> bytes:
    return wire.REQUEST.pack(int(wire.WireOp.DROP), *(0,) * 5, slot, *(0,) * 8)


def vcpus_of(acts: Iterable[Act]) -> int:
    """How many vCPUs a VM for `acts` has."""
    return 1 + max((act.vcpu for act in acts), default=0)


def step_of(number: int, case: OracleCase, index: int, reply: memoryview) -> RecordedStep:
    """What a recording has about one act of a case."""
    act = case.acts[index]
    events, out = read_reply(act, reply)
    return RecordedStep(
        id=number,
        step=index,
        grp=case.group,
        cfg=case.cfg,
        rc=read_setup(reply),
        op=act.op,
        inputs=act.inputs,
        events=events,
        out=out,
        mode=act.mode,
        cpl=act.cpl,
        vcpu=act.vcpu,
    )


def run_cases(
    kvm: LiveKvm, cases: Sequence[OracleCase], after_case: Callable[[], None] = lambda: None
) -> Iterator[CaseResult]:
    """Every case on `kvm`, in order, numbered from 1 on."""
    position = 0
    while position < len(cases):
        batch: list[OracleCase] = []
        records: list[bytes] = []
        starts: list[int] = []
        while position + len(batch) < len(cases) and len(batch) < _BATCH_CASES:
            case = cases[position + len(batch)]
            own = requests_of(case, len(batch))
            if len(records) + len(own) > wire.CAPACITY:
                break
            kvm.set_config(len(batch), pack_config(case.cfg, vcpus_of(case.acts)))
            starts.append(len(records))
            records += own
            batch.append(case)
        yield from _run_batch(kvm, position, batch, (records, starts))
        position += len(batch)
        for _ in batch:
            after_case()


def _run_batch(
    kvm: LiveKvm, position: int, batch: Sequence[OracleCase], posted: tuple[list[bytes], list[int]]
) -> Iterator[CaseResult]:
    records, starts = posted
    try:
        replies = kvm.run(records)
    except MachineEnded as error:
        if len(batch) == 1:
            yield CaseResult(position + 1, batch[0], (), error.how)
            return
        for offset, case in enumerate(batch):
            own = requests_of(case, offset)
            yield from _run_batch(kvm, position + offset, [case], (own, [0]))
        return
    for offset, case in enumerate(batch):
        number, start = position + offset + 1, starts[offset]
        if replies[start][0] == wire.End.NO_VM:
            rc = read_reply(case.acts[0], replies[start])[1].rc
            yield CaseResult(number, case, (), f"no VM: errno {-(rc or 0)}")
            continue
        steps = tuple(
            step_of(number, case, index, replies[start + index]) for index in range(len(case.acts))
        )
        yield CaseResult(number, case, steps)


def meta_line(machine: wire.MachineFacts) -> str:
    """The first line of a recording of `machine`."""
    return json.dumps(
        {
            "meta": "start",
            "format": FORMAT,
            "kernel": machine.release,
            "version": machine.build,
            "caps": machine.capabilities,
            "supported_kvm_features": f"{machine.pv_features:#x}",
            "msr_index_list_kvm": [f"{index:#x}" for index in machine.msrs],
            "phys_bits": machine.address_bits,
        }
    )


def step_line(step: RecordedStep) -> str:
    """A step as a recording has it; what is as usual in `in` is left out."""
    return json.dumps(_plain(step), separators=(",", ":"))


def failed_line(result: CaseResult) -> str:
    """A case without steps as a recording has it."""
    failed = FailedCase(result.number, result.case.group, result.error)
    return json.dumps(_plain(failed), separators=(",", ":"))


def _plain(value: object) -> object:
    if isinstance(value, Hex):
        return f"{value:#x}"
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return _plain_record(value)
    return value


def _plain_record(record: msgspec.Struct) -> dict[str, object]:
    tag = type(record).__struct_config__
    found: dict[str, object] = {} if tag.tag_field is None else {tag.tag_field: tag.tag}
    for field in msgspec.structs.fields(record):
        value = getattr(record, field.name)
        if not field.required and value == field.default:
            continue
        found[field.encode_name] = _plain(value)
    return found


def write_recording(path: Path, machine: wire.MachineFacts, results: Iterable[CaseResult]) -> None:
    """Writes a whole recording, compressed where the name ends in .gz."""
    lines = [meta_line(machine)]
    for result in results:
        if result.error:
            lines.append(failed_line(result))
        lines.extend(step_line(step) for step in result.steps)
    data = ("\n".join(lines) + "\n").encode()
    if path.suffix == _GZIP:
        data = gzip.compress(data, compresslevel=9, mtime=0)
    path.write_bytes(data)
