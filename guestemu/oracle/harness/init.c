// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * /init of the machine under test: carries out batches of steps on the KVM of the running kernel.
 *
 * The channel is the memory of an ivshmem device (PCI 1af4:1110, BAR 2), mapped through sysfs. A
 * step is one instruction of a guest in a given mode and privilege level, or one ioctl; the guest's
 * memory is laid out as guestemu/conformance/recordings/testvm.py has it, and what a reply holds is what
 * guestemu/conformance/recordings/recording.py records. A hypercall is answered with what the request says.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "wire.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* What older header files lack. */
struct memory_region2 {
	u32 slot, flags;
	u64 gpa, size, address, offset;
	u32 memfd, pad1;
	u64 pad2[14];
};
struct create_memfd {
	u64 size, flags, reserved[6];
};
struct memory_attributes {
	u64 address, size, attributes, flags;
};
#define SET_REGION2 _IOW(KVMIO, 0x49, struct memory_region2)
#define CREATE_MEMFD _IOWR(KVMIO, 0xd4, struct create_memfd)
#define SET_ATTRIBUTES _IOW(KVMIO, 0xd2, struct memory_attributes)
#define REGION_HAS_MEMFD 4u
#define ATTRIBUTE_PRIVATE 8u
#define CAP_MEMORY_ATTRIBUTES 233
#define CAP_GUEST_MEMFD 234
#define CAP_VM_TYPES 235
#define EXIT_MEMORY_FAULT 39
#define PAGE 0x1000u

/* Guest memory. */
#define MEMORY 0x200000u
#define SPARE 0x200000u /* behind it: what slots of OP_SLOT hold, so that KVM's writes miss the code */
#define PRIVATE_RAM 0x100000u /* slot 0 of a protected VM */
#define MEMFD_BYTES 0x180000u
#define GDT 0x3000u
#define TSS64 0x3800u
#define TSS32 0x3a00u
#define IDT64 0x4000u
#define IVT 0x5000u
#define IDT32 0x5400u
#define HANDLERS 0x6000u
#define KERNEL_STACK 0x7000u
#define USER_STACK 0x7800u
#define CODE 0x8000u /* of VMCALL, which KVM patches; the others lie in the next page, untouched */
#define PML4 0x20000u
#define VECTORS 32u
#define PORT_DONE 0x80
#define PORT_EXCEPTION 0xc0
#define VCPUS 2
#define MSR_RANGE 0x4b564d00u
#define MSR_RANGE_COUNT 16
#define SECONDS_PER_STEP 20

/* kcov, as Documentation/dev-tools/kcov.rst has it. */
#define KCOV_INIT_TRACE _IOR('c', 1, unsigned long)
#define KCOV_ENABLE _IO('c', 100)
#define TRACE_WORDS 0x10000u
#define PLACE_BITS 20

struct vcpu {
	int fd;
	struct kvm_run *run;
	struct kvm_sregs start;
};

struct vm {
	int is_made, fd, memfd, ro_code;
	u8 *memory;
	int16_t setup[6];
	struct vcpu vcpu[VCPUS];
};

static struct vm vms[SLOTS];
static struct config configs[SLOTS];
static struct kvm_cpuid2 *supported;
static int kvm;
static u32 run_bytes;
static volatile struct kvm_run *running;
static volatile unsigned long serial;
static volatile int is_busy;
static pthread_t steps_thread;

static u64 *trace;
static u8 reached[1u << (PLACE_BITS - 3)];

/* Coverage of what this thread does in the kernel, where the kernel has kcov. */
static void open_coverage(void)
{
	int fd = open("/sys/kernel/debug/kcov", O_RDWR | O_CLOEXEC);
	void *memory;

	if (fd < 0 || ioctl(fd, KCOV_INIT_TRACE, (unsigned long)TRACE_WORDS))
		return;
	memory = mmap(NULL, TRACE_WORDS * sizeof(u64), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory != MAP_FAILED && !ioctl(fd, KCOV_ENABLE, 0ul))
		trace = memory;
}

/* How many places are on the trace that were on none before; places are told apart by a hash. */
static u64 newly_reached(void)
{
	u64 count = *(volatile u64 *)trace, fresh = 0;

	for (u64 i = 1; i <= count && i < TRACE_WORDS; i++) {
		u64 place = trace[i] * 0x9e3779b97f4a7c15ull >> (64 - PLACE_BITS);
		u8 bit = (u8)(1u << (place & 7));

		fresh += !(reached[place >> 3] & bit);
		reached[place >> 3] |= bit;
	}
	return fresh;
}

static void on_kick(int number)
{
	(void)number;
}

/* A guest that never exits is ended by KVM_RUN's EINTR. No signal comes otherwise: one between an
 * exit that Linux 6.10 to 6.13 lose and the next makes KVM complete the hypercall late. */
static void *watch(void *unused)
{
	unsigned long seen = 0, ticks = 0;

	for (;;) {
		sleep(1);
		if (!is_busy || serial != seen) {
			seen = serial;
			ticks = 0;
		} else if (++ticks >= SECONDS_PER_STEP && running) {
			running->immediate_exit = 1;
			pthread_kill(steps_thread, SIGUSR1);
		}
	}
	return unused;
}

