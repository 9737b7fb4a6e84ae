// SPDX-License-Identifier: GPL-2.0-or-later
/* The counters of an op: what campaign/feedback.py and campaign/near_misses.py count, at the same
 * places, so that it does not matter which of the two ran an input. */
#include "fast.h"

enum { NEAR_RANGE, NEAR_LENGTH, NEAR_NUMBER, NEAR_TOLD, NEAR_DIFFERENCE, NEAR_MSR, NEAR_WORK };
enum { MANY_EXITS = 4, WORD = 63, FAR = 2, KIND_SHIFT = 8, MODE_SHIFT = 2 };

/* The number of a feature (campaign/features.py). */
u64 fast_feature(const i64 *items, u64 count)
{
	u64 state = 0x9e3779b97f4a7c15ull ^ count;

	for (u64 i = 0; i < count; i++) {
		state = (state ^ (u64)items[i]) * 0xd6e8feb86659fd93ull;
		state ^= state >> 32;
	}
	return state;
}

#define FEATURE(...) \
	fast_feature((const i64[]){ __VA_ARGS__ }, sizeof((i64[]){ __VA_ARGS__ }) / sizeof(i64))

static int bits_of(u64 value)
{
	return value ? 64 - __builtin_clzll(value) : 0;
}

/* `value_class`: value 0 counts as True there, so as 1. */
static i64 class_of(i64 value, bool is_signed)
{
	u64 word = value;

	if (value == 0)
		return 1;
	if (value == 1)
		return 2;
	if ((is_signed && value < 0) || word >= -4096ull)
		return (4 - word) & 0xff;
	if (word >= 0xfffff000 && word <= 0xffffffff)
		return 0x100 | ((-word) & 0xff);
	return 3;
}

static void near(struct fast *f, u64 value)
{
	f->area[f->near_offset + (value & f->near_mask)] = 1;
}

static i64 border(u64 value)
{
	switch (value & WORD) {
	case 0:
		return 1;
	case 1:
		return 2;
	case WORD:
		return 3;
	default:
		return 0;
	}
}

static void near_exit(struct fast *f, const struct exit *exit)
{
	u64 first = exit->args[0] >> PAGE_SHIFT;
	u128 end = (u128)first + exit->args[1];
	i64 beyond = FAR;

	if (exit->nr != MAP_GPA_RANGE) {
		near(f, FEATURE(NEAR_NUMBER, bits_of(exit->nr)));
		near(f, 0);
		return;
	}
	if (end < (u128)f->frames + FAR)
		beyond = end + FAR > f->frames ? (i64)((u64)end - f->frames) : -FAR;
	near(f, FEATURE(NEAR_RANGE, border(first), border((u64)end), beyond, end > (u128)~0ull,
		     exit->args[0] & 1));
	near(f, FEATURE(NEAR_LENGTH, bits_of(exit->args[1])));
}

static void near_conversion(struct fast *f, u64 asked)
{
	u64 told = 0, missing;
	i64 used = f->budget - *f->blocks_left;

	for (u64 i = 0; i < f->exit_count; i++)
		told += f->exits[i].args[1];
	missing = told > asked ? told - asked : asked - told;
	near(f, FEATURE(NEAR_TOLD, asked > told, bits_of(missing), told == 0));
	near(f, FEATURE(NEAR_WORK, bits_of(used > 0 ? used : 0)));
}

void fast_count(struct fast *f, const struct op *op, u64 index, i64 value)
{
	const struct exit *last = f->exit_count ? &f->exits[f->exit_count - 1] : NULL;
	bool differs = !fast_same(fast_host_map(f), &f->direct.bits);
	u64 state = f->is_stale ? f->base_state : f->state;
	bool is_signed = op->kind != HYPERCALL && op->kind != READ;
	u64 first, count, step;

	step = FEATURE(op->kind, class_of(value, is_signed), last ? class_of(last->ret, false) : 0, 0,
		    state, f->exit_count < MANY_EXITS ? f->exit_count : MANY_EXITS, differs,
		    op->mode << MODE_SHIFT | op->cpl, 0);
	f->area[f->model_offset + (step & f->model_mask)] = 1;
	step = FEATURE(index ? f->previous : 0, op->kind, state, differs, fast_ready(f));
	f->area[f->model_offset + (step & f->model_mask)] = 1;
	f->previous = op->kind << KIND_SHIFT | state;
	if (last)
		near_exit(f, last);
	if (f->exit_count > 1)
		near_exit(f, &f->exits[0]);
	if (fast_range(f, op, &first, &count))
		near_conversion(f, count);
	if (differs && !last)
		near(f, FEATURE(NEAR_DIFFERENCE, bits_of(fast_differences(fast_host_map(f), &f->direct.bits))));
}
