/* SPDX-License-Identifier: MIT */
#include "trace.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	ERRORS_MAX = 4,
	TRACEES_MAX = 256,
	/* It takes place, and only its answer is another: what is closed is closed. */
	DONE = 1,
	/* Not again and again: it is waited for, and would be for ever. */
	ONCE = 2,
};

struct call {
	const char *name;
	int number;
	unsigned int flags;
	int errors[ERRORS_MAX];
};

#define CALL(name, flags, ...)                                                                     \
	{                                                                                          \
#name, SYS_##name, flags,                                                          \
		{                                                                                  \
			__VA_ARGS__                                                                \
		}                                                                                  \
	}

/* Every call that can fail, with what it fails with. Not in it: what cannot (getpid,
 * sigprocmask), what ends (exit), and brk, whose failure libc replaces by mmap's. That
 * waitpid finds no child or kill no process although there is one is no fault, but a lie
 * of the kernel's. */
static const struct call calls[] = {
	/* descriptors */
	CALL(openat, 0, EMFILE, ENOMEM, EACCES),
	CALL(openat2, 0, EMFILE, ENOSYS, EAGAIN),
	CALL(close, DONE, EINTR),
	CALL(close_range, 0, ENOSYS, ENOMEM),
	CALL(dup2, 0, EMFILE),
	CALL(dup3, 0, EMFILE),
	CALL(fcntl, 0, EMFILE),
	CALL(pipe2, 0, EMFILE, ENFILE),
	CALL(memfd_create, 0, EMFILE, ENOMEM),
	CALL(signalfd4, 0, EMFILE, ENOMEM),
	CALL(eventfd2, 0, EMFILE),
	CALL(pidfd_open, 0, EMFILE, ENOSYS),
	CALL(pidfd_send_signal, ONCE, EPERM),
	/* input and output */
	CALL(read, ONCE, EINTR, EIO),
	CALL(pread64, 0, EIO),
	CALL(write, 0, ENOSPC, EBUSY, EINTR),
	CALL(writev, 0, EIO),
	CALL(lseek, 0, EINVAL),
	CALL(ftruncate, 0, ENOSPC),
	CALL(ioctl, 0, EPERM, EINTR),
	CALL(poll, ONCE, EINTR, ENOMEM),
	CALL(ppoll, ONCE, EINTR, ENOMEM),
	CALL(epoll_ctl, 0, ENOMEM, ENOSPC),
	CALL(epoll_wait, ONCE, EINTR),
	/* sockets */
	CALL(socket, 0, EMFILE, EAFNOSUPPORT),
	CALL(socketpair, 0, EMFILE, ENFILE),
	CALL(sendmsg, ONCE, EINTR, ENOMEM, ENOBUFS, ETOOMANYREFS),
	CALL(sendto, 0, ENOMEM, ENOBUFS),
	CALL(recvmsg, ONCE, EINTR, ENOMEM),
	CALL(recvfrom, ONCE, EINTR),
	CALL(getsockopt, 0, ENOMEM),
	CALL(setsockopt, 0, ENOMEM),
	CALL(shutdown, DONE, ENOTCONN),
	/* memory */
	CALL(mmap, 0, ENOMEM),
	CALL(munmap, 0, ENOMEM),
	CALL(mprotect, 0, ENOMEM),
	CALL(mremap, 0, ENOMEM),
	/* processes */
	CALL(clone, 0, EAGAIN, ENOMEM),
	CALL(clone3, 0, ENOSYS, EAGAIN),
	CALL(vfork, 0, EAGAIN),
	CALL(execve, 0, ENOENT, ENOMEM, EACCES),
	CALL(wait4, ONCE, EINTR),
	CALL(waitid, ONCE, EINTR),
	CALL(kill, ONCE, EPERM),
	CALL(setsid, 0, EPERM),
	CALL(prctl, 0, EPERM, EINVAL),
	CALL(prlimit64, 0, EPERM),
	CALL(getrusage, 0, EFAULT),
	CALL(capget, 0, EPERM),
	CALL(capset, 0, EPERM),
	CALL(setresuid, 0, EAGAIN, EPERM),
	CALL(setresgid, 0, EPERM),
	CALL(setgroups, 0, EPERM, ENOMEM),
	CALL(keyctl, 0, EPERM, EDQUOT),
	CALL(getrandom, 0, ENOSYS, EINTR),
	/* names */
	CALL(chdir, 0, EACCES, ENOENT),
	CALL(fchdir, 0, EACCES),
	CALL(chroot, 0, EPERM),
	CALL(getcwd, 0, ENOENT),
	CALL(newfstatat, 0, ENOMEM, EACCES),
	CALL(fstat, 0, ENOMEM),
	CALL(statx, 0, ENOSYS, ENOMEM),
	CALL(statfs, 0, ENOSYS),
	CALL(fstatfs, 0, ENOSYS),
	CALL(readlink, 0, EACCES),
	CALL(readlinkat, 0, EACCES),
	CALL(access, 0, EACCES),
	CALL(faccessat2, 0, ENOSYS, EACCES),
	CALL(getdents64, 0, ENOMEM),
	CALL(mkdir, 0, EACCES, ENOSPC, EROFS),
	CALL(mkdirat, 0, EACCES, ENOSPC),
	CALL(rmdir, ONCE, EBUSY),
	CALL(unlink, 0, EBUSY),
	CALL(unlinkat, ONCE, EBUSY),
	CALL(renameat2, 0, EBUSY, ENOSYS),
	CALL(symlinkat, 0, ENOSPC),
	CALL(chmod, 0, EPERM),
	CALL(fchmod, 0, EPERM),
	CALL(fchmodat, 0, EPERM),
	CALL(fchown, 0, EPERM),
	CALL(utimensat, 0, EPERM),
	/* the sandbox */
	CALL(unshare, 0, EPERM, ENOSPC, EINVAL),
	CALL(setns, 0, EPERM),
	CALL(sethostname, 0, EPERM),
	CALL(setdomainname, 0, EPERM),
	CALL(mount, 0, EPERM, ENOMEM),
	CALL(umount2, 0, EPERM, EBUSY),
	CALL(pivot_root, 0, EPERM, EINVAL),
	CALL(mount_setattr, 0, ENOSYS, EPERM, EINVAL),
	CALL(open_tree, 0, ENOSYS, EPERM, EMFILE),
	CALL(move_mount, 0, ENOSYS, EPERM),
	CALL(fsopen, 0, ENOSYS, EPERM),
	CALL(fsconfig, 0, EPERM, EINVAL),
	CALL(fsmount, 0, EPERM, ENOMEM),
	CALL(seccomp, 0, EINVAL, ENOMEM),
	CALL(landlock_create_ruleset, 0, ENOSYS, EOPNOTSUPP, EMFILE),
	CALL(landlock_add_rule, 0, EINVAL, ENOMEM),
	CALL(landlock_restrict_self, 0, EPERM, E2BIG),
};

