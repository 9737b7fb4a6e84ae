# SPDX-License-Identifier: GPL-2.0-or-later
# Page states of an SNP guest (N2, N3, N17 to N19; L6.12 arch/x86/coco/sev/core.c and shared.c:
# snp_set_memory_shared, snp_set_memory_private, set_pages_state, pvalidate_pages, vmgexit_psc;
# early_set_pages_state).
#
# To shared: PVALIDATE(clear), then the request, then the caller changes the entries. To private:
# the entries, then the request, then PVALIDATE(set). A request has at most 64 entries and is built
# in private memory; what the hypervisor makes of the shared copy is looked at and not trusted. Any
# failure is the guest's end. The boot loader fills in snp_ghcb and registers the GHCB.

	.set	GHCB_EXIT_CODE, 0x390
	.set	GHCB_EXIT_INFO_1, 0x398
	.set	GHCB_EXIT_INFO_2, 0x3a0
	.set	GHCB_SCRATCH, 0x3a8
	.set	GHCB_VALID, 0x3f0
	.set	GHCB_BUFFER, 0x800
	.set	GHCB_VALID_EXIT, 0x3c		# the four fields above, in byte 14 of the bitmap
	.set	EXIT_PSC, 0x80000010
	.set	EXIT_TERMINATE, 0x8000fffe
	.set	MSR_GHCB, 0xc0010130
	.set	MSR_PSC_REQ, 0x014
	.set	MSR_PSC_RESP, 0x015
	.set	PSC_PRIVATE, 1
	.set	PSC_SHARED, 2
	.set	PSC_ENTRIES, 64
	.set	PSC_2M, 56			# bit of an entry: 2 MiB
	.set	TERM_PSC, 1
	.set	TERM_PVALIDATE, 2
	.set	PVALIDATE_SIZE_MISMATCH, 6
	.set	PVALIDATE_NO_CHANGE, 255

	.data
	.balign	8
	.globl	snp_ghcb, snp_ghcb_gpa
snp_ghcb:	.quad	0		# VA of the GHCB in a shared mapping
snp_ghcb_gpa:	.quad	0
	.text

	.macro	vmgexit
	.byte	0xf3, 0x0f, 0x01, 0xd9
	.endm

	# rdi = VA in the direct map, esi = 1 for 2 MiB, edx = 1 to validate -> eax = 0, an error, or
	# 255 where nothing changed.
	function pvalidate
	mov	rax, rdi
	mov	ecx, esi
	.byte	0xf2, 0x0f, 0x01, 0xff
	jnc	1f
	mov	eax, PVALIDATE_NO_CHANGE
1:	ret

	# esi = reason, of Linux's own set: does not return.
	function sev_es_terminate
	mov	rbx, [snp_ghcb]
	shl	esi, 4
	or	esi, 1
	mov	[rbx + GHCB_EXIT_INFO_1], rsi
	mov	eax, EXIT_TERMINATE
	call	ghcb_exit
1:	hlt
	jmp	1b

	# eax = exit code, rbx = GHCB; the infos and the scratch address are filled in.
	function ghcb_exit
	mov	[rbx + GHCB_EXIT_CODE], rax
	xor	eax, eax
	mov	[rbx + GHCB_VALID], rax
	mov	[rbx + GHCB_VALID + 8], rax
	mov	byte ptr [rbx + GHCB_VALID + 14], GHCB_VALID_EXIT
	vmgexit
	ret

	# rdi = VA, rsi = pages, edx = PSC_PRIVATE or PSC_SHARED.
	function snp_set_pages_state
	push	rbx
	push	rbp
	push	r12
	push	r13
	push	r14
	push	r15
	sub	rsp, 8 + 8*PSC_ENTRIES
	mov	rbx, rdi
	mov	r12, rsi
	shl	r12, 12
	add	r12, rbx
	mov	r13d, edx
	mov	r15, rsp
1:	cmp	rbx, r12
	jae	9f
	call	psc_build
	cmp	r13d, PSC_SHARED
	jne	2f
	xor	edx, edx
	call	pvalidate_pages
2:	call	vmgexit_psc
	test	eax, eax
	jz	3f
	warn_once psc_failed
	mov	esi, TERM_PSC
	call	sev_es_terminate
3:	cmp	r13d, PSC_PRIVATE
	jne	1b
	mov	edx, 1
	call	pvalidate_pages
	jmp	1b
9:	add	rsp, 8 + 8*PSC_ENTRIES
	pop	r15
	pop	r14
	pop	r13
	pop	r12
	pop	rbp
	pop	rbx
	ret

	# Fills the request at r15 from VA rbx on, for at most up to r12: r14d = entries, rbx moves on.
	# Only the direct map is asked for in 2 MiB.
	function psc_build
	xor	r14d, r14d
1:	mov	rax, rbx
	sub	rax, [info + INFO_page_offset_base]
	mov	rcx, [info + INFO_max_pfn]
	shl	rcx, 12
	cmp	rax, rcx
	jae	3f
	mov	ecx, PAGE_SIZE
	xor	edx, edx
	test	rax, PMD_SIZE - 1
	jnz	2f
	mov	rsi, r12
	sub	rsi, rbx
	cmp	rsi, PMD_SIZE
	jb	2f
	mov	ecx, PMD_SIZE
	bts	rdx, PSC_2M
