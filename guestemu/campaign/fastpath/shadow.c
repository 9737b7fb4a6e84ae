// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The shadow of a native exit handler: the default host answers the guest, the exits that reach user
 * space are logged as the records of guestemu/host/native/wire.py, and the handler gets them in
 * batches. What it replies is judged here as guestemu/checks/ (results, record, guest-memory) would,
 * over guest memory as guestemu/host/kvm/guest_memory.py keeps it. A program of which this is not sure
 * is marked; Python runs it again with the handler itself.
 */
#include "fast.h"

enum { OP_RESET, OP_EXIT, EXIT_HYPERCALL = 3, LONG_MODE = 1, STOP = 1, NO_FAILURE = -1 };
enum { CALL_ATTRIBUTES = 1, CALL_FALLOCATE, CALL_MADVISE, CALL_PRE_FAULT, CALL_DEVICE };
enum { PUNCH = 3, DONTNEED = 4, PRIVATE = 1 << 3, HAS_MEMFD = 1, READ_ONLY = 2 };
enum { RIGHT, WRONG, UNKNOWN };

struct reply {
	u32 outcome, calls;
	u64 answer, data;
};

struct call {
	u32 kind;
	int32_t result;
	u64 argument[4];
};

/* Appends the request for an exit, and a reset in front of a program's first; false: it is full. */
bool fast_shadow_log(struct fast *f, u64 gpa, u64 pages, u64 attributes)
{
	struct shadow *s = f->shadow;
	bool is_first = s->count == s->begin;
	struct request *q = &s->requests[s->count];

	if (s->count + 1 + is_first > MAX_REQUESTS)
		return false;
	if (is_first)
		*q++ = (struct request){ .op = OP_RESET, .fail_at = NO_FAILURE };
	*q = (struct request){
		.op = OP_EXIT,
		.reason = EXIT_HYPERCALL,
		.vcpu = f->vcpu,
		.fail_at = NO_FAILURE,
		.word = { MAP_GPA_RANGE, gpa, pages, attributes, 0, f->is_64bit ? LONG_MODE : 0 },
	};
	s->count += 1 + is_first;
	return true;
}

/* The program that ran is common: its exits stay, with its input; true if it is time to ask. */
bool fast_shadow_keep(struct fast *f, const u8 *data, u64 size)
{
	struct shadow *s = f->shadow;
	struct shadow_program *p = &s->programs[s->program_count];

	if (size > f->max_size)
		size = f->max_size;
	if (s->count != s->begin) {
		*p = (struct shadow_program){ s->begin, s->count - s->begin, s->input_size, size, 0 };
		__builtin_memcpy(s->inputs + s->input_size, data, size);
		s->input_size += size;
		s->program_count++;
		s->begin = s->count;
	}
	return s->count >= SHADOW_BATCH || s->program_count == MAX_PROGRAMS;
}

/* Guest memory ------------------------------------------------------------------------------- */

/* The first place behind `place`, up to `end`, at which one of the maps changes. */
static u64 next_change(const struct runs *const *maps, u64 count, u64 place, u64 end)
{
	for (u64 i = 0; i < count; i++) {
		u64 low = 0, high = maps[i]->count;

		while (low < high) {
			u64 middle = (low + high) / 2;

			if (maps[i]->at[middle] <= place)
				low = middle + 1;
			else
				high = middle;
		}
		if (low < maps[i]->count && maps[i]->at[low] < end)
			end = maps[i]->at[low];
	}
	return end;
}

/* The frames of a range of bytes that lie in a slot. */
static bool cut(const struct shadow_slot *slot, u64 gpa, u64 size, u64 *first, u64 *end)
{
	u64 start = gpa > slot->gpa ? gpa : slot->gpa;
	u64 slot_end = slot->gpa + slot->size;
	u64 stop = size < slot_end - gpa ? gpa + size : slot_end;

	if (gpa >= slot_end || start >= stop)
		return false;
	*first = start >> PAGE_SHIFT;
	*end = stop >> PAGE_SHIFT;
	return true;
}

