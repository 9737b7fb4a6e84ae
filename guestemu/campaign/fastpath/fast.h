/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The record that the fast path works on: everything that Python gives it and learns from it. Every
 * member is 8 bytes wide; records.py mirrors the layout.
 *
 * Common executions are done here: decode, put back, run the guest, ask the host (in Python), judge,
 * count. Whatever is not common, and whatever a check might object to, is left to Python, which then
 * runs the same input from the start. So nothing here ever reports anything.
 */
#ifndef GUESTEMU_FAST_H
#define GUESTEMU_FAST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;
typedef unsigned __int128 u128;

enum { RECORD = 48, ARGUMENTS = 5, MAX_OPS = 16, MAX_EXITS = 1100, MAX_LINKS = 64, STATES = 16, REGIONS = 4, KINDS = 64, MAX_KNOWN = 32, RUNS = 1024, RECENT = 4 };
enum { MAX_REQUESTS = 4096, SHADOW_BATCH = 768, MAX_PROGRAMS = 512 };
enum { PAGE_SHIFT = 12, PAGE = 1 << PAGE_SHIFT };

/* The kinds that can be common (guestemu/program/kinds.py). */
enum {
	HYPERCALL = 0,
	SET_ENCRYPTED = 3,
	SET_DECRYPTED = 4,
	EARLY_SET_ENCRYPTED = 5,
	EARLY_SET_DECRYPTED = 6,
	WRITE = 7,
	READ = 8,
	STOP_CONVERSION = 18,
};

/* The registers of an exit, in the order of `in` and `out`. */
enum { IN_RIP, IN_RAX, IN_RBX, IN_RCX, IN_RDX, IN_RSI, IN_CS };
enum { OUT_RAX, OUT_RIP };

/* The hypercall and its answers (guestemu/abi/hypercalls.py). */
enum { MAP_GPA_RANGE = 12, ENCRYPTED = 1 << 4 };
enum { KVM_EPERM = 1, KVM_EINVAL = 22, KVM_ENOSYS = 1000 };

enum { REGION_D = 0, REGION_L = 1, REGION_V = 2, REGION_G = 3 };

/* How to read the records of one kind; `postures`: mode, CPL << 2, VMCALL << 4, raw << 5. */
struct plan {
	u64 kind, has_page, is_call, argument_count;
	const u64 *palettes[ARGUMENTS];
	u64 masks[ARGUMENTS];
	const u8 *postures;
};

struct place {
	u64 region, pages;
	const u64 *palette;
	u64 flag;
};

struct region {
	u64 gva, gpa, pages;
};

/* VMMCALL in one mode and level: ends with HLT, or (is_trap) with the UD2 at `end`. */
struct stub {
	void *launch;
	u64 *words;
	u64 *registers;
	u64 start, end, is_trap;
};

/* A bit for each frame or page, as the places where they change (runs.c). */
struct runs {
	u64 count, at[RUNS];
};

/* Pages of 4 KiB from `start` on that should map the frames from `gfn` on; one bit each. */
struct window {
	u64 start, gfn, pages;
	struct runs bits, base;
};

struct input {
	const u8 *data;
	u64 size;
};

#define U32 0xffffffffull
#define EXPORT __attribute__((visibility("default")))

struct op {
	u64 kind, region, page, has_page, mode, cpl, vcpu;
	u64 arguments[ARGUMENTS];
};

struct exit {
	u64 nr, args[4], ret, cpl, is_64bit;
};

/* A place that VMMCALL was met at with a code selector, and the level and mode that is. */
struct known {
	u64 rip, selector, cpl, is_64bit;
};

/* A request to the process of a native handler, 80 bytes (guestemu/host/native/wire.py). */
struct request {
	u32 op, reason, vcpu;
	int32_t fail_at, fail_with;
	u32 pad;
	u64 word[7];
};

struct shadow_slot {
	u64 gpa, size, memfd_offset, flags;
};

/* A program whose exits are logged: its requests, its input in `inputs`; `verdict` 0: as it should
 * be, 1: wrong, 2: Python has to look. */
struct shadow_program {
	u64 first, count, input, input_size, verdict;
};

/* The native handler that gets the default host's exits in batches (shadow.c). */
struct shadow {
	struct request *requests;
	u8 *inputs;
	void *ask; /* Python: asks the handler */
	u64 count, begin, input_size, program_count, slot_count;
	const struct shadow_slot *slots;
	struct runs all, private_backing, open;
	struct runs attributes, told, private_pages, shared_pages, converted;
	struct shadow_program programs[MAX_PROGRAMS];
};

