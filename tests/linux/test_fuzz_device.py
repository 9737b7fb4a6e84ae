# SPDX-License-Identifier: GPL-2.0-or-later
"""`guestemu fuzz device`: a real kernel's driver beside a hostile device."""

from __future__ import annotations

import json

import msgspec
import pytest

from guestemu.abi.errno import ETIME
from guestemu.campaign.campaign import Options
from guestemu.campaign.campaign import header_of as campaign_header
from guestemu.campaign.engines.random import RandomEngine
from guestemu.campaign.fastpath.fastpath import why_not
from guestemu.campaign.session import Plan, Session
from guestemu.campaign.targets import find_target
from guestemu.cli.main import main
from guestemu.guest.linux.userland.running import CommandResult
from guestemu.machine import devices
from guestemu.machine.devices.virtio_blk import VirtioBlk
from guestemu.program.ops import Op, OpKind, canonical_op
from guestemu.program.program import Header, SevKind
from guestemu.program.text import load_program
from guestemu.runner.testbed import build_testbed

READ, WRITE = OpKind.DEVICE_READ, OpKind.DEVICE_WRITE
STORE, INTERRUPT = OpKind.DEVICE_STORE, OpKind.DEVICE_INTERRUPT


def header_of(image_of, device="virtio-blk", series="6.12"):
    guest = f"userland:{device}@{image_of(series)}"
    return msgspec.structs.replace(find_target("device").header, guest=guest)


@pytest.fixture
def run(image_of):
    """Runs ops on 6.12 beside virtio-blk: results and the names of violations."""
    testbed = build_testbed(header_of(image_of))

    def ops(*ops):
        outcome = testbed.run([canonical_op(op) for op in ops])
        values = [result.outcome.value for result in outcome.results]
        return values, sorted({violation.check for violation in outcome.violations})

    ops.testbed = testbed
    return ops


@pytest.mark.soak  # the drivers of test_userland.py read, this one also binds again
def test_an_honest_device_is_read_written_and_bound_again(run):
    ops = (Op(WRITE, (2, 8)), Op(READ, (2, 8)), Op(OpKind.DEVICE_REBIND), Op(READ))
    values, violations = run(*ops)
    assert values[:2] == [8192, 8192]
    assert values[2] > 0
    assert values[3] == 512
    assert violations == []


@pytest.mark.soak
def test_a_device_with_messages_loses_one_and_forges_one(image_of):
    testbed = build_testbed(header_of(image_of, "nvme/2"))

    def run(*ops):
        outcome = testbed.run([canonical_op(op) for op in ops])
        assert outcome.violations == ()
        return [result.outcome.value for result in outcome.results]

    assert run(Op(OpKind.DEVICE_REBIND), Op(READ)) == [12, 512]
    for at in range(2):
        assert run(Op(INTERRUPT, (at, 0)), Op(READ)) == [0, 512]
    assert run(Op(INTERRUPT, (0, 1)), Op(READ)) == [0, -ETIME]


@pytest.mark.soak
def test_a_network_device_is_used_after_it_was_bound_again(image_of):
    testbed = build_testbed(header_of(image_of, "vmxnet3"))
    ops = (Op(READ), Op(WRITE, (1, 0)), Op(OpKind.DEVICE_REBIND), Op(READ))
    outcome = testbed.run([canonical_op(op) for op in ops])
    assert [result.outcome.value for result in outcome.results] == [512, 1514, 12, 512]
    assert outcome.violations == ()


def test_changes_are_counted_from_where_they_are_ordered(run):
    assert run(Op(STORE, (2, 0, 0, 0)), Op(READ)) == ([0, -ETIME], [])
    assert run(Op(READ), Op(INTERRUPT, (0, 1)), Op(READ))[0] == [512, 0, -ETIME]
    assert run(Op(INTERRUPT, (0, 0)), Op(READ)) == ([0, 512], [])
    assert run(Op(READ)) == ([512], [])


def test_changed_data_reach_user_space_and_are_no_leak(run):
    values, violations = run(Op(STORE, (0, 0, 8, 0x4847464544434241)), Op(READ))
    assert (values, violations) == ([0, 512], [])
    data = run.testbed.guest.running.results[-1].data
    assert data[:8] == b"ABCDEFGH"


def test_a_kernel_that_does_not_bounce_is_caught(run):
    values, violations = run(Op(OpKind.DEVICE_UNBOUNCED), Op(READ))
    assert values[1] == 512
    assert violations == ["device-data", "device-private-address"]


def test_bytes_that_the_device_did_not_store_are_a_leak(run, monkeypatch):
    device = run.testbed.guest.device
    real = device.running.command

    def command(text, budget, until):
        result = real(text, budget, until)
        return CommandResult(text, result.value, b"secret of the kernel".ljust(512, b"\0"))

    monkeypatch.setattr(device.running, "command", command)
    assert run(Op(STORE, (0, 0, 1, 0)), Op(READ))[1] == ["device-leak"]


