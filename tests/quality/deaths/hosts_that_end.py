# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts that are right, except that a call for exactly three pages is their end."""

from __future__ import annotations

import ctypes
import itertools
import os

from guestemu.host.kvm.map_gpa_range import MapGpaRangeHost


class Correct(MapGpaRangeHost):
    """Has no end."""

    def end(self):
        """What a call for three pages does."""

    def hypercall(self, call):
        if call.a1 == 3:
            self.end()
        return super().hypercall(call)


class Loop(Correct):
    def end(self):
        while True:
            pass


class LoopInC(Correct):
    """Computes in machine code, which gives Python no turn."""

    def end(self):
        max(itertools.repeat(0))


class Crash(Correct):
    def end(self):
        ctypes.string_at(0)


class Abort(Correct):
    def end(self):
        os.abort()


class Exit(Correct):
    def end(self):
        os._exit(3)


class Raise(Correct):
    def end(self):
        raise KeyError(3)
