// SPDX-License-Identifier: GPL-2.0-or-later
/* The page tables as the stores into them make them (guestemu/machine/leafmap.py). */
#include "fast.h"

enum { PRESENT = 1, PSE = 1 << 7, FLAG_TABLE = 4, ENTRIES = 512, TOP_LEVEL = 4 };

static const u64 ADDRESS = 0x000ffffffffff000ull;
static const u64 LEVEL_MASK = 7;

static u64 shift_of(u64 level)
{
	return PAGE_SHIFT + 9 * (level - 1);
}

/* A leaf was stored; false where more than a C-bit of the window may have changed. */
static bool leaf(struct fast *f, struct window *window, u64 va, u64 pages, u64 entry)
{
	u64 page = (va - window->start) >> PAGE_SHIFT;
	u64 gfn = (entry & ADDRESS & ~f->cbit) >> PAGE_SHIFT & ~(pages - 1);

	if (va < window->start || page >= window->pages)
		return true;
	if (!entry || gfn != window->gfn + page)
		return false;
	fast_set_bits(f, &window->bits, page,
		      page + pages < window->pages ? page + pages : window->pages, entry & f->cbit);
	return true;
}

static bool store(struct fast *f, u64 level, u64 va, u64 entry);

/* A table of 4 KiB leaves was linked: a split. What it holds was stored before. */
static bool link(struct fast *f, u64 gfn, u64 va)
{
	const u64 *entries = (const u64 *)(f->private_view + (gfn << PAGE_SHIFT));

	if (gfn >= f->frames)
		return true;
	if (f->link_count == MAX_LINKS || f->tables[gfn])
		return false;
	f->links[f->link_count++] = gfn;
	f->tables[gfn] = va | 1;
	f->flags[f->frames + gfn] |= FLAG_TABLE;
	for (u64 i = 0; i < ENTRIES; i++)
		if (entries[i] && !store(f, 1, va | i << PAGE_SHIFT, entries[i]))
			return false;
	return true;
}

static bool store(struct fast *f, u64 level, u64 va, u64 entry)
{
	u64 pages = 1ull << 9 * (level - 1);

	if (level > 1 && entry & PRESENT && !(level < TOP_LEVEL && entry & PSE))
		return level == 2 && link(f, (entry & ADDRESS & ~f->cbit) >> PAGE_SHIFT, va);
	return leaf(f, &f->direct, va, pages, entry) && leaf(f, &f->alias, va, pages, entry);
}

/* Brings the windows up to date from the log of stores into page tables, and empties it. */
bool fast_replay(struct fast *f)
{
	u64 count = *f->log_count;

	*f->log_count = 0;
	for (u64 i = 0; i < count; i++) {
		u64 gpa = f->log[2 * i] & ~f->cbit, table, level;

		if (gpa >> PAGE_SHIFT >= f->frames)
			return false;
		table = f->tables[gpa >> PAGE_SHIFT];
		if (!table)
			continue;
		level = table & LEVEL_MASK;
		if (!store(f, level, (table & ~LEVEL_MASK) | (gpa >> 3 & 511) << shift_of(level),
			   f->log[2 * i + 1]))
			return false;
	}
	return true;
}


/* Unlinks the tables that were linked since the first state. */
void fast_forget_tables(struct fast *f)
{
	while (f->link_count)
		f->tables[f->links[--f->link_count]] = 0;
}