static void populate(struct fast *f, u64 gpa, u64 size, bool is_private)
{
	struct shadow *s = f->shadow;
	u64 first, end;

	for (u64 i = 0; i < s->slot_count; i++) {
		const struct shadow_slot *slot = &s->slots[i];

		if (!cut(slot, gpa, size, &first, &end))
			continue;
		if (is_private && slot->flags & HAS_MEMFD)
			fast_set_bits(f, &s->private_pages, first, end, true);
		else if (!is_private && !(slot->flags & READ_ONLY))
			fast_set_bits(f, &s->shared_pages, first, end, true);
	}
}

static bool is_bad_range(u64 gpa, u64 size)
{
	return !size || gpa + size < gpa || (gpa | size) & (PAGE - 1);
}

static void set_attributes(struct fast *f, u64 gpa, u64 size, bool is_private)
{
	u64 first = gpa >> PAGE_SHIFT, end = (gpa + size) >> PAGE_SHIFT;

	if (end > f->frames)
		end = f->frames;
	fast_set_bits(f, &f->shadow->attributes, first, end, is_private);
	fast_set_bits(f, &f->shadow->converted, first, end, true);
	populate(f, gpa, size, is_private);
}

/* Does a call of the handler; false where only Python knows what comes of it. */
static bool do_call(struct fast *f, const struct call *call)
{
	struct shadow *s = f->shadow;
	const u64 *a = call->argument;
	const struct shadow_slot *slot;
	u64 first, end;

	switch (call->kind) {
	case CALL_ATTRIBUTES:
		if (a[3] || a[2] & ~(u64)PRIVATE || is_bad_range(a[0], a[1]))
			return call->result == -KVM_EINVAL;
		set_attributes(f, a[0], a[1], a[2]);
		return !call->result;
	case CALL_FALLOCATE:
		if (call->result || a[0] >= s->slot_count || a[1] != PUNCH ||
		    is_bad_range(a[2], a[3]) || a[2] < s->slots[a[0]].memfd_offset)
			return false;
		slot = &s->slots[a[0]];
		if (cut(slot, slot->gpa + (a[2] - slot->memfd_offset), a[3], &first, &end))
			fast_set_bits(f, &s->private_pages, first, end, false);
		return true;
	case CALL_MADVISE:
		if (call->result || a[0] >= s->slot_count || a[3] != DONTNEED ||
		    is_bad_range(a[1], a[2]))
			return false;
		slot = &s->slots[a[0]];
		if (cut(slot, slot->gpa + a[1], a[2], &first, &end))
			fast_set_bits(f, &s->shared_pages, first, end, false);
		return true;
	default:
		return false;
	}
}

/* Checks --------------------------------------------------------------------------------------- */

/* Whether user space decides about the range: it leaves RAM or meets what is none. */
static bool is_open(const struct fast *f, u64 first, u64 pages)
{
	const struct runs *open = &f->shadow->open;

	return pages > f->frames || first > f->frames - pages || fast_bit(open, first) ||
	       next_change(&open, 1, first, first + pages) < first + pages;
}

/* Check "record": attributes are what was told, apart from what is no RAM. */
static bool record_is_right(const struct fast *f)
{
	const struct shadow *s = f->shadow;
	const struct runs *maps[] = { &s->attributes, &s->told, &s->open };

	if (fast_same(&s->attributes, &s->told))
		return true;
	for (u64 place = 0; place < f->frames; place = next_change(maps, 3, place, f->frames))
		if (!fast_bit(&s->open, place) &&
		    fast_bit(&s->attributes, place) != fast_bit(&s->told, place))
			return false;
	return true;
}

/* Check "guest-memory": no page is left in the backing that the attributes do not name. */
static bool backing_is_right(const struct fast *f, const struct call *call)
{
	const struct shadow *s = f->shadow;
	const struct runs *maps[] = { &s->attributes, &s->private_pages, &s->shared_pages };
	u64 first, end;

	if (call->kind != CALL_ATTRIBUTES || call->result)
		return true;
	for (u64 i = 0; i < s->slot_count; i++) {
		if (!(s->slots[i].flags & HAS_MEMFD) ||
		    !cut(&s->slots[i], call->argument[0], call->argument[1], &first, &end))
			continue;
		for (u64 at = first; at < end; at = next_change(maps, 3, at, end))
			if (fast_bit(&s->attributes, at) ? fast_bit(&s->shared_pages, at) :
							   fast_bit(&s->private_pages, at))
				return false;
	}
	return true;
}

