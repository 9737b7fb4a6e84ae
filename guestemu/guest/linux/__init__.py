# SPDX-License-Identifier: GPL-2.0-or-later
"""A real, unmodified Linux kernel as a guest."""
