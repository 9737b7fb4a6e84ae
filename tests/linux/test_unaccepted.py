# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that the firmware left unaccepted (N24, T15): what a real kernel's accept_memory() tells
the host, and that its bitmap keeps it from accepting a page twice."""

from __future__ import annotations

import json

import pytest

from guestemu.abi.errors import InputError
from guestemu.cli.main import main
from guestemu.guest.linux.load import LOADER, linux_config
from guestemu.kernel.unaccepted import UNITS, AcceptStep, unaccepted_memory

BUDGET = 20_000_000
UNIT = 512
"""Pages of 2 MiB."""


@pytest.fixture(
    scope="module",
    params=[
        "6.12-snp",
        pytest.param("6.12-tdx", marks=pytest.mark.soak),
        pytest.param("7.3-snp", marks=pytest.mark.soak),
        pytest.param("7.3-tdx", marks=pytest.mark.soak),
    ],
)
def ran(request, image_of) -> tuple[str, tuple[AcceptStep, ...]]:
    series, _, kind = request.param.partition("-")
    guest = LOADER.guest(image_of(series), linux_config(128, 39, kind), BUDGET)
    return kind, unaccepted_memory(guest)


def pages(step: AcceptStep) -> int:
    return sum(count for _first, count in step.told)


def test_the_host_hears_of_a_unit_at_the_first_use_of_its_first_page(ran) -> None:
    kind, (first, again, store, *_) = ran
    # KVM adds a TD's pages at ACCEPT: a TD makes no MapGPA for them.
    assert first.told == (((0, UNIT),) if kind == "snp" else ())
    assert first.bitmap == "0" + "1" * (UNITS - 1)
    assert first.result == "returns"
    assert (again.told, again.accepted, again.bitmap) == ((), {}, first.bitmap)
    assert (store.result, store.told) == ("returns", ())


def test_a_unit_is_accepted_with_the_one_behind_it(ran) -> None:
    """The guard against load_unaligned_zeropad(), where a range ends with its unit."""
    _kind, (_, _, _, unit, rest, *_) = ran
    assert unit.bitmap == "0001"
    assert rest.bitmap == "0000"
    assert (unit.result, rest.result) == ("returns", "returns")


def test_every_page_is_accepted_once(ran) -> None:
    kind, steps = ran
    done = [step.accepted for step in steps[:5]]
    if kind == "snp":
        whole, failed = "PVALIDATE of 2 MiB, result 6", "PVALIDATE of 4 KiB"
        assert sum(one.get(failed, 0) for one in done) == UNITS * UNIT
        assert sum(one.get(whole, 0) for one in done) == UNITS
        assert not any("nothing changed" in word for one in done for word in one)
    else:
        assert sum(one.get("ACCEPT of 4 KiB", 0) for one in done) == UNITS * UNIT


def test_what_must_not_be_done_ends_the_guest(ran) -> None:
    kind, (*_, early, twice, refused) = ran
    ends = {step.what: step.result for step in (early, twice, refused)}
    if kind == "snp":
        assert early.result == "the guest ends itself (0/0)"
        assert twice.result == "the guest ends itself (1/2)"
        assert refused.result == "the guest ends itself (1/1)"
    else:
        assert "guest access before accepting" in early.result
        assert twice.result != "returns", ends
        assert refused.result == "returns"  # user space is not asked


def test_only_guests_that_accept_memory_do(image_of) -> None:
    guest = LOADER.guest(image_of("6.12"), linux_config(128, 39, "sev"), BUDGET)
    with pytest.raises(InputError, match="only SNP guests and TDs"):
        unaccepted_memory(guest)


@pytest.mark.soak  # boots once more
def test_the_command_shows_each_step(image_of, capsys) -> None:
    assert main(["kernel", "accept", "--image", str(image_of("6.12")), "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert len(steps) == 8
    assert steps[0]["told"] == [[0, UNIT]]
