# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast the real KVM answers: start-up, a client in C, the model alone, and a campaign.

The client (harness/client.c) posts the very batches that the campaign posted, on the same channel,
and does nothing with the replies. Both take turns, as other load on the machine changes.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from guestemu.host.kvm.kernels import KvmKernel
from guestemu.oracle.campaign import BATCH, OracleCampaign
from guestemu.oracle.direct_model import DirectVm
from guestemu.oracle.generator import Generator
from guestemu.oracle.harness_build import build
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.matrix import config

_ROUNDS: Final = 3


class OracleSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Steps a second: `channel` of the client in C, `model` without a machine, `campaign` of all
    together, and its `ratio` to the client; `start_up` in seconds."""

    kernel: str
    steps: int
    start_up: float
    channel: float
    model: float
    campaign: float
    ratio: float


def measure(kvm: LiveKvm, kernel: KvmKernel, batches: int) -> OracleSpeed:
    """Measures with `batches` batches of steps in each of three rounds. The first batch of a round,
    which makes its VMs, does not count on either side."""
    client, _ = build("client")
    steps, together, alone = 0, 0.0, 0.0
    for seed in range(1, _ROUNDS + 1):
        campaign = OracleCampaign(kvm, kernel, seed=seed, say=lambda _: None, batch=BATCH)
        tape: list[bytes] = []
        kvm.tape = tape
        campaign.run(BATCH)
        start, already = time.perf_counter(), campaign.sums.steps
        campaign.run(already + batches * BATCH)
        together += time.perf_counter() - start
        kvm.tape = None
        steps += campaign.sums.steps - already
        alone += kvm.play(tape, client)
    return OracleSpeed(
        kernel=kvm.machine.release,
        steps=steps,
        start_up=kvm.start_up,
        channel=steps / alone,
        model=_model(kernel, batches),
        campaign=steps / together,
        ratio=alone / together,
    )


def _model(kernel: KvmKernel, batches: int) -> float:
    draw, vm = Generator(1), DirectVm(config(exits=1 << 12), kernel)
    acts = [draw.act() for _ in range(batches * BATCH)]
    start = time.perf_counter()
    for act in acts:
        vm.do(act)
    return len(acts) / (time.perf_counter() - start)
