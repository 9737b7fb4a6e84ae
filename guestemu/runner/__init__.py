# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest on an emulated machine and one host under it: wiring, operations, run, reset."""
