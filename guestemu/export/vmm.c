// SPDX-License-Identifier: GPL-2.0-or-later
/* What the VMMs of exported tests share; kvm-selftest.c has it in its middle, behind its includes. */

/* Guest memory: page tables, IDT, GDT. */
#define PML4 0x1000
#define PDPT 0x2000
#define PD 0x3000
#define IDT 0x4000
#define GDT 0x5000

#define CODE_SELECTOR 0x8
#define DATA_SELECTOR 0x10
#define GP_VECTOR 13

/* Seconds; a guest that does not come back is killed by SIGALRM. */
#define TIMEOUT 60

#define KSFT_FAIL 1
#define KSFT_SKIP 4

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

static int make_vm(int *kvm)
{
	int vm;

	*kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (*kvm < 0)
		skip("no /dev/kvm");
	vm = must(ioctl(*kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	enable(vm, KVM_CAP_EXIT_HYPERCALL, 1 << 12);
	enable(vm, KVM_CAP_X86_USER_SPACE_MSR,
	       KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN |
	       KVM_MSR_EXIT_REASON_FILTER);
	return vm;
}

static void add_slot(int vm, unsigned int slot, uint64_t gpa, uint64_t size, const char *memory)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .guest_phys_addr = gpa, .memory_size = size,
		.userspace_addr = (uintptr_t)memory,
	};

	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
}

/* Slot 0, from address 0 on. */
static char *add_memory(int vm, size_t size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		skip("no memory");
	add_slot(vm, 0, 0, size, memory);
	return memory;
}

/* The handler of #GP, and the segments. */
static void set_descriptors(char *memory, uint64_t handler)
{
	uint32_t *gate = (uint32_t *)(memory + IDT + 16 * GP_VECTOR);
	uint64_t *gdt = (uint64_t *)(memory + GDT);

	gate[0] = (uint32_t)(CODE_SELECTOR << 16 | (handler & 0xffff));
	gate[1] = (uint32_t)((handler & 0xffff0000) | 0x8e00);
	gate[2] = (uint32_t)(handler >> 32);
	gdt[1] = 0x00af9b000000ffffULL;
	gdt[2] = 0x00cf93000000ffffULL;
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

static void set_registers(int vcpu, const struct kvm_regs *regs)
{
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = CODE_SELECTOR, .type = 11, .present = 1,
		.s = 1, .l = 1, .g = 1,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = DATA_SELECTOR, .type = 3, .present = 1,
		.s = 1, .db = 1, .g = 1,
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
	sregs.cr4 = 1 << 5 | 1 << 9 | 1 << 10;
	sregs.cr0 = 1u << 31 | 1 << 5 | 1 << 4 | 1;
	sregs.efer = 1 << 8 | 1 << 10;
	must(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	must(ioctl(vcpu, KVM_SET_REGS, regs), "KVM_SET_REGS");
}

/* A vCPU of 64-bit code at CPL 0. */
static int add_vcpu(int kvm, int vm, const struct kvm_regs *regs, struct kvm_run **run)
{
	int vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");

	set_cpuid(kvm, vcpu);
	set_registers(vcpu, regs);
	*run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (*run == MAP_FAILED)
		skip("kvm_run cannot be mapped");
	return vcpu;
}
