# SPDX-License-Identifier: GPL-2.0-or-later
# The hypercall primitive, which looks at the host's answer, and what is done when it is not 0
# (R5: Petkov, Kalra, Rutherford, Bonzini, May 2021).

	.set	POLICY_IGNORE, 0
	.set	POLICY_WARN, 1
	.set	POLICY_PROPAGATE, 2
	.set	POLICY_MSR_ZERO, 3
	.set	POLICY_STOP_CALL, 4
	.set	POLICY_PERMANENT, 5
	.set	POLICY_BUG, 6

	.set	HC_STOP_MIGRATION, 0x100	# proposed, never assigned: the ledger's own number
	.set	MIGRATION_DISABLED_FOR_GOOD, 2	# proposed: a bit that a reboot does not write

	.data
	.balign	8
	.globl	error_policy
error_policy:
	.quad	POLICY_IGNORE
	.text

	# edi = number, rsi, rdx, rcx = arguments 0-2 -> rax = the host's answer. Plain VMMCALL (A29).
	function kvm_sev_hypercall3
	push	rbx
	mov	eax, edi
	mov	rbx, rsi
	xchg	rcx, rdx
	site	vmmcall
	vmmcall
	pop	rbx
	test	rax, rax
	jnz	notification_failed
	ret

	# What the policy does, at once. Keeps all registers but rcx and rdx.
	function notification_failed
	push	rax
	mov	eax, [error_policy]
	cmp	eax, POLICY_WARN
	je	1f
	cmp	eax, POLICY_MSR_ZERO
	je	2f
	cmp	eax, POLICY_STOP_CALL
	je	3f
	cmp	eax, POLICY_PERMANENT
	je	4f
	cmp	eax, POLICY_BUG
	je	5f
	jmp	9f
1:	warn_once notification
	jmp	9f
2:	xor	eax, eax
	call	write_migration_control
	jmp	9f
3:	mov	eax, HC_STOP_MIGRATION
	site	vmmcall
	vmmcall
	jmp	9f
4:	mov	eax, MIGRATION_DISABLED_FOR_GOOD
	call	write_migration_control
9:	pop	rax
	ret
5:	bug	notification
