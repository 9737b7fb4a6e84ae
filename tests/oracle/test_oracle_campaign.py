# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns against a machine whose KVM is the model itself, with and without a defect."""

import json
import os
import signal

import pytest

from guestemu.cli.main import main
from guestemu.conformance.recordings.reader import read_recording
from guestemu.host.kvm.kernels import KERNELS
from guestemu.oracle import reduce
from guestemu.oracle.campaign import OracleCampaign
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.qemu import MachineEnded


def campaign(kvm, say=lambda text: None, directory=None, batch=512):
    return OracleCampaign(kvm, KERNELS["6.1"], seed=3, say=say, directory=directory, batch=batch)


def test_a_kvm_that_is_as_the_model_differs_in_no_step(fake, kernel):
    fake()
    with LiveKvm(kernel) as kvm:
        sums = campaign(kvm).run(3000)
    assert sums.steps >= 3000
    assert sums.exits > 300
    assert (sums.differing, sums.findings, sums.restarts) == (0, [], 0)


def test_steps_that_reach_new_code_of_the_kernel_are_varied(fake, kernel):
    """Where the kernel has kcov; here the first step of each of the four modes does."""
    fake("kcov")
    with LiveKvm(kernel) as kvm:
        one = campaign(kvm, batch=64)
        kept = one._generator.kept
        one._features = Everything()
        sums = one.run(256)
    assert sums.covered == 4 * 7
    assert {act.mode for act in kept} == {"long64", "compat32", "prot32", "real16"}
    assert len(kept) == 4


class Everything(set):
    """Nothing is new in the model."""

    def __contains__(self, feature):
        return True


