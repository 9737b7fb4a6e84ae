# SPDX-License-Identifier: GPL-2.0-or-later
"""The claims of the mailing-list debate about SEV live migration, each with its experiment."""
