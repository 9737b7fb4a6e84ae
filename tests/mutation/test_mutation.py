# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of the judging code are noticed by its tests (`python tests/mutation/mutation.py`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import mutation
import pytest
from mutants import c_mutants, python_mutants

PYTHON = '''
if TYPE_CHECKING:
    from guestemu.host.base import Host

LIMITS = {1, 2}
"""A sentence with 3 words and an `or`."""


def judge(view: int) -> bool:
    if view is None or not view.value:
        return False
    for record, _ in zip(view.records, view.sizes, strict=True):
        if record.size + 1 > 4:
            continue
    return view.ok
'''

NESTED = """
LIMIT = 3


def judge(limit):
    def inner(value):
        return value < limit

    return inner
"""

C = """/* 1 == 2 */
#define LIMIT 7
static bool judge(struct fast *f, u64 value)
{
	if (value == 0 && !f->ready)
		return true;
	return value + 1 <= f->limit;
}
"""


def test_mutants_of_python() -> None:
    names = [mutant.name for mutant in python_mutants(PYTHON)]
    assert names == [
        "module: {1, 2} => {2}",
        "module: {1, 2} => {1}",
        "module: 1 => 2",
        "module: 2 => 3",
        "judge: view is None or not view.value => view is None and (not view.value)",
        "judge: view is None => view is not None",
        "judge: not view.value => view.value",
        "judge: False => True",
        "judge: record.size + 1 > 4 => record.size + 1 >= 4",
        "judge: record.size + 1 => record.size - 1",
        "judge: 1 => 2",
        "judge: 4 => 5",
        "judge: continue => pass",
    ]


def test_a_default_belongs_to_who_defines_the_function() -> None:
    source = "class Judge:\n    def judge(self, limit=3):\n        return limit < 4\n"
    assert [(mutant.name, mutant.where) for mutant in python_mutants(source)] == [
        ("Judge: 3 => 4", "Judge"),
        ("Judge.judge: limit < 4 => limit <= 4", "Judge.judge"),
        ("Judge.judge: 4 => 5", "Judge.judge"),
    ]


def test_every_mutant_of_python_is_another_module() -> None:
    mutants = list(python_mutants(PYTHON))
    assert len({mutant.source for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        compile(mutant.source, "mutant", "exec")


def test_mutants_of_c() -> None:
    mutants = list(c_mutants(C))
    assert {mutant.name.partition(":")[0] for mutant in mutants} == {"judge"}
    changed = {mutant.name.partition(" => ")[2] for mutant in mutants}
    assert changed == {
        "if (value != 0 && !f->ready)",
        "if (value == 0 || !f->ready)",
        "if (value == 0 && f->ready)",
        "if (value == 1 && !f->ready)",
        "return false;",
        "return value - 1 <= f->limit;",
        "return value + 1 < f->limit;",
        "return value + 2 <= f->limit;",
    }


def test_a_changed_function_takes_the_place_of_the_loaded_one(tmp_path: Path) -> None:
    def loaded(source: str) -> tuple[mutation.Loaded, dict[str, Any]]:
        path = tmp_path / "judge.py"
        path.write_text(source)
        names: dict[str, Any] = {}
        exec(compile(source, str(path), "exec", dont_inherit=True), names)
        return mutation.Loaded(path, tmp_path), names

    part, names = loaded(NESTED)
    outer, inner = names["judge"], names["judge"](3)
    assert [outer(3)(1), inner(1), names["LIMIT"]] == [True, True, 3]
    found = {mutant.name: mutant for mutant in python_mutants(NESTED)}
    changes = part.changes(found["judge.inner: value < limit => value <= limit"])
    part.look_up()
    part.exchange(changes)
    assert [outer(1)(1), inner(3), inner(4)] == [True, True, False], "also what was made before"
    assert part.changes(found["module: 3 => 4"]) == {}, "no function has it"


def test_judges_and_their_tests_are_there() -> None:
    for part, tests in mutation.JUDGES.items():
        assert (mutation.PACKAGE / part).is_file()
        assert all((mutation.ROOT / test).is_file() for test in tests)
    for part, reasons in mutation.explained().items():
        names = {mutant.name for mutant in mutation.mutants_of(part)}
        assert reasons.keys() <= names, f"{part}: that code is gone, take the reason out"
        assert all(len(reason) > 20 for reason in reasons.values())


@pytest.mark.soak
@pytest.mark.parametrize("parts", mutation.groups_of(mutation.JUDGES), ids=lambda parts: parts[0])
def test_no_mutant_survives_that_is_not_explained(parts: list[str]) -> None:
    script = Path(mutation.__file__)
    done = subprocess.run(
        [sys.executable, str(script), *parts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
