# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel's KVM in the loop: run by QEMU without hardware, recorded, compared, fuzzed."""
