# SPDX-License-Identifier: GPL-2.0-or-later
# The 6.1 snippet with an error policy: what a guest does when a notification fails, as proposed in
# May 2021 (facts R5, R6). The host side chooses by the word `error_policy` (policies.py).
#
# The conversion is convert-platform.inc.S unchanged: a notification that propagates its error sets
# INFO_finish_status, as a platform callback that fails does.
	.intel_syntax noprefix
	.include "../../../guest/snippet/sites.inc.S"
	.include "../../../guest/snippet/info.inc.S"
	.include "../../../guest/snippet/paging.inc.S"
	.include "../../../guest/snippet/cpa.inc.S"
	.include "../../../guest/snippet/flush.inc.S"
	.include "../../../guest/snippet/split.inc.S"
	.include "../../../guest/snippet/populate.inc.S"
	.include "../../../guest/snippet/unmap.inc.S"
	.include "on-error.inc.S"
	.include "notify-policy.inc.S"

	.set	EARLY_KEEPS_FRAME_ZERO, 1
	.set	STATUS_IS_INT, 0
	# In an early conversion a propagated error ends in the branch that returns 1, label 8 there.
	.set	EARLY_RETURNS, 1
	.macro	notify_early
	add	rsi, PAGE_SIZE - 1
	shr	rsi, 12
	call	notify_pages
	.if	EARLY_RETURNS
	cmp	dword ptr [info + INFO_finish_status], 0
	jne	8f
	.endif
	.endm

	.include "../../../guest/snippet/convert-platform.inc.S"
	.include "../../../guest/snippet/early.inc.S"
	.include "../../../guest/snippet/msr.inc.S"
	# kvm_init_platform() is void: nobody is there to whom an error could be propagated.
	.set	EARLY_RETURNS, 0
	.include "../../../guest/snippet/platform.inc.S"
	.include "../../../guest/snippet/memory.inc.S"
	.include "../../../guest/snippet/stubs.inc.S"
	.include "../../../guest/snippet/exceptions.inc.S"
