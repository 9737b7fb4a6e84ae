# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose code may run: nothing that a program names, unless the user typed or allowed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.host.permission import (
    Permissions,
    is_code,
    named_by_user,
    option_words,
    permissions,
)
from guestemu.host.registry import hosts


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """hosts/vmm.py, other/vmm.py and programs/deep/a.prog; the working directory is beside them."""
    for name in ("hosts", "other", "programs/deep", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("hosts/vmm.py", "other/vmm.py", "vmm.py"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


@pytest.mark.parametrize(
    "spec", ["a.py:B", "a.py", "./a.so", "a.so:vm", "cmd:ls", "kvm:", "/x/a.py:B", "a.py:B:C.py:D"]
)
def test_what_is_code(spec: str) -> None:
    assert is_code(spec)
    with pytest.raises(InputError, match=r"a\.prog: host "):
        Permissions().find(spec, Path("a.prog"))


def test_hosts_of_guestemu_need_no_permission() -> None:
    for entry in hosts():
        assert not is_code(entry.name)
        assert Permissions().find(f"{entry.name}:6.1", Path("a.prog")) == ""
        assert named_by_user(entry.name) == (entry.name, "")


def test_a_file_is_found_beside_the_program_above_it_and_from_the_working_directory(
    project: Path,
) -> None:
    allowed = Permissions((project,))
    program = project / "programs" / "deep" / "a.prog"
    assert allowed.find("hosts/vmm.py:V", program) == str(project / "hosts" / "vmm.py")
    assert allowed.find("vmm.py:V", program) == str(project / "vmm.py")
    (project / "programs" / "deep" / "vmm.py").write_text("")
    assert allowed.find("vmm.py:V", program) == str(project / "programs" / "deep" / "vmm.py")
    (project / "elsewhere" / "mine.py").write_text("")
    assert allowed.find("mine.py:V", program) == str(project / "elsewhere" / "mine.py")
    narrow = Permissions((project / "other",))
    assert narrow.find("vmm.py:V", program) == str(project / "other" / "vmm.py")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("hosts/vmm.py:V", r"is code, .*hosts is not allowed; allow its directory with --plugins"),
        ("../hosts/vmm.py:V", "hosts is not allowed"),
        ("none.py:V", "no such file beside the program"),
        ("/etc/vmm.py:V", r"by a relative path; change it to vmm\.py"),
        ("link.py:V", "hosts is not allowed"),
        ("\0.py:V", "no such file"),
    ],
)
def test_what_lies_outside_does_not_run(project: Path, spec: str, says: str) -> None:
    (project / "other" / "link.py").symlink_to(project / "hosts" / "vmm.py")
    program = project / "other" / "a.prog"
    with pytest.raises(InputError, match=says):
        Permissions((project / "other",)).find(spec, program)


def test_the_project_of_the_working_directory_allows(project: Path) -> None:
    assert permissions(None).directories == ()
    (project / "pyproject.toml").write_text('[tool.guestemu]\nplugins = ["hosts", "../x"]\n')
    assert permissions(None).directories == (project / "hosts", project.parent / "x")
    assert permissions([project / "other"]).directories == (project / "other",)
    (project / "elsewhere" / "pyproject.toml").write_text("[tool.other]\n")
    assert permissions(None).directories[0] == project / "hosts"
    (project / "elsewhere" / "pyproject.toml").write_text("no toml [\n")
    assert permissions(None).directories[0] == project / "hosts"
    (project / "elsewhere" / "pyproject.toml").write_text("[tool.guestemu]\n")
    assert permissions(None).directories == ()


@pytest.mark.parametrize("value", ['"hosts"', "[1]", "{}"])
def test_a_wrong_setting_is_said(project: Path, value: str) -> None:
    (project / "pyproject.toml").write_text(f"[tool.guestemu]\nplugins = {value}\n")
    with pytest.raises(InputError, match=r'pyproject\.toml: .*write plugins = \["DIR"\]'):
        permissions(None)


def test_an_option_names_a_directory(project: Path) -> None:
    with pytest.raises(InputError, match=r"--plugins .*vmm\.py: no such directory"):
        permissions([project / "vmm.py"])


def test_a_typed_path_is_named_so_that_a_program_may_hold_it(project: Path) -> None:
    here = project / "elsewhere" / "a.py"
    assert named_by_user("a.py:B") == ("a.py:B", str(here))
    assert named_by_user(f"{here}:B") == ("a.py:B", str(here))
    far = project / "hosts" / "vmm.py"
    assert named_by_user(f"{far}:V") == ("vmm.py:V", str(far))
    allowed = permissions([Path(option_words(str(far))[1])])
    assert allowed.find("vmm.py:V", project / "w" / "findings" / "a.prog") == str(far)
    assert option_words(str(here)) == ["--plugins", "."]
    assert option_words("") == []