def test_an_oops_is_a_finding(run, monkeypatch):
    running = run.testbed.guest.device.running
    real = running.command

    def command(text, budget, until):
        real("say WARNING: CPU: 0 PID: 1 at drivers/x.c:7 f+0x1/0x2", budget, until)
        return real(text, budget, until)

    monkeypatch.setattr(running, "command", command)
    assert run(Op(READ))[1] == ["device-oops"]


@pytest.mark.parametrize(
    ("guest", "status", "problem"),
    [
        ("userland:nvm@6.12", 2, "did you mean nvme"),
        ("userland:6.12", 2, "userland:DEVICE@IMAGE"),
        ("userland:nvme/two@6.12", 2, "cpus two: a number"),
        ("userland:nvme/9@6.12", 2, "1 to 8"),
        ("userland:nvme@9.9", 3, "no 9.9 kernel"),
    ],
)
def test_bad_guests_are_named(guest, status, problem, capsys, tmp_path):
    words = ["--guest", guest, "--execs", "1", "--workdir", str(tmp_path)]
    assert main(["fuzz", "device", *words]) == status
    assert problem in capsys.readouterr().err


def test_a_campaign_finds_the_kernel_that_does_not_bounce_and_replays_it(
    image_of, tmp_path, capsys
):
    guest = f"userland:virtio-blk@{image_of('6.12')}"
    words = ["--guest", guest, "--engine", "random", "--seed", "1", "--workdir", str(tmp_path)]
    limits = ["--execs", "100", "--until-finding", "1", "--json"]
    assert main(["fuzz", "device", "--faults", *words, *limits]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {finding["check"] for finding in found["findings"]} <= {
        "device-private-address",
        "device-data",
    }
    program = tmp_path / "findings" / f"{found['findings'][0]['key']}.prog"
    assert load_program(program).header.guest == guest
    text = program.read_text()
    assert "device_unbounced\ndevice_" in text
    assert main(["run", str(program), "--json"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert found["findings"][0]["check"] in {v["check"] for v in again["violations"]}


class LateStatus(VirtioBlk):
    """A planted defect of a device: before it serves a write it stores the status of the request
    before once more, though that buffer is not the device's any longer. Its address is kept in a
    register that a rollback puts back."""

    def serve(self, number, chain):
        last, self.state.feature_select = self.state.feature_select, chain[-1].gpa
        is_write = sum(buffer.size for buffer in chain if not buffer.is_writable) > 16
        if is_write and last > 1:
            self.dma.write(last, b"\0", "status", is_payload=True)
        return super().serve(number, chain)


@pytest.mark.soak
def test_a_campaign_finds_a_device_that_stores_late(image_of, monkeypatch):
    monkeypatch.setitem(devices._DEVICES, "virtio-blk-late", LateStatus)
    target = find_target("device")
    header = header_of(image_of, "virtio-blk-late")
    session = Session(Plan(target, header, seed=1, execs=60, until_finding=1))
    RandomEngine().run(session, lambda error: pytest.fail(str(error)))
    checks = {finding.check for finding in session.make_report().findings}
    assert checks == {"device-mapping"}


def test_programs_of_the_target_need_python(image_of):
    target = find_target("device")
    session = Session(Plan(target, header_of(image_of)))
    assert why_not(session.executor).endswith("is not a snippet")


def test_a_guest_without_a_device_has_no_such_function():
    testbed = build_testbed(Header())
    (result,) = testbed.run([canonical_op(Op(READ))]).results
    assert result.outcome.value == -38


def test_a_campaign_takes_another_kind_of_guest():
    target = find_target("device")
    assert campaign_header(target, Options("device")).sev is SevKind.SEV
    assert campaign_header(target, Options("device", sev=SevKind.SEV_ES)).sev is SevKind.SEV_ES


@pytest.mark.soak
@pytest.mark.parametrize(("series", "sev"), [("6.12", "es"), ("7.3", "snp"), ("7.3", "tdx")])
def test_a_hostile_device_of_another_kind_of_guest(image_of, series, sev):
    header = msgspec.structs.replace(
        header_of(image_of, "virtio-blk", series), sev=SevKind(sev), memory=256
    )
    session = Session(Plan(find_target("device"), header, seed=7, execs=20))
    RandomEngine().run(session, lambda error: pytest.fail(str(error)))
    assert session.make_report().findings == []


@pytest.mark.soak
@pytest.mark.parametrize("series", ["6.1", "6.12", "7.3"])
@pytest.mark.parametrize("device", ["nvme", "virtio-rng", "virtio-blk"])
def test_no_kernel_breaks_a_rule_whatever_its_device_does(image_of, series, device):
    target = find_target("device")
    session = Session(Plan(target, header_of(image_of, device, series), seed=2, execs=200))
    RandomEngine().run(session, lambda error: pytest.fail(str(error)))
    assert session.make_report().findings == []
