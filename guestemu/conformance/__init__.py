# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts held against recordings of the real KVM and against the suite for hosts."""
