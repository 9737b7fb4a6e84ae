# SPDX-License-Identifier: GPL-2.0-or-later
# A migration handler for a mirror VM (F8-F13): waits in a mailbox, exports and imports single
# pages under AES-128-GCM. One page of position-independent 64-bit code, CPL 0, no interrupts.
#
# Start state: rdi = context page (private; fields CTX_* below), rsp = top of a private stack page.
# Everything that the host could change under our feet is read once: the command into registers,
# header and ciphertext into context and bounce page, where they are verified and then used.

	.intel_syntax noprefix

	# The context page; layout as in context.py.
	.set	CTX_MAILBOX, 0x000		# VA of the mailbox in the C=0 window
	.set	CTX_SHIFT, 0x008		# VA = address of a command + this
	.set	CTX_BOUNCE, 0x010		# VA of a private page for ciphertext
	.set	CTX_FLAGS, 0x018		# u32, FLAG_*
	.set	CTX_READY, 0x01c		# u32: INIT was called
	.set	CTX_SENDER, 0x020		# who we are in headers
	.set	CTX_PEER, 0x028			# whose packets we take
	.set	CTX_SEND_NEXT, 0x030		# sequence number of the next packet out
	.set	CTX_RECV_NEXT, 0x038		# of the next one in; 0: the session's first
	.set	CTX_SESSION, 0x040		# u32: our sessions so far; never goes back
	.set	CTX_PEER_SESSION, 0x044		# u32: the latest session of the peer
	.set	CTX_KEY, 0x050			# 16 bytes, put here by the guest's owner
	.set	CTX_ROUNDS, 0x060		# 11 round keys
	.set	CTX_HASH, 0x110			# GHASH key as POLYVAL takes it
	.set	CTX_HEADER, 0x120		# 48 bytes
	.set	CTX_SECRETS_END, 0x150
	.set	CTX_OWN_COUNT, 0x160		# u32, then u64s: VAs of our own pages
	.set	CTX_OWN, 0x168

	.set	FLAG_BOUND, 1
	.set	FLAG_COPY, 2
	.set	FLAG_GUARD, 4

	.set	MB_NR, 0			# F10
	.set	MB_GPA, 8
	.set	MB_RET, 20
	.set	MB_GO, 24
	.set	MB_DONE, 28
	.set	MB_HEADER_LENGTH, 0x800		# F13
	.set	MB_HEADER, 0x804
	.set	MB_PAGE, 0x1000

	.set	HEADER_SIZE, 48
	.set	HDR_FORM, 4
	.set	HDR_ADDRESS, 8
	.set	HDR_SEQUENCE, 16
	.set	HDR_SENDER, 24
	.set	HDR_TAG, 32
	.set	HEADER_MAGIC, 0x484d4547
	.set	FORM_BOUND, 1
	.set	FORM_UNBOUND, 2

	.set	RET_INVALID_FUNCTION, -1
	.set	RET_AUTHENTICATION, -2
	.set	RET_ADDRESS, -3

	.text
	.globl	handler_entry, handler_wait, handler_init, handler_save, handler_restore
	.globl	handler_reset, handler_end

handler_entry:
	mov	rbx, rdi
	mov	rbp, [rbx + CTX_MAILBOX]
handler_wait:
	cmp	dword ptr [rbp + MB_GO], 0
	jne	1f
	hlt
	jmp	handler_wait
1:	mov	dword ptr [rbp + MB_GO], 0
	mov	rax, [rbp + MB_NR]
	mov	r12, [rbp + MB_GPA]
	cmp	rax, 3
	ja	3f
	je	2f
	test	rax, rax
	jz	4f
	cmp	dword ptr [rbx + CTX_READY], 0
	je	3f
	cmp	rax, 1
	jne	5f
	call	handler_save
	jmp	8f
5:	call	handler_restore
	jmp	8f
4:	call	handler_init
	jmp	8f
2:	call	handler_reset
	jmp	8f
3:	mov	eax, RET_INVALID_FUNCTION
8:	call	wipe_registers
	mov	[rbp + MB_RET], eax
	mfence
	mov	dword ptr [rbp + MB_DONE], 1
	jmp	handler_wait

	# Round keys and GHASH key from the owner's key; a new session of our own. -> eax = 0.
handler_init:
	call	expand_key
	mov	eax, [rbx + CTX_SESSION]
	inc	eax
	mov	[rbx + CTX_SESSION], eax
	shl	rax, 32
	mov	[rbx + CTX_SEND_NEXT], rax
	mov	qword ptr [rbx + CTX_RECV_NEXT], 0
	mov	dword ptr [rbx + CTX_READY], 1
	xor	eax, eax
	ret

	# The session ends and its round keys go. The numbers of sessions stay: no IV comes twice, and
	# no packet of an older session is taken again. -> eax = 0.
handler_reset:
	mov	dword ptr [rbx + CTX_READY], 0
	lea	rdi, [rbx + CTX_ROUNDS]
	mov	ecx, (CTX_SECRETS_END - CTX_ROUNDS) / 8
	xor	eax, eax
	rep stosq
	ret

	# r12 = address of a command -> r13 = VA, or eax = RET_ADDRESS and ZF clear.
check_address:
	mov	r13, r12
	add	r13, [rbx + CTX_SHIFT]
	test	r13, 0xfff
	jnz	9f
	test	dword ptr [rbx + CTX_FLAGS], FLAG_GUARD
	jz	8f
	mov	ecx, [rbx + CTX_OWN_COUNT]
	lea	rdx, [rbx + CTX_OWN]
1:	test	ecx, ecx
	jz	8f
	cmp	r13, [rdx]
	je	9f
	add	rdx, 8
	dec	ecx
	jmp	1b
