# SPDX-License-Identifier: GPL-2.0-or-later
"""The fast path does what Python does, and leaves to Python whatever a check might object to."""

from __future__ import annotations

import ctypes
import inspect
import mmap
import random
from collections.abc import Iterator

import msgspec
import planted_hosts
import pytest

from guestemu.abi.regions import Instruction
from guestemu.campaign.fastpath import fastpath as fastpath_module
from guestemu.campaign.fastpath import library as library_module
from guestemu.campaign.fastpath.fastpath import FastPath, open_fast_path, why_not
from guestemu.campaign.fastpath.library import load_library
from guestemu.campaign.fastpath.records import FastRecord
from guestemu.campaign.mutator import Mutator
from guestemu.campaign.session import LENGTH_SIZE, Plan, Session, SessionOver
from guestemu.campaign.targets import TARGETS, find_target
from guestemu.host.base import Hypercall
from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost
from guestemu.host.permission import named_by_user
from guestemu.machine.pc_sync import find_switch
from guestemu.program.binary import RECORD_SIZE, encode_op, encode_ops
from guestemu.program.ops import Op, OpKind, Region

if load_library() is None:
    pytest.skip("no machine code for this host", allow_module_level=True)

NOTIFY = Op(OpKind.HYPERCALL, (12, 0, 1, 0, 0), Region.D, 3, True)
DECRYPT = Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), Region.D, 3)
ENCRYPT = Op(OpKind.SET_MEMORY_ENCRYPTED, (1, 0), Region.D, 3)


def fail(error: BaseException) -> None:
    raise error


def make(
    name: str,
    host: str = "map-gpa-range",
    guest: str = "snippet:6.1",
    memory: int = 256,
    vcpus: int = 1,
    **plan,
) -> Session:
    target = find_target(name)
    spec, plugin = named_by_user(host)
    header = msgspec.structs.replace(
        target.header, host=spec, guest=guest, plugin=plugin, memory=memory, vcpus=vcpus
    )
    return Session(Plan(target, header, **plan))


def open_on(session: Session, leave=fail) -> FastPath:
    found = open_fast_path(session, leave)
    assert found is not None, why_not(session.executor)
    return found


def inputs(session: Session, count: int) -> Iterator[bytes]:
    """Mutations of mutations, as a campaign has them, with few VMCALLs; some mere random bytes."""
    rng = random.Random(7)
    mutator = Mutator(session.plan.header, session.kinds)
    pool = [b""]
    for _ in range(count):
        data = mutator.mutate(rng.choice(pool), session.executor.max_size, rng.getrandbits(32))
        if rng.random() < 0.1:
            data = rng.randbytes(RECORD_SIZE * rng.randint(0, 2) + rng.randint(0, 9))
        pool.append(data)
        yield data


def host_map(fast: FastPath) -> bytes:
    """The host's record after the last input; until its first exit it is as at the start."""
    record = fast.record
    return (record.host_base if record.is_stale else record.host).bits(record.frames).tobytes()


def compare(
    name: str, host: str, guest: str, count: int, memory: int = 256, vcpus: int = 1
) -> tuple[int, int]:
    """Runs inputs on both ways; how many were common, and how many Python objected to."""
    ours, theirs = (make(name, host, guest, memory, vcpus) for _ in range(2))
    fast = open_on(ours)
    common = wrong = 0
    for number, data in enumerate(inputs(ours, count)):
        ours.feedback.clear()
        theirs.feedback.clear()
        ops = theirs.executor.decode(data)
        violations = theirs.executor.run(ops)
        wrong += bool(violations)
        if fast.library.run(data):
            common += 1
            assert not violations
            assert fast.record.ops_count == len(ops)
            assert ours.feedback.save() == theirs.feedback.save(), ops
            assert host_map(fast) == theirs.executor.testbed.host.private_map().tobytes(), ops
        else:
            assert not any(ours.feedback.save())
        if number % 50 == 0:  # Python in between, as for an input that is not common
            fast._guest.forget_state()
            assert ours.executor.run(ops) == violations
            fast.record.is_foreign = True
    fast.close()
    return common, wrong


@pytest.mark.parametrize(
    ("name", "guest", "count", "share"),
    [
        ("hypercall", "snippet:6.1", 2000, 0.8),
        ("hypercall", "snippet:5.10", 500, 0.8),
        ("conversion", "snippet:6.1", 700, 0.9),
        ("conversion", "snippet:6.12", 400, 0.9),
        ("conversion", "snippet:5.10", 400, 0.6),
    ],
)
def test_counters_and_verdicts_are_those_of_python(name, guest, count, share):
    common, _ = compare(name, "map-gpa-range", guest, count)
    assert common > share * count


