# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversions with contents on software-protected VMs: the model, its matrix, campaigns."""

import pytest

from guestemu.abi.errno import EFAULT, EINVAL, ENODEV
from guestemu.cli.main import main
from guestemu.conformance.recordings.recording import Answer, RecordedOutcome, StepOp
from guestemu.host.kvm.kernels import KERNELS
from guestemu.host.kvm.protected_memory import create_memfd
from guestemu.oracle import conversions, reduce
from guestemu.oracle.campaign import OracleCampaign
from guestemu.oracle.conversions import ConversionGenerator, memory_matrix
from guestemu.oracle.direct_model import DirectVm
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.matrix import call
from guestemu.oracle.recorder import run_cases

A = 0x40000
HIGH = 0x200000
PAGE = 0x1000


def outcomes(*acts):
    vm = DirectVm(conversions._PROTECTED, KERNELS["7.2"])
    return [vm.do(act)[1] for act in acts]


def values(*acts):
    return [out.data for out in outcomes(*acts) if out.data is not None]


def test_a_private_page_keeps_what_was_in_it_until_a_hole_is_punched():
    """GM3: the old private data come back with the next conversion."""
    write, read = conversions._write(A, 0x22), conversions._read(A)
    private, shared = conversions._attributes(A), conversions._attributes(A, kind=0)
    punch = conversions._punch(A)
    assert values(private, write, shared, read, private, read, punch, read) == [0x22, 0, 0x22, 0]


def test_user_space_sees_the_shared_page_only():
    private, peek = conversions._attributes(A), conversions._peek(A)
    write, poke = conversions._write(A, 0x22), conversions._poke(A, 0x33)
    assert values(poke, private, write, peek) == [0x22, 0x33]


def test_contents_stay_in_the_file_when_their_slot_goes():
    """GM5: a slot that is bound to the same offset elsewhere has them."""
    slot, gone = conversions._slot(2, HIGH, PAGE), conversions._slot(2, 0, 0)
    write = conversions._write(HIGH, 0x66)
    again = conversions._slot(3, HIGH + PAGE, PAGE)
    private = conversions._attributes(HIGH, 2 * PAGE)
    assert values(slot, private, write, gone, again, conversions._read(HIGH + PAGE)) == [0x66] * 2


def test_an_mmio_entry_that_is_out_of_date_makes_a_private_access_count_as_shared():
    """Seen on 7.3.4: the flags of the exit are 0 although the frame is private."""
    read, private = conversions._read(HIGH), conversions._attributes(HIGH)
    found = outcomes(read, private, read, conversions._slot(2, HIGH, PAGE), read)
    assert [out.outcome for out in found[::2]] == ["mmio", "mmio", "memory_fault"]
    assert found[-1] == RecordedOutcome(outcome="memory_fault", data=HIGH, hw=0, rax=PAGE)


def test_an_offset_without_a_file_is_no_change_of_slots():
    """The entry of MMIO stays up to date: found on 7.3.4 by a campaign."""
    slot = conversions._slot
    last = outcomes(
        slot(4, 0x300000, PAGE, 0, -PAGE),
        conversions._read(HIGH + PAGE),
        conversions._attributes(HIGH + PAGE),
        slot(4, 0x300000, PAGE, 0, 0x100000),
        conversions._write(HIGH + PAGE, 0x54),
    )
    assert [out.outcome or out.ioctl for out in last] == [0, "mmio", 0, 0, "mmio"]


def test_a_file_is_all_private_or_all_shared():
    """It can be mapped with MMAP only, and touched where it starts shared, up to its end."""
    assert create_memfd(PAGE, 0, has_private_memory=False) == (0, ENODEV, ENODEV, 0, 0)
    assert create_memfd(PAGE, 1, has_private_memory=True) == (0, 0, EINVAL, EFAULT, EFAULT)
    assert create_memfd(PAGE, 3, has_private_memory=False) == (0, 0, EINVAL, 0, EFAULT)
    assert create_memfd(2 * PAGE, 3, has_private_memory=False)[4] == 0
    assert create_memfd(PAGE, 3, has_private_memory=True)[0] == -EINVAL
    for size in (0, 1, PAGE + 1, 1 << 63):
        assert create_memfd(size, 0, has_private_memory=True)[0] == -EINVAL


def test_random_programs_stay_away_from_the_guests_own_memory():
    draw = ConversionGenerator(5)
    acts = [act for _ in range(2000) for act in draw.program(1)]
    assert {act.op for act in acts} == {
        *(StepOp.SET_ATTRIBUTES, StepOp.FALLOCATE, StepOp.GUEST_READ, StepOp.GUEST_WRITE),
        *(StepOp.HOST_READ, StepOp.HOST_WRITE, StepOp.SET_SLOT, StepOp.VMMCALL),
    }
    for act in acts:
        words = act.inputs
        if act.op is StepOp.SET_ATTRIBUTES and words.rax & 0xFFF == 0 and words.rbx & 0xFFF == 0:
            assert words.rax >= A
            assert words.rbx <= 64 * PAGE


def test_a_campaign_of_conversions_agrees_and_counts_programs(fake, kernel):
    fake()
    with LiveKvm(kernel) as kvm:
        results = list(run_cases(kvm, list(memory_matrix())))
        assert [result.error for result in results if result.error] == []
        sums = OracleCampaign(
            kvm, KERNELS["6.1"], generator=ConversionGenerator(3), say=print, batch=512
        ).run(2000)
    assert (sums.differing, sums.findings, sums.restarts) == (0, [], 0)
    assert 100 < sums.programs < 400


def test_a_hole_that_leaves_the_pages_is_found_and_made_small(fake, kernel):
    fake("hole")
    with LiveKvm(kernel) as kvm:
        sums = OracleCampaign(
            kvm, KERNELS["6.1"], generator=ConversionGenerator(3), say=print, batch=512
        ).run(1500)
    kept = [one for one in sums.findings if "guest_read" in one.summary]
    assert kept
    assert kept[0].steps <= 5  # to private, write, punch, read; one that stands for another


def test_a_conversion_is_made_small_beside_the_guests_own_pages():
    """A guest that converts its own code ends, whatever the finding was."""
    act = call(12, A + PAGE, 8, 0x10, answer=Answer.CONVERT)
    simpler = list(reduce._simpler_act(act))
    assert {one.inputs.rbx for one in simpler} == {A + PAGE, A, 0x100000}
    other = call(12, A + PAGE, 8, 0x10)
    assert 0 in {one.inputs.rbx for one in reduce._simpler_act(other)}


@pytest.mark.parametrize("verb", ["fuzz", "record"])
def test_a_kvm_without_such_vms_says_what_makes_one(fake, tmp_path, monkeypatch, capsys, verb):
    from tests.oracle import fake_machine

    fake("plain")
    image = tmp_path / "bzImage"
    image.write_bytes(b"\0" * 0x202 + b"HdrS")
    words = ["-o", str(tmp_path / "x.jsonl")] if verb == "record" else []
    assert fake_machine._CAPS[5] & 2
    assert main(["oracle", verb, str(image), "--memory", *words]) == 3
    assert "guestemu oracle build-modules" in capsys.readouterr().err
