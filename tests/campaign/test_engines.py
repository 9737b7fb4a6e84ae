# SPDX-License-Identifier: GPL-2.0-or-later
"""Engines beside atheris: the exhaustive one counts its space, Hypothesis keeps its database."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import planted_hosts
import pytest
from fuzz_command import PLANTED, fuzz, fuzz_json

from guestemu.abi.errors import InputError
from guestemu.campaign.bounds import Bounds, parse_bounds
from guestemu.campaign.engines import ENGINES
from guestemu.campaign.engines.exhaustive import alphabet, count_space, program_at
from guestemu.campaign.seeds import seed_inputs
from guestemu.campaign.session import Plan, Session, SessionOver
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.campaign.targets import find_target
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.program.binary import OpDecoder
from guestemu.program.ops import OpKind


def leave(error: BaseException | None) -> None:
    pytest.fail(str(error))


def session_of(target: str, tmp_path: Path, engine_plan: dict[str, object], host=None) -> Session:
    chosen = find_target(target)
    directory = tmp_path / "w"
    record = CampaignRecord(target, "", "", 39, False)
    store = Store.create(directory, record, resume=directory.exists())
    plan = msgspec.structs.replace(Plan(chosen, chosen.header), **engine_plan)
    return Session(plan, store, host=host or MapGpaRangeHost())


@pytest.mark.parametrize(("start_up", "end"), [(0.0, 10.0), (4.0, 6.0), (60.0, 5.0)])
def test_the_start_of_a_worker_counts_up_to_half_of_its_time(start_up, end, monkeypatch, tmp_path):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    session = session_of("hypercall", tmp_path, {"seconds": 10.0, "began": 1000.0 - start_up})
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + end - 0.1)
    assert session.allow()
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + end + 0.1)
    with pytest.raises(SessionOver):
        session.allow()


# Exhaustive -------------------------------------------------------------------------------------


def test_the_space_is_every_sequence_once():
    letters = [b"a", b"b", b"c"]
    space = count_space(3, 3)
    assert space == 3 + 9 + 27
    assert len({program_at(letters, position) for position in range(space)}) == space
    assert [program_at(letters, position) for position in (0, 2, 3, 11, 12)] == [
        *(b"a", b"c", b"aa", b"cc", b"aaa")
    ]


def test_letters_are_what_the_target_runs(tmp_path):
    session = session_of("conversion", tmp_path, {"bounds": Bounds(1, 2)})
    ops = [session.executor.decode(letter)[0] for letter in alphabet(session)]
    assert len(set(ops)) == len(ops)
    assert {op.kind for op in ops} == session.kinds
    assert all(
        op.arguments[1] == 0 for op in ops if op.kind is OpKind.SET_MEMORY_DECRYPTED
    )  # the limits of a good caller


def test_all_of_the_space_runs_and_finds_what_is_in_it(tmp_path):
    figures = fuzz_json(
        *("msr", "--engine", "exhaustive", "--bounds", "1,4", "--jobs", "2"),
        *("--host", f"{PLANTED}:ReservedBits"),
        cwd=tmp_path,
        status=1,
    )
    assert figures["exhausted"]
    assert figures["executions"] == figures["space"] > 20
    assert {finding["check"] for finding in figures["findings"]} == {"migration-control"}


def test_an_exhaustive_campaign_goes_on_where_it_was(tmp_path):
    arguments = ("msr", "--engine", "exhaustive", "--bounds", "2,3")
    first = fuzz_json(*arguments, "--workdir", "w", "--execs", "1500", cwd=tmp_path, status=0)
    assert not first["exhausted"]
    rest = fuzz_json(*arguments, "--workdir", "w", "--resume", cwd=tmp_path, status=0)
    assert rest["exhausted"]
    assert first["space"] == rest["space"] > 1500
    # a position is noted every 1024 programs: what ran since then runs again
    assert first["space"] - 1024 >= rest["executions"] >= first["space"] - 1500
    again = fuzz_json(*arguments, "--workdir", "w", "--resume", cwd=tmp_path, status=0)
    assert again["exhausted"]
    assert again["executions"] == 0


@pytest.mark.parametrize("text", ["0", "4", "1,0", "1,65", "a", "1,2,3", ""])
def test_bad_bounds_name_the_option(text):
    with pytest.raises(InputError, match="--bounds"):
        parse_bounds(text, 3)


def test_bounds_belong_to_the_exhaustive_engine(tmp_path):
    done = fuzz("msr", "--engine", "random", "--bounds", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "only with --engine exhaustive" in done.stderr
    assert not list(tmp_path.iterdir())


# Hypothesis -------------------------------------------------------------------------------------


def test_hypothesis_finds_shrinks_and_keeps_the_example(tmp_path):
    engine = ENGINES["hypothesis"]
    host = planted_hosts.WrongErrno
    session = session_of("hypercall", tmp_path, {"execs": 600, "seed": 3}, host())
    engine.run(session, leave)
    assert session.executions == 600
    assert {finding.check for finding in session.make_report().findings} == {"results"}
    assert any((tmp_path / "w/hypothesis").rglob("*"))
    second = session_of("hypercall", tmp_path, {"execs": 12, "seed": 4}, host())
    for path in second.store.corpus.iterdir():
        path.unlink()
    engine.run(second, leave)
    assert second.make_report().findings, "the example in the database comes first"


def test_hypothesis_on_a_clean_host_finds_nothing(tmp_path):
    session = session_of("msr", tmp_path, {"execs": 300})
    ENGINES["hypothesis"].run(session, leave)
    assert session.executions == 300
    assert session.make_report().findings == []


def test_an_error_of_the_host_is_one_finding(tmp_path):
    figures = fuzz_json(
        *("hypercall", "--execs", "5", "--engine", "hypothesis"),
        *("--host", f"{PLANTED}:Raises"),
        cwd=tmp_path,
        status=1,
    )
    (finding,) = figures["findings"]
    assert finding["check"] == "host-failed"


# Seeds ------------------------------------------------------------------------------------------


def test_a_user_s_programs_are_seeds(tmp_path):
    corpora = Path(__file__).parents[2] / "corpora" / "hypercall"
    arguments = ("hypercall", "--execs", "200", "--engine", "random", "--json")
    sizes = {}
    for what in ("none", str(corpora)):
        workdir = tmp_path / str(len(sizes))
        done = fuzz(*arguments, "--seeds", what, "--workdir", str(workdir), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        sizes[what] = json.loads(done.stdout)["coverage"]["model_states"]
    assert sizes[str(corpora)] > sizes["none"]


def test_a_user_s_host_meets_as_many_ranges_as_a_program_can_have():
    target = find_target("hypercall")
    own = msgspec.structs.replace(target.header, host="own.py:Own", plugin="own.py")
    kinds = target.kinds_with(False)
    for header, wanted in ((target.header, False), (own, True)):
        decode = OpDecoder(header.vcpus, False, kinds, {}).decode
        programs = [decode(data) for data in seed_inputs(["flows"], target, header, kinds)]
        shared = [
            {op.arguments[1] for op in ops if op.arguments[2:4] == (1, 0)} for ops in programs
        ]
        assert any(len(gpas) == target.max_ops for gpas in shared) == wanted


@pytest.mark.parametrize("what", ["no-such-thing", "."])
def test_seeds_that_are_not_there_are_named(what, tmp_path):
    done = fuzz("msr", "--execs", "10", "--seeds", what, cwd=tmp_path)
    assert done.returncode == 2
    assert f"--inputs {what}" in done.stderr
    assert not list(tmp_path.iterdir())


# Blind ------------------------------------------------------------------------------------------


def test_blind_programs_do_not_depend_on_what_they_cover(tmp_path, monkeypatch):
    def programs(seed: int, is_new: bool) -> list[bytes]:
        session = session_of("hypercall", tmp_path, {"seed": seed})
        tried: list[bytes] = []

        def execute(data: bytes) -> bool:
            if len(tried) == 50:
                raise SessionOver
            tried.append(data)
            return is_new

        monkeypatch.setattr(session, "execute", execute)
        ENGINES["blind"].run(session, leave)
        return tried

    assert programs(1, True) == programs(1, False)
    assert programs(1, False) != programs(2, False)
