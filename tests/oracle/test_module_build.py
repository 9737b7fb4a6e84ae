# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu oracle build-modules`: what is fetched, what is refused; the build itself in soak."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from guestemu.abi.errors import InputError, MissingError
from guestemu.cli.main import main
from guestemu.guest.linux.images import find_image
from guestemu.host.kvm.kernels import KERNELS
from guestemu.oracle import module_build, reduce
from guestemu.oracle.campaign import OracleCampaign
from guestemu.oracle.generator import Generator
from guestemu.oracle.image import find_kernel
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.matrix import PROT, call
from guestemu.oracle.module_build import ModuleBuilder, options_for, suite_of

DATA = Path(__file__).parent.parent / "data" / "kvm-oracle"
NAME = "linux-binary-7.3.4+deb13-cloud-amd64_7.3.4-1~bpo13+1_amd64.deb"
PATCH = """\
--- a/arch/x86/kvm/x86.c
+++ b/arch/x86/kvm/x86.c
@@ -1 +1 @@
-a
+b
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache with one kernel in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels = tmp_path / "guestemu" / "kernels"
    kernels.mkdir(parents=True)
    with (kernels / NAME).open("wb") as stream:
        stream.truncate(2 << 20)
    return tmp_path


def test_source_headers_and_compiler_of_the_kernels_own_release_are_fetched(cache):
    packages = ModuleBuilder("7.3", print).packages
    assert packages[:3] == (
        "linux-headers-7.3.4+deb13-cloud-amd64=7.3.4-1~bpo13+1",
        "linux-source-7.3=7.3.4-1~bpo13+1",
        "gcc-14",
    )
    assert "patch" in packages


@pytest.mark.parametrize(
    ("release", "series", "suite"),
    [
        ("7.3.4+deb13-cloud-amd64", "7.3", "trixie"),
        ("6.12.117+deb12-cloud-amd64", "6.12", "bookworm"),
        ("6.1.0-57-cloud-amd64", "6.1", "bookworm"),
    ],
)
def test_the_release_of_debian_is_read_from_the_kernels_name(release, series, suite):
    assert suite_of(release, series) == suite


def test_what_turns_protected_vms_on_depends_on_the_kernel():
    assert "CONFIG_KVM_SW_PROTECTED_VM" in options_for("7.3")
    assert "CONFIG_KVM_GENERIC_PRIVATE_MEM" not in options_for("7.3")
    assert "CONFIG_KVM_GENERIC_PRIVATE_MEM" in options_for("6.12")
    with pytest.raises(InputError, match=r"6\.1 has no software-protected VMs.*--plain"):
        options_for("6.1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no patch at all\n", "not a patch"),
        (PATCH.replace("arch/x86/kvm/x86.c", "mm/slub.c"), "changes mm/slub.c; only arch/x86/kvm"),
        (PATCH.replace("kvm/x86.c", "kvm/../../../init/main.c"), "changes arch/x86/kvm/../"),
    ],
)
def test_a_patch_of_what_is_not_compiled_is_refused(cache, tmp_path, capsys, text, said):
    change = tmp_path / "change.patch"
    change.write_text(text)
    words = ["oracle", "build-modules", "7.3", "-o", str(tmp_path / "out"), "--patch", str(change)]
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_coverage_is_compiled_into_kvm_and_started_with_its_files(cache, tmp_path):
    sources = tmp_path / "sources"
    for part in ("arch/x86/kvm", "virt/kvm"):
        (sources / part).mkdir(parents=True)
    (sources / "arch/x86/kvm/Makefile").write_text("kvm-y += x86.o\n")
    main_file = sources / "virt/kvm/kvm_main.c"
    main_file.write_text('\tkvm_debugfs_dir = debugfs_create_dir("kvm", NULL);\n\treturn;\n')
    builder = ModuleBuilder("7.3", print)
    builder._add_coverage(sources)
    assert (sources / "arch/x86/kvm/guestemu_kcov.c").is_file()
    rules = (sources / "arch/x86/kvm/Makefile").read_text().splitlines()
    assert rules[2:] == [
        "kvm-y += guestemu_kcov.o",
        "CFLAGS_REMOVE_guestemu_kcov.o := -fsanitize-coverage=trace-pc",
    ]
    assert main_file.read_text().splitlines()[2] == "\tguestemu_kcov_init();"
    main_file.write_text("\treturn;\n")
    with pytest.raises(MissingError, match=r"coverage is not known to fit into kvm_main\.c"):
        builder._add_coverage(sources)


def test_a_kernel_that_is_no_fetched_package_is_refused(tmp_path, capsys):
    image = tmp_path / "bzImage"
    image.write_bytes(b"\0" * 0x202 + b"HdrS")
    assert main(["oracle", "build-modules", str(image), "-o", str(tmp_path)]) == 2
    assert "for a fetched Debian package" in capsys.readouterr().err


def test_apts_words_are_shown_where_the_archive_has_no_such_kernel(cache, monkeypatch):
    def apt(command, directory):
        if "install" in command:
            said = "E: Version '7.3.4-1~bpo13+1' for 'linux-source-7.3' was not found\n"
            return subprocess.CompletedProcess(command, 100, "", said)
        text = "http://deb.example/debian|trixie\n" if "indextargets" in command else ""
        return subprocess.CompletedProcess(command, 0, text, "")

    monkeypatch.setattr(module_build, "check_apt", lambda: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(MissingError, match=r"'linux-source-7\.3' was not found.*no longer has"):
        ModuleBuilder("7.3", print, apt).build(cache / "out")


@pytest.mark.soak
def test_rebuilt_modules_have_protected_vms_and_load_into_the_packages_kernel(tmp_path):
    try:
        find_image("7.3")
    except MissingError:
        pytest.skip("kernel 7.3 was not fetched")
    assert main(["oracle", "build-modules", "7.3", "-o", str(tmp_path)]) == 0
    with LiveKvm(find_kernel("7.3", Path(tmp_path))) as kvm:
        assert kvm.machine.has_protected_vms


@pytest.mark.soak
@pytest.mark.parametrize(
    ("change", "words", "seen"),
    [
        ("planted-pages.patch", ["--steps", "6000"], "events[0].args[1]"),
        ("planted-hole.patch", ["--steps", "20000", "--memory"], "out.data"),
    ],
)
def test_one_changed_line_of_kvm_is_found_made_small_and_explained(
    tmp_path, capsys, change, words, seen
):
    """The page count cut to 32 bits at the exit; a hole that leaves its last page."""
    try:
        find_image("7.3")
    except MissingError:
        pytest.skip("kernel 7.3 was not fetched")
    built = str(tmp_path / "modules")
    patch = str(DATA / change)
    assert main(["oracle", "build-modules", "7.3", "--patch", patch, "-o", built]) == 0
    capsys.readouterr()
    assert main(["oracle", "fuzz", "7.3", "--modules", built, *words, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    fields = [one["field"] for finding in found for one in finding["differences"]]
    assert seen in fields
    assert min(finding["steps"] for finding in found) <= 5


@pytest.mark.soak
def test_a_kernel_that_warns_dies_hangs_or_is_killed_is_told_and_the_campaign_goes_on(
    tmp_path, monkeypatch
):
    """Hypercall 13 warns, 14 is a BUG, 15 never ends; QEMU is killed besides."""
    try:
        find_image("7.3")
    except MissingError:
        pytest.skip("kernel 7.3 was not fetched")
    built = str(tmp_path / "modules")
    patch = str(DATA / "planted-trouble.patch")
    assert main(["oracle", "build-modules", "7.3", "--patch", patch, "-o", built]) == 0
    monkeypatch.setattr(reduce, "_SLOW_TRIES", 2)
    heard, pids = [], []
    with LiveKvm(find_kernel("7.3", Path(built)), batch_s=20) as kvm:
        draw = Troubles(5)
        one = OracleCampaign(kvm, KERNELS["7.2"], generator=draw, say=heard.append, batch=256)
        for number in (0, 13, 14, 15):
            draw.number = number
            pids.append(kvm.pid)
            if not number:
                os.kill(kvm.pid, signal.SIGKILL)
            one.run(one.sums.steps + 512)
        pids.append(kvm.pid)
    assert "QEMU was ended by SIGKILL; started again" in heard
    assert [finding.steps for finding in one.sums.findings] == [1, 1, 1]
    words = ("WARNING: ", "kernel BUG at", "hangs: no answer")
    for finding, said in zip(one.sums.findings, words, strict=True):
        assert said in finding.summary
    assert one.sums.restarts >= 3
    assert one.sums.steps >= 4 * 512
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.soak
def test_modules_with_coverage_tell_which_of_their_code_steps_reach(tmp_path, capsys):
    """A kernel without kcov; what is new steers the campaign."""
    try:
        find_image("7.3")
    except MissingError:
        pytest.skip("kernel 7.3 was not fetched")
    built = str(tmp_path / "modules")
    assert main(["oracle", "build-modules", "7.3", "--coverage", "-o", built]) == 0
    capsys.readouterr()
    assert main(["oracle", "fuzz", "7.3", "--modules", built, "--steps", "4000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["covered"] > 1000
    assert main(["oracle", "fuzz", "7.3", "--steps", "2048", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["covered"] == 0


class Troubles(Generator):
    """The random steps, none of which is hypercall 13, 14 or 15; but the 100th of a number is, in a
    mode that every VM can enter."""

    number = 0
    drawn = 0

    def act(self, vcpus=1):
        drawn = super().act(vcpus)
        while drawn.op.is_hypercall and drawn.inputs.rax & 0xFFFFFFFF in (13, 14, 15):
            drawn = super().act(vcpus)
        self.drawn += 1
        if self.number and self.drawn >= 100:
            drawn, self.number, self.drawn = call(self.number, mode=PROT), 0, 0
        return drawn
