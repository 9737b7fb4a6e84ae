// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PID 1 of a kernel under guestemu: asks the machine for commands and carries them out.
 *
 * No C library. System call 1000000 (no kernel has it) returns the next command into a buffer,
 * 1000001 hands the result over; the machine answers both before the kernel sees them. Both buffers
 * are written here first, because the machine reads page tables and cannot fault a page in.
 * A kernel without that machine returns -ENOSYS, and init halts.
 */
/* Loops that copy or clear stay loops: there is no library whose memset() they could become. */
#if !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribute-patterns")
#endif

#include <stdint.h>

enum {
	SYS_READ = 0, SYS_WRITE = 1, SYS_OPEN = 2, SYS_CLOSE = 3, SYS_LSEEK = 8,
	SYS_IOCTL = 16, SYS_NANOSLEEP = 35, SYS_SOCKET = 41, SYS_BIND = 49, SYS_FSYNC = 74, SYS_MKDIR = 83, SYS_MOUNT = 165,
	SYS_REBOOT = 169, SYS_INIT_MODULE = 175, SYS_DELETE_MODULE = 176,
	HOST_NEXT = 1000000, HOST_RESULT = 1000001,
};

enum { EINVAL = 22, DATA_SIZE = 4 << 20, LINE_SIZE = 1024, PAGE = 4096 };
enum { O_RDONLY = 0, O_WRONLY = 1 };
enum { AF_PACKET = 17, SOCK_RAW = 3, FRAME_TYPE = 0xB588, IFF_UP = 1, SIZE_MAX_FRAME = 1514 };
enum { SIOCGIFFLAGS = 0x8913, SIOCSIFFLAGS = 0x8914, SIOCGIFINDEX = 0x8933 };

/* struct ifreq and struct sockaddr_ll, as far as they are used here. */
struct interface {
	char name[16];
	union {
		int index;
		short flags;
		char space[24];
	};
};

struct address {
	uint16_t family, protocol;
	int32_t index;
	uint8_t rest[12];
};

static unsigned char data[DATA_SIZE] __attribute__((aligned(PAGE)));
static char line[LINE_SIZE] __attribute__((aligned(PAGE)));
static long console = -1;

static long call(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}

static long open_file(const char *path, long flags)
{
	return call(SYS_OPEN, (long)path, flags, 0, 0, 0);
}

static void close_file(long file)
{
	call(SYS_CLOSE, file, 0, 0, 0, 0);
}

static long length(const char *text)
{
	long n = 0;

	while (text[n])
		n++;
	return n;
}

