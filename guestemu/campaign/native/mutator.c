// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The custom mutator of a campaign, as libFuzzer looks for it: by name, in a library loaded before.
 *
 * A mutator in Python costs more than an execution. This does the common mutations and crossovers,
 * and calls Python for the rest. campaign/mixed_mutator.py has the same in Python for other hosts, and
 * says what each does.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

enum { RECORD = 48, POSTURE = 1, VMCALL = 0x10 };
enum { STRUCTURE_MASK = 255, RARE_MASK = 63, ORDER = 0, EDGE = 16, FRESH = 32, POKE_MASK = 3 };
enum { INSERT, DELETE, SWAP, REPEAT, VARY, ORDERS, LONGEST_RUN = 4 };
enum { VMCALL_MASK = 0x1e0, DROP_MASK = 0xe00, CROSS_MASK = 7, CROSS_SHIFT = 3 };

/* LLVMFuzzerMutate, then `uncommon` with the arguments of LLVMFuzzerCustomMutator. */
EXPORT struct {
	size_t (*llvm)(u8 *data, size_t size, size_t max_size);
	size_t (*uncommon)(u8 *data, size_t size, size_t max_size, unsigned seed);
} mutator_calls;

/*
 * How many inputs are new programs: campaign/shares.py, whose numbers these are. `fresh_below` of 65,536
 * are, 0 where nothing weighs them. By changed (0) and new (1): inputs made, those that covered something
 * new; `last` is which the last one was.
 */
EXPORT struct {
	u64 fresh_below, made[2], gained[2], last;
} mutator_share;

enum { OPENING = 2048, WEIGH_EVERY = 256, ASSUMED = 64, FORGET_AT = 8192, LEAST = 1024, MOST = 32768 };

static void note(bool is_new)
{
	u64 *made = mutator_share.made, *gained = mutator_share.gained;
	u64 total, old, fresh, below;

	mutator_share.last = is_new;
	made[is_new]++;
	total = made[0] + made[1];
	if (!mutator_share.fresh_below || total < OPENING || total % WEIGH_EVERY)
		return;
	old = ((gained[0] + 1) << 32) / (made[0] + ASSUMED);
	fresh = ((gained[1] + 1) << 32) / (made[1] + ASSUMED);
	below = (fresh << 16) / (old + fresh);
	mutator_share.fresh_below = below < LEAST ? LEAST : below > MOST ? MOST : below;
	if (total < FORGET_AT)
		return;
	for (int kind = 0; kind < 2; kind++) {
		made[kind] /= 2;
		gained[kind] /= 2;
	}
}

static const u8 fields[] = { 0, 1, 1, 2, 4, 4, 5, 8, 8, 16, 16, 24, 24, 32, 40 };

static u64 stir(u32 seed)
{
	u64 state = seed * 0x9e3779b97f4a7c15 + 0x123456789abcdef1;

	return state ^ state >> 29;
}

/* program/mutate.py, `Draws` */
static u64 draw(u64 *state)
{
	u64 value = *state += 0x9e3779b97f4a7c15;

	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
	value = (value ^ value >> 27) * 0x94d049bb133111eb;
	return value ^ value >> 31;
}

static size_t poke(u8 *data, size_t size, size_t max_size, u64 state)
{
	size_t records = (size < max_size ? size : max_size) / RECORD;
	int times;

	state >>= 2;
	times = 1 + (state & 1);
	while (times--) {
		size_t record = (state >> 1 & 0xff) % records;

		data[record * RECORD + fields[(state >> 9 & 0xff) % sizeof(fields)]] = state >> 17;
		state >>= 24;
	}
	return records * RECORD;
}

static size_t fresh(u8 *data, size_t max_size, u64 state)
{
	size_t size = (1 + (state >> 32 & 0xffff) % (max_size / RECORD)) * RECORD;

	for (size_t offset = 0; offset < size; offset += sizeof(u64)) {
		u64 word = draw(&state);

		__builtin_memcpy(data + offset, &word, sizeof(word));
	}
	return size;
}

/* Room for `count` records in front of record `place`; the new size, without what falls off the end. */
static size_t make_room(u8 *data, size_t size, size_t room, size_t place, size_t count)
{
	u8 *at = data + place * RECORD;
	size_t behind = size - place * RECORD, left = room - place * RECORD;

	count *= RECORD;
	if (count > left)
		count = left;
	if (behind > left - count)
		behind = left - count;
	__builtin_memmove(at + count, at, behind);
	return place * RECORD + count + behind;
}

