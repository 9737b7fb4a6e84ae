# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings: what is wrong, told apart by its cause, as small as it gets, explained."""
