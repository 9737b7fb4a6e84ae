# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel in user space, migrated while one of its devices works for a driver.

The device is stopped at a chosen point of a request (quiesce.py), and the guest at the next basic
block. Its pages go to a machine with another memory key, each by the source host's record: what the
record has as private is decrypted and encrypted anew, what it has as shared goes as the bytes that
DRAM holds. CPU, page states, devices with their media, the work that the device has not done and
the record follow. Both guests then go on, and the one that stayed says what has to happen to the
one that moved.

A host whose record misses a page of the request sends it through the wrong view: `LOSABLE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa, Gva, gpa_text
from guestemu.abi.errors import InputError
from guestemu.events.base import Event
from guestemu.events.devices import DeviceAccess
from guestemu.guest.linux.userland.running import (
    COMMAND_BUDGET,
    CommandFailed,
    Patience,
    RunningKernel,
)
from guestemu.guest.linux.userland.session import Setting, Userland
from guestemu.guest.linux.userland.snapshot import capture_run, take_over
from guestemu.host.base import Host
from guestemu.machine.devices.disk import SECTOR
from guestemu.machine.devices.quiesce import HeldWork, Quiescence
from guestemu.machine.paging import walk
from guestemu.migration.endpoints import used_frames
from guestemu.migration.links import plain_link
from guestemu.runner.told import tell_exits

DATA: Final = "data"
QUEUE: Final = "queue"
LOSABLE: Final[dict[str, str]] = {
    DATA: "the page with the device's longest access to data in its first request",
    QUEUE: "the page with its longest access to its queues in that request",
}
"""Pages that a record can be made to miss, by name."""

RIGHT: Final = "right"
WRONG: Final = "wrong"
LOST: Final = "lost"
STOPPED: Final = "stopped"
ABSENT: Final = "absent"

_DESTINATION_KEY: Final = bytes(range(0x60, 0x70))
_SHOWN: Final = 8
_WAITS: Final = "the driver waits for an answer that was lost"


class LostPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page that holds something else at the destination: how it was sent and what the guest's
    page tables say; `use` is the DMA mapping that covers it, empty for none."""

    gfn: int
    sent_private: bool
    is_private: bool
    use: str

    @property
    def text(self) -> str:
        """One line."""
        guest, sent = (
            "private" if one else "shared" for one in (self.is_private, self.sent_private)
        )
        used = f", {self.use}" if self.use else ""
        return f"{gpa_text(self.gfn)}: {guest} in the guest, sent as {sent}{used}"


class DeviceMigration(msgspec.Struct, frozen=True, kw_only=True):
    """One migration with `device` stopped at `point`.

    `outcome` is "right" (every page arrived, and commands, events and bytes are those of the guest
    that stayed), "wrong" (a command returned something else), "lost" (a page did not arrive, or the
    device broke a rule, without a command that shows it), "stopped" (the kernel does not come
    back), "absent" (the device did not get to the point); `text` says why.
    `private` and `shared` count pages sent, `held` what the device had not done, `loss` is the page
    that the record was made to miss (-1: none), `lost` are those that did not arrive.
    """

    device: str
    point: str
    outcome: str
    text: str = ""
    function: str = ""
    private: int = 0
    shared: int = 0
    held: str = ""
    loss: int = -1
    lost: tuple[LostPage, ...] = ()
    violations: tuple[str, ...] = ()

    @property
    def is_wrong(self) -> bool:
        """Whether something was lost, or nothing was shown."""
        return self.outcome != RIGHT


class _End(msgspec.Struct, frozen=True):
    """What a guest shows after the point: results of commands, the hash of its events."""

    results: tuple[tuple[int, bytes], ...]
    violations: tuple[str, ...]
    event_hash: str
    stopped: str = ""


class DeviceMigrations:
    """Migrations of one kernel, from the checkpoint at which PID 1 waits. `host` keeps the source's
    record; `commands` are PID 1's, by default a read of 512 bytes from the device."""

    def __init__(
        self, userland: Userland, image: Path, setting: Setting, host: Host, lose: str = ""
    ) -> None:
        """Starts the kernel. Raises `InputError`."""
        self._userland, self._image, self._setting = userland, image, setting
        self._host = host
        self._lose = lose
        self.source = self._start()
        self._is_used = False

    def _start(self) -> RunningKernel:
        source = self._userland.start(self._image, self._setting)
        source.checkpoint()
        return source

    def _unused(self) -> RunningKernel:
        """The source as it was at first, which is about to run. With several CPUs it is started
        anew: after a rollback a kernel with vmxnet3 sends by the other queue than in the first run
        (docs/userland.md)."""
        if self._is_used and self._setting.cpus == 1:
            self.source.rollback()
        elif self._is_used:
            self.close()
            self.source = self._start()
        self._is_used = True
        return self.source

    def close(self) -> None:
        """Frees the source."""
        self.source.machine.close()

    def migrate(self, name: str, point: str, commands: Sequence[str] = ()) -> DeviceMigration:
        """One migration: the device `name` is stopped at `point` of the first command in which it
        gets there. Raises `InputError` for a device that the guest does not have."""
        devices = self.source.hardware.devices
        if name not in devices:
            raise InputError(f"device {name}: this guest has {', '.join(devices)}")
        device = devices[name]
        if not commands and not device.NODE:
            raise InputError(f"device {name}: it has no file to read from")
        todo = tuple(commands) or (device.read_command(SECTOR, 0),)
        loss = self._page_to_lose(name, todo)
        source = self._unused()
        head = DeviceMigration(device=name, point=point, outcome=ABSENT, loss=loss)
        quiescence = Quiescence(
            source.hardware.devices[name],
            point,
            source.machine.ram,
            source.note,
            source.hardware.look_soon,
        )
        try:
            rest = self._go_to_point(todo, quiescence)
            if rest is None:
                return msgspec.structs.replace(head, text="the device does not get there")
            return self._move(head, quiescence, rest)
        finally:
            quiescence.end()

    # The source -------------------------------------------------------------------------------

    def _page_to_lose(self, name: str, commands: Sequence[str]) -> int:
        """The frame that `LOSABLE` describes, by a run that is not migrated; -1 for none."""
        if not self._lose:
            return -1
        source = self._unused()
        touched: list[DeviceAccess] = []

        def see(event: Event) -> None:
            if isinstance(event, DeviceAccess) and event.device == name:
                touched.append(event)

        source.listeners.append(see)
        try:
            for command in commands:
                source.command(command)
        finally:
            source.listeners.remove(see)
        wanted = [one for one in _first_request(touched) if one.is_payload == (self._lose == DATA)]
        if not wanted:
            raise InputError(f"--lose {self._lose}: the device {name} touches no such page")
        most = max(wanted, key=lambda access: access.size)  # of equal ones the first
        return most.gpa >> PAGE_SHIFT

    def _go_to_point(
        self, commands: Sequence[str], quiescence: Quiescence
    ) -> tuple[str, ...] | None:
        """Runs to the point; the commands behind the one that goes on. None without arrival."""
        source = self.source
        for index, command in enumerate(commands):
            ended = source.begin(command, until=lambda: quiescence.is_stopped)
            if ended.reason == "until":
                return tuple(commands[index + 1 :])
            if ended.reason != "idle":
                raise CommandFailed(command, ended)
        return None

    def _record(self, loss: int) -> set[int]:
        """The frames that the source's host has as shared."""
        source = self.source
        frames = source.machine.ram.frames
        self._host.take_back()
        self._host.reset(frames)
        tell_exits(self._host, source.recorder.exits, source.machine.current)
        private = self._host.private_map()
        return {gfn for gfn in range(frames) if not private[gfn]} - {loss}

    # There ------------------------------------------------------------------------------------

    def _move(
        self, head: DeviceMigration, quiescence: Quiescence, rest: tuple[str, ...]
    ) -> DeviceMigration:
        source, work = self.source, quiescence.work
        where = source.where
        target = self._userland.empty(self._image, self._setting, _DESTINATION_KEY)
        try:
            shared = self._record(head.loss)
            sent, lost = self._send(target, shared)
            take_over(target, capture_run(source))
            target.rules.restore((frozenset(shared), 0))
            quiescence.end()
            moved = _go_on(target, head.device, work, rest)
            stayed = _go_on(source, head.device, work, rest)
        finally:
            target.machine.close()
        outcome, text = _compare(moved, stayed, lost)
        private = sum(sent.values())
        return msgspec.structs.replace(
            head,
            outcome=outcome,
            text=text,
            function=where,
            private=private,
            shared=len(sent) - private,
            held=_held(work),
            lost=lost,
            violations=moved.violations,
        )

    def _send(
        self, target: RunningKernel, shared: set[int]
    ) -> tuple[dict[int, bool], tuple[LostPage, ...]]:
        """Sends every page that holds something; how each was sent, and those that hold something
        else at the destination."""
        source = self.source
        ram = source.machine.ram
        target.machine.watch_memory(())
        link = plain_link(ram, target.machine.ram)
        # A shared page of zeros was never written, and is not what an unsent page reads as.
        frames = sorted(used_frames(ram) | set(ram.shared_current()))
        tables = _private_in_tables(source, frames)
        written_shared = self._written_shared()
        sent = {gfn: gfn not in shared for gfn in frames}
        contents = {}
        for gfn in frames:
            is_private = tables.get(gfn, True)
            if is_private != (gfn in written_shared):  # else nothing in the page is defined
                contents[gfn] = is_private, ram.read(Gpa(gfn << PAGE_SHIFT), PAGE_SIZE, is_private)
            link.deliver(link.send(Gfn(gfn), sent[gfn]))
        lost = tuple(
            LostPage(
                gfn=gfn, sent_private=sent[gfn], is_private=is_private, use=_use_of(source, gfn)
            )
            for gfn, (is_private, content) in contents.items()
            if target.machine.ram.read(Gpa(gfn << PAGE_SHIFT), PAGE_SIZE, is_private) != content
        )
        return sent, lost

    def _written_shared(self) -> set[int]:
        """Frames that were last written through the shared view; a TD has both views of a page, and
        its own page states say which one it uses."""
        td = self.source.platform.td
        return set(self.source.machine.ram.shared_current() if td is None else td.sept.shared())


def _first_request(accesses: Sequence[DeviceAccess]) -> Sequence[DeviceAccess]:
    """The accesses up to the completion of the first request: the first store into a queue behind
    an access to data."""
    has_moved = False
    for index, access in enumerate(accesses):
        has_moved |= access.is_payload
        if has_moved and access.is_write and not access.is_payload:
            return accesses[: index + 1]
    return accesses


def _private_in_tables(running: RunningKernel, frames: Sequence[int]) -> dict[int, bool]:
    """What the direct map says of each of `frames` that it maps."""
    machine = running.machine
    vcpu = machine.current
    symbol = running.kernel.address("page_offset_base")
    base = int.from_bytes(vcpu.read_memory(Gva(symbol), 8) or b"", "little")
    root = Gpa(vcpu.read_register("cr3") & ~0xFFF & ~machine.pte_cbit)
    found = {}
    for gfn in frames:
        leaf = walk(machine.ram, machine.bit.mask, root, Gva(base + (gfn << PAGE_SHIFT)))
        if leaf.is_present:
            found[gfn] = machine.bit.is_private(leaf.entry)
    return found


def _use_of(running: RunningKernel, gfn: int) -> str:
    """The DMA mapping that covers a part of the page."""
    start, end = gfn << PAGE_SHIFT, gfn + 1 << PAGE_SHIFT
    for span in running.mappings.live:
        if span.gpa < end and start < span.gpa + span.size:
            return f"{span.event} of {span.device}"
    return ""


def _go_on(running: RunningKernel, device: str, work: HeldWork, rest: Sequence[str]) -> _End:
    """The device does what it has not done, PID 1 ends its command and carries out the rest."""
    done, broken = len(running.results), len(running.rules.violations)
    stopped = ""
    running.release(device, work)
    ended = running.run(COMMAND_BUDGET, Patience(running).is_over)
    if ended.reason != "idle":
        stopped = _WAITS if ended.reason == "until" else ended.text
    try:
        for command in () if stopped else rest:
            running.command(command, until=Patience(running).is_over)
    except CommandFailed as failed:
        stopped = str(failed)
    return _End(
        tuple((result.value, result.data) for result in running.results[done:]),
        tuple(f"{one.rule}: {one.text}" for one in running.rules.violations[broken:]),
        running.event_hash,
        stopped,
    )


def _compare(moved: _End, stayed: _End, lost: Sequence[LostPage]) -> tuple[str, str]:
    """Outcome and reason."""
    if moved.stopped:
        return STOPPED, moved.stopped
    for (value, data), (expected, content) in zip(moved.results, stayed.results, strict=False):
        if value != expected:
            return WRONG, f"a command returned {value}, in the guest that stayed {expected}"
        if data != content:
            at = next(at for at in range(len(data)) if data[at] != content[at])
            there, here = (one[at : at + _SHOWN].hex() for one in (data, content))
            return WRONG, f"byte {at} and on: {there}, in the guest that stayed {here}"
    if lost:
        return LOST, f"{len(lost)} of the pages did not arrive"
    if moved.violations:
        return LOST, moved.violations[0]
    if moved.event_hash != stayed.event_hash:
        return WRONG, "other events than in the guest that stayed"
    return RIGHT, ""


def _held(work: HeldWork) -> str:
    """What the device had not done, in words."""
    sizes: dict[str, int] = {}
    for store in work.stores:
        sizes[store.part] = sizes.get(store.part, 0) + len(store.data)
    parts = [f"{part} ({size} bytes)" for part, size in sizes.items()]
    if work.level is not None:
        parts.append("interrupt")
    parts += [f"message {entry}" for entry, _, _ in work.messages]
    parts += [f"doorbell {offset:#x} = {value}" for offset, _, value in work.doorbells]
    return ", ".join(parts)
