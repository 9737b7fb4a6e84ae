# SPDX-License-Identifier: GPL-2.0-or-later
"""Lock-step: one program on several hosts, and where what they mean differs."""