def test_a_planted_defect_is_found_made_small_and_shown_by_conform(fake, kernel, tmp_path, capsys):
    fake("alignment")
    with LiveKvm(kernel) as kvm:
        sums = campaign(kvm, directory=tmp_path).run(1500)
    assert sums.findings
    finding = sums.findings[0]
    assert finding.steps == 1
    assert "rbx=0x800" in finding.summary or "rbx=0x100800" in finding.summary
    assert "no kernel that has a model" in finding.explanation
    (step,) = read_recording(tmp_path / "finding-1.jsonl").steps
    assert step.inputs.rax == 12
    assert step.events
    assert main(["conform", str(tmp_path / "finding-1.jsonl"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["disagree"]


def test_a_finding_stays_what_it_was_while_it_is_made_small(fake, kernel):
    """Address 0, the plainest one, goes wrong in another way here."""
    fake("alignment-end")
    with LiveKvm(kernel) as kvm:
        sums = campaign(kvm).run(1500)
    assert any("rbx=0x800 " in finding.summary for finding in sums.findings)
    ends = [finding.summary for finding in sums.findings if "shutdown" in finding.summary]
    assert ends
    assert all("rbx=0x0 " in summary for summary in ends)


def test_what_was_seen_is_told_where_ctrl_c_ends_its_reduction(fake, kernel, monkeypatch):
    def interrupted(_reducer, _suspicion):
        raise KeyboardInterrupt

    fake("alignment")
    monkeypatch.setattr(reduce.Reducer, "reduce", interrupted)
    with LiveKvm(kernel) as kvm:
        one = campaign(kvm)
        with pytest.raises(KeyboardInterrupt):
            one.run(1500)
    assert one.sums.differing
    assert one.sums.notes[0].startswith("seen, not made small: vmmcall rax=0xc ")


def test_vms_that_a_finding_was_made_small_on_are_made_anew(fake, kernel):
    """The cases of a reduction take the slots of the campaign's VMs."""
    fake("alignment")
    with LiveKvm(kernel) as kvm:
        sums = campaign(kvm).run(3000)
    assert sums.differing
    assert sums.notes == []


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        ("panic", "the kernel died: BUG: unable to handle page fault"),
        ("warning", "WARNING: CPU: 0"),
    ],
)
def test_a_kernel_that_crashes_or_warns_is_a_finding(fake, kernel, monkeypatch, defect, said):
    fake(defect)
    monkeypatch.setattr(reduce, "_SLOW_TRIES", 4)
    heard = []
    with LiveKvm(kernel) as kvm:
        one = campaign(kvm, heard.append, batch=64)
        draw = one._generator._call
        one._generator._call = lambda vcpus: with_77(draw(vcpus))
        sums = one.run(200)
    assert [said in finding.summary for finding in sums.findings] == [True]
    assert sums.findings[0].steps == 1
    assert sums.steps >= 200
    assert any(said in line for line in heard)


def test_a_warning_is_told_of_the_step_that_made_it(fake, kernel):
    """Not of the last one of its batch."""
    from guestemu.oracle.matrix import call

    fake("warning")
    drawn = []

    def act(vcpus=1):
        drawn.append(call(77) if len(drawn) == 30 else call(1))
        return drawn[-1]

    with LiveKvm(kernel) as kvm:
        one = campaign(kvm, batch=64)
        one._generator.act = act
        sums = one.run(64)
    (finding,) = sums.findings
    assert sums.notes == []
    assert finding.steps == 1
    assert "vmmcall rax=0x4d " in finding.summary


def with_77(act):
    import msgspec

    from guestemu.conformance.recordings.recording import Hex

    if act.inputs.rcx != 0:
        return act
    return msgspec.structs.replace(act, inputs=msgspec.structs.replace(act.inputs, rax=Hex(77)))


def test_a_machine_that_is_killed_is_started_again(fake, kernel):
    fake()
    heard = []
    with LiveKvm(kernel) as kvm:
        one = campaign(kvm, heard.append)
        one.run(600)
        os.kill(kvm.pid, signal.SIGKILL)
        sums = one.run(1500)
        assert kvm.starts == 2
    assert heard == ["QEMU was ended by SIGKILL; started again"]
    assert (sums.findings, sums.restarts) == ([], 1)
    assert sums.steps >= 1500


def test_a_machine_that_hangs_is_given_up(fake, kernel):
    fake("hang")
    with LiveKvm(kernel, batch_s=0.3) as kvm:
        from guestemu.oracle.matrix import call, config
        from guestemu.oracle.steps import pack_config, pack_request

        kvm.set_config(0, pack_config(config()))
        pid = kvm.pid
        with pytest.raises(MachineEnded, match="hangs: no answer"):
            kvm.run([pack_request(call(77), 0)])
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_replies_of_random_bytes_are_findings_and_no_traceback(fake, kernel):
    fake("garbage")
    with LiveKvm(kernel) as kvm:
        sums = campaign(kvm, batch=64).run(64)
    assert sums.findings


def test_a_machine_that_does_not_start_says_why(fake, kernel):
    fake("exit")
    with pytest.raises(MachineEnded, match="QEMU ended with status 1: no machine today"):
        LiveKvm(kernel)


def test_speed_is_measured_beside_the_channel_alone(fake, kernel, monkeypatch):
    from guestemu.oracle import speed

    fake()
    monkeypatch.setattr(speed, "BATCH", 64)
    with LiveKvm(kernel) as kvm:
        measured = speed.measure(kvm, KERNELS["6.1"], 2)
    assert measured.steps == 3 * 128
    assert min(measured.start_up, measured.channel, measured.model, measured.campaign) > 0
    assert measured.ratio == pytest.approx(measured.campaign / measured.channel)


def test_no_process_is_left_behind(fake, kernel):
    fake()
    with LiveKvm(kernel) as kvm:
        pid = kvm.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_machine_that_does_not_come_up_is_one_line_with_status_3(fake, kernel, capsys):
    fake("exit")
    assert main(["oracle", "fuzz", str(kernel.kernel)]) == 3
    assert capsys.readouterr().err == "guestemu: QEMU ended with status 1: no machine today\n"


def test_native_without_the_device_is_refused_in_one_line(
    fake, kernel, monkeypatch, tmp_path, capsys
):
    from guestemu.cli import _oracle

    fake()
    monkeypatch.setattr(_oracle, "_DEVICE", tmp_path / "kvm")
    assert main(["oracle", "fuzz", str(kernel.kernel), "--native"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("guestemu: --native: ")
    assert "cannot be opened: No such file" in line


def test_a_campaign_keeps_what_it_has_where_the_machine_does_not_start_again(
    fake, kernel, monkeypatch, capsys
):
    fake()
    taken = []

    def kill_first(self, tell=None):
        if not taken:
            taken.append(os.kill(self.pid, signal.SIGKILL))
            fake("exit")
        return take(self, tell)

    take = LiveKvm.take
    monkeypatch.setattr(LiveKvm, "take", kill_first)
    assert main(["oracle", "fuzz", str(kernel.kernel), "--json"]) == 0
    sums = json.loads(capsys.readouterr().out)
    assert sums["restarts"] == 1
    assert sums["notes"] == [
        "ended early, the machine does not start: QEMU ended with status 1: no machine today"
    ]
