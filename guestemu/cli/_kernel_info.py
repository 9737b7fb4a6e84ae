# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel info` says."""

from __future__ import annotations

import shlex

import msgspec

from guestemu.cli import console


class Described(msgspec.Struct, frozen=True):
    """A kernel. `symbols` holds the address of each function that matters, None where the kernel
    has none of that name."""

    path: str
    version: str
    upstream: str
    digest: str
    config: dict[str, str | None]
    symbols: dict[str, int | None]


def describe(image: str) -> Described:
    """Describes the kernel that `image` names."""
    from guestemu.guest.linux.image import load_image
    from guestemu.guest.linux.images import find_image
    from guestemu.guest.linux.kernel import load_kernel
    from guestemu.kernel.config import RELEVANT, kernel_config
    from guestemu.kernel.describe import SYMBOLS, upstream_version

    path = find_image(image)
    kernel = load_kernel(path)
    elf = load_image(path).elf
    config = kernel_config(path, elf)
    upstream = upstream_version(kernel, elf)
    return Described(
        path=str(path),
        version=kernel.version,
        upstream=upstream,
        digest=kernel.digest,
        config={name: config.get(name) for name in RELEVANT} if config else {},
        symbols={name: kernel.symbols.get(name) for name in SYMBOLS},
    )


def tell(found: Described) -> None:
    """For people."""
    console.emit(f"{found.version}, upstream {found.upstream}")
    console.emit(f"{found.path}")
    console.emit(f"sha256 of the ELF file {found.digest}")
    console.emit()
    for name, value in found.config.items():
        console.emit(f"{name}={value}" if value is not None else f"# {name} is not set")
    if not found.config:
        console.emit("no configuration in the image; give the .deb")
    console.emit()
    for name, address in found.symbols.items():
        where = "-" if address is None else f"{address:#x}"
        console.emit(f"{where:<18}  {name}")
    console.emit()
    command = shlex.join(["guestemu", "kernel", "defects", found.path])
    console.emit(f"how it behaves is measured by running it: {command}")
