# SPDX-License-Identifier: GPL-2.0-or-later
# mem_enc_lock (A21, A22; L6.12 arch/x86/mm/pat/set_memory.c). INFO_mem_enc_lock: bit 31 = a writer
# has it or waits for it, bits 30:0 = readers. A waiting writer already keeps readers out.

	.set	MEM_ENC_WRITER_BIT, 31

	# down_read_trylock -> eax = 1 taken, 0 not. Clobbers rcx.
	function mem_enc_read_trylock
	mov	eax, [info + INFO_mem_enc_lock]
1:	test	eax, eax
	js	2f
	lea	ecx, [rax + 1]
	lock cmpxchg	[info + INFO_mem_enc_lock], ecx
	jnz	1b
	mov	eax, 1
	ret
2:	xor	eax, eax
	ret

	function mem_enc_read_unlock
	lock dec	dword ptr [info + INFO_mem_enc_lock]
	ret

	# -> eax = 1: no conversion runs and none will. Never released. While an oops is in progress
	# 0 when the lock is not free; otherwise waits for it, so a second call waits for ever.
	function set_memory_enc_stop_conversion
	cmp	qword ptr [info + INFO_oops_in_progress], 0
	jne	3f
1:	lock bts	dword ptr [info + INFO_mem_enc_lock], MEM_ENC_WRITER_BIT
	jnc	2f
	pause
	jmp	1b
2:	cmp	dword ptr [info + INFO_mem_enc_lock], 1 << MEM_ENC_WRITER_BIT
	je	4f
	pause
	jmp	2b
3:	xor	eax, eax
	mov	ecx, 1 << MEM_ENC_WRITER_BIT
	lock cmpxchg	[info + INFO_mem_enc_lock], ecx
	mov	eax, 0
	jne	5f
4:	mov	eax, 1
5:	ret