8:	xor	eax, eax
	ret
9:	mov	eax, RET_ADDRESS
	test	eax, eax
	ret

	# SAVE: the page at r12 to the mailbox. -> eax.
handler_save:
	call	check_address
	jnz	9f
	test	dword ptr [rbx + CTX_FLAGS], FLAG_COPY
	jz	1f
	mov	dword ptr [rbp + MB_HEADER_LENGTH], 0
	mov	rsi, r13
	lea	rdi, [rbp + MB_PAGE]
	call	copy_page
	xor	eax, eax
	ret
1:	# The header up to the tag.
	mov	dword ptr [rbx + CTX_HEADER], HEADER_MAGIC
	mov	eax, FORM_UNBOUND
	xor	edx, edx
	test	dword ptr [rbx + CTX_FLAGS], FLAG_BOUND
	jz	2f
	mov	eax, FORM_BOUND
	mov	rdx, r12
2:	mov	[rbx + CTX_HEADER + HDR_FORM], eax
	mov	[rbx + CTX_HEADER + HDR_ADDRESS], rdx
	mov	rax, [rbx + CTX_SEND_NEXT]
	mov	[rbx + CTX_HEADER + HDR_SEQUENCE], rax
	inc	qword ptr [rbx + CTX_SEND_NEXT]
	mov	rax, [rbx + CTX_SENDER]
	mov	[rbx + CTX_HEADER + HDR_SENDER], rax
	call	start_packet
	mov	rsi, r13
	lea	rdi, [rbp + MB_PAGE]
	call	seal_page
	call	finish_tag
	movdqu	[rbx + CTX_HEADER + HDR_TAG], xmm13
	mov	dword ptr [rbp + MB_HEADER_LENGTH], HEADER_SIZE
	lea	rsi, [rbx + CTX_HEADER]
	lea	rdi, [rbp + MB_HEADER]
	mov	ecx, HEADER_SIZE / 8
	rep movsq
	xor	eax, eax
9:	ret

	# RESTORE: the mailbox's page to r12. Writes nothing there unless it ends with eax = 0.
handler_restore:
	call	check_address
	jnz	9f
	test	dword ptr [rbx + CTX_FLAGS], FLAG_COPY
	jz	1f
	lea	rsi, [rbp + MB_PAGE]
	mov	rdi, r13
	call	copy_page
	xor	eax, eax
	ret
1:	cmp	dword ptr [rbp + MB_HEADER_LENGTH], HEADER_SIZE
	jne	8f
	lea	rsi, [rbp + MB_HEADER]
	lea	rdi, [rbx + CTX_HEADER]
	mov	ecx, HEADER_SIZE / 8
	rep movsq
	cmp	dword ptr [rbx + CTX_HEADER], HEADER_MAGIC
	jne	8f
	mov	eax, FORM_UNBOUND
	test	dword ptr [rbx + CTX_FLAGS], FLAG_BOUND
	jz	2f
	mov	eax, FORM_BOUND
2:	cmp	[rbx + CTX_HEADER + HDR_FORM], eax
	jne	8f
	mov	rax, [rbx + CTX_PEER]
	cmp	[rbx + CTX_HEADER + HDR_SENDER], rax
	jne	8f
	call	start_packet
	lea	rsi, [rbp + MB_PAGE]
	mov	rdi, [rbx + CTX_BOUNCE]
	call	take_page
	call	finish_tag
	movdqu	xmm15, [rbx + CTX_HEADER + HDR_TAG]
	pcmpeqb	xmm13, xmm15
	pmovmskb eax, xmm13
	cmp	eax, 0xffff
	jne	8f
	test	dword ptr [rbx + CTX_FLAGS], FLAG_BOUND
	jz	3f
	call	check_order
	jnz	8f
3:	mov	rsi, [rbx + CTX_BOUNCE]
	mov	rdi, r13
	call	open_page
	xor	eax, eax
9:	ret
8:	mov	eax, RET_AUTHENTICATION
	ret

	# The authentic header's address is the command's, and its sequence number the one that follows
	# the last; the first of a session counts from 0, in a session of the peer never seen before.
	# ZF set if so, and the expectation moves on.
check_order:
	cmp	[rbx + CTX_HEADER + HDR_ADDRESS], r12
	jne	9f
	mov	rax, [rbx + CTX_HEADER + HDR_SEQUENCE]
	mov	rdx, [rbx + CTX_RECV_NEXT]
	test	rdx, rdx
	jnz	1f
	test	eax, eax
	jnz	9f
	mov	rdx, rax
	shr	rdx, 32
	cmp	edx, [rbx + CTX_PEER_SESSION]
	jbe	8f
	mov	[rbx + CTX_PEER_SESSION], edx
	mov	rdx, rax
1:	cmp	rax, rdx
	jne	9f
	inc	rax
	mov	[rbx + CTX_RECV_NEXT], rax
	xor	eax, eax
	ret
8:	or	eax, 1
9:	ret

	# rsi -> rdi, 4096 bytes. Not REP MOVSQ: the emulator pays for each repetition as for a block.
copy_page:
	mov	ecx, 4096 / 128
1:	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7
	movdqu	xmm\n, [rsi + 16 * \n]
	.endr
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7
	movdqu	[rdi + 16 * \n], xmm\n
	.endr
	sub	rsi, -128
	sub	rdi, -128
	dec	ecx
	jnz	1b
	ret

	# Host software can see the registers of a plain SEV guest: leave no key in them. Keeps eax.
wipe_registers:
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	pxor	xmm\n, xmm\n
	.endr
	ret

	.include "aes.inc.S"
	.include "ghash.inc.S"

	.balign	16
handler_end:
