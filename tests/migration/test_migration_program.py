# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations as operations of a program."""

from __future__ import annotations

import pytest

from guestemu.abi.addresses import Gpa
from guestemu.abi.errno import EBUSY, EINVAL, ENOTTY
from guestemu.guest.registry import GuestSettings, load_guest
from guestemu.host.registry import load_host
from guestemu.machine.layout import STUB
from guestemu.program.program import Header
from guestemu.program.text import parse_text
from guestemu.report.trace.derive import events_of
from guestemu.report.trace.digest import trace_hash
from guestemu.report.trace.run import run_program
from guestemu.runner.testbed import Outcome, Testbed, build_testbed

LINKS = pytest.mark.parametrize("link", ["firmware=0", "firmware=1"])
PASS = "host_dirty_fetch\nhost_status_copy\nhost_send\n"


def program_of(text: str, header: str = ""):
    return parse_text(f"guestemu-program 1\n{header}\n---\n{text}", "p")


def run(text: str, header: str = "", testbed: Testbed | None = None) -> Outcome:
    program = program_of(text, header)
    own = testbed or build_testbed(program.header)
    try:
        return own.run(program.ops)
    finally:
        if testbed is None:
            own.close()


def values(outcome: Outcome) -> list[int | None]:
    return [result.outcome.value for result in outcome.results]


def names(outcome: Outcome) -> list[tuple[str, int]]:
    return [(violation.check, violation.op) for violation in outcome.violations]


@LINKS
@pytest.mark.parametrize("scope", ["pages=1", "pages=0"])
def test_the_guest_goes_on_at_the_destination(link: str, scope: str) -> None:
    """Stores, a split leaf, a shared page, then more of each behind the migration."""
    outcome = run(
        "init_platform\nwrite D[0] value=7\nset_memory_decrypted L[3] pages=2\nwrite L[3] value=8\n"
        f"migrate_start D[0] {scope} {link}\n{PASS}write D[0] value=9\n"
        f"set_memory_decrypted D[5]\nwrite D[5] value=3\n{PASS}migrate_stop\n"
        "read D[0]\nread L[3]\nread D[5]\nset_memory_encrypted L[3] pages=2\n"
        "write L[4] value=5\nread L[4]\nset_memory_decrypted D[6]\nread V[0]"
    )
    assert not outcome.violations
    assert values(outcome)[-8:] == [
        *(0x0909090909090909, 0x0808080808080808, 0x0303030303030303, 0, 0),
        *(0x0505050505050505, 0, 0x0909090909090909),
    ]


def test_the_numbers_of_the_steps() -> None:
    outcome = run(
        "migrate_start D[3] pages=4\nhost_dirty_fetch clear=0\nhost_dirty_clear\n"
        "host_status_copy\nhost_send\nhost_dirty_fetch\nset_memory_decrypted D[4] pages=2\n"
        "write D[4] size=8192\nwrite D[9]\nhost_dirty_fetch clear=0\nhost_status_copy\n"
        "host_send live=1\nhost_dirty_fetch clear=0\nhost_send\nhost_dirty_clear\nmigrate_stop"
    )
    assert values(outcome) == [0, 4, 4, 0, 4, 0, 0, 0, 0, 2, 2, 2, 2, 2, 0, 0]


def test_a_page_that_no_pass_sent_is_lost() -> None:
    outcome = run("write D[0] value=7\nmigrate_start D[0]\nmigrate_stop\nread D[0]\nread D[1]")
    assert names(outcome) == [("lost_strict", 3), ("lost_defined", 3)]
    outcome = run("migrate_start D[0]\nmigrate_stop\nread D[0]\nread D[1]")
    assert names(outcome) == [("lost_strict", 2), ("lost_defined", 2)], "not even zeros arrived"


