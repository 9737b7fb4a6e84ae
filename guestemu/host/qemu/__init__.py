# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's side of a live migration of an SEV guest, by patch set. See docs/qemu.md."""
