# SPDX-License-Identifier: GPL-2.0-or-later
"""One defect is one finding, two are two: ten planted bugs, every two of them in one host.

Bugs of the zoo that are classes of hosts join: every two of those, and in the soak a second ten.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import msgspec
import planted_hosts
import pytest

from guestemu.abi.x86 import Mode
from guestemu.campaign.engines.random import RandomEngine
from guestemu.campaign.planted import hosts_merged
from guestemu.campaign.session import Plan, Session
from guestemu.campaign.targets import find_target
from guestemu.program.ops import Op, OpKind

sys.path.insert(0, str(Path(__file__).parents[1] / "findings"))

from found import call, file, make_book, variants

PAGE = 4096
SHARE, BACK = OpKind.SET_MEMORY_DECRYPTED, OpKind.SET_MEMORY_ENCRYPTED


def legacy(*arguments: int) -> Op:
    return msgspec.structs.replace(call(*arguments), mode=Mode.COMPAT32)


WITNESSES = {
    "LargeLeaf": [[call(PAGE, 512)], [call(5 * PAGE, 512)]],
    "WordBoundary": [[call(60 * PAGE, 4)], [call(126 * PAGE, 2)]],
    "LastPage": [[call(0, 5)], [call(9 * PAGE, 3), call(9 * PAGE, 2, 16)]],
    "AttributeBit0": [[call(7 * PAGE, 1, 16)], [call(3 * PAGE, 1, 33)]],
    "WrongErrno": [[call(9, 3)], [call(0x5008, 0)]],
    "LatePrivilege": [[call(9, 3, cpl=3)], [call(1, 0, cpl=1)]],
    "NoPages": [[call(5 * PAGE, 0)], [call(0, 0, 16)]],
    "Wraps": [
        [call(5 * PAGE, (1 << 64) - 3)],
        [call(PAGE, (1 << 64) - 1, 16)],
        [call(0x403000, (1 << 64) - 1, nr=1 << 63 | 12)],
    ],
    "NumberOnly32": [[call(PAGE, 1, nr=1 << 32 | 12)], [call(5, 0, nr=1 << 35 | 12)]],
    "NextNumber": [[call(PAGE, 1, nr=13)], [call(3, 7, nr=13)]],
}
"""For each bug programs that show it, none of them minimal. Earlier bugs come first in a host of
two, so that they see the call as the guest made it."""

ZOO = {
    "M42": hosts_merged.AttributeBit0Host,
    "M44": hosts_merged.PlainErrnoHost,
    "M72": hosts_merged.PageLoopHost,
    "M73": hosts_merged.HalfTruncatedHost,
    "M74": hosts_merged.LatePrivilegeHost,
}
ZOO_WITNESSES = {
    "M42": WITNESSES["AttributeBit0"],
    "M44": [[call(PAGE, 1, nr=99)], [call(5, 0, nr=3)]],
    "M72": [[call(0, (1 << 64) - 1)], [call(0, 1 << 40, 16)]],
    "M73": [
        [legacy(1 << 35 | 7 * PAGE, 3)],
        [legacy(5 * PAGE, (1 << 64) - 2)],
        [call(0x4A9000, 2), legacy(0x402000, 1 << 32 | 1, 16)],
    ],
    "M74": WITNESSES["LatePrivilege"],
}
PAIRS = list(itertools.combinations(WITNESSES, 2))
QUICK = {*itertools.pairwise(WITNESSES), *zip(WITNESSES, list(WITNESSES)[5:], strict=False)}
"""Each bug with its neighbours and with one further away; the other pairs are left to the soak."""
ZOO_PAIRS = list(itertools.combinations(ZOO, 2))
SECOND_TEN = (*ZOO, "Wraps", "WordBoundary", "LargeLeaf", "NoPages", "NextNumber")
HIDING = {("WordBoundary", "LastPage"), ("WrongErrno", "LatePrivilege")}
"""Part of the one bug's condition runs only when the other is at work, too (every range of two
pages or more; every unaligned address), and so both keys differ from those of the bugs alone."""


def host_with(*names: str):
    bases = tuple(ZOO.get(name) or getattr(planted_hosts, name) for name in names)
    return type("And".join(names), bases, {})()


def keys_of(*names: str, seed: int = 1) -> set[str]:
    book = make_book(host_with(*names))
    for name in names:
        for witness in ZOO_WITNESSES.get(name) or WITNESSES[name]:
            file(book, variants(witness, 4, seed))
    return set(book.findings)


@pytest.fixture(scope="module")
def alone() -> dict[str, set[str]]:
    return {name: keys_of(name) for name in WITNESSES}


def test_there_are_45_pairs():
    assert len(PAIRS) == 45


def test_each_bug_alone_is_one_finding(alone):
    assert {name: len(keys) for name, keys in alone.items()} == dict.fromkeys(WITNESSES, 1)
    assert len(set.union(*alone.values())) == len(WITNESSES)


@pytest.mark.parametrize(
    "pair",
    [pytest.param(pair, marks=() if pair in QUICK else pytest.mark.soak) for pair in PAIRS],
    ids=["-".join(pair) for pair in PAIRS],
)
def test_two_bugs_are_two_findings(pair, alone):
    found = keys_of(*pair)
    assert len(found) == 2
    if pair not in HIDING:
        assert len(found & set.union(*(alone[name] for name in pair))) >= 1


@pytest.mark.parametrize("pair", ZOO_PAIRS, ids="-".join)
def test_two_bugs_of_the_zoo_are_two_findings(pair):
    assert len(keys_of(*pair)) == 2


def test_one_bug_reached_by_five_kinds_of_op_is_one_finding():
    book = make_book(planted_hosts.AttributeBit0())
    ways = [
        [call(7 * PAGE, 1, 16)],
        [Op(SHARE, (2, 0), page=5), Op(BACK, (2, 0), page=5)],
        [
            Op(OpKind.EARLY_SET_MEMORY_DECRYPTED, (PAGE, 0), page=9),
            Op(OpKind.EARLY_SET_MEMORY_ENCRYPTED, (PAGE, 0), page=9),
        ],
        [Op(OpKind.INIT_PLATFORM, (0,))],
        [Op(OpKind.DMA_ALLOC, (1, 8192, 0)), Op(OpKind.DMA_FREE, (1,))],
    ]
    checks = []
    for way in ways:
        ran = book._executor.run(tuple(way))
        checks.append({violation.check for violation in ran})
        file(book, [way])
    assert all(checks), checks
    assert len(book.findings) == 1
    (found,) = book.findings.values()
    assert found.key.startswith("record-hypercall-")
    assert found.count == 5


@pytest.mark.soak
@pytest.mark.parametrize("pair", [*PAIRS, *itertools.combinations(SECOND_TEN, 2)], ids="-".join)
def test_campaigns_of_pairs_find_two(pair):
    target = find_target("hypercall")
    plan = Plan(target, target.header, seed=1, execs=20_000)
    session = Session(plan, None, host=host_with(*pair))
    RandomEngine().run(session, lambda error: pytest.fail(str(error)))
    assert len(session.make_report().findings) == 2
