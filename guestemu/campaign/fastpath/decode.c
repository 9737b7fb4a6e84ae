// SPDX-License-Identifier: GPL-2.0-or-later
/* Bytes to ops (guestemu/program/binary.py), and the limits of lawful callers (campaign/ranges.py). */
#include "fast.h"

enum { MAX_PAGES = 66, MAX_LARGE_PAGES = 1025, MAX_EARLY_PAGES = 4, MAX_STORE = 2 * PAGE };
enum { POSTURE_MODE = 3, POSTURE_CPL_SHIFT = 2, POSTURE_VMCALL = 0x10, POSTURE_RAW = 0x20 };

static u64 little(const u8 *at)
{
	u64 value;

	__builtin_memcpy(&value, at, sizeof(value));
	return value;
}

static u64 cut(u64 length, u64 limit)
{
	return length <= limit ? length : length % limit + 1;
}

static u64 least(u64 a, u64 b)
{
	return a < b ? a : b;
}

/* False where only Python knows what the limits make of `op`. */
static bool limit(const struct fast *f, struct op *op)
{
	u64 *arguments = op->arguments;
	u64 room = f->regions[op->region].pages - op->page;

	switch (op->kind) {
	case SET_ENCRYPTED:
	case SET_DECRYPTED:
		arguments[0] &= 0xffffffff;
		if (op->region == REGION_G && arguments[0] > MAX_LARGE_PAGES)
			return false;
		if (f->is_lawful)
			arguments[1] = 0;
		arguments[0] = cut(arguments[0],
				   least(room, op->region == REGION_D || op->region == REGION_V ?
						       MAX_PAGES : MAX_LARGE_PAGES));
		return true;
	case EARLY_SET_ENCRYPTED:
	case EARLY_SET_DECRYPTED:
		if (!f->is_lawful)
			return false;
		arguments[1] = 0;
		if (op->region == REGION_V)
			op->region = REGION_D;
		arguments[0] = cut(arguments[0], least(room, MAX_EARLY_PAGES) << PAGE_SHIFT);
		return true;
	case WRITE:
		arguments[2] = cut(arguments[2],
				   least(room << PAGE_SHIFT, MAX_STORE) - arguments[1]);
		if (arguments[1] + arguments[2] > PAGE)
			arguments[1] &= ~7ull;
		return true;
	case READ:
		arguments[0] = least(arguments[0], PAGE - 8);
		return true;
	default:
		return true;
	}
}

static bool decode_one(const struct fast *f, const u8 *record, struct op *op)
{
	const struct plan *plan = &f->plans[record[0]];
	const struct place *place = &f->places[record[2]];
	u8 posture = plan->postures[record[1]];
	bool flag = place->flag;
	u32 page;

	if (plan->kind >= KINDS || !f->functions[plan->kind] || posture & POSTURE_VMCALL)
		return false;
	op->vcpu = record[3] % f->vcpus;
	if (op->vcpu && !plan->is_call)
		return false; /* a hypercall stub sets all registers, so any vCPU may run it */
	op->kind = plan->kind;
	op->mode = posture & POSTURE_MODE;
	op->cpl = posture >> POSTURE_CPL_SHIFT & 3;
	for (u64 i = 0; i < plan->argument_count; i++) {
		const u8 *at = record + 8 + 8 * i;

		op->arguments[i] = posture & POSTURE_RAW ? little(at) & plan->masks[i] :
							   plan->palettes[i][*at];
	}
	for (u64 i = plan->argument_count; i < ARGUMENTS; i++)
		op->arguments[i] = 0;
	__builtin_memcpy(&page, record + 4, sizeof(page));
	op->region = place->region;
	op->page = page < place->pages ? page : place->palette[page & 0xff];
	if (!plan->has_page || (plan->is_call && !flag)) {
		op->region = REGION_D;
		op->page = 0;
		flag = false;
	}
	op->has_page = flag && plan->is_call;
	return !f->limits || limit(f, op);
}

/* Fills f->ops; false where an op is not one of the common ones. */
bool fast_decode(struct fast *f, const u8 *data, size_t size)
{
	bool is_stopped = false;

	if (size > f->max_size)
		size = f->max_size;
	f->ops_count = 0;
	for (u64 offset = 0; offset + RECORD <= size; offset += RECORD) {
		struct op *op = &f->ops[f->ops_count];

		if (f->ops_count == MAX_OPS || !decode_one(f, data + offset, op))
			return false;
		if (f->limits && op->kind == STOP_CONVERSION) {
			if (is_stopped)
				continue;
			is_stopped = true;
		}
		f->ops_count++;
	}
	return true;
}
