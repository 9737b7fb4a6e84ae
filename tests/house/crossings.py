# SPDX-License-Identifier: GPL-2.0-or-later
"""One conversion followed through the Python path.

`python tests/house/crossings.py` prints how many calls it makes, through how many files, and how
many of them enter another room than their caller's; `--calls` lists them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from guestemu.program.ops import Op, OpKind, Region
from guestemu.program.program import Header
from guestemu.runner.testbed import build_testbed

ROOT = Path(__file__).parents[2] / "guestemu"


class Call(NamedTuple):
    """A call of a function of guestemu: its file below guestemu/, its name, its caller's file."""

    path: str
    name: str
    caller: str

    @property
    def enters(self) -> bool:
        """Whether it goes into another room."""
        return self.path.partition("/")[0] != self.caller.partition("/")[0]


def follow() -> list[Call]:
    """The calls of one set_memory_decrypted on a running VM, a page of which was converted before:
    from the testbed's `step` on, which is not counted itself."""
    testbed = build_testbed(Header())
    ops = [Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), Region.D, page) for page in (3, 5)]
    testbed.run(ops)
    testbed.reset()
    testbed.step(0, ops[0], [], [])
    calls: list[Call] = []

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_back is not None:
            path, caller = frame.f_code.co_filename, frame.f_back.f_code.co_filename
            if path.startswith(f"{ROOT}/") and caller.startswith(f"{ROOT}/"):
                calls.append(Call(_below(path), frame.f_code.co_qualname, _below(caller)))

    sys.setprofile(note)
    try:
        testbed.step(1, ops[1], [], [])
    finally:
        sys.setprofile(None)
    testbed.close()
    return calls


def _below(path: str) -> str:
    return path.removeprefix(f"{ROOT}/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", action="store_true", help="list the calls")
    options = parser.parse_args()
    calls = follow()
    if options.calls:
        for call in calls:
            print(f"{'>' if call.enters else ' '} {call.path}: {call.name}")
    files = len({call.path for call in calls})
    entered = sum(call.enters for call in calls)
    print(f"{len(calls)} calls, {files} files, {entered} into another room")


if __name__ == "__main__":
    main()
