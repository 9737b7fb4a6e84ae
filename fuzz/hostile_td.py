# SPDX-License-Identifier: GPL-2.0-or-later
"""The `hostile-host:tdx` target for libFuzzer: fuzz/hostile_td.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("hostile-host:tdx", sys.argv))
