# SPDX-License-Identifier: GPL-2.0-or-later
"""A signal ends a run of the CPU wherever it comes; nothing goes to C and is lost there."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator

import pytest
from bare_machine import (
    BUDGET,
    CODE,
    CPUID,
    DATA,
    FRAMES,
    HLT,
    PRIVATE,
    VMMCALL,
    Answers,
    Bare,
    mov,
    store,
)

from guestemu.machine.machine import MachineConfig
from guestemu.processes import EndSignals

OUT = b"\xe6\x80"
WRMSR = b"\x0f\x30"
GUEST = mov(0, 1) + VMMCALL + CPUID + OUT + store(PRIVATE + DATA, 7) + mov(0, 2) + VMMCALL + HLT


@pytest.fixture
def signals() -> Iterator[None]:
    """Without the collector: a callback of its own (Hypothesis installs one) or a finalizer would
    get the signal when it is their turn, and Python drops what they raise."""
    gc.collect()
    gc.disable()
    try:
        with EndSignals():
            yield
    finally:
        gc.enable()


class Tracer:
    """Raises SIGINT at bytecode number `at` that runs while it traces."""

    def __init__(self, at: int) -> None:
        self._left = at
        self.is_sent = False

    def __call__(self, frame, event, _argument):
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._left -= 1
            if self._left == 0:
                self.is_sent = True
                signal.raise_signal(signal.SIGINT)
        return self


def interrupted(bare: Bare, at: int) -> tuple[bool, bool]:
    """Runs GUEST with a signal at that bytecode: whether it was sent, whether the run raised."""
    bare.machine.rollback()
    bare.machine.hooks.errors.clear()
    tracer = Tracer(at)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        bare.machine.current.run(CODE, BUDGET)
    except KeyboardInterrupt:
        return tracer.is_sent, True
    finally:
        sys.settrace(before)
    return tracer.is_sent, False


@pytest.mark.parametrize("native", [True, False])
def test_a_signal_at_any_bytecode_ends_the_run(native, signals, monkeypatch):
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    bare = Bare(MachineConfig(frames=FRAMES, native_hooks=native))
    bare.machine.hooks.handler = Answers()
    bare.machine.hooks.port_out = lambda port, size, value: None
    bare.place(CODE, GUEST)
    bare.machine.checkpoint()
    at, results = 1, []
    while True:
        is_sent, raised = interrupted(bare, at)
        if not is_sent:
            break
        results.append(raised)
        at += 1
    assert len(results) > 300
    assert all(results)
    assert lost == []


def test_a_model_that_a_callback_calls_is_interrupted_at_once(signals):
    """One that never returns would otherwise need a second Ctrl-C."""
    after = []

    class Model:
        hypercall = staticmethod(lambda call: loop())

    text = (
        "def loop():\n    signal.raise_signal(signal.SIGINT)\n    after.append(1)\n    return 0\n"
    )
    names = {"__name__": "guestemu.host.slow", "signal": signal, "after": after}
    exec(text, names)
    loop = names["loop"]
    bare = Bare()
    bare.machine.hooks.handler = Model()
    bare.place(CODE, GUEST)
    with pytest.raises(KeyboardInterrupt):
        bare.machine.current.run(CODE, BUDGET)
    assert after == []
