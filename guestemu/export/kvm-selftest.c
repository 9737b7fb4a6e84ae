// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * @TITLE@
 *
 * A VM of one vCPU in 64-bit mode makes the steps below one after the other:
 * hypercalls and MSR accesses.  User space answers those that KVM hands to it,
 * and each answer is compared with what the guest reads.
 *
 * Builds alone: cc -O2 -Wall -o test FILE.c.  Needs /dev/kvm.
 * Exit status as in the kernel's selftests: 0 pass, 1 fail, 4 skipped.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { VMMCALL, RDMSR, WRMSR };

/* As the guest's code below reads it: eight words each. */
struct step {
	uint64_t what;
	uint64_t nr;
	uint64_t args[4];
	uint64_t found;
	uint64_t faulted;
};

struct expected {
	uint64_t ret;
	int faults;
	int exits;
	const char *text;
};

static const struct step steps[] = {
@STEPS@
};

static const struct expected expected[] = {
@EXPECTED@
};

#define COUNT (sizeof(steps) / sizeof(steps[0]))

/* Guest memory, mapped 1:1; tables, IDT and GDT are below. */
#define CODE 0x6000
#define STACK 0x8000
#define STEPS 0x10000
#define MEMORY (2 << 20)

/* r12: step, r13: steps left, r10: the instruction faulted.  RDMSR and WRMSR are two bytes. */
extern const char guest_code[], guest_gp[], guest_end[];
asm(".pushsection .rodata\n"
    "guest_code:\n"
    "1:	test %r13, %r13\n"
    "	jz 9f\n"
    "	xor %r10d, %r10d\n"
    "	mov 8(%r12), %rax\n"
    "	mov 8(%r12), %ecx\n"
    "	cmpq $1, (%r12)\n"
    "	je 2f\n"
    "	ja 3f\n"
    "	mov 16(%r12), %rbx\n"
    "	mov 24(%r12), %rcx\n"
    "	mov 32(%r12), %rdx\n"
    "	mov 40(%r12), %rsi\n"
    "	vmmcall\n"
    "	jmp 4f\n"
    "2:	rdmsr\n"
    "	shl $32, %rdx\n"
    "	or %rdx, %rax\n"
    "	jmp 4f\n"
    "3:	mov 16(%r12), %rax\n"
    "	mov %rax, %rdx\n"
    "	shr $32, %rdx\n"
    "	wrmsr\n"
    "	mov 16(%r12), %rax\n"
    "4:	mov %rax, 48(%r12)\n"
    "	mov %r10, 56(%r12)\n"
    "	add $64, %r12\n"
    "	dec %r13\n"
    "	jmp 1b\n"
    "9:	hlt\n"
    "guest_gp:\n"
    "	add $8, %rsp\n"
    "	addq $2, (%rsp)\n"
    "	mov $1, %r10d\n"
    "	xor %eax, %eax\n"
    "	xor %edx, %edx\n"
    "	iretq\n"
    "guest_end:\n"
    ".popsection\n");

@VMM@
static void fill_memory(char *memory)
{
	uint64_t *pd = (uint64_t *)(memory + PD);
	int i;

	*(uint64_t *)(memory + PML4) = PDPT | 3;
	*(uint64_t *)(memory + PDPT) = PD | 3;
	for (i = 0; i < 512; i++)
		pd[i] = (uint64_t)i << 21 | 0x83;
	set_descriptors(memory, CODE + (uint64_t)(guest_gp - guest_code));
	memcpy(memory + CODE, guest_code, (size_t)(guest_end - guest_code));
	memcpy(memory + STEPS, steps, sizeof(steps));
}

/* The step that the vCPU is at, as far as the guest has written results. */
static size_t current_step(int vcpu)
{
	struct kvm_regs regs;

	must(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	return (regs.r12 - STEPS) / sizeof(struct step);
}

static int failures;

static void check(int is_right, size_t step, const char *what, uint64_t found, uint64_t wanted)
{
	if (is_right)
		return;
	failures++;
	printf("# step %zu (%s): %s %#llx, expected %#llx\n", step, expected[step].text, what,
	       (unsigned long long)found, (unsigned long long)wanted);
}

/* Answers one exit; whether the vCPU goes on. */
static int answer(struct kvm_run *run, int vcpu, int *exits)
{
	size_t at = current_step(vcpu);

	if (run->exit_reason == KVM_EXIT_HLT)
		return 0;
	if (at >= COUNT) {
		printf("# exit %u behind the last step\n", run->exit_reason);
		failures++;
		return 0;
	}
	exits[at]++;
	switch (run->exit_reason) {
	case KVM_EXIT_HYPERCALL:
		check(run->hypercall.nr == steps[at].nr, at, "hypercall", run->hypercall.nr,
		      steps[at].nr);
		check(run->hypercall.args[0] == steps[at].args[0], at, "a0",
		      run->hypercall.args[0], steps[at].args[0]);
		check(run->hypercall.args[1] == steps[at].args[1], at, "a1",
		      run->hypercall.args[1], steps[at].args[1]);
		check(run->hypercall.args[2] == steps[at].args[2], at, "a2",
		      run->hypercall.args[2], steps[at].args[2]);
		run->hypercall.ret = expected[at].ret;
		return 1;
	case KVM_EXIT_X86_RDMSR:
		run->msr.data = expected[at].ret;
		run->msr.error = (__u8)expected[at].faults;
		return 1;
	case KVM_EXIT_X86_WRMSR:
		check(run->msr.data == steps[at].args[0], at, "WRMSR", run->msr.data,
		      steps[at].args[0]);
		run->msr.error = (__u8)expected[at].faults;
		return 1;
	default:
		printf("# step %zu: exit reason %u\n", at, run->exit_reason);
		failures++;
		return 0;
	}
}

int main(void)
{
	struct kvm_regs regs = {
		.rip = CODE, .rsp = STACK, .rflags = 2, .r12 = STEPS, .r13 = COUNT,
	};
	static int exits[COUNT];
	const struct step *found;
	struct kvm_run *run;
	int kvm, vm, vcpu;
	char *memory;
	size_t i;

	alarm(TIMEOUT);
	vm = make_vm(&kvm);
	memory = add_memory(vm, MEMORY);
	fill_memory(memory);
	vcpu = add_vcpu(kvm, vm, &regs, &run);
	do {
		must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
	} while (answer(run, vcpu, exits));

	found = (const struct step *)(memory + STEPS);
	check(current_step(vcpu) == COUNT, 0, "steps done", current_step(vcpu), COUNT);
	for (i = 0; i < COUNT; i++) {
		check(!!found[i].faulted == expected[i].faults, i, "#GP", found[i].faulted,
		      (uint64_t)expected[i].faults);
		if (!expected[i].faults)
			check(found[i].found == expected[i].ret, i, "result", found[i].found,
			      expected[i].ret);
		check(exits[i] == expected[i].exits, i, "exits", (uint64_t)exits[i],
		      (uint64_t)expected[i].exits);
	}
	printf("1..1\n%s 1 %zu steps\n", failures ? "not ok" : "ok", COUNT);
	return failures ? KSFT_FAIL : 0;
}
