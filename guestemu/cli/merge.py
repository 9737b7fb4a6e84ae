# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu merge`: a smaller corpus that covers the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from guestemu.abi.names import plural
from guestemu.cli import console
from guestemu.cli._options import AsJson, Plugins

GROUP: Final = "Search"
ORDER: Final = 50


def command(
    workdir: Annotated[
        Path, typer.Argument(metavar="WORKDIR", help="A campaign.", show_default=False)
    ],
    more: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MORE", help="Campaigns or directories whose inputs join."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write there, leave WORKDIR alone."),
    ] = None,
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Reduce a corpus to the inputs that its coverage needs.

    Every input of WORKDIR and MORE runs once on WORKDIR's target, guest and host. WORKDIR keeps the
    inputs that are needed, unless -o names another directory for them. Nothing is changed before
    the last input has run.

    For example:

      guestemu merge guestemu-work/hypercall

      guestemu merge day1 day2 day3 -o small
    """
    from guestemu.campaign.conversion import bring_up_to_date
    from guestemu.campaign.feedback import Feedback
    from guestemu.campaign.merge import (
        collect,
        make_executor,
        minimise_corpus,
        replace_corpus,
        write_corpus,
    )
    from guestemu.campaign.store import Store
    from guestemu.campaign.targets import find_target
    from guestemu.cli._step_progress import StepProgress
    from guestemu.host.permission import permissions

    store = Store.open(workdir)
    try:
        feedback = Feedback()
        record = store.read_record()
        kinds = find_target(record.target).kinds_with(record.faults, record.layout)
        bring_up_to_date(store, kinds)
        plugin = permissions(plugins).find(record.host, workdir / "campaign.json")
        executor = make_executor(record, feedback, plugin)
        inputs = collect([workdir, *(more or ())], store.deadly_inputs(), kinds)
        with StepProgress(len(inputs)) as progress:
            merged = minimise_corpus(executor, feedback, inputs, progress.advance)
        if output is None:
            replace_corpus(store, merged.inputs)
        else:
            write_corpus(output, merged.inputs)
    finally:
        store.unlock()
    place = store.corpus if output is None else output
    if as_json:
        console.emit_json(
            {
                "kept": len(merged.inputs),
                "dropped": merged.dropped,
                "corpus": str(place),
                "coverage": {
                    "guest_blocks": merged.guest_blocks,
                    "model_states": merged.model_states,
                    "near_misses": merged.near_misses,
                },
            }
        )
        return
    console.emit(
        f"{place}: {plural(len(merged.inputs), 'input')} kept, {merged.dropped} dropped; "
        f"covered: {merged.guest_blocks} guest blocks, {merged.model_states} model states, "
        f"{merged.near_misses} near misses"
    )
