# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12 to 7.1 (A17-A22; A.3, last column).
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
	.set	STATUS_IS_INT, 1
	# The size itself: fixed in 6.1.53, 6.4.16, 6.5.3.
	.macro	notify_early
	call	enc_dec_hypercall
	.endm

	.include "enc-lock.inc.S"
	.include "convert-platform.inc.S"
	.include "early.inc.S"
	.include "msr.inc.S"
	.include "platform.inc.S"
	.include "memory.inc.S"
	.include "stubs.inc.S"
	.include "exceptions.inc.S"