def test_a_kernel_that_loses_exits_does_so_in_machine_code():
    """Recognised by the untruncated number, outside 64-bit code (K3-i)."""
    common, _ = compare("hypercall", "map-gpa-range:6.12", "snippet:6.1", 1500)
    assert common > 1000


@pytest.mark.parametrize("name", ["hypercall", "conversion"])
@pytest.mark.parametrize("host", ["qemu-10.2", "bitmap-v8"])
def test_other_hosts_run_by_it_or_not_at_all(name, host):
    session = make(name, host)
    if why_not(session.executor):
        assert open_fast_path(session, fail) is None
    else:
        compare(name, host, "snippet:6.1", 300)


@pytest.mark.parametrize("host", ["map-gpa-range", f"{planted_hosts.__file__}:SecondVcpu"])
def test_hypercalls_of_other_vcpus_are_common(host):
    common, wrong = compare("hypercall", host, "snippet:6.1", 600, vcpus=3)
    assert common > 200
    assert bool(wrong) == (host != "map-gpa-range")


def planted(method: str) -> list[str]:
    return [
        name
        for name, kind in inspect.getmembers(planted_hosts, inspect.isclass)
        if issubclass(kind, MapGpaRangeHost) and method in vars(kind) and name != "Raises"
    ]


@pytest.mark.parametrize("host", planted("hypercall"))
def test_what_a_check_objects_to_is_left_to_python(host):
    name = "conversion" if host == "EncryptIgnored" else "hypercall"
    count = 300 if name == "conversion" else 600
    common, _ = compare(name, f"{planted_hosts.__file__}:{host}", "snippet:6.1", count)
    assert common


def test_planted_hosts_are_objected_to():
    _, wrong = compare("hypercall", f"{planted_hosts.__file__}:AttributeBit0", "snippet:6.1", 300)
    assert wrong


class Silent(MapGpaRangeHost):
    """Answers 0 and records nothing."""

    def hypercall(self, call: Hypercall) -> int:
        return 0


class Failing(MapGpaRangeHost):
    """Raises what a host must not raise."""

    def hypercall(self, call: Hypercall) -> int:
        raise ZeroDivisionError("a defect of the host")


def with_host(host: MapGpaRangeHost, name: str = "conversion") -> Session:
    target = find_target(name)
    return Session(Plan(target, target.header), host=host)


@pytest.mark.parametrize("op", [DECRYPT, NOTIFY])
def test_a_record_that_did_not_change_is_left_to_python(op):
    session = with_host(Silent(), "hypercall" if op is NOTIFY else "conversion")
    fast = open_on(session)
    assert not fast.library.run(encode_op(op))
    assert session.executor.run((op,))


def test_what_a_host_raises_comes_out_of_python():
    raised: list[BaseException] = []
    fast = open_on(with_host(Failing(), "hypercall"), raised.append)
    fast.library.test_one_input(encode_op(NOTIFY))
    assert isinstance(raised[0], ZeroDivisionError)


def test_every_execution_starts_from_the_first_state():
    session = make("conversion")
    fast = open_on(session)
    clean = encode_op(ENCRYPT)
    assert fast.library.run(clean)
    first = session.feedback.save()
    for other in (encode_op(DECRYPT), encode_ops((DECRYPT, ENCRYPT, DECRYPT))):
        assert fast.library.run(other)
        session.feedback.clear()
        assert fast.library.run(clean)
        assert session.feedback.save() == first


@pytest.mark.parametrize(
    "op",
    [
        *(Op(OpKind.SET_MEMORY_DECRYPTED, (3, 0), region, 2) for region in list(Region)[:3]),
        *(Op(OpKind.EARLY_SET_MEMORY_DECRYPTED, (9, 0), region, 2) for region in list(Region)[:2]),
        Op(OpKind.SET_MEMORY_DECRYPTED, (66, 0), Region.D, 2),
        Op(OpKind.WRITE, (5, 8, 64), Region.V, 2),
        Op(OpKind.READ, (8,), Region.L, 2),
        Op(OpKind.STOP_CONVERSION, ()),
    ],
)
def test_ordinary_operations_are_common(op):
    fast = open_on(make("conversion", guest="snippet:6.12"))
    data = encode_ops((op, op)) if op.kind is not OpKind.STOP_CONVERSION else encode_op(op)
    assert fast.library.run(data)
    assert fast.library.run(data)


def test_a_vmcall_is_left_to_python():
    vmcall = msgspec.structs.replace(NOTIFY, instruction=Instruction.VMCALL)
    fast = open_on(make("hypercall"))
    assert not fast.library.run(encode_op(vmcall))
    assert fast.library.run(encode_op(NOTIFY))


