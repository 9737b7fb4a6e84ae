// SPDX-License-Identifier: GPL-2.0-or-later
/* Maps of frames as the places where they change: an operation changes a few ranges, however large
 * the guest is. Bit 0 of a map that has no change is 0, and so is every bit beyond its end. */
#include "fast.h"

enum { WORD_BITS = 64, BLOCK = 512 };

/* How many changes lie below `place`. */
static u64 below(const struct runs *map, u64 place)
{
	u64 low = 0, high = map->count;

	while (low < high) {
		u64 middle = (low + high) / 2;

		if (map->at[middle] < place)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

bool fast_bit(const struct runs *map, u64 place)
{
	return below(map, place + 1) & 1;
}

/* Sets the bits from `first` to before `end`; more changes than fit make the execution odd. */
void fast_set_bits(struct fast *f, struct runs *map, u64 first, u64 end, bool value)
{
	u64 kept, gone, added[2], count = 0;

	if (first >= end)
		return;
	kept = below(map, first);
	gone = below(map, end + 1);
	if ((kept & 1) != value)
		added[count++] = first;
	if ((gone & 1) != value)
		added[count++] = end;
	if (map->count - gone + kept + count > RUNS) {
		f->is_odd = true;
		return;
	}
	if (kept + count != gone)
		__builtin_memmove(map->at + kept + count, map->at + gone,
				  (map->count - gone) * sizeof(*map->at));
	map->count += kept + count - gone;
	for (u64 i = 0; i < count; i++)
		map->at[kept + i] = added[i];
}

void fast_copy(struct runs *to, const struct runs *from)
{
	to->count = from->count;
	__builtin_memcpy(to->at, from->at, from->count * sizeof(*from->at));
}

bool fast_same(const struct runs *a, const struct runs *b)
{
	return a->count == b->count &&
	       !__builtin_memcmp(a->at, b->at, a->count * sizeof(*a->at));
}

/* In how many bits two maps differ. */
u64 fast_differences(const struct runs *a, const struct runs *b)
{
	u64 i = 0, j = 0, start = 0, count = 0;

	while (i < a->count || j < b->count) {
		bool is_a = j == b->count || (i < a->count && a->at[i] < b->at[j]);
		u64 place = is_a ? a->at[i] : b->at[j];

		if ((i + j) & 1)
			count += place - start;
		start = place;
		if (is_a)
			i++;
		else
			j++;
	}
	return count;
}

static void see_word(struct fast *f, u64 first, u64 word)
{
	for (u64 done = 0; done < WORD_BITS;) {
		bool value = word >> done & 1;
		u64 others = (value ? ~word : word) >> done;
		u64 length = others ? (u64)__builtin_ctzll(others) : WORD_BITS;

		if (length > WORD_BITS - done)
			length = WORD_BITS - done;
		fast_set_bits(f, &f->host, first + done, first + done + length, value);
		done += length;
	}
}

/* Brings f->host up to date with the bitmap of a host in Python. */
void fast_see_host(struct fast *f)
{
	const u64 *now = f->host_map;
	u64 *seen = f->host_seen, words = f->host_words;

	if (f->is_host_lost) {
		f->host.count = 0;
		__builtin_memset(seen, 0, words * sizeof(u64));
	}
	for (u64 i = 0; i < words;) {
		u64 word = now[i], end = i + 1;

		if (i + BLOCK <= words && !__builtin_memcmp(now + i, seen + i, BLOCK * sizeof(u64))) {
			i += BLOCK;
			continue;
		}
		if (word == 0 || word == ~0ull) {
			while (end < words && now[end] == word)
				end++;
			fast_set_bits(f, &f->host, i * WORD_BITS, end * WORD_BITS, word);
		} else if (word != seen[i]) {
			see_word(f, i * WORD_BITS, word);
		}
		for (; i < end; i++)
			seen[i] = word;
	}
	f->is_host_lost = f->is_odd; /* it did not fit */
}
