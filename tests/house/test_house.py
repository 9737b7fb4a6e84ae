# SPDX-License-Identifier: GPL-2.0-or-later
"""The package keeps the house rules, and each rule finds what it is there for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import rules

HEAD = f"{rules.LICENSE}\n"


@pytest.fixture(scope="module")
def house() -> rules.House:
    return rules.read_house()


@pytest.mark.parametrize("rule", rules.STRICT, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule: rules.Rule, house: rules.House) -> None:
    assert rule(house) == [], rule.__doc__


@pytest.mark.parametrize("rule", rules.LIMITED, ids=lambda rule: rule.__name__)
def test_offenders_do_not_become_more(rule: rules.Rule, house: rules.House) -> None:
    offenders = rule(house)
    limit = rules.limits()[rule.__name__]
    assert len(offenders) <= limit, "\n".join([rule.__doc__ or "", *offenders])


def test_limits_are_those_of_the_rules() -> None:
    assert list(rules.limits()) == [rule.__name__ for rule in rules.LIMITED]


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by their bare names: of two equal ones the second is an error."""
    names = Counter(path.name for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name, files in names.items() if files > 1] == []


def found(rule: rules.Rule, *files: tuple[str, str]) -> int:
    return len(rule([rules.parse(text, path) for path, text in files]))


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("machine", "from guestemu.guest.base import Guest"),
        ("abi", "import guestemu.machine.engine"),
        ("program", "from guestemu.host.base import Host"),
        ("host", "from guestemu.checks.base import Check"),
        ("guest", "if True:\n    from guestemu.runner import Testbed"),
        ("checks", "from guestemu import demo"),
        ("dma", "from guestemu.cli import console"),
    ],
)
def test_an_import_that_goes_up_is_found(room: str, text: str) -> None:
    assert found(rules.upward_imports, (f"{room}/one.py", text)) == 1


def test_an_import_of_a_module_beside_the_packages_has_its_floor() -> None:
    testbed = ("testbed.py", "from guestemu.checks.base import Check")
    assert (
        found(rules.upward_imports, testbed, ("dma/one.py", "import guestemu.runner.testbed")) == 0
    )
    assert (
        found(rules.upward_imports, testbed, ("host/one.py", "import guestemu.runner.testbed")) == 1
    )


def test_imports_that_go_down_are_fine() -> None:
    text = "from guestemu.machine.engine import Engine\nfrom guestemu.abi import x86\n"
    assert found(rules.upward_imports, ("guest/one.py", text)) == 0


def test_circles_are_found_over_any_number_of_rooms() -> None:
    one = ("one/a.py", "from guestemu.two.b import B")
    two = ("two/b.py", "from guestemu.three import c")
    three = ("three/c.py", "import guestemu.one.a")
    other = ("other/d.py", "import guestemu.one.a\nimport guestemu.other.e")
    assert found(rules.circles, one, two, other) == 0
    assert found(rules.circles, one, two, three, other) == 3


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (rules.relative_imports, "from . import engine", "from guestemu.machine import engine"),
        (rules.unlicensed, '"""Text."""\n', HEAD),
        (rules.leftovers, "# TODO: more", "# Nothing to do."),
        (rules.silenced, "x = f()  # type: ignore[x]", "x = f()  # the type is known"),
        (rules.long_calls, "f(1, 2, 3, 4, 5, 6, 7)", "f(1, 2, 3, 4, 5, 6, g=7)"),
        (rules.splats, "f(*(1, 2), 3)", "f(*numbers, 3)"),
        (
            rules.positional_structs,
            "class A(msgspec.Struct):\n    a: int\n    b: int\n    c: int\n    d: int\n"
            "    e: int\n    f: int",
            "class A(msgspec.Struct, kw_only=True):\n    a: int\n    b: int\n    c: int\n"
            "    d: int\n    e: int\n    f: int",
        ),
        (
            rules.positional_structs,
            "@dataclass(frozen=True)\nclass A:\n    a: int\n    b: int\n    c: int\n    d: int\n"
            "    e: int\n    f: int",
            "@dataclass\nclass A:\n    a: int\n    b: int\n    c: int\n    d: int\n    e: int\n"
            "    limit: ClassVar[int] = 3",
        ),
        (
            rules.bare_methods,
            "class A:\n    def run(self): ...",
            'class A:\n    def run(self):\n        "Runs."\n    def _stop(self): ...',
        ),
        (
            rules.bare_methods,
            "class A(Struct):\n    def stop(self): ...",
            'class A:\n    def run(self):\n        "Runs."\n'
            "class B(A): ...\nclass C(B):\n    def run(self): ...",
        ),
    ],
)
def test_each_rule_finds_its_offender(rule: rules.Rule, bad: str, good: str) -> None:
    assert found(rule, ("machine/one.py", bad)) == 1
    assert found(rule, ("machine/one.py", good)) == 0


def test_a_class_name_of_two_files_is_found() -> None:
    one, two = ("one/a.py", "class A: ..."), ("two/a.py", "class A: ...\nclass _B: ...")
    assert found(rules.repeated_classes, one) == 0
    assert found(rules.repeated_classes, one, two, ("three/a.py", "class _B: ...")) == 1


def test_a_report_that_a_verb_prints_line_by_line_is_found() -> None:
    lines = ("cli/one.py", "console.emit(1)\n" * 4), ("cli/two.py", "console.emit(1)\n" * 3)
    assert found(rules.printed_reports, *lines) == 1
    assert found(rules.printed_reports, ("cli/console.py", lines[0][1])) == 0


def test_a_function_with_many_ways_is_found(tmp_path: Path) -> None:
    lines = ["def f(x):", *(f"    if x == {n}:\n        return {n}" for n in range(11))]
    (tmp_path / "one.py").write_text("\n".join(lines))
    (offender,) = rules.ruff_complexity(tmp_path)
    assert offender.startswith("one.py:1 `f` is too complex (12 > 10)")
