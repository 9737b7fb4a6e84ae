# SPDX-License-Identifier: GPL-2.0-or-later
"""The exception tree. Everything a user can cause derives from `InputError`."""


class GuestemuError(Exception):
    """Base of every error that guestemu raises on purpose."""


class InputError(GuestemuError):
    """Bad input: which input, where in it, what to do. Becomes exit status 2."""


class MissingError(GuestemuError):
    """Something this machine lacks, and how to get it. Becomes exit status 3."""


class PluginError(InputError):
    """A user's host or guest plug-in cannot be loaded, or lacks a part of the interface."""


class HostFailedError(GuestemuError):
    """A user's host failed while it answered a guest: it raised, returned a value that is not an
    answer, or did not return. A finding, whose defect is the host's: exit status 1."""


class ProgramTimeError(GuestemuError):
    """A program took more than its time where no run can say so as a violation. A finding: exit
    status 1."""


class EngineError(GuestemuError):
    """The CPU emulator refused a call or ended in a state it should not reach."""


class TimeUp(BaseException):
    """The wall-clock bound of a program ran out. No `Exception`: no host may catch it."""
