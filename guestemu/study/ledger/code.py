# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest code of the policies: `snippets/policy.elf`, built from `snippets/policy.S`.

`python -m guestemu.study.ledger.code` builds it again with GNU as; nothing here does so when
guestemu runs, the ELF file is committed.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Final

from guestemu.guest.snippet.elf import SnippetImage, parse_snippet
from guestemu.machine.assemble import PLACED, AssemblySource, build, build_all

GENERATION: Final = "6.1"
"""The kernel generation whose snippet the policies change."""

POLICY_WORD: Final = "error_policy"
"""Symbol of the 8-byte word that selects the policy."""

_SOURCE: Final = AssemblySource(
    "study/ledger/snippets/policy.S",
    (*PLACED, "--script=../../../guest/snippet/snippet.ld"),
)


def load_policy_code() -> SnippetImage:
    """The committed code; all policies are in it."""
    image = (files("guestemu.study.ledger") / "snippets" / "policy.elf").read_bytes()
    return parse_snippet(GENERATION, image)


def build_policy_code(output: Path) -> None:
    """Assembles the code into the ELF file `output`.

    Raises `MissingError` without binutils, `InputError` with the assembler's message.
    """
    build(_SOURCE, output)


def main() -> int:
    """Builds the committed file; returns the exit status."""
    return build_all([(_SOURCE.path, partial(build_policy_code, _SOURCE.output))])


if __name__ == "__main__":
    sys.exit(main())