static int call(int fd, unsigned long number, void *argument)
{
	int result = ioctl(fd, number, argument);

	return result < 0 ? -errno : result;
}

static int enable(int fd, u32 capability, u64 argument)
{
	struct kvm_enable_cap request = {.cap = capability, .args = {argument}};

	return call(fd, KVM_ENABLE_CAP, &request);
}

static const u8 CODES[][3] = {
	[OP_VMMCALL] = {0x0f, 0x01, 0xd9}, [OP_VMCALL] = {0x0f, 0x01, 0xc1},
	[OP_RDMSR] = {0x0f, 0x32}, [OP_WRMSR] = {0x0f, 0x30},
	[OP_READ] = {0x8a, 0x03}, [OP_WRITE] = {0x88, 0x03},
};

static u32 code_length(u8 op)
{
	return op == OP_VMMCALL || op == OP_VMCALL ? 3 : 2;
}

static u32 code_address(u8 op)
{
	return op == OP_VMCALL ? CODE : CODE + 0x1000 + 16u * op;
}

static u64 descriptor(u8 access, u8 flags)
{
	return 0xffffull | (u64)access << 40 | (u64)(0xf | flags << 4) << 48;
}

static void lay_out(struct vm *vm)
{
	u8 *m = vm->memory;
	u64 *gdt = (u64 *)(m + GDT), *idt64 = (u64 *)(m + IDT64), *idt32 = (u64 *)(m + IDT32);
	u16 *ivt = (u16 *)(m + IVT);
	u64 *p4 = (u64 *)(m + PML4), *p3 = p4 + 512, *p2 = p3 + 512, *p1 = p2 + 512;

	memset(m, 0, 0x30000);
	gdt[1] = descriptor(0x9b, 0xa);
	gdt[2] = descriptor(0x93, 0xc);
	gdt[3] = descriptor(0x9b, 0xc);
	gdt[6] = descriptor(0xfb, 0xa);
	gdt[7] = descriptor(0xf3, 0xc);
	gdt[8] = descriptor(0xfb, 0xc);
	for (u32 i = 0; i < VECTORS; i++) {
		u32 at = HANDLERS + 16 * i;
		u8 code[] = {0xe6, (u8)(PORT_EXCEPTION + i), 0xf4, 0xeb, 0xfd};

		memcpy(m + at, code, sizeof(code));
		idt64[2 * i] = at | 0x08ull << 16 | 0x8eull << 40;
		idt32[i] = at | 0x18ull << 16 | 0x8eull << 40;
		ivt[2 * i] = (u16)at;
	}
	for (int i = 0; i < 3; i++) {
		u64 stack = KERNEL_STACK;

		memcpy(m + TSS64 + 4 + 8 * i, &stack, 8);
	}
	*(u16 *)(m + TSS64 + 102) = 0xffff;
	*(u32 *)(m + TSS32 + 4) = KERNEL_STACK;
	*(u32 *)(m + TSS32 + 8) = 0x10;
	*(u16 *)(m + TSS32 + 102) = 0xffff;
	p4[0] = (PML4 + 0x1000) | 7;
	p3[0] = (PML4 + 0x2000) | 7;
	p2[0] = (PML4 + 0x3000) | 7;
	for (u64 i = 1; i < 512; i++)
		p2[i] = i << 21 | 0x87;
	for (u64 i = 0; i < 512; i++)
		p1[i] = i << 12 | 7;
	if (vm->ro_code) {
		p1[CODE >> 12] &= ~2ull;
		p1[(CODE >> 12) + 1] &= ~2ull;
	}
	for (u8 op = 0; op < sizeof(CODES) / sizeof(CODES[0]); op++) {
		u32 length = code_length(op);

		memcpy(m + code_address(op), CODES[op], length);
		memcpy(m + code_address(op) + length, "\xe6\x80\xf4\xeb\xfd", 5);
	}
}

static int set_filter(int fd, u8 kind)
{
	static u8 none[64], all[64];
	struct kvm_msr_filter filter = {.flags = KVM_MSR_FILTER_DEFAULT_ALLOW};
	struct kvm_msr_filter_range *range = &filter.ranges[0];

	memset(all, 0xff, sizeof(all));
	range->base = MSR_RANGE;
	range->nmsrs = MSR_RANGE_COUNT;
	range->bitmap = none;
	range->flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
	if (kind == FILTER_NONE)
		range->flags = range->nmsrs = range->base = 0;
	if (kind == DENY_R)
		range->flags = KVM_MSR_FILTER_READ;
	if (kind == DENY_W)
		range->flags = KVM_MSR_FILTER_WRITE;
	if (kind == DENY_ONE) {
		range->base = MSR_RANGE + 8;
		range->nmsrs = 1;
	}
	if (kind == RANGE_ALLOWED || kind == OTHER_RANGE) {
		filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
		range->bitmap = all;
	}
	if (kind == OTHER_RANGE) {
		range->base = 0x10;
		range->nmsrs = 8;
	}
	return call(fd, KVM_X86_SET_MSR_FILTER, &filter);
}

static struct kvm_cpuid_entry2 leaf(u32 function, u32 eax, const char *signature)
{
	struct kvm_cpuid_entry2 entry = {.function = function, .eax = eax};
	u32 words[3] = {0};

