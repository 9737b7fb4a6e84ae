# SPDX-License-Identifier: GPL-2.0-or-later
# Single instructions for raw operations at CPL 0 in 64-bit code, and where calls return to.

	function guest_return
	hlt
	jmp	guest_return

	function stub_vmmcall
	site	vmmcall
	vmmcall
	hlt

	function stub_vmcall
	site	vmmcall
	vmcall
	hlt

	# A #GP here is no fix-up case: it ends at guest_oops.
	function stub_rdmsr
	site	msr
	rdmsr
	hlt

	function stub_wrmsr
	site	msr
	wrmsr
	hlt
