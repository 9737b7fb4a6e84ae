/* SPDX-License-Identifier: MIT */
/* Runs an exit handler with the ABI of guestemu_host.h in a process of its own.
 *
 * guestemu sends fixed-width records through a pipe and gets as many replies, each followed by the
 * calls that the handler made; wire.py has the same layouts. To run code that cannot be made a shared
 * object, compile this file with -DGUESTEMU_SERVE_MAIN, link it with the handler, and name the
 * program with `--host cmd:./PROGRAM`. The handler runs in a child of this process, which is forked
 * again after it died: a death costs a millisecond. A handler that computes for longer than its time
 * is ended by SIGVTALRM, which counts the child's own time only. Most messages are one record: a
 * message costs one read and one write.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guestemu_host.h"

#define MAGIC 0x31484547u /* "GEH1" */
#define MAX_SLOTS 64
#define MAX_RECORDS 4096
#define MAX_CALLS 4096
#define TICK_US 5000	/* of processor time */
#define MOST_TICKS 10	/* that a record may take. Once one took more, four times what others took */
#define DIED 0xffffffffu /* in place of a count: the handler died. The word that follows has its wait
			  * status, and in the upper half how many records it had answered */
#define DONE_SHIFT 16

/* Features beside the header's: the reply to a hypercall has the blocks that ran in place of data;
 * OP_FRESH is known; OP_PLUG is, and the handler has guestemu_layout(). */
#define COUNTS_BLOCKS 0x10000u
#define KNOWS_FRESH 0x20000u
#define KNOWS_PLUG 0x40000u

#define CLOSED 77 /* exit status of the child: the pipe was closed */
#define FRESH 78  /* another child shall go on, in which the handler has run nothing */

enum { OP_RESET, OP_EXIT, OP_MAP, OP_FRESH, OP_PLUG };
enum { CALL_ATTRIBUTES = 1, CALL_FALLOCATE, CALL_MADVISE, CALL_PRE_FAULT, CALL_DEVICE };

struct hello {
	uint32_t magic, abi, vcpus, slots;
	uint64_t frames;
};
struct ready {
	uint32_t magic, abi, features, has_map;
};
struct head {
	uint32_t records, calls;
};
struct request { /* 80 bytes */
	uint32_t op, reason, vcpu;
	int32_t fail_at, fail_with; /* the fail_at-th call returns -fail_with; -1: none does */
	uint32_t pad;
	uint64_t word[7];
};
struct reply { /* 24 bytes */
	uint32_t outcome, calls;
	uint64_t answer, data;
};
struct call { /* 40 bytes */
	uint32_t kind;
	int32_t result;
	uint64_t argument[4];
};

struct functions {
	uint32_t (*abi)(void);
	void *(*open)(const struct guestemu_layout *, const struct guestemu_kernel *);
	int (*exit)(void *, struct guestemu_exit *);
	int (*reset)(void *);
	void (*close)(void *);
	const uint8_t *(*private_map)(void *);
	uint32_t (*features)(void);
	int (*layout)(void *, const struct guestemu_layout *);
};

/* The kernel's half: answers the handler's calls and notes them. library.py has the same layout. */
struct half {
	struct guestemu_slot slot[MAX_SLOTS];
	struct guestemu_layout layout;
	struct guestemu_kernel kernel;
	int made, fail_at, fail_with;
	uint32_t calls;
	struct call call[MAX_CALLS];
};

struct server {
	int in, out_fd;
	const struct functions *call_into;
	void *vm;
	uint64_t frames;
	uint32_t first_slots; /* of a VM that is opened */
	struct half half;
	struct request request[MAX_RECORDS];
	struct reply reply[MAX_RECORDS];
	char out[sizeof(struct head) + MAX_RECORDS * sizeof(struct reply) +
		 MAX_CALLS * sizeof(struct call)];
};

/* What the child tells its parent, in shared memory. */
struct told {
	volatile uint32_t done;	   /* records of this message */
	volatile uint32_t longest; /* ticks of a record that ended */
};

static volatile sig_atomic_t finished, seen = -1, ticks;
static uint32_t allowed = MOST_TICKS;
static struct told *told;

