# SPDX-License-Identifier: GPL-2.0-or-later
"""Live migration: the source, its passes, the links that carry pages, the destination."""
