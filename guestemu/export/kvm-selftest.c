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

/* Guest memory, mapped 1:1. */
#define PML4 0x1000
#define PDPT 0x2000
#define PD 0x3000
#define IDT 0x4000
#define GDT 0x5000
#define CODE 0x6000
#define STACK 0x8000
#define STEPS 0x10000
#define MEMORY (2 << 20)

#define CODE_SELECTOR 0x8
#define DATA_SELECTOR 0x10
#define GP_VECTOR 13

/* Seconds; a guest that does not come back is killed by SIGALRM. */
#define TIMEOUT 60

#define KSFT_FAIL 1
#define KSFT_SKIP 4

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

static void skip(const char *why)
{
	printf("1..0 # SKIP %s\n", why);
	exit(KSFT_SKIP);
}

static int must(int result, const char *what)
{
	if (result < 0) {
		printf("Bail out! %s: %s\n", what, strerror(errno));
		exit(KSFT_FAIL);
	}
	return result;
}

static void enable(int vm, unsigned int capability, uint64_t value)
{
	struct kvm_enable_cap cap = { .cap = capability, .args = { value } };

	if (ioctl(vm, KVM_CHECK_EXTENSION, capability) <= 0)
		skip("KVM hands neither hypercalls nor MSRs to user space");
	must(ioctl(vm, KVM_ENABLE_CAP, &cap), "KVM_ENABLE_CAP");
}

static void set_cpuid(int kvm, int vcpu)
{
	const unsigned int entries = 256;
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + entries * sizeof(cpuid->entries[0]));
	unsigned int i;

	if (!cpuid)
		skip("no memory");
	cpuid->nent = entries;
	must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid), "KVM_GET_SUPPORTED_CPUID");
	for (i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == 0x40000001)
			cpuid->entries[i].eax |= 1 << 16 | 1 << 17;
	must(ioctl(vcpu, KVM_SET_CPUID2, cpuid), "KVM_SET_CPUID2");
	free(cpuid);
}

static void fill_memory(char *memory)
{
	uint64_t *pd = (uint64_t *)(memory + PD);
	uint64_t handler = CODE + (uint64_t)(guest_gp - guest_code);
	uint32_t *gate = (uint32_t *)(memory + IDT + 16 * GP_VECTOR);
	uint64_t *gdt = (uint64_t *)(memory + GDT);
	int i;

	*(uint64_t *)(memory + PML4) = PDPT | 3;
	*(uint64_t *)(memory + PDPT) = PD | 3;
	for (i = 0; i < 512; i++)
		pd[i] = (uint64_t)i << 21 | 0x83;
	gate[0] = (uint32_t)(CODE_SELECTOR << 16 | (handler & 0xffff));
	gate[1] = (uint32_t)((handler & 0xffff0000) | 0x8e00);
	gdt[1] = 0x00af9b000000ffffULL;
	gdt[2] = 0x00cf93000000ffffULL;
	memcpy(memory + CODE, guest_code, (size_t)(guest_end - guest_code));
	memcpy(memory + STEPS, steps, sizeof(steps));
}

static void set_registers(int vcpu)
{
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = CODE_SELECTOR, .type = 11, .present = 1,
		.s = 1, .l = 1, .g = 1,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = DATA_SELECTOR, .type = 3, .present = 1,
		.s = 1, .db = 1, .g = 1,
	};
	struct kvm_regs regs = {
		.rip = CODE, .rsp = STACK, .rflags = 2, .r12 = STEPS, .r13 = COUNT,
	};
	struct kvm_sregs sregs;

	must(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.gdt.base = GDT;
	sregs.gdt.limit = 23;
	sregs.idt.base = IDT;
	sregs.idt.limit = 4095;
	sregs.cr3 = PML4;
	sregs.cr4 = 1 << 5;
	sregs.cr0 = 1u << 31 | 1 << 5 | 1 << 4 | 1;
	sregs.efer = 1 << 8 | 1 << 10;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	must(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
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
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY };
	static int exits[COUNT];
	const struct step *found;
	struct kvm_run *run;
	int kvm, vm, vcpu, size;
	char *memory;
	size_t i;

	alarm(TIMEOUT);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		skip("no /dev/kvm");
	vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	enable(vm, KVM_CAP_EXIT_HYPERCALL, 1 << 12);
	enable(vm, KVM_CAP_X86_USER_SPACE_MSR,
	       KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN |
	       KVM_MSR_EXIT_REASON_FILTER);
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		skip("no memory");
	fill_memory(memory);
	region.userspace_addr = (uintptr_t)memory;
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	set_cpuid(kvm, vcpu);
	set_registers(vcpu);
	size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		skip("kvm_run cannot be mapped");
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
