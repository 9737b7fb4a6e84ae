# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu explore kernel-migration`: a booted kernel migrated inside a page conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.abi.errors import InputError
from guestemu.abi.names import command_line
from guestemu.cli import console
from guestemu.cli._options import AsJson, Html, sev_kind
from guestemu.cli.errors import EXIT_FINDINGS, EXIT_OK

if TYPE_CHECKING:
    from guestemu.migration.sweep.run import SweepRequest

_LINUX: Final = "linux:"
DEFAULT_EVERY: Final = 100


def kernel_migration(
    guest: Annotated[
        str,
        typer.Option(
            "--guest",
            metavar="linux:IMAGE",
            help="A .deb, vmlinuz, bzImage or vmlinux, or a fetched series as linux:6.1; "
            "default: the newest fetched.",
            show_default=False,
        ),
    ] = _LINUX,
    every: Annotated[
        int, typer.Option("--every", metavar="N", min=1, help="Migrate at every N-th instruction.")
    ] = DEFAULT_EVERY,
    path: Annotated[
        str,
        typer.Option(
            "--path",
            metavar="plain|firmware|handler",
            help="How pages cross: re-encrypted by the hosts, as SEND/RECEIVE packets, or by "
            "migration handlers in mirror VMs.",
        ),
    ] = "plain",
    leaf: Annotated[
        str,
        typer.Option(
            "--leaf",
            metavar="4k|2m|both",
            help="The page's mapping before the conversion; a 2m one has to be split.",
        ),
    ] = "both",
    order: Annotated[
        str,
        typer.Option(
            "--order",
            metavar="dirty-first|status-first",
            help="What the host reads first: dirty log (D E S) or status (E D S); the second loses "
            "stores.",
        ),
    ] = "dirty-first",
    sev: Annotated[
        str,
        typer.Option("--sev", metavar="sev|es|snp|tdx", help="Kind of guest; snp shows a refusal."),
    ] = "sev",
    repaired: Annotated[
        bool,
        typer.Option(
            "--repaired",
            help="With tdx: KVM answers retry where it is left between two chunks of a MapGPA.",
        ),
    ] = False,
    tuples: Annotated[
        bool,
        typer.Option(
            "--tuples", help="Also try the orders of a host's steps at all visible instants."
        ),
    ] = False,
    there_and_back: Annotated[
        bool,
        typer.Option(
            "--there-and-back", help="Convert the page back inside the window, and fill it again."
        ),
    ] = False,
    html: Html = None,
    as_json: AsJson = False,
) -> int:
    """Migrate a booted kernel at instructions of a page conversion, and let it run on.

    The guest fills a page, calls set_memory_decrypted() and fills it again. It is stopped at every
    N-th instruction of that, moved to a fresh machine under another key, and runs on through
    further conversions and a DMA allocation. Its registers, hypercalls, page status and memory are
    compared with those of a guest that stayed. lost_defined counts stops after which the guest
    reads other bytes than it stored since the last C-bit change; lost_strict also those where any
    other byte of the page is different.

    With --tuples the stops are the instants that a host can tell apart, each with every last
    packet of the page; orders of the steps of `explore` are judged by them.

    A TD also converts 4 MiB at once, which KVM asks user space for in two chunks, and is stopped
    between them. KVM 7.3 then never completes the call: the guest reads success, and half of its
    range is not converted. With --repaired it answers retry.

    Exit status 1: a migrated guest was different, or lost_defined is not 0 (with --tuples: a
    correct order lost something). lost_strict alone is not a finding: nothing in those bytes is
    defined.

    For example:

      guestemu explore kernel-migration --guest linux:6.1 --every 500

      guestemu explore kernel-migration --path firmware --every 10 --json

      guestemu explore kernel-migration --path handler --every 200

      guestemu explore kernel-migration --leaf 4k --tuples --there-and-back

      guestemu explore kernel-migration --order status-first --html lost.html

      guestemu explore kernel-migration --sev tdx --every 500 --repaired
    """
    from guestemu.cli._interrupts import Interrupts
    from guestemu.cli._migration_progress import ProgressWatcher
    from guestemu.migration.sweep.run import run
    from guestemu.report.sweep import sweep_document

    request = _request(
        guest=guest,
        every=every,
        path=path,
        leaf=leaf,
        order=order,
        sev=sev,
        tuples=tuples,
        there_and_back=there_and_back,
        repaired=repaired,
    )
    with Interrupts() as interrupts:
        watcher = ProgressWatcher(interrupts)
        try:
            report = run(request, watcher)
        finally:
            watcher.close()
    document = sweep_document(report, _command(request, guest))
    if html is not None:
        console.write_document(html, document)
    if as_json:
        console.emit_json(report)
    else:
        console.emit_document(document)
    if report.interrupted:
        raise KeyboardInterrupt
    return EXIT_FINDINGS if report.is_wrong else EXIT_OK


def _request(
    *,
    guest: str,
    every: int,
    path: str,
    leaf: str,
    order: str,
    sev: str,
    tuples: bool,
    there_and_back: bool,
    repaired: bool,
) -> SweepRequest:
    from guestemu.guest.linux.images import find_image
    from guestemu.migration.sweep.instants import FetchOrder
    from guestemu.migration.sweep.run import LEAVES, PATHS, SweepRequest

    orders = {one.value: one for one in FetchOrder}
    order = {"D E S": "dirty-first", "E D S": "status-first"}.get(
        " ".join(order.upper().replace(" ", "")), order
    )
    for option, value, known in (
        ("--path", path, PATHS),
        ("--leaf", leaf, LEAVES),
        ("--order", order, orders),
    ):
        if value not in known:
            raise InputError(f"{option} {value}: take one of {', '.join(known)}")
    sev_kind(sev)
    if sev == "tdx" and (path != "plain" or tuples):
        option = "--tuples" if tuples else f"--path {path}"
        raise InputError(f"{option}: not for TDs, whose pages the TDX module exports; leave it out")
    if repaired and sev != "tdx":
        raise InputError("--repaired is about KVM's part of MapGPA; give --sev tdx")
    if not guest.startswith(_LINUX):
        raise InputError(f"--guest {guest}: only real kernels here; give linux:IMAGE")
    image = find_image(guest.removeprefix(_LINUX))
    return SweepRequest(
        image=image,
        every=every,
        path=path,
        leaf=leaf,
        order=orders[order],
        sev=sev,
        tuples=tuples,
        there_and_back=there_and_back,
        repaired=repaired,
    )


def _command(request: SweepRequest, guest: str) -> str:
    """The command of this sweep."""
    options = {
        "--guest": guest,
        "--every": request.every,
        "--path": request.path,
        "--leaf": request.leaf,
        "--order": request.order.value,
        "--sev": request.sev,
    }
    words = [word for option in options.items() for word in option]
    if request.repaired:
        words.append("--repaired")
    if request.tuples:
        words.append("--tuples")
    if request.there_and_back:
        words.append("--there-and-back")
    return command_line("explore", "kernel-migration", *words)