@LINKS
def test_old_status_for_a_rewritten_page(link: str) -> None:
    outcome = run(
        f"migrate_start D[0] {link}\nhost_status_copy\nset_memory_decrypted D[0]\n"
        "write D[0] value=7\nhost_dirty_fetch\nhost_send\nmigrate_stop\nread D[0]\n"
        "write D[0] value=8\nread D[0]"
    )
    assert names(outcome) == [("lost_strict", 7), ("lost_defined", 7)]
    assert values(outcome)[-1] == 0x0808080808080808


@pytest.mark.parametrize("offset", [0, 100])
def test_content_from_before_a_flip_is_lost_by_lost_strict_alone(offset: int) -> None:
    """Bytes written after the flip are defined, the others of the page are not."""
    outcome = run(
        "write D[0] value=7\nset_memory_decrypted D[0]\nmigrate_start D[0]\n"
        f"write D[0] value=9 size=64 offset={offset}\ntouch_cbit D[0] private=1\n"
        f"touch_cbit D[0] private=0\nwrite D[0] value=1 size=16 offset={offset}\n"
        f"{PASS}migrate_stop\nread D[0]"
    )
    assert names(outcome) == []
    outcome = run(
        "write D[0] value=7\nmigrate_start D[0]\nset_memory_decrypted D[0]\n"
        f"write D[0] value=1 size=16 offset={offset}\n{PASS}migrate_stop\nread D[0]"
    )
    assert names(outcome) == [("lost_strict", 8)]


def test_an_alias_is_compared_through_its_own_mapping() -> None:
    """Frame 2 of D is converted in the direct map alone (A25): its alias stays private, and what
    was written through it arrives by the old, private status."""
    steps = "host_dirty_fetch\nhost_send\nmigrate_stop\nread D[2]\nread V[2]"
    start = "migrate_start D[2]\nhost_status_copy\n"
    outcome = run(f"{start}set_memory_decrypted D[2]\nwrite V[2] value=7\n{steps}")
    assert names(outcome) == [("lost_strict", 7), ("lost_defined", 7)]
    outcome = run(f"{start}set_memory_decrypted V[2]\nwrite V[2] value=7\n{steps}")
    assert [op for _, op in names(outcome)] == [7, 7, 8, 8]


NEVER = [-EINVAL] * 5
TWICE = [0, 1, 0, 1, 0, -EBUSY, -EINVAL]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{PASS}host_dirty_clear\nmigrate_stop", NEVER),
        ("migrate_start D[0]\nmigrate_start D[0]", [0, -EBUSY]),
        (f"migrate_start D[0]\n{PASS}migrate_stop\nmigrate_start D[0]\nhost_send", TWICE),
    ],
)
def test_steps_at_the_wrong_time(text: str, expected: list[int]) -> None:
    assert values(run(text)) == expected


def test_without_a_second_machine_there_is_no_migration() -> None:
    guest = load_guest(GuestSettings("snippet:6.1", 39, 64, 1, 1_000_000, coherent=True))
    testbed = Testbed(guest, load_host("map-gpa-range"))
    assert values(run("migrate_start D[0]", testbed=testbed)) == [-ENOTTY]


@pytest.mark.parametrize(
    ("host", "guest"),
    [("map-gpa-range", "6.1"), ("qemu-v4", "6.12"), ("shared-list-v10", "2020")],
)
def test_the_hosts_record_and_consent_move(host: str, guest: str) -> None:
    testbed = build_testbed(Header(host=host, guest=f"snippet:{guest}"))
    text = "init_platform\nset_memory_decrypted D[3] pages=5\nset_memory_encrypted D[4]\n"
    outcome = run(f"{text}migrate_start D[0]\n{PASS}migrate_stop", testbed=testbed)
    there = (testbed.host.private_map().copy(), testbed.host.migration_ready)
    destination = testbed.host
    run(text, testbed=testbed)
    assert testbed.host is not destination
    assert there == (testbed.host.private_map(), testbed.host.migration_ready)
    assert there[0].count(0) >= 2
    assert host != "map-gpa-range" or names(outcome) == []


