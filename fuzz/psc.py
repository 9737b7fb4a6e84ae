# SPDX-License-Identifier: GPL-2.0-or-later
"""The `psc` target for libFuzzer: python fuzz/psc.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("psc", sys.argv))