2:	or	rax, rdx
	mov	edx, r13d
	shl	rdx, 52
	or	rax, rdx
	mov	[r15 + r14*8 + 8], rax
	inc	r14d
	add	rbx, rcx
	cmp	rbx, r12
	jae	9f
	cmp	r14d, PSC_ENTRIES
	jb	1b
9:	lea	eax, [r14 - 1]
	shl	eax, 16
	mov	[r15], eax
	mov	dword ptr [r15 + 4], 0
	ret
3:	mov	rdi, rbx			# vmalloc: the frame is in the page tables
	call	lookup_address
	mov	rax, rcx
	and	rax, r9
	mov	ecx, PAGE_SIZE
	xor	edx, edx
	jmp	2b

	# r15 = request with r14d entries, edx = 1 to validate. Addresses are those of the direct map,
	# from the private copy of the request.
	function pvalidate_pages
	push	rbx
	push	rbp
	push	r12
	mov	ebp, edx
	xor	ebx, ebx
1:	mov	r12, [r15 + rbx*8 + 8]
	mov	rdi, r12
	mov	rax, 0x000ffffffffff000
	and	rdi, rax
	add	rdi, [info + INFO_page_offset_base]
	xor	esi, esi
	bt	r12, PSC_2M
	setc	sil
	mov	edx, ebp
	call	pvalidate
	test	eax, eax
	jz	4f
	bt	r12, PSC_2M
	jnc	8f
	cmp	eax, PVALIDATE_SIZE_MISMATCH
	jne	8f
	mov	r12d, 512
2:	xor	esi, esi
	mov	edx, ebp
	call	pvalidate
	test	eax, eax
	jnz	8f
	add	rdi, PAGE_SIZE
	dec	r12d
	jnz	2b
4:	inc	ebx
	cmp	ebx, r14d
	jb	1b
	pop	r12
	pop	rbp
	pop	rbx
	ret
8:	warn_once pvalidate_failed
	mov	esi, TERM_PVALIDATE
	call	sev_es_terminate

	# r15 = request with r14d entries -> eax = 0, or 1: the hypervisor refused, or lies about its
	# progress.
	function vmgexit_psc
	push	rbx
	push	rbp
	mov	rbx, [snp_ghcb]
	mov	rsi, r15
	lea	rdi, [rbx + GHCB_BUFFER]
	lea	ecx, [r14 + 1]
	rep movsq
1:	movzx	eax, word ptr [rbx + GHCB_BUFFER]
	cmp	ax, [rbx + GHCB_BUFFER + 2]
	ja	8f
	xor	eax, eax
	mov	[rbx + GHCB_EXIT_INFO_1], rax
	mov	[rbx + GHCB_EXIT_INFO_2], rax
	mov	rax, [snp_ghcb_gpa]
	add	rax, GHCB_BUFFER
	mov	[rbx + GHCB_SCRATCH], rax
	mov	eax, EXIT_PSC
	call	ghcb_exit
	cmp	dword ptr [rbx + GHCB_EXIT_INFO_1], 0
	jne	7f
	cmp	qword ptr [rbx + GHCB_EXIT_INFO_2], 0
	jne	7f
	cmp	dword ptr [rbx + GHCB_BUFFER + 4], 0
	jne	7f
	lea	ecx, [r14 - 1]			# the end may not grow; the start was 0
	movzx	eax, word ptr [rbx + GHCB_BUFFER + 2]
	cmp	eax, ecx
	jbe	1b
7:	mov	eax, 1
	jmp	9f
8:	xor	eax, eax
9:	pop	rbp
	pop	rbx
	ret

	# rdi = VA in the direct map, edx = PSC_PRIVATE or PSC_SHARED: one page by the MSR protocol.
	function early_set_page_state
	push	rbx
	push	rbp
	push	r12
	mov	rbx, rdi
	mov	ebp, edx
	cmp	ebp, PSC_SHARED
	jne	1f
	xor	esi, esi
	xor	edx, edx
	call	pvalidate
	test	eax, eax
	jnz	8f
1:	mov	rax, rbx
	sub	rax, [info + INFO_page_offset_base]
	mov	edx, ebp
	shl	rdx, 52
	or	rax, rdx
	or	rax, MSR_PSC_REQ
	mov	rdx, rax
	shr	rdx, 32
	mov	ecx, MSR_GHCB
	site	msr
	wrmsr
	vmgexit
	mov	ecx, MSR_GHCB
	site	msr
	rdmsr
	mov	r12d, edx
	shl	r12, 32
	mov	eax, eax
	or	r12, rax
	mov	rax, [snp_ghcb_gpa]
	mov	rdx, rax
	shr	rdx, 32
	site	msr
	wrmsr
	cmp	r12, MSR_PSC_RESP
	jne	7f
	cmp	ebp, PSC_PRIVATE
	jne	2f
	mov	rdi, rbx
	xor	esi, esi
	mov	edx, 1
	call	pvalidate
	test	eax, eax
	jnz	8f
2:	pop	r12
	pop	rbp
	pop	rbx
	ret
7:	mov	esi, TERM_PSC
	call	sev_es_terminate
8:	mov	esi, TERM_PVALIDATE
	call	sev_es_terminate
