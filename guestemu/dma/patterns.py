# SPDX-License-Identifier: GPL-2.0-or-later
"""Built-in patterns: the events of a driver's life, without a recording.

A pattern is written `NAME[:key=value,...]`, several joined by `+`, for example
`nvme:queues=4,scenario=reset,rounds=3+e1000`. Scenarios (facts B10, B11): `probe` binds the driver
and leaves it; `unbind` also gives everything back; `unplug` does that and probes a new device in
the same slot; `resize` replaces the rings by ones of half the size and back, each time allocating
the new before freeing the old; `reset` frees the rings and allocates them again; `io` works: pool
pages come with the first round and stay, buffers of single commands come and go. `kexec` probes
again without having freed anything: a new kernel's allocations, while the host still has the old
ones on record (A45; the new kernel's page tables and its reset of the records are not replayed).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SIZE, get_order
from guestemu.abi.errors import InputError
from guestemu.dma.drivers import DRIVERS
from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.dma.layout import Driver, Layout, Parameter, Want

MAX_PATTERNS: Final = 64
_ROUNDS: Final = Parameter(1, 1, 1_000_000, "how often the scenario's round happens")
_FIRST_ADDRESS: Final = 1 << 24
_EVENT_NS: Final = 10_000
_PHASE_NS: Final = 1_000_000_000


class DriverScenario(enum.Enum):
    """What happens to a driver."""

    PROBE = "probe"
    UNBIND = "unbind"
    RESIZE = "resize"
    RESET = "reset"
    UNPLUG = "unplug"
    IO = "io"
    KEXEC = "kexec"


class Pattern(msgspec.Struct, frozen=True):
    """A driver with its parameters' values and what happens to it."""

    name: str
    values: dict[str, int]
    scenario: DriverScenario = DriverScenario.PROBE
    rounds: int = 1

    @property
    def driver(self) -> Driver:
        """The driver's formulas."""
        return DRIVERS[self.name]


def is_pattern(text: str) -> bool:
    """Whether `text` starts with the name of a built-in pattern."""
    return text.split("+")[0].split(":")[0] in DRIVERS


def parse_patterns(text: str) -> tuple[Pattern, ...]:
    """Reads `NAME[:key=value,...][+NAME...]`. InputError names the wrong part."""
    parts = text.split("+")
    if len(parts) > MAX_PATTERNS:
        raise InputError(f"pattern {text[:40]!r}: {len(parts)} drivers; use {MAX_PATTERNS} at most")
    return tuple(_parse_one(part) for part in parts)


def _parse_one(text: str) -> Pattern:
    name, _, settings = text.partition(":")
    driver = DRIVERS.get(name)
    if driver is None:
        raise InputError(f"pattern {name!r}: no such pattern; use {', '.join(DRIVERS)}")
    values = {key: parameter.default for key, parameter in driver.parameters.items()}
    scenario = DriverScenario.PROBE
    rounds = _ROUNDS.default
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        if key == "scenario":
            scenario = _parse_scenario(name, driver, value)
        elif key == "rounds":
            rounds = _parse_number(name, key, value, _ROUNDS)
        elif key in values:
            values[key] = _parse_number(name, key, value, driver.parameters[key])
        else:
            known = ", ".join((*values, "scenario", "rounds"))
            raise InputError(f"pattern {name}: no parameter {key!r}; use {known}")
    return Pattern(name, values, scenario, rounds)


def _parse_scenario(name: str, driver: Driver, value: str) -> DriverScenario:
    try:
        scenario = DriverScenario(value)
    except ValueError:
        known = ", ".join(scenario.value for scenario in DriverScenario)
        raise InputError(f"pattern {name}: no scenario {value!r}; use {known}") from None
    if scenario is DriverScenario.RESIZE and driver.ring_size is None:
        raise InputError(f"pattern {name}: has no ring to resize; use scenario=reset")
    return scenario


def _parse_number(name: str, key: str, value: str, parameter: Parameter) -> int:
    is_number = value.isascii() and value.isdigit() and len(value) < 12
    if not is_number or not parameter.low <= int(value) <= parameter.high:
        raise InputError(
            f"pattern {name}: {key}={value[:20]} is not a number from {parameter.low} to "
            f"{parameter.high} ({parameter.help})"
        )
    return int(value)


class _Buffer(msgspec.Struct, frozen=True, gc=False):
    dma_addr: int
    size: int


