# SPDX-License-Identifier: GPL-2.0-or-later
# set_memory_encrypted/decrypted up to 5.18 (A1-A3, A10-A12; L5.10 and L5.17
# arch/x86/mm/pat/set_memory.c, __set_memory_enc_dec and __set_memory_enc_pgtable).
#
# Flush caches and TLB, change the entries, flush the TLB, notify. The notification is made whether
# or not the change succeeded. Knob: `notify_runtime`, a macro called with rdi = VA,
# esi = pages, edx = encrypted.

	# rdi = VA, esi = pages (int) -> eax = 0 or a negative errno.
	function set_memory_encrypted
	mov	edx, 1
	jmp	set_memory_enc_dec
	function set_memory_decrypted
	xor	edx, edx
set_memory_enc_dec:
	xor	eax, eax
	cmp	[info + INFO_cbit_mask], rax
	je	9f
	push	rbx
	push	rbp
	push	r12
	push	r13
	sub	rsp, CPA_SIZE
	mov	rbp, rsp
	mov	r12d, esi
	mov	r13d, edx
	test	edi, PAGE_SIZE - 1
	jz	1f
	warn_once misaligned
	and	rdi, -PAGE_SIZE
1:	movsxd	rsi, esi
	call	cpa_init
	xor	esi, esi
	cmp	qword ptr [info + INFO_coherent], 0
	sete	sil
	call	cpa_flush
	mov	edi, 1
	call	change_page_attr_set_clr
	mov	ebx, eax
	xor	esi, esi
	call	cpa_flush
	mov	rdi, [rbp + CPA_VADDR]
	mov	esi, r12d
	mov	edx, r13d
	notify_runtime
	mov	eax, ebx
	add	rsp, CPA_SIZE
	pop	r13
	pop	r12
	pop	rbp
	pop	rbx
9:	ret
