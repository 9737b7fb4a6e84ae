# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows each block of guest code before it first runs.

The emulator calls a hook when it has translated a block: once, and again after the guest changed
the code or the translations were flushed. A stop in that hook ends the run in front of the block,
so a hook of one of its instructions can still be added. Only an engine's very first block is not
shown.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING

from guestemu.machine.callbacks import CodeBlock, EdgeHook
from guestemu.machine.engine import HOOK_EDGE
from guestemu.machine.interventions import Intervention

if TYPE_CHECKING:
    from guestemu.machine.hooks import CpuHooks
    from guestemu.machine.vcpu import Vcpu

Look = Callable[[int, int], bool]
"""Is given linear address and size in bytes of a block; returns whether it added a hook there."""


def show_new_code(hooks: CpuHooks, look: Look) -> None:
    """From now on `look` is asked about every block before it first runs. The stop that a new hook
    takes costs the run nothing of its budget, as it depends on what was translated before."""
    engine = hooks.engine

    def on_block(
        _uc: object, block: ctypes._Pointer[CodeBlock], _previous: object, _user: object
    ) -> None:
        try:
            address, size = block.contents.pc, block.contents.size
            if not look(address, size):
                return

            def again(_vcpu: Vcpu) -> None:
                engine.forget_block(address, size)
                hooks.watch.left += 1

            hooks.pending = Intervention((again,))
        except BaseException as error:
            hooks.errors.append(error)
        engine.stop()

    engine.add_hook(HOOK_EDGE, EdgeHook(on_block))
