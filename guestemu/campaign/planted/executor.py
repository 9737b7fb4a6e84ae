# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes in, violations out, for one configuration and one target of the zoo."""

from __future__ import annotations

from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.planted.bug import Configuration
from guestemu.campaign.planted.targets import ZooTarget
from guestemu.campaign.targets import Target
from guestemu.program.ops import Op


def campaign_target(target: ZooTarget, configuration: Configuration) -> Target:
    """`target` as the engines know targets."""
    return Target(
        name=target.name,
        summary=target.summary,
        kinds=target.kinds,
        max_ops=target.max_ops,
        header=configuration.header,
    )


class ZooExecutor(Executor):
    """An `Executor` of a configuration's testbed with the target's limiter."""

    def __init__(self, target: ZooTarget, configuration: Configuration, feedback: Feedback) -> None:
        super().__init__(
            campaign_target(target, configuration),
            configuration.header,
            target.kinds,
            feedback,
            testbed=configuration.build(),
        )
        self._limit = target.limit

    def decode(self, data: bytes) -> tuple[Op, ...]:
        """The program that `data` stands for on this target."""
        return self._limit(super().decode(data))
