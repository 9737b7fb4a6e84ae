# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu fuzz`: a campaign."""

from __future__ import annotations

from typing import Final

from guestemu.cli import _campaign as ask
from guestemu.cli import console
from guestemu.cli._options import (
    AsJson,
    CBit,
    Cluster,
    GuestName,
    HostName,
    Memory,
    Sev,
    Vcpus,
    memory_of,
    sev_kind,
)

GROUP: Final = "Search"
ORDER: Final = 10
RENAMED: Final = {"--seeds": "--inputs"}
NUMBERS: Final = {"--until-finding": "1"}


def command(
    target: ask.TargetName,
    seconds: ask.Seconds = None,
    execs: ask.Executions = None,
    until_finding: ask.UntilFinding = None,
    jobs: ask.Jobs = 1,
    engine: ask.EngineName = None,
    bounds: ask.Bounds = None,
    workdir: ask.WorkDir = None,
    resume: ask.Resume = False,
    seed: ask.Seed = 0,
    inputs: ask.Inputs = None,
    max_ops: ask.MaxOps = None,
    faults: ask.InjectFaults = False,
    accept: ask.Accept = None,
    host: HostName = None,
    guest: GuestName = None,
    sev: Sev = None,
    cbit: CBit = None,
    memory: Memory = None,
    vcpus: Vcpus = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> int:
    """Search for programs that break a rule.

    The campaign ends after --time, after --execs, at the finding that --until-finding names, or at
    Ctrl-C; --resume goes on with it. Each finding is minimised and saved as
    WORKDIR/findings/KEY.prog, which `guestemu run` runs.

    Exit status 0: nothing found but what --accept names; 1: findings, also those that
    do not show again with the same program.

    For example:

      guestemu fuzz hypercall --time 10m

      guestemu fuzz conversion --until-finding --time 1h

      guestemu fuzz conversion --host my_host.py:MyHost --execs 100000 --engine random --seed 1

      guestemu fuzz conversion --guest linux:6.1 --memory 6144 --jobs 2 --time 1h

      guestemu fuzz hypercall --host ./my_vmm.so --vcpus 4 --memory 512,slot@256M,rom@448M+1M

      guestemu fuzz device --guest userland:nvme@7.3 --sev tdx --memory 256 --time 10m

      guestemu fuzz msr --engine exhaustive --bounds 2,3

      guestemu fuzz hypercall --cluster tcp://192.0.2.1:8786 --time 8h
    """
    from guestemu.campaign.campaign import Options, prepare
    from guestemu.campaign.screen import Screen
    from guestemu.campaign.seeds import FLOWS_WORD

    size, layout = memory_of(memory)
    options = Options(
        *(target, seconds, execs, jobs, engine, workdir, resume, seed, host, guest, cbit, size),
        *(faults, bounds, max_ops, ask.accepted_keys(accept), tuple(inputs or (FLOWS_WORD,))),
        until_finding=until_finding,
        vcpus=vcpus,
        layout=layout,
        sev=None if sev is None else sev_kind(sev),
    )
    if cluster is not None:
        from guestemu.cli._cluster import fuzz

        return fuzz(options, cluster, as_json)
    campaign = prepare(options)
    for line in campaign.notes:
        console.note(line)
    title = f"fuzz {target}, {campaign.engine}"
    with Screen(title, console.notes(), console.is_live()) as screen:
        figures = campaign.run(screen.show)
    if as_json:
        console.emit_json(ask.campaign_object(campaign, figures))
    else:
        ask.tell(campaign, figures)
    return ask.end(campaign, figures)
