# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of a long campaign: `python -m guestemu.bench.growth TARGET EXECUTIONS`.

Prints the resident set of the fuzzing process in MiB, after a tenth of the executions and at the
end. libFuzzer keeps its corpus in memory, which grows fast at first; after that it should be flat.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, NoReturn

from guestemu.campaign.engines.atheris import AtherisEngine
from guestemu.campaign.session import Plan, Report, Session
from guestemu.campaign.targets import find_target

_MEBIBYTE: Final = 1 << 20
_EARLY: Final = 10
_REPORT_SECONDS: Final = 0.0


def resident() -> float:
    """MiB of this process in RAM (/proc/self/statm)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MEBIBYTE


def main() -> None:
    """See the module's docstring; does not return."""
    name, count = sys.argv[1:]
    executions = int(count)
    target = find_target(name)
    early: list[float] = []

    def watch(report: Report) -> None:
        if not early and report.executions >= executions // _EARLY:
            early.append(resident())

    def leave(error: BaseException | None) -> NoReturn:
        print(*early[:1], resident(), flush=True)
        os._exit(0 if error is None else 3)

    plan = Plan(target, target.header, execs=executions, report_every=_REPORT_SECONDS)
    AtherisEngine().run(Session(plan, report=watch), leave)


if __name__ == "__main__":
    main()
