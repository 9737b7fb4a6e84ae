# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a campaign on a cluster, without Dask: shares, exchange, a node, batches."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path

import msgspec
import pytest
from cluster_command import CRASHING, PLANTED

from guestemu.abi.errors import InputError, MissingError
from guestemu.campaign.campaign import Options, prepare
from guestemu.campaign.cluster import dask as dask_module
from guestemu.campaign.cluster import exchange as exchange_module
from guestemu.campaign.cluster.batches import judge_on, replay_on
from guestemu.campaign.cluster.dask import Cluster, NodeLost, _compare, _identity
from guestemu.campaign.cluster.exchange import Exchange
from guestemu.campaign.cluster.jobs import JobAnswer, RunBatch, Task, decode_answer, run_task
from guestemu.campaign.cluster.jobs import encode as encode_task
from guestemu.campaign.cluster.node import Node
from guestemu.campaign.cluster.shares import Share, divide, place
from guestemu.campaign.cluster.sums import add_up
from guestemu.campaign.cluster.tail import DirectoryTail, JournalTail
from guestemu.campaign.cluster.wire import (
    News,
    Post,
    ShareStart,
    decode_news,
    decode_post,
    encode,
    identity,
)
from guestemu.campaign.figures import Figures, WorkerFigures
from guestemu.campaign.findings import FindingCount
from guestemu.campaign.journal import (
    FindingFiled,
    InputNoted,
    Journal,
    PositionNoted,
    ViolationMet,
    ViolationSettled,
)
from guestemu.host.permission import permissions
from guestemu.migration.model.count import Space
from guestemu.migration.model.order_model import Scenario
from guestemu.migration.model.programs import LinkKind
from guestemu.migration.model.steps import ORDERS, SCRIPTS
from guestemu.program.binary import encode_ops
from guestemu.program.ops import Op, OpKind
from guestemu.study.explore_confirm import choose

WRITES_RESERVED_BIT = encode_ops([Op(OpKind.WRMSR, (0x4B564D08, 2))])


class FakeNode:
    """A node that answers what it is told to, at once."""

    def __init__(self, address: str, news: News) -> None:
        self.address = address
        self.news = news
        self.posts: list[Post] = []
        self.is_silent = False

    def call(self, data: bytes):
        self.posts.append(decode_post(data))
        return lambda: None if self.is_silent else encode(self.news)


def new_campaign(root: Path, **chosen: object):
    options = {"target": "msr", "engine": "random", "host": f"{PLANTED}:ReservedBits"}
    return prepare(Options(**{**options, "workdir": root, **chosen}))


def new_start(campaign, **changed: object) -> ShareStart:
    start = ShareStart(
        share=3,
        life=1,
        workdir=str(campaign.store.root),
        record=campaign.store.read_record(),
        configs=campaign.configs,
        inputs=[],
        entries=[],
        deadly=[],
    )
    return msgspec.structs.replace(start, **changed)


def new_shares(*threads: int) -> list[Share]:
    header = prepare_configs(sum(threads))
    return divide(header, threads)


def prepare_configs(jobs: int):
    from guestemu.campaign.targets import find_target
    from guestemu.campaign.worker import WorkerConfig

    target = find_target("msr")
    first = WorkerConfig(
        target="msr",
        header=target.header,
        engine="random",
        workdir="",
        index=0,
        seed=5,
        faults=False,
        execs=100,
        seconds=None,
        is_shared=True,
        jobs=jobs,
    )
    return [msgspec.structs.replace(first, index=index) for index in range(jobs)]


def news(**changed: object) -> News:
    return msgspec.structs.replace(News([], [], [], [], None), **changed)


def figures(*workers: WorkerFigures, **changed: object) -> Figures:
    empty = Figures(
        seconds=1.0,
        executions=sum(worker.executions for worker in workers),
        execs_per_second=0.0,
        median_ops=0,
        corpus_size=0,
        guest_blocks=0,
        model_states=0,
        last_new_s=0.0,
        findings=[],
        unstable=[],
        infrastructure=[],
        workers=list(workers),
    )
    return msgspec.structs.replace(empty, **changed)


