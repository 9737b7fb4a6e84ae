# SPDX-License-Identifier: GPL-2.0-or-later
"""Coherent DMA: traces and driver patterns, the guest's allocators, replay, report."""
