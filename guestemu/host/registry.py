# SPDX-License-Identifier: GPL-2.0-or-later
"""Every host by the name that `--host` and program headers use.

A spec is NAME, NAME:KERNEL (hosts of the merged generation), FILE.py:CLASS (a user's own host) or
kvm:KERNEL (the KVM of a real kernel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pkgutil import resolve_name
from typing import Final

import msgspec

from guestemu.abi.errors import InputError
from guestemu.abi.names import nearest
from guestemu.host.base import Host
from guestemu.host.firmware.host import SevFirmwareHost
from guestemu.host.kvm.bitmap_v1 import BitmapV1Host
from guestemu.host.kvm.bitmap_v2 import BitmapV2Host
from guestemu.host.kvm.bitmap_v3 import BitmapV3Host
from guestemu.host.kvm.bitmap_v6 import BitmapV6Host
from guestemu.host.kvm.bitmap_v8 import BitmapV8Host
from guestemu.host.kvm.historic import HistoricHost
from guestemu.host.kvm.host import MergedHost
from guestemu.host.kvm.hostile_hypervisor import HostileHypervisorHost
from guestemu.host.kvm.kernels import KERNELS
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.kvm.shared_list_v10 import SharedListV10Host
from guestemu.host.kvm.snp_kvm import SnpKvmHost
from guestemu.host.kvm.stop_at_fault import StopAtFaultHost
from guestemu.host.kvm.tdx_cut import TdxCutHost
from guestemu.host.mirror.host import MirrorHost, MirrorPrototypeHost
from guestemu.host.native.host import is_native, load_native
from guestemu.host.permission import is_code
from guestemu.host.plugin import load_plugin
from guestemu.host.qemu.host import (
    QemuMigration2019Host,
    QemuMigration2020Host,
    QemuMigration2021Host,
    QemuMigrationHost,
)
from guestemu.host.userspace.cloud_hypervisor import CloudHypervisorHost
from guestemu.host.userspace.dragonball import DragonballHost
from guestemu.host.userspace.in_place import InPlaceHost
from guestemu.host.userspace.libkrun import LibkrunHost
from guestemu.host.userspace.openvmm import OpenVmmHost
from guestemu.host.userspace.qemu_10_2 import Qemu102Host
from guestemu.host.userspace.qemu_11 import Qemu11Host
from guestemu.host.userspace.qemu_v4 import QemuV4Host

_LIVE: Final = "kvm:"
_LOADER: Final = "guestemu.oracle.host:load_live"
"""A room above this one: it needs the hosts of this package."""

_CLASSES: Final[list[type[MergedHost] | type[HistoricHost]]] = [
    MapGpaRangeHost,
    TdxCutHost,
    StopAtFaultHost,
    QemuV4Host,
    Qemu102Host,
    Qemu11Host,
    CloudHypervisorHost,
    OpenVmmHost,
    LibkrunHost,
    DragonballHost,
    InPlaceHost,
    SevFirmwareHost,
    MirrorHost,
    MirrorPrototypeHost,
    SnpKvmHost,
    HostileHypervisorHost,
    QemuMigrationHost,
    QemuMigration2021Host,
    QemuMigration2020Host,
    QemuMigration2019Host,
    SharedListV10Host,
    BitmapV8Host,
    BitmapV6Host,
    BitmapV3Host,
    BitmapV2Host,
    BitmapV1Host,
]


def register_host(host: type[MergedHost] | type[HistoricHost]) -> None:
    """Adds a host that another package defines.

    Raises `InputError` for a name that is taken.
    """
    if any(host.name == other.name for other in _CLASSES):
        raise InputError(f"host {host.name!r}: the name is taken; choose another")
    _CLASSES.append(host)


class HostEntry(msgspec.Struct, frozen=True, gc=False):
    """One line of `guestemu hosts`: `kernels` are the values of KERNEL in NAME:KERNEL, the default
    first, empty for a host without a choice; `switches` the defects it can have repaired."""

    name: str
    summary: str
    switches: tuple[str, ...]
    kernels: tuple[str, ...]


def _kernels(host: type[Host]) -> tuple[str, ...]:
    if not issubclass(host, MergedHost):
        return ()
    if host.choices:
        return host.choices
    return (host.default_kernel, *(name for name in KERNELS if name != host.default_kernel))


def hosts() -> tuple[HostEntry, ...]:
    """All built-in hosts, the default one first."""
    return tuple(
        HostEntry(host.name, host.summary, host.switches, _kernels(host)) for host in _CLASSES
    )


def _by_name() -> Mapping[str, type[MergedHost] | type[HistoricHost]]:
    return {host.name: host for host in _CLASSES}


def contract_of(spec: str) -> str:
    """The `Host.contract` of the host that `spec` names; a user's own has the merged one."""
    host = _by_name().get(spec.partition(":")[0])
    return Host.contract if host is None else host.contract


def load_host(spec: str, switches: Iterable[str] = (), plugin: str = "") -> Host:
    """A new host for `spec`, with the named defects repaired; not yet `reset`.

    `plugin` is the path of the code that `spec` names, as `host.permission` gave it. Raises
    `InputError` for an unknown name, kernel or switch and for code without a path, `PluginError`
    for a plug-in that cannot be loaded.
    """
    chosen = tuple(switches)
    if is_native(spec):
        return load_native(spec, plugin, chosen)
    if spec.startswith(_LIVE):
        load_live: Callable[[str, str, tuple[str, ...]], Host] = resolve_name(_LOADER)
        return load_live(spec, plugin, chosen)
    if is_code(spec):
        return load_plugin(spec, plugin, chosen)
    name, _, kernel = spec.partition(":")
    host = _by_name().get(name)
    if host is None:
        remedy = nearest(name, _by_name())
        raise InputError(f"host {name!r}: no such host, and not FILE.py:CLASS; {remedy}")
    if issubclass(host, MergedHost):
        if ":" in spec and not kernel:
            choices = ", ".join(host.choices or KERNELS)
            raise InputError(f"host {spec!r}: nothing after ':'; use one of {choices}")
        return host(kernel or None, chosen)
    if ":" in spec:
        raise InputError(f"host {spec!r}: {name} has no choice of kernels; write {name}")
    return host(chosen)
