# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that is plugged while the VM runs: what hosts of each kind hear of it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from native_builds import EXAMPLE, compile_c, example, example_program

from guestemu.abi.errno import EBUSY, EEXIST, EINVAL, ENOMEM, ENOTTY
from guestemu.campaign.campaign import Options, header_of, target_of
from guestemu.host.kvm.guest_memory import Slot
from guestemu.host.native.host import NativeHost
from guestemu.host.permission import named_by_user
from guestemu.host.standin import StandInVcpu
from guestemu.host.userspace.qemu_11 import Qemu11UserSpace
from guestemu.program.layout import parts_of
from guestemu.program.ops import Op, OpKind
from guestemu.program.program import Header, Program
from guestemu.report.trace.run import run_program
from guestemu.runner.testbed import pluggable_of, slots_of

MIB = 1 << 20
FRAMES = 1024
SLOT = Slot(2 * MIB, MIB)
LAYOUT = "slot@32M,plug@63M+1M"
CORRECT = Path(__file__).parents[1] / "quality" / "defects" / "correct_handler.py"
PLUG = Op(OpKind.HOST_COMMIT_SLOT, (63 << 8, 1))


def make(spec: str) -> NativeHost:
    host = NativeHost(spec)
    host.describe_vm((Slot(0, 2 * MIB),), 1)
    host.pluggable = (SLOT,)
    host.reset(FRAMES)
    return host


def share(host: NativeHost) -> tuple[int, bool]:
    """The answer to a call for the first page of `SLOT`, and whether it is shared then."""
    answer = host.hypercall(StandInVcpu().hypercall(12, SLOT.gpa, 1, 0))
    return answer, not host.private_map()[SLOT.gpa >> 12]


@pytest.mark.parametrize("way", ["process", "in-process", "cmd"])
def test_a_native_handler_gets_the_new_layout_and_a_reset_takes_it_back(tmp_path, way):
    if way == "cmd":
        spec = f"cmd:{example_program(tmp_path, 0)}"
    else:
        spec = str(example(tmp_path, 0)) + (":in-process" if way == "in-process" else "")
    host = make(spec)
    assert share(host) == (0, False)
    assert host.plug(1, 1) == -EINVAL
    assert host.plug(0x280, 1) == 0
    assert host.plug(0x2FF, 9) == -EEXIST
    assert share(host) == (0, True)
    assert host.open_frames == ((0x300, host.open_frames[-1][1]),)
    host.take_back()
    host.restore(FRAMES)
    assert share(host) == (0, False)
    assert [slot.gpa for slot in host.guest_memory.slots] == [0]


@pytest.mark.parametrize("is_isolated", [True, False])
def test_a_handler_without_the_function_has_no_hot_plug(tmp_path, is_isolated):
    flags = ("-DBUG=0", "-Dguestemu_layout=not_exported")
    library = compile_c(tmp_path / "old.so", EXAMPLE, flags=flags)
    host = make(f"{library}{'' if is_isolated else ':in-process'}")
    assert host.plug(0x200, 1) == -ENOTTY
    assert share(host) == (0, False)


def wrong(path: Path, name: str, *ops: Op) -> tuple[list[int | None], list[tuple[str, int]]]:
    """Results of the operations, and the violations."""
    host, plugin = named_by_user(f"{path}:{name}")
    outcome = run_program(Program(Header(host=host, plugin=plugin, layout=LAYOUT), ops)).outcome
    values = [result.outcome.value for result in outcome.results]
    return values, [(found.check, found.op) for found in outcome.violations]


def call(pages: int) -> Op:
    return Op(OpKind.HYPERCALL, (12, 63 << 20, pages, 0, 0))


def test_memory_that_was_plugged_is_ram(tmp_path):
    """A range there may be refused before, and not afterwards; it is private at first."""
    assert wrong(CORRECT, "Handler", call(1), PLUG, call(256), PLUG)[1] == []
    path = tmp_path / "forgets.py"
    reset = "\n    def reset(self, memory):\n        super().reset(memory)\n"
    reset += "        self.kept = memory.slots\n\n    def map_gpa_range"
    text = CORRECT.read_text().replace("\n    def map_gpa_range", reset)
    known = "sum(slot.cut(gpa, size)[1] for slot in self.kept)"
    path.write_text(text.replace("sum(part[3] for part in self.memory.parts(gpa, size))", known))
    assert wrong(path, "Handler", call(1))[1] == []
    assert wrong(path, "Handler", PLUG, call(1))[1] == [("results", 1)]


def test_a_handler_may_refuse_memory(tmp_path):
    path = tmp_path / "refuses.py"
    text = CORRECT.read_text()
    path.write_text(f"{text}\n    def memory_plugged(self, number):\n        return -{ENOMEM}\n")
    values, found = wrong(path, "Handler", PLUG, call(1))
    assert (values[0], found) == (-ENOMEM, [])


