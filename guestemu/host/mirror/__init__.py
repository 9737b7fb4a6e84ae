# SPDX-License-Identifier: GPL-2.0-or-later
"""Mirror VMs and the migration handler that runs in one (facts F1 to F17)."""
