/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The exit handler of the native figures: converts what lies in its slots, attributes first. */
#include "guestemu_host.h"

enum { MAX_SLOTS = 64, PUNCH = 3, DONTNEED = 4, PRIVATE = 8, EINVAL = 22 };

static struct {
	struct guestemu_kernel kernel;
	struct guestemu_slot slot[MAX_SLOTS];
	uint32_t slots;
} vm;

uint32_t guestemu_abi(void)
{
	return GUESTEMU_HOST_ABI;
}

void *guestemu_open(const struct guestemu_layout *layout, const struct guestemu_kernel *kernel)
{
	vm.kernel = *kernel;
	vm.slots = layout->slots;
	for (uint32_t i = 0; i < layout->slots; i++)
		vm.slot[i] = layout->slot[i];
	return &vm;
}

int guestemu_reset(void *opaque)
{
	(void)opaque;
	return 0;
}

void guestemu_close(void *opaque)
{
	(void)opaque;
}

static int convert(uint64_t gpa, uint64_t end, uint64_t attributes)
{
	const struct guestemu_kernel *k = &vm.kernel;

	for (uint32_t i = 0; i < vm.slots; i++) {
		const struct guestemu_slot *slot = &vm.slot[i];
		uint64_t from = gpa > slot->gpa ? gpa : slot->gpa;
		uint64_t to = end < slot->gpa + slot->size ? end : slot->gpa + slot->size;
		uint64_t offset = from - slot->gpa;

		if (from >= to || !(slot->flags & GUESTEMU_SLOT_GUEST_MEMFD))
			continue;
		if (k->set_memory_attributes(k->token, from, to - from, attributes, 0))
			return -EINVAL;
		if (attributes)
			k->madvise(k->token, i, offset, to - from, DONTNEED);
		else
			k->fallocate(k->token, i, PUNCH, offset + slot->memfd_offset, to - from);
	}
	return 0;
}

int guestemu_exit(void *opaque, struct guestemu_exit *exit)
{
	uint64_t gpa = exit->hypercall.args[0], pages = exit->hypercall.args[1];
	uint64_t end = pages > (UINT64_MAX - gpa) >> 12 ? UINT64_MAX : gpa + (pages << 12);
	uint64_t attributes = exit->hypercall.args[2] & 1 << 4 ? PRIVATE : 0;

	(void)opaque;
	if (exit->exit_reason != GUESTEMU_EXIT_HYPERCALL)
		return GUESTEMU_STOP;
	exit->hypercall.ret = (uint64_t)(int64_t)convert(gpa, end, attributes);
	return GUESTEMU_REENTER;
}
