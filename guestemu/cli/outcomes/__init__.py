# SPDX-License-Identifier: GPL-2.0-or-later
"""What conversions come to, per guest kind and kernel.

`table` is every answer of MapGPA and ACCEPT on TDX guests, `findings` what they show, `page` writes
both as docs/tdx.md.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "Study"
ORDER: Final = 25