/* A tick of the child's own time. */
static void tick(int number)
{
	if (seen != finished) {
		if ((uint32_t)ticks > told->longest)
			told->longest = (uint32_t)ticks;
		seen = finished;
		ticks = 0;
	} else if ((uint32_t)++ticks >= allowed) {
		signal(number, SIG_DFL);
		raise(number);
	}
}

/* Coverage ------------------------------------------------------------------------------------
 *
 * A handler compiled with -fsanitize-coverage=trace-pc or trace-pc-guard calls these for each block.
 * One of 32 bits is set for it; guestemu_origin makes it the same bit wherever the object is loaded.
 */
#if defined(__has_attribute)
#if __has_attribute(no_sanitize_coverage)
#define UNCOUNTED __attribute__((no_sanitize_coverage))
#endif
#endif
#ifndef UNCOUNTED
#define UNCOUNTED
#endif
#define CALLED_BY_HANDLER UNCOUNTED __attribute__((weak, visibility("default")))

__attribute__((visibility("default"))) uint64_t guestemu_blocks, guestemu_origin;

UNCOUNTED static void ran(uint64_t block)
{
	guestemu_blocks |= 1u << (block * 0x9e3779b97f4a7c15ull >> 59);
}

CALLED_BY_HANDLER void __sanitizer_cov_trace_pc(void)
{
	ran((uint64_t)(uintptr_t)__builtin_return_address(0) - guestemu_origin);
}

CALLED_BY_HANDLER void __sanitizer_cov_trace_pc_guard(uint32_t *guard)
{
	ran(*guard);
}

CALLED_BY_HANDLER void __sanitizer_cov_trace_pc_guard_init(uint32_t *start, uint32_t *stop)
{
	static uint32_t last;

	for (; start < stop; start++)
		*start = ++last;
}

static int transfer(int fd, void *data, size_t size, int is_write)
{
	char *at = data;

	while (size) {
		ssize_t done = is_write ? write(fd, at, size) : read(fd, at, size);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return -1;
		at += done;
		size -= (size_t)done;
	}
	return 0;
}

/* The kernel's half --------------------------------------------------------------------------- */

static int made(struct half *h, uint32_t kind, int result, uint64_t a, uint64_t b, uint64_t c,
		uint64_t d)
{
	if (h->made++ == h->fail_at)
		result = -h->fail_with;
	if (h->calls < MAX_CALLS)
		h->call[h->calls++] = (struct call){ kind, result, { a, b, c, d } };
	return result;
}

static int is_bad_range(uint64_t gpa, uint64_t size)
{
	return !size || gpa + size < gpa || (gpa | size) & 0xfff;
}

static int set_memory_attributes(void *token, uint64_t gpa, uint64_t size, uint64_t attributes,
				 uint64_t flags)
{
	int bad = flags || attributes & ~8ull || is_bad_range(gpa, size);

	return made(token, CALL_ATTRIBUTES, bad ? -EINVAL : 0, gpa, size, attributes, flags);
}

static int fallocate_hole(void *token, uint32_t slot, int mode, uint64_t offset, uint64_t length)
{
	struct half *h = token;
	int result = 0;

	if (slot >= h->layout.slots || !(h->slot[slot].flags & GUESTEMU_SLOT_GUEST_MEMFD))
		result = -EINVAL;
	else if ((int64_t)length <= 0 || (int64_t)offset < 0)
		result = -EINVAL;
	else if (!(mode & 1) || mode & ~3)
		result = -EOPNOTSUPP;
	else if ((offset + length) >> 63)
		result = -EFBIG;
	else if ((offset | length) & 0xfff)
		result = -EINVAL;
	else if (!(mode & 2) &&
		 (offset + length < offset ||
		  offset + length > h->slot[slot].memfd_offset + h->slot[slot].size))
		result = -EINVAL;
	return made(h, CALL_FALLOCATE, result, slot, (uint64_t)mode, offset, length);
}

static int advise(void *token, uint32_t slot, uint64_t offset, uint64_t length, int advice)
{
	struct half *h = token;
	int bad = slot >= h->layout.slots || offset & 0xfff || offset + length < offset ||
		  offset + length > h->slot[slot].size;

	return made(h, CALL_MADVISE, bad ? -EINVAL : 0, slot, offset, length, (uint64_t)advice);
}