class _Stage:
    """Makes records: numbers them, moves the clock, gives each buffer an address of its own."""

    def __init__(self) -> None:
        self._line = 0
        self._time_ns = 0
        self._next_address = _FIRST_ADDRESS
        self.device = ""
        self.module = ""

    def mark(self, name: str) -> Mark:
        self._time_ns += _PHASE_NS
        self._line += 1
        return Mark(self._line, self._time_ns, 0, "guestemu", name)

    def alloc(self, wants: tuple[Want, ...], into: list[_Buffer]) -> Iterator[Alloc]:
        for want in wants:
            block = PAGE_SIZE << get_order(want.size)
            address = -(-self._next_address // block) * block
            self._next_address = address + block
            into.append(_Buffer(address, want.size))
            yield Alloc(
                *self._tick(),
                self.device,
                self.module,
                address,
                want.size,
                want.gfp,
                origin=want.origin,
            )

    def free(self, buffers: list[_Buffer]) -> Iterator[Free]:
        """Frees and forgets the buffers in the order they were allocated."""
        for buffer in buffers:
            yield Free(*self._tick(), self.device, self.module, buffer.dma_addr, buffer.size)
        buffers.clear()

    def _tick(self) -> tuple[int, int, int, str]:
        self._line += 1
        self._time_ns += _EVENT_NS
        return self._line, self._time_ns, 0, "guestemu"


def pattern_events(patterns: tuple[Pattern, ...]) -> Iterator[Event]:
    """The events of the patterns, one after another, in bounded memory.

    Devices are called 0000:00:01.0, 0000:00:02.0 … and each phase begins with a mark
    `NAME-SCENARIO[-ROUND]`. Line numbers count records. Equal patterns give equal events.
    """
    stage = _Stage()
    for slot, pattern in enumerate(patterns, start=1):
        stage.device = f"0000:00:{slot:02x}.0"
        stage.module = pattern.driver.module
        yield from _life(stage, pattern)


def _life(stage: _Stage, pattern: Pattern) -> Iterator[Event]:
    layout = pattern.driver.layout(pattern.values)
    bound: list[_Buffer] = []
    rings: list[_Buffer] = []
    scenario = pattern.scenario
    yield from _probe(stage, pattern, layout, bound, rings)
    if scenario is DriverScenario.UNBIND:
        yield stage.mark(f"{pattern.name}-unbind")
        yield from stage.free(rings)
        yield from stage.free(bound)
    if scenario in (DriverScenario.RESIZE, DriverScenario.RESET):
        yield from _replace(stage, pattern, layout, rings)
    if scenario is DriverScenario.IO:
        yield from _work(stage, pattern, layout, bound)
    if scenario in (DriverScenario.UNPLUG, DriverScenario.KEXEC):
        for turn in range(1, pattern.rounds + 1):
            yield stage.mark(f"{pattern.name}-{scenario.value}-{turn}")
            if scenario is DriverScenario.UNPLUG:
                yield from stage.free(rings)
                yield from stage.free(bound)
            else:
                bound, rings = [], []
            yield from _probe(stage, pattern, layout, bound, rings)


def _probe(
    stage: _Stage,
    pattern: Pattern,
    layout: Layout,
    bound: list[_Buffer],
    rings: list[_Buffer],
) -> Iterator[Event]:
    """The driver is bound. Pool pages come now unless the scenario does I/O itself."""
    yield stage.mark(f"{pattern.name}-probe")
    yield from stage.alloc(layout.bound, bound)
    yield from stage.alloc(layout.rings, rings)
    if pattern.scenario is not DriverScenario.IO:
        yield from stage.alloc(layout.pools, bound)


def _replace(
    stage: _Stage, pattern: Pattern, layout: Layout, rings: list[_Buffer]
) -> Iterator[Event]:
    other = _resized(pattern)
    for turn in range(1, pattern.rounds + 1):
        yield stage.mark(f"{pattern.name}-{pattern.scenario.value}-{turn}")
        fresh: list[_Buffer] = []
        if pattern.scenario is DriverScenario.RESIZE:
            wants = (other if turn % 2 else layout).rings
            yield from stage.alloc(wants, fresh)
            yield from stage.free(rings)
        else:
            yield from stage.free(rings)
            yield from stage.alloc(layout.rings, fresh)
        rings = fresh


def _work(stage: _Stage, pattern: Pattern, layout: Layout, bound: list[_Buffer]) -> Iterator[Event]:
    """Rounds of I/O: only the first one asks for pool pages."""
    for turn in range(1, pattern.rounds + 1):
        yield stage.mark(f"{pattern.name}-io-{turn}")
        if turn == 1:
            yield from stage.alloc(layout.pools, bound)
        for want in layout.commands:
            buffer: list[_Buffer] = []
            yield from stage.alloc((want,), buffer)
            yield from stage.free(buffer)


def _resized(pattern: Pattern) -> Layout:
    """The layout with rings of half the size, or of double where half is too small."""
    name = pattern.driver.ring_size
    if name is None:
        return pattern.driver.layout(pattern.values)
    size = pattern.values[name]
    low = pattern.driver.parameters[name].low
    halved = size // 2 if size // 2 >= low else size * 2
    return pattern.driver.layout({**pattern.values, name: halved})