	if (signature)
		memcpy(words, signature, 12);
	entry.ebx = words[0];
	entry.ecx = words[1];
	entry.edx = words[2];
	return entry;
}

static int set_cpuid(int vcpu, const struct config *c)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entry[260];
	} table;
	u32 n = 0, base = c->cpuid == CPUID_RELOCATED ? 0x40000100 : 0x40000000;

	if (c->cpuid == CPUID_NOT_SET)
		return 1;
	for (u32 i = 0; i < supported->nent; i++)
		if (supported->entries[i].function >> 8 != 0x400000)
			table.entry[n++] = supported->entries[i];
	if (c->cpuid == CPUID_RELOCATED)
		table.entry[n++] = leaf(0x40000000, 0x40000001, "guestemuOtHv");
	if (c->cpuid != CPUID_NO_LEAF) {
		table.entry[n++] = leaf(base, base | 1, "KVMKVMKVM\0\0\0");
		table.entry[n++] = leaf(base | 1, c->pv_features, NULL);
	}
	table.head.nent = n;
	return call(vcpu, KVM_SET_CPUID2, &table);
}

static void set_ignore_msrs(int on)
{
	static int now;
	int fd;

	if (on == now)
		return;
	fd = open("/sys/module/kvm/parameters/ignore_msrs", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, on ? "1" : "0", 1) == 1)
		now = on;
	close(fd);
}

static void drop(struct vm *vm)
{
	for (int i = 0; i < VCPUS; i++) {
		if (vm->vcpu[i].run)
			munmap(vm->vcpu[i].run, run_bytes);
		if (vm->vcpu[i].fd > 0)
			close(vm->vcpu[i].fd);
	}
	if (vm->fd > 0)
		close(vm->fd);
	if (vm->memfd > 0)
		close(vm->memfd);
	if (vm->memory)
		munmap(vm->memory, MEMORY + SPARE);
	memset(vm, 0, sizeof(*vm));
}

/* Slot 0 has all memory, or its first half with a guest_memfd where the VM is protected; slot 1 has
 * the second half then. */
static int add_memory(struct vm *vm, int is_protected)
{
	struct kvm_userspace_memory_region all = {0, 0, 0, MEMORY, (u64)vm->memory};
	struct create_memfd file = {.size = MEMFD_BYTES};
	struct memory_region2 low = {.flags = REGION_HAS_MEMFD, .size = PRIVATE_RAM};
	struct memory_region2 high = {.slot = 1, .gpa = PRIVATE_RAM, .size = MEMORY - PRIVATE_RAM};
	int rc;

	if (!is_protected)
		return call(vm->fd, KVM_SET_USER_MEMORY_REGION, &all);
	vm->memfd = ioctl(vm->fd, CREATE_MEMFD, &file);
	if (vm->memfd < 0)
		return -errno;
	low.address = (u64)vm->memory;
	low.memfd = (u32)vm->memfd;
	high.address = (u64)vm->memory + PRIVATE_RAM;
	rc = call(vm->fd, SET_REGION2, &low);
	return rc ? rc : call(vm->fd, SET_REGION2, &high);
}

static int add_vcpu(struct vm *vm, const struct config *c, int number)
{
	struct vcpu *vcpu = &vm->vcpu[number];
	int rc;

	vcpu->fd = ioctl(vm->fd, KVM_CREATE_VCPU, (unsigned long)number);
	if (vcpu->fd < 0)
		return -errno;
	vcpu->run = mmap(NULL, run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED) {
		vcpu->run = NULL;
		return -ENOMEM;
	}
	if (number) { /* else it would wait for another vCPU's SIPI */
		struct kvm_mp_state state = {.mp_state = KVM_MP_STATE_RUNNABLE};

		call(vcpu->fd, KVM_SET_MP_STATE, &state);
	}
	if (c->flags & C_EXIT && c->flags & C_EXIT_LATE && !number)
		vm->setup[0] = (int16_t)enable(vm->fd, KVM_CAP_EXIT_HYPERCALL, c->exit_mask);
	rc = 0;
	if (c->flags & C_ENFORCE)
		rc = enable(vcpu->fd, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1);
	if (!number)
		vm->setup[2] = (int16_t)rc;
	rc = set_cpuid(vcpu->fd, c);
	if (!number)
		vm->setup[1] = (int16_t)rc;
	return call(vcpu->fd, KVM_GET_SREGS, &vcpu->start);
}

