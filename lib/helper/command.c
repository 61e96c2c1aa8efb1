/* SPDX-License-Identifier: MIT */
/* From a supervisor to the running command. The child shares our memory until its
 * execve, and we stand still meanwhile: it calls nothing but system calls, and what
 * went wrong is simply written down. Stages, in order, each with what it must and
 * must not find done:
 *   session      its own, so that its process group is the command's;
 *   cgroup       entered with the helper's rights;
 *   sandbox      the cgroup namespace, rooted where we are now; then the filters, which
 *                allow none of this any more;
 *   rlimits      only ever lowered: first those of every command;
 *   gate         if it was made ahead of its command, it stands still until it hears of one;
 *   stdio        0 to 2 in place, nothing else left open;
 *   rlimits      this command's;
 *   credentials  the host's of now: from here on nothing is done with more;
 *   workdir      with the command's own rights;
 *   exec         signals unblocked last, the death signal after the last change of
 *                ids, which would clear it. */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/sys.h"

enum {
	STACK_SIZE = 128 * 1024,
	/* Timers take their entries from here too, of which one user could have as many as
	 * it may have processes, at half a kilobyte of kernel memory each. */
	SIGNALS_PENDING_MAX = 4096
};

AD_SYS_NO_SANITIZE static int failed(struct command *command, enum ad_msg_stage stage, int error)
{
	command->stage = stage;
	command->error = error;
	return 1;
}

/* Those of every command. */
AD_SYS_NO_SANITIZE static int set_common_rlimits(const struct command *command)
{
	if (ad_sys_lower_limit(RLIMIT_CORE, 0) < 0)
		return -1;
	if (command->sandbox && ad_sys_lower_limit(RLIMIT_SIGPENDING, SIGNALS_PENDING_MAX) < 0)
		return -1;
	return 0;
}

AD_SYS_NO_SANITIZE static int set_rlimits(const struct command *command)
{
	const struct ad_msg_limits *limits = command->limits;

	if (limits->file && ad_sys_lower_limit(RLIMIT_FSIZE, limits->file) < 0)
		return -1;
	if (limits->open_files && ad_sys_lower_limit(RLIMIT_NOFILE, limits->open_files) < 0)
		return -1;
	/* A second late, so that the watchdog, which counts the whole tree, is first. */
	if (limits->cpu_time_ms &&
	    ad_sys_lower_limit(RLIMIT_CPU, (limits->cpu_time_ms - 1) / 1000 + 2) < 0)
		return -1;
	if (command->memory_rlimit && ad_sys_lower_limit(RLIMIT_DATA, command->memory_rlimit) < 0)
		return -1;
	if (command->nproc_rlimit && ad_sys_lower_limit(RLIMIT_NPROC, command->nproc_rlimit) < 0)
		return -1;
	return 0;
}

AD_SYS_NO_SANITIZE static int enter_cgroups(const struct command *command)
{
	const struct cgroup_entry *entry = command->cgroup;

	/* "0" is the writer itself. Writing a pid would cost milliseconds. */
	for (size_t i = 0; i < entry->count; i++) {
		if (write(entry->tasks[i], "0", 1) != 1)
			return -1;
	}
	if (entry->v2_procs >= 0 && entry->v2_dir < 0 && write(entry->v2_procs, "0", 1) != 1)
		return -1;
	return 0;
}

/* Straight to the kernel: the C library's would look for threads, which are not
 * ours to look for here. */
AD_SYS_NO_SANITIZE static int set_ids(const struct command *command)
{
	gid_t gid = command->gid;
	gid_t groups[2] = { gid, command->machine ? command->machine->device_group : 0 };
	uid_t uid = command->uid;

	if (syscall(SYS_setgroups, groups[1] ? 2 : 1, groups) < 0 ||
	    syscall(SYS_setresgid, gid, gid, gid) < 0 || syscall(SYS_setresuid, uid, uid, uid) < 0)
		return -1;
	return 0;
}

