# SPDX-License-Identifier: GPL-2.0-or-later
"""The `stream` target for libFuzzer: python fuzz/stream.py -max_total_time=60 CORPUS"""

import sys

from guestemu.campaign.entry import main

sys.exit(main("stream", sys.argv))