static int make(struct vm *vm, const struct config *c)
{
	int rc, is_protected = !!(c->flags & C_PROTECTED);

	drop(vm);
	set_ignore_msrs(!!(c->flags & C_IGNORE_MSRS));
	vm->fd = ioctl(kvm, KVM_CREATE_VM, (unsigned long)is_protected);
	if (vm->fd < 0)
		return -errno;
	if (c->flags & C_IRQCHIP)
		call(vm->fd, KVM_CREATE_IRQCHIP, NULL);
	vm->memory = mmap(NULL, MEMORY + SPARE, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (vm->memory == MAP_FAILED) {
		vm->memory = NULL;
		return -ENOMEM;
	}
	vm->ro_code = !!(c->flags & C_READ_ONLY);
	lay_out(vm);
	rc = add_memory(vm, is_protected);
	if (rc)
		return rc;
	if (c->flags & C_EXIT && !(c->flags & C_EXIT_LATE))
		vm->setup[0] = (int16_t)enable(vm->fd, KVM_CAP_EXIT_HYPERCALL, c->exit_mask);
	if (c->flags & C_USER_MSR)
		vm->setup[3] = (int16_t)enable(vm->fd, KVM_CAP_X86_USER_SPACE_MSR, c->user_msr);
	if (c->flags & C_QUIRKS)
		vm->setup[5] = (int16_t)enable(vm->fd, KVM_CAP_DISABLE_QUIRKS2, c->quirks);
	if (c->filter != FILTER_NONE)
		vm->setup[4] = (int16_t)set_filter(vm->fd, c->filter);
	for (int i = 0; i < VCPUS && i < (c->vcpus ? c->vcpus : 1); i++) {
		rc = add_vcpu(vm, c, i);
		if (rc < 0)
			return rc;
	}
	vm->is_made = 1;
	return 0;
}

static struct kvm_segment segment(u16 selector, u8 type, u8 dpl, int is_long, int is_big)
{
	return (struct kvm_segment){
		.selector = selector, .type = type, .dpl = dpl, .l = (u8)is_long, .db = (u8)is_big,
		.g = is_long || is_big, .limit = is_long || is_big ? ~0u : 0xffff,
		.s = 1, .present = 1,
	};
}

static void mode_registers(struct kvm_sregs *s, const struct vm *vm, u8 mode, u8 cpl)
{
	int is_paged = mode == LONG64 || mode == COMPAT32, is_real = mode == REAL16;
	u16 code = mode == LONG64 ? (cpl ? 0x30 : 0x08) : cpl ? 0x40 : 0x18;

	s->gdt.base = GDT;
	s->gdt.limit = 9 * 8 - 1;
	s->cr0 = is_paged ? 0x80000031 | (vm->ro_code ? 0x10000 : 0) : is_real ? 0x30 : 0x31;
	s->cr3 = is_paged ? PML4 : 0;
	s->cr4 = is_paged ? 0x620 : 0;
	s->efer = is_paged ? 0x500 : 0;
	s->idt.base = is_paged ? IDT64 : is_real ? IVT : IDT32;
	s->idt.limit = is_paged ? 0x1ff : is_real ? 0x3ff : 0xff;
	if (is_real) {
		s->cs = segment(0, 11, 0, 0, 0);
		s->ds = segment(0, 3, 0, 0, 0);
	} else {
		s->cs = segment(code | cpl, 11, cpl, mode == LONG64, mode != LONG64);
		s->ds = segment(cpl ? 0x38 | cpl : 0x10, 3, cpl, 0, 1);
	}
	s->es = s->fs = s->gs = s->ss = s->ds;
	/* A 32-bit TSS is not marked as busy: QEMU 7.2 aborts ("invalid tss type") where an exception
	 * takes a nested guest from CPL 3 to 0 with one that is. No processor looks at the bit. */
	s->tr = (struct kvm_segment){
		.base = is_paged ? TSS64 : TSS32, .limit = 0x67, .selector = 0x20,
		.type = is_paged ? 11 : 9, .present = 1,
	};
}

static void first_registers(struct kvm_regs *r, const struct request *q)
{
	memset(r, 0, sizeof(*r));
	r->rip = code_address(q->op);
	r->rsp = q->cpl ? USER_STACK : KERNEL_STACK;
	r->rflags = 2 | (q->cpl ? 0x3000 : 0);
	r->rdi = 0x1111111111111111ull;
	r->rbp = 0x2222222222222222ull;
	r->r8 = 0x8888;
	r->rax = q->rax;
	r->rbx = q->rbx;
	r->rcx = q->rcx;
	r->rdx = q->rdx;
	r->rsi = q->rsi;
	if (q->op == OP_RDMSR || q->op == OP_WRMSR)
		r->rbx = 0x3333333333333333ull;
	if (q->op == OP_WRMSR) {
		r->rax = (u32)q->rax;
		r->rdx = q->rax >> 32;
	}
	if (q->op == OP_RDMSR) {
		r->rax = 0x5a5a5a5a5a5a5a5aull;
		r->rdx = 0x7b7b7b7b7b7b7b7bull;
	}
}

/* What a VMM does at the exit of MAP_GPA_RANGE; its result is the guest's answer. */
static u64 convert(int vm, const u64 *args)
{
	struct memory_attributes change = {
		.address = args[0], .size = args[1] << 12,
		.attributes = args[2] & 0x10 ? ATTRIBUTE_PRIVATE : 0,
	};

	return (u64)(int64_t)call(vm, SET_ATTRIBUTES, &change);
}

static struct event *next_event(struct reply *a, u32 kind)
{
	struct event *event = &a->event[a->events < 2 ? a->events : 1];

	if (a->events < 255)
		a->events++;
	event->kind = kind;
	return event;
}

/* 0: run on; 1: the step ends here. */
static int answer_hypercall(int vm, struct vcpu *vcpu, const struct request *q, struct reply *a)
{
	struct kvm_run *run = vcpu->run;
	struct kvm_regs *r = &run->s.regs.regs;
	struct kvm_sregs *s = &run->s.regs.sregs;
	struct event *event = next_event(a, EVENT_HYPERCALL);
	int rc;

	event->nr = run->hypercall.nr;
	memcpy(event->args, (const void *)run->hypercall.args, sizeof(event->args));
	event->ret = run->hypercall.ret;
	/* Two words: some header files have one u64 of flags in their place. */
	memcpy(&event->longmode, (const u8 *)&run->hypercall.ret + 8, 8);
	event->rip = (int64_t)(r->rip - code_address(q->op));
	event->rax = r->rax;
	if (q->answer == PAUSE) {
		a->outcome = PAUSED;
		return 1;
	}
	if (q->answer != UNTOUCHED)
		run->hypercall.ret = q->ret;
	if (q->answer == SET_RAX || q->answer == SKIP_RIP) {
		r->rax = 0x7777;
		r->rip += q->answer == SKIP_RIP ? 3 : 0;
		run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
	}
	if (q->answer == CHANGE_ARGS) {
		u32 zero = 0;

		run->hypercall.nr = 99;
		run->hypercall.args[0] = 1;
		memcpy((u8 *)&run->hypercall.ret + 8, &zero, 4);
	}
	if (q->answer == CONVERT)
		run->hypercall.ret = convert(vm, event->args);
	if (q->answer == CLEAR_CS_L) {
		s->cs.l = 0;
		s->cs.db = 1;
		run->kvm_dirty_regs = KVM_SYNC_X86_SREGS;
	}
	if (q->answer == IMMEDIATE) {
		run->immediate_exit = 1;
		rc = ioctl(vcpu->fd, KVM_RUN, NULL);
		event = next_event(a, EVENT_IMMEDIATE);
		event->reason = (u32)errno;
		event->nr = (u64)rc;
		run->immediate_exit = 0;
		call(vcpu->fd, KVM_GET_REGS, r);
		event->rip = (int64_t)(r->rip - code_address(q->op));
		event->rax = r->rax;
	} else if (q->flags & F_QUICK) {
		run->immediate_exit = 1;
		rc = ioctl(vcpu->fd, KVM_RUN, NULL);
		a->info = errno;
		run->immediate_exit = 0;
		a->outcome = RUN_ERROR;
		if (rc < 0 && a->info == EINTR && r->rip == code_address(q->op) + 3u) {
			a->outcome = DONE;
			a->info = 0;
		}
		return 1;
	}
	return 0;
}

static void answer_msr(struct kvm_run *run, const struct request *q, struct reply *a)
{
	int is_read = run->exit_reason == KVM_EXIT_X86_RDMSR;
	struct event *event = next_event(a, is_read ? EVENT_RDMSR : EVENT_WRMSR);

	event->reason = run->msr.reason;
	event->longmode = run->msr.error;
	event->nr = run->msr.index;
	event->ret = run->msr.data;
	event->rip = (int64_t)(run->s.regs.regs.rip - code_address(q->op));
	run->msr.error = (u8)q->answer_error;
	if (is_read)
		run->msr.data = q->ret;
}

/* Runs until the guest's OUT or an exit that nobody expects. */
static void run_guest(int vm, struct vcpu *vcpu, const struct request *q, struct reply *a)
{
	struct kvm_run *run = vcpu->run;

	a->outcome = OTHER_EXIT;
	for (int guard = 0; guard < 50; guard++) {
		int rc, error;

		if (!a->events)
			memset((void *)&run->hypercall, 0xa5, sizeof(run->hypercall));
		rc = ioctl(vcpu->fd, KVM_RUN, NULL);
		error = errno;
		run->kvm_dirty_regs = 0;
		if (rc < 0) {
			a->outcome = error == EINTR ? TIMEOUT : RUN_ERROR;
			a->info = error == EINTR ? 0 : error;
			if (error == EFAULT || error == 133)
				a->reason = (int32_t)run->exit_reason;
			if (a->reason == EXIT_MEMORY_FAULT) {
				const volatile u64 *words = (volatile u64 *)&run->hw;

				a->hw = words[0];
				a->data = words[1];
				a->cr2 = words[2];
			}
			return;
		}
		a->reason = (int32_t)run->exit_reason;
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.port == PORT_DONE) {
				a->outcome = DONE;
			} else if ((u32)(run->io.port - PORT_EXCEPTION) < VECTORS) {
				a->outcome = EXCEPTION;
				a->vector = (u8)(run->io.port - PORT_EXCEPTION);
			}
			return;
		case KVM_EXIT_HYPERCALL:
			if (answer_hypercall(vm, vcpu, q, a))
				return;
			break;
		case KVM_EXIT_X86_RDMSR:
		case KVM_EXIT_X86_WRMSR:
			if (q->answer == PAUSE) {
				answer_msr(run, q, a);
				a->outcome = PAUSED;
				return;
			}
			answer_msr(run, q, a);
			break;
		case KVM_EXIT_SHUTDOWN:
			a->outcome = SHUTDOWN;
			return;
		case KVM_EXIT_FAIL_ENTRY:
			a->outcome = FAIL_ENTRY;
			a->hw = run->fail_entry.hardware_entry_failure_reason;
			return;
		case KVM_EXIT_INTERNAL_ERROR:
			a->outcome = INTERNAL_ERROR;
			a->info = (int32_t)run->internal.suberror;
			return;
		case KVM_EXIT_MMIO:
			a->data = run->mmio.phys_addr;
			a->info = run->mmio.is_write;
			run->immediate_exit = 1;
			ioctl(vcpu->fd, KVM_RUN, NULL);
			run->immediate_exit = 0;
			return;
		default:
			return;
		}
	}
}

