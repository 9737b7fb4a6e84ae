/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The last word of a watchdog (watchdog.py) over code that keeps Python's interpreter lock: no
 * Python code can run any more, so this handler of a timer's signal says so and ends the process.
 *
 * Moving the deadline costs a store (deadline.py): a signal that comes before it sets the timer
 * again. */

#include <stddef.h>
#include <stdint.h>

/* The process's C library has these; it is built without a library's headers. */
struct timespec {
	long tv_sec, tv_nsec;
};
struct itimerspec {
	struct timespec it_interval, it_value;
};
extern int clock_gettime(int clock, struct timespec *now);
extern long write(int file, const void *data, size_t size);
extern void _exit(int status) __attribute__((noreturn));

enum { TEXT = 256, GAVE_UP = 1, STDERR = 2, ABSOLUTE = 1, CLOCK_MONOTONIC = 1 };

static const int64_t SECOND = 1000000000;

/* One line, ended by a zero; the deadline on the monotonic clock (ns); how far ahead the timer is
 * set at most (ns); the timer, and the C library's timer_settime(). */
struct deadline {
	char text[TEXT];
	int64_t end, step;
	void *timer;
	int (*settime)(void *timer, int flags, const struct itimerspec *, struct itimerspec *);
};

__attribute__((visibility("default"))) struct deadline deadline;

__attribute__((visibility("default"))) void deadline_check(int signal)
{
	struct timespec clock;
	struct itimerspec next = { { 0, 0 }, { 0, 0 } };
	volatile struct deadline *own = &deadline;
	int64_t now, at = own->end;
	size_t size = 0;

	(void)signal;
	if (clock_gettime(CLOCK_MONOTONIC, &clock))
		return;
	now = clock.tv_sec * SECOND + clock.tv_nsec;
	if (now < at) {
		if (at > now + own->step)
			at = now + own->step;
		next.it_value.tv_sec = at / SECOND;
		next.it_value.tv_nsec = at % SECOND;
		own->settime(own->timer, ABSOLUTE, &next, NULL);
		return;
	}
	while (size < TEXT && own->text[size])
		size++;
	(void)!write(STDERR, deadline.text, size);
	_exit(GAVE_UP);
}
