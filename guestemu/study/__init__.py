# SPDX-License-Identifier: GPL-2.0-or-later
"""Experiments on top of everything else: claims, ledger, outcome tables, mirror threats."""
