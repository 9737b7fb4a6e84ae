# SPDX-License-Identifier: GPL-2.0-or-later
"""The `migration` target for libFuzzer: python fuzz/migration.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("migration", sys.argv))
