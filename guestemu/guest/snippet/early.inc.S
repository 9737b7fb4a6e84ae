# SPDX-License-Identifier: GPL-2.0-or-later
# early_set_memory_encrypted/decrypted (A8, A37; L6.1 arch/x86/mm/mem_encrypt_amd.c:
# early_set_memory_enc_dec, __set_clr_pte_enc, __sme_early_enc_dec; L5.10 mem_encrypt.c).
#
# Keeps the contents: every leaf is copied page by page through a buffer from the old mapping to the
# new one, then its entry changes. Two scratch pages of the direct range stand for the early
# memremap slots. Knobs: EARLY_KEEPS_FRAME_ZERO = 1 since 5.17 (frame 0 means "no leaf" there), and
# `notify_early`, a macro called with rdi = VA, rsi = size in bytes, edx = encrypted.

	# rdi = VA, rsi = size in bytes -> eax = 0, or 1 when a page of the range has no entry.
	function early_set_memory_encrypted
	mov	edx, 1
	jmp	early_set_memory_enc_dec
	function early_set_memory_decrypted
	xor	edx, edx
early_set_memory_enc_dec:
	push	rbx
	push	r12
	push	r13
	push	r14
	push	r15
	push	rdi
	push	rsi
	mov	r13d, edx
	mov	rbx, rdi
	lea	r12, [rdi + rsi]
1:	cmp	rbx, r12
	jae	5f
	mov	rdi, rbx
	call	lookup_address
	test	rax, rax
	jz	8f
	cmp	edx, 3
	ja	8f
	leaf_size r14
	cmp	edx, 1
	je	3f
	lea	rcx, [r14 - 1]
	test	rbx, rcx
	jnz	4f
	mov	rcx, r12
	sub	rcx, rbx
	cmp	rcx, r14
	jb	4f
3:	mov	rdi, rax
	mov	rsi, r14
	mov	rdx, r8
	call	early_convert_leaf
	neg	r14
	and	rbx, r14
	sub	rbx, r14
	jmp	1b
4:	mov	r15d, edx
	call	early_split_range
	jmp	1b
5:	mov	rdi, [rsp + 8]
	mov	rsi, [rsp]
	mov	edx, r13d
	notify_early
	xor	ebx, ebx
	jmp	9f
8:	mov	ebx, 1
9:	call	flush_tlb_all
	mov	eax, ebx
	add	rsp, 16
	pop	r15
	pop	r14
	pop	r13
	pop	r12
	pop	rbx
	ret

	# Makes every leaf of level r15d (size r14) in the range around [rbx, r12) smaller by a level;
	# the range is widened to leaf boundaries, and by a leaf more when its end is on one
	# (kernel_physical_mapping_change). No flush. No page left is a panic.
	function early_split_range
	push	rbx
	push	r12
	mov	rax, r14
	neg	rax
	and	rbx, rax
	and	r12, rax
	add	r12, r14
1:	mov	rdi, rbx
	call	lookup_address
	test	rax, rax
	jz	2f
	cmp	edx, r15d
	jb	2f
	mov	rsi, rax
	call	split_leaf
	test	eax, eax
	jz	1b
	bug	early_split
2:	add	rbx, r14
	cmp	rbx, r12
	jb	1b
	pop	r12
	pop	rbx
	ret

	# rdi = address of the leaf's entry, rsi = bytes of the leaf, rdx = entry, r9 = address mask,
	# r13d = encrypt. Keeps rbx, rbp, r12-r15.
	function early_convert_leaf
	.ifdef	IS_TDX
	ret				# sme_me_mask is 0: the entry stays as it is
	.else
	mov	rcx, [info + INFO_cbit_mask]
	mov	r8, rcx
	not	r8
	and	r8, rdx
	test	r13d, r13d
	jz	1f
	or	r8, rcx
