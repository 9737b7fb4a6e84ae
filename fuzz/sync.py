# SPDX-License-Identifier: GPL-2.0-or-later
"""The `sync` target for libFuzzer: python fuzz/sync.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("sync", sys.argv))
