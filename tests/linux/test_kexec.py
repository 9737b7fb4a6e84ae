# SPDX-License-Identifier: GPL-2.0-or-later
"""kexec of real kernels over one host (A41, A43, A45, A46)."""

from __future__ import annotations

import json

import pytest

from guestemu.abi.errors import InputError
from guestemu.cli.main import main
from guestemu.guest.linux.bootparams import E820_RAM
from guestemu.kernel.kexec import LEFT_PAGES, memory_with_hole

UNALIGNED = 0x4000800


@pytest.fixture
def kexec(image_of, capsys):
    def command(old, new, *words):
        status = main(
            [
                "kernel",
                "kexec",
                "--image",
                str(image_of(old)),
                "--to",
                str(image_of(new)),
                "--json",
                *words,
            ]
        )
        captured = capsys.readouterr()
        return (json.loads(captured.out) if captured.out else captured.err), status

    return command


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param("6.1", "6.12", [], marks=pytest.mark.soak),
        ("6.12", "6.1", ["--crash"]),
    ],
)
def test_between_jump_and_reset_only_the_msr_gates(kexec, old, new, words):
    found, status = kexec(old, new, *words)
    assert status == 0
    assert found["old"].startswith(old)
    assert found["new"].startswith(new)
    assert found["running"]["migration_ready"]
    # the record is the old kernel's until the new one's first hypercall, and nobody may use it
    shared = found["running"]["shared"]
    assert found["at_jump"] == found["before_reset"] == {"shared": shared, "migration_ready": False}
    # then it is the new kernel's: the pages left behind are private again
    assert found["after"] == {"shared": shared - LEFT_PAGES, "migration_ready": True}
    assert found["msr"] == [0, 1]
    assert found["stale"] == found["missing"] == found["refused"] == []


@pytest.mark.parametrize("release", [pytest.param("6.1", marks=pytest.mark.soak), "6.12"])
def test_ram_that_starts_inside_a_page_is_not_reset(kexec, release):
    found, status = kexec(release, release, "--hole", hex(UNALIGNED))
    assert status == 1
    assert [(call["args"][0], call["ret"]) for call in found["refused"]] == [(UNALIGNED, -22)]
    assert sum(pages for _first, pages in found["stale"]) == LEFT_PAGES
    assert found["missing"] == []
    # and migration is allowed all the same
    assert found["after"]["migration_ready"]


@pytest.mark.soak
def test_ram_that_starts_at_a_page_is_reset(kexec):
    found, status = kexec("6.1", "6.1", "--hole", "0x4000000")
    assert status == 0
    assert found["refused"] == found["stale"] == []


@pytest.mark.soak  # guests of the outcomes have the page states of a kexec
def test_an_snp_kernel_that_leaves_pages_shared_ends_the_next_one(kexec):
    """6.12 cannot unshare (N25): the next kernel ends at the first page of its .bss..decrypted,
    which the old one had shared, and which a memory fault makes private and not validated."""
    found, status = kexec("6.12", "6.12", "--sev", "snp")
    assert status == 1
    assert not found["unshared"]
    assert "asked to be terminated" in found["end"]
    assert found["after"]["shared"] == found["at_jump"]["shared"] - 1 > LEFT_PAGES


@pytest.mark.soak
@pytest.mark.parametrize(
    ("release", "kind", "words"),
    [
        ("6.18", "snp", []),
        ("6.18", "snp", ["--crash"]),
        ("6.18", "tdx", []),
        ("6.18", "tdx", ["--crash"]),
        ("6.12", "tdx", []),
    ],
)
def test_a_kernel_that_unshares_leaves_nothing(kexec, release, kind, words):
    found, status = kexec(release, release, "--sev", kind, *words)
    assert found["unshared"]
    assert found["end"] == "reached rest_init"
    assert (found["unusable"], found["stale"], status) == ([], [], 0)


