// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Bodies of the emulator's hooks, and a start and a rollback in one call each.
 *
 * They do the common case (count a block, mark a page dirty) and call Python only where there is
 * something to decide. Each touches nothing but its arguments and the record it is given; machine/
 * mirrors the records (hooks.py, memory_watch.py, launch.py). Every member has 8 bytes.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;

enum { PAGE_SHIFT = 12, PAGE = 1 << PAGE_SHIFT };
enum { UC_MEM_WRITE = 17 };
enum { DIRTY = 1, STALE = 2, TABLE = 4, MIRRORED = 8, ALWAYS_SLOW = 16 };

struct block_watch {
	u8 *counters;
	u64 mask;
	i64 left;
	void (*stop)(void *uc);
	u8 *unsynced; /* set in every block: memory hooks need no right RIP (pc_sync.py); or NULL */
};

EXPORT void block_hook(void *uc, u64 address, u32 size, struct block_watch *watch)
{
	u8 *counter = &watch->counters[(address ^ address >> 4) & watch->mask];

	(void)size;
	*counter += 1;
	*counter += !*counter;
	if (watch->unsynced)
		*watch->unsynced = 1;
	if (--watch->left < 0)
		watch->stop(uc);
}

/* Pages are numbered gfn in the shared, frames + gfn in the private view. */
struct memory_watch {
	u8 *flags;
	u64 frames;
	u32 *dirty;
	u64 dirty_count;
	u64 *log;
	u64 log_count, log_capacity;
	void (*slow)(void *uc, int type, u64 address, int size, i64 value, void *watch);
	u64 cbit;
	/* the checkpoint: a page without base content held zeroes */
	const u8 *base_flags;
	const u64 *const *base_pages;
	u8 *private_view, *shared_view;
	u64 low;
	const u64 *zero_page;
};

EXPORT void memory_hook(void *uc, int type, u64 address, int size, i64 value,
			struct memory_watch *watch)
{
	u64 gfn = (address & ~watch->cbit) >> PAGE_SHIFT;
	bool is_private = address & watch->cbit;
	u64 page = is_private ? watch->frames + gfn : gfn;
	u64 other = is_private ? gfn : watch->frames + gfn;
	u8 flags;

	if ((address & (PAGE - 1)) + (u32)size > PAGE || gfn >= watch->frames)
		goto slow;
	flags = watch->flags[page];
	if (flags & (STALE | ALWAYS_SLOW))
		goto slow;
	if (type != UC_MEM_WRITE)
		return;
	if (flags & TABLE) {
		u64 *entry = &watch->log[2 * watch->log_count];

		if (watch->log_count >= watch->log_capacity)
			goto slow; /* Python drains the log */
		entry[0] = address;
		entry[1] = value;
		watch->log_count++;
	}
	if (!(flags & MIRRORED))
		watch->flags[other] |= STALE;
	if (!(flags & DIRTY)) {
		watch->flags[page] |= DIRTY;
		watch->dirty[watch->dirty_count++] = page;
	}
	return;
slow:
	watch->slow(uc, type, address, size, value, watch);
}

struct instruction_watch {
	u64 count; /* instructions that have begun */
	u64 at;	   /* where there is something to do; 0: nowhere */
	void (*reached)(void *uc, u64 address, u32 size, void *watch);
	const u64 *sites; /* a bit for each hash of an address that has hooks of its own */
	bool (*at_site)(void *uc, u64 address, u32 size, void *watch); /* true: the CPU stops */
};

EXPORT void instruction_hook(void *uc, u64 address, u32 size, struct instruction_watch *watch)
{
	u64 hash = (address ^ address >> 16) & 0xffff;

	if (watch->sites[hash >> 6] >> (hash & 63) & 1 && watch->at_site(uc, address, size, watch))
		return;
	if (++watch->count == watch->at)
		watch->reached(uc, address, size, watch);
}

struct invalid_watch {
	int (*read_batch)(void *uc, const int *ids, void *values, int count);
	const int *in_ids;
	void *in_values;
	u64 in_count;
	bool (*decide)(void *uc, void *watch);
	int (*write_batch)(void *uc, const int *ids, void *values, int count);
	const int *out_ids;
	void *out_values;
	u64 out_count;
};

/* An instruction that the emulator takes for undefined; true if it was carried out. */
EXPORT bool invalid_hook(void *uc, struct invalid_watch *watch)
{
	watch->read_batch(uc, watch->in_ids, watch->in_values, watch->in_count);
	if (!watch->decide(uc, watch))
		return false;
	watch->write_batch(uc, watch->out_ids, watch->out_values, watch->out_count);
	return true;
}

