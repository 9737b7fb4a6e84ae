# SPDX-License-Identifier: GPL-2.0-or-later
"""The error ledger: injected failures x flows x policies, who noticed, and what was lost."""