# Shares -------------------------------------------------------------------------------------------


def test_a_worker_gets_one_configuration_for_each_of_its_threads():
    shares = new_shares(2, 1)
    assert [[config.index for config in share.configs] for share in shares] == [[0, 1], [2]]


def test_a_second_life_has_what_is_left_of_the_first_and_other_random_numbers():
    (share,) = new_shares(2)
    share.starts = 1
    share.figures = figures(
        WorkerFigures(0, 30, 1.0, 0, False), WorkerFigures(1, 100, 1.0, 0, True)
    )
    share.lose()
    left = share.left(9.0)
    assert [config.execs for config in left] == [70, 0]
    assert [config.seconds for config in left] == [9.0, 9.0]
    assert left[0].seed != share.configs[0].seed


def test_a_lost_share_goes_to_an_idle_worker_or_if_it_may_to_the_least_busy():
    lost, *others = shares = new_shares(1, 1, 1)
    for share, address in zip(others, ("a", "b"), strict=True):
        share.node = FakeNode(address, news())
    assert place(lost, shares, ["a", "b", "c"], may_double=False) == "c"
    assert place(lost, shares, ["a", "b"], may_double=False) is None
    others[1].is_done = True
    assert place(lost, shares, ["a", "b"], may_double=False) == "b"
    others[1].is_done = False
    assert place(lost, shares, ["a", "b"], may_double=True) == "a"
    assert place(lost, shares, [], may_double=True) is None


def test_figures_of_nodes_add_up_and_lives_of_a_worker_are_one_line():
    first = figures(
        WorkerFigures(0, 10, 5.0, 0, False),
        lengths=[0, 10],
        model_states=7,
        findings=[FindingCount("k-1", "c", 2, 3.0)],
    )
    second = figures(
        WorkerFigures(0, 20, 6.0, 1, True),
        WorkerFigures(1, 5, 1.0, 0, True),
        lengths=[0, 0, 25],
        model_states=9,
        findings=[FindingCount("k-1", "c", 1, 1.0)],
    )
    total = add_up([first, second], 4.0, 12, [FindingCount("k-2", "c", 4, 0.5)], ["x"], False)
    assert (total.executions, total.median_ops, total.model_states) == (35, 2, 9)
    assert total.workers == [
        WorkerFigures(0, 30, 6.0, 2, True),
        WorkerFigures(1, 5, 1.0, 0, True),
    ]
    assert [(one.key, one.count, one.first_seen_s) for one in total.findings] == [
        ("k-2", 4, 0.5),
        ("k-1", 3, 1.0),
    ]
    assert total.infrastructure == ["x"]


# Following what workers write ---------------------------------------------------------------------


def test_a_journal_is_read_from_its_end_on_and_a_line_that_is_not_whole_waits(tmp_path):
    journal = Journal(tmp_path / "worker-0.jsonl")
    journal.add(InputNoted(b"old"))
    tail = JournalTail(journal.path)
    assert list(tail.read()) == []
    journal.add(InputNoted(b"new"))
    with journal.path.open("ab") as file:
        file.write(b'{"type":"settled",')
    assert list(tail.read()) == [InputNoted(b"new")]
    with journal.path.open("ab") as file:
        file.write(b'"sign":"s"}\n')
    assert list(tail.read()) == [ViolationSettled("s")]
    assert list(tail.read()) == []


def test_each_file_is_told_once(tmp_path):
    (tmp_path / "crash-old.bin").write_bytes(b"0")
    tail = DirectoryTail(tmp_path, "crash-*.bin")
    (tmp_path / "crash-new.bin").write_bytes(b"1")
    (tmp_path / "other").write_bytes(b"2")
    assert list(tail.read()) == [("crash-new.bin", b"1")]
    assert list(tail.read()) == []


# The exchange -------------------------------------------------------------------------------------


def exchange_once(exchange: Exchange, *shares: Share) -> None:
    for share in shares:
        exchange.post(share)
        assert exchange.collect(share)


