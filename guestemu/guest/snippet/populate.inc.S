# SPDX-License-Identifier: GPL-2.0-or-later
# A hole in the range of a conversion (A26c; L6.1 arch/x86/mm/pat/set_memory.c, populate_pgd,
# populate_pud, populate_pmd, populate_pte).
#
# The whole rest of the request is mapped afresh, with frames counted from CPA_PFN: 0 when the first
# page is the hole, else the frame of the step before. Leaves are writable and executable and have
# the C-bit of the request's direction. Integer widths are those of the kernel's variables: a
# negative page count goes wrong in the same way. A large leaf where a table is expected is taken
# for a table. Common registers: rbp = request, r12 = attributes of the new leaves.

	# *rsi empty? ZF set when it is.
	.macro	test_entry reg
	test	qword ptr [\reg], ~PTE_DIRTY_ACCESSED
	.endm

	# rbp = request, rbx = VA of the hole -> eax = 0, -EPERM (no page for a table; what was added
	# is unmapped) or what the kernel makes of a partial success. CPA_NUMPAGES = pages mapped.
	function populate_pgd
	push	r12
	push	r13
	mov	r12, [rbp + CPA_MASK_CLR]
	not	r12
	mov	rax, [info + INFO_cbit_mask]
	or	rax, PTE_KERNEL
	and	r12, rax
	mov	rdi, rbx
	call	pgd_offset
	mov	r13, rax
	test_entry rax
	jnz	1f
	mov	rsi, rax
	call	alloc_table
	test	eax, eax
	jnz	9f
1:	mov	rdi, rbx
	mov	rsi, r13
	call	populate_pud
	movsxd	rax, eax		# populate_pud() returns int
	test	rax, rax
	js	2f
	mov	[rbp + CPA_NUMPAGES], rax
	xor	eax, eax
	jmp	9f
2:	push	rax
	mov	rdi, rbx
	mov	rsi, [rbp + CPA_NUMPAGES]
	shl	rsi, 12
	add	rsi, rbx
	mov	rdx, r13
	call	unmap_pud_range
	pop	rax
9:	pop	r13
	pop	r12
	ret

	# rdi = first VA, rsi = address of the top-level entry -> rax = pages mapped, or -1.
	function populate_pud
	push	rbx
	push	r13
	push	r14
	push	r15
	mov	r13, rdi
	mov	r15, rsi
	xor	ebx, ebx
	mov	r14, [rbp + CPA_NUMPAGES]
	shl	r14, 12
	add	r14, r13
	test	r13, PUD_SIZE - 1
	jz	2f
	# Up to the 1 GiB boundary.
	lea	rax, [r13 + PUD_SIZE]
	and	rax, -PUD_SIZE
	cmp	rax, r14
	cmova	rax, r14
	push	rax
	sub	rax, r13
	shr	rax, 12
	mov	rcx, [rbp + CPA_NUMPAGES]
	cmp	eax, ecx		# min_t(int, ...)
	cmovg	eax, ecx
	mov	ebx, eax
	mov	rdi, r13
	mov	rsi, r15
	call	pud_offset_alloc
	test	rax, rax
	jz	1f
	mov	rdi, r13
	mov	rsi, [rsp]
	mov	edx, ebx
	mov	rcx, rax
	call	populate_pmd
	pop	r13
	mov	rbx, rax
	test	rax, rax
	js	9f
	jmp	2f
1:	pop	rcx
	mov	rbx, -1
	jmp	9f
2:	cmp	[rbp + CPA_NUMPAGES], rbx
	je	9f
	# Whole 1 GiB leaves; the entry pointer is not computed anew at a 512 GiB boundary.
	mov	rdi, r13
	mov	rsi, r15
	call	pud_offset
3:	mov	rcx, r14
	sub	rcx, r13
	cmp	rcx, PUD_SIZE
	jb	4f
	mov	rcx, [rbp + CPA_PFN]
	shl	rcx, 12
	and	rcx, r9
	and	rcx, -PUD_SIZE
	or	rcx, r12
	or	rcx, PTE_PSE
	site	pte
	mov	[rax], rcx
	add	rax, 8
	add	r13, PUD_SIZE
	add	rbx, PUD_SIZE >> 12
	add	qword ptr [rbp + CPA_PFN], PUD_SIZE >> 12
	jmp	3b
	# The rest.