static int has_error_code(u8 vector)
{
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 ||
	       vector == 29 || vector == 30;
}

static void read_frame(const struct vm *vm, const struct request *q, const struct kvm_regs *r,
		       struct reply *a)
{
	u32 width = q->mode == REAL16 ? 2 : q->mode == PROT32 ? 4 : 8;
	u32 has_code = q->mode != REAL16 && has_error_code(a->vector);
	u64 at = q->mode == REAL16 ? r->rsp & 0xffff : r->rsp, words[2] = {0};

	if (at > MEMORY - sizeof(words))
		return;
	memcpy(&words[0], vm->memory + at, width);
	memcpy(&words[1], vm->memory + at + width, width);
	a->errcode = has_code ? (int64_t)words[0] : -1;
	a->fault_rip = (int64_t)(words[has_code] - code_address(q->op));
}

static void finish(struct vm *vm, struct vcpu *vcpu, const struct request *q, struct reply *a)
{
	struct kvm_run *run = vcpu->run;
	struct kvm_regs *r = &run->s.regs.regs, before;
	u8 *code = vm->memory + code_address(q->op);

	if (a->outcome == TIMEOUT || a->outcome == RUN_ERROR)
		call(vcpu->fd, KVM_GET_REGS, r);
	first_registers(&before, q);
	a->rax = r->rax;
	a->rdx = r->rdx;
	a->rip = (int64_t)(r->rip - code_address(q->op));
	a->changed = (r->rbx != before.rbx) | (r->rcx != before.rcx) << 1 |
		     (q->op != OP_RDMSR && r->rdx != before.rdx) << 2 |
		     (r->rsi != before.rsi) << 3 | (r->rdi != before.rdi) << 4 |
		     (r->r8 != before.r8 || r->rbp != before.rbp) << 5;
	if (a->outcome == EXCEPTION) {
		read_frame(vm, q, r, a);
		if (a->vector == 14)
			a->cr2 = run->s.regs.sregs.cr2;
	}
	if (memcmp(code, CODES[q->op], code_length(q->op))) {
		memcpy(a->code, code, 3);
		memcpy(code, CODES[q->op], code_length(q->op));
	}
}

