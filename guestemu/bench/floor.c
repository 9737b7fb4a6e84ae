// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The floor under `guestemu bench`: the same guest code, run by the same libunicorn, driven and
 * answered in C. What guestemu needs beyond it is what guestemu costs.
 *
 * Python makes the CPU, maps the memory and saves the context (guestemu/bench/floor.py, which mirrors
 * struct floor); from here on no Python runs. The library is opened by path and already loaded, so
 * no header and no link against it is needed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { PAGE = 4096, IN_COUNT = 7, OUT_COUNT = 2, MAX_INPUTS = 8 };
enum { RIP, RAX, RBX, RCX, RDX, RSI, CS };
enum { MAP_GPA_RANGE = 12, ENCRYPTED = 1 << 4, LENGTH = 3, FLAG_STALE = 2, FLAG_TABLE = 4 };

struct page {
	uint8_t *live;
	const uint8_t *base;
};

struct floor {
	void *uc;
	void *context;
	uint64_t rip;
	/* registers that every execution starts with */
	int input_ids[MAX_INPUTS];
	uint64_t inputs[MAX_INPUTS];
	uint64_t input_count;
	int in_ids[IN_COUNT + 1];
	int out_ids[OUT_COUNT];
	/* pages to copy back: a fixed list, or by index through the dirty list of the memory hook */
	struct page *pages;
	uint64_t page_count;
	uint32_t *dirty;
	uint64_t *dirty_count;
	uint64_t *log_count;
	uint8_t *flags;
	const uint8_t *base_flags;
	uint64_t views;
	int64_t *blocks_left;
	int64_t budget;
	uint64_t flush;
	/* the host: one bit per frame, 1 = private */
	uint64_t *bitmap;
	uint64_t frames;
	uint64_t hypercalls;
	uint64_t last[4];
	uint64_t result;
	uint64_t error;
};

static struct {
	int (*emu_start)(void *, uint64_t, uint64_t, uint64_t, size_t);
	int (*context_restore)(void *, void *);
	int (*read)(void *, int, void *);
	int (*read_batch)(void *, int *, void **, int);
	int (*write_batch)(void *, int *, void *const *, int);
	int (*ctl)(void *, uint32_t, ...);
	uint32_t flush_tlb;
} lib;

/* Finds the calls in the library at `path`; 0, or -1 where one is missing. */
int floor_open(const char *path, uint32_t flush_tlb)
{
	void *handle = dlopen(path, RTLD_NOW | RTLD_NOLOAD);

	if (!handle)
		handle = dlopen(path, RTLD_NOW);
	if (!handle)
		return -1;
	*(void **)&lib.emu_start = dlsym(handle, "uc_emu_start");
	*(void **)&lib.context_restore = dlsym(handle, "uc_context_restore");
	*(void **)&lib.read = dlsym(handle, "uc_reg_read");
	*(void **)&lib.read_batch = dlsym(handle, "uc_reg_read_batch");
	*(void **)&lib.write_batch = dlsym(handle, "uc_reg_write_batch");
	*(void **)&lib.ctl = dlsym(handle, "uc_ctl");
	lib.flush_tlb = flush_tlb;
	return lib.emu_start && lib.context_restore && lib.read && lib.read_batch &&
	       lib.write_batch && lib.ctl ? 0 : -1;
}

static void record(struct floor *f, uint64_t first, uint64_t end, bool is_private)
{
	for (uint64_t gfn = first; gfn < end; gfn++) {
		uint64_t bit = 1ull << (gfn & 63);

		if (is_private)
			f->bitmap[gfn >> 6] |= bit;
		else
			f->bitmap[gfn >> 6] &= ~bit;
	}
}

static int64_t answer(struct floor *f, const uint64_t *in)
{
	uint64_t gfn = in[RBX] >> 12, end = gfn + in[RCX];

	f->hypercalls++;
	f->last[0] = in[RAX];
	f->last[1] = in[RBX];
	f->last[2] = in[RCX];
	f->last[3] = in[RDX];
	if (in[CS] & 3)
		return -1;
	if (in[RAX] != MAP_GPA_RANGE)
		return -1000;
	if (in[RBX] & (PAGE - 1) || !in[RCX] || end < gfn)
		return -22;
	record(f, gfn, end < f->frames ? end : f->frames, in[RDX] & ENCRYPTED);
	return 0;
}

