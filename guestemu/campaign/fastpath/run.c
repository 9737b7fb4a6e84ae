// SPDX-License-Identifier: GPL-2.0-or-later
/* One execution, from libFuzzer's bytes to its counters. */
#include "fast.h"

enum { LAUNCH_RIP = 8, STACK = 5, KERNEL_STACK = 4, NO_STATE = -1 };
enum { ENDED_RIP, ENDED_RAX };
enum { FLAG_TABLE = 4, ENOSYS = 38 };
enum { PLACES = 4, IN_A_ROW = 32 };

static struct fast *active;

bool fast_python(struct fast *f, void *function)
{
	void *result = f->call(function);
	bool is_true = result == f->truth;

	if (result)
		f->release(result);
	else
		f->clear_error();
	return is_true;
}

static bool python_answer(struct fast *f)
{
	if (!fast_python(f, f->answer))
		return false;
	fast_see_host(f);
	return true;
}

/* An instruction that the emulator takes for undefined: a hypercall, or the end of a stub. */
static bool decide(void *uc, void *user)
{
	struct fast *f = active;
	struct exit *exit = &f->exits[f->exit_count];

	if (f->trap && f->in[IN_RIP] == f->trap) {
		f->is_trapped = true;
		return false;
	}
	if (f->exit_count == MAX_EXITS || !(f->has_host ? fast_answer(f) : python_answer(f))) {
		f->is_odd = true;
		return false;
	}
	f->is_stale = false;
	f->exit_count++;
	exit->nr = f->in[IN_RAX];
	exit->args[0] = f->in[IN_RBX];
	exit->args[1] = f->in[IN_RCX];
	exit->args[2] = f->in[IN_RDX];
	exit->args[3] = f->in[IN_RSI];
	exit->ret = f->out[OUT_RAX];
	exit->cpl = f->cpl;
	exit->is_64bit = f->is_64bit;
	return true;
}

/* The memory hook's slow path: what Python must put back itself makes the execution odd. */
EXPORT void fast_slow_access(void *uc, int type, u64 address, int size, i64 value, void *user)
{
	if (active && ((address & (PAGE - 1)) + size > PAGE || *active->log_count >= 1 << 15))
		active->is_odd = true;
	active->slow_access(uc, type, address, size, value, user);
}

/* Back to the first state. The host follows at its first exit (is_stale). */
static bool put_back(struct fast *f)
{
	if (f->is_foreign) {
		if (!fast_python(f, f->reset))
			return false;
		f->is_foreign = false;
		f->known_count = 0;
		f->cpu_state = NO_STATE;
	} else if (*f->dirty_count) {
		if (f->rollback(f->memory) & FLAG_TABLE)
			f->flush(f->uc, f->flush_command);
	}
	*f->log_count = 0;
	f->is_stale = true;
	fast_forget_tables(f);
	fast_copy(&f->direct.bits, &f->direct.base);
	fast_copy(&f->alias.bits, &f->alias.base);
	return true;
}

/* Runs the guest by `stub`; true if it ended where the stub ends. */
static bool start(struct fast *f, const struct stub *stub, u64 rip, u64 cpu_state)
{
	int code;

	if (f->cpu_state != cpu_state) {
		f->cpu_state = cpu_state;
		f->flush(f->uc, f->flush_command);
	}
	*f->blocks_left = f->budget;
	f->trap = stub->is_trap ? stub->end : 0;
	stub->words[LAUNCH_RIP] = rip;
	*f->decide = decide;
	*f->unsynced = f->sync_switch; /* who reports a RIP is Python, and runs the input again */
	code = f->launch(stub->launch);
	*f->unsynced = NULL;
	*f->decide = f->original_decide;
	if (f->is_odd)
		return false;
	if (stub->is_trap)
		return f->is_trapped;
	return !code && *f->blocks_left >= 0 && f->ended[ENDED_RIP] == stub->end;
}

static bool hypercall(struct fast *f, const struct op *op, i64 *value)
{
	u64 state = op->mode << 2 | op->cpl;
	const struct stub *stub = &f->stubs[state];
	u64 gpa = f->regions[op->region].gpa + (op->page << PAGE_SHIFT);

	if (!stub->launch)
		return false;
	__builtin_memcpy(stub->registers, op->arguments, sizeof(op->arguments));
	stub->registers[1] += op->has_page ? gpa : 0;
	stub->registers[STACK] = f->user_stack;
	f->vcpu = op->vcpu;
	if (!start(f, stub, stub->start, state))
		return false;
	*value = f->ended[ENDED_RAX];
	return true;
}

/* Calls a function of the guest's kernel. */
static bool call(struct fast *f, const struct op *op, i64 *value)
{
	u64 *registers = f->kernel.registers;
	u64 gva = f->regions[op->region].gva + (op->page << PAGE_SHIFT);
	const u64 *arguments = op->arguments;

	if (f->functions[op->kind] == f->no_such_function) {
		*value = -ENOSYS;
		return true;
	}
	switch (op->kind) {
	case WRITE:
		registers[0] = gva + arguments[1];
		registers[1] = arguments[0];
		registers[2] = arguments[2];
		break;
	case READ:
		registers[0] = gva + arguments[0];
		break;
	case STOP_CONVERSION:
		break;
	default:
		registers[0] = gva + arguments[1];
		registers[1] = arguments[0];
	}
	registers[KERNEL_STACK] = f->kernel_stack;
	f->vcpu = 0;
	if (!start(f, &f->kernel, f->functions[op->kind], 0))
		return false;
	*value = op->kind == READ ? (i64)f->ended[ENDED_RAX] : (int32_t)f->ended[ENDED_RAX];
	return true;
}

