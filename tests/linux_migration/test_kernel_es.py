# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV-ES: the CPU crosses in its save area, which KVM cannot move; SNP: nothing can."""

from __future__ import annotations

import struct

import pytest

from guestemu.abi.errors import EngineError
from guestemu.machine.vmsa import load_vmsa, save_vmsa
from guestemu.migration.sweep.instants import FetchOrder, migrate
from guestemu.migration.sweep.run import SweepRequest, SweepWatcher, run
from guestemu.migration.sweep.vmsa_link import VmsaPacket

RIP_AT, RSP_AT, RAX_AT, CR3_AT, EFER_AT = 0x178, 0x1D8, 0x1F8, 0x150, 0xD0
CS_AT, GS_AT = 0x10, 0x50


@pytest.mark.soak
def test_a_sev_es_guest_crosses_by_its_vmsa(experiment_of) -> None:
    experiment = experiment_of("6.1", path="firmware", sev="es")
    length = experiment.recording.length
    call = next(event.index for event in experiment.recording.events if event.kind == "vmmcall")
    inside_vc_handler = range(call + 1, call + 900, 180)
    for index in (0, 3000, call, *inside_vc_handler, length - 1):
        point = migrate(experiment, index, FetchOrder.DIRTY_FIRST)
        assert (point.difference, point.lost_defined) == (None, False), index


def test_the_cpu_is_in_the_packet_and_nowhere_else(experiment_of) -> None:
    experiment = experiment_of("6.1", path="firmware", sev="es")
    departure = experiment.leave(1000)
    assert departure.state.vcpus == ()
    assert departure.vmsa is not None
    assert len(departure.vmsa.header) == 52
    assert len(departure.vmsa.data) == 4096
    rsp = experiment.source.machine.current.read_register("rsp")
    assert struct.pack("<Q", rsp) not in departure.vmsa.data


def test_a_changed_vmsa_is_refused(experiment_of) -> None:
    """E9: BAD_MEASUREMENT, nothing written."""
    experiment = experiment_of("6.1", path="firmware", sev="es")
    departure = experiment.leave(1000)
    assert departure.vmsa is not None
    data = bytearray(departure.vmsa.data)
    data[RIP_AT] ^= 1
    changed = VmsaPacket(departure.vmsa.header, bytes(data))
    with pytest.raises(EngineError, match="BAD_MEASUREMENT"):
        experiment._vmsa.receive(changed)


def test_the_save_area_is_laid_out_as_the_manual_says(experiment_of) -> None:
    """APM volume 2, table B-4."""
    experiment = experiment_of("6.1")
    experiment.leave(5000)
    machine = experiment.source.machine
    page = save_vmsa(machine)
    read = machine.current.read_register
    for at, name in ((RIP_AT, "rip"), (RSP_AT, "rsp"), (RAX_AT, "rax"), (CR3_AT, "cr3")):
        assert struct.unpack_from("<Q", page, at)[0] == read(name), name
    assert struct.unpack_from("<HHIQ", page, CS_AT) == (0x10, 0xA9B, 0xFFFF_FFFF, 0)
    assert struct.unpack_from("<HHIQ", page, GS_AT)[3] == read("gs_base")
    assert struct.unpack_from("<Q", page, EFER_AT)[0] & 0x500 == 0x500  # LME and LMA


def test_a_save_area_survives_a_round_trip(experiment_of) -> None:
    experiment = experiment_of("6.1")
    departure = experiment.leave(5000)
    page = save_vmsa(experiment.source.machine)
    experiment.arrive(departure, experiment.packets(departure))
    machine = experiment.destination.machine
    for name in ("rax", "rbx", "r15", "rflags", "rsp"):
        machine.current.write_register(name, 2)
    load_vmsa(machine, page)
    assert save_vmsa(machine) == page


@pytest.mark.parametrize(
    ("sev", "answers"),
    [
        ("es", {"SEND_UPDATE_VMSA": "-EINVAL", "RECEIVE_UPDATE_VMSA": "-EINVAL"}),
        (
            "snp",
            dict.fromkeys(
                ("SEND_START", "SEND_UPDATE_DATA", "RECEIVE_START", "RECEIVE_UPDATE_DATA"),
                "-EPERM",
            ),
        ),
    ],
)
def test_what_kvm_refuses(image_of, sev: str, answers: dict[str, str]) -> None:
    """E.2: ids 10 and 14 do not exist; E20: an SNP VM has no legacy commands."""
    image = image_of("6.1")
    request = SweepRequest(image, 1 << 20, "plain", "4k", FetchOrder.DIRTY_FIRST, sev, False, False)
    report = run(request, SweepWatcher())
    assert report.kvm == answers
    assert report.points == (1 if sev == "es" else 0)