struct launch {
	void *uc;
	int (*context_restore)(void *uc, void *context);
	void *context; /* NULL: the CPU goes on as it is */
	int (*write_batch)(void *uc, const int *ids, void *values, int count);
	const int *write_ids;
	void *write_values;
	u64 write_count;
	int (*start)(void *uc, u64 begin, u64 until, u64 timeout, size_t count);
	u64 rip;
	int (*read_batch)(void *uc, const int *ids, void *values, int count);
	const int *read_ids;
	void *read_values;
	u64 read_count;
};

/* Context and registers, the run, registers at the end; the run's result. */
EXPORT int launch(struct launch *record)
{
	int code;

	if (record->context)
		record->context_restore(record->uc, record->context);
	if (record->write_count)
		record->write_batch(record->uc, record->write_ids, record->write_values,
				    record->write_count);
	code = record->start(record->uc, record->rip, 0, 0, 0);
	record->read_batch(record->uc, record->read_ids, record->read_values, record->read_count);
	return code;
}

/* Every dirty page back to the checkpoint; all their flags, before and after, in one. */
EXPORT u32 rollback(struct memory_watch *watch)
{
	u64 frames = watch->frames;
	u32 seen = 0;

	for (u64 i = 0; i < watch->dirty_count; i++) {
		u64 page = watch->dirty[i];
		u64 other = page >= frames ? page - frames : page + frames;
		u64 gfn = page >= frames ? page - frames : page;
		u8 *view = page >= frames || gfn < watch->low ? watch->private_view :
							       watch->shared_view;
		u8 base = watch->base_flags[page];

		seen |= watch->flags[page] | base;
		watch->flags[page] = base;
		watch->flags[other] = watch->base_flags[other];
		/* the content of a stale page does not matter */
		if (!(base & STALE))
			__builtin_memcpy(view + (gfn << PAGE_SHIFT),
					 watch->base_pages[page] ? watch->base_pages[page] :
								   watch->zero_page,
					 PAGE);
	}
	watch->dirty_count = 0;
	watch->log_count = 0;
	return seen;
}

/*
 * After a store that crossed into a page that the hook was not told of: it changed less than a word
 * at that page's start. Marks those of the pages dirty whose first word differs from the checkpoint.
 */
EXPORT void find_unseen(struct memory_watch *watch, const u32 *pages, u64 count)
{
	u64 frames = watch->frames;

	for (u64 i = 0; i < count; i++) {
		u32 page = pages[i];
		u64 gfn = page >= frames ? page - frames : page;
		const u8 *view = page >= frames || gfn < watch->low ? watch->private_view :
								     watch->shared_view;
		const u64 *base = watch->base_pages[page] ? watch->base_pages[page] :
							    watch->zero_page;

		if ((watch->base_flags[page] & STALE) || (watch->flags[page] & DIRTY) ||
		    *(const u64 *)(view + (gfn << PAGE_SHIFT)) == *base)
			continue;
		watch->flags[page] |= DIRTY;
		watch->dirty[watch->dirty_count++] = page;
	}
}

enum { UC_MEM_FETCH = 18 };
enum { RIGHT_READ = 1, RIGHT_WRITE = 2, RIGHT_EXEC = 4, TRANSLATED = 8 };

struct tlb_entry {
	u64 paddr;
	u32 perms;
};

struct tlb_watch {
	bool (*slow)(void *uc, u64 gva, int type, struct tlb_entry *entry, void *watch);
	int (*read_batch)(void *uc, const int *ids, void *values, int count);
	const int *ids;
	void *values;
	u64 count;
	const u64 *registers; /* CR0, CR3, CS */
	const u8 *private_view;
	u64 frames;
	u64 bit, private_bit;	      /* of page-table entries: the mask, and its value in a private one */
	u64 ram_bit, ram_private_bit; /* of physical addresses */
	u8 *rights;		      /* NULL: no view is closed */
	u64 fetches_private;
	u64 held; /* vCPUs hold translations of their own: Python looks there first */
};

/* Every access that is granted; what is refused, Python finds out again and says why. */
EXPORT bool tlb_hook(void *uc, u64 gva, int type, struct tlb_entry *result,
		     struct tlb_watch *watch)
{
	const u64 cr0_pg = 1u << 31, cr0_wp = 1 << 16, address_mask = 0x000ffffffffff000;
	bool is_write = type == UC_MEM_WRITE, is_fetch = type == UC_MEM_FETCH;
	u64 cr0, entry = 0, table, size, gpa, gfn;
	bool is_user, is_private, writable;
	u8 *rights = watch->rights;
	u32 perms;
	int level;