static void guest_step(struct vm *vm, const struct config *c, const struct request *q, struct reply *a)
{
	struct vcpu *vcpu = &vm->vcpu[q->vcpu];
	struct kvm_run *run = vcpu->run;

	run->s.regs.sregs = vcpu->start;
	mode_registers(&run->s.regs.sregs, vm, q->mode, q->cpl);
	if (c->cpuid == CPUID_NOT_SET) {
		a->rc = call(vcpu->fd, KVM_SET_SREGS, &run->s.regs.sregs);
		if (a->rc) {
			a->outcome = SREGS_REFUSED;
			return;
		}
	}
	first_registers(&run->s.regs.regs, q);
	run->kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
	run->kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
	run->immediate_exit = 0;
	a->reason = -1;
	running = run;
	run_guest(vm->fd, vcpu, q, a);
	running = NULL;
	finish(vm, vcpu, q, a);
}

/* Goes on where a step with the answer PAUSE stopped. */
static void resume(struct vm *vm, const struct request *q, struct reply *a)
{
	struct vcpu *vcpu = &vm->vcpu[q->vcpu];
	struct kvm_run *run = vcpu->run;
	struct request step = *q;

	step.op = q->spare & 3;
	if (run->exit_reason == KVM_EXIT_HYPERCALL) {
		run->hypercall.ret = q->ret;
	} else {
		run->msr.error = (u8)q->answer_error;
		run->msr.data = q->ret;
	}
	a->events = 1; /* run->hypercall is not poisoned now */
	running = run;
	run_guest(vm->fd, vcpu, &step, a);
	running = NULL;
	a->events--;
	finish(vm, vcpu, &step, a);
}

static void msr_ioctl(struct vcpu *vcpu, const struct request *q, struct reply *a)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msrs = {.head.nmsrs = 1};

	msrs.entry.index = (u32)q->rcx;
	msrs.entry.data = q->op == OP_SET_MSR ? q->rax : 0xa5a5a5a5a5a5a5a5ull;
	a->outcome = IOCTL;
	a->rc = call(vcpu->fd, q->op == OP_SET_MSR ? KVM_SET_MSRS : KVM_GET_MSRS, &msrs);
	a->data = msrs.entry.data;
}

/* errno of a read of one byte, by the kernel: it says EFAULT where this program would get SIGBUS. */
static u64 read_error(const u8 *place)
{
	int ends[2], error = 0;

	if (pipe(ends))
		return (u64)errno;
	if (write(ends[1], place, 1) < 0)
		error = errno;
	close(ends[0]);
	close(ends[1]);
	return (u64)error;
}

