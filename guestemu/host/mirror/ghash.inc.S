# SPDX-License-Identifier: GPL-2.0-or-later
# GHASH with PCLMULQDQ and the tag of GCM (SP 800-38D).
#
# Computed as POLYVAL (RFC 8452, appendix A): with every block's bytes reversed and the key times x,
# GHASH is multiplication in GF(2)[x] / (x^128 + x^127 + x^126 + x^121 + 1) in plain bit order, with
# a factor x^-128 that two folding steps by the polynomial's second word give for free.

	.set	FOLD_WORD, 0xc200000000000000

	.balign	16
reverse_bytes:
	.byte	15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0
hash_overflow:
	.quad	1, 0xc200000000000000

	# xmm15 = H -> CTX_HASH = reversed H times x.
set_hash_key:
	pshufb	xmm15, [rip + reverse_bytes]
	movdqa	xmm0, xmm15
	movdqa	xmm1, xmm15
	psllq	xmm0, 1
	psrlq	xmm1, 63
	movdqa	xmm2, xmm1
	pslldq	xmm1, 8
	por	xmm0, xmm1
	# All ones where a bit fell out at the top.
	pshufd	xmm2, xmm2, 0xaa
	pxor	xmm1, xmm1
	psubd	xmm1, xmm2
	pand	xmm1, [rip + hash_overflow]
	pxor	xmm0, xmm1
	movdqu	[rbx + CTX_HASH], xmm0
	ret

	# xmm13 = xmm13 times the key in r8 (low half) and r9; r10 = FOLD_WORD. The rest of the registers
	# is AES's, so that a page needs one pass over memory. Clobbers xmm11, xmm14, xmm15.
	.macro	hash_multiply
	movq	xmm14, r8
	movq	xmm11, r9
	movdqa	xmm15, xmm14
	pclmulqdq xmm15, xmm13, 0x00
	pclmulqdq xmm14, xmm13, 0x10
	pclmulqdq xmm11, xmm13, 0x00
	pxor	xmm14, xmm11
	movq	xmm11, r9
	pclmulqdq xmm13, xmm11, 0x01
	movdqa	xmm11, xmm14
	pslldq	xmm11, 8
	psrldq	xmm14, 8
	pxor	xmm15, xmm11
	pxor	xmm13, xmm14
	movq	xmm14, r10
	.rept	2
	movdqa	xmm11, xmm15
	pclmulqdq xmm11, xmm14, 0x00
	pshufd	xmm15, xmm15, 0x4e
	pxor	xmm15, xmm11
	.endr
	pxor	xmm13, xmm15
	.endm

	# Takes the block in xmm15 into the hash.
	.macro	hash_xmm15
	pshufb	xmm15, xmm12
	pxor	xmm13, xmm15
	hash_multiply
	.endm

	# Hash of the header's first 32 bytes, and everything that a page needs: keys, IV, constants.
start_packet:
	call	load_rounds
	call	load_iv
	movdqa	xmm12, [rip + reverse_bytes]
	mov	r8, [rbx + CTX_HASH]
	mov	r9, [rbx + CTX_HASH + 8]
	movabs	r10, FOLD_WORD
	pxor	xmm13, xmm13
	.irp	n, 0, 16
	movdqu	xmm15, [rbx + CTX_HEADER + \n]
	hash_xmm15
	.endr
	ret

	# Encrypts one page, rsi -> rdi. The hash takes the ciphertext from registers: what the host
	# writes to rdi meanwhile does not get into the tag.
seal_page:
	mov	ecx, 256
1:	inc	r11d
	key_stream
	movdqu	xmm14, [rsi]
	pxor	xmm15, xmm14
	movdqu	[rdi], xmm15
	hash_xmm15
	add	rsi, 16
	add	rdi, 16
	dec	ecx
	jnz	1b
	ret

	# Copies one page of ciphertext, rsi -> rdi, and hashes what it copied.
take_page:
	mov	ecx, 256
1:	movdqu	xmm15, [rsi]
	movdqu	[rdi], xmm15
	hash_xmm15
	add	rsi, 16
	add	rdi, 16
	dec	ecx
	jnz	1b
	ret

	# xmm13 = the tag, after 32 bytes of header and one page.
finish_tag:
	mov	eax, 4096 * 8
	movq	xmm15, rax
	mov	eax, 32 * 8
	movq	xmm14, rax
	punpcklqdq xmm15, xmm14
	pxor	xmm13, xmm15
	hash_multiply
	pshufb	xmm13, xmm12
	mov	r11d, 1
	key_stream
	pxor	xmm13, xmm15
	ret
