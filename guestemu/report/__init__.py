# SPDX-License-Identifier: GPL-2.0-or-later
"""Self-contained HTML pages: the skeleton and the plots that all reports share."""