def test_buffers_of_the_dma_allocator_move() -> None:
    outcome = run(
        f"dma_alloc slot=0 size=8192\nmigrate_start D[0]\n{PASS}migrate_stop\n"
        "dma_alloc slot=1 size=4096\ndma_free slot=0\ndma_free slot=1"
    )
    first, second = (values(outcome)[index] for index in (0, 6))
    assert not outcome.violations
    assert first is not None
    assert second not in (None, 0, first)


def test_an_ordered_answer_waits_for_the_guest_at_the_destination() -> None:
    outcome = run(
        f"migrate_start D[0]\n{PASS}answer value=-22 count=2\nmigrate_stop\n"
        "hypercall nr=12 a0=D[9] a1=1"
    )
    assert values(outcome)[-1] == -22 & (1 << 64) - 1


def test_runs_of_one_testbed_do_not_know_of_each_other() -> None:
    """Plain and firmware, with and without a migration, in any order: the same outcomes."""
    texts = [
        "migrate_start D[0]\nhost_status_copy\nset_memory_decrypted D[0]\nwrite D[0]\n"
        f"host_dirty_fetch\nhost_send\nmigrate_stop\nread D[0]\n{tail}"
        for tail in ("", "set_memory_decrypted L[0]\nread L[0]")
    ]
    texts.append(texts[0].replace("migrate_start D[0]", "migrate_start D[0] firmware=1"))
    texts.append(texts[1].replace("migrate_start D[0]", "migrate_start D[0] pages=0"))
    texts.append("write D[0]\nset_memory_decrypted D[0]\nread D[0]")
    alone = [values(run(text)) for text in texts]
    testbed = build_testbed(Header())
    guest = testbed.guest
    for index in (0, 2, 1, 3, 4, 4, 3, 0, 2, 0, 4, 1):
        assert values(run(texts[index], testbed=testbed)) == alone[index]
    testbed.reset()
    assert testbed.guest is guest
    testbed.close()


@pytest.mark.parametrize("cbit", [39, 47, 51])
def test_the_c_bits_position_does_not_matter(cbit: int) -> None:
    text = (
        f"migrate_start D[0]\nset_memory_decrypted D[0]\nwrite D[0]\n{PASS}migrate_stop\nread D[0]"
    )
    plain = run_program(program_of(text))
    other = run_program(program_of(text, f"cbit {cbit}"))
    assert trace_hash(list(events_of(plain))) == trace_hash(list(events_of(other)))


def test_a_patched_hypercall_instruction_moves() -> None:
    """KVM wrote VMMCALL over VMCALL at the source; the destination's CPU executes what is there."""
    call = "hypercall nr=12 a0=D[9] a1=1 insn=vmcall"
    outcome = run(f"{call}\nmigrate_start D[0]\n{PASS}migrate_stop\n{call}\n{call}")
    assert values(outcome)[0] == values(outcome)[-1] == values(outcome)[-2] == 0
    assert not outcome.violations


def test_a_patched_instruction_is_forgotten_with_the_run() -> None:
    """The next run's destination has VMCALL again, and KVM patches it anew."""
    call = "hypercall nr=12 a0=D[9] a1=1 insn=vmcall"
    testbed = build_testbed(Header())
    run(f"{call}\nmigrate_start D[0]\n{PASS}migrate_stop\n{call}", testbed=testbed)
    run(f"migrate_start D[0]\n{PASS}migrate_stop\n{call}", testbed=testbed)
    assert testbed.guest.machine.ram.read(Gpa(STUB + 16), 3) == b"\x0f\x01\xd9"
    testbed.close()


def test_several_vcpus() -> None:
    outcome = run(
        f"write D[0] value=7 vcpu=1\nmigrate_start D[0] vcpu=1\n{PASS}migrate_stop vcpu=2\n"
        "read D[0] vcpu=2\nread D[0]\nset_memory_decrypted D[1] vcpu=1",
        "vcpus 3",
    )
    assert values(outcome)[-3:] == [0x0707070707070707, 0x0707070707070707, 0]
    assert not outcome.violations
