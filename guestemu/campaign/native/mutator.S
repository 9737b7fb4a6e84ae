# SPDX-License-Identifier: GPL-2.0-or-later
# The custom mutator of a campaign, as libFuzzer looks for it: by name, in a library loaded before.
#
# A mutator in Python costs as much as a third of an execution. These few instructions do the common
# mutations, and call Python for the rest. campaign/mutator.py has the same in Python (`MixedMutator`)
# for other hosts, and says what each does. System V AMD64 calling convention.
	.intel_syntax noprefix

	.equ	RECORD, 48		# program/binary.py
	.equ	POSTURE, 1
	.equ	VMCALL, 0x10
	.equ	UNCOMMON_MASK, 31	# campaign/mutator.py, as are the others
	.equ	POKE_MASK, 3
	.equ	VMCALL_MASK, 0x1e0
	.equ	DROP_MASK, 0xe00
	.equ	CROSS_MASK, 7
	.equ	CROSS_SHIFT, 3

	.data
	.balign	8
	# LLVMFuzzerMutate(data, size, max size), then uncommon() and cross() with the arguments of the
	# two functions below
	.globl	mutator_calls
mutator_calls:
calls:	.quad	0, 0, 0
	.size	mutator_calls, . - mutator_calls
	.type	mutator_calls, @object

	.section .rodata
fields:	.byte	0, 1, 1, 2, 4, 4, 5, 8, 8, 16, 16, 24, 24, 32, 40
	.equ	FIELDS, . - fields

	.text
	# size_t mutate(uint8_t *rdi data, size_t rsi size, size_t rdx max size, unsigned ecx seed)
	.globl	LLVMFuzzerCustomMutator
	.type	LLVMFuzzerCustomMutator, @function
LLVMFuzzerCustomMutator:
mutate:	test	ecx, UNCOMMON_MASK
	jz	uncommon
	cmp	rsi, RECORD
	jb	uncommon
	cmp	rdx, RECORD
	jb	uncommon
	push	rbx
	push	rbp
	push	r12
	mov	rbx, rdi
	mov	ebp, ecx
	test	ecx, POKE_MASK
	jz	1f
	call	qword ptr [rip + calls]
	jmp	4f

1:	cmp	rsi, rdx		# pokes: r12 records, rcx random bits
	cmovb	rdx, rsi
	mov	rax, rdx
	xor	edx, edx
	mov	ecx, RECORD
	div	rcx
	mov	r12, rax
	mov	eax, ebp
	movabs	rcx, 0x9e3779b97f4a7c15
	imul	rcx, rax
	movabs	rax, 0x123456789abcdef1
	add	rcx, rax
	mov	rax, rcx
	shr	rax, 29
	xor	rcx, rax
	shr	rcx, 2
	mov	esi, ecx
	and	esi, 1			# one poke, or two
	lea	r9, [rip + fields]
3:	mov	eax, ecx
	shr	eax, 1
	movzx	eax, al
	xor	edx, edx
	div	r12d
	imul	edi, edx, RECORD
	mov	eax, ecx
	shr	eax, 9
	movzx	eax, al
	xor	edx, edx
	mov	r8d, FIELDS
	div	r8d
	movzx	edx, byte ptr [r9 + rdx]
	add	edi, edx
	mov	eax, ecx
	shr	eax, 17
	mov	[rbx + rdi], al
	shr	rcx, 24
	dec	esi
	jns	3b
	imul	rax, r12, RECORD

4:	cmp	rax, 2 * RECORD		# rax: the new size
	jb	2f
	test	ebp, DROP_MASK
	jnz	2f
	sub	rax, RECORD		# without the last op
2:	test	ebp, VMCALL_MASK
	jz	6f
	mov	edx, POSTURE
	jmp	7f
5:	and	byte ptr [rbx + rdx], 0xff - VMCALL
	add	rdx, RECORD
7:	cmp	rdx, rax
	jb	5b
6:	pop	r12
	pop	rbp
	pop	rbx
	ret
uncommon:
	jmp	qword ptr [rip + calls + 8]

	# size_t cross(const uint8_t *rdi first, size_t rsi, const uint8_t *rdx second, size_t rcx,
	#              uint8_t *r8 out, size_t r9 max size, unsigned seed)
	.globl	LLVMFuzzerCustomCrossOver
	.type	LLVMFuzzerCustomCrossOver, @function
LLVMFuzzerCustomCrossOver:
	mov	eax, [rsp + 8]
	test	al, CROSS_MASK
	jz	1f
	cmp	rsi, r9			# a mutation of the first
	cmova	rsi, r9
	mov	r10, rsi
	mov	rcx, rsi
	mov	rsi, rdi
	mov	rdi, r8
	rep movsb
	mov	rdi, r8
	mov	rsi, r10
	mov	rdx, r9
	mov	ecx, eax
	shr	ecx, CROSS_SHIFT
	jmp	mutate
1:	jmp	qword ptr [rip + calls + 16]
	.section .note.GNU-stack, "", @progbits
