# SPDX-License-Identifier: GPL-2.0-or-later
# Plain memory accesses through the page's current mapping, and a C-bit flip that tells nobody.

	# rdi = VA, esi = byte, rdx = length in bytes -> eax = 0.
	function guest_memset
	movzx	eax, sil
	mov	rcx, 0x0101010101010101
	imul	rax, rcx
	mov	rcx, rdx
	shr	rcx, 3
	rep stosq
	mov	ecx, edx
	and	ecx, 7
	rep stosb
	xor	eax, eax
	ret

	# rdi = VA -> rax = the 8 bytes there.
	function guest_load8
	mov	rax, [rdi]
	ret

	# rdi = VA, esi = private: sets the C-bit of a 4 KiB leaf to that, with INVLPG and no
	# notification -> eax = 0, or -EFAULT when there is no such leaf.
	function guest_set_cbit
	call	lookup_address
	test	rax, rax
	jz	2f
	cmp	edx, 1
	jne	2f
	mov	rdx, [info + INFO_cbit_mask]
	or	rcx, rdx
	test	esi, esi
	.ifdef	IS_TDX
	jz	1f			# the bit is set in a shared entry
	.else
	jnz	1f
	.endif
	xor	rcx, rdx
1:	site	pte
	mov	[rax], rcx
	site	flush
	invlpg	[rdi]
	xor	eax, eax
	ret
2:	mov	eax, -EFAULT
	ret
