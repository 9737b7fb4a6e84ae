# SPDX-License-Identifier: GPL-2.0-or-later
"""Host operations of programs: the ioctls where a host has them, -ENOTTY where it has not."""

from __future__ import annotations

import pytest

from guestemu.host.ioctls import ioctls_of
from guestemu.host.registry import hosts, load_host
from guestemu.program.ops import (
    HOST_SPECS,
    MIRROR_SPECS,
    QEMU_SPECS,
    SEV_SPECS,
    SPECS,
    VMM_SPECS,
    Op,
    OpKind,
    canonical_op,
)
from guestemu.runner.operations import host_operations

ENOTTY, ENOMEM = -25, -12
MEMORY = {OpKind.HOST_COMMIT_SLOT, OpKind.HOST_RESET_VCPU, OpKind.HOST_POISON_PAGE}


def make(name, *switches):
    host = load_host(name, switches)
    host.reset(64)
    return host


def test_every_host_operation_is_carried_out_by_some_host():
    kinds = {*HOST_SPECS, *VMM_SPECS, *SEV_SPECS, *QEMU_SPECS, *MIRROR_SPECS}
    assert {kind for kind, spec in SPECS.items() if spec.by_host} == kinds
    found = {
        kind
        for name in (entry.name for entry in hosts())
        for kind in {**ioctls_of(make(name)), **make(name).operations()}
    }
    assert found == kinds


def run(host, kind, *arguments):
    return host_operations(host)[kind](*arguments)


@pytest.mark.parametrize("kind", HOST_SPECS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", [entry.name for entry in hosts()])
def test_answers_everywhere(name, kind):
    host = make(name)
    value = run(host, kind, *canonical_op(Op(kind)).arguments)
    has_bitmap, has_list = name.startswith("bitmap"), name.startswith("shared-list")
    if kind in MEMORY:
        assert value == 0
    elif "LIST" in kind.name:
        assert (value == ENOTTY) != has_list
    elif kind is OpKind.HOST_RESET_BITMAP:
        assert (value == 0) == (name == "bitmap-v6")
    else:
        assert (value == ENOTTY) != has_bitmap


def test_get_gives_the_first_32_pages():
    host = make("bitmap-v6", "set-ioctl")
    assert run(host, OpKind.HOST_SET_BITMAP, 0, 64, 0x1234_5678_9ABC_DEF0, 0) == 0
    assert run(host, OpKind.HOST_GET_BITMAP, 0, 64, 0) == 0x9ABC_DEF0
    assert run(host, OpKind.HOST_GET_BITMAP, 32, 32, 0) == 0x1234_5678
    assert run(host, OpKind.HOST_GET_BITMAP, 0, 4, 0xA5) == 0xA5A5A5A0


@pytest.mark.parametrize("pages", [1 << 26, 1 << 52, (1 << 64) - 1])
def test_sizes_beyond_kmalloc_are_refused_without_allocating(pages):
    host = make("bitmap-v6")
    assert run(host, OpKind.HOST_GET_BITMAP, 0, pages, 0) == ENOMEM
    assert run(host, OpKind.HOST_SET_BITMAP, 0, pages, 0, 0) == ENOMEM


@pytest.mark.parametrize(
    ("count", "result"),
    [(3, 0), (0, 0), (0xFFFF_FFFF, ENOMEM), (0x7FFF_FFFF, ENOMEM), (1 << 32 | 2, 0)],
)
def test_list_count_is_a_signed_int(count, result):
    host = make("shared-list-v10")
    assert run(host, OpKind.HOST_SET_LIST, 8, 2, count, 0) == result
    wanted = {3: [(8, 10), (12, 14), (16, 18)], 1 << 32 | 2: [(8, 10), (12, 14)]}
    assert host.regions == wanted.get(count, [])
