# SPDX-License-Identifier: GPL-2.0-or-later
# Change of page attributes, one leaf per step (A23-A27; L6.1 arch/x86/mm/pat/set_memory.c:
# __change_page_attr_set_clr, __change_page_attr, should_split_large_page, cpa_process_alias).
#
# rbp points to the request, `cpa_data` of the kernel, on the stack of the caller.

	.set	CPA_VADDR, 0			# first address of the request
	.set	CPA_MASK_SET, 8			# bits to set, bits to clear: the C-bit or nothing
	.set	CPA_MASK_CLR, 16
	.set	CPA_NUMPAGES, 24		# pages asked for, then pages done by the last step
	.set	CPA_CURPAGE, 32			# pages of the request that are done
	.set	CPA_PFN, 40			# frame of the last step
	.set	CPA_FORCE_FLUSH_ALL, 48		# an alias was changed
	.set	CPA_SIZE, 56

	.set	EPERM, 1
	.set	EIO, 5
	.set	ENOMEM, 12
	.set	EFAULT, 14
	.set	EBUSY, 16
	.set	EINVAL, 22

	# rbp = room for the request, rdi = page-aligned VA, rsi = pages (sign-extended int),
	# edx = encrypt.
	function cpa_init
	xor	eax, eax
	mov	rcx, [info + INFO_cbit_mask]
	test	edx, edx
	.ifdef	IS_TDX
	cmovnz	rax, rcx		# the bit is cleared to encrypt
	.else
	cmovz	rax, rcx
	.endif
	mov	[rbp + CPA_MASK_CLR], rax
	xor	rax, rcx
	mov	[rbp + CPA_MASK_SET], rax
	xor	eax, eax
	mov	[rbp + CPA_VADDR], rdi
	mov	[rbp + CPA_NUMPAGES], rsi
	mov	[rbp + CPA_CURPAGE], rax
	mov	[rbp + CPA_PFN], rax
	mov	[rbp + CPA_FORCE_FLUSH_ALL], rax
	ret

	# Entry rcx -> r8 = the entry with the request's bits; a non-present one loses GLOBAL.
	.macro	apply_masks
	mov	r8, [rbp + CPA_MASK_CLR]
	not	r8
	and	r8, rcx
	or	r8, [rbp + CPA_MASK_SET]
	test	r8b, PTE_PRESENT
	jnz	78f
	and	r8, ~PTE_GLOBAL
78:
	.endm

	# rbp = request, edi = primary -> eax = 0 or a negative errno. What was done stays done (A19).
	function change_page_attr_set_clr
	push	r12
	push	r13
	push	r14
	mov	r14d, edi
	mov	r12, [rbp + CPA_NUMPAGES]
	mov	r13, r12
	xor	eax, eax
	test	r13, r13
	jz	9f
1:	mov	[rbp + CPA_NUMPAGES], r13
2:	mov	eax, 1
	xchg	[info + INFO_cpa_lock], rax
	test	rax, rax
	jz	3f
	pause
	jmp	2b
3:	call	change_page_attr
	mov	qword ptr [info + INFO_cpa_lock], 0
	test	eax, eax
	jnz	9f
	test	r14d, r14d
	jz	4f
	call	cpa_process_alias
	test	eax, eax
	jnz	9f
4:	mov	rax, [rbp + CPA_NUMPAGES]
	test	rax, rax
	jz	8f
	cmp	rax, r13
	ja	8f
	add	[rbp + CPA_CURPAGE], rax
	sub	r13, rax
	jnz	1b
	xor	eax, eax
9:	mov	[rbp + CPA_NUMPAGES], r12
	pop	r14
	pop	r13
	pop	r12
	ret
8:	bug	cpa_numpages

	# One step at the current page: changes at most one leaf, or populates the rest (A26c).
	# rbp = request -> eax = 0 or a negative errno, CPA_NUMPAGES = pages done.
	function change_page_attr
	push	rbx
	mov	rbx, [rbp + CPA_CURPAGE]
	shl	rbx, 12
	add	rbx, [rbp + CPA_VADDR]
