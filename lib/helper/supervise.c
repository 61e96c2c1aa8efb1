/* SPDX-License-Identifier: MIT */
/* One per command: it starts the command, reports straight to the library, and ends
 * when nothing of the command is alive. It is the subreaper of the command's tree, or in
 * a sandbox pid 1 of its pid namespace, so that whatever leaves its session still ends up
 * as our child, and "no children" means that nothing is left. */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sys/sys.h"

/* How long to go on killing what does not die, and how often to look. */
static const uint64_t give_up_ns = 5000 * AD_NS_PER_MS;
static const uint64_t pause_min_ns = 1 * AD_NS_PER_MS, pause_max_ns = 50 * AD_NS_PER_MS;
static const uint64_t patience_ns = 1000 * AD_NS_PER_MS;

enum {
	BLOCK_SIZE = 512, /* of ru_oublock, whatever the file system's are */
	STACK_USED = 6 * 4096
};

struct state {
	const struct supervise *job;
	struct standby *standby;
	pid_t main;
	bool exited, killing;
	uint64_t give_up, next_pass, pause;
	int wait_status;
	uint64_t exited_at;
	bool pids_reported, fatal_reported[AD_MSG_LIMIT_COUNT];
	struct cgroup_counters counted;
	struct proc_table table;
};

/* The helper died: the end of the socket says all there is to say. */
static bool mute;

static void report(const struct ad_msg *msg, const int *fds, size_t fd_count)
{
	uint8_t buf[AD_MSG_FIXED_MAX];

	if (mute)
		return;
	/* If nobody listens any more, the helper says what to do about it. Without its descriptors
	 * the library knows that they are lost. */
	if (ad_sys_send(HELPER_SOCKET, buf, ad_msg_encode(msg, buf), fds, fd_count, 0) ==
	    -ETOOMANYREFS)
		ad_sys_send(HELPER_SOCKET, buf, ad_msg_encode(msg, buf), NULL, 0, 0);
}

/* There is to be another one that waits, as soon as nobody waits for us. */
static void supervise_taken(const struct supervise *job)
{
	if (job->taken >= 0 && write(job->taken, "", 1) != 1)
		_exit(SUPERVISOR_LOST);
}

/* It is this command's, not that of what it left behind, or of the next. */
static void drop_token(const struct supervise *job)
{
	if (job->in_session && (job->spawn->flags & AD_SPAWN_CREDENTIALS))
		unlink(SANDBOX_TOKEN);
}

void supervise_failed(const struct supervise *job, uint32_t stage, uint32_t index, int error,
		      const char *text)
{
	struct ad_msg msg = { .type = AD_MSG_FAILED, .job = job->spawn->job };

	msg.u.failed.stage = stage;
	msg.u.failed.index = index;
	msg.u.failed.os_errno = error;
	snprintf(msg.u.failed.text, sizeof(msg.u.failed.text), "%s", text);
	drop_token(job);
	report(&msg, NULL, 0);
	supervise_taken(job);
	atomic_store(&job->slot->over, 1);
	_exit(SUPERVISOR_DONE);
}

static _Noreturn void fail(const struct supervise *job, uint32_t stage, int error, const char *text)
{
	supervise_failed(job, stage, 0, error, text);
}

static void report_denied(const struct state *state, enum ad_msg_denied_kind kind,
			  const char *target)
{
	struct ad_msg msg = { .type = AD_MSG_DENIED, .job = state->job->spawn->job };

	msg.u.denied.kind = kind;
	snprintf(msg.u.denied.target, sizeof(msg.u.denied.target), "%s", target);
	report(&msg, NULL, 0);
}

static void report_limit(struct state *state, enum ad_msg_limit limit, bool fatal)
{
	struct ad_msg msg = { .type = AD_MSG_LIMIT, .job = state->job->spawn->job };

	if (state->fatal_reported[limit])
		return;
	state->fatal_reported[limit] = fatal;
	msg.u.limit.limit = limit;
	msg.u.limit.fatal = fatal;
	report(&msg, NULL, 0);
}

