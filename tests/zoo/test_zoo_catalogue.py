# SPDX-License-Identifier: GPL-2.0-or-later
"""The zoo's list: enough bugs, each with a check, a target, and a twin without it."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import ascii_lowercase

import pytest

from guestemu.abi.errors import InputError
from guestemu.campaign.planted import variants
from guestemu.campaign.planted.bug import sort_key
from guestemu.campaign.planted.catalogue import BUGS, find_bugs, repaired_configurations
from guestemu.campaign.planted.catalogue_guests import GUEST_BUGS
from guestemu.campaign.planted.targets import TARGETS, find_target


def test_there_are_fifty_bugs_of_the_fact_sheet():
    numbers = {bug_id.rstrip(ascii_lowercase) for bug_id in BUGS}
    assert len(numbers) >= 50
    tdx = {f"T{number}" for number in range(1, 41)}
    snp = {f"N{number}" for number in range(1, 57)}
    vmms = {f"V{number}" for number in range(1, 12)}
    assert numbers <= {f"M{number}" for number in range(1, 77)} | tdx | snp | vmms | {"GM10"}


def test_they_come_in_the_order_of_the_sheet():
    assert list(BUGS) == sorted(BUGS, key=sort_key)
    assert sort_key("M9") < sort_key("M10") < sort_key("M39a") < sort_key("M39b")


def test_every_target_is_used_and_known():
    assert {bug.target for bug in BUGS.values()} == set(TARGETS)
    with pytest.raises(InputError, match="no such target"):
        find_target("nothing")


def test_a_number_stands_for_all_its_letters():
    assert [bug.id for bug in find_bugs(["m39", "M1"])] == ["M39a", "M39b", "M1"]
    assert len(find_bugs([])) == len(BUGS)
    with pytest.raises(InputError, match=r"M99.*guestemu zoo list"):
        find_bugs(["M99"])


def test_each_bug_is_in_one_repaired_configuration():
    twins = repaired_configurations(BUGS.values())
    assert sorted(bug for twin in twins for bug in twin.bugs) == sorted(BUGS)
    assert len(twins) < len(BUGS)


def test_repaired_configurations_of_one_name_are_one():
    """Campaigns and witnesses run the first of them for all."""
    for twin in repaired_configurations(BUGS.values()):
        for bug_id in twin.bugs:
            other = BUGS[bug_id].repaired
            assert (other.header, other.checks, other.prepare, other.host) == (
                twin.configuration.header,
                twin.configuration.checks,
                twin.configuration.prepare,
                twin.configuration.host,
            ), bug_id


def test_a_guest_bug_is_other_code_than_its_twin():
    for bug in GUEST_BUGS:
        if bug.id.lower() in variants.VARIANTS:
            assert variants.VARIANTS[bug.id.lower()] != variants.CLEAN


@pytest.mark.skipif(not (shutil.which("as") and shutil.which("ld")), reason="needs binutils")
@pytest.mark.parametrize("name", variants.EVERY)
def test_committed_code_is_what_its_edits_assemble_to(name: str, tmp_path: Path):
    variants.build_variant(name, tmp_path / "new.elf")
    built = variants.parse_snippet(variants.GENERATION, (tmp_path / "new.elf").read_bytes())
    assert built == variants.load_variant(name)


def test_an_edit_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    edit = variants.Edit("cpa.inc.S", "no such line", "")
    monkeypatch.setattr(variants, "EVERY", {"bad": (edit,)})
    with pytest.raises(InputError, match=r"cpa\.inc\.S has 0 times"):
        variants.build_variant("bad", tmp_path / "new.elf")


def test_an_unknown_variant_is_refused():
    with pytest.raises(InputError, match="take one of clean"):
        variants.load_variant("nothing")
