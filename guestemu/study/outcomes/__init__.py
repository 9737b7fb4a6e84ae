# SPDX-License-Identifier: GPL-2.0-or-later
"""What conversions come to, per guest kind and kernel: value, WARN, entries, page states."""