/* ---- start */

static void report_started(const struct state *state)
{
	const struct pipes *pipes = &state->standby->pipes;
	struct ad_msg msg = { .type = AD_MSG_STARTED, .job = state->job->spawn->job };
	int fds[4];
	size_t count = 0;

	msg.u.started.pid = state->main;
	msg.u.started.receipt = state->job->enforcement.receipt;
	fds[count++] = pipes->host[STDOUT_FILENO];
	if (pipes->host[STDERR_FILENO] >= 0) {
		msg.u.started.flags |= AD_STARTED_STDERR;
		fds[count++] = pipes->host[STDERR_FILENO];
	}
	if (pipes->host[STDIN_FILENO] >= 0) {
		msg.u.started.flags |= AD_STARTED_STDIN;
		fds[count++] = pipes->host[STDIN_FILENO];
	}
	if (state->job->network >= 0) {
		msg.u.started.flags |= AD_STARTED_NETWORK;
		fds[count++] = state->job->network;
	}
	report(&msg, fds, count);
}

/* Its pipes, and what its process must know before the command is known. */
static uint32_t prepare(const struct supervise *job, struct standby *standby)
{
	sigset_t signals;

	/* All signals are blocked since the helper started. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGNAL_ORDER);
	sigaddset(&signals, SIGNAL_HELPER_DIED);
	standby->command = (struct command){
		.parent = getpid(),
		.cgroup = job->entry,
		.sandbox = job->sandbox,
		.landlock = job->landlock,
		.waiting_fd = -1,
		.gate = -1,
		.listener = -1,
	};
	cgroup_open_gauges(job->leaf, &standby->gauges);
	standby->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (standby->signal_fd < 0)
		return AD_STAGE_SUPERVISOR;
	if (!job->entry && job->leaf) {
		int r = cgroup_open_entry(job->leaf, &standby->entry);

		if (r < 0) {
			errno = -r;
			return AD_STAGE_CGROUP;
		}
		standby->command.cgroup = &standby->entry;
	}
	return pipes_make(&standby->pipes);
}

/* Whatever its command starts is to be ours, and it is not to outlive the helper. */
static bool adopt(const struct supervise *job)
{
	bool first = job->sandbox && !job->in_session; /* pid 1 is both anyway */

	return first ||
	       ((job->in_session || prctl(PR_SET_PDEATHSIG, SIGNAL_HELPER_DIED, 0, 0, 0) == 0) &&
		prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
}

/* A few paths in a row. */
static void use_stack(void)
{
	volatile uint8_t stack[STACK_USED];

	for (size_t i = 0; i < sizeof(stack); i += 4096)
		stack[i] = 0;
}

/* What the start and the end of a command will use, before somebody waits. */
static void use_pages(const struct helper_shared *shared)
{
	use_stack();
	request_expect(shared);
	(void)ad_sys_now_ns(); /* the vDSO's */
}

/* What the command is. 0 or a negative errno. */
static int describe(const struct supervise *job)
{
	const struct ad_msg_spawn *spawn = job->spawn;
	const char **vectors = job->standby->vectors;
	struct command *command = &job->standby->command;
	size_t count = spawn->argc + spawn->envc + 2;

	if (count > VECTORS_READY)
		vectors = reallocarray(NULL, count, sizeof(*vectors));
	if (!vectors)
		return -ENOMEM;
	ad_msg_spawn_vectors(spawn, vectors, vectors + spawn->argc + 1);
	command->argv = vectors;
	command->env = vectors + spawn->argc + 1;
	command->workdir = spawn->workdir;
	command->limits = &spawn->limits;
	command->memory_rlimit = job->enforcement.memory_rlimit;
	command->nproc_rlimit = job->enforcement.nproc_rlimit;
	command->set_ids = job->set_ids;
	command->uid = job->enforcement.receipt.uid;
	command->gid = job->enforcement.receipt.gid;
	pipes_of_command(&job->standby->pipes, spawn->flags, command->stdio);
	return 0;
}

/* In the command's process, which shares our memory: we stand still. */
static bool learn(struct command *command)
{
	struct standby *standby = AD_CONTAINER_OF(command, struct standby, command);
	struct supervise *job = standby->job;
	struct pollfd request = { .fd = standby->sock, .events = POLLIN };
	int r;

	use_stack();
	while (poll(&request, 1, -1) < 0 && errno == EINTR)
		;
	command->news = COMMAND_COMING;
	standby->content = request_wait(standby->sock, job, standby->shared);
	if (!standby->content)
		return false;
	command->news = COMMAND_KNOWN;
	command->stage = AD_STAGE_VIEW;
	r = job->begin ? job->begin(job, standby->content) : 0;
	if (r == SUPERVISE_ASK) {
		if (!command_ask(command, standby->content->token))
			return false;
		r = 0;
	}
	if (r == 0) {
		command->stage = AD_STAGE_REQUEST;
		r = describe(job);
	}
	command->error = -r;
	if (r == 0)
		command->stage = AD_STAGE_COUNT;
	return r == 0;
}

bool supervise_stand_by(struct supervise *job, struct standby *standby, int sock,
			const struct helper_shared *shared)
{
	use_pages(shared);
	if (prepare(job, standby) != AD_STAGE_COUNT || !adopt(job))
		return false;
	job->standby = standby;
	standby->job = job;
	standby->sock = sock;
	standby->shared = shared;
	standby->command.learn = learn;
	command_stand_by(&standby->command);
	return true;
}

const struct request_content *supervise_await(struct supervise *job, int sock,
					      const struct helper_shared *shared)
{
	struct standby *standby = job->standby;
	const struct request_content *content;
	int r;

	if (standby) {
		bool through = command_await(&standby->command);

		while (!through) {
			int token = standby->command.handed;

			if (token < 0 && standby->content->token >= 0)
				fail(job, AD_STAGE_VIEW, EMFILE, SANDBOX_TOKEN);
			job->begin_with_rights(job, token);
			through = command_go_on(&standby->command);
		}
		/* If it died in between, there is no telling whose command that was. */
		if (standby->command.news != COMMAND_UNKNOWN)
			return standby->command.news == COMMAND_KNOWN ? standby->content : NULL;
	}
	content = request_wait(sock, job, shared);
	r = content && job->begin ? job->begin(job, content) : 0;
	if (r < 0)
		fail(job, AD_STAGE_VIEW, -r, SANDBOX_TOKEN);
	if (r == SUPERVISE_ASK)
		job->begin_with_rights(job, content->token);
	return content;
}

static void start(struct state *state)
{
	const struct supervise *job = state->job;
	struct pipes *pipes = &state->standby->pipes;
	struct command *command = &state->standby->command;
	uint32_t stage;

	if (!command->argv) {
		int r = describe(job);

		if (r < 0)
			fail(job, AD_STAGE_REQUEST, -r, "");
	}
	state->main = command_start(command, &stage);
	if (state->main < 0)
		supervise_failed(job, stage, command->index, -state->main,
				 command_stage_text(command, stage));
	pipes_choose(pipes, job->spawn->flags);
	report_started(state);
	supervise_taken(job);
	pipes_close(pipes);
	if (command->cgroup)
		cgroup_close_entry(command->cgroup);
	if (job->landlock >= 0)
		close(job->landlock);
	if (command->argv != state->standby->vectors)
		free((void *)(uintptr_t)command->argv);
}

/* ---- the end */

static void note_io(const struct state *state)
{
	struct rusage usage;

	if (!state->job->spawn->limits.io)
		return;
	getrusage(RUSAGE_CHILDREN, &usage);
	atomic_store(&state->job->slot->io_reaped, (uint64_t)usage.ru_oublock * BLOCK_SIZE);
}

static bool died_of_kill(const struct state *state)
{
	return (WIFSIGNALED(state->wait_status) && WTERMSIG(state->wait_status) == SIGKILL) ||
	       (WIFEXITED(state->wait_status) && WEXITSTATUS(state->wait_status) == 128 + SIGKILL);
}

static uint64_t children_cpu_ns(struct rusage *usage)
{
	getrusage(RUSAGE_CHILDREN, usage);
	return (uint64_t)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1000 * AD_NS_PER_MS +
	       (uint64_t)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) * 1000;
}

/* Which limits made themselves felt: before the exit is reported. */
static void report_limits_hit(struct state *state)
{
	const struct supervise *job = state->job;
	const struct ad_msg_limits *limits = &job->spawn->limits;
	struct rusage usage;

	if (job->leaf) {
		cgroup_count(job->leaf, &state->standby->gauges, &state->counted);
		if (state->counted.oom_kills > job->counted.oom_kills)
			report_limit(state, AD_MSG_LIMIT_MEMORY,
				     died_of_kill(state) && !state->killing);
		if (state->counted.pids_hits > job->counted.pids_hits && !state->pids_reported) {
			state->pids_reported = true;
			report_limit(state, AD_MSG_LIMIT_PIDS, false);
		}
	}
	/* The kernel may have seen it before the watchdog did. */
	if (limits->cpu_time_ms && died_of_kill(state) && !state->killing &&
	    children_cpu_ns(&usage) / AD_NS_PER_MS >= limits->cpu_time_ms)
		report_limit(state, AD_MSG_LIMIT_CPU_TIME, true);
}

/* The filter kills who uses another machine's system calls. It cannot be told from
 * whoever raises this signal by itself, which does not happen by accident either. */
static void report_bad_signal(const struct state *state)
{
	if (state->job->sandbox && WIFSIGNALED(state->wait_status) &&
	    WTERMSIG(state->wait_status) == SIGSYS)
		report_denied(state, AD_MSG_DENIED_SYSCALL, "of another architecture");
}

static uint32_t count_survivors(struct state *state)
{
	uint32_t count = 0;

	proc_scan(&state->table, getpid());
	for (size_t i = 0; i < state->table.count; i++)
		count += state->table.procs[i].top != 0 && !state->table.procs[i].zombie;
	/* Something is there, whether we may see it or not. */
	return count ? count : 1;
}

static void tell_moved(const char *path, bool moved, void *userdata)
{
	report_denied(userdata, moved ? AD_MSG_DENIED_PATH : AD_MSG_DENIED_LEFT, path);
}

/* Who was just told of the end is to run now. The kernel counts on a sender to sleep soon and
 * makes its reader wait for this processor, even if another one is idle; but to end, with all
 * namespaces, takes 150 us without a break. */
static void make_way(void)
{
	const struct timespec moment = { .tv_nsec = 1 };

	nanosleep(&moment, NULL);
}

static _Noreturn void finish(struct state *state, bool report_exit, bool survivors)
{
	const struct supervise *job = state->job;
	struct ad_msg msg = {
		.type = report_exit ? AD_MSG_ENDED : AD_MSG_CLOSED,
		.job = job->spawn->job,
	};
	struct ad_msg_usage *usage = &msg.u.ended.usage;
	struct rusage rusage;

	msg.u.ended.wait_status = state->wait_status;
	msg.u.ended.at_ns = state->exited_at;
	usage->cpu_ns = children_cpu_ns(&rusage);
	/* What a session's knows is of other commands too. */
	if (job->leaf && !job->in_session) {
		/* Who reports the exit has just done so. */
		if (!report_exit)
			cgroup_count(job->leaf, &state->standby->gauges, &state->counted);
		usage->memory_peak = cgroup_memory_peak(job->leaf, &state->standby->gauges);
		usage->peak_is_tree = usage->memory_peak != 0;
		/* It also knows of those that nobody waited for. */
		if (job->leaf->means[CG_KILL])
			usage->cpu_ns = (state->counted.cpu_usec - job->counted.cpu_usec) * 1000;
		job->slot->counted = state->counted;
	}
	if (!usage->peak_is_tree)
		usage->memory_peak = (uint64_t)rusage.ru_maxrss * 1024;
	usage->survivors = survivors ? count_survivors(state) : 0;
	drop_token(job);
	/* Nobody is left to connect. The library may hold it a while longer, and the network
	 * is to be as it was for the next command. */
	if (job->network >= 0)
		shutdown(job->network, SHUT_RDWR);
	if (job->sandbox)
		protect_end(job->protection, tell_moved, state);
	report(&msg, NULL, 0);
	atomic_store(&job->slot->over, 1);
	make_way();
	_exit(survivors ? SUPERVISOR_SURVIVORS : SUPERVISOR_DONE);
}

/* Take in all that died. Ends the process with the last of them. */
static void reap(struct state *state)
{
	bool report_exit = false, none_left = false;
	struct ad_msg msg = { .type = AD_MSG_EXITED, .job = state->job->spawn->job };

	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, WNOHANG | __WALL);

		if (pid < 0 && errno == EINTR)
			continue;
		none_left = pid < 0;
		if (pid <= 0)
			break;
		if (pid == state->main && !state->exited) {
			state->exited = report_exit = true;
			state->exited_at = ad_sys_now_ns();
			state->wait_status = status;
		}
	}
	note_io(state);
	if (report_exit) {
		report_limits_hit(state);
		report_bad_signal(state);
	}
	if (none_left)
		finish(state, report_exit, false);
	if (report_exit) {
		msg.u.ended.wait_status = state->wait_status;
		msg.u.ended.at_ns = state->exited_at;
		report(&msg, NULL, 0);
	}
}

/* ---- killing */

/* Everything there is, once. True if there was something to be seen. */
static bool kill_all(const struct state *state)
{
	if (state->job->leaf)
		cgroup_kill(state->job->leaf);
	if (state->job->sandbox && !state->job->in_session)
		return kill(-1, SIGKILL) == 0;
	/* Not yet reaped, so the number is still its own. */
	if (!state->exited)
		kill(-state->main, SIGKILL);
	return state->killing && proc_kill_tree(getpid(), NULL, patience_ns) > 0;
}

static void kill_begin(struct state *state)
{
	uint64_t now = ad_sys_now_ns();

	atomic_store(&state->job->slot->kill_seen, 1);
	/* What it left behind is the session's now: orphans go to its pid 1. */
	if (state->job->in_session && state->exited && !state->killing && !mute)
		finish(state, false, false);
	kill_all(state);
	if (state->killing)
		return;
	state->killing = true;
	state->give_up = now + give_up_ns;
	state->pause = pause_min_ns;
	state->next_pass = now + pause_min_ns;
}

/* They may be forking meanwhile, so this is repeated, soon while it finds any. */
static void kill_pass(struct state *state)
{
	if (kill_all(state))
		state->pause = pause_min_ns;
	else
		state->pause = state->pause * 2 > pause_max_ns ? pause_max_ns : state->pause * 2;
	state->next_pass = ad_sys_now_ns() + state->pause;
}

