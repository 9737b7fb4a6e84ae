# SPDX-License-Identifier: GPL-2.0-or-later
"""The scripts of examples/kernel-loop, over a tree whose `make` copies a file and a `guestemu` that
looks into it. Real builds are for whoever has the minutes: they are what the scripts are for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

LOOP = Path(__file__).parents[2] / "examples" / "kernel-loop"
NARROW = "enc_dec_hypercall(vaddr, npages << PAGE_SHIFT, enc);"
MAKE = """\
#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in -C) cd "$2"; shift ;; esac
    target=$1; shift
done
[ "$target" = bzImage ] || exit 0
grep -q 'does not compile' arch/x86/mm/mem_encrypt_amd.c && exit 1
cp arch/x86/mm/mem_encrypt_amd.c arch/x86/boot/bzImage
"""
GUESTEMU = f"""\
#!/bin/sh
[ "$1 $2" = "kernel test" ] || exit 2
echo "$@" >> calls
is_broken() {{ grep -qF '{NARROW}' "$1"; }}
case "$*" in
    *--against*)
        is_broken "$3" || ! is_broken broken-bzImage && exit 2
        echo '{{"differences": [{{"row": "2gib-overflow", "what": "verdict", "here": "right",'
        echo '"there": "known defect"}}, {{"row": "leaf", "what": "instructions"}}]}}' ;;
    *) is_broken "$3" && exit 1 ;;
esac
exit 0
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("make", MAKE), ("guestemu", GUESTEMU)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.delenv("GUESTEMU", raising=False)
    source = tmp_path / "linux"
    for directory in ("arch/x86/mm", "arch/x86/boot", "arch/x86/configs"):
        (source / directory).mkdir(parents=True)
    (source / "Kbuild").touch()
    (source / "arch/x86/mm/mem_encrypt_amd.c").write_text(f"{{\n\t\t{NARROW}\n}}\n")
    return source


def run(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(LOOP / script), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_loop_configures_builds_and_gives_the_verdict(tree: Path) -> None:
    done = run("kernel-loop", str(tree), "--only", "2gib-overflow", cwd=tree)
    assert done.returncode == 1, done.stderr
    config = tree / "arch/x86/configs/guestemu_defconfig"
    assert "CONFIG_KALLSYMS_ALL=y" in config.read_text()
    assert (tree / "calls").read_text().split()[-2:] == ["--only", "2gib-overflow"]


def test_a_tree_that_does_not_build_is_skipped(tree: Path) -> None:
    (tree / "arch/x86/mm/mem_encrypt_amd.c").write_text("does not compile\n")
    assert run("kernel-loop", str(tree), cwd=tree).returncode == 125
    assert run("kernel-loop", str(tree / "arch"), cwd=tree).returncode == 2


def test_bisect_names_the_commit_that_broke_it(tree: Path) -> None:
    done = run("bisect", str(tree), cwd=tree.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "bisect: git names the commit that broke it" in lines, done.stdout + done.stderr
    assert lines[-1] == "bisect: 2gib-overflow right -> known defect"
