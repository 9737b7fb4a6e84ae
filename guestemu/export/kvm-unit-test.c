// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * @TITLE@
 *
 * The steps below, hypercalls and MSR accesses, one after the other; each
 * result is compared.  For x86/ of kvm-unit-tests.  Answers of user space are
 * those of a VMM that does what the program's host does.
 */
#if __has_include("libcflat.h")
#include "libcflat.h"
#include "processor.h"
#else
/* What this file uses of kvm-unit-tests, so that it compiles alone. */
#include <stdbool.h>
#include <stdint.h>
typedef uint32_t u32;
typedef uint64_t u64;
void report(bool pass, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int report_summary(void);
int rdmsr_safe(u32 index, u64 *value);
int wrmsr_safe(u32 index, u64 value);
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#endif

enum { VMMCALL, RDMSR, WRMSR };

static const struct {
	u64 what;
	u64 nr;
	u64 args[4];
} steps[] = {
@STEPS@
};

static const struct {
	u64 ret;
	int faults;
	int exits;
	const char *text;
} expected[] = {
@EXPECTED@
};

static u64 vmmcall(u64 nr, const u64 *args)
{
	u64 rax = nr;

	asm volatile("vmmcall"
		     : "+a"(rax)
		     : "b"(args[0]), "c"(args[1]), "d"(args[2]), "S"(args[3])
		     : "memory");
	return rax;
}

int main(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		u64 result = steps[i].args[0];
		int vector = 0;

		if (steps[i].what == VMMCALL)
			result = vmmcall(steps[i].nr, steps[i].args);
		else if (steps[i].what == RDMSR)
			vector = rdmsr_safe((u32)steps[i].nr, &result);
		else
			vector = wrmsr_safe((u32)steps[i].nr, result);
		report(!!vector == expected[i].faults && (vector || result == expected[i].ret),
		       "step %u: %s", i, expected[i].text);
	}
	return report_summary();
}
