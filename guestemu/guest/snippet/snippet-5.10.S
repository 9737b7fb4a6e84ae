# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 5.10 and 5.15: the conversion without any notification (A10).
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

	.set	HAS_NOTIFIER, 0
	.set	EARLY_KEEPS_FRAME_ZERO, 0
	.macro	notify_runtime
	.endm
	.macro	notify_early
	.endm

	.include "convert-paravirt.inc.S"
	.include "early.inc.S"
	.include "msr.inc.S"
	.include "platform-2020.inc.S"
	.include "memory.inc.S"
	.include "stubs.inc.S"
	.include "exceptions.inc.S"
