# SPDX-License-Identifier: GPL-2.0-or-later
# Splitting a large leaf (A24; L6.1 arch/x86/mm/pat/set_memory.c, __split_large_page).
#
# The new table repeats the leaf's frame and attributes, C-bit included, at the next lower level. It
# is complete before it is put in place. Leaves are never merged again (A28).

	# rsi = address of the leaf's entry, edx = level (2 or 3) -> eax = 0 or -ENOMEM.
	# Clobbers all but rbx, rbp, r12-r15.
	function split_leaf
	call	alloc_page
	test	rax, rax
	jz	4f
	mov	r10, rax
	mov	rdi, rax
	add	rdi, [info + INFO_page_offset_base]
	mov	rax, [rsi]
	cmp	edx, 2
	jne	1f
	# 2 MiB -> 4 KiB: no PSE, and PAT moves from bit 12 to bit 7.
	mov	rcx, rax
	and	rax, ~(PTE_PSE | PTE_PAT_LARGE)
	and	ecx, PTE_PAT_LARGE
	shr	ecx, 5
	or	rax, rcx
	mov	r8d, PAGE_SIZE
	jmp	2f
	# 1 GiB -> 2 MiB: the same entry form.
1:	mov	r8d, PMD_SIZE
	test	al, PTE_PRESENT
	jnz	2f
	and	rax, ~PTE_PSE
2:	test	al, PTE_PRESENT
	jnz	3f
	and	rax, ~PTE_GLOBAL
3:	mov	ecx, 128
5:	mov	[rdi], rax
	add	rax, r8
	mov	[rdi + 8], rax
	add	rax, r8
	mov	[rdi + 16], rax
	add	rax, r8
	mov	[rdi + 24], rax
	add	rax, r8
	add	rdi, 32
	dec	ecx
	jnz	5b
	or	r10, PTE_KERNEL
	or_private r10
	site	pte
	mov	[rsi], r10
	xor	eax, eax
	ret
4:	mov	eax, -ENOMEM
	ret

	# The same, then a global TLB flush before anybody changes the small entries.
	function split_large_page
	call	split_leaf
	test	eax, eax
	jnz	1f
	call	flush_tlb_all
	xor	eax, eax
1:	ret
