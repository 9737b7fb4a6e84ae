# SPDX-License-Identifier: GPL-2.0-or-later
"""Executions of a campaign in machine code, as far as nothing is out of the ordinary."""
