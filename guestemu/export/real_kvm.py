# SPDX-License-Identifier: GPL-2.0-or-later
"""An exported selftest on a real KVM: that of a kernel which runs under QEMU's TCG with nested SVM.

Test and /init are one static program (selftest-init.c); the machine ends when the test has.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import MissingError
from guestemu.oracle.harness_build import build_static
from guestemu.oracle.image import TestedKernel, initramfs
from guestemu.oracle.qemu import MachineEnded, Qemu

PASS: Final = 0
SKIP: Final = 4
START_S: Final = 600.0
"""For boot and test together; a machine that shows nothing by then hangs."""

_INIT: Final = Path(__file__).with_name("selftest-init.c")
_KERNEL: Final = re.compile(r"\[ *\d+\.\d+\] ")
_END: Final = re.compile(r"^guestemu: selftest (\d+)$", re.MULTILINE)


class SelftestRun(msgspec.Struct, frozen=True):
    """A selftest's exit status (0 pass, 4 skipped, 128 and more a signal) and its lines."""

    kernel: str
    status: int
    lines: tuple[str, ...]


def run_selftest(source: str, kernel: TestedKernel, seconds: float = START_S) -> SelftestRun:
    """Compiles the selftest `source` and runs it on the KVM of `kernel`.

    Raises `MissingError` without QEMU or a compiler, and where the machine ends before the test.
    """
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "test.c").write_text(source, encoding="utf-8")
        Path(scratch, _INIT.name).write_bytes(_INIT.read_bytes())
        program = build_static(Path(scratch), (_INIT.name,))
    try:
        Qemu(kernel.kernel, initramfs(program, kernel.modules), start_s=seconds).close()
    except MachineEnded as ended:
        found = _END.search(ended.console)
        if found is None:
            raise MissingError(f"{kernel.name}: {ended.how}; the selftest did not end") from None
        lines = [line.rstrip() for line in ended.console[: found.start()].splitlines()]
        said = tuple(line for line in lines if line and not _KERNEL.match(line))
        return SelftestRun(kernel.name, int(found[1]), said)
    raise MissingError(f"{kernel.name}: the machine did not run the selftest")
