# SPDX-License-Identifier: GPL-2.0-or-later
"""A package adds ops, a host, a guest generation, a check, a target, a kind of event and a verb:
each is one file, and every verb knows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from held import DEADLINE_S

from guestemu.guest.snippet import elf

FILES = {
    "addon/__init__.py": "",
    "addon/parts.py": "from addon import check, generation, host, op, target  # noqa: F401\n",
    "addon/op.py": '''
from guestemu.events.base import Event
from guestemu.guest.base import CallOutcome
from guestemu.runner.operations import OpContext, operation
from guestemu.program.kinds import Argument, Gives, OpSpec, argument
from guestemu.program.ops import Op, define_op


class Knocked(Event, frozen=True, tag="knocked"):
    """The guest knocked at a page."""

    gfn: int
    loud: bool


KNOCK = define_op(
    200,
    OpSpec(
        "knock",
        (argument("loud", Argument.FLAG),),
        "the guest knocks at the page",
        has_page=True,
        gives=Gives.RESULT,
    ),
)
ASK = define_op(
    201,
    OpSpec("ask", (argument("count", Argument.SMALL),), "the host is asked", gives=Gives.RESULT,
           by_host=True),
)


@operation(KNOCK)
def knock(scene: OpContext, op: Op) -> CallOutcome:
    gfn = scene.guest.gpa(op.region, op.page) >> 12
    scene.guest.machine.log.append(Knocked(gfn, bool(op.arguments[0])))
    return CallOutcome(7)
''',
    "addon/host.py": """
from addon.op import ASK
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.registry import register_host


class AddonHost(MapGpaRangeHost):
    name = "addon-host"
    summary = "map-gpa-range that can be asked"

    def operations(self):
        return {**super().operations(), ASK: lambda count: count + 1}


register_host(AddonHost)
""",
    "addon/check.py": '''
from addon.op import Knocked
from guestemu.checks import register_check
from guestemu.checks.base import Oracle, Violation


@register_check
class QuietCheck(Oracle):
    """No guest knocks loudly."""

    name = "quiet"
    explanations = {"quiet": "The neighbours cannot sleep."}

    def after(self, view):
        loud = [event for event in view.events if isinstance(event, Knocked) and event.loud]
        return [Violation(self.name, view.index, f"{len(loud)} loud knocks", "")] if loud else ()
''',
    "addon/generation.py": """
from pathlib import Path

from guestemu.guest.dma.policy import policy_named
from guestemu.guest.snippet.generations import Generation, register_generation

register_generation(
    Generation(name="addon", summary="as 6.1", image=Path(__file__).with_name("guest.elf")),
    policy_named("6.1"),
)
""",
    "addon/target.py": """
from addon.op import ASK, KNOCK
from guestemu.campaign.targets import Target, register_target
from guestemu.program.program import Header

register_target(
    Target(
        name="knocks",
        summary="knocks and questions",
        kinds=frozenset({KNOCK, ASK}),
        max_ops=2,
        header=Header(guest="snippet:addon", host="addon-host"),
    )
)
""",
    "verbs/hello.py": '''
"""`guestemu hello`."""

from guestemu.cli import console


def command() -> None:
    """Say hello."""
    console.emit("hello")
''',
    "addon-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: addon\nVersion: 1.0\n",
    "addon-1.0.dist-info/entry_points.txt": "[guestemu.parts]\naddon = addon.parts\n",
}
PROGRAM = """guestemu-program 1
guest snippet:addon
host {host}
---
knock D[3] loud={loud}
ask count=4
set_memory_decrypted D[3] pages=1

expect outcome {outcome}
"""
START = (
    "import sys; from guestemu.cli import __path__; __path__.append(sys.argv.pop(1)); "
    "from guestemu.cli.main import main; sys.exit(main())"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        path = site / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    shutil.copy(Path(elf.__file__).with_name("snippet-6.1.elf"), site / "addon" / "guest.elf")
    for name, host, loud, outcome in (
        ("quiet", "addon-host", 0, "ok"),
        ("loud", "addon-host", 1, "violation"),
        ("lacking", "map-gpa-range", 0, "ok"),
    ):
        text = PROGRAM.format(host=host, loud=loud, outcome=outcome)
        (site / f"{name}.prog").write_text(text)
    return site


def search_path(site: Path) -> str:
    return os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])


def guestemu(site: Path, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", START, str(site / "verbs"), *arguments],
        capture_output=True,
        text=True,
        cwd=site,
        env={**os.environ, "PYTHONPATH": search_path(site)},
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout


def as_json(site: Path, *arguments: str, status: int = 0) -> Any:
    return json.loads(guestemu(site, *arguments, "--json", status=status))


def test_run_knows_op_event_check_and_generation(site: Path) -> None:
    ran = as_json(site, "run", "loud.prog", status=1)
    assert [found["check"] for found in ran["violations"]] == ["quiet"]
    assert ran["events"]["knocked"] == 1
    told = guestemu(site, "run", "loud.prog", status=1)
    for text in (
        "snippet:addon on addon-host",
        "knock D[3] loud=1",
        "knocked D[3] loud=yes",
        "returned 7",
        "The neighbours cannot sleep.",
        "returned 5",
    ):
        assert text in told, text


def test_the_event_is_in_the_trace(site: Path) -> None:
    guestemu(site, "run", "quiet.prog", "--trace", "quiet.jsonl")
    lines = [json.loads(line) for line in (site / "quiet.jsonl").read_text().splitlines()]
    (found,) = (line for line in lines if line["event"] == "knocked")
    assert (found["where"], found["loud"], found["op"]) == ("D[3]", False, 0)


def test_a_host_without_the_op_answers_enotty(site: Path) -> None:
    shown = as_json(site, "show", "lacking.prog")["ops"]
    assert [(op["op"].split()[0], op["value"]) for op in shown[:2]] == [("knock", 7), ("ask", -25)]
    assert shown[1]["effect"] == "the host is asked"


def test_replay_judges_it(site: Path) -> None:
    assert as_json(site, "replay", "--jobs", "2", ".")["passed"] == 3


def test_a_campaign_finds_the_violation_and_minimizes_it(site: Path) -> None:
    found = as_json(
        *(site, "fuzz", "knocks", "--engine", "random", "--execs", "200", "--workdir", "work"),
        status=1,
    )
    (finding,) = found["findings"]
    assert finding["check"] == "quiet"
    path = next((site / "work" / "findings").glob("*.prog"))
    small = as_json(site, "minimize", str(path))
    assert small["ops_after"] == 1
    assert "knock D[0] loud=1" in small["text"]


def test_lists_name_what_was_added(site: Path) -> None:
    assert "addon-host" in [host["name"] for host in as_json(site, "hosts")["hosts"]]
    assert "snippet:addon" in [guest["name"] for guest in as_json(site, "guests")["guests"]]
    assert "knocks" in [target["name"] for target in as_json(site, "targets")["targets"]]
    assert guestemu(site, "hello") == "hello\n"
    assert "hello" in guestemu(site, "--help")


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    for name in ("addon-1.0.dist-info/METADATA", "addon-1.0.dist-info/entry_points.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(FILES[name])
    done = subprocess.run(
        [sys.executable, "-m", "guestemu", "targets"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "package addon: addon.parts cannot be loaded" in done.stderr
    assert len(done.stderr.splitlines()) == 1