AD_SYS_NO_SANITIZE static bool has_layer(const struct command *command, enum ad_layer layer)
{
	return command->sandbox->layers.layers[layer] == AD_MSG_LAYER_ENFORCED;
}

AD_SYS_NO_SANITIZE static int layer_fault(struct command *command, enum ad_layer layer, int error)
{
	command->index = layer;
	return failed(command, AD_STAGE_LAYER, error);
}

AD_SYS_NO_SANITIZE static int install_filter(struct command *command)
{
	const struct sock_fprog *filter = &command->sandbox->filters.inner;
	long fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
			  filter);

	/* Only one in a row of filters can have a listener, and somebody outside may be
	 * first. Without one, what would be reported is still refused. */
	if (fd < 0 && errno == EBUSY)
		return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, filter);
	command->listener = (int)fd;
	return fd < 0 ? -1 : 0;
}

/* The table of descriptors is shared until here, so that the supervisor has the
 * listener. */
AD_SYS_NO_SANITIZE static int confine(struct command *command)
{
	if (has_layer(command, AD_LAYER_CGROUPNS) && syscall(SYS_unshare, CLONE_NEWCGROUP) < 0)
		return layer_fault(command, AD_LAYER_CGROUPNS, errno);
	umask(022);
	if (command->landlock >= 0) {
		int r = landlock_enter(command->landlock);

		if (r < 0)
			return layer_fault(command, AD_LAYER_LANDLOCK, -r);
	}
	if (has_layer(command, AD_LAYER_SECCOMP) && install_filter(command) < 0)
		return layer_fault(command, AD_LAYER_SECCOMP, errno);
	if (syscall(SYS_close_range, ~0u, ~0u, CLOSE_RANGE_UNSHARE) < 0)
		return failed(command, AD_STAGE_STDIO, errno);
	return 0;
}

/* Its descriptors to where it looks for them, by way of numbers that none of them has. */
AD_SYS_NO_SANITIZE static int place_fds(const struct machine_command *machine)
{
	int high[AD_SPAWN_MACHINE_FDS_MAX];

	for (size_t i = 0; i < machine->fd_count; i++) {
		high[i] = fcntl(machine->fds[i], F_DUPFD, 2 * AD_SPAWN_MACHINE_FDS_MAX);
		if (high[i] < 0)
			return -1;
	}
	for (size_t i = 0; i < machine->fd_count; i++) {
		if (dup2(high[i], 3 + (int)i) < 0)
			return -1;
	}
	return 0;
}

/* Whatever its ids are, it has and gets no capability: for when the helper is root, before
 * the ids change; the rest after that. */
AD_SYS_NO_SANITIZE static void bound_capabilities(void)
{
	for (int cap = 0; prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0; cap++)
		;
}

AD_SYS_NO_SANITIZE static int drop_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = { { 0 } };

	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return -1;
	return (int)syscall(SYS_capset, &header, none);
}

AD_SYS_NO_SANITIZE static int confine_machine(struct command *command)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return failed(command, AD_STAGE_CREDENTIALS, errno);
	/* It takes less memory that way, and is the same without. */
	if (command->machine->small_pages)
		(void)prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (command->landlock >= 0) {
		int r = landlock_enter(command->landlock);

		if (r < 0)
			return layer_fault(command, AD_LAYER_LANDLOCK, -r);
	}
	return place_fds(command->machine) < 0 ? failed(command, AD_STAGE_STDIO, errno) : 0;
}

/* Not to outlive it. */
AD_SYS_NO_SANITIZE static bool tie_to_supervisor(struct command *command)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0) {
		failed(command, AD_STAGE_SESSION, errno);
		return false;
	}
	if (syscall(SYS_getppid) != command->parent) {
		failed(command, AD_STAGE_LOST, 0);
		return false;
	}
	return true;
}

/* Ids and place of the host program of now. */
AD_SYS_NO_SANITIZE static int become_host(struct command *command)
{
	if (command->machine)
		bound_capabilities();
	if (command->set_ids && set_ids(command) < 0)
		return failed(command, AD_STAGE_CREDENTIALS, errno);
	if (command->machine && drop_capabilities() < 0)
		return failed(command, AD_STAGE_CREDENTIALS, errno);
	if (command->workdir[0] && chdir(command->workdir) < 0)
		return failed(command, AD_STAGE_WORKDIR, errno);
	return tie_to_supervisor(command) ? 0 : 1;
}

