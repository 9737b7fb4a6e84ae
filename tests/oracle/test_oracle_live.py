# SPDX-License-Identifier: GPL-2.0-or-later
"""The KVM of a real kernel under QEMU; skipped where QEMU or the kernel is missing."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from guestemu.abi.errors import MissingError
from guestemu.conformance.recordings.kernel_choice import choose_kernel
from guestemu.guest.linux.images import find_image
from guestemu.native.build import find_compiler
from guestemu.oracle.campaign import OracleCampaign
from guestemu.oracle.image import find_kernel
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.matrix import matrix
from guestemu.oracle.recorder import run_cases
from guestemu.oracle.reduce import differing
from guestemu.oracle.steps import pack_config, pack_request

SERIES = "6.12"


@pytest.fixture(scope="module")
def kvm():
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no QEMU on this machine")
    if find_compiler() is None:
        pytest.skip("no C compiler")
    try:
        find_image(SERIES)
    except MissingError:
        pytest.skip(f"kernel {SERIES} was not fetched")
    with LiveKvm(find_kernel(SERIES)) as live:
        yield live


def test_the_real_kvm_agrees_with_the_model(kvm):
    """Cases of each group of the matrix, then random steps on VMs that live."""
    model = choose_kernel(kvm.machine.release, SERIES).kernel
    groups = {}
    for case in matrix():
        groups.setdefault(case.group, []).append(case)
    chosen = [group[number] for group in groups.values() for number in (0, -1)]
    results = list(run_cases(kvm, chosen))
    assert [result.error for result in results if result.error] == []
    assert [result.number for result in results if differing(result, model) is not None] == []
    sums = OracleCampaign(kvm, model, seed=1, say=print, batch=512).run(1000)
    assert [finding.summary for finding in sums.findings] == []
    assert sums.exits > 100


@pytest.mark.soak
@pytest.mark.parametrize("series", ["6.1", "6.12", "7.3"])
def test_a_hundred_thousand_random_steps_of_the_day_agree(series, capsys):
    from guestemu.cli.main import main

    try:
        find_image(series)
    except MissingError:
        pytest.skip(f"kernel {series} was not fetched")
    seed = str(int(time.time()) // 86400)
    words = ["oracle", "fuzz", series, "--steps", "100000", "--seed", seed, "--json"]
    status = main(words)
    sums = json.loads(capsys.readouterr().out)
    assert (status, sums["differing"], sums["findings"]) == (0, 0, [])


def test_qemu_has_no_network_and_no_name_for_its_files(kvm):
    with open(f"/proc/{kvm.pid}/cmdline", "rb") as stream:
        words = stream.read().decode().split("\0")
    assert words[words.index("-nic") + 1] == "none"
    assert not [word for word in words if "virtfs" in word or "fsdev" in word or "-drive" in word]
    assert "elevateprivileges=deny" in words[words.index("-sandbox") + 1]
    assert [word for word in words if "mem-path=/dev/fd/" in word]


def test_a_host_of_the_real_kvm_runs_a_program(kvm, capsys, monkeypatch):
    from guestemu.cli.main import main
    from guestemu.oracle import host

    monkeypatch.setitem(host._machines, SERIES, kvm)
    program = "corpora/conversion/round-trip-6.1.prog"
    assert main(["run", "--host", f"kvm:{SERIES},map-gpa-range:{SERIES}", program]) == 0
    assert "0 divergences" in capsys.readouterr().out


def test_a_program_cannot_start_a_virtual_machine(tmp_path, capsys):
    from guestemu.cli.main import main

    program = tmp_path / "own.prog"
    program.write_text(
        "guestemu-program 1\nguest snippet:6.1\nhost kvm:6.12\n---\n"
        "set_memory_decrypted D[3] pages=1\n"
    )
    assert main(["run", str(program), "--plugins", str(tmp_path)]) == 2
    assert "a program names no command; use --host" in capsys.readouterr().err


def test_the_machine_dies_with_a_parent_that_is_killed(kvm, tmp_path):
    """kill -9 of guestemu: the kernel ends QEMU."""
    script = (
        "import os, sys\n"
        "from guestemu.oracle.image import find_kernel\n"
        "from guestemu.oracle import qemu\n"
        "from guestemu.oracle.live import LiveKvm\n"
        "def tell(self, *rest):\n"
        "    print(self.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "qemu.Qemu.wait = tell\n"
        f"LiveKvm(find_kernel({SERIES!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    pid = int(done.stdout)
    assert done.returncode == -9
    wait_for_end(pid)


def wait_for_end(pid):
    """Returns when no process has that id, or one that has ended."""
    import os
    import select

    try:
        file = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(file) as stream:
        assert select.select([stream], [], [], 60)[0]


def test_requests_are_as_wide_as_the_channel_says():
    case = next(iter(matrix()))
    assert len(pack_request(case.acts[0], 0)) == 64
    assert len(pack_config(case.cfg)) == 32
