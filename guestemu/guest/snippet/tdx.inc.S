# SPDX-License-Identifier: GPL-2.0-or-later
# The callbacks of a TD (T17; L6.12 and L7.3 arch/x86/coco/tdx/tdx.c, tdx_enc_status_changed, and
# tdx-shared.c, tdx_accept_memory, try_accept_one).

	.set	TDG_VP_VMCALL, 0
	.set	TDG_MEM_PAGE_ACCEPT, 6
	.set	TDVMCALL_MAP_GPA, 0x10001
	.set	TDVMCALL_STATUS_RETRY, 1
	.set	TDVMCALL_EXPOSE_REGS_MASK, 0xffcc
	.set	MAX_RETRIES_PER_PAGE, 3

	.set	TDX_NEXT, 0			# addresses of MapGPA, with the shared bit if it is set
	.set	TDX_END, 8
	.set	TDX_FIRST, 16			# addresses of ACCEPT
	.set	TDX_LAST, 24
	.set	TDX_TRIES, 32
	.set	TDX_PRIVATE, 40
	.set	TDX_SIZE, 48

	.macro	tdcall
	.byte	0x66, 0x0f, 0x01, 0xcc
	.endm

	# rdi = VA, rsi = pages (sign-extended), edx = to private -> eax = 0 or -EIO.
	# Keeps rbx, rbp, r12-r15. The physical address is the VA's place in the direct map, whatever
	# range the VA is in (T21).
	function tdx_enc_status_changed
	push	r12
	push	r13
	sub	rsp, TDX_SIZE
	sub	rdi, [info + INFO_page_offset_base]
	shl	rsi, 12
	add	rsi, rdi
	mov	[rsp + TDX_FIRST], rdi
	mov	[rsp + TDX_LAST], rsi
	mov	[rsp + TDX_PRIVATE], rdx
	test	edx, edx
	jnz	1f
	or	rdi, [info + INFO_cbit_mask]
	or	rsi, [info + INFO_cbit_mask]
1:	mov	[rsp + TDX_NEXT], rdi
	mov	[rsp + TDX_END], rsi
	mov	qword ptr [rsp + TDX_TRIES], 0
2:	cmp	qword ptr [rsp + TDX_TRIES], MAX_RETRIES_PER_PAGE
	jae	8f
	mov	r12, [rsp + TDX_NEXT]
	mov	r13, [rsp + TDX_END]
	sub	r13, r12
	mov	eax, TDG_VP_VMCALL
	mov	ecx, TDVMCALL_EXPOSE_REGS_MASK
	xor	r10d, r10d
	mov	r11d, TDVMCALL_MAP_GPA
	tdcall
	test	rax, rax
	jnz	7f
	cmp	r10, TDVMCALL_STATUS_RETRY
	jne	4f
	cmp	r11, [rsp + TDX_NEXT]
	jb	8f
	cmp	r11, [rsp + TDX_END]
	jae	8f
	cmp	r11, [rsp + TDX_NEXT]
	jne	3f
	inc	qword ptr [rsp + TDX_TRIES]
	jmp	2b
3:	mov	[rsp + TDX_NEXT], r11
	mov	qword ptr [rsp + TDX_TRIES], 0
	jmp	2b
4:	test	r10, r10
	jnz	8f
	cmp	dword ptr [rsp + TDX_PRIVATE], 0
	je	6f
5:	mov	rdi, [rsp + TDX_FIRST]
	mov	rsi, [rsp + TDX_LAST]
	call	tdx_accept_memory
	jmp	9f
6:	xor	eax, eax
	jmp	9f
7:	bug	tdvmcall
8:	mov	eax, -EIO
9:	add	rsp, TDX_SIZE
	pop	r13
	pop	r12
	ret

	# rdi = first GPA, rsi = its end -> eax = 0 or -EIO. Each step tries 1 GiB, 2 MiB, 4 KiB where
	# address and rest are large enough; any completion code but 0 counts as failure (T20).
	function tdx_accept_memory
1:	cmp	rdi, rsi
	jae	4f
	mov	r8d, 2			# 1 GiB first
2:	lea	ecx, [r8 + r8*8 + 12]
	mov	r9d, 1
	shl	r9, cl			# bytes of a page at this level
	lea	rax, [r9 - 1]
	test	rdi, rax
	jnz	3f
	mov	rax, rsi
	sub	rax, rdi
	cmp	rax, r9
	jb	3f
	mov	rcx, rdi
	or	rcx, r8
	mov	eax, TDG_MEM_PAGE_ACCEPT
	tdcall
	test	rax, rax
	jnz	3f
	add	rdi, r9
	jmp	1b
3:	sub	r8d, 1
	jnc	2b
	mov	eax, -EIO
	ret
4:	xor	eax, eax
	ret

	# tdx_enc_status_change_finish: rdi = VA, esi = pages, edx = to private. A decryption tells the
	# host now; the status goes to INFO_finish_status, where the caller reads it.
	function notify_pages
	xor	eax, eax
	test	edx, edx
	jnz	1f
	movsxd	rsi, esi
	call	tdx_enc_status_changed
1:	mov	[info + INFO_finish_status], eax
	ret