	watch->read_batch(uc, watch->ids, watch->values, watch->count);
	cr0 = watch->registers[0];
	if (watch->held || !(cr0 & cr0_pg) || gva + (1ull << 47) >= 1ull << 48)
		goto slow;
	table = watch->registers[1] & address_mask & ~watch->bit;
	for (level = 4;; level--) {
		u64 at = table + 8 * (gva >> (PAGE_SHIFT + 9 * (level - 1)) & 511);

		gfn = at >> PAGE_SHIFT;
		if (gfn >= watch->frames || (rights && !(rights[watch->frames + gfn] & RIGHT_READ)))
			goto slow;
		if (rights)
			rights[watch->frames + gfn] |= TRANSLATED;
		entry = *(const u64 *)(watch->private_view + at);
		if (!(entry & 1))
			goto slow;
		if (level == 1 || (level < 4 && entry & 1 << 7))
			break;
		table = entry & address_mask & ~watch->bit;
	}
	is_user = (watch->registers[2] & 3) == 3;
	writable = entry & 2 || (!is_user && !(cr0 & cr0_wp));
	if ((is_write && !writable) || (is_user && !(entry & 4)) || (is_fetch && entry >> 63))
		goto slow;
	size = 1ull << (PAGE_SHIFT + 9 * (level - 1));
	gpa = (entry & address_mask & ~watch->bit & ~(size - 1)) | (gva & (size - 1) & ~(u64)(PAGE - 1));
	gfn = gpa >> PAGE_SHIFT;
	is_private = (entry & watch->bit) == watch->private_bit;
	perms = RIGHT_READ | (writable ? RIGHT_WRITE : 0) | (entry >> 63 ? 0 : RIGHT_EXEC);
	if (rights && gfn < watch->frames) {
		u8 seen = rights[is_private ? watch->frames + gfn : gfn];
		u8 fetched = watch->fetches_private ? rights[watch->frames + gfn] : seen;
		u8 wanted = is_write ? RIGHT_WRITE : is_fetch ? RIGHT_EXEC : RIGHT_READ;

		if (!((is_fetch ? fetched : seen) & wanted))
			goto slow;
		rights[gfn] |= TRANSLATED;
		rights[watch->frames + gfn] |= TRANSLATED;
		perms &= RIGHT_READ | (seen & RIGHT_WRITE) | (fetched & RIGHT_EXEC);
	}
	result->paddr = (gpa & ~watch->ram_bit) |
			(is_private ? watch->ram_private_bit : watch->ram_bit ^ watch->ram_private_bit);
	result->perms = perms;
	return true;
slow:
	return watch->slow(uc, gva, type, result, watch);
}

struct pvalidate {
	void *uc;
	int (*read_batch)(void *uc, const int *ids, void *values, int count);
	const int *ids;
	void *values;
	u64 count;
	const u64 *registers; /* RAX, RCX, RDX, RFLAGS, CS, CR3 */
	const u8 *private_view;
	u64 frames, bit;
};

/* The frame that PVALIDATE of a 4 KiB page names; what faults or is of another size, Python finds. */
EXPORT u64 pvalidate_frame(struct pvalidate *record)
{
	const u64 address_mask = 0x000ffffffffff000, no_frame = ~0ull;
	const u64 *registers = record->registers;
	u64 gva, table, entry, size, gfn;
	int level;

	record->read_batch(record->uc, record->ids, record->values, record->count);
	gva = registers[0];
	if ((u32)registers[1] || registers[4] & 3)
		return no_frame;
	table = registers[5] & address_mask & ~record->bit;
	for (level = 4;; level--) {
		u64 at = table + 8 * (gva >> (PAGE_SHIFT + 9 * (level - 1)) & 511);

		if (at >> PAGE_SHIFT >= record->frames)
			return no_frame;
		entry = *(const u64 *)(record->private_view + at);
		if (!(entry & 1))
			return no_frame;
		if (level == 1 || (level < 4 && entry & 1 << 7))
			break;
		table = entry & address_mask & ~record->bit;
	}
	size = 1ull << (PAGE_SHIFT + 9 * (level - 1));
	gfn = ((entry & address_mask & ~record->bit & ~(size - 1)) | (gva & (size - 1))) >> PAGE_SHIFT;
	return entry & record->bit && gfn < record->frames ? gfn : no_frame;
}