1:	mov	rdi, rbx
	call	lookup_address
	test	rax, rax
	jz	8f
	cmp	edx, 1
	jne	2f
	and	r9, rcx
	shr	r9, 12
	mov	[rbp + CPA_PFN], r9
	mov	qword ptr [rbp + CPA_NUMPAGES], 1
	apply_masks
	cmp	r8, rcx
	je	7f			# nothing to change (A27)
	site	pte
	mov	[rax], r8
	jmp	7f
2:	call	change_large_leaf
	test	eax, eax
	jle	9f
	mov	rsi, r10
	call	split_large_page
	test	eax, eax
	jz	1b
9:	pop	rbx
	ret
8:	call	populate_pgd
	pop	rbx
	ret
7:	xor	eax, eax
	pop	rbx
	ret

	# rbx = VA, rax, rcx, edx, r9 = leaf as lookup_address gives it -> eax = 0 done or nothing to
	# do, 1 must be split (r10 = address of the entry, edx = level), -EINVAL.
	function change_large_leaf
	mov	r10, rax
	mov	r11d, PMD_SIZE
	cmp	edx, 2
	je	1f
	mov	r11d, PUD_SIZE
	cmp	edx, 3
	je	1f
	mov	eax, -EINVAL
	ret
	# Pages from the address to the end of the leaf bound this step.
1:	lea	rsi, [r11 - 1]
	and	rsi, rbx		# offset in the leaf
	mov	rax, r11
	sub	rax, rsi
	shr	rax, 12
	cmp	rax, [rbp + CPA_NUMPAGES]
	jae	2f
	mov	[rbp + CPA_NUMPAGES], rax
2:	mov	rax, r11
	neg	rax
	and	rax, r9
	and	rax, rcx
	add	rax, rsi
	shr	rax, 12
	mov	[rbp + CPA_PFN], rax
	apply_masks
	xor	eax, eax
	cmp	r8, rcx
	je	9f			# the leaf has the attribute: never split (A27)
	mov	eax, 1
	shr	r11, 12			# a step that starts inside the leaf has fewer pages
	cmp	[rbp + CPA_NUMPAGES], r11
	jne	9f
	site	pte
	mov	[r10], r8
	xor	eax, eax
9:	ret

	# The direct-map alias of the frames of the last step, when the request is for addresses
	# elsewhere (A25). The kernel's own image has no second mapping here.
	# rbp = request -> eax = 0 or a negative errno.
	function cpa_process_alias
	mov	rdx, [rbp + CPA_PFN]
	cmp	rdx, [info + INFO_max_pfn]
	jae	1f
	mov	rax, [rbp + CPA_CURPAGE]
	shl	rax, 12
	add	rax, [rbp + CPA_VADDR]
	sub	rax, [info + INFO_page_offset_base]
	shr	rax, 12
	cmp	rax, [info + INFO_max_pfn]
	jae	2f
1:	xor	eax, eax
	ret
2:	mov	qword ptr [rbp + CPA_FORCE_FLUSH_ALL], 1
	push	rbp
	sub	rsp, CPA_SIZE
	mov	rcx, rsp
	mov	rax, rdx
	shl	rax, 12
	add	rax, [info + INFO_page_offset_base]
	mov	[rcx + CPA_VADDR], rax
	mov	[rcx + CPA_PFN], rdx
	mov	rax, [rbp + CPA_MASK_SET]
	mov	[rcx + CPA_MASK_SET], rax
	mov	rax, [rbp + CPA_MASK_CLR]
	mov	[rcx + CPA_MASK_CLR], rax
	mov	rax, [rbp + CPA_NUMPAGES]
	mov	[rcx + CPA_NUMPAGES], rax
	xor	eax, eax
	mov	[rcx + CPA_CURPAGE], rax
	mov	[rcx + CPA_FORCE_FLUSH_ALL], rax
	mov	rbp, rcx
	xor	edi, edi
	call	change_page_attr_set_clr
	add	rsp, CPA_SIZE
	pop	rbp
	ret
