# SPDX-License-Identifier: GPL-2.0-or-later
"""The `mirror` target for libFuzzer: python fuzz/mirror.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("mirror", sys.argv))
