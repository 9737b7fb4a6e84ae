// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Coverage of KVM's own modules for a kernel that was built without kcov: `oracle build-modules
 * --coverage` puts this file into kvm.ko and compiles both modules with -fsanitize-coverage=trace-pc.
 *
 * The file /sys/kernel/debug/kcov is that of Documentation/dev-tools/kcov.rst, as far as /init uses
 * it: KCOV_INIT_TRACE, mmap(), KCOV_ENABLE. There is one buffer, for whatever runs KVM's code: the
 * machine under test has one processor, and only /init has VMs.
 */
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/vmalloc.h>

#define INIT_TRACE _IOR('c', 1, unsigned long)
#define ENABLE _IO('c', 100)
#define LARGEST (1ul << 20)

void guestemu_kcov_init(void);
void __sanitizer_cov_trace_pc(void);

static u64 *buffer, *area;
static unsigned long words;

void notrace __sanitizer_cov_trace_pc(void)
{
	u64 *trace = READ_ONCE(area);
	u64 place;

	if (!trace)
		return;
	place = READ_ONCE(trace[0]) + 1;
	if (place < words) {
		WRITE_ONCE(trace[0], place);
		trace[place] = (unsigned long)__builtin_return_address(0);
	}
}
EXPORT_SYMBOL(__sanitizer_cov_trace_pc);

static long kcov_ioctl(struct file *file, unsigned int number, unsigned long argument)
{
	switch (number) {
	case INIT_TRACE:
		if (buffer || argument < 2 || argument > LARGEST)
			return -EINVAL;
		buffer = vmalloc_user(argument * sizeof(*buffer));
		if (!buffer)
			return -ENOMEM;
		words = argument;
		return 0;
	case ENABLE:
		if (!buffer || area)
			return -EINVAL;
		WRITE_ONCE(area, buffer);
		return 0;
	default:
		return -ENOTTY;
	}
}

static int kcov_mmap(struct file *file, struct vm_area_struct *vma)
{
	return buffer ? remap_vmalloc_range(vma, buffer, 0) : -EINVAL;
}

static const struct file_operations kcov_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = kcov_ioctl,
	.mmap = kcov_mmap,
};

void guestemu_kcov_init(void)
{
	debugfs_create_file_unsafe("kcov", 0600, NULL, NULL, &kcov_operations);
}
