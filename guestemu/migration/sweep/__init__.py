# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted kernel migrated at every instruction of a page conversion."""
