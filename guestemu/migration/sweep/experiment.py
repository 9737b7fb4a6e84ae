# SPDX-License-Identifier: GPL-2.0-or-later
"""One scenario with everything that it takes to migrate it at any instruction, thousands of times.

Two machines take part in every migration: the source only steps, the destination is put back to
what a first pass over all of memory left in it, takes the frames that the source has written since,
and runs on. A third ran once, undisturbed, and is what the destination is compared with; a fourth
recorded the window. They all began as the same guest, which the kernel's loader booted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa
from guestemu.abi.x86 import Mode
from guestemu.guest.base import BootExit
from guestemu.guest.linux.load import LOADER
from guestemu.host.kvm.tdx_map_gpa import KVM_7_2, TdxKvm
from guestemu.machine.exits import Exit
from guestemu.machine.machine import Machine, MachineConfig
from guestemu.machine.memory import GuestRam
from guestemu.migration.links import Packet, PlainReceiver, PlainSender
from guestemu.migration.stepping import Stepper
from guestemu.migration.sweep.connection import Connection, connect_plain
from guestemu.migration.sweep.host import StatusHost
from guestemu.migration.sweep.recording import WindowRecording, record_window
from guestemu.migration.sweep.reference import UndisturbedRun
from guestemu.migration.sweep.scenario import SweepScenario, Variant, place_scenario
from guestemu.migration.sweep.station import Station, send_frames, state_parts, touched_frames
from guestemu.migration.sweep.vmsa_link import VmsaPacket
from guestemu.migration.transfer import MachineState, capture_state

GUEST_BUDGET: Final = 10_000_000
_LONGEST_FUNCTION: Final = 1 << 16
DESTINATION_KEY: Final = bytes(range(0x40, 0x50))
"""A plain destination's memory key: fixed, so that a count does not depend on luck with a byte of
garbage. Firmware draws its own."""

Connect = Callable[[Machine, Machine], Connection]
"""Makes the way from a source's machine to a destination's, whose RAM is still empty."""


class Departure(msgspec.Struct, frozen=True):
    """The source, stopped with `index` instructions behind it: its state, the log of its exits, the
    frames it has written since the first pass, the status of all frames, the page as the guest
    reads it. With a `vmsa` the CPU is in there and not in `state`."""

    index: int
    state: MachineState
    vmsa: VmsaPacket | None
    log: list[BootExit]
    dirty: tuple[int, ...]
    shared: bytes
    page: bytes


class Experiment:
    """See the module's docstring. Making one takes about a second (the image's first time: more).

    `scenario` and `recording` tell what happens in the window.
    """

    def __init__(
        self,
        image: Path,
        config: MachineConfig,
        variant: Variant,
        connect: Connect = connect_plain,
    ) -> None:
        guest = LOADER.guest(image, config, GUEST_BUDGET)
        host = StatusHost(config.frames, guest.boot_exits)
        guest.machine.hooks.handler = host
        self.kernel = guest.kernel
        self._functions = sorted((start, name) for name, start in self.kernel.symbols.items())
        self.config = config
        try:
            self.scenario: SweepScenario = place_scenario(guest, variant)
            host.exits.clear()
            self._start = capture_state(guest.machine, state_parts(guest.platform, host))
            self._shared = bytes(host.shared)
            self._pages = send_frames(
                PlainSender(guest.machine.ram), touched_frames(guest.machine), host.shared
            )
        finally:
            guest.reset()
        recorder = self._copy()
        self.recording: WindowRecording = record_window(recorder, self.scenario)
        recorder.close()
        self._stays = self._copy()
        self.reference = UndisturbedRun(self._stays, self.scenario.end)
        self.source = self._copy()
        self._stepper = Stepper(self.source.machine)
        self.page_at_end = bytes([self.scenario.fill]) * PAGE_SIZE
        self.destination = Station(
            self.kernel, msgspec.structs.replace(config, key=DESTINATION_KEY)
        )
        self._prepare_destination(connect)

    def _copy(self) -> Station:
        """A station with the guest at its start, under the source's own key."""
        station = Station(self.kernel, self.config)
        station.stop_at(self.scenario.end)
        station.receive(PlainReceiver(station.machine.ram), self._pages)
        station.take_over(self._start)
        station.settle()
        return station

    def _prepare_destination(self, connect: Connect) -> None:
        """The first pass: every frame that holds anything, by the link."""
        station = self.destination
        station.stop_at(self.scenario.end)
        station.watch(self.scenario.window_end, self._see_window_end)
        connection = connect(self.source.machine, station.machine)
        self._link = connection.link
        self._connection = connection
        self._vmsa = connection.vmsa
        station.machine.current.enter(Mode.LONG64, 0)
        self._own_vcpus = capture_state(station.machine).vcpus
        self._at_window_end: bytes | None = None
        for page in self._pages:
            if page.gfn in connection.own:
                continue
            packet = self._link.send(Gfn(page.gfn), page.is_private)
            station.receive(self._link.receiver, (packet,))
        station.settle()
        self.source.settle()  # sending converts pages, which is not a store

    # The source ---------------------------------------------------------------------------------

    def cuts(self) -> list[int]:
        """The stops between two chunks of a TD's MapGPA: the instructions behind its TDCALL."""
        if not self.scenario.variant.chunked:
            return []
        return [step.index + 1 for step in self.recording.events if step.kind == "tdcall"]

    def leave(self, index: int, cut: TdxKvm | None = None) -> Departure:
        """The source with `index` instructions behind it. Going back starts it anew. `cut`: the
        last of them is a TDCALL whose MapGPA this KVM leaves between two chunks."""
        station = self.source
        if index < self._stepper.index or (cut is not None and index == self._stepper.index):
            self._begin_again()
        if cut is not None:
            self._stepper.to(index - 1)
            station.host.kvm = cut
        self._stepper.to(index)
        station.host.kvm = KVM_7_2
        ram = station.machine.ram
        state, vmsa = station.capture(), None
        self._connection.begin()
        if self._vmsa is not None:
            vmsa = self._vmsa.send(station.machine)
            state = msgspec.structs.replace(state, vcpus=())
        return Departure(
            index,
            state,
            vmsa,
            list(station.host.exits),
            tuple(sorted(ram.dirty_frames() - self._connection.own)),
            bytes(station.host.shared),
            self._page(ram, self.recording.is_private_at(index)),
        )

    def _begin_again(self) -> None:
        self.source.reset()
        self.source.take_over(self._start)
        self._stepper.index = 0

    @property
    def function(self) -> str:
        """The kernel's function that the source is in; "scenario" for the code that calls it."""
        starts = self._functions
        rip = self.source.machine.current.read_register("rip")
        place = bisect_right(starts, rip, key=itemgetter(0)) - 1
        is_known = place >= 0 and rip - starts[place][0] < _LONGEST_FUNCTION
        return starts[place][1] if is_known else "scenario"

    def packets(self, departure: Departure, shared: bytes | None = None) -> list[Packet]:
        """The written frames by status (`shared`: by another one). Before the source goes on."""
        return send_frames(self._link.sender, departure.dirty, shared or departure.shared)

    def packet(self, is_private: bool) -> Packet:
        """The scenario's page alone, as it is at the source now."""
        return self._link.send(Gfn(self.scenario.gfn), is_private)

    def difference(self, ended: Exit, departure: Departure) -> str | None:
        """What is different in the destination's guest, whose run ended with `ended`, from the one
        that stayed; None if nothing is."""
        own = self._connection.own
        return self.reference.difference(self.destination, ended, departure.log, own)

    @property
    def first_status(self) -> bytes:
        """The status of all frames when the window begins."""
        return self._shared

    # The destination ----------------------------------------------------------------------------

    def arrive(self, departure: Departure, packets: Iterable[Packet]) -> bytes:
        """Puts the guest together; the page as it then reads it, before anything runs."""
        station = self.destination
        station.reset()
        if self._vmsa is not None and departure.vmsa is not None:
            self._vmsa.receive(departure.vmsa)
        station.receive(self._link.receiver, packets)
        if self._vmsa is None or departure.vmsa is None:
            station.take_over(departure.state)
        else:
            station.take_over(msgspec.structs.replace(departure.state, vcpus=self._own_vcpus))
            self._vmsa.enter(station.machine)
        is_private = self.recording.is_private_at(departure.index)
        return self._page(station.machine.ram, is_private)

    def go_on(self) -> tuple[Exit, bytes | None]:
        """Runs the arrived guest to its end: the exit, and the page at the end of the window (None
        where the guest did not get there)."""
        self._at_window_end = None
        ended = self.destination.go_on()
        return ended, self._at_window_end

    def _see_window_end(self) -> None:
        is_private = self.recording.is_private_at(self.recording.length)
        self._at_window_end = self._page(self.destination.machine.ram, is_private)

    def _page(self, ram: GuestRam, is_private: bool) -> bytes:
        return ram.read(Gpa(self.scenario.gfn << PAGE_SHIFT), PAGE_SIZE, is_private)

    def close(self) -> None:
        """Frees the machines."""
        self._connection.close()
        for station in (self.source, self.destination, self._stays):
            station.close()
