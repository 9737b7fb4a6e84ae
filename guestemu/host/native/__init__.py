# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts in any language: a VMM's exit handler behind the C header `guestemu_host.h`."""
