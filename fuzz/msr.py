# SPDX-License-Identifier: GPL-2.0-or-later
"""The `msr` target for libFuzzer: python fuzz/msr.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("msr", sys.argv))
