# SPDX-License-Identifier: GPL-2.0-or-later
# Enabling and disabling migration since 5.16 (A40, A42, A43, A47; L5.17 and L7.1
# arch/x86/kernel/kvm.c: kvm_init_platform, setup_efi_kvm_sev_migration, kvm_guest_cpu_offline).
# Functions that are void in the kernel leave 0 in eax. Knob: `notify_early`, as in early.inc.S.

	.set	KVM_MIGRATION_READY, 1
	.set	KVM_FEATURE_MIGRATION_CONTROL, 17
	.set	HC_ENCRYPTED, 0x10

	# edi = EFI-booted: install the notifier, report RAM as encrypted and .bss..decrypted as
	# decrypted; without EFI allow migration at once.
	function kvm_init_platform
	push	rbx
	push	r12
	push	r13
	mov	r13d, edi
	cmp	qword ptr [info + INFO_cbit_mask], 0
	je	9f
	bt	qword ptr [info + INFO_kvm_features], KVM_FEATURE_MIGRATION_CONTROL
	jnc	9f
	mov	qword ptr [info + INFO_notify_enabled], 1
	mov	ebx, offset info + INFO_e820
	mov	r12, [info + INFO_e820_count]
	cmp	r12, E820_ENTRIES
	jbe	1f
	mov	r12d, E820_ENTRIES
1:	sub	r12, 1
	jb	3f
	cmp	dword ptr [rbx + 16], E820_TYPE_RAM
	jne	2f
	mov	edi, KVM_HC_MAP_GPA_RANGE
	mov	rsi, [rbx]
	mov	rdx, [rbx + 8]
	add	rdx, PAGE_SIZE - 1
	shr	rdx, 12
	mov	ecx, HC_ENCRYPTED
	call	kvm_sev_hypercall3
2:	add	rbx, E820_ENTRY_SIZE
	jmp	1b
3:	mov	rdi, [info + INFO_bss_decrypted_start]
	mov	rsi, [info + INFO_bss_decrypted_end]
	sub	rsi, rdi
	xor	edx, edx
	notify_early
	test	r13d, r13d
	jnz	9f
	mov	eax, KVM_MIGRATION_READY
	call	write_migration_control
9:	xor	eax, eax
	pop	r13
	pop	r12
	pop	rbx
	ret

	# edi = EFI_BOOT, esi = EFI_RUNTIME_SERVICES, rdx = status of reading the variable
	# "SevLiveMigrationEnabled" (0 = EFI_SUCCESS), ecx = its byte -> eax = 0 always.
	function setup_efi_kvm_sev_migration
	cmp	qword ptr [info + INFO_cbit_mask], 0
	je	9f
	bt	qword ptr [info + INFO_kvm_features], KVM_FEATURE_MIGRATION_CONTROL
	jnc	9f
	test	edi, edi
	jz	9f
	test	esi, esi
	jz	9f
	test	rdx, rdx
	jnz	9f
	test	cl, cl
	jz	9f
	mov	eax, KVM_MIGRATION_READY
	call	write_migration_control
9:	xor	eax, eax
	ret

	# Writes 0 whether or not the guest is encrypted and whether or not 1 was ever written.
	function kvm_guest_cpu_offline
	bt	qword ptr [info + INFO_kvm_features], KVM_FEATURE_MIGRATION_CONTROL
	jnc	1f
	xor	eax, eax
	jmp	write_migration_control
1:	xor	eax, eax
	ret
