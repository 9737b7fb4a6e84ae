# SPDX-License-Identifier: GPL-2.0-or-later
"""Getting distribution kernels and saying what one is."""
