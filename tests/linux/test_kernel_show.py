# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu show` and `minimize` on a real kernel."""

from __future__ import annotations

import json

import pytest

from guestemu.cli.main import main
from guestemu.program.lexer import quote

OPS = "set_memory_decrypted D[3] pages=2\nanswer value=-22\nset_memory_decrypted D[9] pages=1\n"


@pytest.fixture
def program(image_of, tmp_path):
    path = tmp_path / "kernel.prog"
    guest = quote(f"linux:{image_of('6.1')}")
    path.write_text(f"guestemu-program 1\nguest {guest}\n---\n{OPS}")
    return path


def test_the_kernels_functions_are_named(program, own_loader, capsys):
    assert main(["show", "--json", "--depth", "6", str(program)]) == 1
    first, _, last = json.loads(capsys.readouterr().out)["ops"]
    names = [call["name"] for call in first["calls"]]
    assert names[0] == "set_memory_decrypted"
    inner = ["enc_dec_hypercall", "kvm_sev_hc_page_enc_status", "hypercall"]
    assert [name for name in names if name in inner] == inner
    assert first["instructions"] > 1000
    assert last["violations"][0].startswith("violation of status")


@pytest.mark.soak
def test_a_finding_of_a_kernel_becomes_small(program, own_loader, capsys):
    assert main(["minimize", "--json", str(program)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["key"].startswith("status-set_memory_decrypted-")
    assert (found["ops_before"], found["ops_after"]) == (3, 2)
    assert "set_memory_decrypted D[0] pages=1" in found["text"]
