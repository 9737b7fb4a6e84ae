# SPDX-License-Identifier: GPL-2.0-or-later
# Walking the page tables and taking pages for new ones.
#
# Tables are reached through the direct map, at page_offset_base + physical address. Entries carry
# the C-bit inside the address field, so every walk masks it. Levels: 1 = 4 KiB, 2 = 2 MiB,
# 3 = 1 GiB, 4 = top. Four-level paging only.

	.set	PTE_PRESENT, 0x001
	.set	PTE_DIRTY_ACCESSED, 0x060
	.set	PTE_PSE, 0x080
	.set	PTE_GLOBAL, 0x100
	.set	PTE_PAT_LARGE, 0x1000
	.set	PTE_KERNEL, 0x063		# present, writable, accessed, dirty: leaf and table
	.set	PAGE_SIZE, 0x1000
	.set	PMD_SIZE, 0x200000
	.set	PUD_SIZE, 0x40000000

	# r9 = the address bits of an entry, without the C-bit. Clobbers r8.
	.macro	load_address_mask
	mov	r9, 0x000ffffffffff000
	mov	r8, [info + INFO_cbit_mask]
	not	r8
	and	r9, r8
	.endm

	# The bit of the private view, for an entry that names a table.
	.macro	or_private reg
	.ifndef	IS_TDX
	or	\reg, [info + INFO_cbit_mask]
	.endif
	.endm

	# Behind lookup_address (edx = level 1-3, rcx = entry): r8 = entry, \reg = bytes of the leaf.
	.macro	leaf_size reg
	mov	r8, rcx
	lea	ecx, [rdx + rdx*8 + 3]
	mov	\reg\()d, 1
	shl	\reg, cl
	.endm

	# One level down: rcx = entry -> rax = address of the next entry, rcx = that entry.
	.macro	walk_down shift
	and	rcx, r9
	add	rcx, r8
	mov	rax, rdi
	shr	rax, \shift
	and	eax, 511
	lea	rax, [rcx + rax*8]
	mov	rcx, [rax]
	.endm

	# Linux: lookup_address() of L6.1 arch/x86/mm/pat/set_memory.c, with the callers' test for an
	# empty entry (accessed and dirty alone count as empty) folded in.
	# rdi = VA -> rax = address of the leaf's entry or 0, rcx = entry, edx = level,
	# r9 = address mask. A non-present entry that is not empty is a leaf. Clobbers r8.
	function lookup_address
	load_address_mask
	mov	r8, [info + INFO_page_offset_base]
	mov	rax, rdi
	shr	rax, 39
	and	eax, 511
	mov	rcx, [info + INFO_pgd]
	lea	rax, [rcx + rax*8]
	mov	rcx, [rax]
	mov	edx, 4
	test	cl, PTE_PRESENT
	jz	.Labsent
	walk_down 30
	dec	edx
	test	cl, PTE_PRESENT
	jz	.Labsent
	test	cl, cl			# PSE is bit 7
	js	.Lleaf
	walk_down 21
	dec	edx
	test	cl, PTE_PRESENT
	jz	.Labsent
	test	cl, cl
	js	.Lleaf
	walk_down 12
	dec	edx
	test	cl, PTE_PRESENT
	jz	.Labsent
.Lleaf:	ret
.Labsent:
	test	rcx, ~PTE_DIRTY_ACCESSED
	jnz	.Lleaf
	xor	eax, eax
	ret

	# pud_offset, pmd_offset, pte_offset of the kernel: rsi = address of the upper entry, rdi = VA
	# -> rax = address of the lower entry. The upper entry is trusted to be a table; of a leaf its
	# frame is taken as the table, of an empty entry frame 0, as the kernel does (pud_pfn_mask,
	# pmd_pfn_mask). Clobbers rcx, r8, r9.
	.macro	offset_function name, shift, leaf_size
	function \name
	load_address_mask
	mov	rax, [rsi]
	test	al, al
	jns	1f
	and	rax, -\leaf_size
1:	and	rax, r9
	add	rax, [info + INFO_page_offset_base]
	mov	rcx, rdi
	shr	rcx, \shift
	and	ecx, 511
	lea	rax, [rax + rcx*8]
	ret
	.endm
	offset_function pud_offset, 30, PAGE_SIZE
	offset_function pmd_offset, 21, PUD_SIZE
	offset_function pte_offset, 12, PMD_SIZE

	# rdi = VA -> rax = address of its top-level entry.
	function pgd_offset
	mov	rax, rdi
	shr	rax, 39
	and	eax, 511
	shl	eax, 3
	add	rax, [info + INFO_pgd]
	ret

	# A page for a page table: rax = GPA, 0 = none left (or the fault plan says so).
	function alloc_page
	mov	rax, [info + INFO_pt_fail_after]
	cmp	rax, -1
	je	1f
	sub	rax, 1
	jb	2f
	mov	[info + INFO_pt_fail_after], rax
1:	sub	qword ptr [info + INFO_pt_pool_left], 1
	jb	3f
	mov	eax, PAGE_SIZE
	xadd	[info + INFO_pt_pool], rax
	ret
3:	mov	qword ptr [info + INFO_pt_pool_left], 0
2:	xor	eax, eax
	ret

	# alloc_pmd_page, alloc_pte_page of the kernel: puts an empty table into the entry at rsi.
	# -> eax = 0, or -1 when there is no page. Clobbers rcx, rdx.
	function alloc_table
	call	alloc_page
	test	rax, rax
	jz	2f
	mov	rdx, rax
	add	rdx, [info + INFO_page_offset_base]
	mov	ecx, 512
1:	mov	qword ptr [rdx + rcx*8 - 8], 0
	dec	ecx
	jnz	1b
	or	rax, PTE_KERNEL
	or_private rax
	site	pte
	mov	[rsi], rax
	xor	eax, eax
	ret
2:	mov	eax, -1
	ret