static void send_signal(const struct state *state, int signo)
{
	if (state->exited)
		return;
	kill(-state->main, signo);
	/* Whoever is stopped would not notice that it is asked to end. */
	if (signo == SIGTERM || signo == SIGINT || signo == SIGHUP || signo == SIGQUIT)
		kill(-state->main, SIGCONT);
}

/* ---- orders and events */

static void take_orders(struct state *state)
{
	struct slot *slot = state->job->slot;
	uint64_t signals = atomic_exchange(&slot->signals_wanted, 0);
	uint32_t limit = atomic_exchange(&slot->limit_wanted, 0);

	for (int signo = 1; signals; signo++, signals >>= 1) {
		if (signals & 1)
			send_signal(state, signo);
	}
	if (limit && !state->exited)
		report_limit(state, (enum ad_msg_limit)(limit - 1), true);
	if (atomic_exchange(&slot->kill_wanted, 0))
		kill_begin(state);
}

static void helper_died(struct state *state)
{
	mute = true;
	kill_begin(state);
}

static void take_signals(struct state *state)
{
	struct signalfd_siginfo infos[16];
	bool died = false;
	ssize_t n;

	do {
		n = read(state->standby->signal_fd, infos, sizeof(infos));
		for (ssize_t i = 0; i < n / (ssize_t)sizeof(infos[0]); i++)
			died |= infos[i].ssi_signo == (uint32_t)SIGNAL_HELPER_DIED;
	} while (n == (ssize_t)sizeof(infos));
	take_orders(state);
	/* Anybody may send a signal. */
	if (died && !state->job->sandbox && getppid() != state->job->helper)
		helper_died(state);
}