static int pre_fault(void *token, uint64_t gpa, uint64_t size)
{
	return made(token, CALL_PRE_FAULT, is_bad_range(gpa, size) ? -EINVAL : 0, gpa, size, 0, 0);
}

static int map_for_device(void *token, uint64_t gpa, uint64_t size, int is_mapped)
{
	return made(token, CALL_DEVICE, 0, gpa, size, (uint64_t)!!is_mapped, 0);
}

static void set_up(struct half *h)
{
	h->layout.abi = GUESTEMU_HOST_ABI;
	h->layout.slot = h->slot;
	h->kernel = (struct guestemu_kernel){ h,	      set_memory_attributes, fallocate_hole, advise,
					      pre_fault, map_for_device };
	h->fail_at = -1;
}

/* The handler --------------------------------------------------------------------------------- */

static int reset(struct server *s)
{
	const struct functions *f = s->call_into;
	struct half *h = &s->half;

	h->made = 0;
	h->fail_at = -1;
	if (s->vm && h->layout.slots == s->first_slots && !f->reset(s->vm))
		return 0;
	if (s->vm)
		f->close(s->vm);
	h->layout.slots = s->first_slots;
	s->vm = f->open(&h->layout, &h->kernel);
	return s->vm ? 0 : -1;
}

static void run_exit(struct server *s, const struct request *q, struct reply *r)
{
	struct guestemu_exit e = { .exit_reason = q->reason, .vcpu = q->vcpu };
	struct half *h = &s->half;

	guestemu_blocks = 0;
	h->made = 0;
	h->fail_at = q->fail_at;
	h->fail_with = q->fail_with;
	if (q->reason == GUESTEMU_EXIT_HYPERCALL) {
		e.hypercall.nr = q->word[0];
		memcpy(e.hypercall.args, &q->word[1], 3 * sizeof(uint64_t));
		e.hypercall.ret = q->word[4];
		e.hypercall.flags = q->word[5];
	} else if (q->reason == GUESTEMU_EXIT_MEMORY_FAULT) {
		e.memory_fault.flags = q->word[0];
		e.memory_fault.gpa = q->word[1];
		e.memory_fault.size = q->word[2];
	} else {
		e.msr.index = q->word[0];
		e.msr.reason = q->word[1];
		e.msr.data = q->word[2];
	}
	r->outcome = (uint32_t)s->call_into->exit(s->vm, &e);
	if (q->reason == GUESTEMU_EXIT_HYPERCALL) {
		r->answer = e.hypercall.ret;
		r->data = guestemu_blocks;
	} else if (q->reason != GUESTEMU_EXIT_MEMORY_FAULT) {
		r->answer = e.msr.error;
		r->data = e.msr.data;
	}
}

static void plug(struct server *s, const struct request *q, struct reply *r)
{
	struct half *h = &s->half;
	uint32_t number = h->layout.slots;
	int result = -ENOSPC;

	h->made = 0;
	h->fail_at = q->fail_at;
	h->fail_with = q->fail_with;
	if (number < MAX_SLOTS) {
		h->slot[number] = (struct guestemu_slot){ q->word[0], q->word[1], q->word[2],
							  (uint32_t)q->word[3], 0 };
		h->layout.slots++;
		result = s->call_into->layout(s->vm, &h->layout);
		if (result)
			h->layout.slots--;
	}
	r->answer = (uint64_t)(int64_t)result;
}

static int one_record(struct server *s, const struct request *q, struct reply *r)
{
	struct half *h = &s->half;
	uint32_t before = h->calls;

	memset(r, 0, sizeof(*r));
	if (q->op == OP_RESET) {
		if (reset(s))
			return -1;
		h->calls = before; /* what a handler does while it opens is no answer to the guest */
	} else if (q->op == OP_EXIT) {
		run_exit(s, q, r);
	} else if (q->op == OP_PLUG && s->call_into->layout) {
		plug(s, q, r);
	}
	r->calls = h->calls - before;
	return 0;
}

