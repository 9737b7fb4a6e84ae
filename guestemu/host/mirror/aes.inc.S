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

	# xmm11 = J0 of the header in the context, least significant byte first, so that the block
	# counter is a 32-bit lane. xmm12 = the byte order of blocks, xmm13 = 1.
load_counter:
	movdqa	xmm12, [rip + reverse_bytes]
	movdqa	xmm13, [rip + one]
	movd	xmm11, dword ptr [rbx + CTX_HEADER + HDR_SENDER]
	movq	xmm14, qword ptr [rbx + CTX_HEADER + HDR_SEQUENCE]
	pslldq	xmm14, 4
	por	xmm11, xmm14
	pshufb	xmm11, xmm12
	por	xmm11, xmm13
	ret

	# GCTR over one page, rsi -> rdi, from J0 + 1 on; encryption and decryption are the same.
crypt_page:
	call	load_rounds
	call	load_counter
	mov	ecx, 256
1:	paddd	xmm11, xmm13
	movdqa	xmm15, xmm11
	pshufb	xmm15, xmm12
	encrypt_xmm15
	movdqu	xmm14, [rsi]
	pxor	xmm15, xmm14
	movdqu	[rdi], xmm15
	add	rsi, 16
	add	rdi, 16
	dec	ecx
	jnz	1b
	ret

	.balign	16
reverse_bytes:
	.byte	15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0
one:
	.quad	1, 0