UNPLUG = Op(OpKind.UNPLUG_SLOT, (63 << 8, 1))
ACCESS = Op(OpKind.GUEST_ACCESS, (63 << 8, 1))


def test_what_a_handler_refuses_leaves_nothing_behind(tmp_path):
    path = tmp_path / "refuses.py"
    text = CORRECT.read_text()
    path.write_text(f"{text}\n    def memory_plugged(self, number):\n        return -{ENOMEM}\n")
    elsewhere = Op(OpKind.HYPERCALL, (12, 0, 4, 0, 0))
    assert wrong(path, "Handler", PLUG, elsewhere) == ([-ENOMEM, 0], [])


def test_a_handler_is_told_before_memory_goes(tmp_path):
    text = CORRECT.read_text()
    path = tmp_path / "gives.py"
    for answer, values in ((0, [0, 0, 0, 0]), (-EBUSY, [0, 0, -EBUSY, -EEXIST])):
        own = f"\n    def memory_unplugged(self, slot):\n        return {answer}\n"
        path.write_text(text + own)
        assert wrong(path, "Handler", PLUG, call(1), UNPLUG, PLUG) == (values, [])


def test_memory_that_is_plugged_again_is_recorded_as_private(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost\n"
        "class Own(MapGpaRangeHost):\n"
        "    def take_slot(self, slot):\n"
        "        return 0\n"
        "    give_slot = take_slot\n"
    )
    assert wrong(path, "Own", PLUG, UNPLUG, PLUG)[1] == []
    assert wrong(path, "Own", PLUG, call(2), UNPLUG, PLUG)[1] == [("record", 3)]
    assert wrong(path, "Own", UNPLUG) == ([-EINVAL], [])


def vmm(name: str, *ops: Op) -> list[int | None]:
    """Results of the operations on a modelled VMM; None where it ended the VM."""
    outcome = run_program(Program(Header(host=name, layout=LAYOUT), ops)).outcome
    results = [result.outcome.value for result in outcome.results]
    return results + [None] * (len(ops) - len(results))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("qemu-11", [0, 0, 0, 0, None]),
        ("cloud-hypervisor", [0, 0, 0, -ENOTTY, 0]),
        ("openvmm", [-ENOTTY, 1, None, None, None]),
        ("libkrun", [-ENOTTY, None, None, None, None]),
        ("dragonball", [0, 0, None, None, None]),
    ],
)
def test_the_vmms_plug_as_their_sources_do(name: str, values: list[int | None]) -> None:
    other = msgspec.structs.replace(ACCESS, arguments=((63 << 8) + 9, 1))
    found = vmm(name, PLUG, call(1), other, UNPLUG, other)
    assert found == values


def test_no_device_reaches_what_was_unplugged(monkeypatch) -> None:
    header = Header(host="qemu-11", layout=LAYOUT)
    program = Program(header, (PLUG, call(2), UNPLUG))
    assert run_program(program).outcome.violations == ()

    def keep(self: Qemu11UserSpace, slot: Slot) -> int:
        self.memory.unplug(slot)
        return 0

    monkeypatch.setattr(Qemu11UserSpace, "give_slot", keep)
    (found,) = run_program(program).outcome.violations
    assert (found.check, found.op) == ("guest-memory", 2)
    assert "is gone and mapped for a device (2 frames)" in found.message


def test_a_host_with_kvms_half_of_its_own_is_told_by_take_slot(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost\n"
        "class Own(MapGpaRangeHost):\n"
        "    def take_slot(self, slot):\n"
        "        return 0 if slot.gpa == 63 << 20 else -5\n"
    )
    assert wrong(path, "Own", PLUG, PLUG, call(1)) == ([0, -EEXIST, 0], [])


def test_a_layout_with_hot_plug_brings_the_operation_into_campaigns():
    assert [part.kind for part in parts_of(LAYOUT, 64)] == ["slot", "slot", "plug"]
    assert slots_of(Header(layout=LAYOUT))[-1].end == 63 * MIB
    assert pluggable_of(Header(layout=LAYOUT)) == (Slot(63 * MIB, MIB),)
    options = Options("hypercall", host=f"{CORRECT}:Handler", layout=LAYOUT)
    target = target_of(options)
    layout = header_of(target, options).layout
    assert OpKind.HOST_COMMIT_SLOT in target.kinds_with(False, layout)
    assert OpKind.UNPLUG_SLOT in target.kinds_with(False, layout)
    assert OpKind.HOST_COMMIT_SLOT not in target.kinds_with(False, "hole@63M+1M")