static int send_map(struct server *s)
{
	const struct functions *f = s->call_into;
	const uint8_t *map = f->private_map ? f->private_map(s->vm) : 0;
	uint64_t size = map ? (s->frames + 7) / 8 : 0;

	return transfer(s->out_fd, &size, sizeof(size), 1) ||
	       (map && transfer(s->out_fd, (void *)(uintptr_t)map, size, 1));
}

/* Reads a message: its head and first record at once, the others behind them. */
static int receive(struct server *s, struct head *head)
{
	struct {
		struct head head;
		struct request first;
	} start;

	if (transfer(s->in, &start, sizeof(start), 0))
		return CLOSED;
	*head = start.head;
	s->request[0] = start.first;
	if (!head->records || head->records > MAX_RECORDS)
		return 2;
	return transfer(s->in, &s->request[1], (head->records - 1) * sizeof(s->request[0]), 0) ?
		       CLOSED :
		       0;
}

/* Sends head, replies and calls in one piece. */
static int reply(struct server *s, struct head *head)
{
	const struct half *h = &s->half;
	size_t replies = head->records * sizeof(s->reply[0]), calls = h->calls * sizeof(h->call[0]);
	char *at = s->out;

	head->calls = h->calls;
	memcpy(at, head, sizeof(*head));
	memcpy(at += sizeof(*head), s->reply, replies);
	memcpy(at += replies, h->call, calls);
	return transfer(s->out_fd, s->out, sizeof(*head) + replies + calls, 1) ? CLOSED : 0;
}

/* Answers messages until the other side closes the pipe. Runs in the child. */
static int answer(struct server *s)
{
	const struct itimerval ticks = { { 0, TICK_US }, { 0, TICK_US } };
	struct head head;
	int error;

	signal(SIGVTALRM, tick);
	setitimer(ITIMER_VIRTUAL, &ticks, 0);
	while (!(error = receive(s, &head))) {
		if (s->request[0].op == OP_MAP) {
			if (send_map(s))
				return CLOSED;
			finished++;
			continue;
		}
		if (s->request[0].op == OP_FRESH)
			return FRESH;
		s->half.calls = 0;
		told->done = 0;
		for (uint32_t i = 0; i < head.records; i++) {
			if (one_record(s, &s->request[i], &s->reply[i]))
				return 3;
			finished++;
			told->done = i + 1;
		}
		error = reply(s, &head);
		if (error)
			break;
	}
	return error;
}

static int serve(int in, int out, const struct functions *f)
{
	static struct server server;
	struct server *s = &server;
	struct hello hello;
	struct ready ready = { MAGIC, 0, 0, !!f->private_map };
	struct rlimit none = { 0, 0 };

	guestemu_origin = (uint64_t)(uintptr_t)f->abi;
	ready.abi = f->abi();
	ready.features = (f->features ? f->features() & (COUNTS_BLOCKS - 1) : 0) |
			 (guestemu_blocks ? COUNTS_BLOCKS : 0) | KNOWS_FRESH |
			 (f->layout ? KNOWS_PLUG : 0);
	s->in = in;
	s->out_fd = out;
	s->call_into = f;
	setrlimit(RLIMIT_CORE, &none);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (transfer(in, &hello, sizeof(hello), 0) || hello.magic != MAGIC ||
	    hello.slots > MAX_SLOTS ||
	    transfer(in, s->half.slot, hello.slots * sizeof(s->half.slot[0]), 0))
		return 2;
	s->frames = hello.frames;
	s->first_slots = hello.slots;
	s->half.layout.vcpus = hello.vcpus;
	s->half.layout.slots = hello.slots;
	set_up(&s->half);
	told = mmap(0, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (told == MAP_FAILED)
		return 2;
	if (transfer(out, &ready, sizeof(ready), 1) || ready.abi != GUESTEMU_HOST_ABI)
		return 2;
	for (;;) {
		struct head died = { DIED, 0 };
		pid_t child = fork();
		int status;

		if (child < 0)
			return 2;
		if (!child) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			_exit(answer(s));
		}
		while (waitpid(child, &status, 0) < 0 && errno == EINTR)
			;
		if (WIFEXITED(status) && WEXITSTATUS(status) == CLOSED)
			return 0;
		if (WIFEXITED(status) && WEXITSTATUS(status) == FRESH)
			continue;
		if (WIFSIGNALED(status) && WTERMSIG(status) == SIGVTALRM)
			allowed = told->longest < MOST_TICKS / 4 ? 1 + 4 * told->longest : MOST_TICKS;
		died.calls = (uint32_t)status | told->done << DONE_SHIFT;
		if (transfer(out, &died, sizeof(died), 1))
			return 0;
	}
}

