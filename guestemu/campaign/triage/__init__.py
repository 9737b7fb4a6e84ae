# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings: violations grouped by cause, minimised and explained."""