/* UC_HOOK_INSN_INVALID: the only such instruction of the program is VMMCALL. */
bool floor_invalid(void *uc, void *user)
{
	struct floor *f = user;
	uint64_t in[IN_COUNT], out[OUT_COUNT];
	void *in_at[IN_COUNT], *out_at[OUT_COUNT];

	for (int i = 0; i < IN_COUNT; i++)
		in_at[i] = &in[i];
	for (int i = 0; i < OUT_COUNT; i++)
		out_at[i] = &out[i];
	lib.read_batch(uc, f->in_ids, in_at, IN_COUNT);
	out[0] = answer(f, in);
	out[1] = in[RIP] + LENGTH;
	lib.write_batch(uc, f->out_ids, out_at, OUT_COUNT);
	return true;
}

/* Copies back what the execution before wrote; true if a page table was among it. */
static bool roll_back(struct floor *f)
{
	bool table = false;

	if (!f->dirty_count) {
		for (uint64_t i = 0; i < f->page_count; i++)
			memcpy(f->pages[i].live, f->pages[i].base, PAGE);
		return f->flush;
	}
	for (uint64_t i = 0; i < *f->dirty_count; i++) {
		uint32_t index = f->dirty[i];
		uint32_t other = index >= f->views ? index - f->views : index + f->views;

		if (index >= f->page_count || !f->pages[index].base) {
			f->error = 1;
			continue;
		}
		table |= (f->flags[index] | f->base_flags[index]) & FLAG_TABLE;
		if (!(f->base_flags[index] & FLAG_STALE))
			memcpy(f->pages[index].live, f->pages[index].base, PAGE);
		f->flags[index] = f->base_flags[index];
		f->flags[other] = f->base_flags[other];
	}
	*f->dirty_count = 0;
	*f->log_count = 0;
	return table;
}

/* Undoes what the last hypercall recorded. */
static void forget(struct floor *f)
{
	uint64_t first = f->last[1] >> 12, end = first + f->last[2];

	if (!f->result)
		record(f, first, end < f->frames ? end : f->frames, true);
}

/* `count` executions: put everything back, write the inputs, run, read RAX. */
void floor_run(struct floor *f, uint64_t count)
{
	void *inputs[MAX_INPUTS];

	for (uint64_t i = 0; i < MAX_INPUTS; i++)
		inputs[i] = &f->inputs[i];
	while (count--) {
		if (roll_back(f))
			lib.ctl(f->uc, lib.flush_tlb);
		forget(f);
		lib.context_restore(f->uc, f->context);
		lib.write_batch(f->uc, f->input_ids, inputs, f->input_count);
		if (f->blocks_left)
			*f->blocks_left = f->budget;
		if (lib.emu_start(f->uc, f->rip, 0, 0, 0))
			f->error = 2;
		lib.read(f->uc, f->in_ids[RAX], &f->result);
	}
}

/* A call of a guest function, and a program of `calls` of them from `first_call` on, which writes the
 * pages `first_page` … of a list. `flush`: page tables are among them. */
struct call {
	uint64_t rip;
	uint64_t inputs[MAX_INPUTS];
};

struct program {
	uint64_t first_call, calls, first_page, pages, flush;
};

/* Runs `count` programs, each from the first state. */
void floor_programs(struct floor *f, const struct call *calls, const struct program *programs,
		    const uint32_t *pages, uint64_t count)
{
	void *inputs[MAX_INPUTS];

	for (const struct program *p = programs; p < programs + count; p++) {
		for (const struct call *c = calls + p->first_call;
		     c < calls + p->first_call + p->calls; c++) {
			for (uint64_t i = 0; i < MAX_INPUTS; i++)
				inputs[i] = (void *)&c->inputs[i];
			lib.context_restore(f->uc, f->context);
			lib.write_batch(f->uc, f->input_ids, inputs, f->input_count);
			if (f->blocks_left)
				*f->blocks_left = f->budget;
			if (lib.emu_start(f->uc, c->rip, 0, 0, 0))
				f->error = 2;
		}
		if (f->dirty_count) {
			if (roll_back(f))
				lib.ctl(f->uc, lib.flush_tlb);
			continue;
		}
		for (uint64_t i = p->first_page; i < p->first_page + p->pages; i++)
			memcpy(f->pages[pages[i]].live, f->pages[pages[i]].base, PAGE);
		if (p->flush)
			lib.ctl(f->uc, lib.flush_tlb);
	}
}

static struct floor *fuzzed;
static bool fuzzed_varies;

/* What floor_one runs; `varies`: with the inputs that it gets. */
void floor_fuzz(struct floor *f, bool varies)
{
	fuzzed = f;
	fuzzed_varies = varies;
}

/* A target of libFuzzer: one execution. */
int floor_one(const uint8_t *data, size_t size)
{
	size_t room = fuzzed->input_count * sizeof(fuzzed->inputs[0]);

	if (fuzzed_varies)
		memcpy(fuzzed->inputs, data, size < room ? size : room);
	floor_run(fuzzed, 1);
	return 0;
}