struct fast {
	/* the input, for Python */
	const u8 *data;
	u64 size;
	/* Python: how to call it, and what */
	void *(*call)(void *);
	void (*release)(void *);
	void (*clear_error)(void);
	void *truth;
	void *execute, *tick, *news, *reset, *answer, *look;
	/* bookkeeping of the session */
	u64 attention, executions, distinct, skipped;
	u64 *programs;
	u64 programs_mask;
	u64 *lengths;
	u8 *current;
	const struct input *deadly;
	u64 deadly_count;
	/* counters */
	u8 *area;
	const u64 *unseen;
	u64 area_words, model_offset, model_mask, near_offset, near_mask;
	/* programs */
	u64 max_size, vcpus, limits, is_lawful;
	const struct plan *plans;
	const struct place *places;
	struct region regions[REGIONS];
	/* the machine */
	int (*launch)(void *);
	u32 (*rollback)(void *);
	int (*flush)(void *, u32, ...);
	void *uc;
	u64 flush_command;
	void *memory;
	u64 *dirty_count, *log_count;
	const u64 *log;
	void (*slow_access)(void *, int, u64, int, i64, void *);
	i64 *blocks_left;
	i64 budget;
	/* where the block hook is told of the emulator's switch (pc_sync.py), and the switch or NULL */
	u8 **unsynced, *sync_switch;
	const u64 *in;
	u64 *out;
	void **decide;
	void *original_decide;
	const u64 *ended;
	struct stub stubs[STATES];
	struct stub kernel;
	u64 functions[KINDS];
	u64 user_stack, kernel_stack, no_such_function;
	/* page tables: per frame 0, or the level and the address it maps from */
	u64 *tables;
	u8 *flags;
	const u8 *private_view;
	u64 cbit, frames;
	struct window direct, alias;
	/* the host's record, and what its answers are held to */
	struct runs host, host_base, host_before, direct_before;
	/* the bitmap of a host in Python, and what was last seen there */
	const u64 *host_map;
	u64 *host_seen, host_words, is_host_lost;
	u64 base_state, base_ready, answers_judged, record_judged;
	/* the default host (host.c) */
	u64 has_host, compares_untruncated, user_state, known_count;
	struct known known[MAX_KNOWN];
	struct shadow *shadow;
	/* what Python says beside an answer: host state, migration allowed, level of the exit */
	u64 state, ready, cpl, is_64bit;
	u64 vcpu; /* which one a host in Python is told */
	/* this execution; is_stale: the host is still to be put back */
	u64 is_stale, is_foreign, cpu_state, is_odd, is_trapped, trap, exit_count, ops_count, previous;
	u64 objected; /* an answer or the record of this program was wrong */
	/* the last inputs that ran, `max_size` bytes for each, or NULL; how many were kept so far */
	u8 *recent;
	u64 recent_count, recent_sizes[RECENT];
	u64 link_count, links[MAX_LINKS];
	struct exit exits[MAX_EXITS];
	struct op ops[MAX_OPS];
};

bool fast_decode(struct fast *f, const u8 *data, size_t size);
/* `was_ready`: whether the host allowed migration before the operation. */
bool fast_judge(struct fast *f, const struct op *op, i64 value, u64 was_ready);
u64 fast_feature(const i64 *items, u64 count);
void fast_count(struct fast *f, const struct op *op, u64 index, i64 value);

/* Calls a Python function without arguments; true if it returned True. */
bool fast_python(struct fast *f, void *function);

bool fast_answer(struct fast *f);
bool fast_is_base_call(u64 nr);
bool fast_shadow_log(struct fast *f, u64 gpa, u64 pages, u64 attributes);
bool fast_shadow_keep(struct fast *f, const u8 *data, u64 size);

/* Host and page tables of the operation now. */
const struct runs *fast_host_map(const struct fast *f);
bool fast_replay(struct fast *f);
void fast_see_host(struct fast *f);
bool fast_bit(const struct runs *map, u64 place);
void fast_set_bits(struct fast *f, struct runs *map, u64 first, u64 end, bool value);
void fast_copy(struct runs *to, const struct runs *from);
bool fast_same(const struct runs *a, const struct runs *b);
u64 fast_differences(const struct runs *a, const struct runs *b);
void fast_forget_tables(struct fast *f);
bool fast_range(const struct fast *f, const struct op *op, u64 *first, u64 *count);

/* Whether the host allows migration now. */
static inline u64 fast_ready(const struct fast *f)
{
	return f->is_stale ? f->base_ready : f->ready;
}

static inline bool is_conversion(u64 kind)
{
	return kind >= SET_ENCRYPTED && kind <= EARLY_SET_DECRYPTED;
}

static inline bool is_early(u64 kind)
{
	return kind == EARLY_SET_ENCRYPTED || kind == EARLY_SET_DECRYPTED;
}

#endif
