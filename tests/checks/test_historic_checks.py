# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks of the never-merged generations: answers, record, ioctls, harm to the host."""

from __future__ import annotations

from functools import cache

import pytest

from guestemu.checks import standard_checks
from guestemu.checks.resources import ResourceCheck
from guestemu.host.registry import hosts, load_host
from guestemu.program.program import Header
from guestemu.program.text import parse_text
from guestemu.runner.testbed import build_testbed

ON = "wrmsr msr=0x4b564d08 value=1"


@cache
def bed(host, *switches):
    return build_testbed(Header(guest="snippet:2020", host=host, switches=switches))


def violated(ops, host, *switches):
    program = parse_text("guestemu-program 1\n---\n" + "\n".join(ops) + "\n", "t")
    return [(v.check, v.op) for v in bed(host, *switches).run(program.ops).violations]


@pytest.mark.parametrize(
    ("host", "op", "checks"),
    [
        ("bitmap-v8", "hypercall a0=0x5000 a1=1", []),
        ("bitmap-v8", "hypercall a0=0x5000 a1=0", []),
        ("bitmap-v8", "hypercall a0=0x5001 a1=1", ["results"]),
        ("bitmap-v8", "hypercall a0=0x5000 a1=-1", []),
        ("bitmap-v8", "hypercall a0=0x5000 a1=1 cpl=3", []),
        ("bitmap-v8", "hypercall a0=0x5000 a1=1 mode=compat32", []),
        ("bitmap-v8", "hypercall a0=0x3fff000 a1=2", ["record"]),
        ("bitmap-v8", "hypercall a0=0x4000000 a1=2", []),
        ("bitmap-v8", "hypercall nr=11 a0=0x5000 a1=1", []),
        ("bitmap-v1", "hypercall nr=11 a0=0x5000 a1=1", []),
        ("bitmap-v1", "hypercall nr=12 a0=0x5001 a1=1", []),
        ("shared-list-v10", "hypercall a0=0x5000 a1=1", ["results"]),
        ("bitmap-v6", "hypercall a0=0x5000 a1=1", ["results"]),
    ],
)
def test_answer_and_record(host, op, checks):
    assert [check for check, _ in violated([op], host)] == checks


def test_a_refused_call_that_is_recorded_is_a_violation(monkeypatch):
    testbed = bed("bitmap-v8", "low-bits")
    change = type(testbed.host).change_status

    def late(self, gfn, pages, enc):
        change(self, gfn, pages, enc)
        return -22

    monkeypatch.setattr(type(testbed.host), "change_status", late)
    assert violated(["hypercall a0=0x5000 a1=1"], "bitmap-v8", "low-bits") == [
        ("results", 0),
        ("record", 0),
    ]


SHARE = "hypercall a0=0x1000 a1=1"


@pytest.mark.parametrize(
    ("host", "switch", "ops", "at"),
    [
        ("bitmap-v6", "set-ioctl", ["host_set_bitmap gfn=2 pages=64 bits=0xfa"], 0),
        ("bitmap-v6", "set-ioctl", [ON, SHARE, "host_set_bitmap gfn=0 pages=8 bits=0xff"], 2),
        ("bitmap-v8", "set-offset", ["host_set_bitmap gfn=0x46 pages=8 bits=0xfd"], 0),
        ("bitmap-v3", "get-words", ["host_get_bitmap gfn=0 pages=4"], 0),
        ("bitmap-v3", "vcpu-reset", ["hypercall nr=11 a0=0x1000 a1=1", "host_reset_vcpu"], 1),
        ("shared-list-v10", "set-ioctl", [SHARE, "host_set_list gfn=8 pages=2 count=2"], 1),
    ],
)
def test_ioctl_as_posted_and_repaired(host, switch, ops, at):
    assert ("record", at) in violated(ops, host)
    repaired = next(entry.switches for entry in hosts() if entry.name == host)
    assert violated(ops, host, *repaired) == []


@pytest.mark.parametrize("bits", [0, 5, 0xFF00FF00FF00FF00, (1 << 64) - 1])
@pytest.mark.parametrize(("gfn", "pages"), [(0, 1), (3, 70), (64, 200), (0x3FFF, 5), (1 << 40, 3)])
def test_repaired_set_is_what_the_check_expects(bits, gfn, pages):
    switches = tuple(s for e in hosts() if e.name == "bitmap-v8" for s in e.switches)
    op = f"host_set_bitmap gfn={gfn} pages={pages} bits={bits}"
    get = f"host_get_bitmap gfn={gfn} pages={pages} filler=0x5a"
    program = parse_text(f"guestemu-program 1\n---\n{op}\n{get}\n", "t")
    outcome = bed("bitmap-v8", *switches).run(program.ops)
    assert outcome.is_ok
    shown = outcome.results[1].outcome.value
    if gfn < 1 << 30:
        wanted = sum((bits >> i % 64 & 1) << i for i in range(min(pages, 32)))
        wanted |= sum((0x5A >> i % 8 & 1) << i for i in range(pages, 32))
        assert shown == wanted
    else:
        assert outcome.results[0].outcome.value == -12
        assert shown == -22, "a refused SET is no consent"


@pytest.mark.parametrize(
    ("host", "ops", "at", "text"),
    [
        (
            "bitmap-v1",
            ["hypercall nr=11 a0=0x2000 a1=-1"],
            0,
            "out of bounds: 2305843009213693952 bytes",
        ),
        (
            "bitmap-v1",
            ["hypercall nr=11 a0=0x400000000000 a1=1"],
            0,
            "host memory: 2147483656 bytes",
        ),
        ("shared-list-v10", [ON, SHARE, "host_get_list gfn=8 pages=1"], 2, "out of bounds: 16"),
        ("shared-list-v10", [SHARE, "host_set_list null=1", SHARE], 2, "use after free"),
    ],
)
def test_harm_is_a_violation_with_its_bytes(host, ops, at, text):
    program = parse_text("guestemu-program 1\n---\n" + "\n".join(ops) + "\n", "t")
    for _ in range(2):  # a second run starts over
        found = [v for v in bed(host).run(program.ops).violations if v.check == "resources"]
        assert [v.op for v in found] == [at]
        assert found[0].message.startswith(text)
        assert found[0].fact


def test_repeated_harm_is_reported_once():
    op = "hypercall nr=11 a0=0x400000000000 a1=1"
    assert [at for check, at in violated([op, op, op], "bitmap-v1") if check == "resources"] == [0]


@pytest.mark.parametrize("name", [entry.name for entry in hosts()])
def test_checks_are_chosen_by_the_host(name):
    host = load_host(name)
    has_resources = any(isinstance(check, ResourceCheck) for check in standard_checks(host))
    assert has_resources == name.startswith(("bitmap", "shared", "qemu-migration"))
    assert len(standard_checks(host)) < len(standard_checks())
