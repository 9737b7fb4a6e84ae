# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a campaign: limits of ops, counters, keys, mutation, the directory, the screen."""

from __future__ import annotations

import errno
import io
import os
import random

import msgspec
import pytest
from rich.console import Console

from guestemu.abi.errors import InputError, MissingError
from guestemu.abi.files import write_atomically
from guestemu.campaign import engines
from guestemu.campaign.engines.random import RandomEngine
from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import GUEST_COUNTERS, Feedback, value_class
from guestemu.campaign.figures import Figures, WorkerFigures, merge_counts
from guestemu.campaign.findings import FindingCount, signature
from guestemu.campaign.mutator import Mutator
from guestemu.campaign.ranges import MAX_EARLY_PAGES, MAX_PAGES, limit_op
from guestemu.campaign.screen import Screen, duration
from guestemu.campaign.session import Plan, Session, SessionOver
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.campaign.targets import TARGETS, find_target
from guestemu.checks.base import Violation
from guestemu.program.binary import RECORD_SIZE, encode_ops
from guestemu.program.ops import REGIONS, Op, OpKind, Region, canonical_op
from guestemu.program.program import Header

HYPERCALL = find_target("hypercall")
NOTIFY = Op(OpKind.HYPERCALL, (12, 0x5000, 1, 0, 0))
UNALIGNED = Op(OpKind.HYPERCALL, (12, 0x5001, 1, 0, 0))


@pytest.fixture(scope="module")
def feedback():
    return Feedback()


@pytest.fixture(scope="module")
def executor(feedback):
    return Executor(HYPERCALL, HYPERCALL.header, HYPERCALL.kinds, feedback)


# Limits of ops ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OpKind.SET_MEMORY_ENCRYPTED, OpKind.SET_MEMORY_DECRYPTED])
def test_conversions_stay_inside_their_region(kind):
    rng = random.Random(1)
    for _ in range(300):
        region = rng.choice((Region.D, Region.L, Region.V))
        page = rng.randrange(REGIONS[region].pages)
        op = limit_op(Op(kind, (rng.getrandbits(32), rng.getrandbits(12)), region, page), True)
        pages, offset = op.arguments
        assert page + pages <= REGIONS[region].pages
        assert offset == 0


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [(4091, 5, (4091, 5)), (4091, 6, (4088, 6)), (15, 8000, (8, 8000)), (15, 100, (15, 100))],
)
def test_no_store_crosses_a_page_inside_a_word(offset, size, expected):
    op = limit_op(Op(OpKind.WRITE, (0x5A, offset, size), Region.D, 3), False)
    assert op.arguments[1:] == expected


def test_a_lawful_op_is_left_alone():
    op = Op(OpKind.SET_MEMORY_DECRYPTED, (MAX_PAGES, 0), Region.D, 3)
    assert limit_op(op, True) is op


def test_faults_leave_misaligned_addresses_in_but_bound_lengths():
    op = Op(OpKind.EARLY_SET_MEMORY_DECRYPTED, (1 << 40, 15), Region.V, 3)
    size, offset = limit_op(op, False).arguments
    assert offset == 15
    assert 0 < size <= MAX_EARLY_PAGES * 4096 - 15
    lawful = limit_op(op, True)
    assert lawful.arguments[1] == 0
    assert lawful.region is Region.D


# Counters ---------------------------------------------------------------------------------------


def test_a_program_is_new_once(executor, feedback):
    feedback.clear()
    executor.run((NOTIFY,))
    assert feedback.take()
    feedback.clear()
    executor.run((NOTIFY,))
    assert not feedback.take()


def test_guest_blocks_and_model_states_are_counted_apart(executor, feedback):
    feedback.clear()
    executor.run((NOTIFY,))
    assert any(feedback.area[:GUEST_COUNTERS])
    assert any(feedback.area[GUEST_COUNTERS:])
    feedback.take()
    assert 0 < feedback.guest_blocks < 50
    assert feedback.model_states >= 2


def test_another_path_of_the_host_is_new(executor, feedback):
    feedback.clear()
    executor.run((NOTIFY,))
    feedback.take()
    feedback.clear()
    executor.run((UNALIGNED,))
    assert feedback.take()


def test_results_fall_into_classes():
    assert len({value_class(v) for v in (None, 0, 1, 7, -22, (1 << 64) - 1, (1 << 32) - 1)}) == 7
    assert value_class(7) == value_class(1 << 40)
    assert value_class(-22) == value_class((1 << 64) - 22)


# Findings ---------------------------------------------------------------------------------------


def violation(message: str, op: int = 0) -> Violation:
    return Violation("status", op, message)


