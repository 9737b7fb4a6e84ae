# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers and encodings of the interfaces between guest, KVM and user space."""
