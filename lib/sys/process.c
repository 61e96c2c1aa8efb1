/* SPDX-License-Identifier: MIT */
#include "sys/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The kernel's own set: the C library's would leave out its internal signals. */
enum { KERNEL_SIGSET_SIZE = 8 };

/* glibc's clone() by the name that nobody interposes. The thread sanitizer does clone(),
 * also in host programs that use it: it takes the child for a fork with memory of its
 * own, and forgets all other threads. */
int __clone(int (*fn)(void *arg), void *stack, int flags, void *arg, ...);

AD_SYS_NO_SANITIZE void ad_sys_block_signals(uint64_t *ret_old)
{
	uint64_t all = UINT64_MAX;

	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, ret_old, KERNEL_SIGSET_SIZE);
}

AD_SYS_NO_SANITIZE void ad_sys_restore_signals(const uint64_t *old)
{
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, old, NULL, KERNEL_SIGSET_SIZE);
}

AD_SYS_NO_SANITIZE void ad_sys_default_signals(void)
{
	/* Zeroes are SIG_DFL, no flags, an empty mask, in the kernel's layout on every
	 * architecture; sigaction(3) refuses the C library's internal signals. */
	uint64_t action[8];

	for (size_t i = 0; i < sizeof(action) / sizeof(action[0]); i++)
		action[i] = 0;
	for (int signo = 1; signo <= 64; signo++) {
		if (signo != SIGKILL && signo != SIGSTOP)
			syscall(SYS_rt_sigaction, signo, action, NULL, KERNEL_SIGSET_SIZE);
	}
}

#if defined(__x86_64__)
/* clone3() has no wrapper. The child starts on its own stack and must not return
 * into this frame, so that it calls fn from here. */
AD_SYS_NO_SANITIZE static long clone3_call(struct clone_args *args, int (*fn)(void *arg), void *arg)
{
	long ret;
	register int (*fn_kept)(void *) __asm__("r12") = fn;
	register void *arg_kept __asm__("r13") = arg;

	__asm__ volatile("syscall\n\t"
			 "testq %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xorl %%ebp, %%ebp\n\t"
			 "movq %%r13, %%rdi\n\t"
			 "callq *%%r12\n\t"
			 "movl %%eax, %%edi\n\t"
			 "movl %[nr_exit], %%eax\n\t"
			 "syscall\n\t"
			 "ud2\n"
			 "1:"
			 : "=a"(ret)
			 : "0"((long)SYS_clone3), "D"(args), "S"(sizeof(*args)), "r"(fn_kept),
			   "r"(arg_kept), [nr_exit] "i"(SYS_exit)
			 : "rcx", "r11", "memory", "cc");
	return ret;
}
#define HAVE_CLONE3_CALL 1
#elif defined(__aarch64__)
AD_SYS_NO_SANITIZE static long clone3_call(struct clone_args *args, int (*fn)(void *arg), void *arg)
{
	register long x0 __asm__("x0") = (long)args;
	register long x1 __asm__("x1") = sizeof(*args);
	register long x8 __asm__("x8") = SYS_clone3;
	register int (*fn_kept)(void *) __asm__("x19") = fn;
	register void *arg_kept __asm__("x20") = arg;

	__asm__ volatile("svc #0\n\t"
			 "cbnz x0, 1f\n\t"
			 "mov x29, xzr\n\t"
			 "mov x0, x20\n\t"
			 "blr x19\n\t"
			 "mov x8, %[nr_exit]\n\t"
			 "svc #0\n\t"
			 "brk #1\n"
			 "1:"
			 : "+r"(x0)
			 : "r"(x1), "r"(x8), "r"(fn_kept), "r"(arg_kept), [nr_exit] "i"(SYS_exit)
			 : "memory", "cc");
	return x0;
}
#define HAVE_CLONE3_CALL 1
#endif

#ifdef HAVE_CLONE3_CALL
static pid_t clone_into(int (*fn)(void *arg), void *arg, void *stack, size_t stack_size,
			uint64_t flags, int exit_signal, int cgroup_fd)
{
	struct clone_args args;

	memset(&args, 0, sizeof(args));
	args.flags = flags | CLONE_INTO_CGROUP;
	args.exit_signal = (unsigned int)exit_signal;
	args.stack = (uint64_t)(uintptr_t)stack;
	args.stack_size = stack_size;
	args.cgroup = (unsigned int)cgroup_fd;
	return (pid_t)clone3_call(&args, fn, arg);
}
#else
static pid_t clone_into(int (*fn)(void *arg), void *arg, void *stack, size_t stack_size,
			uint64_t flags, int exit_signal, int cgroup_fd)
{
	(void)fn, (void)arg, (void)stack, (void)stack_size;
	(void)flags, (void)exit_signal, (void)cgroup_fd;
	return -ENOSYS;
}
#endif

AD_SYS_NO_SANITIZE pid_t ad_sys_clone_vm(int (*fn)(void *arg), void *arg, void *stack,
					 size_t stack_size, uint64_t flags, int exit_signal,
					 int cgroup_fd)
{
	pid_t pid;

	/* Both ends of the stack stay 16-byte aligned. */
	stack_size &= ~(size_t)15;
	flags |= CLONE_VM;
	if (cgroup_fd >= 0)
		return clone_into(fn, arg, stack, stack_size, flags, exit_signal, cgroup_fd);
	pid = __clone(fn, (char *)stack + stack_size, (int)flags | exit_signal, arg);
	return pid < 0 ? -errno : pid;
}

int ad_sys_start_time(pid_t pid, uint64_t *ret)
{
	char path[64] = "/proc/self/stat", text[1024], *field;
	int fd, error;
	ssize_t n;

	if (pid != 0)
		snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, text, sizeof(text) - 1);
	error = errno;
	close(fd);
	if (n < 0)
		return -error;
	text[n] = '\0';
	/* proc_pid_stat(5): field 22. The second is a name that may hold anything, and
	 * ends with the last parenthesis. */
	field = strrchr(text, ')');
	for (int i = 0; field && i < 20; i++)
		field = strchr(field + 1, ' ');
	if (!field)
		return -ESRCH;
	*ret = strtoull(field + 1, NULL, 10);
	return 0;
}

void ad_sys_futex_wait(const _Atomic uint32_t *word, uint32_t expected, uint64_t timeout_ns)
{
	const struct timespec timeout = {
		.tv_sec = (time_t)(timeout_ns / 1000000000),
		.tv_nsec = (long)(timeout_ns % 1000000000),
	};

	syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, NULL, 0);
}

void ad_sys_futex_wake(const _Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}