/* What is done to whole records, of which there is one at least. */
static size_t reorder(u8 *data, size_t size, size_t max_size, u64 state)
{
	size_t records = (size < max_size ? size : max_size) / RECORD;
	size_t room = max_size / RECORD * RECORD, count = 1, length;
	u8 run[LONGEST_RUN * RECORD];
	u64 order = draw(&state) % ORDERS;
	size_t from = draw(&state) % records, to = draw(&state) % (records + 1);

	size = records * RECORD;
	switch (order) {
	case DELETE:
		if (records == 1)
			return size;
		__builtin_memmove(data + from * RECORD, data + (from + 1) * RECORD,
				  size - (from + 1) * RECORD);
		return size - RECORD;
	case SWAP:
		to %= records;
		__builtin_memcpy(run, data + from * RECORD, RECORD);
		__builtin_memmove(data + from * RECORD, data + to * RECORD, RECORD);
		__builtin_memcpy(data + to * RECORD, run, RECORD);
		return size;
	case INSERT:
		fresh(run, RECORD, draw(&state));
		break;
	case REPEAT:
		count = 1 + draw(&state) % LONGEST_RUN;
		if (count > records - from)
			count = records - from;
		__builtin_memcpy(run, data + from * RECORD, count * RECORD);
		break;
	case VARY:
		__builtin_memcpy(run, data + from * RECORD, RECORD);
		poke(run, RECORD, RECORD, draw(&state));
		to = from + 1;
	}
	size = make_room(data, size, room, to, count);
	length = size - to * RECORD;
	__builtin_memcpy(data + to * RECORD, run, length < count * RECORD ? length : count * RECORD);
	return size;
}

EXPORT size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t max_size, unsigned seed)
{
	u32 rare = seed & RARE_MASK;
	bool is_new;

	if (max_size < RECORD)
		return 0;
	is_new = size < RECORD || rare == FRESH || stir(seed) >> 48 < mutator_share.fresh_below;
	note(is_new);
	if (is_new) {
		size = fresh(data, max_size, stir(seed));
	} else {
		if (rare == EDGE || !(seed & STRUCTURE_MASK))
			return mutator_calls.uncommon(data, size, max_size, seed);
		if (rare == ORDER)
			size = reorder(data, size, max_size, stir(seed));
		else if (seed & POKE_MASK)
			size = mutator_calls.llvm(data, size, max_size);
		else
			size = poke(data, size, max_size, stir(seed));
		if (size >= 2 * RECORD && !(seed & DROP_MASK))
			size -= RECORD;
	}
	if (seed & VMCALL_MASK)
		for (size_t offset = POSTURE; offset < size; offset += RECORD)
			data[offset] &= ~VMCALL;
	return size;
}

/* Adds records `from` to `to` of `data` as far as there is room; the new size. */
static size_t add(u8 *out, size_t size, size_t room, const u8 *data, size_t from, size_t to)
{
	size_t length = (to - from) * RECORD;

	if (length > room - size)
		length = room - size;
	__builtin_memcpy(out + size, data + from * RECORD, length);
	return size + length;
}

EXPORT size_t LLVMFuzzerCustomCrossOver(const u8 *first, size_t first_size, const u8 *second,
					size_t second_size, u8 *out, size_t max_size, unsigned seed)
{
	size_t ones = first_size / RECORD, twos = second_size / RECORD;
	size_t room = max_size / RECORD * RECORD, size = 0;
	size_t cut, start, end;
	u64 state = seed;

	if (seed & CROSS_MASK) {
		size = first_size < max_size ? first_size : max_size;
		__builtin_memcpy(out, first, size);
		return LLVMFuzzerCustomMutator(out, size, max_size, seed >> CROSS_SHIFT);
	}
	note(false);
	cut = draw(&state) % (ones + 1);
	start = draw(&state) % (twos + 1);
	end = start + draw(&state) % (twos - start + 1);
	if (cut || start < end) {
		size = add(out, size, room, first, 0, cut);
		size = add(out, size, room, second, start, end);
		return draw(&state) & 1 ? add(out, size, room, first, cut, ones) : size;
	}
	if (ones)
		return add(out, size, room, first, 0, ones);
	return add(out, size, room, second, 0, twos);
}
