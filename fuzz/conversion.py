# SPDX-License-Identifier: GPL-2.0-or-later
"""The `conversion` target for libFuzzer: python fuzz/conversion.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("conversion", sys.argv))
