# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the kernel's ELF file is found: in packages of every layout."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from guestemu.abi.errors import InputError
from guestemu.guest.linux.image import load_image
from tests.guest.kernel_files import ELF, bzimage, package


@pytest.mark.parametrize(
    "name",
    [
        "boot/vmlinuz-6.1.0-57-cloud-amd64",
        "boot/vmlinuz-6.19.14+deb13-rt-amd64",
        "usr/lib/modules/7.3.4+deb13-cloud-amd64/vmlinuz",
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_the_kernel_of_a_package(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / "linux.deb"
    files = {"usr/share/doc/README": b"text", name: bzimage(gzip.compress(ELF))}
    path.write_bytes(package(files, suffix))

    assert load_image(path).elf == ELF


def test_a_package_of_dependencies_names_the_one_that_has_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "linux.deb"
    path.write_bytes(package({"usr/share/doc/README": b"text"}))

    with pytest.raises(InputError, match=r"linux\.deb: the package holds no kernel.*linux-binary"):
        load_image(path)
