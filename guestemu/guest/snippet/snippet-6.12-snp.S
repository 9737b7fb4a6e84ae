# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12 to 7.3 in an SNP guest (N17): page states around the change of the entries.
	.intel_syntax noprefix
	.set	IS_SNP, 1
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
	.include "snp.inc.S"
	.include "convert-platform.inc.S"
	.include "early.inc.S"
	.include "msr.inc.S"
	.include "platform.inc.S"
	.include "memory.inc.S"
	.include "stubs.inc.S"
	.include "exceptions.inc.S"