#ifdef GUESTEMU_SERVE_MAIN
#pragma weak guestemu_private
#pragma weak guestemu_features
#pragma weak guestemu_layout

int main(void)
{
	struct functions f = { guestemu_abi,   guestemu_open,  guestemu_exit,	  guestemu_reset,
			       guestemu_close, guestemu_private, guestemu_features, guestemu_layout };
	const char *pipes = getenv("GUESTEMU_HOST_FDS");
	char *comma = pipes ? strchr(pipes, ',') : NULL;

	return comma ? serve(atoi(pipes), atoi(comma + 1), &f) : 2;
}
#else
/* Makes the kernel's half for a handler in the caller's process, who puts slots and layout there. */
__attribute__((visibility("default"))) void guestemu_half(struct half *h)
{
	set_up(h);
}

/* The VM's memory as the model has it: maps of one bit for each frame, in whole words. */
struct memory {
	uint64_t *attributes, *private_pages, *shared_pages;
	const uint64_t *device_map, *private_backing, *shared_backing;
	uint64_t frames;
	const struct guestemu_slot *slot;
	uint32_t slots;
	uint32_t is_usable; /* whether calls are done at all */
	int fail_at, fail_with;
	uint32_t calls, done, suspect; /* of the last exit */
};

/* A handler in the caller's process. */
struct running {
	struct memory *memory;
	struct half *half;
	int (*exit)(void *, struct guestemu_exit *);
	int (*reset)(void *);
	void (*close)(void *);
	void *(*open)(const struct guestemu_layout *, const struct guestemu_kernel *);
	void *vm; /* NULL: it could not be opened */
	struct guestemu_exit *told;
	uint32_t is_new; /* whether the exit is the first of its VM */
};

/* The bits of a range in the word of `at`, and the frame behind them. */
static uint64_t part(uint64_t *at, uint64_t end)
{
	uint64_t low = *at & 63, count = 64 - low < end - *at ? 64 - low : end - *at;

	*at += count;
	return (count == 64 ? ~0ull : (1ull << count) - 1) << low;
}

static void put(uint64_t *bits, uint64_t first, uint64_t end, int value, const uint64_t *where)
{
	while (first < end) {
		uint64_t word = first >> 6, mask = part(&first, end) & (where ? where[word] : ~0ull);

		bits[word] = value ? bits[word] | mask : bits[word] & ~mask;
	}
}

/* Whether a page of the range is there and its attribute names its backing. */
static int in_use(const struct memory *m, const uint64_t *pages, uint64_t first, uint64_t end,
		  uint64_t shared)
{
	while (first < end) {
		uint64_t word = first >> 6, mask = part(&first, end);

		if (pages[word] & (m->attributes[word] ^ shared) & mask)
			return 1;
	}
	return 0;
}

static int convert(struct memory *m, const struct call *c)
{
	uint64_t gpa = c->argument[0], size = c->argument[1];
	int is_private = c->argument[2] != 0;

	if (c->argument[3] || c->argument[2] & ~8ull || is_bad_range(gpa, size) ||
	    (gpa + size) >> 12 > m->frames)
		return 0;
	put(m->attributes, gpa >> 12, (gpa + size) >> 12, is_private, 0);
	put(is_private ? m->private_pages : m->shared_pages, gpa >> 12, (gpa + size) >> 12, 1,
	    is_private ? m->private_backing : m->shared_backing);
	return 1;
}

