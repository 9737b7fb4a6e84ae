/* SPDX-License-Identifier: MIT */
/* An exit handler with one defect of its own, chosen by -DDEFECT; 0: none, and it refuses what its
 * slots do not cover. */
#include <errno.h>

#include "guestemu_host.h"

#ifndef DEFECT
#define DEFECT 0
#endif

enum { NO_PUNCH = 1, NO_DISCARD, ANSWER, WORD, PAGE_SHORT, STOPS, SURVIVES, DIES, STALE_RET,
       DISCARDS_SLOT, PUNCHES_SLOT };

static struct {
	struct guestemu_kernel kernel;
	struct guestemu_slot slot[16];
	uint32_t slots;
	int is_spoiled;
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

static int convert(uint64_t gpa, uint64_t size, int to_private)
{
	const struct guestemu_kernel *k = &vm.kernel;
	uint64_t covered = 0;

	for (int is_second = 0; is_second < 2; is_second++)
		for (uint32_t i = 0; i < vm.slots; i++) {
			const struct guestemu_slot *s = &vm.slot[i];
			uint64_t from = gpa > s->gpa ? gpa : s->gpa, end = s->gpa + s->size;
			uint64_t to = size < end - gpa ? gpa + size : end;

			if (gpa >= end || from >= to || !(s->flags & GUESTEMU_SLOT_GUEST_MEMFD))
				continue;
			covered += is_second ? 0 : to - from;
			if (!is_second)
				continue;
			if (covered != size)
				return -EINVAL;
			if (DEFECT == PAGE_SHORT && to - from > 0x1000)
				to -= 0x1000;
			k->set_memory_attributes(k->token, from, to - from, to_private ? 8 : 0, 0);
			if (DEFECT == (to_private ? DISCARDS_SLOT : PUNCHES_SLOT))
				from = s->gpa, to = end;
			if (to_private && DEFECT != NO_DISCARD)
				k->madvise(k->token, i, from - s->gpa, to - from, 4);
			if (!to_private && DEFECT != NO_PUNCH)
				k->fallocate(k->token, i, 3, from - s->gpa + s->memfd_offset, to - from);
		}
	return covered == size ? 0 : -EINVAL;
}

int guestemu_exit(void *opaque, struct guestemu_exit *exit)
{
	uint64_t gpa = exit->hypercall.args[0], pages = exit->hypercall.args[1];
	uint64_t attributes = exit->hypercall.args[2];
	uint64_t size = pages >> 52 ? UINT64_MAX : pages << 12;
	int answer;

	(void)opaque;
	if (exit->exit_reason != GUESTEMU_EXIT_HYPERCALL)
		return GUESTEMU_STOP;
	if (DEFECT == STOPS && pages == 1)
		return GUESTEMU_STOP;
	if (DEFECT == DIES && pages == 2)
		*(volatile int *)0 = 1;
	answer = convert(gpa, size, DEFECT == WORD ? attributes != 0 : attributes >> 4 & 1);
	if (DEFECT == ANSWER && !answer && pages == 2)
		answer = 1;
	if (DEFECT == SURVIVES && vm.is_spoiled && !answer)
		answer = -EIO;
	if (pages == 3)
		vm.is_spoiled = 1;
	if (DEFECT != STALE_RET || !answer)
		exit->hypercall.ret = (uint64_t)(int64_t)answer;
	return GUESTEMU_REENTER;
}
