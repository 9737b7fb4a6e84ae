# SPDX-License-Identifier: GPL-2.0-or-later
# Linux 6.12 to 7.3 in a TD (T17): the bit means shared, MapGPA and ACCEPT instead of a hypercall.
	.intel_syntax noprefix
	.set	IS_TDX, 1
	.include "sites.inc.S"
	.include "info.inc.S"
	.include "paging.inc.S"
	.include "cpa.inc.S"
	.include "flush.inc.S"
	.include "split.inc.S"
	.include "populate.inc.S"
	.include "unmap.inc.S"
	.include "hypercall.inc.S"

	.set	KVM_HC_MAP_GPA_RANGE, 12
	.set	STATUS_IS_INT, 1
	.macro	notify_early			# no notification hook is installed in a TD
	.endm

	.include "enc-lock.inc.S"
	.include "tdx.inc.S"
	.include "convert-platform.inc.S"

	.include "early.inc.S"
	.include "msr.inc.S"
	.include "platform.inc.S"
	.include "memory.inc.S"
	.include "stubs.inc.S"
	.include "exceptions.inc.S"
