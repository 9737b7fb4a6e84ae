# SPDX-License-Identifier: GPL-2.0-or-later
# The kernel's MSR write, "unchecked": after #GP it goes on as if written (A47; exceptions.inc.S).

	# Enters the next instruction, which faults at `insn`, into the exception table.
	.macro	ex_table insn, fixup
	.pushsection .rodata
	.quad	\insn, \fixup
	.popsection
	.endm

	.section .rodata
	.globl	ex_table_start
ex_table_start:
	.text

	.set	MSR_KVM_MIGRATION_CONTROL, 0x4b564d08	# and MSR_KVM_SEV_LIVE_MIG_EN of 2020

	# eax = value -> eax = 0.
	function write_migration_control
	mov	ecx, MSR_KVM_MIGRATION_CONTROL
	xor	edx, edx
	site	msr
1:	wrmsr
2:	xor	eax, eax
	ret
	ex_table 1b, 2b

	.section .rodata
	.globl	ex_table_end
ex_table_end:
	.text
