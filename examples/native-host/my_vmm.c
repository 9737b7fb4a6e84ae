/* SPDX-License-Identifier: MIT */
/* A small VMM's exit handler, with a bug: a range that ends on a 64-page boundary loses its last page.
 *
 *     cc -shared -fPIC -O2 -I"$(guestemu hosts --include)" -o my_vmm.so my_vmm.c
 *     guestemu fuzz hypercall --host ./my_vmm.so --time 10
 *
 * -DBUG=0 leaves the bug out; 2 is a null pointer, 3 an endless loop, 4 an abort, for 33 pages; 5
 * forgets memory that is plugged (--memory 64,slot@32M,plug@63M+1M).
 */
#include <errno.h>
#include <stdlib.h>

#include "guestemu_host.h"

#ifndef BUG
#define BUG 1
#endif

#define MAX_SLOTS 16
#define PRIVATE (1ull << 3)
#define PUNCH 3 /* FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE */
#define DONTNEED 4

struct vm {
	struct guestemu_kernel kernel;
	struct guestemu_slot slot[MAX_SLOTS];
	uint32_t slots;
	uint64_t migration_control;
};

uint32_t guestemu_abi(void)
{
	return GUESTEMU_HOST_ABI;
}

uint32_t guestemu_features(void)
{
	return GUESTEMU_MIGRATION_CONTROL;
}

void *guestemu_open(const struct guestemu_layout *layout, const struct guestemu_kernel *kernel)
{
	struct vm *vm = calloc(1, sizeof(*vm));

	if (!vm || layout->slots > MAX_SLOTS)
		return NULL;
	vm->kernel = *kernel;
	vm->slots = layout->slots;
	for (uint32_t i = 0; i < layout->slots; i++)
		vm->slot[i] = layout->slot[i];
	return vm;
}

/* Hot-plug: the slots that the VM has now. */
int guestemu_layout(void *opaque, const struct guestemu_layout *layout)
{
	struct vm *vm = opaque;

	if (layout->slots > MAX_SLOTS)
		return -ENOSPC;
	if (BUG == 5)
		return 0;
	vm->slots = layout->slots;
	for (uint32_t i = 0; i < layout->slots; i++)
		vm->slot[i] = layout->slot[i];
	return 0;
}

int guestemu_reset(void *opaque)
{
	struct vm *vm = opaque;

	vm->migration_control = 0;
	return 0;
}

void guestemu_close(void *vm)
{
	free(vm);
}

static int convert(struct vm *vm, uint64_t gpa, uint64_t pages, int to_private)
{
	const struct guestemu_kernel *k = &vm->kernel;
	uint64_t end = pages > (UINT64_MAX - gpa) >> 12 ? UINT64_MAX : gpa + (pages << 12);

	if (BUG == 1 && pages > 1 && !(end & 0x3ffff))
		end -= 0x1000;
	if (BUG == 2 && pages == 33)
		*(volatile int *)0 = 1;
	while (BUG == 3 && pages == 33)
		__asm__ volatile("");
	if (BUG == 4 && pages == 33)
		abort();
	for (uint32_t i = 0; i < vm->slots; i++) {
		const struct guestemu_slot *slot = &vm->slot[i];
		uint64_t from = gpa > slot->gpa ? gpa : slot->gpa;
		uint64_t to = end < slot->gpa + slot->size ? end : slot->gpa + slot->size;
		uint64_t offset = from - slot->gpa;

		if (from >= to || !(slot->flags & GUESTEMU_SLOT_GUEST_MEMFD))
			continue;
		if (k->set_memory_attributes(k->token, from, to - from, to_private ? PRIVATE : 0, 0))
			return EINVAL;
		if (to_private)
			k->madvise(k->token, i, offset, to - from, DONTNEED);
		else
			k->fallocate(k->token, i, PUNCH, offset + slot->memfd_offset, to - from);
	}
	return 0;
}

static int msr(struct vm *vm, struct guestemu_exit *exit)
{
	if (exit->msr.index != 0x4b564d08)
		return 1;
	if (exit->exit_reason == GUESTEMU_EXIT_RDMSR)
		exit->msr.data = vm->migration_control;
	else if (exit->msr.data > 1)
		return 1;
	else
		vm->migration_control = exit->msr.data;
	return 0;
}

int guestemu_exit(void *opaque, struct guestemu_exit *exit)
{
	struct vm *vm = opaque;

	switch (exit->exit_reason) {
	case GUESTEMU_EXIT_HYPERCALL:
		exit->hypercall.ret = (uint64_t)convert(vm, exit->hypercall.args[0],
							exit->hypercall.args[1],
							exit->hypercall.args[2] >> 4 & 1);
		return GUESTEMU_REENTER;
	case GUESTEMU_EXIT_RDMSR:
	case GUESTEMU_EXIT_WRMSR:
		exit->msr.error = (uint64_t)msr(vm, exit);
		return GUESTEMU_REENTER;
	case GUESTEMU_EXIT_MEMORY_FAULT:
		return convert(vm, exit->memory_fault.gpa, exit->memory_fault.size >> 12,
			       exit->memory_fault.flags >> 3 & 1) ?
			       GUESTEMU_STOP :
			       GUESTEMU_REENTER;
	}
	return GUESTEMU_STOP;
}
