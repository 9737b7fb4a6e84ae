# SPDX-License-Identifier: GPL-2.0-or-later
"""User-space VMMs: what answers KVM's exits."""
