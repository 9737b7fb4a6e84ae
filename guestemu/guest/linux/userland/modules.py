# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel modules out of the Debian package that the user has fetched, unpacked.

Up to 6.18 the modules are in the package of the image, later in linux-modules-* beside it.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import zstandard

from guestemu.abi.errors import InputError
from guestemu.guest.linux.cache import (
    CacheKey,
    cache_directory,
    file_digest,
    mark_used,
    prune,
    read_sealed,
    write_sealed,
)
from guestemu.guest.linux.image import package_files

VIRTIO_PCI: Final = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev"),
    "virtio_pci",
)
"""The transport in the order of loading; built into cloud kernels from 6.12 on (fact U14)."""

_SUFFIXES: Final[dict[str, Callable[[bytes], bytes]]] = {
    ".ko": bytes,
    ".ko.xz": lzma.decompress,
    ".ko.zst": zstandard.ZstdDecompressor().decompress,
}


def package_of(image: Path) -> Path:
    """The package with the modules of the kernel package `image`."""
    release = image.name.partition("_")[0].removeprefix("linux-binary-")
    beside = sorted(image.parent.glob(f"linux-modules-{release}_*.deb"))
    return beside[-1] if beside else image


def read_modules(package: Path, names: Sequence[str], needed: Iterable[str]) -> dict[str, bytes]:
    """The modules `names` that `package` has, by name, in this order; those it lacks are taken for
    built in, except the `needed` ones.

    Raises `InputError` for a damaged package, and where a needed module is missing.
    """
    if not names:
        return {}
    found = _cached(package, names)
    missing = [name for name in needed if name not in found]
    if missing:
        raise InputError(
            f"{package.name}: no module {', '.join(missing)}; give the package that has the "
            "modules with --modules (linux-modules-* from 6.19 on)"
        )
    return found


def _cached(package: Path, names: Sequence[str]) -> dict[str, bytes]:
    directory = cache_directory()
    if directory is None:
        return _extract(package, names)
    file = directory / f"{CacheKey(('modules', file_digest(package), *names)).name}.modules"
    packed = read_sealed(file)
    if packed is not None:
        mark_used(file)
        return msgspec.msgpack.decode(packed, type=dict[str, bytes])
    found = _extract(package, names)
    try:
        write_sealed(file, msgspec.msgpack.encode(found))
        prune(directory)
    except OSError:
        pass  # the next run unpacks again
    return found


def _extract(package: Path, names: Sequence[str]) -> dict[str, bytes]:
    wanted = {f"{name}{suffix}": name for name in names for suffix in _SUFFIXES}
    packed = package_files(package, tuple(wanted))
    found: dict[str, bytes] = {}
    for base, data in packed.items():
        name = wanted[base]
        try:
            found[name] = _SUFFIXES[base.removeprefix(name)](data)
        except (lzma.LZMAError, zstandard.ZstdError) as error:
            raise InputError(f"{package}: {base} does not unpack ({error})") from None
    return {name: found[name] for name in names if name in found}
