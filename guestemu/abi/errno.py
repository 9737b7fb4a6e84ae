# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux errno values that cross an interface modelled here (include/uapi/asm-generic/errno*.h)."""

from __future__ import annotations

from typing import Final

EPERM: Final = 1
ENOENT: Final = 2
EINTR: Final = 4
EIO: Final = 5
E2BIG: Final = 7
EBADF: Final = 9
EAGAIN: Final = 11
ENOMEM: Final = 12
EFAULT: Final = 14
EBUSY: Final = 16
EEXIST: Final = 17
ENODEV: Final = 19
EINVAL: Final = 22
ENOTTY: Final = 25
EFBIG: Final = 27
ENOSYS: Final = 38
ETIME: Final = 62
EOPNOTSUPP: Final = 95

MAX_ERRNO: Final = 4095
"""The largest errno that a result may carry as a negative number (include/linux/err.h)."""