def test_signature_ignores_places_and_keeps_errors():
    op = canonical_op(NOTIFY)
    one = violation("GPA 0x5000 is shared (2 frames differ), answered 0xffffffffffffffea")
    two = violation("GPA 0x77000 is shared (1 frame differs), answered 0xffffffffffffffea")
    other = violation("GPA 0x5000 is shared (2 frames differ), answered 0xffffffffffffffff")
    assert signature(one, op) == signature(two, op)
    assert signature(one, op) != signature(other, op)


def test_counts_of_workers_add_up():
    one = [FindingCount("k", "status", 3, 2.0)]
    two = [FindingCount("k", "status", 4, 1.0), FindingCount("j", "status", 1, 5.0)]
    assert merge_counts([one, two]) == [
        FindingCount("k", "status", 7, 1.0),
        FindingCount("j", "status", 1, 5.0),
    ]
    assert one[0].count == 3


# Mutation ---------------------------------------------------------------------------------------


def test_mutation_is_decided_by_its_arguments_and_bounded():
    mutator = Mutator(Header(), HYPERCALL.kinds)
    data = encode_ops([NOTIFY, UNALIGNED])
    results = [mutator.mutate(data, 2 * RECORD_SIZE, seed) for seed in range(200)]
    assert results == [mutator.mutate(data, 2 * RECORD_SIZE, seed) for seed in range(200)]
    assert len(set(results)) > 100
    assert {len(result) % RECORD_SIZE for result in results} == {0}
    assert max(map(len, results)) == 2 * RECORD_SIZE
    assert mutator.mutate(b"", RECORD_SIZE, 1)
    assert mutator.mutate(data, 10, 3) == b""


# Sessions ---------------------------------------------------------------------------------------


def test_a_session_ends_at_its_limits():
    session = Session(Plan(HYPERCALL, HYPERCALL.header, execs=2))
    data = encode_ops([NOTIFY])
    assert session.execute(data)
    session.execute(data)
    with pytest.raises(SessionOver):
        session.execute(data)
    stopped = Session(Plan(HYPERCALL, HYPERCALL.header))
    stopped.stop()
    with pytest.raises(SessionOver):
        stopped.execute(data)


def test_faults_on_a_host_without_injection_name_the_option(tmp_path):
    plugin = tmp_path / "plain.py"
    plugin.write_text(
        "from bitarray import bitarray\n"
        "class Plain:\n"
        "    migration_ready = False\n"
        "    def reset(self, frames):\n"
        "        self.bits = bitarray(frames, endian='little'); self.bits.setall(True)\n"
        "    def hypercall(self, call): return 0\n"
        "    def rdmsr(self, index, vcpu): return 0\n"
        "    def wrmsr(self, index, value, vcpu): pass\n"
        "    def private_map(self): return self.bits\n"
    )
    name = "plain.py:Plain"
    header = msgspec.structs.replace(HYPERCALL.header, host=name, plugin=str(plugin))
    session = Session(Plan(HYPERCALL, header, faults=True))
    with pytest.raises(InputError, match="--faults"):
        session.execute(encode_ops([Op(OpKind.ANSWER, (1, 1))]))


def test_every_target_runs_with_and_without_faults():
    for target in TARGETS.values():
        if target.header.guest.startswith("userland:"):
            continue  # a real kernel: tests/linux/test_fuzz_device.py
        for faults in (False, True) if target.fault_kinds else (False,):
            session = Session(Plan(target, target.header, faults=faults, seed=5, execs=30))
            RandomEngine().run(session, lambda error: pytest.fail(str(error)))
            assert session.executions == 30


# Engines ----------------------------------------------------------------------------------------


class NoAtheris(engines.AtherisEngine):
    def is_available(self) -> bool:
        return False


def test_without_atheris_random_serves_and_says_so(monkeypatch):
    missing = NoAtheris()
    monkeypatch.setattr(engines, "_ENGINES", (missing, RandomEngine()))
    monkeypatch.setattr(engines, "ENGINES", {"atheris": missing, "random": RandomEngine()})
    engine, note = engines.choose_engine(None)
    assert engine.name == "random"
    assert "atheris" in note
    with pytest.raises(MissingError, match="--engine atheris"):
        engines.choose_engine("atheris")


# The directory ----------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_leaves_no_half_file(tmp_path):
    (tmp_path / f".x.prog.{os.getpid()}").symlink_to("/dev/full")  # where the bytes go first
    with pytest.raises(MissingError, match=r"x\.prog: No space left on device; .*--workdir"):
        write_atomically(tmp_path / "x.prog", b"data", "--workdir")
    assert list(tmp_path.iterdir()) == []


