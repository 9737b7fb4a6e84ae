# SPDX-License-Identifier: GPL-2.0-or-later
# The hypercall primitive (A29; L5.17 arch/x86/include/asm/kvm_para.h, kvm_sev_hypercall3).

	# edi = number, rsi, rdx, rcx = arguments 0-2 -> rax = the host's answer. Plain VMMCALL.
	function kvm_sev_hypercall3
	push	rbx
	mov	eax, edi
	mov	rbx, rsi
	xchg	rcx, rdx
	site	vmmcall
	vmmcall
	pop	rbx
	ret
