# SPDX-License-Identifier: GPL-2.0-or-later
"""The `mapgpa` target for libFuzzer: python fuzz/mapgpa.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("mapgpa", sys.argv))
