# SPDX-License-Identifier: GPL-2.0-or-later
"""What a user's own host may import and override: everything that docs and examples name."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from guestemu.host.base import Host, Hypercall
from guestemu.host.plugin_guard import PluginHost
from guestemu.host.registry import load_host
from guestemu.host.standin import StandInVcpu

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs" / "hosts.md", ROOT / "README.md", *sorted(ROOT.glob("examples/**/*.py")))
IMPORT = re.compile(r"^from (guestemu[\w.]*) import (\([^)]*\)|[^\n]+)", re.MULTILINE)
NAMES = sorted(
    {
        (module, name)
        for page in PAGES
        for module, names in IMPORT.findall(page.read_text(encoding="utf-8"))
        for name in re.findall(r"\w+", re.sub(r" as \w+", "", names))
    }
)


def test_there_are_names_to_hold() -> None:
    assert ("guestemu.host.base", "Host") in NAMES


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_documented_import_works(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_the_interface_of_a_host_is_what_it_was() -> None:
    assert Host.__abstractmethods__ == {
        *("reset", "hypercall", "rdmsr", "wrmsr", "private_map", "migration_ready"),
    }
    assert {
        name: tuple(inspect.signature(getattr(Host, name)).parameters)[1:]
        for name in ("reset", "hypercall", "rdmsr", "wrmsr", "private_map", "inject_answer")
    } == {
        "reset": ("frames",),
        "hypercall": ("call",),
        "rdmsr": ("index", "vcpu"),
        "wrmsr": ("index", "value", "vcpu"),
        "private_map": (),
        "inject_answer": ("value", "count"),
    }
    assert Hypercall.__struct_fields__ == (
        *("nr", "a0", "a1", "a2", "a3", "cpl", "is_64bit", "vcpu", "is_vmcall"),
    )


def test_a_record_is_asked_for_once_after_each_call(tmp_path: Path) -> None:
    path, notes = tmp_path / "counts.py", tmp_path / "notes"
    path.write_text(
        "from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost\n"
        "class Counts(MapGpaRangeHost):\n"
        "    def private_map(self):\n"
        f"        with open({str(notes)!r}, 'a') as file:\n"
        "            file.write('.')\n"
        "        return super().private_map().copy()\n"
    )
    host = load_host(f"{path}:Counts", plugin=str(path))
    assert isinstance(host, PluginHost)
    host.reset(64)
    assert host.private_map().all()
    assert host.private_map().all()
    assert notes.read_text() == "."
    host.hypercall(StandInVcpu().hypercall(12, 0, 1, 0))
    assert not host.private_map()[0]
    assert notes.read_text() == ".."
    with host.as_new():
        host.reset(64)
        assert host.private_map().all()
    assert not host.private_map()[0]
