# SPDX-License-Identifier: GPL-2.0-or-later
# Names for the places that the host side must recognise.
#
# vmmcall_site_<n>  a VMMCALL             msr_site_<n>    a RDMSR or WRMSR
# pte_site_<n>      a page-table store    flush_site_<n>  an INVLPG or the CR4.PGE toggle
# warn_<name>       the UD2 of a WARN: record it and continue behind it (2 bytes)
# bug_<name>        the UD2 of a BUG: #UD, which ends at guest_oops
# Numbers count from 0 in the order of the text.

	.set	vmmcall_sites, 0
	.set	msr_sites, 0
	.set	pte_sites, 0
	.set	flush_sites, 0

	.macro	export_site kind, number
	.globl	\kind\()_site_\number
\kind\()_site_\number:
	.endm

	# Labels the next instruction as a site of the given kind.
	.macro	site kind
	.altmacro
	export_site \kind, %\kind\()_sites
	.noaltmacro
	.set	\kind\()_sites, \kind\()_sites + 1
	.endm

	.macro	function name
	.balign	16
	.globl	\name
\name:
	.endm

	# WARN_ONCE: the kernel's flag of "already warned" is a byte of .data. Clobbers flags only.
	.macro	warn_once name
	cmp	byte ptr [once_\name], 0
	jne	.Lwarned_\name
	mov	byte ptr [once_\name], 1
	.globl	warn_\name
warn_\name:
	ud2
.Lwarned_\name:
	.pushsection .data
	.globl	once_\name
once_\name:
	.byte	0
	.popsection
	.endm

	.macro	bug name
	.globl	bug_\name
bug_\name:
	ud2
	.endm