def test_an_input_goes_once_to_every_other_node_and_into_the_corpus(tmp_path):
    campaign = new_campaign(tmp_path / "w")
    exchange = Exchange(campaign.store)
    seeds = list(exchange.inputs)
    assert seeds
    one, other = shares = new_shares(1, 1)
    found = (b"found here", b"found there")
    for share, data in zip(shares, found, strict=True):
        node = FakeNode("tcp://x", news(inputs=[data, b"found by both"]))
        share.give_to(node, len(exchange.inputs))
    for _ in range(3):
        exchange_once(exchange, one, other)
    assert [post.inputs for post in one.node.posts] == [[], [b"found there"], []]
    assert [post.inputs for post in other.node.posts] == [[b"found here", b"found by both"], [], []]
    kept = {path.read_bytes() for path in campaign.store.corpus.iterdir()}
    assert kept == {*seeds, *found, b"found by both"}
    assert exchange.traffic.exchanges == 6


def test_journals_and_findings_of_a_node_are_copied(tmp_path):
    campaign = new_campaign(tmp_path / "w")
    exchange = Exchange(campaign.store)
    (share,) = new_shares(1)
    met = ViolationMet("sign", WRITES_RESERVED_BIT, 0.5)
    told = news(
        entries=[(7, met), (7, FindingFiled("key", "check", 0.6))],
        findings=[("key.prog", b"program")],
        files=[("crash-share0-1-1.bin", b"deadly")],
    )
    share.give_to(FakeNode("tcp://x", told), 0)
    exchange_once(exchange, share)
    assert campaign.store.unsettled() == [met]
    assert [found.key for found in campaign.store.settled()] == ["key"]
    assert campaign.store.finding_path("key").read_bytes() == b"program"
    assert campaign.store.deadly_inputs() == {b"deadly"}
    assert (campaign.store.journals / "worker-7.jsonl").exists()


def test_a_node_that_is_silent_for_too_long_is_lost(tmp_path, monkeypatch):
    exchange = Exchange(new_campaign(tmp_path / "w").store)
    (share,) = new_shares(1)
    node = FakeNode("tcp://x", news())
    node.is_silent = True
    share.give_to(node, 0)
    exchange.post(share)
    assert not exchange.collect(share)
    monkeypatch.setattr(exchange_module, "SILENCE_S", 0.0)
    with pytest.raises(NodeLost, match="no answer"):
        exchange.collect(share)


# A node -------------------------------------------------------------------------------------------


def run_to_end(node: Node, seconds: float = 60.0) -> list[News]:
    told = [decode_news(node.exchange(encode(Post([]))))]
    end = time.monotonic() + seconds
    while not told[-1].is_done:
        assert time.monotonic() < end, told[-1]
        time.sleep(0.05)
        told.append(decode_news(node.exchange(encode(Post([])))))
    node.close()
    return told


def test_a_node_goes_on_with_what_a_lost_one_had_met_and_tells_it_as_the_submitters(tmp_path):
    campaign = new_campaign(tmp_path / "w", execs=1, seeds=("none",))
    met = ViolationMet("sign", WRITES_RESERVED_BIT, 0.5)
    node = Node(encode(new_start(campaign, entries=[(0, met), (0, PositionNoted("s", 4))])))
    told = run_to_end(node)
    entries = [entry for one in told for entry in one.entries]
    assert (0, met) not in entries
    assert (0, ViolationSettled("sign")) in entries
    ((name, text),) = [finding for one in told for finding in one.findings]
    assert f"guestemu run {campaign.store.finding_path(name[:-5])}" in text.decode()
    last = told[-1].figures
    assert last is not None
    assert [found.key for found in last.findings] == [name.removesuffix(".prog")]
    assert last.executions == 1
    assert told[-1].failure is None


def test_a_node_tells_why_it_cannot_go_on(tmp_path):
    campaign = new_campaign(tmp_path / "w", execs=1)
    lacking = msgspec.structs.replace(
        campaign.configs[0].header, host="such.py:Host", plugin="/no/such.py"
    )
    config = msgspec.structs.replace(campaign.configs[0], header=lacking)
    told = run_to_end(Node(encode(new_start(campaign, configs=[config]))))
    failure = told[-1].failure
    assert failure is not None
    assert failure.is_input
    assert "/no/such.py" in failure.message


