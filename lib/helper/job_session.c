/* SPDX-License-Identifier: MIT */
/* Sessions as the helper has them: the supervisor in each that waits for a command (session.c), and
 * the end of those that have one, none of which is a child of the helper. */
#include "helper/job.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/sys.h"

bool sessions_init(void)
{
	int hello[2];

	if (ad_sys_pair(hello) < 0 || ad_sys_pass_creds(hello[0]) < 0)
		return false;
	helper.hello_fd = hello[0];
	helper.shared.sessions = hello[1];
	helper.ended_fd = epoll_create1(EPOLL_CLOEXEC);
	return helper.ended_fd >= 0;
}

void sessions_close_ours(void)
{
	close(helper.hello_fd);
	close(helper.ended_fd);
	for (const struct job *job = NULL; (job = job_next(job));) {
		if (job->session)
			close(job->session->sock);
	}
}

bool session_make(struct job *job, const struct enforcement *enforcement, int *ret_end)
{
	int pair[2], r = ad_sys_pair(pair);

	if (r < 0) {
		errno = -r;
		return false;
	}
	job->session = calloc(1, sizeof(*job->session));
	if (!job->session) {
		close(pair[0]);
		close(pair[1]);
		return false;
	}
	job->session->sock = pair[0];
	job->session->pidfd = job->session->network = -1;
	job->session->enforcement = *enforcement;
	*ret_end = pair[1];
	return true;
}

void session_forget(struct job *job)
{
	if (!job->session)
		return;
	for (struct job *other = NULL; (other = job_next(other));) {
		if (other->in == job)
			other->in = NULL;
	}
	close(job->session->sock);
	if (job->session->pidfd >= 0)
		close(job->session->pidfd);
	if (job->session->network >= 0)
		close(job->session->network);
	free(job->session);
}

/* What is left of it would run on without anybody to watch over it. */
static void session_break(struct job *job)
{
	if (job->killing)
		return;
	job->lost = true;
	job_kill(job);
}

bool session_is_open(const struct job *session)
{
	return session && session->session && session->session->told && !session->killing &&
	       !session->lost;
}

/* The supervisor that waits in a session gets a command: its pid or a negative errno. */
static pid_t ask_session(struct session *session, const struct request *request,
			 const struct ad_sys_msg *from)
{
	pid_t pid = session->supervisor;
	int r = request_send(session->sock, request, from, from->fds, from->fd_count);

	if (r < 0)
		return r;
	session->supervisor = 0;
	return pid;
}

void session_start(struct job *job, const struct ad_msg_spawn *spawn, const struct ad_sys_msg *from,
		   bool memory_file)
{
	const struct ad_msg_receipt *of_session = &job->in->session->enforcement.receipt;
	struct request request = {
		.slot = job_slot_number(job),
		.spawn_fd = memory_file,
		.credentials = (spawn->flags & AD_SPAWN_CREDENTIALS) != 0,
		.enforcement = { .receipt = *of_session },
	};
	pid_t pid;

	if (!plan_limits(job, spawn, false, &request.enforcement))
		return;
	pid = ask_session(job->in->session, &request, from);
	if (pid > 0) {
		struct epoll_event event = { .events = EPOLLIN, .data.u32 = job->id };

		job->pidfd = ad_steal_fd(&job->in->session->pidfd);
		job_started(job, pid);
		/* Nobody would hear of its end. */
		if (epoll_ctl(helper.ended_fd, EPOLL_CTL_ADD, job->pidfd, &event) < 0)
			session_break(job->in);
		return;
	}
	/* Nobody has its end of the socket any more. */
	if (pid == -EPIPE || pid == -ECONNRESET)
		report_failed(job->id, AD_STAGE_REQUEST, ESRCH, "");
	else
		report_failed(job->id, AD_STAGE_SUPERVISOR, -pid, "");
	job_free(job, true);
}

void session_hurry(const struct job *session)
{
	atomic_store(&session->slot->command_waits, 1);
	job_ring(session);
}

/* Whoever waited longest. */
static struct job *first_waiting_in(const struct job *session)
{
	for (struct job *job = NULL; (job = job_next(job));) {
		if (job->waiting && job->in == session)
			return job;
	}
	return NULL;
}