static int is_equal(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static long number(const char *text)
{
	long value = 0;

	while (*text >= '0' && *text <= '9')
		value = value * 10 + (*text++ - '0');
	return value;
}

/* Reads until end of file, an error, or `limit` bytes; the bytes read, or the first error. */
static long read_all(long file, long limit)
{
	long done = 0, got = 0;

	while (done < limit) {
		got = call(SYS_READ, file, (long)data + done, limit - done, 0, 0);
		if (got <= 0)
			break;
		done += got;
	}
	return done ? done : got;
}

/* read PATH BYTES OFFSET */
static long do_read(const char *path, long size, long offset)
{
	long file = open_file(path, O_RDONLY), got;

	if (file < 0)
		return file;
	if (size <= 0 || size > DATA_SIZE)
		size = DATA_SIZE;
	if (offset)
		call(SYS_LSEEK, file, offset, 0, 0, 0);
	got = read_all(file, size);
	close_file(file);
	return got;
}

/* fill PATH BYTES OFFSET: writes a pattern and waits until the device has it. */
static long do_fill(const char *path, long size, long offset)
{
	long file = open_file(path, O_WRONLY), done, synced;

	if (file < 0)
		return file;
	if (size > DATA_SIZE)
		size = DATA_SIZE;
	for (long i = 0; i < size; i++)
		data[i] = 0xA0 + (i & 15);
	if (offset)
		call(SYS_LSEEK, file, offset, 0, 0, 0);
	done = call(SYS_WRITE, file, (long)data, size, 0, 0);
	synced = call(SYS_FSYNC, file, 0, 0, 0, 0);
	close_file(file);
	return done > 0 && synced < 0 ? synced : done;
}

static const unsigned char own_address[6] = { 0x52, 0x54, 0x00, 0x67, 0x65, 0x6d };

/* frame INTERFACE BYTES: sends a frame of the experimental type 0x88B5, returns the one that comes. */
static long do_frame(const char *name, long size)
{
	struct interface request = { 0 };
	struct address address = { AF_PACKET, FRAME_TYPE, 0, { 0 } };
	long file = call(SYS_SOCKET, AF_PACKET, SOCK_RAW, FRAME_TYPE, 0, 0), result;

	if (file < 0)
		return file;
	for (int i = 0; i < 15 && name[i]; i++)
		request.name[i] = name[i];
	result = call(SYS_IOCTL, file, SIOCGIFFLAGS, (long)&request, 0, 0);
	if (!result && !(request.flags & IFF_UP)) {
		request.flags |= IFF_UP;
		result = call(SYS_IOCTL, file, SIOCSIFFLAGS, (long)&request, 0, 0);
	}
	if (!result)
		result = call(SYS_IOCTL, file, SIOCGIFINDEX, (long)&request, 0, 0);
	address.index = request.index;
	if (!result)
		result = call(SYS_BIND, file, (long)&address, sizeof(address), 0, 0);
	if (size < 60 || size > SIZE_MAX_FRAME)
		size = 60;
	for (long i = 0; i < size; i++)
		data[i] = i < 6 ? 0xFF : i < 12 ? own_address[i - 6] : 0xA0 + ((i - 14) & 15);
	data[12] = 0x88;
	data[13] = 0xB5;
	if (!result)
		result = call(SYS_WRITE, file, (long)data, size, 0, 0);
	if (result > 0)
		result = call(SYS_READ, file, (long)data, DATA_SIZE, 0, 0);
	close_file(file);
	return result;
}

/* write PATH TEXT */
static long do_write(const char *path, const char *text)
{
	long file = open_file(path, O_WRONLY), done;

	if (file < 0)
		return file;
	done = call(SYS_WRITE, file, (long)text, length(text), 0, 0);
	close_file(file);
	return done;
}

/* mod PATH ARGUMENTS */
static long do_module(const char *path, const char *arguments)
{
	long size = do_read(path, DATA_SIZE, 0);

	if (size < 0)
		return size;
	return call(SYS_INIT_MODULE, (long)data, size, (long)arguments, 0, 0);
}

static long do_mount(const char *type, const char *directory)
{
	call(SYS_MKDIR, (long)directory, 0755, 0, 0, 0);
	return call(SYS_MOUNT, (long)type, (long)directory, (long)type, 0, 0);
}

static long do_sleep(long milliseconds)
{
	long time[2] = { milliseconds / 1000, milliseconds % 1000 * 1000000 };

	return call(SYS_NANOSLEEP, (long)time, 0, 0, 0, 0);
}

static long say(const char *text)
{
	return call(SYS_WRITE, console, (long)text, length(text), 0, 0);
}

/* A line of the kernel's log is printed when its newline arrives; `text` has room for it. */
static long say_line(char *text)
{
	long size = length(text);

	text[size] = '\n';
	return call(SYS_WRITE, console, (long)text, size + 1, 0, 0);
}

static void halt(void)
{
	call(SYS_REBOOT, (long)0xfee1dead, 672274793, (long)0xcdef0123, 0, 0);
	for (;;)
		;
}

/* The words of a command end with zero bytes; the third is the rest of the line. */
static long run(const char *verb, const char *first, const char *rest, long *given)
{
	const char *third = rest;

	*given = 0;
	while (*third >= '0' && *third <= '9')
		third++;
	if (*third == ' ')
		third++;
	if (is_equal(verb, "read")) {
		long got = do_read(first, number(rest), number(third));

		*given = got > 0 ? got : 0;
		return got;
	}
	if (is_equal(verb, "fill"))
		return do_fill(first, number(rest), number(third));
	if (is_equal(verb, "frame")) {
		long got = do_frame(first, number(rest));

		*given = got > 0 ? got : 0;
		return got;
	}
	if (is_equal(verb, "write"))
		return do_write(first, rest);
	if (is_equal(verb, "mod"))
		return do_module(first, rest);
	if (is_equal(verb, "rmmod"))
		return call(SYS_DELETE_MODULE, (long)first, 0, 0, 0, 0);
	if (is_equal(verb, "mount"))
		return do_mount(first, rest);
	if (is_equal(verb, "sleep"))
		return do_sleep(number(first));
	if (is_equal(verb, "say"))
		return say_line((char *)first);
	if (is_equal(verb, "halt"))
		halt();
	return -EINVAL;
}

static char *end_word(char *at)
{
	while (*at && *at != ' ')
		at++;
	if (*at)
		*at++ = 0;
	return at;
}

void _start(void)
{
	long size, given, result;

	do_mount("devtmpfs", "/dev");
	do_mount("sysfs", "/sys");
	do_mount("proc", "/proc");
	console = open_file("/dev/kmsg", O_WRONLY);
	say("init: user space is up\n");
	for (long page = 0; page < DATA_SIZE; page += PAGE)
		data[page] = 0;
	line[0] = 0;
	while ((size = call(HOST_NEXT, (long)line, LINE_SIZE - 1, 0, 0, 0)) > 0) {
		char *first, *rest;

		line[size] = 0;
		first = end_word(line);
		rest = is_equal(line, "say") ? first : end_word(first);
		result = run(line, first, rest, &given);
		call(HOST_RESULT, (long)data, given, result, 0, 0);
	}
	halt();
}
