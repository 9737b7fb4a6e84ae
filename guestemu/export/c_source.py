# SPDX-License-Identifier: GPL-2.0-or-later
"""The C of an exported program: a template with the program's steps in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Final

from guestemu.export.steps import KvmStep

SELFTEST: Final = "kvm-selftest"
UNIT_TEST: Final = "kvm-unit-test"
FORMS: Final = (SELFTEST, UNIT_TEST)
"""Test of Linux' own kind, with a VMM in it; test of kvm-unit-tests, which QEMU runs."""

_ARGUMENTS: Final = 4


def c_source(form: str, title: str, steps: Sequence[KvmStep]) -> str:
    """The file for one of `FORMS`; `title` is its first line of comment."""
    own = files("guestemu.export")
    template = own.joinpath(f"{form}.c").read_text(encoding="utf-8")
    _, _, vmm = own.joinpath("vmm.c").read_text(encoding="utf-8").partition("\n\n")
    parts = {
        "@VMM@\n": vmm,
        "@TITLE@": title.replace("*/", "* /"),
        "@STEPS@": "\n".join(_step(step) for step in steps),
        "@EXPECTED@": "\n".join(_expected(step) for step in steps),
    }
    for mark, text in parts.items():
        template = template.replace(mark, text)
    return template


def _step(step: KvmStep) -> str:
    words = (*step.args, *(0,) * _ARGUMENTS)[:_ARGUMENTS]
    return f"\t{{ .what = {step.what}, .nr = {step.nr:#x}, .args = {{ {_words(words)} }} }},"


def _words(values: Iterable[int]) -> str:
    return ", ".join(f"{value:#x}ULL" for value in values)


def _expected(step: KvmStep) -> str:
    text = step.text.replace("\\", "\\\\").replace('"', '\\"')
    fields = f".ret = {step.ret:#x}ULL, .faults = {int(step.faults)}, .exits = {int(step.exits)}"
    return f'\t{{ {fields},\n\t  .text = "{text}" }},'
