# SPDX-License-Identifier: GPL-2.0-or-later
"""What the verbs print with --json on fixed inputs, and what the corpora's programs do.

`python tests/goldens/golden_outputs.py` (from the top of the tree, with the package installed)
writes the golden files again; names as arguments renew only those, `--soak` also the long ones.
Review the change with `git diff tests/goldens`.

Compared is structure: numbers, names and the texts of operations. Sentences for people, times,
rates, versions, addresses of this machine's files and the `schema` field are not.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from guestemu.cli.main import main

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent

_CONVERSION: Final = "corpora/conversion"
_ORACLE: Final = "tests/data/kvm-oracle"
_TRACE: Final = "tests/data/dma-traces/linux-6.12-q35-boot.trace"
_SPLIT: Final = f"{_CONVERSION}/split-failure-6.1.prog"
_NVME: Final = "nvme:queues=4,scenario=unbind"

COMMANDS: Final[Mapping[str, str]] = {
    "run": f"run {_SPLIT}",
    "run-exits": "run corpora/msr/kexec-reset.prog",
    "run-migration": "run corpora/migration/status-before-dirty-s1.prog",
    "run-answers": "run corpora/hypercall/stale-answer-qemu-v4.prog",
    "run-page-enc": f"run {_CONVERSION}/round-trip-2020.prog",
    "run-mirror": "run corpora/mirror/proposals/1-ram-addr-t-handler.prog",
    "run-lockstep": "run --host map-gpa-range,qemu-v4,bitmap-v8 corpora/hypercall/eperm-32bit.prog",
    "race": "race corpora/migration/status-before-dirty-s1.prog",
    "show": f"show --instructions 4 {_SPLIT}",
    "show-msr": "show --depth 2 corpora/msr/migration-control.prog",
    "replay": "replay --jobs 1 corpora/msr corpora/hypercall",
    "minimize": "minimize tests/goldens/violation.prog",
    "explore": "explore --table",
    "explore-reduce": "explore --order 2 --script S1 --reduce",
    "explore-list": "explore --order 2 --script S1 --list",
    "explore-witness": "explore --order 2 --script S1 --witness 0",
    "explore-pct": "explore --order 3 --script S2 --pct 1000 --depth 3",
    "explore-confirm": "explore --order 2 --script S1 --confirm 2",
    "explore-mirror": "explore mirror",
    "explore-threats": "explore mirror --threats",
    "ledger": "ledger --flow decrypt-3 --policy warn",
    "conform-6.1": f"conform {_ORACLE}/linux-6.1.jsonl",
    "conform-6.12": f"conform {_ORACLE}/linux-6.12.jsonl",
    "conform-other": f"conform {_ORACLE}/linux-6.12.jsonl --kernel 6.1",
    "dma": f"dma {_NVME} --migrate at=0.5",
    "dma-policies": f"dma {_NVME} --policy all",
    "dma-trace": f"dma {_TRACE}",
    "dma-model": f"dma {_TRACE} --guest model:6.1",
    "zoo-list": "zoo list",
    "hosts": "hosts",
    "hosts-check": "hosts --check examples/my_host.py:MyHost",
    "guests": "guests",
    "targets": "targets",
    "doctor": "doctor",
}
"""Command lines without --json, by the name of the golden file."""

CAMPAIGN: Final[Mapping[str, str]] = {
    "fuzz": "fuzz hypercall --engine random --execs 300 --seed 4 --host bitmap-v3 --workdir WORK",
    "status": "status WORK",
    "triage": "triage WORK --no-write",
    "merge": "merge WORK -o WORK/small",
    "report": "report WORK -o WORK/report.html",
}
"""Run in this order: the others look at what the first one left in WORK."""

LONG: Final[Mapping[str, str]] = {
    "claims": "claims",
    "bench": "bench --only execution --rounds 1",
    "zoo-run": "zoo run M1 M2 --seeds 1 --engine random",
    "kernel-info": "kernel info --image 6.1",
    "kernel-boot": "kernel boot --image 6.1",
    "kernel-call": "kernel call set_memory_decrypted page:0 1 --image 6.1",
    "kernel-efi": "kernel efi --image 6.1",
    "kernel-kexec": "kernel kexec --image 6.1 --to 6.12",
    "explore-kernel": "explore kernel-migration --guest linux:6.1 --every 2000 --leaf 4k",
}
"""Takes minutes; what needs a kernel is compared with the version that the golden file names."""

_WORDS: Final = "…"
_EXACT: Final = frozenset({"op", "interleaving", "order", "order_steps", "script_steps", "step"})
"""Keys whose texts are notation, not wording."""
_MEASURED: Final = frozenset(
    {
        *("seconds", "rate", "execs_per_second", "last_new_s", "ratio", "floor", "cpu_seconds"),
        *(
            "version",
            "detail",
            "state",
            "remedy",
            "console",
            "pages_per_second",
            "steps_per_second",
        ),
    }
)
"""Keys whose values depend on the machine or the clock."""
_LEFT_OUT: Final = frozenset({"schema"})
_MACHINE_ONLY: Final = frozenset({"doctor", "bench"})
"""Commands of whose output only the keys are compared."""


def shape(value: Json, work: str = "", key: str = "") -> Json:
    """`value` as it is compared: see the module's docstring."""
    if isinstance(value, dict):
        return {
            name: _WORDS if name in _MEASURED else shape(item, work, name)
            for name, item in value.items()
            if name not in _LEFT_OUT
        }
    if isinstance(value, list):
        return [shape(item, work, key) for item in value]
    if isinstance(value, float):
        return _WORDS
    if isinstance(value, str):
        text = value.replace(work, "WORK") if work else value
        return _WORDS if " " in text and key not in _EXACT else text
    return value


