# SPDX-License-Identifier: GPL-2.0-or-later
"""A table of what campaigns find on each host of `defects.py`, and on each pair.

`python tests/quality/defects/table.py [NAME...]` from the top of the tree prints rows in Markdown:
the target and the default engine of docs, 20,000 executions, seeds 1 to 3 (EXECS, SEEDS and JOBS in
the environment change that). Campaigns run in forked processes, which saves their start.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parent))

import defects

from guestemu.campaign.campaign import Options, header_of, target_of
from guestemu.campaign.engines import choose_engine
from guestemu.campaign.seeds import seed_inputs
from guestemu.campaign.session import Plan, Session
from guestemu.campaign.store import CampaignRecord, Store
from guestemu.host.plugin_guard import PluginHost
from guestemu.parts import load_parts
from guestemu.program.table import op_table

EXECS = int(os.environ.get("EXECS", "20000"))
SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "1,2,3").split(",")]
JOBS = int(os.environ.get("JOBS", "2"))

_Campaign = tuple[tuple[str, ...], int, Path]


def campaign(names: tuple[str, ...], seed: int, directory: Path) -> NoReturn:
    """Runs one campaign in `directory` and writes what it found to result.json there."""
    os.chdir(directory)
    start = time.process_time()
    host = defects.write(directory, *names)
    options = Options(defects.find(names[-1]).target, host=host)
    target = target_of(options)
    header = header_of(target, options)
    kinds = target.kinds_with(False)
    record = CampaignRecord.of(target.name, header, False, op_table(kinds))
    store = Store.create(directory / "work", record, False)
    for data in seed_inputs(options.seeds, target, header, kinds):
        store.save_input(data)
    session = Session(Plan(target, header, seed=seed, execs=EXECS), store)
    plugin = session.executor.testbed.host
    if isinstance(plugin, PluginHost):
        plugin.guard.start(header.memory << 8)
    good = defects.changed_lines(*names)

    def leave(error: BaseException | None) -> NoReturn:
        report = session.finish()
        found = []
        for finding in report.findings:
            text = store.finding_path(finding.key).read_text()
            lines = {
                int(line.split(":")[1])
                for line in text.splitlines()
                if line.startswith("#   ") and ".py:" in line
            }
            found.append([finding.key, finding.first_seen_s, sorted(lines - good)])
        result = [report.executions, found, time.process_time() - start, repr(error or "")]
        (directory / "result.json").write_text(json.dumps(result))
        os._exit(0)

    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    choose_engine(None)[0].run(session, leave)
    leave(None)


def run(todo: Iterable[tuple[tuple[str, ...], int]]) -> Iterator[_Campaign]:
    """Runs campaigns, `JOBS` at once; gives names, seed and directory of each, in their order."""
    running: dict[int, _Campaign] = {}
    for names, seed in todo:
        directory = Path(tempfile.mkdtemp(prefix="guestemu-defect-"))
        child = os.fork()
        if not child:
            try:
                campaign(names, seed, directory)
            finally:
                os._exit(1)
        running[child] = (names, seed, directory)
        if len(running) >= JOBS:
            yield _ended(running)
    while running:
        yield _ended(running)


def _ended(running: dict[int, _Campaign]) -> _Campaign:
    """The one that was started first, when it has ended."""
    first = next(iter(running))
    os.waitpid(first, 0)
    return running.pop(first)


def main(chosen: list[str]) -> None:
    """Prints the rows as campaigns end."""
    load_parts()
    names = [(name,) for name in (*defects.DEFECTS, *defects.CONTROL)] + list(defects.PAIRS)
    wanted = [one for one in names if not chosen or "+".join(one) in chosen]
    print("| host | seed | executions | findings | first after, s | CPU s | innocent lines |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for what, seed, directory in run((one, seed) for one in wanted for seed in SEEDS):
        place = directory / "result.json"
        if not place.exists():
            print(f"| `{'+'.join(what)}` | {seed} | the process ended: {directory} |", flush=True)
            continue
        executions, found, seconds, error = json.loads(place.read_text())
        first = min((one[1] for one in found), default=0.0)
        innocent = sum(bool(one[2]) for one in found)
        print(
            f"| `{'+'.join(what)}` | {seed} | {executions:,} | {len(found)} | {first:.1f} "
            f"| {seconds:.0f} | {innocent or ''} |{error.strip(chr(39))}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
