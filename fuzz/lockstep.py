# SPDX-License-Identifier: GPL-2.0-or-later
"""The `lockstep` target for libFuzzer: python fuzz/lockstep.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("lockstep", sys.argv))
