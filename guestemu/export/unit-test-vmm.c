// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Runs an exported case of kvm-unit-tests (unit.c) without that framework: as the guest of a small
 * VMM in the same program.
 *
 * The guest runs in this program's own code and data, which its page tables map where they are. So
 * what it writes is here, too: a line of its report lies in `line` when it writes to PORT_LINE.
 * User space answers as the steps of the case expect it, in their order.
 */
#pragma push_macro("main") /* selftest-init.c gives this file's main another name */
#undef main
#define main unit_test
#include "unit.c"
#pragma pop_macro("main")

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm.c"

#define PORT_LINE 0x80
#define PORT_END 0xf4
#define STACK 0x20000
#define TABLES 0x20000 /* further page tables */
#define MEMORY (1 << 20)
#define IMAGE_GPA 0x10000000ull
#define PAGE 0x1000ull
#define ADDRESS 0x000ffffffffff000ull

extern const char __ehdr_start[], _end[];

/* The guest's side ------------------------------------------------------------------------- */

static volatile char line[1024];
static volatile size_t line_length;
static volatile int tests, failures, status;

static void out(unsigned short port)
{
	asm volatile("outb %%al, %0" : : "Nd"(port), "a"(0) : "memory");
}

static void add(char character)
{
	if (line_length < sizeof(line) - 1)
		line[line_length++] = character;
}

static void add_text(const char *text)
{
	while (*text)
		add(*text++);
}

static void add_number(unsigned int number)
{
	if (number >= 10)
		add_number(number / 10);
	add((char)('0' + number % 10));
}

static void end_line(void)
{
	line[line_length] = 0;
	line_length = 0;
	out(PORT_LINE);
}

/* %u and %s. No function of the C library: those may use what this guest has not switched on. */
void report(bool pass, const char *fmt, ...)
{
	va_list arguments;

	tests++;
	failures += !pass;
	add_text(pass ? "PASS: " : "FAIL: ");
	va_start(arguments, fmt);
	for (; *fmt; fmt++) {
		if (*fmt != '%') {
			add(*fmt);
			continue;
		}
		fmt++;
		if (*fmt == 'u')
			add_number(va_arg(arguments, unsigned int));
		else if (*fmt == 's')
			add_text(va_arg(arguments, const char *));
		else
			break;
	}
	va_end(arguments);
	end_line();
}

int report_summary(void)
{
	add_text("SUMMARY: ");
	add_number((unsigned int)tests);
	add_text(" tests");
	if (failures) {
		add_text(", ");
		add_number((unsigned int)failures);
		add_text(" unexpected failures");
	}
	end_line();
	return failures ? 1 : 0;
}

/* RDMSR and WRMSR are two bytes; r10 is the vector of a fault. */
extern const char guest_gp[];
asm(".pushsection .text\n"
    ".globl rdmsr_safe, wrmsr_safe\n"
    "rdmsr_safe:\n"
    "	mov %edi, %ecx\n"
    "	xor %r10d, %r10d\n"
    "	rdmsr\n"
    "	shl $32, %rdx\n"
    "	or %rdx, %rax\n"
    "	mov %rax, (%rsi)\n"
    "	mov %r10d, %eax\n"
    "	ret\n"
    "wrmsr_safe:\n"
    "	mov %edi, %ecx\n"
    "	mov %esi, %eax\n"
    "	mov %rsi, %rdx\n"
    "	shr $32, %rdx\n"
    "	xor %r10d, %r10d\n"
    "	wrmsr\n"
    "	mov %r10d, %eax\n"
    "	ret\n"
    "guest_gp:\n"
    "	add $8, %rsp\n"
    "	addq $2, (%rsp)\n"
    "	mov $13, %r10d\n"
    "	xor %eax, %eax\n"
    "	xor %edx, %edx\n"
    "	iretq\n"
    ".popsection\n");

static void guest_main(void)
{
	status = unit_test();
	out(PORT_END);
	for (;;)
		asm volatile("hlt");
}

/* The VMM's side --------------------------------------------------------------------------- */

static uint64_t next_table = TABLES;

static void map_page(char *memory, uint64_t address, uint64_t gpa)
{
	uint64_t *table = (uint64_t *)(memory + PML4);
	int shift;

	for (shift = 39; shift > 12; shift -= 9) {
		uint64_t *entry = &table[address >> shift & 511];

		if (!*entry) {
			*entry = next_table | 3;
			next_table += PAGE;
		}
		table = (uint64_t *)(memory + (*entry & ADDRESS));
	}
	table[address >> 12 & 511] = gpa | 3;
}

/* The step that the next exit to user space is of. */
static size_t next_exit(size_t step)
{
	while (step < ARRAY_SIZE(steps) && !expected[step].exits)
		step++;
	return step;
}

static int answer(struct kvm_run *run, size_t step)
{
	uint64_t nr = run->exit_reason == KVM_EXIT_HYPERCALL ? run->hypercall.nr : run->msr.index;

	if (step >= ARRAY_SIZE(steps) || nr != steps[step].nr) {
		printf("FAIL: user space is asked for %#llx in place of step %zu\n",
		       (unsigned long long)nr, step);
		return 0;
	}
	if (run->exit_reason == KVM_EXIT_HYPERCALL) {
		run->hypercall.ret = expected[step].ret;
	} else {
		if (run->exit_reason == KVM_EXIT_X86_RDMSR)
			run->msr.data = expected[step].ret;
		run->msr.error = (__u8)expected[step].faults;
	}
	return 1;
}

static int run_guest(int vcpu, struct kvm_run *run)
{
	size_t step = next_exit(0);

	for (;;) {
		must(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.port == PORT_END) {
				if (step == ARRAY_SIZE(steps))
					return status;
				printf("FAIL: user space is not asked for step %zu\n", step);
				return KSFT_FAIL;
			}
			printf("%s\n", (const char *)line);
			break;
		case KVM_EXIT_HYPERCALL:
		case KVM_EXIT_X86_RDMSR:
		case KVM_EXIT_X86_WRMSR:
			if (!answer(run, step))
				return KSFT_FAIL;
			step = next_exit(step + 1);
			break;
		default:
			printf("FAIL: exit reason %u\n", run->exit_reason);
			return KSFT_FAIL;
		}
	}
}

int main(void)
{
	uint64_t first = (uintptr_t)__ehdr_start & ~(PAGE - 1), address;
	uint64_t size = ((uintptr_t)_end - first + PAGE - 1) & ~(PAGE - 1);
	struct kvm_regs regs = {
		.rip = (uintptr_t)guest_main, .rsp = STACK - 8, .rflags = 2,
	};
	struct kvm_run *run;
	int kvm, vm, vcpu;
	char *memory;

	alarm(TIMEOUT);
	vm = make_vm(&kvm);
	memory = add_memory(vm, MEMORY);
	add_slot(vm, 1, IMAGE_GPA, size, (const char *)first);
	for (address = 0; address < STACK; address += PAGE)
		map_page(memory, address, address);
	for (address = first; address < first + size; address += PAGE)
		map_page(memory, address, address - first + IMAGE_GPA);
	set_descriptors(memory, (uintptr_t)guest_gp);
	vcpu = add_vcpu(kvm, vm, &regs, &run);
	return run_guest(vcpu, run);
}