static int release(struct memory *m, const struct call *c)
{
	int is_punch = c->kind == CALL_FALLOCATE;
	uint64_t start = is_punch ? c->argument[2] : c->argument[1];
	uint64_t size = is_punch ? c->argument[3] : (c->argument[2] + 0xfff) & ~0xfffull;
	uint64_t *pages = is_punch ? m->private_pages : m->shared_pages, first;
	const struct guestemu_slot *slot = m->slot + c->argument[0];

	if (c->argument[0] >= m->slots || c->argument[is_punch ? 1 : 3] != (is_punch ? 3 : 4))
		return 0;
	if (is_punch && (!(slot->flags & GUESTEMU_SLOT_GUEST_MEMFD) || start < slot->memfd_offset))
		return 0;
	start -= is_punch ? slot->memfd_offset : 0;
	if (start > slot->size || size > slot->size - start || (slot->gpa + start + size) >> 12 > m->frames)
		return 0;
	first = (slot->gpa + start) >> 12;
	if (in_use(m, pages, first, first + (size >> 12), is_punch ? 0 : ~0ull))
		return 0;
	put(pages, first, first + (size >> 12), 0, 0);
	return 1;
}

/* Whether the check of guest memory would find a frame that was converted to be wrong. */
static int is_wrong(const struct memory *m, uint64_t first, uint64_t end)
{
	while (first < end) {
		uint64_t word = first >> 6, mask = part(&first, end) & m->private_backing[word];
		uint64_t is_private = m->attributes[word];

		if (mask & ((is_private & (m->shared_pages[word] | m->device_map[word])) |
			    (~is_private & m->private_pages[word])))
			return 1;
	}
	return 0;
}

/* Does calls on the memory while they are the usual ones, which succeed and free nothing that is in
 * use; how many were done. GuestMemory does the same in Python. */
static uint32_t apply(struct memory *m, const struct call *calls, uint32_t count)
{
	uint32_t done = 0;

	for (; done < count && !calls[done].result; done++) {
		const struct call *c = &calls[done];
		int is_freed = c->kind == CALL_FALLOCATE || c->kind == CALL_MADVISE;

		if (c->kind == CALL_ATTRIBUTES ? !convert(m, c) : !is_freed || !release(m, c))
			break;
	}
	m->suspect = 0;
	for (const struct call *c = calls; c < calls + done; c++)
		if (c->kind == CALL_ATTRIBUTES)
			m->suspect |= (uint32_t)is_wrong(m, c->argument[0] >> 12,
							 (c->argument[0] + c->argument[1]) >> 12);
	return done;
}

/* A new VM; whether there is one. */
static int renew(struct running *r)
{
	r->is_new = 0;
	if (r->reset(r->vm)) {
		r->close(r->vm);
		r->vm = r->open(&r->half->layout, &r->half->kernel);
	}
	return r->vm != NULL;
}

/* Hands an exit to the handler and does the usual ones of its calls; what the handler returned. */
__attribute__((visibility("default"))) int guestemu_run(struct running *r)
{
	struct memory *m = r->memory;
	struct half *h = r->half;
	int outcome;

	m->calls = m->done = 0;
	if (r->is_new && !renew(r))
		return -1;
	h->made = 0;
	h->calls = 0;
	h->fail_at = m->fail_at;
	h->fail_with = m->fail_with;
	outcome = r->exit(r->vm, r->told);
	m->calls = h->calls;
	m->done = m->is_usable && h->calls ? apply(m, h->call, h->calls) : 0;
	return outcome;
}

/* Serves the shared object at `path`; returns a text that says why not, or NULL at the end. */
__attribute__((visibility("default"))) const char *guestemu_serve(int in, int out,
								     const char *path)
{
	struct functions f;
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

	if (!library)
		return dlerror();
	*(void **)&f.abi = dlsym(library, "guestemu_abi");
	*(void **)&f.open = dlsym(library, "guestemu_open");
	*(void **)&f.exit = dlsym(library, "guestemu_exit");
	*(void **)&f.reset = dlsym(library, "guestemu_reset");
	*(void **)&f.close = dlsym(library, "guestemu_close");
	*(void **)&f.private_map = dlsym(library, "guestemu_private");
	*(void **)&f.features = dlsym(library, "guestemu_features");
	*(void **)&f.layout = dlsym(library, "guestemu_layout");
	if (!f.abi || !f.open || !f.exit || !f.reset || !f.close)
		return "a function of guestemu_host.h is missing";
	serve(in, out, &f);
	return 0;
}
#endif