SNP_CPUS = ("--sev", "snp", "--cpus", "2")
CRASH_OF_1 = ("--crash", "--crashed-cpu", "1")


@pytest.mark.soak
@pytest.mark.parametrize("words", [(), ("--crash",), CRASH_OF_1], ids=" ".join)
@pytest.mark.parametrize("release", ["6.1", "6.12"])
def test_an_old_kernel_leaves_the_vmsa_of_its_second_cpu_in_use(kexec, release, words):
    """It only halts the CPU (no shutdown_all_aps() before 6.15); pages stay shared, too."""
    found, status = kexec(release, release, *SNP_CPUS, *words)
    assert (found["cpus"], status) == (2, 1)
    assert [left["is_in_use"] for left in found["vmsas"]] == [True]
    assert not found["unshared"]
    assert not found["end"].startswith("reached")


@pytest.mark.soak
@pytest.mark.parametrize("words", [(), ("--crash",)], ids=" ".join)
@pytest.mark.parametrize("release", ["6.18", "7.3"])
def test_a_kernel_that_destroys_its_other_cpus_leaves_no_vmsa(kexec, release, words):
    found, status = kexec(release, release, *SNP_CPUS, *words)
    assert (found["cpus"], found["vmsas"], found["unusable"], status) == (2, [], [], 0)
    assert found["unshared"]
    assert found["at_jump"]["shared"] == 0
    assert found["end"] == "reached rest_init"


@pytest.mark.soak
@pytest.mark.parametrize("release", ["6.18", "7.3"])
def test_a_cpu_that_crashes_cannot_untag_its_own_vmsa(kexec, release):
    """The kernel marks it offline for makedumpfile; the next kernel's memory has it (N25)."""
    found, status = kexec(release, release, *SNP_CPUS, *CRASH_OF_1)
    assert status == 1
    ((gfn, is_in_use),) = ((left["gfn"], left["is_in_use"]) for left in found["vmsas"])
    assert is_in_use
    assert found["unusable"] == [[gfn, 1]]
    assert found["end"] == "reached rest_init"


@pytest.mark.soak
@pytest.mark.parametrize("words", [(), ("--crash",)], ids=" ".join)
@pytest.mark.parametrize("kind", ["sev", "es", "tdx"])
def test_two_cpus_of_another_kind_leave_as_one_does(kexec, kind, words):
    found, status = kexec("7.3", "7.3", "--sev", kind, "--cpus", "2", *words)
    assert (found["cpus"], found["vmsas"], found["stale"], status) == (2, [], [], 0)
    assert found["unshared"] == (kind == "tdx")
    assert found["end"] == "reached rest_init"


@pytest.mark.parametrize("words", [("--cpus", "2"), ("--crash",), ("--crash", "--cpus", "9")])
def test_only_one_of_two_cpus_crashes(kexec, words):
    found, status = kexec("6.1", "6.1", *words, "--crashed-cpu", "2")
    assert (status, found["message"]) == (2, "--crashed-cpu 2: take 0 or 1, with --crash --cpus 2")


def test_bad_places_are_one_line(kexec):
    found, status = kexec("6.1", "6.1", "--hole", "0x1000")
    assert (found["schema"], status) == ("guestemu.error/1", 2)
    assert "hole 0x1000" in found["message"]
    assert "\n" not in found["message"]


def test_the_map_with_a_hole_covers_what_the_plain_one_does():
    ranges = memory_with_hole(128 << 20, UNALIGNED)
    ends = [part.start + part.size for part in ranges]
    assert ends[-1] == 128 << 20
    assert ranges[-1].start == UNALIGNED
    assert ranges[-2].start == 0x4000000
    assert ranges[-2].size == 0x800
    assert ranges[-3].start + ranges[-3].size == 0x4000000
    assert ranges[-3].kind == ranges[-1].kind == E820_RAM != ranges[-2].kind
    with pytest.raises(InputError, match="hole"):
        memory_with_hole(128 << 20, 128 << 20)
