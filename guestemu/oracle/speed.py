# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast the real KVM answers: start-up, the channel alone, the model alone, and both together.

The channel alone is what a client without any work of its own gets: batches that were packed before
are posted and their replies left unread. The campaign does the same steps with everything it does.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from guestemu.host.kvm.kernels import KvmKernel
from guestemu.oracle import wire
from guestemu.oracle.campaign import BATCH, OracleCampaign
from guestemu.oracle.direct_model import DirectVm
from guestemu.oracle.generator import Generator
from guestemu.oracle.live import LiveKvm
from guestemu.oracle.matrix import config
from guestemu.oracle.steps import pack_config, pack_request

_SEED: Final = 1


class OracleSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Steps a second, and `ratio` of the campaign to the channel alone; `start_up` in seconds."""

    kernel: str
    steps: int
    start_up: float
    channel: float
    model: float
    campaign: float
    ratio: float


def measure(kvm: LiveKvm, kernel: KvmKernel, batches: int) -> OracleSpeed:
    """Measures with `batches` batches of steps each, of the same kinds. The channel is measured
    before and after the campaign, and the mean taken: other load on the machine changes."""
    before = _channel(kvm, batches)
    campaign = OracleCampaign(kvm, kernel, seed=_SEED, say=lambda _: None)
    campaign.run(BATCH)  # the first batch makes its VMs
    start, already = time.perf_counter(), campaign.sums.steps
    campaign.run(already + batches * BATCH)
    together = (campaign.sums.steps - already) / (time.perf_counter() - start)
    channel = (before + _channel(kvm, batches)) / 2
    return OracleSpeed(
        kernel=kvm.machine.release,
        steps=batches * BATCH,
        start_up=kvm.start_up,
        channel=channel,
        model=_model(kernel, batches),
        campaign=together,
        ratio=together / channel,
    )


def _channel(kvm: LiveKvm, batches: int) -> float:
    draw = Generator(_SEED)
    kvm.set_config(0, pack_config(config(exits=1 << 12)))
    records = [pack_request(draw.act(), 0, wire.QUICK) for _ in range(BATCH)]
    kvm.run(records[:1])
    start = time.perf_counter()
    for _ in range(batches):
        kvm.run(records)
    return batches * BATCH / (time.perf_counter() - start)


def _model(kernel: KvmKernel, batches: int) -> float:
    draw, vm = Generator(_SEED), DirectVm(config(exits=1 << 12), kernel)
    acts = [draw.act() for _ in range(batches * BATCH)]
    start = time.perf_counter()
    for act in acts:
        vm.do(act)
    return len(acts) / (time.perf_counter() - start)
