# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign directory of another guestemu: its bytes keep their meaning, or it is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from guestemu.abi.errors import InputError
from guestemu.campaign.conversion import bring_up_to_date
from guestemu.campaign.journal import InputNoted, ViolationMet, read_journals
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.program.binary import RECORD, decode_ops
from guestemu.program.ops import OpKind
from guestemu.program.program import Header
from guestemu.program.table import op_table

OLD = frozenset({OpKind.READ, OpKind.WRITE})
NEW = frozenset({OpKind.READ, OpKind.WRITE, OpKind.EVICT, OpKind.HOST_READ})
NO_OP = 255
"""A kind byte that is no op's number: it chooses one of the target's ops."""


def campaign(root: Path, ops: dict[str, str]) -> Store:
    record = CampaignRecord("conversion", "snippet:6.1", "map-gpa-range", 39, False, ops=ops)
    return Store.create(root, record, resume=False)


def records(*kinds: int) -> bytes:
    return b"".join(RECORD.pack(kind, 0, 0, 0, 5, 1, 2, 3, 4, 5) for kind in kinds)


def meanings(store: Store, kinds: frozenset[OpKind]) -> list[tuple[object, ...]]:
    return [decode_ops(data, Header(), kinds) for data in Store(store.root).load_inputs()]


def test_inputs_keep_their_meaning_when_a_target_gains_ops(tmp_path: Path) -> None:
    store = campaign(tmp_path / "w", op_table(OLD))
    data = records(NO_OP, OpKind.WRITE, NO_OP - 1)
    store.save_input(data)
    journal = store.open_journal(0)
    journal.add(InputNoted(data))
    journal.add(ViolationMet("sign", data, 1.0))
    journal.close()
    before = meanings(store, OLD)
    assert meanings(store, NEW) != before  # the silent change that is to be prevented
    assert bring_up_to_date(store, NEW) == 1
    assert meanings(store, NEW) == before
    noted, met = read_journals([tmp_path / "w" / "journal" / "worker-0.jsonl"])
    assert isinstance(noted, InputNoted)
    assert isinstance(met, ViolationMet)
    assert noted.data == met.data
    assert decode_ops(noted.data, Header(), NEW) == before[0]
    assert store.read_record().ops == op_table(NEW)
    assert bring_up_to_date(store, NEW) == 0


def test_ops_that_a_target_lost_are_dropped(tmp_path: Path) -> None:
    store = campaign(tmp_path / "w", op_table(NEW))
    store.save_input(records(OpKind.EVICT, OpKind.READ))
    store.save_input(records(OpKind.EVICT))
    assert bring_up_to_date(store, OLD) == 2
    assert meanings(store, OLD) == [decode_ops(records(OpKind.READ), Header())]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "does not say what the bytes of its corpus mean"),
        ({**op_table(OLD), "7": "0123456789ab"}, "in that campaign write means something else"),
        ({**op_table(OLD), "254": "0123456789ab"}, "in that campaign op 254 means something else"),
        ({**op_table(OLD), "record": "0"}, "in that campaign a record means something else"),
    ],
)
def test_another_meaning_is_refused_and_nothing_is_written(
    tmp_path: Path, table: dict[str, str], says: str
) -> None:
    store = campaign(tmp_path / "w", table)
    store.save_input(records(OpKind.WRITE))
    before = (tmp_path / "w" / "campaign.json").read_bytes()
    with pytest.raises(InputError, match=f"campaign.json: {says}.*--workdir"):
        bring_up_to_date(store, NEW)
    assert (tmp_path / "w" / "campaign.json").read_bytes() == before
    assert len(Store(tmp_path / "w").load_inputs()) == 1


def test_resume_does_not_replace_the_table_before_the_inputs_are_converted(tmp_path: Path) -> None:
    store = campaign(tmp_path / "w", op_table(OLD))
    newer = msgspec.structs.replace(store.read_record(), ops=op_table(NEW))
    assert Store.create(tmp_path / "w", newer, resume=True).read_record().ops == op_table(OLD)
