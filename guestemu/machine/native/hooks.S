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

	.balign	16
	# int launch(record *rdi): context and registers, run, registers at the end; the run's result
	# record: +0 uc, +8 context_restore, +16 context or 0, +24 write_batch, +32 ids, +40 values,
	#         +48 count, +56 emu_start, +64 RIP, +72 read_batch, +80 ids, +88 values, +96 count
	.globl	launch
launch:
	push	rbx
	push	rbp
	sub	rsp, 8
	mov	rbx, rdi
	mov	rsi, [rbx + 16]
	test	rsi, rsi
	jz	1f
	mov	rdi, [rbx]
	call	qword ptr [rbx + 8]
1:	mov	ecx, [rbx + 48]
	test	ecx, ecx
	jz	2f
	mov	rdi, [rbx]
	mov	rsi, [rbx + 32]
	mov	rdx, [rbx + 40]
	call	qword ptr [rbx + 24]
2:	mov	rdi, [rbx]
	mov	rsi, [rbx + 64]
	xor	edx, edx
	xor	ecx, ecx
	xor	r8d, r8d
	call	qword ptr [rbx + 56]
	mov	ebp, eax
	mov	rdi, [rbx]
	mov	rsi, [rbx + 80]
	mov	rdx, [rbx + 88]
	mov	ecx, [rbx + 96]
	call	qword ptr [rbx + 72]
	mov	eax, ebp
	add	rsp, 8
	pop	rbp
	pop	rbx
	ret

	.balign	16
	# uint32_t rollback(watch *rdi): every dirty page back to its base; the OR of all their flags
	# watch (as memory): +72 flags at the checkpoint, +80 pointers to the pages' content then
	#       (0: zeroes), +88 private view, +96 shared view, +104 mirrored frames, +112 a zero page
	.globl	rollback
rollback:
	push	rbx
	push	rbp
	push	r12
	mov	rbx, rdi
	xor	ebp, ebp
	xor	r8d, r8d
	jmp	5f
1:	mov	rax, [rbx + 16]
	mov	r10d, [rax + r8 * 4]	# index of the dirty page
	inc	r8
	mov	rax, [rbx]
	mov	rdx, [rbx + 72]
	movzx	ecx, byte ptr [rax + r10]
	or	ebp, ecx
	movzx	ecx, byte ptr [rdx + r10]
	or	ebp, ecx
	mov	[rax + r10], cl
	mov	r11, [rbx + 8]
	mov	rdi, [rbx + 88]
	mov	r9, r10
	sub	r9, r11
	mov	r12, r9			# private: the frame is index - frames, as is the other view
	jae	2f
	mov	r9, r10
	lea	r12, [r10 + r11]
	cmp	r9, [rbx + 104]
	jb	2f
	mov	rdi, [rbx + 96]
2:	movzx	esi, byte ptr [rdx + r12]
	mov	[rax + r12], sil
	test	cl, 2
	jnz	5f			# was stale: its content does not matter
	shl	r9, 12
	add	rdi, r9
	mov	rsi, [rbx + 80]
	mov	rsi, [rsi + r10 * 8]
	test	rsi, rsi
	jnz	4f
	mov	rsi, [rbx + 112]
4:	mov	ecx, 512
	rep movsq
5:	cmp	r8, [rbx + 24]
	jb	1b
	mov	qword ptr [rbx + 24], 0
	mov	qword ptr [rbx + 40], 0
	mov	eax, ebp
	pop	r12
	pop	rbp
	pop	rbx
	ret
	.section .note.GNU-stack, "", @progbits
