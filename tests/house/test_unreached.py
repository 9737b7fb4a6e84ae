# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing in the package is there for tests alone, and the search for it finds what is."""

from __future__ import annotations

import pytest
from unreached import House, exceptions, product


def test_only_what_is_listed_is_reached_by_tests_alone() -> None:
    known = exceptions()
    assert House(product()).unreached() == sorted(known), (
        "new: give it a caller that a user reaches, or remove it; gone: take it out of the list"
    )
    assert all(len(reason) > 20 for reason in known.values())


def found(**files: str) -> list[str]:
    paths = {f"guestemu/{name}.py": text for name, text in files.items()}
    return [one.removeprefix("guestemu/") for one in House(paths).unreached()]


@pytest.mark.parametrize(
    "text",
    [
        "def f(): ...\n__all__ = ['f']",
        'def f():\n    "f calls f."\n    f()',
        "def f(): ...\ndef main():\n    f = 1\n@app.command()\ndef verb(): ...",
        "@cache\ndef f(): ...",
        "@app.command()\ndef verb():\n    g()\ndef f(): ...",
        "class A:\n    def g(self): f()\ndef f(): ...\nA()",
    ],
)
def test_what_nothing_calls_is_found(text: str) -> None:
    assert "a.py:f" in found(a=text) or "a.py:A.g" in found(a=text)


@pytest.mark.parametrize(
    "text",
    [
        "def f(): ...\nf()",
        "def f(): ...\nTABLE = {'x': f}",
        "@app.command()\ndef f(): ...",
        "def f(): ...\ngetattr(module, 'f')",
        "class A:\n    def f(self): ...\nA().f()",
        "class A:\n    def __init__(self): f()\ndef f(): ...\nA()",
        "def g():\n    def inner(): f()\n    return inner\ndef f(): ...\ng()",
        "def pytest_addoption(): f()\ndef f(): ...",
    ],
)
def test_what_runs_is_not(text: str) -> None:
    assert found(a=text) == []


def test_two_that_call_each_other_are_found() -> None:
    assert found(a="def f(): g()\ndef g(): f()") == ["a.py:f", "a.py:g"]


def test_an_import_alone_reaches_nothing_and_a_name_leads_where_it_was_imported_from() -> None:
    one = "def f(): ..."
    assert found(a=one, b="from guestemu.a import f") == ["a.py:f"]
    assert found(a=one, b=one, c="from guestemu.a import f as g\ng()") == ["b.py:f"]
    hand_on = "from guestemu.a import f"
    assert found(a=one, b=hand_on, c="from guestemu.b import f\nf()") == []


def test_a_document_reaches_what_it_names() -> None:
    files = {"guestemu/a.py": "def f(): ...\ndef g(): ...", "docs/a.md": "Call `f`."}
    assert House(files).unreached() == ["guestemu/a.py:g"]
