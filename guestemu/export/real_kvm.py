# SPDX-License-Identifier: GPL-2.0-or-later
"""An exported test on a real KVM: that of a kernel which runs under QEMU's TCG with nested SVM.

Test and /init are one static program (selftest-init.c); the machine ends when the test has. A case
of kvm-unit-tests is the guest of a small VMM in there, which has what the case uses of that
framework (unit-test-vmm.c).
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.errors import MissingError
from guestemu.export.c_source import SELFTEST
from guestemu.oracle.harness_build import build_static
from guestemu.oracle.image import TestedKernel, initramfs
from guestemu.oracle.qemu import MachineEnded, Qemu

PASS: Final = 0
SKIP: Final = 4
START_S: Final = 600.0
"""For boot and test together; a machine that shows nothing by then hangs."""

_HERE: Final = Path(__file__).parent
_INIT: Final = "selftest-init.c"
_TEST: Final = "test.c"
_UNIT_VMM: Final = "unit-test-vmm.c"
_KERNEL: Final = re.compile(r"\[ *\d+\.\d+\] ")
_END: Final = re.compile(r"^guestemu: selftest (\d+)$", re.MULTILINE)


class SelftestRun(msgspec.Struct, frozen=True):
    """A test's exit status (0 pass, 4 skipped, 128 and more a signal) and its lines."""

    kernel: str
    status: int
    lines: tuple[str, ...]


def _program(form: str, source: str) -> bytes:
    """/init with the test in it."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        if form == SELFTEST:
            place.joinpath(_TEST).write_text(source, encoding="utf-8")
        else:
            place.joinpath("unit.c").write_text(source, encoding="utf-8")
            shutil.copyfile(_HERE / _UNIT_VMM, place / _TEST)
            shutil.copyfile(_HERE / "vmm.c", place / "vmm.c")
        shutil.copyfile(_HERE / _INIT, place / _INIT)
        return build_static(place, (_INIT,))


def run_test(form: str, source: str, kernel: TestedKernel, seconds: float = START_S) -> SelftestRun:
    """Compiles the test `source` of `form` (`FORMS`) and runs it on the KVM of `kernel`.

    Raises `MissingError` without QEMU or a compiler, and where the machine ends before the test.
    """
    program = _program(form, source)
    try:
        Qemu(kernel.kernel, initramfs(program, kernel.modules), start_s=seconds).close()
    except MachineEnded as ended:
        found = _END.search(ended.console)
        if found is None:
            raise MissingError(f"{kernel.name}: {ended.how}; the test did not end") from None
        lines = [line.rstrip() for line in ended.console[: found.start()].splitlines()]
        said = tuple(line for line in lines if line and not _KERNEL.match(line))
        return SelftestRun(kernel.name, int(found[1]), said)
    raise MissingError(f"{kernel.name}: the machine did not run the test")
