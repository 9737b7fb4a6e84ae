# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 5.19 to about 6.4, before the fix of CVE-2023-53996 (A17-A20; A.3, first column).
	.intel_syntax noprefix
	.include "sites.inc.S"
	.include "info.inc.S"
	.include "paging.inc.S"
	.include "cpa.inc.S"
	.include "flush.inc.S"
	.include "split.inc.S"
	.include "populate.inc.S"
	.include "unmap.inc.S"
	.include "hypercall.inc.S"
	.include "notify-map-gpa.inc.S"

	.set	EARLY_KEEPS_FRAME_ZERO, 1
	.set	STATUS_IS_INT, 0
	# PAGE_ALIGN(size) counts from an unaligned start (A9, CVE-2023-53996).
	.macro	notify_early
	add	rsi, PAGE_SIZE - 1
	shr	rsi, 12
	call	notify_pages
	.endm

	.include "convert-platform.inc.S"
	.include "early.inc.S"
	.include "msr.inc.S"
	.include "platform.inc.S"
	.include "memory.inc.S"
	.include "stubs.inc.S"
	.include "exceptions.inc.S"