static void resume_in(const struct job *session)
{
	struct job *job = first_waiting_in(session);

	if (job)
		start_waiting(job);
	if (job && first_waiting_in(session))
		session_hurry(session);
}

static void session_started(struct job *job)
{
	struct ad_msg msg = { .type = AD_MSG_STARTED, .job = job->id };

	job->session->told = true;
	msg.u.started.pid = job->pid;
	msg.u.started.receipt = job->session->enforcement.receipt;
	msg.u.started.flags = job->session->network >= 0 ? AD_STARTED_NETWORK : 0;
	report_with(&msg, ad_steal_fd(&job->session->network));
}

static struct job *session_by_slot(uint32_t slot)
{
	for (struct job *job = NULL; (job = job_next(job));) {
		if (job->session && job_slot_number(job) == slot)
			return job;
	}
	return NULL;
}

static void on_hello(struct job *job, struct ad_sys_msg *in)
{
	struct session *session = job->session;

	session->pidfd = ad_sys_pidfd(in->pid);
	if (session->pidfd < 0 || in->fds_lost) {
		session_break(job);
		return;
	}
	session->supervisor = in->pid;
	if (in->fd_count > 0 && !session->told)
		session->network = ad_steal_fd(&in->fds[0]);
	if (!session->told)
		session_started(job);
	resume_in(job);
}

void sessions_read_hello(void)
{
	struct session_hello hello;
	struct ad_sys_msg in = { .data = &hello, .cap = sizeof(hello) };
	struct job *job;

	while (ad_sys_recv(helper.hello_fd, &in, MSG_DONTWAIT) > 0) {
		job = in.len == sizeof(hello) && in.has_creds ? session_by_slot(hello.slot) : NULL;
		if (job && !job->killing)
			on_hello(job, &in);
		ad_sys_msg_close(&in);
	}
}

/* All there is to report was reported. */
static bool is_over(const struct job *job)
{
	return atomic_load(&job->slot->over);
}

/* The supervisor of a command in a session has ended. */
static void supervisor_ended(struct job *job)
{
	if (is_over(job)) {
		job_free(job, false);
		return;
	}
	/* Its tree is pid 1's of the session now, one among others; with that it fails. */
	epoll_ctl(helper.ended_fd, EPOLL_CTL_DEL, job->pidfd, NULL);
	ad_list_remove(&job->by_pid);
	job->pid = 0;
	session_break(job->in);
}

void sessions_read_ended(void)
{
	struct epoll_event events[16];
	int count = epoll_wait(helper.ended_fd, events, AD_COUNT(events), 0);

	for (int i = 0; i < count; i++) {
		struct job *job = job_by_id(events[i].data.u32);

		if (job && job->in)
			supervisor_ended(job);
	}
}

/* The kernel resets a socket whose other end is closed for good with something unread in it. */
static bool was_reset(int sock)
{
	int error = 0;
	socklen_t len = sizeof(error);

	return getsockopt(sock, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error == ECONNRESET;
}

void session_over(struct job *job, int status)
{
	struct ad_msg msg = { .type = AD_MSG_CLOSED, .job = job->id };
	bool over = WIFEXITED(status) && WEXITSTATUS(status) == SUPERVISOR_SESSION_OVER;
	/* There is one request at a time, and all of its processes are dead. */
	bool unread = was_reset(job->session->sock);

	for (struct job *other = job_next(NULL), *next; other; other = next) {
		next = job_next(other);
		if (other->in != job)
			continue;
		if (other->waiting || (unread && !is_over(other)))
			report_failed(other->id, AD_STAGE_REQUEST, ESRCH, "");
		else if (!is_over(other))
			report_failed(other->id, AD_STAGE_LOST, 0, "");
		job_free(other, other->waiting);
	}
	if (!job->session->told)
		report_failed(job->id, job->killing ? AD_STAGE_REQUEST : AD_STAGE_LOST,
			      job->killing ? ECANCELED : 0, "");
	else if (!job->lost && (over || job->killing))
		report(&msg);
	else
		report_failed(job->id, AD_STAGE_LOST, 0, "the session's processes were killed");
	job_free(job, false);
}