/* All that is not the command's, but what tells the supervisor by its closing that execve
 * has succeeded. */
AD_SYS_NO_SANITIZE static int close_others(const struct command *command)
{
	unsigned int first = 3, gate = (unsigned int)command->gate_inner;

	if (command->machine)
		first += (unsigned int)command->machine->fd_count;
	if (command->gate >= 0) {
		if (gate > first && ad_sys_close_range(first, gate - 1) < 0)
			return -1;
		first = gate + 1;
	}
	return ad_sys_close_range(first, ~0u);
}

/* The supervisor is about to close its copy of our end. */
AD_SYS_NO_SANITIZE static bool wait_at_gate(struct command *command)
{
	const char byte = 0;

	close(command->gate);
	return write(command->gate_inner, &byte, 1) == 1 && command->learn(command);
}

bool command_ask(const struct command *command, int fd)
{
	char byte = 0;
	ssize_t n;

	if (ad_sys_send(command->gate_inner, &byte, 1, &fd, fd >= 0, 0) < 0)
		return false;
	do {
		n = read(command->gate_inner, &byte, 1);
	} while (n < 0 && errno == EINTR);
	return n == 1;
}

AD_SYS_NO_SANITIZE static int child(void *arg)
{
	struct command *command = arg;
	const uint64_t none = 0;

	if (syscall(SYS_setsid) < 0)
		return failed(command, AD_STAGE_SESSION, errno);
	if (command->gate >= 0 && !tie_to_supervisor(command))
		return 1;
	if (command->cgroup && enter_cgroups(command) < 0)
		return failed(command, AD_STAGE_CGROUP, errno);
	if (command->sandbox && confine(command) != 0)
		return 1;
	if (set_common_rlimits(command) < 0)
		return failed(command, AD_STAGE_RLIMIT, errno);
	if (command->gate >= 0 && !wait_at_gate(command))
		return command->stage == AD_STAGE_COUNT ? failed(command, AD_STAGE_LOST, 0) : 1;
	/* The sources are >= 3: no target is a source still needed. */
	for (int i = 0; i < 3; i++) {
		if (dup2(command->stdio[i], i) < 0)
			return failed(command, AD_STAGE_STDIO, errno);
	}
	if (command->machine && confine_machine(command) != 0)
		return 1;
	if (close_others(command) < 0)
		return failed(command, AD_STAGE_STDIO, errno);
	if (set_rlimits(command) < 0)
		return failed(command, AD_STAGE_RLIMIT, errno);
	if (!command->sandbox && become_host(command) != 0)
		return 1;
	if (command->sandbox && chdir(command->workdir) < 0)
		return failed(command, AD_STAGE_WORKDIR, errno);
	ad_sys_restore_signals(&none);
	return failed(command, AD_STAGE_EXEC, ad_sys_exec(command->argv, command->env));
}

const char *command_stage_text(const struct command *command, uint32_t stage)
{
	switch (stage) {
	case AD_STAGE_WORKDIR:
		return command->workdir;
	case AD_STAGE_EXEC:
		return command->argv[0];
	case AD_STAGE_VIEW:
		return SANDBOX_TOKEN;
	default:
		return "";
	}
}

