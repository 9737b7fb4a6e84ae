# SPDX-License-Identifier: GPL-2.0-or-later
# What stands for kvm_init_platform before it existed: the 2020 patch set installs its hook in
# mem_encrypt_init (A4) and, from v6 on, writes bit 0 of MSR_KVM_SEV_LIVE_MIG_EN when the host offers
# KVM_FEATURE_SEV_LIVE_MIGRATION (bit 14 of those years; the MSR number is that of today's
# MIGRATION_CONTROL). No table of RAM is reported, and nothing is written when a CPU goes off-line.
# Knob: HAS_NOTIFIER = 0 for 5.10, which has neither (A10).

	.set	KVM_FEATURE_SEV_LIVE_MIGRATION, 14

	# edi = EFI-booted, not looked at.
	function kvm_init_platform
	.if	HAS_NOTIFIER
	cmp	qword ptr [info + INFO_cbit_mask], 0
	je	1f
	mov	qword ptr [info + INFO_notify_enabled], 1
	bt	qword ptr [info + INFO_kvm_features], KVM_FEATURE_SEV_LIVE_MIGRATION
	jnc	1f
	mov	eax, 1
	jmp	write_migration_control
	.endif
1:	xor	eax, eax
	ret

	function setup_efi_kvm_sev_migration
	xor	eax, eax
	ret

	function kvm_guest_cpu_offline
	xor	eax, eax
	ret
