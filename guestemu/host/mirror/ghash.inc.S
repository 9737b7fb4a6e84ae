# SPDX-License-Identifier: GPL-2.0-or-later
# GHASH with PCLMULQDQ and the tag of GCM (SP 800-38D).
#
# Computed as POLYVAL (RFC 8452, appendix A): with every block's bytes reversed and the key times x,
# GHASH is multiplication in GF(2)[x] / (x^128 + x^127 + x^126 + x^121 + 1) in plain bit order, with
# a factor x^-128 that two folding steps by the polynomial's second word give for free.

	.balign	16
fold_word:
	.quad	0xc200000000000000, 0
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

	# xmm0 = (xmm0 ^ block at [rsi]) times xmm5; xmm4 = fold_word, xmm6 = reverse_bytes.
	.macro	hash_block
	movdqu	xmm1, [rsi]
	pshufb	xmm1, xmm6
	pxor	xmm0, xmm1
	movdqa	xmm1, xmm0
	movdqa	xmm2, xmm0
	movdqa	xmm3, xmm0
	pclmulqdq xmm0, xmm5, 0x00
	pclmulqdq xmm1, xmm5, 0x11
	pclmulqdq xmm2, xmm5, 0x01
	pclmulqdq xmm3, xmm5, 0x10
	pxor	xmm2, xmm3
	movdqa	xmm3, xmm2
	pslldq	xmm2, 8
	psrldq	xmm3, 8
	pxor	xmm0, xmm2
	pxor	xmm1, xmm3
	.rept	2
	movdqa	xmm2, xmm0
	pclmulqdq xmm2, xmm4, 0x00
	pshufd	xmm0, xmm0, 0x4e
	pxor	xmm0, xmm2
	.endr
	pxor	xmm0, xmm1
	.endm

	# xmm0 = tag of the header in the context and the 4096 bytes of ciphertext at rsi.
make_tag:
	movdqa	xmm4, [rip + fold_word]
	movdqu	xmm5, [rbx + CTX_HASH]
	movdqa	xmm6, [rip + reverse_bytes]
	pxor	xmm0, xmm0
	mov	rdx, rsi
	lea	rsi, [rbx + CTX_HEADER]
	mov	ecx, 2
	call	hash_blocks
	mov	rsi, rdx
	mov	ecx, 256
	call	hash_blocks
	# Lengths in bits, most significant byte first: 32 and 4096 bytes.
	mov	rax, 32 * 8
	bswap	rax
	mov	[rbx + CTX_LENGTHS], rax
	mov	rax, 4096 * 8
	bswap	rax
	mov	[rbx + CTX_LENGTHS + 8], rax
	lea	rsi, [rbx + CTX_LENGTHS]
	mov	ecx, 1
	call	hash_blocks
	pshufb	xmm0, xmm6
	movdqu	[rbx + CTX_LENGTHS], xmm0
	call	load_rounds
	call	load_counter
	movdqa	xmm15, xmm11
	pshufb	xmm15, xmm12
	encrypt_xmm15
	movdqu	xmm0, [rbx + CTX_LENGTHS]
	pxor	xmm0, xmm15
	ret

	# ecx blocks from rsi on into xmm0.
hash_blocks:
	hash_block
	add	rsi, 16
	dec	ecx
	jnz	hash_blocks
	ret
