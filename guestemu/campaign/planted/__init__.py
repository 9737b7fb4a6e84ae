# SPDX-License-Identifier: GPL-2.0-or-later
"""The zoo: known bugs, planted one at a time, and the campaigns that must find them."""
