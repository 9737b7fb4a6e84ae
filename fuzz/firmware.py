# SPDX-License-Identifier: GPL-2.0-or-later
"""The `firmware` target for libFuzzer: python fuzz/firmware.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("firmware", sys.argv))