/* The same check: no page that the guest uses was freed outside of what the exit converted. */
static bool all_is_kept(const struct fast *f, const struct call *call)
{
	const struct shadow *s = f->shadow;
	const struct runs *maps[] = { &s->attributes, &s->private_pages, &s->shared_pages,
				      &s->converted };
	bool is_private = call->kind == CALL_FALLOCATE;
	const struct shadow_slot *slot = &s->slots[call->argument[0]];
	u64 offset = is_private ? call->argument[2] - slot->memfd_offset : call->argument[1];
	u64 first, end;

	if (!is_private && (call->kind != CALL_MADVISE || slot->flags & READ_ONLY))
		return true;
	if (!cut(slot, slot->gpa + offset, call->argument[is_private ? 3 : 2], &first, &end))
		return true;
	for (u64 at = first; at < end && at < f->frames; at = next_change(maps, 4, at, end))
		if (fast_bit(&s->attributes, at) == is_private && !fast_bit(&s->converted, at) &&
		    !fast_bit(is_private ? &s->private_pages : &s->shared_pages, at))
			return false;
	return true;
}

/* What the handler made of an exit. */
static u64 judge_exit(struct fast *f, const struct request *q, const struct reply *r,
		      const struct call *calls)
{
	struct shadow *s = f->shadow;
	u64 first = q->word[1] >> PAGE_SHIFT, pages = q->word[2];
	u64 answer = q->word[5] ? r->answer : r->answer & U32;

	s->converted.count = 0;
	for (u64 i = 0; i < r->calls; i++)
		if (!do_call(f, &calls[i]) || f->is_odd)
			return UNKNOWN;
	if (answer && !is_open(f, first, pages))
		return WRONG;
	if (!answer && first < f->frames)
		fast_set_bits(f, &s->told, first,
			      pages < f->frames - first ? first + pages : f->frames,
			      q->word[3] & ENCRYPTED);
	if (f->is_odd)
		return UNKNOWN;
	if (!record_is_right(f))
		return WRONG;
	for (u64 i = 0; !answer && i < r->calls; i++)
		if (!backing_is_right(f, &calls[i]))
			return WRONG;
	for (u64 i = 0; !answer && i < r->calls; i++)
		if (!all_is_kept(f, &calls[i]))
			return UNKNOWN;
	return RIGHT;
}

/* Judges what a handler replied to the requests of the programs from `from` to before `to`: as many
 * replies, and `calls` calls behind them. */
EXPORT bool fast_shadow_judge(struct fast *f, const u8 *message, u64 calls, u64 from, u64 to)
{
	struct shadow *s = f->shadow;
	const struct shadow_program *last = &s->programs[to - 1];
	const struct reply *replies = (const struct reply *)message;
	u64 before = s->programs[from].first, done = 0;
	const struct call *call = (const struct call *)(replies + last->first + last->count - before);

	for (u64 n = from; n < to; n++) {
		struct shadow_program *p = &s->programs[n];
		bool is_ended = false;

		fast_copy(&s->attributes, &s->all);
		fast_copy(&s->told, &s->all);
		fast_copy(&s->private_pages, &s->private_backing);
		s->shared_pages.count = 0;
		f->is_odd = false;
		p->verdict = RIGHT;
		for (u64 i = p->first; i < p->first + p->count; i++) {
			const struct reply *r = &replies[i - before];

			if (r->calls > calls - done)
				return false;
			if (r->outcome > STOP)
				p->verdict = UNKNOWN;
			is_ended |= r->outcome == STOP;
			if (!is_ended && !p->verdict && s->requests[i].op == OP_EXIT)
				p->verdict = judge_exit(f, &s->requests[i], r, call + done);
			done += r->calls;
		}
	}
	f->is_odd = false;
	return done == calls;
}
