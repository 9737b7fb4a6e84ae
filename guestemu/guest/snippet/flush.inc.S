# SPDX-License-Identifier: GPL-2.0-or-later
# TLB and cache flushes of a conversion (A26; L6.1 arch/x86/mm/pat/set_memory.c, cpa_flush).

	.set	TLB_SINGLE_PAGE_FLUSH_CEILING, 33
	.set	CR4_PGE_BIT, 7
	.set	CACHE_LINE, 64

	# flush_tlb_all: a change of CR4.PGE drops global entries too. Clobbers rax, rcx.
	function flush_tlb_all
	mov	rax, cr4
	mov	rcx, rax
	btc	rcx, CR4_PGE_BIT
	site	flush
	mov	cr4, rcx
	mov	cr4, rax
	ret

	# clflush of [rdi, rsi) by lines, no fence. Advances rdi.
	.macro	clflush_lines
77:	clflush	[rdi]
	add	rdi, CACHE_LINE
	cmp	rdi, rsi
	jb	77b
	.endm

	# rdi = VA, rsi = size in bytes (not 0): clflush_cache_range of the kernel.
	function clflush_cache_range
	mfence
	add	rsi, rdi
	clflush_lines
	mfence
	ret

	# rbp = cpa, esi = whether caches are flushed too. Clobbers all but rbx, rbp, r12-r15.
	function cpa_flush
	mov	r10d, esi
	mov	rcx, [rbp + CPA_NUMPAGES]
	cmp	dword ptr [rbp + CPA_FORCE_FLUSH_ALL], 0
	jne	2f
	cmp	rcx, TLB_SINGLE_PAGE_FLUSH_CEILING
	ja	2f
	mov	rax, [rbp + CPA_VADDR]
	test	rcx, rcx
	jz	3f
1:	site	flush
	invlpg	[rax]
	add	rax, PAGE_SIZE
	dec	rcx
	jnz	1b
	jmp	3f
2:	call	flush_tlb_all
3:	test	r10d, r10d
	jz	9f
	mfence
	mov	r10, [rbp + CPA_VADDR]
	mov	r11, [rbp + CPA_NUMPAGES]
	test	r11, r11
	jz	8f
4:	mov	rdi, r10
	call	lookup_address
	add	r10, PAGE_SIZE
	test	rax, rax
	jz	5f
	test	cl, PTE_PRESENT
	jz	5f
	mov	rsi, r10
	clflush_lines
5:	dec	r11
	jnz	4b
8:	mfence
9:	ret
