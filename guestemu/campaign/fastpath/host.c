// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The default host: hypercalls of guestemu/host/kvm/merged.py under the user space of
 * guestemu/host/userspace/reference.py, with a map of its own. Hypercalls that KVM answers by itself
 * are left to Python, and every other host is.
 */
#include "fast.h"

enum { INSTRUCTION_LENGTH = 3 };
enum { KVM_PATHS = 4, KVM_PATH_MASK = (1 << KVM_PATHS) - 1 };

/* `ExitPath` in merged.py */
enum { NOT_CPL0 = 1, KVM_ANSWERED = 2, UNALIGNED = 4, NO_PAGES = 5, WRAPS = 6, LOST_EXIT = 7,
       USER_SPACE = 8, USER_SPACE_32BIT = 9 };

/* `ReferenceUserSpace.state` */
enum { INSIDE = 2, CLIPPED = 3, BEYOND = 4 };

/* What the CPU stands at and in which mode: asked once for each place and each selector. */
static bool look(struct fast *f)
{
	u64 rip = f->in[IN_RIP], selector = f->in[IN_CS];

	for (u64 i = 0; i < f->known_count; i++) {
		const struct known *known = &f->known[i];

		if (known->rip == rip && known->selector == selector) {
			f->cpl = known->cpl;
			f->is_64bit = known->is_64bit;
			return true;
		}
	}
	if (!fast_python(f, f->look))
		return false;
	if (f->known_count < MAX_KNOWN)
		f->known[f->known_count++] = (struct known){ rip, selector, f->cpl, f->is_64bit };
	return true;
}

static void record(struct fast *f, u64 first, u64 pages, bool is_private)
{
	u64 frames = f->frames;
	u128 end = (u128)first + pages;

	f->user_state = end <= frames ? INSIDE : first < frames ? CLIPPED : BEYOND;
	if (first < frames)
		fast_set_bits(f, &f->host, first, end < frames ? (u64)end : frames, is_private);
}

static u64 map_gpa_range(struct fast *f, u64 mask, u64 *path)
{
	u64 gpa = f->in[IN_RBX] & mask, pages = f->in[IN_RCX] & mask;
	u64 gfn = gpa >> PAGE_SHIFT;

	if (gpa & (PAGE - 1) || !pages || gfn + pages < gfn) {
		*path = gpa & (PAGE - 1) ? UNALIGNED : pages ? WRAPS : NO_PAGES;
		return -(u64)KVM_EINVAL & mask;
	}
	if (!f->is_64bit && f->compares_untruncated && f->in[IN_RAX] != MAP_GPA_RANGE) {
		*path = LOST_EXIT;
		return 0;
	}
	*path = f->is_64bit ? USER_SPACE : USER_SPACE_32BIT;
	if (f->shadow && !fast_shadow_log(f, gpa, pages, f->in[IN_RDX] & mask))
		f->is_odd = true;
	record(f, gfn, pages, f->in[IN_RDX] & mask & ENCRYPTED);
	return 0;
}

/* Answers the exit that the CPU stands at; false where that is not an ordinary one. */
bool fast_answer(struct fast *f)
{
	u64 mask, nr, path, result;

	if (!look(f))
		return false;
	mask = f->is_64bit ? ~0ull : U32;
	nr = f->in[IN_RAX] & mask;
	if (f->is_stale) {
		fast_copy(&f->host, &f->host_base);
		f->user_state = 0;
	}
	if (f->cpl) {
		path = NOT_CPL0;
		result = -(u64)KVM_EPERM & mask;
	} else if (nr == MAP_GPA_RANGE) {
		result = map_gpa_range(f, mask, &path);
	} else if (fast_is_base_call(nr)) {
		if (!fast_python(f, f->answer))
			return false;
		path = f->state & KVM_PATH_MASK;
		result = f->out[OUT_RAX];
	} else {
		path = KVM_ANSWERED;
		result = -(u64)KVM_ENOSYS & mask;
	}
	f->out[OUT_RAX] = result;
	f->out[OUT_RIP] = f->in[IN_RIP] + INSTRUCTION_LENGTH;
	f->state = path | f->user_state << KVM_PATHS;
	f->ready = f->base_ready;
	return true;
}
