// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * /init of a machine that runs one exported selftest (test.c) on the KVM of its kernel and ends.
 * The last line says how the test ended: its exit status, or 128 and the signal.
 */
#define main selftest
#include "test.c"
#undef main

#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* A file that is not there is built in, or not needed. */
static void load(const char *path)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);

	if (file < 0)
		return;
	if (syscall(SYS_finit_module, file, "", 0))
		printf("# %s: %s\n", path, strerror(errno));
	close(file);
}

int main(void)
{
	static const char *const modules[] = {
		"/irqbypass.ko", "/ccp.ko", "/kvm.ko", "/kvm-amd.ko",
	};
	int console, status = 0;
	size_t i;
	pid_t child;

	mkdir("/dev", 0755);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	console = open("/dev/console", O_RDWR);
	for (i = 0; console >= 0 && i < 3; i++)
		dup2(console, (int)i);
	for (i = 0; i < sizeof(modules) / sizeof(modules[0]); i++)
		load(modules[i]);
	fflush(NULL);
	child = fork();
	if (child == 0)
		exit(selftest());
	waitpid(child, &status, 0);
	printf("guestemu: selftest %d\n",
	       WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	fflush(NULL);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
