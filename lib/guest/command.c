/* SPDX-License-Identifier: MIT */
/* From the agent to the running command. The child is a process of its own at once, not
 * one that shares our memory until its execve: whoever else runs in here as the same user
 * could stop it, and us with it. It is born into its control group. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CAPS_MAX = 64, FAULT = 3 };

pid_t process_fork(int cgroup)
{
	struct clone_args args = { .flags = CLONE_INTO_CGROUP,
				   .exit_signal = SIGCHLD,
				   .cgroup = (unsigned int)cgroup };
	long pid = syscall(SYS_clone3, &args, sizeof(args));

	return pid < 0 ? -errno : (pid_t)pid;
}

static _Noreturn void fail(const struct command *command, enum ad_guest_stage stage)
{
	struct command_fault fault = { .stage = stage, .error = errno };

	/* Smaller than a pipe's unit. */
	_exit(write(command->fault, &fault, sizeof(fault)) == (ssize_t)sizeof(fault) ? 1 : 2);
}

static bool set_rlimits(const struct ad_guest_limits *limits)
{
	return ad_sys_lower_limit(RLIMIT_CORE, 0) == 0 &&
	       (!limits->file || ad_sys_lower_limit(RLIMIT_FSIZE, limits->file) == 0) &&
	       (!limits->open_files || ad_sys_lower_limit(RLIMIT_NOFILE, limits->open_files) == 0);
}

/* Nothing of root is left, and nothing brings it back. */
static bool drop_privileges(const struct command *command)
{
	gid_t gid = command->gid;
	uid_t uid = command->uid;

	for (int cap = 0; cap < CAPS_MAX; cap++) {
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EINVAL)
			return false;
	}
	/* Straight to the kernel: there are no threads to be looked for. */
	return syscall(SYS_setgroups, 1, &gid) == 0 && syscall(SYS_setresgid, gid, gid, gid) == 0 &&
	       syscall(SYS_setresuid, uid, uid, uid) == 0 &&
	       prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

static _Noreturn void child(struct command *command)
{
	const uint64_t none = 0;

	if (setsid() < 0)
		fail(command, AD_GUEST_STAGE_SETUP);
	/* The sources are >= 3: no target is a source still needed. */
	for (int i = 0; i < 3; i++) {
		if (dup2(command->stdio[i], i) < 0)
			fail(command, AD_GUEST_STAGE_SETUP);
	}
	/* Not only by the execve: other tasks' pipes would not end for them while we are held
	 * up. */
	if (command->fault != FAULT && dup3(command->fault, FAULT, O_CLOEXEC) < 0)
		fail(command, AD_GUEST_STAGE_SETUP);
	command->fault = FAULT;
	if (ad_sys_close_range(FAULT + 1, ~0u) < 0 || !set_rlimits(command->limits) ||
	    !drop_privileges(command))
		fail(command, AD_GUEST_STAGE_SETUP);
	umask(022);
	if (chdir(command->workdir) < 0)
		fail(command, AD_GUEST_STAGE_WORKDIR);
	ad_sys_restore_signals(&none);
	errno = ad_sys_exec(command->argv, command->env);
	fail(command, AD_GUEST_STAGE_EXEC);
}

pid_t command_start(struct command *command)
{
	pid_t pid = process_fork(command->cgroup);

	if (pid == 0)
		child(command);
	return pid;
}
