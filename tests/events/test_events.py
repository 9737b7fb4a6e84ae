# SPDX-License-Identifier: GPL-2.0-or-later
"""The vocabulary of events: JSON lines there and back, and kinds that are added."""

from __future__ import annotations

import json
from pathlib import Path
from types import UnionType
from typing import ClassVar, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

from guestemu.abi.addresses import Gva
from guestemu.abi.errors import InputError
from guestemu.campaign.near_misses import near_misses
from guestemu.cli.main import main
from guestemu.events.base import Event, event_kinds, kind_of
from guestemu.events.exits import HypercallExit, WrmsrExit
from guestemu.events.lines import Line, lines_of, read_lines
from guestemu.events.memory import LeafChange
from guestemu.events.text import describe
from guestemu.program.text import parse_text
from guestemu.report.trace.derive import events_of
from guestemu.report.trace.run import run_program
from guestemu.runner.testbed import build_testbed

VALUES: dict[type, object] = {int: 3, bool: True, str: "text", float: 1.5}


def where(_event: Event) -> str:
    return "D[3]"


def example(kind: type[Event]) -> Event:
    """An event of `kind` with a value in every field."""
    hints = get_type_hints(kind)
    fields = {name: _value(hints[name]) for name in kind.__struct_fields__}
    return kind(**fields)


def _value(hint: object) -> object:
    if get_origin(hint) in {Union, UnionType}:
        return _value(get_args(hint)[0])
    if get_origin(hint) is tuple:
        return (7, 2**63)
    assert isinstance(hint, type) or callable(hint)
    return VALUES.get(getattr(hint, "__supertype__", hint), 3)


@pytest.mark.parametrize("kind", event_kinds().values(), ids=kind_of)
def test_every_event_comes_back_from_its_json_lines(kind: type[Event]) -> None:
    event = example(kind)
    text = [json.dumps(line) for line in lines_of(3, event, where)]
    ((op, read),) = read_lines(map(json.loads, text))
    assert read == event
    assert op == 3


def test_every_kind_is_in_the_description_of_traces() -> None:
    page = (Path(__file__).parents[2] / "docs" / "program-format.md").read_text()
    traces = page[page.index("## Traces") :]
    for name in event_kinds():
        if not name.startswith("test-"):
            assert f"`{name}`" in traces, name


def test_a_refused_exit_and_a_signed_answer_come_back() -> None:
    events = [
        HypercallExit(12, (1, 2, 3, 4), 2**64 - 22, 7, 3, False),
        HypercallExit(12, (1, 2, 3, 4), None, 0),
        WrmsrExit(0x4B564D08, (2**63,), 2**63, 0),
    ]
    lines = [line for event in events for line in lines_of(0, event, where)]
    assert [line["ret"] for line in lines if line["event"] == "answer"] == [-22, None, 2**63]
    assert [event for _, event in read_lines(lines)] == events


def test_a_trace_file_holds_the_whole_stream(tmp_path: Path) -> None:
    path, trace = tmp_path / "a.prog", tmp_path / "a.jsonl"
    path.write_text("guestemu-program 1\n---\nset_memory_decrypted D[3] pages=2\nread D[3]\n")
    assert main(["run", str(path), "--trace", str(trace)]) == 0
    first, *rest = [json.loads(line) for line in trace.read_text().splitlines()]
    assert first["event"] == "run"
    found = list(read_lines(rest))
    assert [kind_of(event) for op, event in found if op == 0] == [
        *("op-begin", "flip", "flip", "hypercall", "hypercall", "op-end"),
    ]
    flips = [event for _, event in found if isinstance(event, LeafChange)]
    assert [flip.gfn for flip in flips] == [flips[0].gfn, flips[0].gfn + 1]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ({"event": "no-such", "op": 0}, "no-such"),
        ({"event": "warning"}, "warning"),
        ({"event": "warning", "op": 0, "name": 3}, "name"),
    ],
)
def test_a_bad_line_is_named(line: Line, named: str) -> None:
    with pytest.raises(InputError, match=named):
        list(read_lines([line]))


class Accepted(Event, frozen=True, tag="test-accepted"):
    """A kind that only this test knows."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"table_writes"})

    gfn: int
    pages: int
    level: int
    table_writes: int


@pytest.fixture
def with_an_added_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hypercall also emits an `Accepted`."""
    from guestemu.host.base import Hypercall
    from guestemu.runner.exit_recorder import ExitRecorder

    answer = ExitRecorder.hypercall

    def hypercall(self: ExitRecorder, call: Hypercall) -> int:
        self.emit(Accepted(call.a0 >> 12, 1, 2, self._ram.table_write_count))
        return answer(self, call)

    monkeypatch.setattr(ExitRecorder, "hypercall", hypercall)


@pytest.mark.usefixtures("with_an_added_kind")
def test_an_added_kind_is_in_traces_and_texts_without_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.prog"
    path.write_text("guestemu-program 1\n---\nset_memory_decrypted D[3] pages=2\n")
    run = run_program(parse_text(path.read_text(), "a.prog"))
    kinds = [line["event"] for line in events_of(run)]
    assert kinds == [
        *("op-begin", "flip", "flip"),
        *("test-accepted", "exit", "answer") * 2,
        "op-end",
    ]
    assert main(["run", str(path)]) == 0
    assert "test-accepted D[3] pages=1 level=2" in capsys.readouterr().out
    assert main(["run", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["events"]["test-accepted"] == 2


TD = """guestemu-program 1
guest snippet:6.12
sev tdx
---
set_memory_decrypted D[3] pages=1
set_memory_encrypted D[3] pages=1
"""


def test_page_states_of_a_td_are_in_the_stream_between_exits_and_leaves() -> None:
    kinds = [line["event"] for line in events_of(run_program(parse_text(TD, "td.prog")))]
    assert kinds == [
        *("op-begin", "flip", "exit", "answer", "mapgpa", "op-end"),
        *("op-begin", "exit", "answer", "mapgpa", "accept", "flip", "op-end"),
    ]


@pytest.mark.usefixtures("with_an_added_kind")
def test_an_added_kind_is_covered() -> None:
    text = "guestemu-program 1\n---\nhypercall nr=12 a0=D[3] a1=1\n"
    program = parse_text(text, "a.prog")
    bed = build_testbed(program.header)
    seen: list[tuple[int, ...]] = []
    bed.observe = lambda view: seen.append(near_misses(view, False))
    bed.run(program.ops)
    bed.observe = lambda view: seen.append(
        near_misses(msgspec.structs.replace(view, emitted=()), False)
    )
    bed.run(program.ops)
    bed.close()
    with_it, without = seen
    assert with_it[: len(without)] == without
    assert len(with_it) == len(without) + 1


def test_a_text_has_every_field_but_the_order() -> None:
    event = LeafChange(Gva(0x1000), 1, 2, True, 1, False)
    assert describe(event, where) == "flip D[3] pages=2 private=yes changed=1"
