# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that repeat what known software says to its host."""
