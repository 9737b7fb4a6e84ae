# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign that an older or newer guestemu began: are its bytes still what they were?

The inputs of a corpus are bytes, and bytes mean ops only under a table: the numbers of the target's
ops (any other byte chooses one of them) and the meaning of each. campaign.json
holds the table. Where a target has gained or lost ops since, the inputs are read by the old set and
written by the new one. Where an op itself means something else, the campaign is not resumed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.files import read_regular
from guestemu.campaign.journal import Entry, InputNoted, ViolationMet, journal_files, read_journals
from guestemu.campaign.store import Store
from guestemu.program.binary import OpDecoder, encode_ops
from guestemu.program.ops import SPECS, OpKind
from guestemu.program.table import RECORD, op_table
from guestemu.program.validity import GIANT_MEMORY


def bring_up_to_date(store: Store, kinds: frozenset[OpKind], vcpus: int = 1) -> int:
    """Makes the directory's bytes mean under the table of `kinds` what they meant when they were
    written; returns how many inputs of the corpus were written anew. The caller holds its lock.

    Raises `InputError` where that cannot be: an op changed its meaning or its number is unknown.
    """
    record = store.read_record()
    table = op_table(kinds)
    if record.ops == table:
        return 0
    rewrite = reader_of(store, kinds, vcpus)
    count = sum(_convert_input(store, path, rewrite) for path in sorted(store.corpus.iterdir()))
    for path in sorted(store.infrastructure.glob("*.bin")):
        with contextlib.suppress(OSError):
            store.replace(path, rewrite(read_regular(path)))
    encode = msgspec.json.Encoder().encode
    for path in journal_files(store.journals):
        entries = [_convert_entry(entry, rewrite) for entry in read_journals([path])]
        store.replace(path, b"".join(encode(entry) + b"\n" for entry in entries))
    store.write_record(msgspec.structs.replace(record, ops=table))
    return count


def reader_of(store: Store, kinds: frozenset[OpKind], vcpus: int = 1) -> Callable[[bytes], bytes]:
    """What turns the bytes of `store`'s campaign into bytes under the table of `kinds`; ops that
    these do not have are dropped. Raises `InputError` where the bytes cannot be read."""
    record = store.read_record()
    if record.ops == op_table(kinds):
        return bytes
    old = _old_kinds(store.root / "campaign.json", record.ops)
    decode = OpDecoder(vcpus, record.memory >= GIANT_MEMORY, old).decode

    def rewrite(data: bytes) -> bytes:
        return encode_ops(op for op in decode(data) if op.kind in kinds)

    return rewrite


def _old_kinds(known: Path, table: Mapping[str, str]) -> frozenset[OpKind]:
    """The ops of a recorded table, if each still means the same."""
    remedy = "resume it with the guestemu that began it, or name another --workdir"
    if not table:
        raise InputError(
            f"{known}: does not say what the bytes of its corpus mean (an older guestemu wrote "
            f"it); {remedy}"
        )
    numbers = {str(int(kind)): kind for kind in SPECS}
    kinds = [numbers[number] for number in table if number in numbers]
    now = op_table(kinds)
    for number, meaning in table.items():
        if now.get(number) != meaning:
            kind = numbers.get(number)
            name = "a record" if number == RECORD else SPECS[kind].name if kind else f"op {number}"
            raise InputError(f"{known}: in that campaign {name} means something else; {remedy}")
    return frozenset(kinds)


def _convert_input(store: Store, path: Path, rewrite: Callable[[bytes], bytes]) -> bool:
    try:
        old = b"" if path.name.startswith(".") else read_regular(path)
    except OSError:
        return False  # Store.repair says so
    new = rewrite(old)
    if new == old:
        return False
    if new:
        store.save_input(new)
    path.unlink()
    return True


def _convert_entry(entry: Entry, rewrite: Callable[[bytes], bytes]) -> Entry:
    if isinstance(entry, InputNoted | ViolationMet):
        return msgspec.structs.replace(entry, data=rewrite(entry.data))
    return entry
