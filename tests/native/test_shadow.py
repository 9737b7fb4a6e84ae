# SPDX-License-Identifier: GPL-2.0-or-later
"""A native handler in the shadow of the default host: judged in batches as Python judges it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec
import pytest

from guestemu.campaign.fastpath.fastpath import FastPath, open_fast_path, why_not
from guestemu.campaign.fastpath.library import load_library
from guestemu.campaign.mutator import Mutator
from guestemu.campaign.session import Plan, Session, SessionOver
from guestemu.campaign.targets import find_target
from guestemu.host.permission import named_by_user
from guestemu.program.binary import encode_ops
from guestemu.program.ops import Op, OpKind, Region

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))

from native_builds import compile_c, example

if load_library() is None:
    pytest.skip("no machine code for this host", allow_module_level=True)

HANDLER = Path(__file__).with_name("shadow_handler.c")
DEFECTS = ("none", "no-punch", "no-discard", "answer", "word", "page-short", "stops")
SURVIVES, DIES, STALE_RET, DISCARDS_SLOT, PUNCHES_SLOT = range(7, 12)
LAYOUTS = ("", "slot@32M,hole@48M+1M", "slot@16M,rom@40M+1M,plain@41M+1M")


def build(directory: Path, defect: int) -> str:
    out = directory / f"handler{defect}.so"
    return str(compile_c(out, HANDLER, flags=(f"-DDEFECT={defect}",)))


def make(host: str, name: str = "hypercall", layout: str = "", max_ops: int = 4, **plan) -> Session:
    spec, plugin = named_by_user(host)
    target = msgspec.structs.replace(find_target(name), max_ops=max_ops)
    header = msgspec.structs.replace(
        target.header, host=spec, plugin=plugin, memory=64, layout=layout, vcpus=2
    )
    return Session(Plan(target, header, **plan))


def fail(error: BaseException) -> None:
    raise error


def open_on(session: Session, leave=fail) -> FastPath:
    found = open_fast_path(session, leave)
    assert found is not None, why_not(session.executor)
    return found


def inputs(session: Session, count: int) -> list[bytes]:
    rng = random.Random(5)
    mutator = Mutator(session.plan.header, session.kinds, session.executor.decoder.extra)
    pool = [b""]
    for _ in range(count):
        data = mutator.mutate(rng.choice(pool), session.executor.max_size, rng.getrandbits(32))
        pool.append(data)
    return pool


def there_and_back(most: int) -> list[bytes]:
    rng = random.Random(9)
    found = []
    for _ in range(most):
        calls = [(rng.randrange(0x4000), rng.choice((1, 2, 3, 600)), rng.choice((0, 16)))]
        calls.append((calls[0][0] + rng.choice((0, 1)), calls[0][1], 16 - calls[0][2]))
        found.append(b"".join(convert(*call) for call in calls))
    return found


def convert(first: int, pages: int, attributes: int = 0) -> bytes:
    return encode_ops((Op(OpKind.HYPERCALL, (12, first << 12, pages, attributes, 0)),))


def doubted(session: Session, datas: list[bytes]) -> set[bytes]:
    """The programs that run again with the handler itself."""
    seen: set[bytes] = set()

    def look_again(data: bytes, before: bytes | None = None) -> bool:
        seen.add(data)
        return True

    session.look_again = look_again
    fast = open_on(session)
    for data in datas:
        fast.library.test_one_input(data)
    fast.close()
    return seen


@pytest.mark.parametrize(
    ("defect", "layout"),
    [
        *((0, layout) for layout in LAYOUTS[1:]),
        *((n, LAYOUTS[n % 3]) for n in (*range(len(DEFECTS)), DISCARDS_SLOT, PUNCHES_SLOT)),
    ],
)
def test_a_batch_is_judged_as_python_judges_each_program(tmp_path, defect, layout):
    host = build(tmp_path, defect)
    session, live = make(host, layout=layout), make(host, layout=layout).executor
    fast = open_on(session)
    pool = inputs(session, 100) + there_and_back(40)
    common = [data for data in dict.fromkeys(pool) if fast.library.run(data)]
    fast.close()
    assert len(common) > 80
    seen = doubted(make(host, layout=layout), common)
    wrong = {data for data in common if live.run(live.decode(data))}
    assert seen == wrong
    assert bool(wrong) == (defect not in {DEFECTS.index("none"), DEFECTS.index("stops")})


def test_conversions_of_the_kernel_are_judged_in_batches(tmp_path):
    datas = [
        encode_ops((Op(kind, (pages, 0), Region.D, 2),))
        for kind in (OpKind.SET_MEMORY_DECRYPTED, OpKind.SET_MEMORY_ENCRYPTED)
        for pages in (1, 2, 9)
    ]
    assert not doubted(make(build(tmp_path, 0), "conversion"), datas)
    no_punch = make(build(tmp_path, DEFECTS.index("no-punch")), "conversion")
    assert doubted(no_punch, datas) == set(datas[:3])


@pytest.mark.parametrize(("bug", "key"), [(1, "record"), (2, "host-failed"), (4, "host-failed")])
def test_the_examples_bugs_are_findings(tmp_path, bug, key):
    session = make(str(example(tmp_path, bug)))
    fast = open_on(session)
    for data in (convert(3, 1), convert(0, 64), convert(8, 33), convert(5, 2)):
        fast.library.test_one_input(data)
    fast.close()
    (finding,) = session.make_report().findings
    assert finding.key.startswith(key)
    assert session.executions == 4


def test_one_death_costs_one_program(tmp_path):
    """Those before and behind it in the batch are judged by what the handler replied."""
    host = build(tmp_path, DIES)
    datas = [convert(frame, 2 if frame in {5, 6, 20} else 1) for frame in range(30)]
    assert doubted(make(host), datas) == {datas[5], datas[6], datas[20]}


def test_what_the_last_executions_did_wrong_is_found_at_the_end(tmp_path):
    over: list[BaseException] = []
    session = make(build(tmp_path, DEFECTS.index("page-short")), execs=3)
    fast = open_on(session, over.append)
    for data in (convert(0, 1), convert(1, 1), convert(2, 2), convert(3, 1)):
        fast.library.test_one_input(data)
    assert isinstance(over[0], SessionOver)
    assert session.executions == 3
    assert [found.check for found in session.make_report().findings] == ["record"]


def test_a_state_that_survives_a_reset_is_a_program_with_a_reset(tmp_path):
    session = make(build(tmp_path, SURVIVES))
    fast = open_on(session)
    for data in (convert(0, 3), convert(1, 1)):
        fast.library.test_one_input(data)
    fast.close()
    (finding,) = session.make_report().findings
    assert finding.check in {"results", "not-reproducible"}


def test_an_answer_that_is_not_written_is_the_kernels(tmp_path):
    """`ret` is 0 at the exit (K3-g): a handler that leaves it reports success for a refusal."""
    assert not doubted(make(build(tmp_path, STALE_RET)), [convert(0, 1), convert(5, 2, 16)])
    beyond = convert((64 << 8) - 1, 2)
    assert doubted(make(build(tmp_path, STALE_RET)), [beyond]) == {beyond}


def test_a_handler_in_this_process_has_no_shadow(tmp_path):
    session = make(f"{build(tmp_path, 0)}:in-process")
    assert why_not(session.executor) == "host native answers in this process"