def test_the_session_counts_what_it_did_not_run():
    session = make("hypercall", execs=150)
    over: list[BaseException] = []
    session.current = mmap.mmap(-1, LENGTH_SIZE + session.executor.max_size)
    fast = open_on(session, over.append)
    one, two = encode_op(NOTIFY), encode_ops((NOTIFY, NOTIFY))
    for number in range(150):
        session.feedback.clear()
        fast.library.test_one_input(two if number % 3 == 0 else one)
        assert not over
    assert session.current[LENGTH_SIZE : LENGTH_SIZE + len(one)] == one
    fast.library.test_one_input(one)
    assert isinstance(over[0], SessionOver)
    assert session.executions == 150
    assert session.make_report().lengths == [0, 100, 50]
    assert session.make_report().new_inputs == 2
    assert session.make_report().guest_blocks
    assert not session.feedback.take()


def test_a_program_runs_once():
    session = make("hypercall", execs=5)
    session.skips_known = True
    over: list[BaseException] = []
    fast = open_on(session, over.append)
    one, two = encode_op(NOTIFY), encode_ops((NOTIFY, NOTIFY))
    for data in (one, two, one + b"x", two + bytes(47), one):
        fast.library.test_one_input(data)
    assert fast.record.executions == fast.record.distinct == 2
    for _ in range(200):
        fast.library.test_one_input(one)
    assert isinstance(over[0], SessionOver)
    assert session.executions == 5
    assert session.distinct == 2


def test_an_input_that_killed_a_worker_does_not_run():
    session = make("hypercall")
    session.deadly = frozenset({encode_op(NOTIFY)})
    fast = open_on(session)
    fast.library.test_one_input(encode_op(NOTIFY))
    assert session.executions == 1
    assert not any(session.feedback.save())


def test_a_finding_is_filed_as_ever():
    session = make("hypercall", f"{planted_hosts.__file__}:AttributeBit0")
    fast = open_on(session)
    bit_0 = msgspec.structs.replace(NOTIFY, arguments=(12, 0, 1, 1, 0))
    fast.library.test_one_input(encode_op(bit_0))
    (finding,) = session.make_report().findings
    assert "record" in finding.key


@pytest.mark.parametrize("memory", [64, 8192])
def test_the_size_of_the_guest_changes_nothing(memory):
    derived = f"{planted_hosts.__file__}:AttributeBit0"
    built_in = "map-gpa-range"
    for name, spec in (("hypercall", built_in), ("conversion", built_in), ("hypercall", derived)):
        common, _ = compare(name, spec, "snippet:6.1", 120, memory)
        assert common > 60


def test_the_switch_of_the_emulator_is_off_outside_of_the_fast_path():
    """Where it is found at all. With it an access without memory under it has another RIP."""
    session = make("conversion")
    fast = open_on(session)
    assert (find_switch() is None) == (fast.record.sync_switch == 0)
    assert fast.library.run(encode_op(DECRYPT))
    assert session.executor.testbed.guest.machine.hooks.watch.unsynced == 0


def test_without_the_switch_the_fast_path_does_the_same(monkeypatch):
    monkeypatch.setattr(fastpath_module, "find_switch", lambda: None)
    common, _ = compare("conversion", "map-gpa-range", "snippet:6.1", 120)
    assert common > 100


def test_an_op_without_machine_code_is_left_to_python():
    target = find_target("msr")
    fast = open_on(Session(Plan(target, target.header)))
    assert not fast.library.run(encode_op(Op(OpKind.RDMSR, (0x4B56_4D08,))))


NEEDS_PYTHON = {
    "mapgpa": "the guest is a TD",
    "firmware": "checks of its own sev-firmware",
    "sync": "checks of its own resources",
    "stream": "checks of its own resources",
    "mirror": "checks of its own sev-firmware",
    "psc": "is not a snippet",
    "hostile-host": "is not a snippet",
    "lockstep": "checks of its own lockstep",
    "migration": "programs have more than 16 ops",
}
"""Targets whose executions need Python, and why; all others have a fast path."""


WITHOUT_KERNELS = [name for name in TARGETS if name != "device"]
"""`device` has a real kernel for a guest: tests/linux/test_fuzz_device.py."""


@pytest.mark.parametrize("name", WITHOUT_KERNELS)
def test_every_target_has_the_fast_path_that_it_should_have(name):
    """A check that the machine code does not know takes it away from a target without a word."""
    target = find_target(name)
    session = Session(Plan(target, target.header))
    why = why_not(session.executor)
    assert why.endswith(NEEDS_PYTHON[name]) if name in NEEDS_PYTHON else not why
    session.executor.testbed.close()


def test_a_library_of_another_layout_is_not_used(monkeypatch):
    class Longer(FastRecord):
        _fields_ = (("more", ctypes.c_uint64),)

    monkeypatch.setattr(library_module, "FastRecord", Longer)
    assert load_library.__wrapped__() is None
