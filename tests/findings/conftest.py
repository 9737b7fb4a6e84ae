# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts with planted bugs serve here, too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))
