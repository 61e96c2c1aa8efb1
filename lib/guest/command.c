/* SPDX-License-Identifier: MIT */
/* From the agent to the running command. The child is a process of its own at once, not
 * one that shares our memory until its execve: whoever else runs in here as the same user
 * could stop it, and us with it. It is born into its control group, and may be made ahead of
 * its command: then it waits for orders. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	CAPS_MAX = 64,
	/* Of what a process that waits can be told; it goes into a pipe at once. */
	ORDERS_MAX = 32 * 1024,
	WORDS_MAX = 512,
	FILES_MAX = 1 << 20 /* fs.nr_open: nobody may have more */
};

/* Then the working directory, the arguments and the variables, each with its NUL. */
struct orders {
	uint32_t size; /* with them */
	uint32_t argc, envc;
	struct ad_guest_limits limits;
	uint32_t uid, gid, flags;
};

/* Of everybody but the agent. */
static struct rlimit files;

void process_raise_files(void)
{
	const struct rlimit most = { FILES_MAX, FILES_MAX };

	if (getrlimit(RLIMIT_NOFILE, &files) < 0 || setrlimit(RLIMIT_NOFILE, &most) < 0)
		give_up("RLIMIT_NOFILE: %s", strerror(errno));
}

pid_t process_fork(int cgroup)
{
	struct clone_args args = { .flags = CLONE_INTO_CGROUP,
				   .exit_signal = SIGCHLD,
				   .cgroup = (unsigned int)cgroup };
	long pid = syscall(SYS_clone3, &args, sizeof(args));

	if (pid == 0)
		setrlimit(RLIMIT_NOFILE, &files);
	return pid < 0 ? -errno : (pid_t)pid;
}

bool keep_only(const int *fds, size_t count)
{
	unsigned int next = 3;

	for (;;) {
		unsigned int least = ~0u;

		for (size_t i = 0; i < count; i++) {
			if ((unsigned int)fds[i] >= next && (unsigned int)fds[i] < least)
				least = (unsigned int)fds[i];
		}
		if (least > next && ad_sys_close_range(next, least == ~0u ? least : least - 1) < 0)
			return false;
		if (least == ~0u)
			return true;
		next = least + 1;
	}
}

/* ---- pipes */

