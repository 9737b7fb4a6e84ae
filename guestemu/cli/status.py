# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu status`: campaigns at a glance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from guestemu.cli import console
from guestemu.cli._options import AsJson

if TYPE_CHECKING:
    from guestemu.campaign.readings import Reading

GROUP: Final = "Search"
ORDER: Final = 20


def command(
    workdirs: Annotated[
        list[Path],
        typer.Argument(metavar="WORKDIR...", help="Campaigns, running or not.", show_default=False),
    ],
    as_json: AsJson = False,
) -> None:
    """Show the progress of campaigns.

    The figures come from the work directories; those of a running campaign are up to 2 s old. The
    exit status is 0 whatever the campaigns found.

    For example:

      guestemu status guestemu-work/hypercall

      guestemu status guestemu-work/* --json
    """
    from guestemu.campaign.document import status_document
    from guestemu.campaign.readings import read_campaign

    readings = [read_campaign(workdir) for workdir in workdirs]
    if as_json:
        console.emit_json(_object(readings))
    else:
        console.emit_document(status_document(readings))


def _object(readings: list[Reading]) -> dict[str, object]:
    """Sums over all campaigns under the keys of `fuzz --json`; coverage is the highest of each."""
    campaigns = [campaign_object(reading) for reading in readings]
    latest = [reading.latest for reading in readings if reading.latest is not None]
    return {
        "executions": sum(reading.executions for reading in readings),
        "execs_per_second": sum(r.execs_per_second for r in readings if r.is_running),
        "findings": [found for reading in readings for found in findings_object(reading)],
        "corpus_size": sum(reading.corpus_size for reading in readings),
        "coverage": {
            name: max((getattr(line, name) for line in latest), default=0)
            for name in ("guest_blocks", "model_states", "near_misses")
        },
        "running": sum(reading.is_running for reading in readings),
        "campaigns": campaigns,
    }


def findings_object(reading: Reading) -> list[dict[str, object]]:
    """The findings of one campaign."""
    return [
        {
            "key": found.key,
            "check": found.check,
            "program": str(Path(reading.root) / "findings" / f"{found.key}.prog"),
            "first_seen_s": found.first_seen_s,
            "count": found.count,
        }
        for found in reading.findings
    ]


def campaign_object(reading: Reading) -> dict[str, object]:
    """One campaign with the keys that `fuzz --json` has."""
    latest = reading.latest
    return {
        "workdir": reading.root,
        "target": reading.record.target,
        "guest": reading.record.guest,
        "host": reading.record.host,
        "running": reading.is_running,
        "seconds": reading.seconds,
        "executions": reading.executions,
        "execs_per_second": reading.execs_per_second,
        "last_new_s": reading.last_new_s,
        "corpus_size": reading.corpus_size,
        "coverage": {
            "guest_blocks": latest.guest_blocks if latest else 0,
            "model_states": latest.model_states if latest else 0,
            "near_misses": latest.near_misses if latest else 0,
        },
        "findings": findings_object(reading),
    }
