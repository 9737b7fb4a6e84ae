# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs: op records, their binary and text forms, generator, mutator, shrinker."""
