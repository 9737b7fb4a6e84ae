# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests expect of the newest kernel that Debian offers, kept in newest.json.

The series moves on. `make newest` fetches the newest one and writes what it does; the difference
is to be looked at before it is committed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from guestemu.guest.linux.images import cache_root, fetched_images, kernel_directory
from guestemu.kernel.apt import NEWEST, Archive
from guestemu.kernel.sources import BACKPORTS
from guestemu.study.outcomes.defects import DEFECTS, measure
from guestemu.study.outcomes.verbs import guest_of

FILE: Final = Path(__file__).with_name("newest.json")
QUICK: Final = tuple(
    defect for defect in DEFECTS if defect.name not in {"kexec-stale", "bss-decrypted"}
)
"""Experiments that take less than a second each."""


class Expected(msgspec.Struct, frozen=True):
    """The series, and what each quick experiment sees."""

    series: str
    defects: dict[str, str]


def expected() -> Expected:
    """What is kept."""
    return msgspec.json.decode(FILE.read_bytes(), type=Expected)


def newest_image() -> tuple[str, Path]:
    """Series and package of the newest kernel: the fetched one of the expected series, else the
    newest that the suite of backports offers."""
    series = expected().series
    for image in fetched_images():
        if (image.series, image.flavour) == (series, "cloud"):
            return series, image.path
    return fetch_newest()


def fetch_newest() -> tuple[str, Path]:
    """Series and package of the newest kernel that the suite of backports offers now."""
    archive = Archive(cache_root() / "apt", [BACKPORTS], lambda _line: None)
    [package] = archive.find([NEWEST])
    return package.series, archive.fetch(package, kernel_directory())


def main() -> None:
    """Writes newest.json anew."""
    series, image = fetch_newest()
    seen = {defect.name: measure(guest_of(image), defect).outcome for defect in QUICK}
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(Expected(series, seen))) + b"\n")
    print(f"{FILE}: {series}")


if __name__ == "__main__":
    main()