def test_a_node_that_nobody_calls_ends_and_says_so_to_whoever_comes_late(tmp_path, monkeypatch):
    monkeypatch.setattr(Node, "lease", 0.1)
    node = Node(encode(new_start(new_campaign(tmp_path / "w"))))
    node._thread.join(30)
    assert not node._thread.is_alive()
    assert not node._root.exists()
    with pytest.raises(RuntimeError, match="no submitter called"):
        node.exchange(encode(Post([])))


# Batches ------------------------------------------------------------------------------------------


class HereCluster:
    """Runs tasks in this process's children."""

    def run(self, work, jobs):
        yield from reversed([work(job) for job in jobs])


def test_a_program_whose_host_ends_the_process_fails_and_its_neighbours_do_not(tmp_path):
    head = f"guestemu-program 1\nhost {CRASHING.name}:Crashing\n---\n"
    texts = ["hypercall nr=12", "hypercall nr=10 a1=0x1234", "hypercall nr=11"]
    paths = [tmp_path / f"{number}.prog" for number in range(3)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(f"{head}{text}\n")
    paths.append(tmp_path / "none.prog")
    results = replay_on(HereCluster(), 1, paths, permissions([CRASHING.parent]))
    assert [result.program for result in results] == [str(path) for path in paths]
    assert [result.passed for result in results] == [True, False, True, False]
    assert "Crashing.hypercall ended by a segmentation fault" in results[1].mismatches[0].found
    assert "none.prog" in (results[3].bad or "")


def test_verdicts_come_with_their_interleavings():
    space = Space(Scenario(ORDERS[1], SCRIPTS[0], 2))
    witnesses = list(choose([space], 3, 0))
    found = list(judge_on(HereCluster(), witnesses, LinkKind.PLAIN))
    assert {id(witness) for witness, _ in found} == {id(witness) for witness in witnesses}
    assert [verdict == witness.verdict for witness, verdict in found] == [True] * 6


def test_a_task_of_another_guestemu_is_refused():
    sender = msgspec.structs.replace(identity(), version="0.0.0")
    answer = decode_answer(run_task(encode_task(Task(4, RunBatch([]), sender))))
    assert (answer.number, answer.is_missing) == (4, True)
    assert "install the same" in answer.failure


def test_a_batch_that_cannot_run_is_the_users_error():
    class Refusing:
        def run(self, work, jobs):
            yield encode_task(JobAnswer(0, failure="no such host", is_input=True))

    space = Space(Scenario(ORDERS[1], SCRIPTS[0], 2))
    with pytest.raises(InputError, match="no such host"):
        list(judge_on(Refusing(), choose([space], 1, 0), LinkKind.PLAIN))


# Connecting ---------------------------------------------------------------------------------------


def test_without_the_extra_the_remedy_is_told(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        dask_module.importlib.util,
        "find_spec",
        lambda name: None if name == "distributed" else real(name),
    )
    with pytest.raises(MissingError, match=r"pip install 'guestemu\[cluster\]'"):
        Cluster("local", 1)


def test_a_scheduler_that_is_not_there_is_missing(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(dask_module, "_CONNECT_S", 0.5)
    with pytest.raises(MissingError, match="no scheduler answers"):
        Cluster("tcp://127.0.0.1:9", 1)


def test_workers_need_the_same_guestemu():
    _compare("tcp://x", _identity())
    with pytest.raises(MissingError, match=r"tcp://x has another guestemu: version 9 \(here 0"):
        _compare("tcp://x", {**_identity(), "version": "9"})
    with pytest.raises(MissingError, match=r"cannot load guestemu .*No module"):
        _compare("tcp://x", ModuleNotFoundError("No module named 'guestemu'"))


def test_the_digest_of_the_ops_is_the_same_in_every_process():
    import subprocess
    import sys

    code = "from guestemu.campaign.cluster.wire import identity; print(identity().ops)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == identity().ops