def test_inputs_are_loaded_once_and_never_half(tmp_path):
    record = CampaignRecord("hypercall", "g", "h", 39, False)
    store = Store.create(tmp_path / "w", record, resume=False)
    store.save_input(b"own")
    (store.corpus / "other").write_bytes(b"other")
    (store.corpus / ".half.123").write_bytes(b"ha")
    assert store.load_inputs() == [b"other"]
    assert store.load_inputs() == []
    assert store.corpus_size() == 2
    with pytest.raises(InputError, match="--resume"):
        Store.create(tmp_path / "w", record, resume=False)
    broken = tmp_path / "b"
    broken.mkdir()
    (broken / "campaign.json").write_text("{")
    with pytest.raises(InputError, match="no campaign to resume"):
        Store.create(broken, record, resume=True)


# The screen -------------------------------------------------------------------------------------


def test_screen_shows_every_figure():
    figures = Figures(
        seconds=125.0,
        executions=1234567,
        execs_per_second=9876.0,
        median_ops=1,
        corpus_size=42,
        guest_blocks=17,
        model_states=333,
        last_new_s=100.0,
        findings=[FindingCount("status-read-1", "status", 5, 1.0)],
        unstable=[],
        infrastructure=[],
        workers=[WorkerFigures(0, 5, 1.0, 0, False), WorkerFigures(1, 6, 1.0, 2, True)],
    )
    text = io.StringIO()
    console = Console(file=text, width=100, force_terminal=True, no_color=True)
    with Screen("fuzz msr, random", console, is_live=True) as screen:
        screen.show(figures)
    shown = text.getvalue()
    words = ("fuzz msr, random", "2 min 05 s", "1,234,567", "9,876", "42", "17", "333", "25.0 s")
    for word in (*words, "status-read-1", "worker 1", "started again 2"):
        assert word in shown


def test_durations():
    assert [duration(s) for s in (4.25, 200, 7500)] == ["4.2 s", "3 min 20 s", "2 h 05 min"]


def test_minimising_stays_within_what_a_good_caller_does(feedback):
    conversion = find_target("conversion")
    lawful = Executor(conversion, conversion.header, conversion.kinds, feedback)
    inside = canonical_op(Op(OpKind.SET_MEMORY_DECRYPTED, (2, 0), Region.D, 1022))
    assert lawful.allows((inside,))
    beyond = msgspec.structs.replace(inside, arguments=(3, 0))
    assert not lawful.allows((beyond,))
    stop = canonical_op(Op(OpKind.STOP_CONVERSION))
    assert not lawful.allows((stop, inside, stop))
    assert lawful.decode(encode_ops([stop, inside, stop])) == (stop, inside)


@pytest.mark.parametrize(
    ("page", "pages", "expected"),
    [
        (0, 1 << 31, (0, 1 << 19)),
        (5, 1 << 19, (0, 1 << 19)),
        ((1 << 18) + 9, 1 << 20, (1 << 18, 1 << 18)),
        (7, 5000, (0, 1 << 18)),
        (7, 1025, (7, 1025)),
    ],
)
def test_large_calls_in_region_g_are_for_whole_leaves(page, pages, expected):
    op = limit_op(Op(OpKind.SET_MEMORY_DECRYPTED, (pages, 0), Region.G, page), True)
    assert (op.page, op.arguments[0]) == expected
    assert limit_op(op, True) == op


def test_coverage_of_a_program_does_not_depend_on_the_one_before(executor, feedback):
    seen = []
    for before in (NOTIFY, UNALIGNED):
        executor.run((before,))
        feedback.area[:] = bytes(len(feedback.area))  # as libFuzzer clears them
        executor.run((NOTIFY,))
        seen.append(bytes(feedback.area))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("pages", [59, 60, 61])
def test_a_range_at_a_word_of_the_bitmap_is_a_near_miss(executor, feedback, pages):
    def near(count: int) -> bytes:
        feedback.clear()
        executor.run((msgspec.structs.replace(NOTIFY, arguments=(12, 0x5000, count, 0, 0)),))
        return bytes(feedback.area[GUEST_COUNTERS * 2 :])

    # 0x5000 is frame 5: 59 pages end with the first word, 58 and 60 beside it
    assert any(near(pages))
    assert (near(pages - 1) == near(pages)) is False


def test_a_program_that_uses_up_its_budget_is_filed_and_not_mutated():
    conversion = find_target("conversion")
    session = Session(Plan(conversion, conversion.header, faults=True))
    hole = Op(OpKind.UNMAP, (), Region.D, 3)
    endless = Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), Region.D, 3)
    assert not session.execute(encode_ops([hole, endless]))
    assert "progress" in {finding.check for finding in session.make_report().findings}
    assert not any(session.feedback.area[:])


def test_an_ordered_answer_is_an_error():
    """Answered 0 and not acted on is a lie of the host, not a defect of the guest."""
    lie = Op(OpKind.ANSWER, (0, 2))
    error = limit_op(lie, False)
    assert error.arguments == (-errno.EINVAL & (1 << 64) - 1, 2)
    assert limit_op(error, False) is error
