# SPDX-License-Identifier: GPL-2.0-or-later
# AES-128 with AES-NI: key schedule, counter mode of GCM (FIPS 197; SP 800-38D, GCTR).

	# One step of the key schedule: xmm0 = round key i - 1 -> xmm0 = round key i, stored at [rdi].
	.macro	next_round rcon
	aeskeygenassist xmm1, xmm0, \rcon
	pshufd	xmm1, xmm1, 0xff
	.rept	3
	movdqa	xmm2, xmm0
	pslldq	xmm2, 4
	pxor	xmm0, xmm2
	.endr
	pxor	xmm0, xmm1
	add	rdi, 16
	movdqu	[rdi], xmm0
	.endm

	# CTX_KEY -> CTX_ROUNDS and CTX_HASH.
expand_key:
	movdqu	xmm0, [rbx + CTX_KEY]
	lea	rdi, [rbx + CTX_ROUNDS]
	movdqu	[rdi], xmm0
	.irp	rcon, 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36
	next_round \rcon
	.endr
	call	load_rounds
	pxor	xmm15, xmm15
	call	encrypt_block
	jmp	set_hash_key

	# xmm0-xmm10 = round keys.
load_rounds:
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
	movdqu	xmm\n, [rbx + CTX_ROUNDS + 16 * \n]
	.endr
	ret

	# xmm15 = AES(xmm15) with the keys of load_rounds.
	.macro	encrypt_xmm15
	pxor	xmm15, xmm0
	.irp	n, 1, 2, 3, 4, 5, 6, 7, 8, 9
	aesenc	xmm15, xmm\n
	.endr
	aesenclast xmm15, xmm10
	.endm

encrypt_block:
	encrypt_xmm15
	ret

	# r14, r15 = the 12 bytes of the header's IV, r11d = the block counter of J0.
load_iv:
	mov	r14d, [rbx + CTX_HEADER + HDR_SENDER]
	mov	r15, [rbx + CTX_HEADER + HDR_SEQUENCE]
	mov	rax, r15
	shl	rax, 32
	or	r14, rax
	shr	r15, 32
	mov	r11d, 1
	ret

	# xmm15 = key stream of block r11d. Clobbers rax, xmm14.
	.macro	key_stream
	mov	eax, r11d
	bswap	eax
	shl	rax, 32
	or	rax, r15
	movq	xmm15, r14
	movq	xmm14, rax
	punpcklqdq xmm15, xmm14
	encrypt_xmm15
	.endm

	# Decrypts one page, rsi -> rdi, from J0 + 1 on. After load_rounds and load_iv.
open_page:
	mov	r11d, 2
	mov	ecx, 256
1:	key_stream
	movdqu	xmm14, [rsi]
	pxor	xmm15, xmm14
	movdqu	[rdi], xmm15
	add	rsi, 16
	add	rdi, 16
	inc	r11d
	dec	ecx
	jnz	1b
	ret
