// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * An SNP guest's page-state request of one contiguous range, in one call before user space is asked
 * and one after it.
 *
 * The semantics are SnpPsc's (machine/snp_psc.py): of every request that it would answer otherwise,
 * or in several steps, nothing is touched here and 0 returned. machine/psc_range.py mirrors the
 * record. Every member has 8 bytes.
 */
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint64_t u64;

enum { PAGES_2M = 512 };
enum { RAX = 0x1f8, RCX = 0x308, RDX = 0x310, RBX = 0x318 };
enum { EXIT_CODE = 0x390, EXIT_INFO_1 = 0x398, EXIT_INFO_2 = 0x3a0, SCRATCH = 0x3a8 };
enum { VALID_BITMAP = 0x3f0, BUFFER = 0x800, BUFFER_END = 0xff0, USAGE = 0xffc, HEADER = 8 };
enum { OP_PRIVATE = 1, OP_SHARED = 2 };
enum { MORE, ANSWERED };

#define EXIT_PSC 0x80000010ull
#define GFN_MASK ((1ull << 40) - 1)
#define IS_2M (1ull << 56)
#define MEANT ((1ull << 57) - 1) /* the bits of an entry that KVM looks at */

struct psc {
	u8 *page; /* the GHCB, in the view that the guest shares */
	u64 gpa;
	u64 header_once; /* KVM reads the header before the first exit only */
	u64 buffer;	 /* offset of the header in the page */
	u64 index, end;	 /* the entries of the range, both included */
	u64 gfn, pages, is_private, is_2m;
	u64 info_1, info_2; /* of the request */
};

static u64 *word(u8 *page, u64 offset)
{
	return (u64 *)(page + offset);
}

static int is_valid(u8 *page, u64 offset)
{
	u64 bit = offset >> 3;

	return word(page, VALID_BITMAP)[bit >> 6] >> (bit & 63) & 1;
}

static u64 size_of(u64 entry)
{
	return entry & IS_2M ? PAGES_2M : 1;
}

/* What user space has to be asked for; 0 where this is no request of the common kind. */
EXPORT u64 psc_begin(struct psc *psc)
{
	u8 *page = psc->page;
	u64 offset = *word(page, SCRATCH) - psc->gpa;
	u64 first, size, operation, kind;
	u64 *entries;
	u16 *header;

	if (*word(page, EXIT_CODE) != EXIT_PSC || *word(page, USAGE & ~7) >> 32 ||
	    !is_valid(page, EXIT_CODE) || !is_valid(page, EXIT_INFO_1) ||
	    !is_valid(page, EXIT_INFO_2) || !is_valid(page, SCRATCH))
		return 0;
	if (offset < BUFFER || offset > BUFFER_END - HEADER || offset & 7)
		return 0;
	header = (u16 *)(page + offset);
	if (header[0] > header[1] || header[1] >= (BUFFER_END - HEADER - offset) / 8)
		return 0;
	entries = word(page, offset + HEADER);
	first = entries[header[0]];
	size = size_of(first);
	operation = first >> 52 & 15;
	psc->gfn = first >> 12 & GFN_MASK;
	if (first & 0xfff || psc->gfn & (size - 1) ||
	    (operation != OP_PRIVATE && operation != OP_SHARED))
		return 0;
	kind = operation << 52 | (first & IS_2M);
	psc->pages = size;
	for (u64 i = header[0] + 1ull; i <= header[1]; i++) {
		u64 next = psc->gfn + psc->pages;

		if (next > GFN_MASK || (entries[i] & MEANT) != (next << 12 | kind))
			return 0;
		psc->pages += size;
	}
	psc->buffer = offset;
	psc->index = header[0];
	psc->end = header[1];
	psc->is_private = operation == OP_PRIVATE;
	psc->is_2m = size > 1;
	psc->info_1 = *word(page, EXIT_INFO_1);
	psc->info_2 = *word(page, EXIT_INFO_2);
	return 1;
}

/* SW_EXITINFO1 = 0, SW_EXITINFO2, and the registers that the guest gave. */
EXPORT void psc_answer(struct psc *psc, u64 info_2)
{
	static const u64 registers[] = { RAX, RBX, RCX, RDX };
	u64 valid[2] = { 0, 0 };

	for (int i = 0; i < 4; i++) {
		u64 at = registers[i];

		if (!is_valid(psc->page, at))
			*word(psc->page, at) = 0;
		valid[at >> 9] |= 1ull << (at >> 3 & 63);
	}
	*word(psc->page, EXIT_INFO_1) = 0;
	*word(psc->page, EXIT_INFO_2) = info_2;
	valid[EXIT_INFO_1 >> 9] |= 1ull << (EXIT_INFO_1 >> 3 & 63);
	valid[EXIT_INFO_2 >> 9] |= 1ull << (EXIT_INFO_2 >> 3 & 63);
	word(psc->page, VALID_BITMAP)[0] = valid[0];
	word(psc->page, VALID_BITMAP)[1] = valid[1];
}

/*
 * User space has done it: the entries are, and the header goes on; then what comes next:
 * more of the buffer, or, where that is wanted, the answer.
 */
EXPORT u64 psc_done(struct psc *psc, u64 answers)
{
	u64 *entries = word(psc->page, psc->buffer + HEADER);
	u16 *header = (u16 *)(psc->page + psc->buffer);

	for (u64 i = psc->index; i <= psc->end; i++)
		entries[i] = (entries[i] & ~0xfffull) | size_of(entries[i]);
	header[0] = (u16)(psc->end + 1);
	if (!psc->header_once && header[1] != psc->end)
		return MORE;
	if (answers)
		psc_answer(psc, 0);
	return ANSWERED;
}
