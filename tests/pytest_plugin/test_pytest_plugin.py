# SPDX-License-Identifier: GPL-2.0-or-later
"""The pytest plug-in in projects of its users."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

GOOD = "guestemu-program 1\n---\nset_memory_decrypted D[3] pages=2\n\nexpect hypercalls 2\n"
WRONG = GOOD.replace("hypercalls 2", "hypercalls 3\nexpect outcome shutdown")
BAD = "guestemu-program 1\n---\nset_memory D[3]\n"


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    (pytester.path / "programs").mkdir()
    (pytester.path / "programs" / "good.prog").write_text(GOOD)
    pytester.makepyfile(test_own="def test_own(): pass")
    # a run loads them for longer than all the rest takes
    others = [f"-p no:{name}" for name in ("xdist", "hypothesispytest", "cacheprovider")]
    monkeypatch.setenv("PYTEST_ADDOPTS", " ".join(others))
    return pytester


def test_programs_and_a_users_own_tests_run_together(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["programs/good.prog::good PASSED*", "test_own.py::test_own PASS*"])


def test_a_failure_says_what_was_expected_and_what_was_found(project: pytest.Pytester) -> None:
    (project.path / "programs" / "wrong.prog").write_text(WRONG)
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*program wrong*",
            "expected: expect hypercalls 3",
            "found:    hypercalls 2",
            "expected: expect outcome shutdown",
            "found:    outcome ok",
            "see: guestemu show *wrong.prog",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_file_that_is_no_program_fails_with_its_place(project: pytest.Pytester) -> None:
    (project.path / "programs" / "bad.prog").write_text(BAD)
    result = project.runpytest_subprocess("programs/bad.prog")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*bad.prog:3: no op 'set_memory'*"])


def test_a_program_can_be_chosen_and_reported(project: pytest.Pytester) -> None:
    (project.path / "programs" / "wrong.prog").write_text(WRONG)
    result = project.runpytest_subprocess("programs/wrong.prog::wrong", "--junitxml=out.xml")
    result.assert_outcomes(failed=1)
    assert "expected: expect hypercalls 3" in (project.path / "out.xml").read_text()
    listed = project.runpytest_subprocess("--collect-only", "-q", "-k", "good")
    listed.stdout.fnmatch_lines(["programs/good.prog::good", "*1/3 tests collected*"])


def test_it_can_be_switched_off(project: pytest.Pytester) -> None:
    project.runpytest_subprocess("-p", "no:guestemu").assert_outcomes(passed=1)
    project.makeini("[pytest]\nguestemu_programs = false\n")
    project.runpytest_subprocess().assert_outcomes(passed=1)


def test_findings_in_a_work_directory_are_left_alone(project: pytest.Pytester) -> None:
    findings = project.path / "work" / "findings"
    findings.mkdir(parents=True)
    (findings / "record-hypercall-12345678.prog").write_text(WRONG)
    (findings.parent / "campaign.json").write_text("{}")
    found = []
    for _ in range(2):
        listed = project.runpytest_subprocess("--collect-only", "-q")
        found.append([line for line in listed.outlines if "findings" in line])
        (findings.parent / "campaign.json").unlink(missing_ok=True)
    assert [len(lines) for lines in found] == [0, 1]


def test_projects_without_programs_load_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_loaded():
            loaded = {name for name in sys.modules if name.startswith("guestemu")}
            assert loaded == {"guestemu", "guestemu.pytest_plugin"}
            assert "unicorn" not in sys.modules
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