static void close_each(int *fds, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

int command_pipes_open(struct command_pipes *pipes, bool ahead)
{
	int *ours = pipes->ours, *theirs = pipes->theirs, error;

	for (size_t i = 0; i < COMMAND_PIPES; i++)
		ours[i] = theirs[i] = -1;
	if (pipe_open(&ours[COMMAND_IN], &theirs[COMMAND_IN], false) &&
	    pipe_open_output(&ours[COMMAND_OUT], &theirs[COMMAND_OUT]) &&
	    pipe_open_output(&ours[COMMAND_ERR], &theirs[COMMAND_ERR]) &&
	    pipe_open(&ours[COMMAND_FAULT], &theirs[COMMAND_FAULT], true) &&
	    (!ahead || pipe_open(&ours[COMMAND_ORDERS], &theirs[COMMAND_ORDERS], false)))
		return 0;
	error = errno;
	command_pipes_close(pipes);
	return -error;
}

void command_pipes_close(struct command_pipes *pipes)
{
	close_each(pipes->ours, COMMAND_PIPES);
	close_each(pipes->theirs, COMMAND_PIPES);
}

/* ---- in the child */

static _Noreturn void fail(int fault_fd, enum ad_guest_stage stage)
{
	struct command_fault fault = { .stage = stage, .error = errno };

	/* Smaller than a pipe's unit. */
	_exit(write(fault_fd, &fault, sizeof(fault)) == (ssize_t)sizeof(fault) ? 1 : 2);
}

static bool set_rlimits(const struct ad_guest_limits *limits)
{
	return (!limits->file || ad_sys_lower_limit(RLIMIT_FSIZE, limits->file) == 0) &&
	       (!limits->open_files || ad_sys_lower_limit(RLIMIT_NOFILE, limits->open_files) == 0);
}

/* Nothing of root is left, and nothing brings it back. */
static bool drop_privileges(uid_t uid, gid_t gid)
{
	/* Straight to the kernel: there are no threads to be looked for. */
	return syscall(SYS_setgroups, 1, &gid) == 0 && syscall(SYS_setresgid, gid, gid, gid) == 0 &&
	       syscall(SYS_setresuid, uid, uid, uid) == 0 &&
	       prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

/* What does not depend on the command. */
static bool settle_in(struct command_pipes *pipes)
{
	const int kept[] = { pipes->theirs[COMMAND_FAULT], pipes->theirs[COMMAND_ORDERS] };

	if (setsid() < 0 || ad_sys_lower_limit(RLIMIT_CORE, 0) < 0)
		return false;
	/* The sources are >= 3: no target is a source still needed. */
	for (int i = COMMAND_IN; i <= COMMAND_ERR; i++) {
		if (dup2(pipes->theirs[i], i) < 0)
			return false;
	}
	/* Not only by the execve: other tasks' pipes would not end for them while we are held
	 * up. */
	if (!keep_only(kept, AD_COUNT(kept)))
		return false;
	for (int cap = 0; cap < CAPS_MAX; cap++) {
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EINVAL)
			return false;
	}
	umask(022);
	return true;
}

static bool arrange_stdio(uint32_t flags)
{
	int null;

	if (flags & AD_GUEST_RUN_MERGE_STDERR && dup2(STDOUT_FILENO, STDERR_FILENO) < 0)
		return false;
	if (flags & AD_GUEST_RUN_STDIN)
		return true;
	null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return null >= 0 && dup2(null, STDIN_FILENO) == STDIN_FILENO;
}

static _Noreturn void become(const struct command *command, int fault)
{
	const uint64_t none = 0;

	if (!arrange_stdio(command->flags) || !set_rlimits(&command->limits) ||
	    !drop_privileges(command->uid, command->gid))
		fail(fault, AD_GUEST_STAGE_SETUP);
	if (chdir(command->workdir) < 0)
		fail(fault, AD_GUEST_STAGE_WORKDIR);
	ad_sys_restore_signals(&none);
	errno = ad_sys_exec(command->argv, command->env);
	fail(fault, AD_GUEST_STAGE_EXEC);
}

static void read_all(int fd, void *data, size_t size)
{
	for (size_t have = 0; have < size;) {
		ssize_t n = read(fd, (char *)data + have, size - have);

		/* The agent has no use for us. */
		if (n <= 0)
			_exit(0);
		have += (size_t)n;
	}
}

/* The next of the strings; moves on. */
static const char *next_word(const char **at)
{
	const char *word = *at;

	*at += strlen(word) + 1;
	return word;
}

static _Noreturn void obey(int fd, int fault)
{
	static const char *words[WORDS_MAX + 2];
	static char data[ORDERS_MAX];
	struct orders orders;
	struct command command = { 0 };
	const char *at = data;
	const char **word = words;

	read_all(fd, &orders, sizeof(orders));
	read_all(fd, data, orders.size - sizeof(orders));
	command.limits = orders.limits;
	command.uid = orders.uid;
	command.gid = orders.gid;
	command.flags = orders.flags;
	command.workdir = next_word(&at);
	command.argv = word;
	while (orders.argc--)
		*word++ = next_word(&at);
	command.env = ++word;
	while (orders.envc--)
		*word++ = next_word(&at);
	become(&command, fault);
}

static _Noreturn void child(struct command_pipes *pipes, const struct command *command)
{
	int fault = pipes->theirs[COMMAND_FAULT];

	if (!settle_in(pipes))
		fail(fault, AD_GUEST_STAGE_SETUP);
	if (!command)
		obey(pipes->theirs[COMMAND_ORDERS], fault);
	become(command, fault);
}

/* ---- in the agent */

pid_t command_start(int cgroup, struct command_pipes *pipes, const struct command *command)
{
	pid_t pid = process_fork(cgroup);

	if (pid == 0)
		child(pipes, command);
	close_each(pipes->theirs, COMMAND_PIPES);
	return pid;
}

static uint32_t put_words(struct ad_buf *buf, const char *const *words)
{
	uint32_t count = 0;

	for (; words[count]; count++)
		ad_buf_append(buf, words[count], strlen(words[count]) + 1);
	return count;
}

static size_t size_of(const char *const *words, size_t *count)
{
	size_t size = 0;

	for (; *words; words++, ++*count)
		size += strlen(*words) + 1;
	return size;
}

bool command_fits(const struct command *command)
{
	size_t count = 0, size = sizeof(struct orders) + strlen(command->workdir) + 1;

	size += size_of(command->argv, &count) + size_of(command->env, &count);
	return size <= ORDERS_MAX && count <= WORDS_MAX;
}

int command_order(int fd, const struct command *command)
{
	struct orders orders = { .limits = command->limits,
				 .uid = command->uid,
				 .gid = command->gid,
				 .flags = command->flags };
	ad_autobuf struct ad_buf buf = { 0 };
	ssize_t n;

	ad_buf_append(&buf, &orders, sizeof(orders));
	ad_buf_append(&buf, command->workdir, strlen(command->workdir) + 1);
	orders.argc = put_words(&buf, command->argv);
	orders.envc = put_words(&buf, command->env);
	orders.size = (uint32_t)buf.len;
	if (buf.failed) {
		errno = ENOMEM;
		return -1;
	}
	memcpy(buf.data, &orders, sizeof(orders));
	n = write(fd, buf.data, buf.len);
	/* What its group was limited to may have ended it: that is for its end to say, as that
	 * of one that was not made ahead. */
	if (n == (ssize_t)buf.len || (n < 0 && errno == EPIPE))
		return 0;
	/* It has not heard of all: pages were short. */
	if (n >= 0)
		errno = ENOMEM;
	return -1;
}
