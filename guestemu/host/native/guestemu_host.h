/* SPDX-License-Identifier: MIT */
/* A VMM's exit handler as a host of guestemu, ABI 1.
 *
 * Export the functions at the end from a shared object (C, C++, a Rust cdylib, Go c-shared), or link
 * them with guestemu_serve.c into a program of your own. guestemu plays the kernel: it has made KVM's
 * own checks (CPL, number, alignment, page count, wrap), fills struct guestemu_exit as KVM fills
 * struct kvm_run, answers your calls through struct guestemu_kernel by the rules of the modelled
 * kernel, or with the error that a program orders, and records each of them. One thread per VM.
 * A layout is valid until close or the next layout, an exit until the handler returns.
 */
#ifndef GUESTEMU_HOST_H
#define GUESTEMU_HOST_H

#include <stdint.h>

#define GUESTEMU_HOST_ABI 1

enum guestemu_slot_flags { GUESTEMU_SLOT_GUEST_MEMFD = 1, GUESTEMU_SLOT_READ_ONLY = 2 };

/* exit_reason: the numbers of KVM_EXIT_* */
enum guestemu_reason {
	GUESTEMU_EXIT_HYPERCALL = 3,
	GUESTEMU_EXIT_RDMSR = 29,
	GUESTEMU_EXIT_WRMSR = 30,
	GUESTEMU_EXIT_MEMORY_FAULT = 39,
};

enum guestemu_outcome {
	GUESTEMU_REENTER = 0, /* call KVM_RUN again */
	GUESTEMU_STOP = 1,    /* the VM ends */
};

enum guestemu_features {
	GUESTEMU_MIGRATION_CONTROL = 1, /* handles MSR_KVM_MIGRATION_CONTROL */
};

struct guestemu_slot {
	uint64_t gpa, size, memfd_offset; /* bytes */
	uint32_t flags, pad;
};

struct guestemu_layout {
	uint32_t abi, vcpus, slots, pad;
	const struct guestemu_slot *slot;
};

struct guestemu_exit {
	uint32_t exit_reason, vcpu;
	union {
		struct {
			uint64_t nr, args[6], ret, flags;
		} hypercall; /* write the answer to ret */
		struct {
			uint64_t index, reason, data, error;
		} msr; /* error 1: #GP in the guest */
		struct {
			uint64_t flags, gpa, size;
		} memory_fault; /* flags bit 3: a private access */
	};
};

/* Your calls into the kernel. Each returns 0 or a negative errno. `token` is their first argument. */
struct guestemu_kernel {
	void *token;
	int (*set_memory_attributes)(void *token, uint64_t gpa, uint64_t size, uint64_t attributes,
				     uint64_t flags);
	int (*fallocate)(void *token, uint32_t slot, int mode, uint64_t offset, uint64_t length);
	int (*madvise)(void *token, uint32_t slot, uint64_t offset, uint64_t length, int advice);
	int (*pre_fault)(void *token, uint64_t gpa, uint64_t size);
	int (*map_for_device)(void *token, uint64_t gpa, uint64_t size, int is_mapped);
};

#ifdef __cplusplus
extern "C" {
#endif

uint32_t guestemu_abi(void); /* returns GUESTEMU_HOST_ABI */
void *guestemu_open(const struct guestemu_layout *layout, const struct guestemu_kernel *kernel);
int guestemu_exit(void *vm, struct guestemu_exit *exit); /* enum guestemu_outcome */
int guestemu_reset(void *vm); /* 0: as newly opened; otherwise it is closed and opened again */
void guestemu_close(void *vm);

/* Optional. The VMM's own record of private frames: bit n % 8 of byte n / 8 is the frame of gfn n.
 * Without it the record is what KVM's memory attributes say. */
const uint8_t *guestemu_private(void *vm);
uint32_t guestemu_features(void); /* enum guestemu_features; without it 0 */

/* Optional. Memory was hot-plugged: the layout with the new slot, all private, behind the others.
 * 0, or a negative errno if you refuse it. In place of the next reset the VM is closed and opened,
 * with the first layout. Without it no memory is plugged. */
int guestemu_layout(void *vm, const struct guestemu_layout *layout);

#ifdef __cplusplus
}
#endif
#endif
