# SPDX-License-Identifier: GPL-2.0-or-later
"""Low guest memory: descriptor tables, stacks and stubs, the same for every guest of ours.

GPA equals GVA here. All of it is mirrored in both views of memory, because real and protected mode
run without paging (memory.py says why).
"""

from __future__ import annotations

from typing import Final

LOW_PAGES: Final = 16
GDT: Final = 0x3000
TSS64: Final = 0x3800
TSS32: Final = 0x3A00
IDT64: Final = 0x4000
REAL_VECTORS: Final = 0x5000
IDT32: Final = 0x5400
HANDLERS: Final = 0x6000
KERNEL_STACK: Final = 0x7000
USER_STACK: Final = 0x7800
STUB: Final = 0x8000
MODES: Final = 0x9000
LANDING: Final = 0x9800
MODE_STACK: Final = 0xB000
TEXT: Final = 0x10000

VECTORS: Final = 32

CODE64: Final = 0x08
DATA: Final = 0x10
CODE32: Final = 0x18
TSS64_SELECTOR: Final = 0x20
TSS32_SELECTOR: Final = 0x88
GDT_LIMIT: Final = 18 * 8 - 1

CODE64_BY_CPL: Final = (0x08, 0x49, 0x62, 0x33)
CODE32_BY_CPL: Final = (0x18, 0x59, 0x72, 0x43)
DATA_BY_CPL: Final = (0x10, 0x51, 0x6A, 0x3B)