static bool step(struct fast *f, u64 index)
{
	const struct op *op = &f->ops[index];
	u64 ready = fast_ready(f);
	i64 value;

	fast_copy(&f->host_before, fast_host_map(f));
	fast_copy(&f->direct_before, &f->direct.bits);
	f->exit_count = 0;
	f->is_odd = false;
	f->is_trapped = false;
	if (!(op->kind == HYPERCALL ? hypercall : call)(f, op, &value) || !fast_replay(f))
		return false;
	if (!fast_judge(f, op, value, ready) || f->is_odd)
		return false;
	fast_count(f, op, index, value);
	return true;
}

/* Runs the ops that were decoded from `data`. */
static bool run(struct fast *f, const u8 *data, size_t size)
{
	if (f->current) {
		u32 length = size;

		__builtin_memcpy(f->current, &length, sizeof(length));
		__builtin_memcpy(f->current + sizeof(length), data, size);
	}
	f->objected = false;
	if (f->shadow)
		f->shadow->count = f->shadow->begin;
	if (!put_back(f))
		return false;
	f->previous = 0;
	for (u64 index = 0; index < f->ops_count; index++)
		if (!step(f, index)) {
			__builtin_memset(f->area, 0, f->area_words * sizeof(u64));
			return false;
		}
	return true;
}

static bool is_new(const struct fast *f)
{
	const u64 *area = (const u64 *)f->area;
	u64 found = 0;

	for (u64 i = 0; i < f->area_words; i++)
		found |= area[i] & f->unseen[i];
	return found;
}

/* Makes `f` what the next executions work on; NULL for none. */
EXPORT void fast_use(struct fast *f)
{
	active = f;
}

/* For tests: one execution here, or false. */
EXPORT bool fast_run(const u8 *data, size_t size)
{
	bool is_done = fast_decode(active, data, size) && run(active, data, size);

	active->is_foreign |= !is_done;
	return is_done;
}

static bool is_deadly(const struct fast *f, const u8 *data, size_t size)
{
	for (u64 i = 0; i < f->deadly_count; i++)
		if (f->deadly[i].size == size && !__builtin_memcmp(f->deadly[i].data, data, size))
			return true;
	return false;
}

/*
 * Adds the decoded program to those that ran; false if it is one of them (campaign/programs.py). The
 * table forgets: a program has four places, and takes the last one where all are full.
 */
static bool add_program(struct fast *f)
{
	u64 digest = f->ops_count, *place = f->programs;

	if (!place)
		return true;
	for (u64 i = 0; i < f->ops_count; i++)
		digest = digest * 31 +
			 fast_feature((const i64 *)&f->ops[i], sizeof(struct op) / sizeof(i64));
	digest |= 1; /* 0 is an empty place */
	place += digest >> 32 & f->programs_mask & ~(PLACES - 1ull);
	for (u64 i = 0; i < PLACES; i++) {
		if (place[i] == digest)
			return false;
		if (!place[i]) {
			place[i] = digest;
			return true;
		}
	}
	place[digest >> 1 & (PLACES - 1)] = digest;
	return true;
}

/* Keeps an input that ran, in the place of the oldest. */
static void keep(struct fast *f, const u8 *data, size_t size)
{
	u64 place = f->recent_count % RECENT;

	if (!f->recent)
		return;
	f->recent_sizes[place] = size < f->max_size ? size : f->max_size;
	__builtin_memcpy(f->recent + place * f->max_size, data, f->recent_sizes[place]);
	f->recent_count++;
}

/* LLVMFuzzerTestOneInput. */
EXPORT int fast_one(const u8 *data, size_t size)
{
	struct fast *f = active;
	bool is_program, is_first;

	f->data = data;
	f->size = size;
	if (!f->attention)
		fast_python(f, f->tick);
	is_program = f->attention && !is_deadly(f, data, size) && fast_decode(f, data, size);
	is_first = is_program && add_program(f);
	if (is_program && !is_first && f->skipped < IN_A_ROW) {
		f->skipped++;
		f->attention--;
		return 0;
	}
	f->skipped = 0;
	if (is_program && run(f, data, size)) {
		f->attention--;
		f->executions++;
		f->distinct += is_first;
		f->lengths[f->ops_count]++;
		keep(f, data, size);
		if (is_new(f))
			fast_python(f, f->news);
		if (f->shadow && fast_shadow_keep(f, data, size))
			fast_python(f, f->shadow->ask);
		return 0;
	}
	f->is_foreign = true;
	fast_python(f, f->execute);
	return 0;
}

/* The size of the records, for whoever mirrors them. */
EXPORT u64 fast_size(void)
{
	return sizeof(struct fast) + sizeof(struct shadow);
}
