# SPDX-License-Identifier: GPL-2.0-or-later
"""A finding says whose defect it is, and what should have been, in words of their own."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import guestemu.checks
from guestemu.campaign.triage.cards import headline_of, owner_of, shown_places
from guestemu.campaign.triage.single import findings_of
from guestemu.checks.base import Oracle, Violation, demands, explanations
from guestemu.program.text import load_program, parse_text
from guestemu.report.trace.races import race_of
from guestemu.report.trace.run import run_program

ROOT = Path(__file__).parents[2]
_CUT = """guestemu-program 1
guest snippet:6.12
host tdx-cut
sev tdx
---
set_memory_decrypted L[511] pages=513
"""


def test_a_guest_that_goes_on_after_a_refusal_owns_the_finding() -> None:
    """Not the host, whose line with the error runs only then."""
    run = run_program(load_program(ROOT / "corpora/conversion/host-error-ignored-6.1.prog"))
    (violation,) = run.outcome.violations
    owner = owner_of(violation, run.strip, ["guestemu/host/userspace/injection.py:39: return"])
    assert owner == "the guest's defect: it went on after the host refused"


def test_a_few_lines_of_a_users_host_are_named_and_many_are_not() -> None:
    violation = Violation("record", 0, "GPA 0x1000 is private")
    few = ["/somewhere/my_host.py:16: call = 1", "/somewhere/my_host.py:17: return"]
    assert owner_of(violation, None, few) == "the host's defect, /somewhere/my_host.py:16"
    assert owner_of(violation, None, few * 4) == "the host's defect"
    shown = shown_places([f"/somewhere/my_host.py:{line}: pass" for line in range(90)])
    assert (len(shown), shown[-1]) == (13, "and 78 more lines")


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        (
            "corpora/migration/status-before-dirty-s1.prog",
            "the migration's defect: the page went by an old copy of the record",
        ),
        (
            "examples/demo/forgotten-error.prog",
            "the guest's defect: it went on after the host refused",
        ),
    ],
)
def test_the_records_of_a_lost_page_say_whose_defect_it_is(path: str, owner: str) -> None:
    run = race_of(load_program(ROOT / path))[1]
    lost = next(one for one in run.outcome.violations if one.check.startswith("lost"))
    assert owner_of(lost, run.strip) == owner


def test_a_host_that_answered_success_and_did_half_owns_the_finding() -> None:
    run = run_program(load_program(ROOT / "corpora/tdx/cut-conversion.prog"))
    status = next(one for one in run.outcome.violations if one.check == "status")
    assert owner_of(status, run.strip) == "the host's defect: its record is not what it was told"


def test_a_headline_has_the_names_of_the_strip() -> None:
    run = run_program(load_program(ROOT / "corpora/conversion/hole-middle.prog"))
    moved = next(one for one in run.outcome.violations if one.check == "frames")
    assert "0xffff888000404000" in moved.message
    assert "the first at D[4]: " in headline_of(moved, run.strip, run.places)


def test_a_headline_has_answers_as_linux_names_them() -> None:
    said = "hypercall 0xc(0x0, 0x0, 0x0, 0x0) at CPL 0 was answered 0x0, expected 0xffffffea"
    headline = headline_of(Violation("results", 0, said), None)
    assert headline.endswith(" at CPL 0 was answered 0, expected -22 (-KVM_EINVAL).")


def test_a_defect_in_the_answer_to_map_gpa_shows_again_while_host_code_is_traced() -> None:
    findings = findings_of(parse_text(_CUT, "cut"))
    assert [finding.violation.check for finding in findings] == ["status"]
    assert {place.split(":")[0].rsplit("/", 1)[1] for place in findings[0].places} == {
        "tdx_map_gpa.py"
    }


def test_every_violation_says_what_should_have_held_and_what_it_means() -> None:
    for module in pkgutil.iter_modules(guestemu.checks.__path__):
        importlib.import_module(f"guestemu.checks.{module.name}")
    assert set(demands()) == set(explanations())
    collective = {"lost", "mirror", "device", "psc", "packets"}  # each violation has its own name
    names = {
        kind.name
        for kind in Oracle.__subclasses__()
        if kind.__module__.startswith("guestemu.checks")
    }
    assert names - collective <= set(demands())


def test_many_lines_of_a_model_of_ours_are_no_lead() -> None:
    own = f"{Path(guestemu.checks.__file__).parents[1]}/host/kvm/tdx_map_gpa.py"
    assert shown_places([f"{own}:{line}: pass" for line in range(90)]) == ()
    assert shown_places([f"{own}:1: pass"]) == ("guestemu/host/kvm/tdx_map_gpa.py:1: pass",)
