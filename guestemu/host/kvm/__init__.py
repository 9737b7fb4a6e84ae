# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM, one module for each generation of the page-encryption ABI and each part of its semantics."""
