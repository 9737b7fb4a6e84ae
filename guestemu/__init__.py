# SPDX-License-Identifier: GPL-2.0-or-later
"""Run, fuzz and replay AMD SEV page-encryption conversations without SEV hardware."""

__version__ = "0.1.0"