/* KVM_CREATE_GUEST_MEMFD. What becomes of the file is in a->data, an errno in each byte: a shared
 * mapping, a private one, a read of the first page and of the one behind a file of one page. */
static void create_memfd(struct vm *vm, const struct request *q, struct reply *a)
{
	struct create_memfd file = {.size = q->rax, .flags = q->rbx};
	int fd = ioctl(vm->fd, CREATE_MEMFD, &file);
	u8 *shared, *private;

	if (fd < 0) {
		a->rc = -errno;
		return;
	}
	shared = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED) {
		a->data = (u64)errno;
	} else {
		a->data = read_error(shared) << 16 | read_error(shared + PAGE) << 24;
		munmap(shared, 2 * PAGE);
	}
	private = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	if (private == MAP_FAILED)
		a->data |= (u64)errno << 8;
	else
		munmap(private, PAGE);
	close(fd);
}

static void vm_ioctl(struct vm *vm, const struct request *q, struct reply *a)
{
	struct memory_attributes attributes = {q->rax, q->rbx, q->rcx, q->rdx};
	struct memory_region2 region = {
		.slot = (u32)q->rcx, .flags = (u32)q->rdx, .gpa = q->rax, .size = q->rbx,
		.address = (u64)vm->memory + MEMORY, .offset = q->rsi, .memfd = (u32)vm->memfd,
	};
	unsigned long set_region = vm->memfd > 0 ? SET_REGION2 : KVM_SET_USER_MEMORY_REGION;

	a->outcome = IOCTL;
	switch (q->op) {
	case OP_PEEK:
		a->data = q->rax < MEMORY + SPARE ? vm->memory[q->rax] : 0;
		break;
	case OP_POKE:
		if (q->rax >= 0x30000 && q->rax < MEMORY + SPARE)
			vm->memory[q->rax] = (u8)q->rbx;
		break;
	case OP_ATTRIBUTES:
		a->rc = call(vm->fd, SET_ATTRIBUTES, &attributes);
		break;
	case OP_FALLOCATE:
		a->rc = fallocate(vm->memfd, (int)q->rcx, (off_t)q->rax, (off_t)q->rbx) ? -errno : 0;
		break;
	case OP_MEMFD:
		create_memfd(vm, q, a);
		break;
	case OP_SLOT: /* slots 0 and 1 hold the guest itself */
		a->rc = q->rcx < 2 ? -EPERM : call(vm->fd, set_region, &region);
		break;
	case OP_EXIT_CAP:
		a->rc = enable(vm->fd, KVM_CAP_EXIT_HYPERCALL, q->rax);
		break;
	case OP_MSR_CAP:
		a->rc = enable(vm->fd, KVM_CAP_X86_USER_SPACE_MSR, q->rax);
		break;
	case OP_QUIRKS_CAP:
		a->rc = enable(vm->fd, KVM_CAP_DISABLE_QUIRKS2, q->rax);
		break;
	case OP_ENFORCE:
		a->rc = enable(vm->vcpu[q->vcpu].fd, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, q->rax);
		break;
	case OP_FILTER:
		a->rc = set_filter(vm->fd, (u8)q->rax);
		break;
	default:
		a->rc = -ENOSYS;
	}
}

static void step(const struct request *q, struct reply *a)
{
	struct vm *vm = &vms[q->slot % SLOTS];
	const struct config *c = &configs[q->slot % SLOTS];

	memset(a, 0, sizeof(*a));
	if (q->op == OP_DROP) {
		drop(vm);
		a->outcome = IOCTL;
		return;
	}
	if (q->flags & F_FRESH || !vm->is_made) {
		a->rc = make(vm, c);
		serial++;
		if (a->rc) {
			drop(vm);
			a->outcome = NO_VM;
			return;
		}
	}
	memcpy(a->setup, vm->setup, sizeof(a->setup));
	if (q->vcpu >= VCPUS || !vm->vcpu[q->vcpu].run) {
		a->outcome = NO_VM;
		a->rc = -ENXIO;
	} else if (q->op <= OP_WRMSR || q->op == OP_READ || q->op == OP_WRITE) {
		guest_step(vm, c, q, a);
	} else if (q->op == OP_RESUME) {
		resume(vm, q, a);
	} else if (q->op == OP_GET_MSR || q->op == OP_SET_MSR) {
		msr_ioctl(&vm->vcpu[q->vcpu], q, a);
	} else {
		vm_ioctl(vm, q, a);
	}
}

static int load_module(const char *path)
{
	int result, fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return errno == ENOENT ? 1 : -errno;
	result = syscall(SYS_finit_module, fd, "", 0) ? -errno : 0;
	close(fd);
	return result;
}

static u32 sysfs_number(const char *directory, const char *name)
{
	char path[512], text[32] = "";
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", directory, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	length = read(fd, text, sizeof(text) - 1);
	close(fd);
	return length > 0 ? (u32)strtoul(text, NULL, 16) : 0;
}

