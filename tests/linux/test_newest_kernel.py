# SPDX-License-Identifier: GPL-2.0-or-later
"""The newest series that Debian offers boots, and does what is known of it.

A machine that cannot get it fails these tests, as with 6.1 and 6.12; GUESTEMU_NO_KERNEL=1 skips.
"""

from __future__ import annotations

import os

import pytest

from guestemu.abi.errors import GuestemuError
from guestemu.abi.regions import Region
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.study.outcomes.defects import measure
from guestemu.study.outcomes.verbs import guest_of
from tests.linux.conftest import Bench
from tests.linux.newest import QUICK, expected, newest_image


@pytest.fixture(scope="module")
def newest() -> LinuxGuest:
    if os.environ.get("GUESTEMU_NO_KERNEL") == "1":
        pytest.skip("GUESTEMU_NO_KERNEL=1: no real kernel here")
    try:
        series, image = newest_image()
    except GuestemuError as error:
        pytest.fail(
            f"these tests need the newest kernel of Debian's backports: {error} "
            "(or set GUESTEMU_NO_KERNEL=1 to skip them)"
        )
    wanted = expected().series
    assert series == wanted, f"the newest series is {series} now: run `make newest` and look at it"
    return guest_of(image)


def test_it_tells_the_host_of_a_conversion(newest: LinuxGuest) -> None:
    bench = Bench(newest)
    page = bench.gva(Region.D, 4)
    assert newest.call("set_memory_decrypted", page, 2).value == 0
    assert bench.hypercalls(Region.D) == [(4, 1, 0), (5, 1, 0)]
    assert newest.call("set_memory_encrypted", page, 2).value == 0
    assert bench.hypercalls(Region.D) == [(4, 1, 0x10), (5, 1, 0x10)]


def test_its_warnings_are_read_with_their_text(newest: LinuxGuest) -> None:
    address = Bench(newest).gva(Region.D, 0) + 5
    [warning] = newest.call("set_memory_decrypted", address, 1).warnings
    assert warning.endswith(f": misaligned address: {address:#x}")


def test_its_defects_are_those_that_are_known(newest: LinuxGuest) -> None:
    assert {defect.name: measure(newest, defect).outcome for defect in QUICK} == expected().defects
