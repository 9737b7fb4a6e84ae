# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of KVM capabilities (include/uapi/linux/kvm.h)."""

from __future__ import annotations

from typing import Final

KVM_CAP_VM_COPY_ENC_CONTEXT_FROM: Final = 197
"""The VM becomes a mirror of another; argument 0 is the other VM's descriptor (since 5.13)."""

KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM: Final = 206
"""The VM takes over another's encryption context (since 5.16)."""
