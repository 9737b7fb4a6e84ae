# SPDX-License-Identifier: GPL-2.0-or-later
"""The SEV firmware (the command state machine of the security processor) and KVM's ioctls on it.

`dispatch.execute` runs one command buffer on a `platform.Platform`; `kvm.KvmSevVm` is the layer
that user space sees. See docs/firmware.md.
"""
