/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The handler of the native figures, except that a range of exactly three pages is its END. */
#include <stdlib.h>
#include <unistd.h>

#define guestemu_exit guestemu_correct_exit
#include "handler.c"
#undef guestemu_exit

#define LOOP for (volatile int go = 1; go;)
#define CRASH *(volatile int *)0 = 1
#define ABORT abort()
#define EXIT _exit(3)

int guestemu_exit(void *opaque, struct guestemu_exit *exit)
{
	if (exit->exit_reason == GUESTEMU_EXIT_HYPERCALL && exit->hypercall.args[1] == 3) {
		END;
	}
	return guestemu_correct_exit(opaque, exit);
}
