# SPDX-License-Identifier: GPL-2.0-or-later
"""The `device` target for libFuzzer: python fuzz/device.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("device", sys.argv))