4:	cmp	r13, r14
	jae	9f
	mov	rdi, r13
	mov	rsi, r15
	call	pud_offset_alloc
	test	rax, rax
	jz	8f
	mov	rdi, r13
	mov	rsi, r14
	mov	edx, [rbp + CPA_NUMPAGES]
	sub	edx, ebx
	mov	rcx, rax
	call	populate_pmd
	test	rax, rax
	js	9f			# the kernel returns the pages before, even if there are none
	add	rbx, rax
	jmp	9f
8:	mov	rbx, -1
9:	mov	rax, rbx
	pop	r15
	pop	r14
	pop	r13
	pop	rbx
	ret

	# pud_offset, pmd_offset with a table put in if the entry found is empty -> rax = address of
	# the entry, 0 = no page. rdi = VA, rsi = upper entry.
	.macro	offset_alloc name
	function \name\()_alloc
	call	\name
	test_entry rax
	jnz	1f
	mov	r8, rax
	mov	rsi, rax
	call	alloc_table
	test	eax, eax
	mov	eax, 0
	cmovz	rax, r8
1:	ret
	.endm
	offset_alloc pud_offset
	offset_alloc pmd_offset

	.set	PMD_END, 0
	.set	PMD_PUD, 8
	.set	PMD_PAGES, 16

	# rdi = first VA, rsi = end, edx = pages (unsigned int), rcx = address of the 1 GiB entry
	# -> rax = pages mapped, or -1.
	function populate_pmd
	push	rbx
	push	r13
	push	r14
	sub	rsp, 24
	mov	[rsp + PMD_END], rsi
	mov	[rsp + PMD_PUD], rcx
	mov	edx, edx
	mov	[rsp + PMD_PAGES], rdx
	mov	r13, rdi
	xor	ebx, ebx
	test	r13, PMD_SIZE - 1
	jz	2f
	# Up to the 2 MiB boundary; the shift is of an unsigned int.
	mov	r14d, edx
	shl	r14d, 12
	add	r14, r13
	lea	rax, [r13 + PMD_SIZE]
	and	rax, -PMD_SIZE
	cmp	r14, rax
	cmova	r14, rax
	mov	rbx, r14
	sub	rbx, r13
	shr	rbx, 12
	mov	ebx, ebx		# min_t(unsigned int, ...)
	cmp	ebx, edx
	cmova	ebx, edx
	mov	rdi, r13
	mov	rsi, rcx
	call	pmd_offset_alloc
	test	rax, rax
	jz	8f
	mov	rsi, rax
	mov	edx, ebx
	call	populate_pte
	mov	r13, r14
2:	cmp	rbx, [rsp + PMD_PAGES]
	je	7f
	# Whole 2 MiB leaves.
3:	mov	rax, [rsp + PMD_END]
	sub	rax, r13
	cmp	rax, PMD_SIZE
	jb	4f
	mov	rsi, [rsp + PMD_PUD]
	test_entry rsi
	jnz	5f
	call	alloc_table
	test	eax, eax
	jnz	8f
5:	mov	rdi, r13
	call	pmd_offset
	mov	rcx, [rbp + CPA_PFN]
	shl	rcx, 12
	and	rcx, r9
	and	rcx, -PMD_SIZE
	or	rcx, r12
	or	rcx, PTE_PSE
	site	pte
	mov	[rax], rcx
	add	r13, PMD_SIZE
	add	rbx, PMD_SIZE >> 12
	add	qword ptr [rbp + CPA_PFN], PMD_SIZE >> 12
	jmp	3b
	# The rest.
4:	mov	r14, [rsp + PMD_END]
	cmp	r13, r14
	jae	6f
	mov	rdi, r13
	mov	rsi, [rsp + PMD_PUD]
	call	pmd_offset_alloc
	test	rax, rax
	jz	8f
	mov	rsi, rax
	mov	edx, [rsp + PMD_PAGES]
	sub	edx, ebx
	call	populate_pte
6:	mov	rbx, [rsp + PMD_PAGES]
7:	mov	rax, rbx
	jmp	9f
8:	mov	rax, -1
9:	add	rsp, 24
	pop	r14
	pop	r13
	pop	rbx
	ret

	# r13 = first VA, r14 = end, edx = pages, rsi = address of the 2 MiB entry.
	function populate_pte
	mov	rdi, r13
	call	pte_offset
	mov	rcx, [rbp + CPA_PFN]
1:	sub	edx, 1
	jb	2f
	cmp	rdi, r14
	jae	2f
	mov	r8, rcx
	shl	r8, 12
	and	r8, r9
	or	r8, r12
	site	pte
	mov	[rax], r8
	add	rax, 8
	add	rdi, PAGE_SIZE
	inc	rcx
	jmp	1b
2:	mov	[rbp + CPA_PFN], rcx
	ret
