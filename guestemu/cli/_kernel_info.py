# SPDX-License-Identifier: GPL-2.0-or-later
"""What `guestemu kernel info` says."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from guestemu.report.document import Document


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


def document(found: Described) -> Document:
    """For people."""
    from guestemu.report.document import Chapter, Code, Document, Grid, Paragraph

    lines = "\n".join(
        f"{name}={value}" if value is not None else f"# {name} is not set"
        for name, value in found.config.items()
    )
    symbols = tuple(
        ("-" if address is None else f"{address:#x}", name)
        for name, address in found.symbols.items()
    )
    command = shlex.join(["guestemu", "kernel", "defects", found.path])
    return Document(
        f"{found.version}, upstream {found.upstream}",
        (
            Chapter("", (Code(lines or "no configuration in the image; give the .deb"),)),
            Chapter("", (Grid((), symbols),)),
            Chapter("", (Paragraph(f"how it behaves is measured by running it: {command}"),)),
        ),
        (Paragraph(found.path), Paragraph(f"sha256 of the ELF file {found.digest}")),
    )
