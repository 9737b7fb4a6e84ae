# SPDX-License-Identifier: GPL-2.0-or-later
# set_memory_encrypted/decrypted with x86_platform.guest callbacks, since 5.19 (A.3, A17, A19;
# L6.1 and L6.12 arch/x86/mm/pat/set_memory.c, __set_memory_enc_pgtable, and
# arch/x86/mm/mem_encrypt_amd.c, amd_enc_status_change_prepare/finish).
#
# The host is told only when the entries were changed to the end; what a failed change did stays and
# is not reported. Knobs: STATUS_IS_INT = 0 for 6.1 (prepare void, finish bool: failure is -EIO),
# 1 for 6.12 (int, failure warns and is returned; mem_enc_lock is taken for read).
# INFO_prepare_status and INFO_finish_status are what the platform's callbacks add: 0 as AMD's
# always do, or a negative errno of another platform. With IS_TDX the callbacks are a TD's (T17):
# caches and TLB are flushed before a decryption only, "prepare" of an encryption and "finish" of a
# decryption tell the host. With IS_SNP they change page states (N17): "prepare"
# of a decryption, before the entries, "finish" of an encryption, after them.

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
	.if	STATUS_IS_INT
	call	mem_enc_read_trylock
	test	eax, eax
	jz	7f
	.endif
	test	edi, PAGE_SIZE - 1
	jz	1f
	warn_once misaligned
	and	rdi, -PAGE_SIZE
1:	movsxd	rsi, r12d
	mov	edx, r13d
	call	cpa_init
	xor	esi, esi
	cmp	qword ptr [info + INFO_coherent], 0
	.ifdef	IS_TDX
	test	r13d, r13d
	jnz	2f
	cmp	esi, esi		# a TD flushes caches whatever CPUID says
	.endif
	sete	sil
	call	cpa_flush
2:
	.if	STATUS_IS_INT
	mov	ebx, [info + INFO_prepare_status]
	test	ebx, ebx
	jnz	5f
	.endif
	.ifdef	IS_TDX
	test	r13d, r13d
	jz	3f
	mov	rdi, [rbp + CPA_VADDR]
	movsxd	rsi, r12d
	mov	edx, r13d
	call	tdx_enc_status_changed
	mov	ebx, eax
	test	ebx, ebx
	jnz	5f
3:
	.endif
	.ifdef	IS_SNP
	test	r13d, r13d
	jnz	3f
	mov	rdi, [rbp + CPA_VADDR]
	movsxd	rsi, r12d
	mov	edx, PSC_SHARED
	call	snp_set_pages_state
3:
	.endif
	mov	edi, 1
	call	change_page_attr_set_clr
	mov	ebx, eax
	xor	esi, esi
	call	cpa_flush
	test	ebx, ebx
	jnz	6f
	.ifdef	IS_SNP
	test	r13d, r13d
	jz	4f
	mov	rdi, [rbp + CPA_VADDR]
	movsxd	rsi, r12d
	mov	edx, PSC_PRIVATE
	call	snp_set_pages_state
4:
	.endif
	mov	rdi, [rbp + CPA_VADDR]
	mov	esi, r12d
	mov	edx, r13d
	call	notify_pages
	mov	ebx, [info + INFO_finish_status]
	test	ebx, ebx
	jz	6f
	.if	STATUS_IS_INT
5:	warn_once vmm_fail
	.else
	mov	ebx, -EIO
	.endif
6:
	.if	STATUS_IS_INT
	call	mem_enc_read_unlock
	.endif
	mov	eax, ebx
8:	add	rsp, CPA_SIZE
	pop	r13
	pop	r12
	pop	rbp
	pop	rbx
9:	ret
	.if	STATUS_IS_INT
7:	mov	eax, -EBUSY
	jmp	8b
	.endif
