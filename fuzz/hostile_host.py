# SPDX-License-Identifier: GPL-2.0-or-later
"""The `hostile-host` target for libFuzzer: python fuzz/hostile_host.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("hostile-host", sys.argv))