/* flags: CLONE_VFORK, or 0 if it waits at the gate. */
static pid_t clone_child(struct command *command, uint64_t flags)
{
	struct cgroup_entry *entry = command->cgroup;
	pid_t pid = -ENOSYS;

	command->stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	if (command->stack == MAP_FAILED)
		return -errno;
	command->stage = AD_STAGE_COUNT;
	command->news = COMMAND_UNKNOWN;
	command->listener = -1;
	if (entry && entry->v2_dir >= 0) {
		pid = ad_sys_clone_vm(child, command, command->stack, STACK_SIZE, flags, SIGCHLD,
				      entry->v2_dir);
		if (pid == -ENOSYS || pid == -EPERM || pid == -EOPNOTSUPP) {
			/* Then by the slow way in: the child writes itself there. */
			close(entry->v2_dir);
			entry->v2_dir = -1;
			pid = -ENOSYS;
		}
	}
	if (!entry || entry->v2_dir < 0)
		pid = ad_sys_clone_vm(child, command, command->stack, STACK_SIZE,
				      flags | (command->sandbox ? CLONE_FILES : 0), SIGCHLD, -1);
	return pid;
}

/* Nobody waits there any more. */
static void gate_gone(struct command *command)
{
	command->waiting = 0;
	close(ad_steal_fd(&command->gate));
	if (command->waiting_fd >= 0)
		close(ad_steal_fd(&command->waiting_fd));
}

/* It has its own memory, or is dead. */
static void child_gone(struct command *command)
{
	if (command->stack != MAP_FAILED)
		munmap(command->stack, STACK_SIZE);
	command->stack = NULL;
}

/* Until the child waits at the gate. False: it never will. That cannot be seen there: its
 * end is ours too while the table of descriptors is shared. It may have the pidfd as well, and
 * to close the last one takes 10 to 50 us: we keep it until it has closed its own. */
static bool has_come_to_gate(struct command *command)
{
	struct pollfd fds[] = {
		{ .fd = command->gate, .events = POLLIN },
		{ .fd = command->waiting_fd = ad_sys_pidfd(command->waiting), .events = POLLIN },
	};
	char byte;

	if (fds[1].fd < 0)
		return false;
	while (poll(fds, AD_COUNT(fds), -1) < 0 && errno == EINTR)
		;
	return recv(command->gate, &byte, 1, MSG_DONTWAIT) == 1;
}

void command_stand_by(struct command *command)
{
	bool ready;
	int pair[2];

	if (ad_sys_pair(pair) < 0)
		return;
	command->gate = pair[0];
	command->gate_inner = pair[1];
	command->waiting = clone_child(command, 0);
	ready = command->waiting > 0 && has_come_to_gate(command);
	close(command->gate_inner);
	if (!ready)
		command_dismiss(command);
}

void command_dismiss(struct command *command)
{
	if (command->gate < 0)
		return;
	/* It reads what we change: it goes first. */
	if (command->waiting > 0)
		kill(command->waiting, SIGKILL);
	while (command->waiting > 0 && waitpid(command->waiting, NULL, 0) < 0 && errno == EINTR)
		;
	if (command->listener >= 0)
		close(ad_steal_fd(&command->listener));
	gate_gone(command);
	child_gone(command);
}

/* Its end of the gate closes by execve, or with it. Until then it is on the stack that we gave
 * it, so that nothing else ends this. */
bool command_await(struct command *command)
{
	char byte;
	struct ad_sys_msg in = { .data = &byte, .cap = 1 };
	int r = 0;

	while (command->gate >= 0 && (r = ad_sys_recv(command->gate, &in, 0)) < 0)
		;
	command->handed = in.fd_count > 0 ? in.fds[0] : -1;
	if (r == 0 && command->news == COMMAND_UNKNOWN)
		command_dismiss(command);
	return r == 0;
}

bool command_go_on(struct command *command)
{
	const char byte = 0;

	if (send(command->gate, &byte, 1, MSG_NOSIGNAL) == 1)
		return command_await(command);
	/* It is dead, or would wait for ever. */
	command_dismiss(command);
	return true;
}

pid_t command_start(struct command *command, uint32_t *ret_stage)
{
	pid_t pid = command->waiting;

	*ret_stage = AD_STAGE_FORK;
	if (pid > 0)
		gate_gone(command);
	else
		pid = clone_child(command, CLONE_VFORK);
	child_gone(command);
	if (pid < 0 || command->stage == AD_STAGE_COUNT)
		return pid;
	waitpid(pid, NULL, 0);
	*ret_stage = command->stage;
	return command->error ? -command->error : -ECHILD;
}
