# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that belong to guestemu and are not code: the fact sheets, the example project, traces.

In a checkout they lie where a reader looks for them (docs/, examples/, tests/data/). A wheel
carries copies below guestemu/data (`force-include` in pyproject.toml, same names as here).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from guestemu.abi.errors import MissingError

_PACKAGE: Final = Path(__file__).parents[1]
CHECKOUT_PLACES: Final = {
    "facts": "docs/facts",
    "host-project": "examples/host-project",
    "demo/forgotten-error.prog": "examples/demo/forgotten-error.prog",
    "demo/my_host.py": "examples/my_host.py",
}
"""Name in guestemu/data and place in a checkout."""


def shipped_path(name: str) -> Path:
    """The file or directory called `name`, a key of `CHECKOUT_PLACES`.

    Raises:
        MissingError: the installation is incomplete.
    """
    for path in (_PACKAGE / "data" / name, _PACKAGE.parent / CHECKOUT_PLACES[name]):
        if path.exists():
            return path
    raise MissingError(f"this installation has no {name} ({path}); reinstall guestemu")
