# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of each kind of page under each address proposal for migration handlers."""
