# SPDX-License-Identifier: GPL-2.0-or-later
"""The other arm of the comparison: atheris as its manual has it.

libFuzzer's own mutations of bytes and the coverage of Python byte-code that atheris instruments at
import, in all of guestemu; none of our counters, no op-aware mutation. What bytes mean, the
testbed, the checks and the budget are the same.
"""

from __future__ import annotations

from typing import Final

from guestemu.campaign.engines.base import Leave
from guestemu.campaign.session import Session, SessionOver

_SEED_MASK: Final = (1 << 31) - 1


class PlainEngine:
    """See the module's docstring. Has the interface of `guestemu.campaign.engines.base.Engine`."""

    name = "plain"
    summary = "atheris without our feedback and mutator"
    remedy = "the atheris package is not installed (pip install 'guestemu[fuzz]')"

    def is_available(self) -> bool:
        """Whether atheris can be imported."""
        import importlib.util

        return importlib.util.find_spec("atheris") is not None

    def run(self, session: Session, leave: Leave) -> None:
        """See `Engine.run`; always ends by `leave`."""
        import atheris

        def test_one_input(data: bytes) -> None:
            try:
                session.execute(data)
            except SessionOver:
                leave(None)
            except BaseException as error:
                leave(error)

        arguments = [
            "guestemu-zoo",
            f"-max_len={session.executor.max_size}",
            f"-seed={(session.plan.seed & _SEED_MASK) + 1}",
            "-len_control=0",
            "-handle_int=0",
            "-handle_term=0",
            "-rss_limit_mb=0",
            "-print_pcs=0",
            "-verbosity=0",
        ]
        atheris.Setup(arguments, test_one_input, internal_libfuzzer=True)
        atheris.Fuzz()
