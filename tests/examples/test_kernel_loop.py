# SPDX-License-Identifier: GPL-2.0-or-later
"""The scripts of examples/kernel-loop, over a tree whose `make` copies a file and a `guestemu` that
looks into it. Real builds are for whoever has the minutes: they are what the scripts are for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LOOP = Path(__file__).parents[2] / "examples" / "kernel-loop"
NARROW = "enc_dec_hypercall(vaddr, npages << PAGE_SHIFT, enc);"
ALWAYS = "\tif (kvm_para_has_feature(KVM_FEATURE_MIGRATION_CONTROL))\n"
SOURCES = {
    "arch/x86/mm/mem_encrypt_amd.c": f"{{\n\t\t{NARROW}\n}}\n",
    "arch/x86/kernel/kvm.c": f"{{\n{ALWAYS}}}\n",
}
VERSION = "6.12.117"
MAKE = f"""\
#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in -C) cd "$2"; shift ;; esac
    target=$1; shift
done
[ "$target" != kernelversion ] || exec cat version
[ "$target" = bzImage ] || exit 0
grep -q 'does not compile' arch/x86/mm/mem_encrypt_amd.c && exit 1
cat {" ".join(SOURCES)} > arch/x86/boot/bzImage
"""
GUESTEMU = f"""\
#!/bin/sh
[ "$1 $2" = "kernel test" ] || exit 2
echo "$@" >> calls
overflows() {{ grep -qF '{NARROW}' "$1"; }}
stays_off() {{ grep -q '^.if (kvm_para' "$1"; }}
is_broken() {{ case $row in cpu-offline) stays_off "$1" ;; *) overflows "$1" ;; esac; }}
grep -q cpu-offline calls && row=cpu-offline || row=2gib-overflow
case "$*" in
    *--against*)
        is_broken "$3" || ! is_broken broken-bzImage && exit 2
        echo '{{"differences": [{{"row": "'$row'", "what": "verdict", "here": "right",'
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
    for directory in ("arch/x86/boot", "arch/x86/configs"):
        (source / directory).mkdir(parents=True)
    (source / "Kbuild").touch()
    (source / "version").write_text(f"{VERSION}\n")
    for name, text in SOURCES.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    return source


def run(
    script: str, *arguments: str, cwd: Path, loop: Path = LOOP
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(loop / script), *arguments],
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


@pytest.mark.parametrize(
    ("version", "config"),
    [("6.1.192", "6.1"), ("6.6.3", "6.1"), ("6.12", "6.12"), ("6.19.1", "6.12"), ("8.0", "7.3")],
)
def test_a_tree_gets_the_configuration_of_its_version_or_of_the_nearest_before(
    tree: Path, version: str, config: str
) -> None:
    loop = tree.parent / "loop"
    loop.mkdir()
    shutil.copy(LOOP / "kernel-loop", loop)
    for there in ("6.1", "6.12", "7.3"):
        (loop / f"guest-{there}.config").write_text(f"# {there}\n")
    (tree / "version").write_text(f"{version}\n")
    assert run("kernel-loop", str(tree), cwd=tree, loop=loop).returncode == 1
    given = (tree / "arch/x86/configs/guestemu_defconfig").read_text()
    assert given == f"# {config}\n"


def test_a_tree_before_the_first_configuration_is_skipped(tree: Path) -> None:
    (tree / "version").write_text("5.15.2\n")
    done = run("kernel-loop", str(tree), cwd=tree)
    assert done.returncode == 125
    assert "no configuration for linux 5.15.2" in done.stderr


def test_a_tree_that_does_not_build_is_skipped(tree: Path) -> None:
    (tree / "arch/x86/mm/mem_encrypt_amd.c").write_text("does not compile\n")
    assert run("kernel-loop", str(tree), cwd=tree).returncode == 125
    assert run("kernel-loop", str(tree / "arch"), cwd=tree).returncode == 2


@pytest.mark.parametrize("row", ["2gib-overflow", "cpu-offline"])
def test_bisect_names_the_commit_that_broke_it(tree: Path, row: str) -> None:
    done = run("bisect", str(tree), row, cwd=tree.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "bisect: git names the commit that broke it" in lines, done.stdout + done.stderr
    assert lines[-1] == f"bisect: {row} right -> known defect"


def test_bisect_refuses_what_it_cannot_break(tree: Path) -> None:
    assert run("bisect", str(tree), "frame-0", cwd=tree).returncode == 2
    (tree / "arch/x86/mm/mem_encrypt_amd.c").write_text("rewritten\n")
    done = run("bisect", str(tree), cwd=tree)
    assert done.returncode == 1
    assert "0 times, not once" in done.stderr