def keys(value: Json) -> Json:
    """Only the keys of `value`, and of a list its first element."""
    if isinstance(value, dict):
        return {name: keys(item) for name, item in value.items() if name not in _LEFT_OUT}
    if isinstance(value, list):
        return [keys(item) for item in value[:1]]
    return type(value).__name__


def output(name: str, command: str, work: Path) -> Json:
    """The status of `command` and what it prints, to be compared with golden file `name`."""
    words = [word.replace("WORK", str(work)) for word in command.split()]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        status = main([*words, "--json"])
    printed: Json = json.loads(out.getvalue() or "null")
    if name == "guests" and isinstance(printed, dict):
        printed = {"guests": [line for line in _list(printed["guests"]) if not _is_fetched(line)]}
    seen = keys(printed) if name in _MACHINE_ONLY else shape(printed, str(work))
    return {"command": command, "status": status, "output": seen}


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _is_fetched(line: Json) -> bool:
    """A kernel of this machine."""
    return isinstance(line, dict) and str(line["name"]).startswith("linux:")


def corpora(work: Path) -> Json:
    """What each program of the corpora does: `trace_hash` holds it event by event."""
    paths = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("corpora/**/*.prog"))]
    return {path: _brief(output("run", f"run {path}", work)) for path in paths}


def _brief(ran: Json) -> Json:
    """Without the arguments of the hypercalls and the strip (the trace's hash stands for both)."""
    assert isinstance(ran, dict)
    printed = ran["output"]
    assert isinstance(printed, dict)
    printed = {key: value for key, value in printed.items() if key != "strip"}
    return printed | {"status": ran["status"], "hypercalls": len(_list(printed["hypercalls"]))}


def golden(name: str) -> Json:
    """The committed output."""
    found: Json = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _store(name: str, value: Json) -> None:
    text = msgspec.json.format(msgspec.json.encode(value), indent=1)
    (HERE / f"{name}.json").write_bytes(text + b"\n")


def renew(names: list[str], with_long: bool) -> None:
    """Writes the golden files `names` (all of them if empty)."""

    def is_wanted(name: str) -> bool:
        return not names or name in names

    commands = COMMANDS | (LONG if with_long or names else {})
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory) / "work"
        jobs: dict[str, Callable[[], Json]] = {
            name: lambda name=name, command=command: output(name, command, work)
            for name, command in (commands | CAMPAIGN).items()
            if is_wanted(name) or (name in CAMPAIGN and any(map(is_wanted, CAMPAIGN)))
        }
        for name, job in jobs.items():
            _store(name, job())
    if is_wanted("corpora"):
        _store("corpora", corpora(Path()))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    renew([one for one in arguments if one != "--soak"], "--soak" in arguments)
