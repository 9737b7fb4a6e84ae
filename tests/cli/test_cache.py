# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu cache`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guestemu.cli.main import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = tmp_path / "guestemu"
    (root / "kernels").mkdir(parents=True)
    (root / "kernels" / "a.deb").write_bytes(bytes(range(256)) * 64)
    (root / "prepared").mkdir()
    (root / "prepared" / "b").write_bytes(b"x" * 4096)
    return root


def test_what_is_cached_is_listed(cache: Path, capsys: Captured) -> None:
    assert main(["cache", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "guestemu.cache/1"
    assert found["directory"] == str(cache)
    assert [entry["name"] for entry in found["entries"]] == ["kernels", "prepared"]
    assert found["bytes"] >= 16384
    assert main(["cache"]) == 0
    assert "packages that `guestemu kernel fetch` got" in capsys.readouterr().out


def test_clear_takes_away_what_is_named(cache: Path, capsys: Captured) -> None:
    assert main(["cache", "clear", "prepard"]) == 2
    assert "did you mean prepared?" in capsys.readouterr().err
    assert main(["cache", "clear", "prepared", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"][0]["name"] == "prepared"
    assert [path.name for path in cache.iterdir()] == ["kernels"]
    assert main(["cache", "clear"]) == 0
    assert list(cache.iterdir()) == []
    capsys.readouterr()
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "nothing is cached\n"


@pytest.mark.usefixtures("cache")
def test_doctor_shows_its_size(capsys: Captured) -> None:
    assert main(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert " MiB in " in checks["cache"]["detail"]


def test_advice_names_an_option_of_the_command(tmp_path: Path, capsys: Captured) -> None:
    program = tmp_path / "a.prog"
    program.write_text(
        "guestemu-program 1\n---\nanswer value=-22\nset_memory_decrypted D[0] pages=1\n"
    )
    output = tmp_path / "missing" / "b.prog"
    assert main(["minimize", str(program), "-o", str(output)]) == 2
    message = (
        f"{output}: No such file or directory; make its directory, or name another place with -o"
    )
    assert message in capsys.readouterr().err
