# SPDX-License-Identifier: GPL-2.0-or-later
"""A real kernel past its boot: initcalls, user space, its own drivers over emulated devices."""
