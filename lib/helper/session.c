/* SPDX-License-Identifier: MIT */
/* Pid 1 of a session, and the supervisors of the commands in it.
 *
 * A supervisor waits for the next command before that is asked for, and so does the
 * command's own process. It reports and takes orders like any other, but it is
 * not pid 1, whose child it is: what its command leaves in the background becomes pid 1's
 * child too when it ends, and lives on. (It cannot be the helper's child, as a reaper is:
 * pid 1 may not clone with CLONE_PARENT.) */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "helper/mount.h"

static const uint64_t give_up_ns = 5000 * AD_NS_PER_MS; /* as a supervisor */
static const struct timespec kill_pause = { .tv_nsec = 1000000 };

struct session {
	const struct supervise *job; /* the session's own */
	uint32_t slot;
	const struct helper_shared *shared;
	int sock;     /* requests */
	int taken[2]; /* a byte from each supervisor whose command has started */
	int signal_fd;
	pid_t waiting;          /* the supervisor that has no command yet; 0: there is none */
	uint64_t taken_at, due; /* when the last one got one, and when the next is to be made */
	int network;            /* listening socket that the first of them hands over, or -1 */
	bool stopping;
};

/* ---- supervisors */

/* What hides a path, or shows it read-only, in a writable directory: the kernel takes it away as
 * soon as the host removes that path's name. */
struct cover {
	const char *path;
	uint64_t mount; /* its id; 0: nothing is there to be hidden */
};
static struct {
	struct cover *all;
	size_t count;
} covers;

static void note_cover(const struct sandbox *sandbox, const char *path, bool hidden)
{
	/* What hides it may be gone already, while the session was made. */
	uint64_t mount = hidden && !mount_is_root(path) ? UINT64_MAX : mount_id(AT_FDCWD, path);

	if (protect_reaches(sandbox, path))
		covers.all[covers.count++] = (struct cover){ .path = path, .mount = mount };
}

static bool note_covers(const struct sandbox *sandbox)
{
	const struct ad_profile *profile = &sandbox->spec->profile;

	covers.all = calloc(sandbox->hidden_count + profile->path_count + 1, sizeof(*covers.all));
	if (!covers.all)
		return false;
	for (size_t i = 0; i < sandbox->hidden_count; i++)
		note_cover(sandbox, sandbox->hidden[i], true);
	for (size_t i = 0; i < profile->path_count; i++) {
		if (!(profile->paths[i].access & AD_ACCESS_WRITE))
			note_cover(sandbox, profile->paths[i].target, false);
	}
	return true;
}

static bool is_covered(void)
{
	for (size_t i = 0; i < covers.count; i++) {
		if (mount_id(AT_FDCWD, covers.all[i].path) != covers.all[i].mount)
			return false;
	}
	return true;
}

/* The leaf is the whole session's: only counted, and from now on. */
static int begin(struct supervise *job, const struct request_content *content)
{
	if (job->leaf)
		cgroup_count(job->leaf, job->standby ? &job->standby->gauges : NULL, &job->counted);
	return protect_kept(job->protection) && is_covered() ? reaper_put_token(content->token) :
							       SUPERVISE_ASK;
}

static void protect_again(struct supervise *job, int token)
{
	int r;

	/* Nothing here can be hidden again: that takes another session. */
	if (!is_covered() || !protect_renew(job->protection))
		supervise_failed(job, AD_STAGE_REQUEST, 0, ESRCH, "");
	r = reaper_put_token(token);
	if (r < 0)
		supervise_failed(job, AD_STAGE_VIEW, 0, -r, SANDBOX_TOKEN);
}

static _Noreturn void wait_for_request(const struct session *session)
{
	const struct session_hello hello = { .slot = session->slot };
	struct leaf leaf = { 0 };
	struct protection protection = *session->job->protection;
	struct standby standby;
	struct supervise job = {
		.leaf = session->job->leaf ? &leaf : NULL,
		.entry = session->job->entry,
		.sandbox = session->job->sandbox,
		.in_session = true,
		.protection = &protection,
		.helper_pidfd = session->job->helper_pidfd,
		.landlock = session->job->landlock,
		.network = -1,
		.taken = session->taken[1],
		.begin = begin,
		.begin_with_rights = protect_again,
	};

	if (job.leaf)
		leaf = *session->job->leaf;
	leaf.means[CG_KILL] = AD_MSG_MEANS_NONE;
	close(session->signal_fd);
	close(session->taken[0]);
	/* What is missing then is told when it is needed. */
	(void)supervise_stand_by(&job, &standby, session->sock, session->shared);
	if (ad_sys_send(session->shared->sessions, &hello, sizeof(hello), &session->network,
			session->network >= 0, 0) < 0)
		_exit(SUPERVISOR_LOST);
	if (session->network >= 0)
		close(session->network);
	if (!supervise_await(&job, session->sock, session->shared))
		_exit(SUPERVISOR_LOST);
	close(session->sock);
	supervise(&job);
}

