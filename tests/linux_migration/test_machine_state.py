# SPDX-License-Identifier: GPL-2.0-or-later
"""What travels beside pages: contexts of all vCPUs, MSRs, parts."""

from __future__ import annotations

import msgspec
import pytest

from guestemu.abi.errors import InputError
from guestemu.abi.regions import Region
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.guest.registry import GuestSettings, load_guest
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.migration.transfer import MachineState, capture_state, restore_state
from tests.machine.bare_machine import HLT, Bare

SETTINGS = GuestSettings("snippet:6.1", 39, 64, 2, 100_000, True)


class Counter:
    """A `StatePart`."""

    def __init__(self, value: int) -> None:
        self.value = value

    def capture(self) -> bytes:
        return bytes([self.value])

    def restore(self, data: bytes) -> None:
        (self.value,) = data


@pytest.fixture
def pair():
    guests = load_guest(SETTINGS), load_guest(SETTINGS)
    for guest in guests:
        assert isinstance(guest, SnippetGuest)
        guest.machine.checkpoint()
    yield guests
    for guest in guests:
        guest.close()


def test_each_vcpu_keeps_its_registers(pair) -> None:
    source, destination = (guest.machine for guest in pair)
    for index in (0, 1):
        source.activate(index).write_register("r12", 0x1000 + index)
    source.msrs.platform[0x4B564D01] = 0x5001
    part, other = Counter(7), Counter(0)
    data = msgspec.msgpack.encode(capture_state(source, {"counter": part}))
    state = msgspec.msgpack.decode(data, type=MachineState)
    restore_state(destination, state, {"counter": other})
    assert destination.current.index == source.current.index == 1
    for index in (1, 0):
        assert destination.activate(index).read_register("r12") == 0x1000 + index
    assert destination.msrs.platform == {0x4B564D01: 0x5001}
    assert other.value == 7


def test_capturing_changes_nothing(pair) -> None:
    machine = pair[0].machine
    machine.activate(1).write_register("rbx", 77)
    first = capture_state(machine)
    assert capture_state(machine) == first
    assert machine.current.index == 1
    assert machine.current.read_register("rbx") == 77


ADD = b"\x48\x01\xd8"
ADC = b"\x48\x11\xd8"
STC = b"\xf9"
CLEAR = b"\x31\xc0"
NEXT_BLOCK = b"\xeb\x00"


def test_what_the_emulator_keeps_of_an_old_carry_is_no_state_of_the_cpu() -> None:
    """Both arithmetic instructions are overwritten, registers and flags are equal."""
    states = []
    for instruction in (ADC, ADD):
        bare = Bare()
        bare.run(STC + instruction + NEXT_BLOCK + CLEAR + HLT)
        states.append(capture_state(bare.machine))
    assert states[0] == states[1]


@pytest.mark.parametrize("rflags", [0x2, 0x8D7, 0x46, 0x283, 0x602, 0x202])
def test_every_arithmetic_flag_travels(rflags: int) -> None:
    source, destination = Bare().machine, Bare().machine
    source.current.write_register("rflags", rflags)
    restore_state(destination, capture_state(source))
    assert destination.current.read_register("rflags") == rflags
    assert source.current.read_register("rflags") == rflags


PUSHFQ_POP_RAX = b"\x9c\x58"


@pytest.mark.parametrize("rflags", [0x2, 0x8D7, 0x46, 0x283, 0x602])
def test_the_code_that_runs_next_sees_the_flags(rflags: int) -> None:
    source, destination = Bare(), Bare()
    source.machine.current.write_register("rflags", rflags)
    restore_state(destination.machine, capture_state(source.machine))
    destination.run(PUSHFQ_POP_RAX + HLT, enter=False)
    assert destination.machine.current.read_register("rax") == rflags


def test_a_restored_machine_runs(pair) -> None:
    source, destination = pair
    destination.machine.hooks.handler = BootRecorder()
    restore_state(destination.machine, capture_state(source.machine))
    outcome = destination.set_memory_decrypted(destination.gva(Region.D, 3), 1)
    assert outcome.value == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"emulator": "unicorn 1.0 5"}, "unicorn 1.0 5"),
        ({"vcpus": ()}, "0 vCPUs"),
        ({"parts": {"clock": b""}}, "clock"),
    ],
)
def test_a_state_of_something_else_is_refused(pair, change, words: str) -> None:
    state = msgspec.structs.replace(capture_state(pair[0].machine), **change)
    before = capture_state(pair[1].machine)
    with pytest.raises(InputError, match=words):
        restore_state(pair[1].machine, state)
    assert capture_state(pair[1].machine) == before


def test_a_stepper_counts_repetitions(experiment_of) -> None:
    """One REP STOSB of a page is 4096 instructions."""
    experiment = experiment_of("6.1")
    first, second = experiment.recording.stores[:2]
    experiment.leave(first.index + 1)
    machine = experiment.source.machine
    registers = [machine.current.read_register(name) for name in ("rcx", "rdi", "rip")]
    experiment.leave(second.index + 1)
    rcx, rdi, rip = (machine.current.read_register(name) for name in ("rcx", "rdi", "rip"))
    assert (rcx, rdi, rip) == (registers[0] - 1, registers[1] + 1, registers[2])
    experiment.leave(0)
