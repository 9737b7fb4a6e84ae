# SPDX-License-Identifier: GPL-2.0-or-later
# The notifier of the never-merged patch set (A5-A7; mail "mm: x86: Invoke hypercall when page
# encryption status is changed", v6 to v12: set_memory_enc_dec_hypercall).

	.set	KVM_HC_PAGE_ENC_STATUS, 12

	# rdi = VA, esi = pages (int), edx = encrypted: one hypercall (GPA of the leaf, its pages, 0 or
	# 1) for each leaf. A missing entry or an unknown level ends the walk silently (A6); the byte
	# length is made in 32 bits (A20).
	function set_memory_enc_dec_hypercall
	push	rbx
	push	r12
	push	r13
	push	r14
	mov	rbx, rdi
	mov	r13d, edx
	shl	esi, 12
	movsxd	r12, esi
	add	r12, rbx
1:	cmp	rbx, r12
	jae	9f
	mov	rdi, rbx
	call	lookup_address
	test	rax, rax
	jz	9f
	cmp	edx, 3
	ja	9f
	leaf_size r14
	mov	rsi, r14
	neg	rsi
	and	rbx, rsi
	add	rbx, r14
	and	rsi, r9
	and	rsi, r8
	mov	edi, KVM_HC_PAGE_ENC_STATUS
	mov	rdx, r14
	shr	rdx, 12
	mov	ecx, r13d
	call	kvm_sev_hypercall3
	jmp	1b
9:	pop	r14
	pop	r13
	pop	r12
	pop	rbx
	ret
