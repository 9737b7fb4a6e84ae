# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs as tests in C for a real KVM."""