/* Without one, for want of memory or processes, nothing can be run any more: the session
 * ends, and is started anew. */
static bool add_supervisor(struct session *session)
{
	/* The C library's fork is not missed: we have no threads. */
	session->waiting = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	if (session->waiting == 0)
		wait_for_request(session);
	return session->waiting > 0;
}

/* ---- pid 1 */

/* The supervisor that waited has a command now. */
static void hear_of_taken(struct session *session)
{
	char byte;

	if (read(session->taken[0], &byte, 1) != 1)
		return;
	session->waiting = 0;
	session->due = warm_due(&session->taken_at);
}

/* There is to be another one: in how many milliseconds? -1: there is, or it is too late. */
static int keep_one(struct session *session)
{
	uint64_t now = ad_sys_now_ns();

	if (session->waiting > 0 || session->stopping)
		return -1;
	if (session->due > now && !atomic_load(&session->job->slot->command_waits))
		return (int)((session->due - now + AD_NS_PER_MS - 1) / AD_NS_PER_MS);
	atomic_store(&session->job->slot->command_waits, 0);
	if (!add_supervisor(session))
		_exit(SUPERVISOR_LOST);
	return -1;
}

/* Supervisors and orphans. False: none is left. */
static bool reap(struct session *session)
{
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG | __WALL)) > 0 || (pid < 0 && errno == EINTR)) {
		if (pid < 0 || pid != session->waiting)
			continue;
		hear_of_taken(session);
		/* A command has killed it. */
		if (pid == session->waiting && !session->stopping)
			_exit(SUPERVISOR_LOST);
	}
	return pid == 0;
}

static void tell_moved(const char *path, bool moved, void *userdata)
{
	const struct session *session = userdata;
	struct ad_msg msg = { .type = AD_MSG_DENIED, .job = session->job->spawn->job };
	uint8_t buf[AD_MSG_FIXED_MAX];

	msg.u.denied.kind = moved ? AD_MSG_DENIED_PATH : AD_MSG_DENIED_LEFT;
	snprintf(msg.u.denied.target, sizeof(msg.u.denied.target), "%s", path);
	ad_sys_send(HELPER_SOCKET, buf, ad_msg_encode(&msg, buf), NULL, 0, 0);
}

static _Noreturn void end(struct session *session)
{
	uint64_t give_up = ad_sys_now_ns() + give_up_ns;

	atomic_store(&session->job->slot->kill_seen, 1);
	while (kill(-1, SIGKILL) == 0 && ad_sys_now_ns() < give_up) {
		nanosleep(&kill_pause, NULL);
		while (waitpid(-1, NULL, WNOHANG | __WALL) > 0)
			;
	}
	protect_end(session->job->protection, tell_moved, session);
	_exit(SUPERVISOR_SESSION_OVER);
}

/* Whoever is left is asked. */
static void stop(struct session *session)
{
	session->stopping = true;
	if (session->waiting > 0)
		kill(session->waiting, SIGKILL);
	kill(-1, SIGTERM);
	kill(-1, SIGCONT);
}

static void take_signals(struct session *session)
{
	struct slot *slot = session->job->slot;
	struct signalfd_siginfo infos[16];

	while (read(session->signal_fd, infos, sizeof(infos)) > 0)
		;
	if (atomic_exchange(&slot->kill_wanted, 0))
		end(session);
	if (atomic_exchange(&slot->signals_wanted, 0) & (UINT64_C(1) << (SIGTERM - 1)))
		stop(session);
	if (!reap(session) && session->stopping)
		end(session);
}

static _Noreturn void live(struct session *session)
{
	for (;;) {
		struct pollfd fds[] = {
			{ .fd = session->signal_fd, .events = POLLIN },
			{ .fd = session->job->helper_pidfd, .events = POLLIN },
			{ .fd = session->taken[0], .events = POLLIN },
		};

		if (poll(fds, AD_COUNT(fds), keep_one(session)) < 0)
			continue;
		if (fds[1].revents)
			end(session);
		if (fds[0].revents)
			take_signals(session);
		if (fds[2].revents & POLLIN)
			hear_of_taken(session);
	}
}

void session_run(const struct supervise *job, uint32_t slot, const struct helper_shared *shared,
		 int sock)
{
	struct session session = {
		.job = job, .slot = slot, .shared = shared, .sock = sock, .network = job->network
	};
	sigset_t signals;

	/* All are blocked since the helper started. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGNAL_ORDER);
	session.signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (!note_covers(job->sandbox) || !protect_share(job->protection) ||
	    session.signal_fd < 0 || pipe2(session.taken, O_CLOEXEC | O_NONBLOCK) < 0 ||
	    !add_supervisor(&session))
		supervise_failed(job, AD_STAGE_SUPERVISOR, 0, errno, "");
	if (session.network >= 0)
		close(ad_steal_fd(&session.network));
	live(&session);
}