1:	cmp	r8, rdx
	je	9f
	mov	rax, rsi
	neg	rax
	and	rax, r9
	and	rax, rdx		# GPA of the leaf
	.if	EARLY_KEEPS_FRAME_ZERO
	jz	9f
	.endif
	.ifdef	IS_SNP
	mov	rcx, rax			# its address in the direct map, for one page only (N18)
	add	rcx, [info + INFO_page_offset_base]
	push	rcx
	.endif
	push	rdi
	push	r8
	push	rsi
	push	rax
	mov	rdi, rax
	add	rdi, [info + INFO_page_offset_base]
	call	clflush_cache_range
	pop	rdi
	pop	rsi
	call	early_copy_in_place
	.ifdef	IS_SNP
	mov	rdi, [rsp + 16]
	mov	edx, PSC_SHARED
	test	r13d, r13d
	jnz	2f
	call	early_set_page_state
2:
	.endif
	pop	r8
	pop	rdi
	site	pte
	mov	[rdi], r8
	.ifdef	IS_SNP
	pop	rdi
	test	r13d, r13d
	jz	9f
	site	flush
	invlpg	[rdi]
	mov	edx, PSC_PRIVATE
	jmp	early_set_page_state
	.endif
9:	ret

	# An SNP guest shares the page at GPA rbx while it is copied through the mapping without the
	# C-bit: the source when it encrypts (\when = 1), else the target (snp_memcpy).
	.macro	shared_for_copy when
	page_for_copy \when, PSC_SHARED
	.endm
	.macro	private_after_copy when
	page_for_copy \when, PSC_PRIVATE
	.endm
	.macro	page_for_copy when, state
	.ifdef	IS_SNP
	cmp	r13d, \when
	jne	77f
	mov	rdi, rbx
	add	rdi, [info + INFO_page_offset_base]
	mov	edx, \state
	call	early_set_page_state
77:
	.endif
	.endm

	# rdi = GPA, rsi = bytes, r13d = encrypt: each page through the buffer, from the mapping with
	# the old C-bit to that with the new one.
	function early_copy_in_place
	push	rbx
	push	r12
	push	r14
	push	r15
	mov	rbx, rdi
	lea	r12, [rdi + rsi]
	mov	rdi, [info + INFO_scratch_source]
	call	pte_of_scratch
	mov	r14, rax
	mov	rdi, [info + INFO_scratch_target]
	call	pte_of_scratch
	mov	r15, rax
	wbinvd
1:	lea	rax, [rbx + PTE_KERNEL]
	mov	rcx, rax
	or	rcx, [info + INFO_cbit_mask]
	test	r13d, r13d
	jnz	2f
	xchg	rax, rcx
2:	site	pte
	mov	[r14], rax
	site	pte
	mov	[r15], rcx
	shared_for_copy 1
	mov	rsi, [info + INFO_scratch_source]
	mov	edi, offset early_buffer
	mov	ecx, PAGE_SIZE / 8
	rep movsq
	private_after_copy 1
	shared_for_copy 0
	mov	esi, offset early_buffer
	mov	rdi, [info + INFO_scratch_target]
	mov	ecx, PAGE_SIZE / 8
	rep movsq
	private_after_copy 0
	mov	rax, [info + INFO_scratch_target]
	site	pte
	mov	qword ptr [r15], 0
	site	flush
	invlpg	[rax]
	mov	rax, [info + INFO_scratch_source]
	site	pte
	mov	qword ptr [r14], 0
	site	flush
	invlpg	[rax]
	add	rbx, PAGE_SIZE
	cmp	rbx, r12
	jb	1b
	pop	r15
	pop	r14
	pop	r12
	pop	rbx
	ret

	# rdi = VA of a scratch page -> rax = address of its 4 KiB entry; its tables exist.
	function pte_of_scratch
	call	pgd_offset
	mov	rsi, rax
	call	pud_offset
	mov	rsi, rax
	call	pmd_offset
	mov	rsi, rax
	jmp	pte_offset

	.bss
	.balign	4096
	.globl	early_buffer
early_buffer:
	.skip	4096
	.text
	.endif
