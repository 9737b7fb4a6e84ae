# SPDX-License-Identifier: GPL-2.0-or-later
# Hook bodies in the host's own machine code.
#
# Unicorn calls a hook through a C function pointer. These few instructions are such functions: they
# do the common case of a hook (count a block, mark a page dirty) and call Python only where there is
# something to decide. They touch nothing but the record that `user_data` points to, whose layout is
# mirrored in watch.py (BlockWatch, MemoryWatch). System V AMD64 calling convention.
	.intel_syntax noprefix
	.text

	# void block(uc *rdi, uint64_t address rsi, uint32_t size edx, void *user rcx)
	# user: +0 counters, +8 index mask, +16 blocks left, +24 stop(uc)
	.globl	block_hook
block_hook:
	mov	r8, rsi
	shr	r8, 4
	xor	r8, rsi
	and	r8, [rcx + 8]
	mov	rax, [rcx]
	add	byte ptr [rax + r8], 1
	adc	byte ptr [rax + r8], 0
	dec	qword ptr [rcx + 16]
	js	1f
	ret
1:	jmp	qword ptr [rcx + 24]

	.balign	16
	# void memory(uc *rdi, int type esi, uint64_t pa rdx, int size ecx, int64_t value r8, void *user r9)
	# user: +0 flags, +8 pages per view, +16 dirty list, +24 dirty count, +32 log, +40 log count,
	#       +48 log capacity, +56 slow(same arguments), +64 C-bit mask
	# flags: 1 dirty, 2 stale, 4 page table, 8 mirrored, 16 always slow; private view second
	.globl	memory_hook
memory_hook:
	mov	eax, edx
	and	eax, 0xfff
	add	eax, ecx
	cmp	eax, 0x1000
	ja	slow
	mov	r10, [r9 + 64]
	mov	r11, [r9 + 8]
	mov	rax, rdx
	and	rax, r10
	neg	rax
	sbb	rax, rax		# all ones in the private view
	not	r10
	and	r10, rdx
	shr	r10, 12
	cmp	r10, r11
	jae	slow
	mov	rdi, rax
	and	rdi, r11
	add	rdi, r10		# index of this view's page (the uc argument is not needed)
	not	rax
	and	rax, r11
	add	r10, rax		# index of the other view's page
	mov	rax, [r9]
	test	byte ptr [rax + rdi], 2 | 16
	jnz	slow
	cmp	esi, 17			# UC_MEM_WRITE
	jne	3f
	test	byte ptr [rax + rdi], 4
	jz	1f
	mov	r11, [r9 + 40]		# a page table: log address and value
	cmp	r11, [r9 + 48]
	jae	slow			# full: Python drains the log
	inc	qword ptr [r9 + 40]
	shl	r11, 4
	add	r11, [r9 + 32]
	mov	[r11], rdx
	mov	[r11 + 8], r8
1:	test	byte ptr [rax + rdi], 8
	jnz	2f
	or	byte ptr [rax + r10], 2
2:	test	byte ptr [rax + rdi], 1
	jnz	3f
	or	byte ptr [rax + rdi], 1
	mov	r10, [r9 + 16]
	mov	r11, [r9 + 24]
	mov	[r10 + r11 * 4], edi
	inc	qword ptr [r9 + 24]
3:	ret
slow:
	jmp	qword ptr [r9 + 56]

	.balign	16
	# bool invalid(uc *rdi, void *user rsi): read registers, ask Python, write registers
	# user: +0 read_batch, +8 ids, +16 values, +24 count, +32 decide(uc, user) -> bool,
	#       +40 write_batch, +48 ids, +56 values, +64 count
	.globl	invalid_hook
invalid_hook:
	push	rbx
	push	rbp
	sub	rsp, 8
	mov	rbx, rsi
	mov	rbp, rdi
	mov	rsi, [rbx + 8]
	mov	rdx, [rbx + 16]
	mov	ecx, [rbx + 24]
	call	qword ptr [rbx]
	mov	rdi, rbp
	mov	rsi, rbx
	call	qword ptr [rbx + 32]
	test	al, al
	jz	1f
	mov	rdi, rbp
	mov	rsi, [rbx + 48]
	mov	rdx, [rbx + 56]
	mov	ecx, [rbx + 64]
	call	qword ptr [rbx + 40]
	mov	eax, 1
1:	add	rsp, 8
	pop	rbp
	pop	rbx
	ret
	.section .note.GNU-stack, "", @progbits
