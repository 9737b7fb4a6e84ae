# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD's kernel, stopped inside a conversion or between two chunks of a MapGPA, and moved."""

from __future__ import annotations

import json

import pytest

from guestemu.cli.main import main
from guestemu.guest.linux.load import linux_config
from guestemu.host.kvm.tdx_map_gpa import TdxKvm
from guestemu.migration.sweep.experiment import Experiment
from guestemu.migration.sweep.instants import FetchOrder, migrate
from guestemu.migration.sweep.scenario import Variant

CHUNK_PAGES = 512


@pytest.fixture(scope="module")
def chunked(image_of):
    """4 MiB converted at once, in two chunks."""
    config = linux_config(128, 39, "tdx", coherent=False)
    experiment = Experiment(image_of("6.12"), config, Variant(chunked=True))
    yield experiment
    experiment.close()


def cut(experiment: Experiment, repaired: bool):
    (index,) = experiment.cuts()
    kvm = TdxKvm(name="7.3", is_cut=True, checks_wants_to_run=repaired)
    return migrate(experiment, index, FetchOrder.DIRTY_FIRST, kvm)


def test_a_td_goes_on_as_if_nothing_had_happened(chunked: Experiment) -> None:
    """Every 900th instruction, and around the entry's store and the TDCALL."""
    steps = [step.index for step in chunked.recording.events if step.kind in {"pmd", "tdcall"}]
    assert len(steps) == 2
    points = [*range(0, chunked.recording.length, 900), *steps, *(index + 1 for index in steps)]
    for index in points:
        point = migrate(chunked, index, FetchOrder.DIRTY_FIRST)
        assert (point.difference, point.lost_defined) == (None, False), index


def test_a_migration_between_two_chunks_loses_the_rest_of_the_conversion(
    chunked: Experiment,
) -> None:
    """T29: the guest reads success; the second chunk reaches user space as the memory fault of the
    first store, one page."""
    found = cut(chunked, repaired=False).difference
    assert found is not None
    assert "pages=1 shared" in found
    assert "instead of KVM_HC_MAP_GPA_RANGE gpa=" in found
    assert f"pages={CHUNK_PAGES} shared" in found


def test_with_a_retry_nothing_is_lost_between_two_chunks(chunked: Experiment) -> None:
    point = cut(chunked, repaired=True)
    assert (point.difference, point.lost_defined) == (None, False)
    assert cut(chunked, repaired=False).difference is not None  # one stop after the other


@pytest.mark.soak
@pytest.mark.parametrize("series", ["6.12", "6.18", "7.3"])
@pytest.mark.parametrize("repaired", [False, True])
def test_the_command(capsys, image_of, series: str, repaired: bool) -> None:
    words = ["--guest", f"linux:{image_of(series)}", "--sev", "tdx", "--every", "3000"]
    words += ["--repaired"] * repaired
    status = main(["explore", "kernel-migration", *words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (status, found["differences"], found["lost_defined"]) == (not repaired, not repaired, 0)
    assert [window["name"] for window in found["windows"]][-1] == "4 MiB in two chunks"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--sev", "tdx", "--path", "firmware"), "not for TDs"),
        (("--sev", "tdx", "--tuples"), "not for TDs"),
        (("--repaired",), "give --sev tdx"),
    ],
)
def test_what_a_td_has_not_is_refused(capsys, arguments: tuple[str, ...], words: str) -> None:
    assert main(["explore", "kernel-migration", *arguments]) == 2
    assert words in capsys.readouterr().err