/* A system call that nobody needs who means well: the caller is held until we kill it. */
static void take_notification(struct state *state)
{
	/* As large as any kernel's; the name needs the number only. */
	union {
		struct seccomp_notif notif;
		char space[1024];
	} seen = { .space = { 0 } };
	char name[64];

	/* The caller may have died meanwhile. */
	if (ioctl(state->standby->command.listener, SECCOMP_IOCTL_NOTIF_RECV, &seen.notif) < 0)
		return;
	seccomp_name(seen.notif.data.nr, name, sizeof(name));
	report_denied(state, AD_MSG_DENIED_SYSCALL, name);
	if (!state->exited)
		report_limit(state, AD_MSG_LIMIT_SYSCALL, true);
	kill_begin(state);
}

/* All there is: an order that came before a death is carried out before the death is
 * reported. */
static void wait_for_events(struct state *state)
{
	const struct supervise *job = state->job;
	struct command *command = &state->standby->command;
	struct pollfd fds[] = {
		{ .fd = state->standby->signal_fd, .events = POLLIN },
		{ .fd = job->sandbox && !mute ? job->helper_pidfd : -1, .events = POLLIN },
		{ .fd = command->listener, .events = POLLIN },
	};
	struct timespec timeout = { 0 };

	if (state->killing) {
		uint64_t now = ad_sys_now_ns();
		uint64_t left = state->next_pass > now ? state->next_pass - now : 0;

		timeout.tv_sec = (time_t)(left / (1000 * AD_NS_PER_MS));
		timeout.tv_nsec = (long)(left % (1000 * AD_NS_PER_MS));
	}
	if (ppoll(fds, AD_COUNT(fds), state->killing ? &timeout : NULL, NULL) <= 0)
		return;
	if (fds[0].revents)
		take_signals(state);
	if (fds[1].revents)
		helper_died(state);
	if (fds[2].revents & POLLIN) {
		take_notification(state);
	} else if (fds[2].revents) {
		/* Nobody is left who could call. To close it takes longer than to end with it. */
		command->listener = -1;
	}
}

/* ---- life */

static void prepare_now(struct supervise *job, struct standby *standby)
{
	uint32_t stage;

	if (!adopt(job))
		fail(job, AD_STAGE_SUPERVISOR, errno, "");
	/* The helper died before it could have told us. */
	if (!job->sandbox && getppid() != job->helper)
		_exit(SUPERVISOR_DONE);
	stage = prepare(job, standby);
	if (stage != AD_STAGE_COUNT)
		fail(job, stage, errno, "");
	job->standby = standby;
}

void supervise(struct supervise *job)
{
	struct standby own;
	struct state state = { .job = job };

	if (!job->standby)
		prepare_now(job, &own);
	state.standby = job->standby;
	state.counted = job->counted;
	start(&state);
	/* Who waits for a command is in the helper's session, by which it is known. */
	setsid();
	/* There may be none yet, but the page they come by is at hand from here on. */
	take_orders(&state);
	for (;;) {
		wait_for_events(&state);
		reap(&state);
		if (!state.killing)
			continue;
		if (ad_sys_now_ns() >= state.give_up)
			finish(&state, false, true);
		if (ad_sys_now_ns() >= state.next_pass)
			kill_pass(&state);
	}
}
