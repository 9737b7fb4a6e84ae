# SPDX-License-Identifier: GPL-2.0-or-later
"""The `hypercall` target for libFuzzer: python fuzz/hypercall.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("hypercall", sys.argv))
