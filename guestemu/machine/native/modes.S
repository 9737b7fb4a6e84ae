# SPDX-License-Identifier: GPL-2.0-or-later
# Guest code that takes a vCPU from 64-bit mode, CPL 0, into every other mode and level.
#
# Segment caches cannot be written from outside, so each mode is entered once by the instructions
# that an operating system would use, and the context is kept (modes.py). Linked at MODES_BASE, in
# low memory that both views of memory share, since the legacy modes run without paging.
# Arguments: esi CS selector, edi SS selector, edx stack pointer, ecx instruction pointer, ebx flags.
	.intel_syntax noprefix
	.set	CODE32, 0x18
	.set	CODE16, 0x78
	.set	DATA16, 0x80
	.set	MSR_EFER, 0xC0000080
	.text
	.code64
	.globl	enter_long
enter_long:
	mov	ds, edi
	mov	es, edi
	push	rdi
	push	rdx
	push	rbx
	push	rsi
	push	rcx
	iretq

	.globl	enter_prot32
enter_prot32:
	lea	rax, [rip + prot32]
	jmp	leave_long
	.globl	enter_real16
enter_real16:
	lea	rax, [rip + real16]
leave_long:
	mov	ebp, eax
	push	CODE32
	lea	rax, [rip + compat]
	push	rax
	.byte	0x48, 0xcb		# far return with 64-bit operands

	.code32
compat:
	mov	eax, cr0
	and	eax, 0x7fffffff
	mov	cr0, eax
	push	edx
	push	ecx
	mov	ecx, MSR_EFER
	rdmsr
	and	eax, 0xfffffeff
	wrmsr
	pop	ecx
	pop	edx
	mov	eax, cr4
	and	eax, 0xffffffdf
	mov	cr4, eax
	jmp	ebp
prot32:
	mov	eax, 0x10
	mov	ss, eax
	mov	ds, edi
	mov	es, edi
	test	esi, 3
	jnz	1f
	mov	esp, edx
	jmp	2f
1:	push	edi
	push	edx
2:	push	ebx
	push	esi
	push	ecx
	iret

real16:
	ljmp	CODE16, offset bits16
	.code16
bits16:
	mov	ax, DATA16
	mov	ds, ax
	mov	es, ax
	mov	ss, ax
	mov	fs, ax
	mov	gs, ax
	mov	eax, cr0
	and	eax, 0xfffffffe
	mov	cr0, eax
	ljmp	0, offset flat16
flat16:
	xor	ax, ax
	mov	ds, ax
	mov	es, ax
	mov	ss, ax
	mov	fs, ax
	mov	gs, ax
	mov	sp, dx
	push	bx
	popf
	jmp	cx
	.section .note.GNU-stack, "", @progbits
