# SPDX-License-Identifier: GPL-2.0-or-later
# The 2019-2020 patch set on 5.x, the same until v12 of April 2021 (A1-A9).
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
	.include "notify-2020.inc.S"

	.set	HAS_NOTIFIER, 1
	.set	EARLY_KEEPS_FRAME_ZERO, 0
	# Through pv_ops, installed late (A4).
	.macro	notify_runtime
	cmp	qword ptr [info + INFO_notify_enabled], 0
	je	2f
	call	set_memory_enc_dec_hypercall
2:
	.endm
	# Called directly, and PAGE_ALIGN(size) counts from an unaligned start (A9).
	.macro	notify_early
	add	rsi, PAGE_SIZE - 1
	shr	rsi, 12
	call	set_memory_enc_dec_hypercall
	.endm

	.include "convert-paravirt.inc.S"
	.include "early.inc.S"
	.include "msr.inc.S"
	.include "platform-2020.inc.S"
	.include "memory.inc.S"
	.include "stubs.inc.S"
	.include "exceptions.inc.S"
