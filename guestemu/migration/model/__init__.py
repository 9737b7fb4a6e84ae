# SPDX-License-Identifier: GPL-2.0-or-later
"""Interleavings of a guest's conversion with the passes of a live migration, on a small model."""
