# SPDX-License-Identifier: GPL-2.0-or-later
# Exception entries: exception_<vector> for vectors 0 to 31.
#
# #GP at an entry of the exception table warns and continues at its fix-up (A47). Anything else is
# written down in the info block and ends at guest_oops.

	.macro	exception_entry vector
	.globl	exception_\vector
exception_\vector:
	.if	((1 << \vector) & 0x60227d00) == 0	# vectors 8, 10-14, 17, 21, 29, 30 push a code
	push	0
	.endif
	push	\vector
	jmp	exception_common
	.endm

	.altmacro
	.set	vector, 0
	.rept	32
	exception_entry %vector
	.set	vector, vector + 1
	.endr
	.noaltmacro

	.set	FRAME_VECTOR, 16		# behind the two registers saved below
	.set	FRAME_ERROR_CODE, 24
	.set	FRAME_RIP, 32
	.set	VECTOR_GP, 13

exception_common:
	push	rax
	push	rcx
	cmp	qword ptr [rsp + FRAME_VECTOR], VECTOR_GP
	jne	3f
	mov	ecx, offset ex_table_start
	mov	rax, [rsp + FRAME_RIP]
1:	cmp	rcx, offset ex_table_end
	jae	3f
	cmp	[rcx], rax
	je	2f
	add	rcx, 16
	jmp	1b
2:	mov	rax, [rcx + 8]
	mov	[rsp + FRAME_RIP], rax
	inc	qword ptr [info + INFO_unchecked_msr]
	warn_once unchecked_msr
	pop	rcx
	pop	rax
	add	rsp, 16
	iretq
3:	mov	rax, [rsp + FRAME_VECTOR]
	mov	[info + INFO_oops_vector], rax
	mov	rax, [rsp + FRAME_ERROR_CODE]
	mov	[info + INFO_oops_error_code], rax
	mov	rax, [rsp + FRAME_RIP]
	mov	[info + INFO_oops_rip], rax
	mov	rax, cr2
	mov	[info + INFO_oops_cr2], rax
	pop	rcx
	pop	rax
	.globl	guest_oops
guest_oops:
	hlt
	jmp	guest_oops

	.ifdef	IS_SNP
	# Every vector from 32 on: an interrupt that nobody waits for.
	function spurious_interrupt
	iretq
	.endif
