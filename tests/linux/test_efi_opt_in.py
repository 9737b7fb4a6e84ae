# SPDX-License-Identifier: GPL-2.0-or-later
"""EFI guests and live migration (A42): real kernels against a firmware's variable."""

from __future__ import annotations

import json

import pytest

from guestemu.cli.main import main
from guestemu.kernel.efi import Variable, efi_opt_in

NAME = "SevLiveMigrationEnabled"


@pytest.mark.parametrize(
    ("variable", "asked", "written", "says"),
    [
        (Variable.ONE, (NAME,), (1,), "live migration enabled in EFI"),
        (Variable.ZERO, (NAME,), (), "live migration disabled in EFI"),
        (Variable.MISSING, (NAME,), (), "EFI live migration variable not found"),
        (Variable.UNREADABLE, (NAME,), (), "EFI variable retrieval failed"),
        (Variable.NO_RUNTIME, (), (), "EFI runtime services are not enabled"),
    ],
)
def test_only_a_variable_that_is_set_enables_migration(kernel, variable, asked, written, says):
    found = efi_opt_in(kernel.guest, variable)
    assert found.asked == asked
    assert found.migration_control == written
    assert any(says in line for line in found.console), found.console


def test_nothing_of_it_is_left_in_the_guest(kernel):
    guest = kernel.guest
    efi_opt_in(guest, Variable.ONE)
    guest.reset()
    assert guest.call("setup_efi_kvm_sev_migration").value == 0
    assert kernel.recorder.exits == []


def test_the_command_runs_every_case(series, image_of, capsys):
    assert main(["kernel", "efi", "--image", str(image_of(series)), "--json"]) == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert [case["variable"] for case in cases if case["migration_control"]] == ["one"]
    assert len(cases) == 5


def test_an_unknown_variable_is_bad_input(image_of, capsys):
    assert main(["kernel", "efi", "two", "--image", str(image_of("6.1"))]) == 2
    assert "one, zero, missing" in capsys.readouterr().err
