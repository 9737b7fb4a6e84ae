# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel's conversions under attack (N55, T14): it goes on right, ends itself or stands
still, whatever instruction the hypervisor chooses."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest

from guestemu.abi.errors import InputError
from guestemu.abi.json_lines import append_json_line
from guestemu.checks.base import OpView, Violation
from guestemu.checks.page_states import PageStateCheck
from guestemu.cli.main import main
from guestemu.guest.linux.load import LinuxLoader
from guestemu.machine.page_attacks import ATTACKS
from guestemu.program.ops import OpKind
from guestemu.program.text import parse_text
from guestemu.study.outcomes import attacks
from guestemu.study.outcomes.attack_runs import read_runs
from guestemu.study.outcomes.attacks import (
    AttackedKernel,
    attacks_of,
    attacks_page,
    places_in,
)

SAFE = {"goes on", "stands still", "oops", "triple fault", "halts", "loops"}


@pytest.fixture(scope="module", autouse=True)
def own_guests() -> Iterator[None]:
    """Guests of these tests alone: one whose instructions were counted stays slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attacks, "LOADER", LinuxLoader())
        yield


@pytest.fixture(scope="module")
def snp(image_of, own_guests) -> AttackedKernel:
    return AttackedKernel("6.12", image_of("6.12"), "snp")


def is_safe(outcome: str) -> bool:
    return outcome in SAFE or outcome.startswith(("terminates", "returns -"))


@pytest.mark.parametrize(
    "attack",
    [
        "remap",
        pytest.param("swap", marks=pytest.mark.soak),
        pytest.param("#VC 0x404", marks=pytest.mark.soak),
        pytest.param("interrupt 0xec", marks=pytest.mark.soak),
    ],
)
def test_no_attack_on_an_encryption_breaks_what_must_hold(snp, attack) -> None:
    places = places_in(snp.instructions("encrypt"), every=1_500)
    row = snp.row("encrypt", attack, places)
    assert sum(row.outcomes.values()) == len(places)
    assert all(map(is_safe, row.outcomes)), row
    assert not row.is_wrong


def test_a_page_that_was_validated_is_noticed_when_it_is_taken(snp) -> None:
    """At the last instruction of the encryption the page is validated: the store behind it is #VC,
    which ends the guest. At the first it is shared still, and remapped by the conversion itself."""
    last = snp.instructions("encrypt") - 1
    row = snp.row("encrypt", "take-back", [last])
    assert row.outcomes == {"terminates 0/0": 1}
    assert row.stretches[0].function


def test_a_check_that_finds_something_gives_the_program(image_of, monkeypatch) -> None:
    def finds(_check: PageStateCheck, view: OpView) -> list[Violation]:
        return [Violation("page-states", view.index, "found", "N55")]

    monkeypatch.setattr(PageStateCheck, "after", finds)
    kernel = AttackedKernel("6.12", image_of("6.12"), "snp")  # its checks are chosen at first use
    row = kernel.row("encrypt", "assign-second", [7])
    assert row.outcomes == {"violation: page-states": 1}
    program = parse_text(row.program, "row")
    assert [op.kind for op in program.ops[1:3]] == [
        OpKind.HYPERVISOR_PAGE,
        OpKind.SET_MEMORY_ENCRYPTED,
    ]
    assert program.ops[1].arguments == (2, 7)


def test_places_are_every_nth_and_the_last() -> None:
    assert places_in(10, 4) == (0, 4, 8, 9)
    assert places_in(9, 4, 4) == (4, 8)
    assert places_in(3, 1, 5) == ()


def test_the_page_has_a_table_for_each_conversion(snp) -> None:
    row = snp.row("decrypt", "restore", [0])
    page = attacks_page([row], 50)
    assert "## 6.12 as snp: decrypt" in page
    assert "| restore | 1 | goes on 1 | wherever tried |" in page
    assert "--image 6.12 --sev snp --every 50" in page


def test_a_sweep_goes_on_from_its_file(snp, tmp_path) -> None:
    path = tmp_path / "runs.jsonl"
    for at in (3, 9):
        append_json_line(path, snp.run("decrypt", "restore", at))
    with path.open("ab") as file:
        file.write(b'{"kernel":"6.12"')  # a crash cut it off
    known = read_runs(path)
    ((key, runs),) = known.items()
    assert key == ("6.12", "snp", "decrypt", "restore")
    new: list[int] = []
    row = snp.row("decrypt", "restore", [3, 5], runs, lambda run: new.append(run.at))
    assert new == [5]
    assert row.outcomes == {"goes on": 3}
    assert (row.stretches[0].first, row.stretches[0].last) == (3, 9)
    path.write_bytes(b"nothing\n" + path.read_bytes())
    with pytest.raises(InputError, match=r"runs\.jsonl:1: not the run of an attack"):
        read_runs(path)


def test_the_page_says_where_every_instruction_was_tried(snp) -> None:
    row = msgspec.structs.replace(snp.row("decrypt", "restore", [0]), instructions=1)
    page = attacks_page([row], 50)
    assert "| restore | all | goes on 1 | wherever tried |" in page
    assert "--image 6.12 --sev snp --attack restore --every 1`" in page
    whole = attacks_page([row], 1)
    assert "--image 6.12 --sev snp --every 1 --page" in whole
    assert "--attack" not in whole


def test_the_command_refuses_what_is_not_there(capsys) -> None:
    assert main(["outcomes", "attacks", "--attack", "nothing"]) == 2
    assert "remap" in capsys.readouterr().err
    assert main(["outcomes", "attacks", "--sev", "es"]) == 2


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_every_attack_at_many_places(image_of, kind, capsys) -> None:
    image = str(image_of("7.3"))
    words = ["outcomes", "attacks", "--image", image, "--sev", kind, "--every", "400", "--json"]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["attack"] for row in rows} == set(attacks_of(kind))
    assert not [row for row in rows if row["program"]]
    assert (set(ATTACKS) < set(attacks_of(kind))) == (kind == "snp")