static u8 *find_channel(void)
{
	DIR *devices = opendir("/sys/bus/pci/devices");
	struct dirent *entry;
	char path[512];
	void *memory;
	int fd;

	while (devices && (entry = readdir(devices))) {
		if (sysfs_number(entry->d_name, "vendor") != 0x1af4 ||
		    sysfs_number(entry->d_name, "device") != 0x1110)
			continue;
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/enable", entry->d_name);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd >= 0) {
			if (write(fd, "1", 1) < 0)
				perror("enable");
			close(fd);
		}
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource2_wc", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0) {
			path[strlen(path) - 3] = 0;
			fd = open(path, O_RDWR | O_CLOEXEC);
		}
		memory = mmap(NULL, CHANNEL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		return memory == MAP_FAILED ? NULL : memory;
	}
	return NULL;
}

static void power_off(void)
{
	fflush(NULL);
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void describe(struct header *h)
{
	static const int caps[] = {
		KVM_CAP_EXIT_HYPERCALL, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_X86_USER_SPACE_MSR,
		KVM_CAP_X86_MSR_FILTER, KVM_CAP_DISABLE_QUIRKS2, CAP_VM_TYPES, CAP_MEMORY_ATTRIBUTES,
		CAP_GUEST_MEMFD,
	};
	struct kvm_msr_list *list = calloc(1, sizeof(*list) + 4096 * sizeof(u32));
	int vm = ioctl(kvm, KVM_CREATE_VM, 0ul);
	struct utsname name;

	for (unsigned i = 0; i < sizeof(caps) / sizeof(caps[0]); i++)
		h->caps[i] = ioctl(vm < 0 ? kvm : vm, KVM_CHECK_EXTENSION, (unsigned long)caps[i]);
	/* vm stays open: virtualization is then not switched on and off with every VM */
	for (u32 i = 0; i < supported->nent; i++) {
		if (supported->entries[i].function == 0x40000001)
			h->pv_features = supported->entries[i].eax;
		if (supported->entries[i].function == 0x80000008)
			h->address_bits = supported->entries[i].eax & 0xff;
	}
	list->nmsrs = 4096;
	if (!call(kvm, KVM_GET_MSR_INDEX_LIST, list))
		for (u32 i = 0; i < list->nmsrs && h->msr_count < 16; i++)
			if (list->indices[i] >> 8 == MSR_RANGE >> 8)
				h->msrs[h->msr_count++] = list->indices[i];
	free(list);
	uname(&name);
	snprintf(h->release, sizeof(h->release), "%s", name.release);
	snprintf(h->build, sizeof(h->build), "%s", name.version);
}

static void clear_warn_once(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = open("/sys/kernel/debug/clear_warn_once", O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, "1", 1) < 0)
		fd = -1;
}

static void serve(u8 *channel)
{
	static struct request requests[CAPACITY];
	static struct reply replies[CAPACITY];
	volatile struct header *h = (struct header *)channel;
	unsigned idle = 0;

	for (;;) {
		u32 state = h->state, count;

		if (state == POWER_OFF)
			return;
		if (state != REQUESTED) {
			if (++idle > 1000)
				usleep(200);
			continue;
		}
		idle = 0;
		__sync_synchronize();
		count = h->count < CAPACITY ? h->count : CAPACITY;
		memcpy(configs, channel + CONFIGS_AT, sizeof(configs));
		memcpy(requests, channel + REQUESTS_AT, count * sizeof(requests[0]));
		clear_warn_once();
		is_busy = 1;
		for (u32 i = 0; i < count; i++) {
			h->done = i;
			serial++;
			if (trace)
				*(volatile u64 *)trace = 0;
			step(&requests[i], &replies[i]);
			if (trace)
				replies[i].covered = newly_reached();
		}
		h->done = count;
		is_busy = 0;
		memcpy(channel + REPLIES_AT, replies, count * sizeof(replies[0]));
		h->batches++;
		__sync_synchronize();
		h->state = IDLE;
	}
}

int main(void)
{
	static const char *const modules[] = {"/irqbypass.ko", "/ccp.ko", "/kvm.ko", "/kvm-amd.ko"};
	struct sigaction action = {.sa_handler = on_kick};
	pthread_t watcher;
	struct header *h;
	u8 *channel;
	int fd;

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	fd = open("/dev/console", O_RDWR);
	if (fd >= 0) {
		dup2(fd, 0);
		dup2(fd, 1);
		dup2(fd, 2);
	}
	channel = find_channel();
	if (!channel) {
		printf("guestemu: no shared memory device\n");
		power_off();
	}
	h = (struct header *)channel;
	for (int i = 0; i < 4; i++)
		h->insmod[i] = load_module(modules[i]);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	h->kvm = kvm < 0 ? -errno : 0;
	supported = calloc(1, sizeof(*supported) + 256 * sizeof(struct kvm_cpuid_entry2));
	supported->nent = 256;
	if (kvm >= 0) {
		run_bytes = (u32)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0ul);
		if (call(kvm, KVM_GET_SUPPORTED_CPUID, supported))
			supported->nent = 0;
		describe(h);
		open_coverage();
	}
	sigaction(SIGUSR1, &action, NULL);
	steps_thread = pthread_self();
	if (pthread_create(&watcher, NULL, watch, NULL))
		perror("watch");
	h->version = VERSION;
	h->magic = MAGIC;
	__sync_synchronize();
	h->state = IDLE;
	if (kvm >= 0)
		serve(channel);
	power_off();
	return 0;
}
