# SPDX-License-Identifier: GPL-2.0-or-later
"""Regression: programs run again and compared with the outcome that their files record."""
