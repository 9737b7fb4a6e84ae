# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmap generation, patch set v2 (July 2019): v1 with readers and writers under kvm->lock.

Source: K1-c, K1-n. Exits of one testbed are answered one after the other, so the lock changes
nothing here; the missing wrap test is still missing.
"""

from __future__ import annotations

from typing import ClassVar

from guestemu.host.kvm.bitmap_v1 import BitmapV1Host


class BitmapV2Host(BitmapV1Host):
    """v2. Repairs as v1."""

    name: ClassVar[str] = "bitmap-v2"
    summary: ClassVar[str] = "July 2019 patch set v2: bitmap in KVM under kvm->lock, no wrap test"