static const struct call *find_call(int number)
{
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		if (calls[i].number == number)
			return &calls[i];
	}
	return NULL;
}

const char *trace_call_name(int number)
{
	const struct call *call = find_call(number);

	return call ? call->name : "?";
}

/* ---- who is traced */

static struct tracee {
	pid_t pid; /* 0: none */
	int error; /* of the call it is in; 0: as it comes */
} tracees[TRACEES_MAX];

static struct tracee *find_tracee(pid_t pid)
{
	for (size_t i = 0; i < TRACEES_MAX; i++) {
		if (tracees[i].pid == pid)
			return &tracees[i];
	}
	return NULL;
}

static struct tracee *tracee_of(pid_t pid)
{
	struct tracee *tracee = find_tracee(pid);

	if (!tracee) {
		tracee = find_tracee(0);
		if (!tracee)
			abort();
		*tracee = (struct tracee){ .pid = pid };
	}
	return tracee;
}

static void forget(pid_t pid)
{
	struct tracee *tracee = find_tracee(pid);

	if (tracee)
		*tracee = (struct tracee){ 0 };
}

/* ---- one call */

#ifdef __x86_64__
static bool set_number(pid_t pid, long number)
{
	return ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, regs.orig_rax), number) == 0;
}

static void set_answer(pid_t pid, long answer)
{
	ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, regs.rax), answer);
}

bool trace_possible(void)
{
	pid_t pid = fork();
	bool possible;

	if (pid == 0) {
		pause();
		_exit(0);
	}
	possible = pid > 0 && ptrace(PTRACE_SEIZE, pid, NULL, PTRACE_O_TRACESYSGOOD) == 0;
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, __WALL);
	}
	return possible;
}
#else
static bool set_number(pid_t pid, long number)
{
	(void)pid;
	(void)number;
	return false;
}

static void set_answer(pid_t pid, long answer)
{
	(void)pid;
	(void)answer;
}

bool trace_possible(void)
{
	return false;
}
#endif

/* The kernel needs nothing to take something out again, and nobody interrupts who does not
 * wait. */
