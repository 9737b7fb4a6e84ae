# SPDX-License-Identifier: GPL-2.0-or-later
# Taking back what a failed populate added (A26c; L6.1 arch/x86/mm/pat/set_memory.c,
# unmap_pud_range, unmap_pmd_range, __unmap_pmd_range, try_to_free_pte_page).
#
# The range is that of the whole request's rest, so leaves that were there before go too, and where
# an upper entry is empty the kernel clears entries of the "table" in frame 0. Tables that become
# empty are dropped; their pages are not given back to the pool.

	# rax = address of a table -> ZF set when all 512 entries are empty. Clobbers rax, ecx.
	.macro	test_table
	mov	ecx, 512
81:	test_entry rax
	jnz	82f
	add	rax, 8
	dec	ecx
	jnz	81b
82:
	.endm

	# rdi = first VA, rdx = end, inside one 2 MiB; rsi = address of the 2 MiB entry,
	# rbx = address of the 1 GiB entry.
	function unmap_pte_range
	call	pte_offset
1:	cmp	rdi, rdx
	jae	2f
	site	pte
	mov	qword ptr [rax], 0
	add	rax, 8
	add	rdi, PAGE_SIZE
	jmp	1b
2:	xor	edi, edi
	call	pte_offset
	test_table
	jnz	3f
	site	pte
	mov	qword ptr [rsi], 0
	jmp	drop_empty_pmd_table
3:	ret

	# rbx = address of the 1 GiB entry: cleared if its table is empty.
	function drop_empty_pmd_table
	mov	rsi, rbx
	xor	edi, edi
	call	pmd_offset
	test_table
	jnz	1f
	site	pte
	mov	qword ptr [rbx], 0
1:	ret

	# rdi = first VA, rsi = end, inside one 1 GiB; rbx = address of the 1 GiB entry.
	function unmap_pmd_range
	push	r13
	push	r14
	push	r15
	mov	r13, rdi
	mov	r14, rsi
	mov	rsi, rbx
	call	pmd_offset
	mov	r15, rax
	test	r13, PMD_SIZE - 1
	jz	1f
	lea	rdx, [r13 + PMD_SIZE]
	and	rdx, -PMD_SIZE
	cmp	rdx, r14
	cmova	rdx, r14
	mov	rdi, r13
	mov	r13, rdx
	mov	rsi, r15
	call	unmap_pte_range
	add	r15, 8
1:	mov	rax, r14
	sub	rax, r13
	cmp	rax, PMD_SIZE
	jb	3f
	mov	rdi, r13
	add	r13, PMD_SIZE
	test	byte ptr [r15], PTE_PSE
	jz	2f
	site	pte
	mov	qword ptr [r15], 0
	add	r15, 8
	jmp	1b
2:	mov	rdx, r13
	mov	rsi, r15
	call	unmap_pte_range
	add	r15, 8
	jmp	1b
3:	cmp	r13, r14
	jae	4f
	mov	rdi, r13
	mov	rdx, r14
	mov	rsi, r15
	call	unmap_pte_range
	jmp	9f
4:	test_entry rbx
	jz	9f
	call	drop_empty_pmd_table
9:	pop	r15
	pop	r14
	pop	r13
	ret

	# rdi = first VA, rsi = end, rdx = address of the top-level entry.
	function unmap_pud_range
	push	rbx
	push	r13
	push	r14
	mov	r13, rdi
	mov	r14, rsi
	mov	rsi, rdx
	call	pud_offset
	mov	rbx, rax
	test	r13, PUD_SIZE - 1
	jz	1f
	lea	rsi, [r13 + PUD_SIZE]
	and	rsi, -PUD_SIZE
	cmp	rsi, r14
	cmova	rsi, r14
	mov	rdi, r13
	mov	r13, rsi
	call	unmap_pmd_range
	add	rbx, 8
1:	mov	rax, r14
	sub	rax, r13
	cmp	rax, PUD_SIZE
	jb	3f
	mov	rdi, r13
	add	r13, PUD_SIZE
	mov	eax, [rbx]
	and	eax, PTE_PSE | PTE_PRESENT
	cmp	eax, PTE_PSE | PTE_PRESENT
	jne	2f
	site	pte
	mov	qword ptr [rbx], 0
	add	rbx, 8
	jmp	1b
2:	mov	rsi, r13
	call	unmap_pmd_range
	add	rbx, 8
	jmp	1b
3:	cmp	r13, r14
	jae	9f
	mov	rdi, r13
	mov	rsi, r14
	call	unmap_pmd_range
9:	pop	r14
	pop	r13
	pop	rbx
	ret
