# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 5.16 to 5.18: paravirt hook, notification also after a failed change (A11-A16).
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
	# PAGE_ALIGN(size) counts from an unaligned start (A9, CVE-2023-53996).
	.macro	notify_early
	add	rsi, PAGE_SIZE - 1
	shr	rsi, 12
	call	notify_pages
	.endm
	.macro	notify_runtime
	call	notify_pages
	.endm

	.include "convert-paravirt.inc.S"
	.include "early.inc.S"
	.include "msr.inc.S"
	.include "platform.inc.S"
	.include "memory.inc.S"
	.include "stubs.inc.S"
	.include "exceptions.inc.S"