static bool cannot_fail(const struct __ptrace_syscall_info *info)
{
	const uint64_t *args = info->entry.args;

	switch (info->entry.nr) {
	case SYS_epoll_ctl:
		return args[1] != EPOLL_CTL_ADD;
	case SYS_wait4:
		return (args[2] & WNOHANG) != 0;
	case SYS_waitid:
		return (args[3] & WNOHANG) != 0;
	default:
		return false;
	}
}

/* The index-th of its errors, or 0. Whoever is interrupted tries again, so not for good. */
static int error_of(const struct call *call, uint32_t index, bool for_good)
{
	int error = index < ERRORS_MAX ? call->errors[index] : 0;
	bool waits = (call->flags & ONCE) || (error == EINTR && !(call->flags & DONE));

	return for_good && waits ? 0 : error;
}

static void call_begins(struct fault *fault, struct tracee *tracee,
			const struct __ptrace_syscall_info *info)
{
	int number = (int)info->entry.nr;
	const struct call *call = cannot_fail(info) ? NULL : find_call(number);
	uint32_t hits = fault->hits;

	tracee->error = 0;
	if (!call || (hits > 0 && fault->for_good && number != fault->call) ||
	    !fault_strikes(fault))
		return;
	fault->call = number;
	fault->error = error_of(call, fault->error_index, fault->for_good);
	fault->more_errors = error_of(call, fault->error_index + 1, fault->for_good) != 0;
	if (!fault->error) {
		fault->out_of_errors = true;
		fault->armed = false;
		return;
	}
	if ((call->flags & DONE) || set_number(tracee->pid, -1))
		tracee->error = fault->error;
}

static void at_call(struct fault *fault, pid_t pid)
{
	struct __ptrace_syscall_info info;
	struct tracee *tracee = tracee_of(pid);

	if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(info), &info) <= 0)
		return;
	if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
		call_begins(fault, tracee, &info);
	} else if (info.op == PTRACE_SYSCALL_INFO_EXIT && tracee->error) {
		set_answer(pid, -tracee->error);
		tracee->error = 0;
	}
}

/* ---- all of them */

bool trace_attach(pid_t pid, bool tree)
{
	const long follow = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
			    PTRACE_O_TRACEEXEC;
	int status;

	return ptrace(PTRACE_SEIZE, pid, NULL,
		      PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL | (tree ? follow : 0)) == 0 &&
	       ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) == 0 &&
	       waitpid(pid, &status, __WALL) == pid && WIFSTOPPED(status) &&
	       ptrace(PTRACE_SYSCALL, pid, NULL, NULL) == 0;
}

/* Who is in a call that fails still has to be told so. */
static bool is_over(const struct fault *fault, pid_t pid)
{
	return (!fault->armed || (fault->hits > 0 && !fault->for_good)) && !tracee_of(pid)->error;
}

/* How it goes on: with which request, and which signal. */
static int stopped(struct fault *fault, pid_t pid, int status, bool *started, int *ret_signal)
{
	int event = status >> 16, signo = WSTOPSIG(status);

	*ret_signal = 0;
	if (signo == (SIGTRAP | 0x80)) {
		/* What comes before the program itself is not its own. */
		if (*started)
			at_call(fault, pid);
	} else if (event == PTRACE_EVENT_EXEC) {
		if (*started)
			return PTRACE_DETACH;
		*started = true;
	} else if (event == PTRACE_EVENT_STOP && signo != SIGTRAP) {
		return PTRACE_LISTEN;
	} else if (event == 0) {
		*ret_signal = signo;
	}
	/* A program that is traced alone is played again. */
	return fault->program[0] && *started && is_over(fault, pid) ? PTRACE_DETACH :
								      PTRACE_SYSCALL;
}

int trace_run(struct fault *fault, pid_t pid)
{
	/* A program that is traced alone has begun. */
	bool started = fault->program[0] == '\0';
	int status, signo, end = 0;
	pid_t who;

	while ((who = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR) {
		if (who <= 0)
			continue;
		if (!WIFSTOPPED(status)) {
			forget(who);
			if (who == pid)
				end = status;
			continue;
		}
		switch (stopped(fault, who, status, &started, &signo)) {
		case PTRACE_DETACH:
			forget(who);
			ptrace(PTRACE_DETACH, who, NULL, signo);
			break;
		case PTRACE_LISTEN:
			ptrace(PTRACE_LISTEN, who, NULL, NULL);
			break;
		default:
			ptrace(PTRACE_SYSCALL, who, NULL, signo);
			break;
		}
	}
	return end;
}
