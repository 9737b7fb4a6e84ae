# SPDX-License-Identifier: GPL-2.0-or-later
# The merged notifier (A13-A15, A20, A30) under a policy: POLICY_PROPAGATE ends the walk at the
# first error and leaves -EIO in INFO_finish_status; all others go on as upstream does.

	.set	KVM_HC_MAP_GPA_RANGE, 12
	.set	MAP_GPA_RANGE_ENCRYPTED_BIT, 4

	# rdi = VA, esi = pages (int), edx = encrypted. The byte length is made in 32 bits (A20).
	function notify_pages
	shl	esi, 12
	movsxd	rsi, esi
	# rdi = VA, rsi = size in bytes, edx = encrypted: one hypercall for each leaf. A missing entry is
	# a failure and ends the walk (A13); frame 0 goes round again (A14).
	function enc_dec_hypercall
	mov	dword ptr [info + INFO_finish_status], 0
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
	ja	8f
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
	test	rax, rax
	jz	1b
	cmp	dword ptr [error_policy], POLICY_PROPAGATE
	jne	1b
	jmp	7f
8:	call	notification_failed
	cmp	dword ptr [error_policy], POLICY_PROPAGATE
	jne	9f
7:	mov	dword ptr [info + INFO_finish_status], -EIO
9:	pop	r14
	pop	r13
	pop	r12
	pop	rbx
	ret
