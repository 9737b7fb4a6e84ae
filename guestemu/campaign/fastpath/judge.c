// SPDX-License-Identifier: GPL-2.0-or-later
/* What the checks would say (guestemu/checks/): true only where all of them would say nothing. */
#include "fast.h"

enum { VAPIC_POLL_IRQ = 1, KICK_CPU = 5, CLOCK_PAIRING = 9, SEND_IPI = 10, SCHED_YIELD = 11 };
enum { EPERM = 1, EIO = 5, ENOMEM = 12, EBUSY = 16 };

const struct runs *fast_host_map(const struct fast *f)
{
	return f->is_stale ? &f->host_base : &f->host;
}

/* First frame and number of frames that a conversion is asked for; false for other ops. */
bool fast_range(const struct fast *f, const struct op *op, u64 *first, u64 *count)
{
	u64 gpa = f->regions[op->region].gpa + (op->page << PAGE_SHIFT);

	if (!is_conversion(op->kind))
		return false;
	if (is_early(op->kind)) {
		gpa += op->arguments[1];
		*first = gpa >> PAGE_SHIFT;
		*count = op->arguments[0] ?
				 ((gpa + op->arguments[0] + PAGE - 1) >> PAGE_SHIFT) - *first : 0;
		return true;
	}
	*first = gpa >> PAGE_SHIFT;
	*count = (int32_t)op->arguments[0] > 0 ? (int32_t)op->arguments[0] : 0;
	return true;
}

/* Hypercalls that KVM answers by itself. The contract leaves these open. */
bool fast_is_base_call(u64 nr)
{
	return nr == VAPIC_POLL_IRQ || nr == KICK_CPU || nr == CLOCK_PAIRING || nr == SEND_IPI ||
	       nr == SCHED_YIELD;
}

/* Check "results": the answer is the one that the contract demands, if it demands one: of a range
 * that leaves RAM user space decides. */
static bool answer_is_right(const struct exit *exit, u64 frames)
{
	u64 mask = exit->is_64bit ? ~0ull : U32;
	u64 nr = exit->nr & mask, gpa = exit->args[0] & mask, pages = exit->args[1] & mask;
	u64 gfn = gpa >> PAGE_SHIFT, expected = 0;

	if (exit->cpl)
		expected = -(u64)KVM_EPERM & mask;
	else if (nr != MAP_GPA_RANGE) {
		if (fast_is_base_call(nr))
			return true;
		expected = -(u64)KVM_ENOSYS & mask;
	} else if (gpa & (PAGE - 1) || !pages || gfn + pages <= gfn)
		expected = -(u64)KVM_EINVAL & mask;
	else if (gfn + pages > frames)
		return true;
	return exit->ret == expected;
}

/* Check "record": the host's map is the one before with every answered notification. */
static bool record_is_right(struct fast *f)
{
	u64 frames = f->frames;

	for (u64 i = 0; i < f->exit_count; i++) {
		const struct exit *exit = &f->exits[i];
		u64 mask = exit->is_64bit ? ~0ull : U32;
		u64 gpa = exit->args[0] & mask, pages = exit->args[1] & mask;
		u64 first = gpa >> PAGE_SHIFT;

		if (exit->cpl || (exit->nr & mask) != MAP_GPA_RANGE || gpa & (PAGE - 1) || !pages ||
		    exit->ret || first + pages < first)
			continue;
		if (first < frames)
			fast_set_bits(f, &f->host_before, first,
				      pages < frames - first ? first + pages : frames,
				      exit->args[2] & ENCRYPTED);
	}
	return fast_same(&f->host_before, fast_host_map(f));
}

/* Check "status": host, page tables and the alias are as asked, the rest as before. */
static bool status_is_right(struct fast *f, const struct op *op, u64 first, u64 count)
{
	bool is_private = op->kind == SET_ENCRYPTED || op->kind == EARLY_SET_ENCRYPTED;
	u64 end = first + count < f->frames ? first + count : f->frames;

	fast_set_bits(f, &f->host_before, first, end, is_private);
	fast_set_bits(f, &f->direct_before, first, end, is_private);
	if (!fast_same(&f->host_before, fast_host_map(f)) ||
	    !fast_same(&f->direct_before, &f->direct.bits))
		return false;
	if (op->region == REGION_V)
		for (u64 page = op->page; page < op->page + count && page < f->alias.pages; page++)
			if (fast_bit(&f->alias.bits, page) != is_private)
				return false;
	return true;
}

static bool result_is_known(u64 kind, i64 value)
{
	if (is_early(kind))
		return value == 0 || value == 1;
	return value == 0 || value == -ENOMEM || value == -EBUSY || value == -EPERM || value == -EIO;
}

bool fast_judge(struct fast *f, const struct op *op, i64 value, u64 was_ready)
{
	u64 first, count;
	bool converts = fast_range(f, op, &first, &count);

	if (was_ready != fast_ready(f))
		return false;
	if (f->answers_judged)
		for (u64 i = 0; i < f->exit_count; i++)
			if (!answer_is_right(&f->exits[i], f->frames)) {
				f->objected = true;
				return false;
			}
	if (converts && !result_is_known(op->kind, value))
		return false;
	if (!converts) {
		bool is_right = !f->exit_count || !f->record_judged || record_is_right(f);

		f->objected |= !is_right;
		return is_right;
	}
	return value != 0 || status_is_right(f, op, first, count);
}
