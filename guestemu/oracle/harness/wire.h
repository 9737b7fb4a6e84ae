/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The channel between guestemu and /init of the machine under test: one block of shared memory.
 *
 * All records have a fixed width and are little-endian; oracle/wire.py has the same layout. Requests
 * and replies are at the same index. A request names the slot of its VM; the VM of a slot is made
 * from the configuration at the same index when the slot is first used, or when F_FRESH is set.
 */
#ifndef GUESTEMU_ORACLE_WIRE_H
#define GUESTEMU_ORACLE_WIRE_H

#include <stdint.h>

#define MAGIC 0x4c4341524f4d5647ull
#define VERSION 2u
#define SLOTS 256u
#define CAPACITY 4096u
#define CONFIGS_AT 0x1000u
#define REQUESTS_AT 0x8000u
#define REPLIES_AT 0x60000u
#define CHANNEL_BYTES 0x200000u

enum state { BOOTING, IDLE, REQUESTED, POWER_OFF };
enum op { OP_VMMCALL, OP_VMCALL, OP_RDMSR, OP_WRMSR, OP_GET_MSR, OP_SET_MSR, OP_RESUME,
	  OP_READ, OP_WRITE, OP_PEEK, OP_POKE, OP_ATTRIBUTES, OP_FALLOCATE, OP_SLOT,
	  OP_EXIT_CAP, OP_MSR_CAP, OP_QUIRKS_CAP, OP_ENFORCE, OP_FILTER, OP_DROP, OP_MEMFD };
enum mode { LONG64, COMPAT32, PROT32, REAL16 };
enum cpuid { CPUID_NOT_SET, CPUID_NO_LEAF, CPUID_LEAF, CPUID_RELOCATED };
enum filter { FILTER_NONE, DENY_RW, DENY_R, DENY_W, RANGE_ALLOWED, OTHER_RANGE, DENY_ONE };
enum answer { WRITE_RET, UNTOUCHED, SET_RAX, SKIP_RIP, IMMEDIATE, CHANGE_ARGS, CLEAR_CS_L, CONVERT,
	      PAUSE };
enum outcome { DONE, EXCEPTION, SHUTDOWN, TIMEOUT, FAIL_ENTRY, INTERNAL_ERROR, OTHER_EXIT, RUN_ERROR,
	       SREGS_REFUSED, IOCTL, NO_VM, PAUSED };
enum event_kind { EVENT_HYPERCALL = 1, EVENT_IMMEDIATE, EVENT_RDMSR, EVENT_WRMSR };

/* F_QUICK: a hypercall's exit is completed without entering the guest again. */
enum request_flag { F_FRESH = 1, F_QUICK = 2 };
enum config_flag { C_EXIT = 1, C_EXIT_LATE = 2, C_USER_MSR = 4, C_QUIRKS = 8, C_ENFORCE = 16,
		   C_IRQCHIP = 32, C_READ_ONLY = 64, C_IGNORE_MSRS = 128, C_PROTECTED = 256 };

struct header {
	uint64_t magic;
	uint32_t version, state, count, done;
	uint64_t batches;
	int32_t insmod[4];
	int32_t kvm, caps[8];
	uint32_t pv_features, address_bits, msr_count, msrs[16];
	char release[96], build[128];
};

struct config {
	uint32_t flags;
	uint8_t cpuid, filter, vcpus, spare;
	uint32_t pv_features, user_msr;
	uint64_t exit_mask, quirks;
};

struct request {
	uint8_t op, mode, cpl, vcpu, answer, flags;
	uint16_t slot;
	uint32_t answer_error, spare;
	uint64_t rax, rbx, rcx, rdx, rsi, ret;
};

struct event {
	uint32_t kind, reason;
	uint64_t nr, args[6], ret;
	uint32_t longmode, pad;
	int64_t rip;
	uint64_t rax;
};

struct reply {
	uint8_t outcome, events, vector, changed;
	int32_t rc, reason, info;
	uint64_t rax, rdx;
	int64_t rip, fault_rip, errcode;
	uint64_t cr2, data, hw;
	uint8_t code[4];
	int16_t setup[6];
	uint64_t covered; /* places of the kernel's code that no step before has reached */
	struct event event[2];
};

#endif
