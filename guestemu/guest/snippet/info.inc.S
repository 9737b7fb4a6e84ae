# SPDX-License-Identifier: GPL-2.0-or-later
# The info block: what the host side tells a snippet about its machine, and what it reads back.
#
# Every field is 8 bytes, little-endian, unless `size` says more; INFO_<name> is its offset and is
# exported as an absolute symbol. info.py mirrors this list (a test compares them) and says what
# each field means.

	.set	info_offset, 0
	.macro	info_field name, size=8, value=0
	.globl	INFO_\name
	.set	INFO_\name, info_offset
	.set	info_offset, info_offset + \size
	.fill	\size / 8, 8, \value
	.endm

	.set	E820_ENTRIES, 8
	.set	E820_ENTRY_SIZE, 24		# u64 address, u64 size, u32 type, u32 zero
	.set	E820_TYPE_RAM, 1

	.data
	.balign	4096
	.globl	info
info:
	info_field page_offset_base
	info_field cbit_mask
	info_field pgd
	info_field max_pfn
	info_field pt_pool
	info_field pt_pool_left
	info_field pt_fail_after, 8, -1
	info_field vmap_start
	info_field vmap_end
	info_field scratch_source
	info_field scratch_target
	info_field coherent
	info_field notify_enabled
	info_field kvm_features
	info_field mem_enc_lock
	info_field oops_in_progress
	info_field cpa_lock
	info_field prepare_status
	info_field finish_status
	info_field bss_decrypted_start
	info_field bss_decrypted_end
	info_field unchecked_msr
	info_field oops_vector
	info_field oops_error_code
	info_field oops_rip
	info_field oops_cr2
	info_field e820_count
	info_field e820, E820_ENTRIES*E820_ENTRY_SIZE
	.globl	INFO_SIZE
	.set	INFO_SIZE, info_offset
	.text
