# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz campaigns: targets, engines, feedback, findings and the processes that run them."""
