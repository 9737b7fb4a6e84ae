# SPDX-License-Identifier: GPL-2.0-or-later
# The merged notifier (A13-A15, A20, A30; L5.17 arch/x86/mm/mem_encrypt_amd.c,
# notify_range_enc_status_changed; L6.1, L6.12 enc_dec_hypercall; arch/x86/kernel/kvm.c,
# kvm_sev_hc_page_enc_status).

	.set	KVM_HC_MAP_GPA_RANGE, 12
	.set	MAP_GPA_RANGE_ENCRYPTED_BIT, 4

	# rdi = VA, esi = pages (int), edx = encrypted. The byte length is made in 32 bits: 2 GiB and
	# more give no hypercall at all (A20).
	function notify_pages
	shl	esi, 12
	movsxd	rsi, esi
	# rdi = VA, rsi = size in bytes, edx = encrypted: one hypercall for each leaf, with the size of
	# the leaf in pages and the hint "4 KiB". A missing entry warns and ends the walk (A13). Frame 0
	# and an unknown level go round again without moving on (A14).
	function enc_dec_hypercall
	push	rbx
	push	r12
	push	r13
	push	r14
	mov	rbx, rdi
	mov	r13d, edx
	lea	r12, [rdi + rsi]
	shl	r13d, MAP_GPA_RANGE_ENCRYPTED_BIT
1:	cmp	rbx, r12
	jae	9f
	mov	rdi, rbx
	call	lookup_address
	test	rax, rax
	jz	8f
	cmp	edx, 3
	ja	7f
	leaf_size r14
	mov	rsi, r14
	neg	rsi
	mov	rax, r9
	and	rax, r8
	and	rax, rsi
	jz	1b			# frame 0
	and	rbx, rsi
	add	rbx, r14
	cmp	qword ptr [info + INFO_notify_enabled], 0
	je	1b
	mov	rsi, rax
	mov	edi, KVM_HC_MAP_GPA_RANGE
	mov	rdx, r14
	shr	rdx, 12
	mov	ecx, r13d
	call	kvm_sev_hypercall3
	jmp	1b
7:	warn_once level
	jmp	1b
8:	warn_once lookup
9:	pop	r14
	pop	r13
	pop	r12
	pop	rbx
	ret
