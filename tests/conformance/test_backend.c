/* SPDX-License-Identifier: MIT */
/* A small backend written with agentd/backend.h alone: fork, exec, and a pidfd in
 * the runner's own base. "test-attach" hands its pipes to the library,
 * "test-deliver" reads them itself. It is for tests: what a command makes is its
 * process group, and the commands are children of the host program. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <event2/event.h>

#include "conformance.h"

struct test_gone test_gone;
unsigned int test_stuck;

enum { POLL_MS = 10 };

struct backend {
	struct event_base *base;
	bool deliver;
	struct event *probe;
	agentd_backend_report *report;
};

struct stream {
	struct job *job;
	agentd_stream number;
	int fd;
	struct event *event;
	bool paused;
};

enum { GROUPS_MAX = 64 };

/* What commands of a session left behind lives until it stops. */
struct session {
	struct backend *backend;
	agentd_task *task;
	pid_t groups[GROUPS_MAX];
	size_t count;
	struct event *on_change;
	bool stopping;
};

struct job {
	struct backend *backend;
	struct session *session; /* or NULL */
	agentd_task *task;
	pid_t pid; /* and process group */
	int pidfd, stdin_fd;
	struct stream out[2];
	struct event *on_begin, *on_exit, *on_stdin, *on_group;
	bool exited, killed, closed;
};

/* ---- events */

static void drop_event(struct event **event)
{
	if (*event)
		event_free(*event);
	*event = NULL;
}

static void drop_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static int add_event(struct event **ret, struct event_base *base, int fd, short what,
		     event_callback_fn fn, void *userdata)
{
	*ret = event_new(base, fd, what, fn, userdata);
	return *ret && event_add(*ret, NULL) == 0 ? 0 : AGENTD_ERR_NOMEM;
}

static int add_timer(struct event **ret, struct event_base *base, long ms, bool again,
		     event_callback_fn fn, void *userdata)
{
	struct timeval tv = { .tv_sec = 0, .tv_usec = ms * 1000 };

	*ret = event_new(base, -1, again ? EV_PERSIST : 0, fn, userdata);
	return *ret && event_add(*ret, &tv) == 0 ? 0 : AGENTD_ERR_NOMEM;
}

/* ---- the life of a job */

/* kill(2) finds zombies too, for as long as whoever inherited them lets them lie. */
static bool group_alive(const struct job *job)
{
	struct dirent *entry;
	bool alive = false;
	DIR *proc;

	if (kill(-job->pid, 0) < 0)
		return false;
	proc = opendir("/proc");
	while (proc && !alive && (entry = readdir(proc))) {
		char path[32], text[512];
		const char *tail;
		int fd, pgid;
		ssize_t n;

		if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%.10s/stat", entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
		if (fd >= 0)
			close(fd);
		text[n > 0 ? n : 0] = '\0';
		/* "PID (name) STATE PPID PGID", and the name may hold anything */
		tail = strrchr(text, ')');
		alive = tail && sscanf(tail, ") %*c %*d %d", &pgid) == 1 && pgid == job->pid &&
			tail[2] != 'Z' && tail[2] != 'X';
	}
	if (proc)
		closedir(proc);
	return alive;
}

static void stream_close(struct stream *stream)
{
	drop_event(&stream->event);
	drop_fd(&stream->fd);
}

static void stream_read(struct stream *stream)
{
	uint8_t buffer[65536];

	while (stream->fd >= 0 && !stream->paused) {
		ssize_t n = read(stream->fd, buffer, sizeof(buffer));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			stream_close(stream);
			return;
		}
		/* The answer may come with the call as well: both must do. */
		if (agentd_task_output(stream->job->task, stream->number, buffer, (size_t)n) ==
		    AGENTD_SINK_PAUSE)
			stream->paused = true;
		if (stream->paused && stream->event)
			event_del(stream->event);
		if (n < (ssize_t)sizeof(buffer))
			return;
	}
}

static bool stream_waits(const struct stream *stream)
{
	return stream->fd >= 0 && stream->paused && !stream->job->killed;
}

/* Over when the command was reaped, nothing of its group lives, and what the pipes
 * held was delivered. */
static void job_look(struct job *job)
{
	if (job->closed || !job->exited || group_alive(job))
		return;
	for (int i = 0; i < 2; i++)
		stream_read(&job->out[i]);
	if (stream_waits(&job->out[0]) || stream_waits(&job->out[1]))
		return;
	job->closed = true;
	for (int i = 0; i < 2; i++)
		stream_close(&job->out[i]);
	drop_event(&job->on_group);
	drop_event(&job->on_stdin);
	drop_fd(&job->stdin_fd);
	agentd_task_closed(job->task);
}

static void on_group(evutil_socket_t fd, short what, void *userdata)
{
	(void)fd;
	(void)what;
	job_look(userdata);
}

static void on_output(evutil_socket_t fd, short what, void *userdata)
{
	struct stream *stream = userdata;

	(void)fd;
	(void)what;
	stream_read(stream);
	job_look(stream->job);
}

static void on_stdin(evutil_socket_t fd, short what, void *userdata)
{
	struct job *job = userdata;

	(void)fd;
	(void)what;
	drop_event(&job->on_stdin);
	agentd_task_stdin_drained(job->task);
}

static void on_exit_event(evutil_socket_t fd, short what, void *userdata)
{
	struct job *job = userdata;
	struct rusage usage;
	struct timespec now;
	int status;

	(void)fd;
	(void)what;
	if (wait4(job->pid, &status, WNOHANG, &usage) != job->pid)
		return;
	clock_gettime(CLOCK_MONOTONIC, &now);
	drop_event(&job->on_exit);
	drop_fd(&job->pidfd);
	job->exited = true;
	agentd_task_metric(job->task, AGENTD_METRIC_CPU_NS,
			   (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000U +
				   (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) *
					   1000U);
	agentd_task_metric(job->task, AGENTD_METRIC_MEMORY_PEAK_BYTES,
			   (uint64_t)usage.ru_maxrss * 1024U);
	for (int i = 0; i < 2; i++)
		stream_read(&job->out[i]);
	agentd_task_exited(job->task, status,
			   (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec);
	if (add_timer(&job->on_group, job->backend->base, POLL_MS, true, on_group, job) < 0)
		kill(-job->pid, SIGKILL);
	job_look(job);
}

static void on_begin(evutil_socket_t fd, short what, void *userdata)
{
	struct job *job = userdata;

	(void)fd;
	(void)what;
	drop_event(&job->on_begin);
	agentd_task_started(job->task, job->pid);
}

/* ---- starting */

static void run_child(const agentd_spec *spec, int in, int out, int err, int report)
{
	static const char path[] = "PATH=/usr/local/bin:/usr/bin:/bin";
	const char *const *env = agentd_spec_env(spec);
	const char *workdir = agentd_spec_workdir(spec);
	bool merge = agentd_spec_flags(spec) & AGENTD_EXEC_MERGE_STDERR;
	sigset_t none;
	size_t n = 0;
	char **vars;
	int code;

	setpgid(0, 0);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int signo = 1; signo < 65; signo++)
		signal(signo, SIG_DFL);
	/* 0 to 2 are the pipes from here on; all else goes away with execve. */
	if (syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
		goto fail;
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(merge ? out : err, 2) < 0)
		goto fail;
	if (workdir && chdir(workdir) < 0)
		goto fail;
	while (env[n])
		n++;
	vars = calloc(n + 2, sizeof(*vars));
	if (!vars)
		goto fail;
	for (size_t i = 0; i < n; i++)
		vars[i] = (char *)(uintptr_t)env[i];
	environ = vars;
	if (!getenv("PATH"))
		vars[n] = (char *)(uintptr_t)path;
	execvp(agentd_spec_argv(spec)[0], (char *const *)(uintptr_t)agentd_spec_argv(spec));
fail:
	code = errno;
	(void)!write(report, &code, sizeof(code));
	_exit(127);
}

static int make_pipe(int fds[2])
{
	return pipe2(fds, O_CLOEXEC);
}

static int spawn(struct job *job, const agentd_spec *spec, agentd_error **reterr)
{
	int in[2] = { -1, -1 }, out[2] = { -1, -1 }, err[2] = { -1, -1 }, report[2] = { -1, -1 };
	int code = 0;
	ssize_t n;

	/* A socket for stdin: writing where nobody reads must not raise SIGPIPE. */
	if (agentd_spec_flags(spec) & AGENTD_EXEC_STDIN_OPEN) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in) < 0)
			code = errno;
	} else {
		in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
		if (in[0] < 0)
			code = errno;
	}
	if (code == 0 && (make_pipe(out) < 0 || make_pipe(err) < 0 || make_pipe(report) < 0))
		code = errno;
	if (code == 0) {
		job->pid = fork();
		if (job->pid == 0)
			run_child(spec, in[0], out[1], err[1], report[1]);
		if (job->pid < 0)
			code = errno;
	}
	drop_fd(&report[1]);
	drop_fd(&in[0]);
	drop_fd(&out[1]);
	drop_fd(&err[1]);
	if (code == 0) {
		setpgid(job->pid, job->pid);
		n = read(report[0], &code, sizeof(code)); /* ends with the execve */
		if (n == (ssize_t)sizeof(code))
			waitpid(job->pid, NULL, 0);
		else
			code = 0;
	}
	drop_fd(&report[0]);
	if (code == 0) {
		job->pidfd = (int)syscall(SYS_pidfd_open, job->pid, 0);
		if (job->pidfd < 0) {
			code = errno;
			kill(-job->pid, SIGKILL);
			waitpid(job->pid, NULL, 0);
		}
	}
	if (code != 0) {
		drop_fd(&in[1]);
		drop_fd(&out[0]);
		drop_fd(&err[0]);
		*reterr = agentd_error_create(AGENTD_ERR_SYSTEM, code, strerror(code));
		return AGENTD_ERR_SYSTEM;
	}
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);
	job->stdin_fd = in[1];
	job->out[0].fd = out[0];
	if (agentd_spec_flags(spec) & AGENTD_EXEC_MERGE_STDERR)
		drop_fd(&err[0]);
	job->out[1].fd = err[0];
	return 0;
}

static void job_free(void *state)
{
	struct job *job = state;

	drop_event(&job->on_begin);
	drop_event(&job->on_exit);
	drop_event(&job->on_stdin);
	drop_event(&job->on_group);
	stream_close(&job->out[0]);
	stream_close(&job->out[1]);
	drop_fd(&job->pidfd);
	drop_fd(&job->stdin_fd);
	free(job);
}

static int watch(struct job *job)
{
	struct backend *backend = job->backend;
	int r = add_event(&job->on_exit, backend->base, job->pidfd, EV_READ | EV_PERSIST,
			  on_exit_event, job);

	for (int i = 0; r == 0 && i < 2; i++) {
		struct stream *stream = &job->out[i];

		if (stream->fd < 0)
			continue;
		if (backend->deliver) {
			r = add_event(&stream->event, backend->base, stream->fd,
				      EV_READ | EV_PERSIST, on_output, stream);
		} else {
			r = agentd_task_attach_fd(job->task, stream->number, stream->fd);
			stream->fd = -1;
		}
	}
	if (r == 0 && backend->deliver)
		r = add_timer(&job->on_begin, backend->base, 0, false, on_begin, job);
	return r;
}

static agentd_error *gone(void)
{
	return agentd_error_create(test_gone.code, ESRCH, "the session is gone");
}

static void on_gone(evutil_socket_t fd, short what, void *userdata)
{
	struct job *job = userdata;

	(void)fd;
	(void)what;
	if (test_gone.started)
		agentd_task_started(job->task, 0);
	if (test_gone.code < 0)
		agentd_task_failed(job->task, gone());
	else
		agentd_task_closed(job->task);
}

static int find_gone(struct job *job, agentd_error **reterr)
{
	test_gone.times--;
	job->closed = true;
	if (test_gone.later)
		return add_timer(&job->on_begin, job->backend->base, 5, false, on_gone, job);
	*reterr = gone();
	return test_gone.code;
}

static int32_t task_start(void *self, agentd_task *task, const agentd_spec *spec, void **ret_state,
			  agentd_error **reterr)
{
	struct job *job = calloc(1, sizeof(*job));
	int r;

	if (!job)
		return AGENTD_ERR_NOMEM;
	*job = (struct job){ .backend = self,
			     .session = agentd_spec_session(spec),
			     .task = task,
			     .pidfd = -1,
			     .stdin_fd = -1 };
	job->out[0] = (struct stream){ .job = job, .number = AGENTD_STDOUT, .fd = -1 };
	job->out[1] = (struct stream){ .job = job, .number = AGENTD_STDERR, .fd = -1 };
	if (job->session && test_gone.times > 0) {
		r = find_gone(job, reterr);
		*ret_state = job;
		if (r < 0)
			job_free(job);
		return r;
	}
	r = spawn(job, spec, reterr);
	if (r == 0) {
		r = watch(job);
		if (r < 0) {
			kill(-job->pid, SIGKILL);
			waitpid(job->pid, NULL, 0);
		}
	}
	if (r < 0) {
		job_free(job);
		return r;
	}
	agentd_task_protection(task, "procgroup", AGENTD_LAYER_ENFORCED, "killpg(2)");
	*ret_state = job;
	if (!job->backend->deliver)
		agentd_task_started(task, job->pid);
	return 0;
}

/* ---- what the library asks of a job */

static int32_t task_kill(void *state)
{
	struct job *job = state;

	if (job->session && job->exited && !job->closed) {
		if (job->session->count < GROUPS_MAX)
			job->session->groups[job->session->count++] = job->pid;
		job->closed = true;
		drop_event(&job->on_group);
		agentd_task_closed(job->task);
		return 0;
	}

	job->killed = true;
	if (!job->closed)
		kill(-job->pid, SIGKILL);
	return 0;
}

static int32_t task_signal(void *state, int32_t signo)
{
	struct job *job = state;

	return kill(-job->pid, signo) == 0 ? 0 : AGENTD_ERR_STATE;
}

static int32_t task_write(void *state, const uint8_t *data, size_t len, size_t *ret_taken)
{
	struct job *job = state;
	ssize_t n;

	if (job->stdin_fd < 0)
		return AGENTD_ERR_STATE;
	n = send(job->stdin_fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n >= 0) {
		*ret_taken = (size_t)n;
		return 0;
	}
	if (errno != EAGAIN) {
		drop_fd(&job->stdin_fd);
		return AGENTD_ERR_STATE;
	}
	if (!job->on_stdin && add_event(&job->on_stdin, job->backend->base, job->stdin_fd, EV_WRITE,
					on_stdin, job) < 0)
		return AGENTD_ERR_NOMEM;
	return AGENTD_ERR_AGAIN;
}

static int32_t task_close_stdin(void *state)
{
	struct job *job = state;

	drop_event(&job->on_stdin);
	drop_fd(&job->stdin_fd);
	return 0;
}

static int32_t task_set_paused(void *state, agentd_stream number, int32_t paused)
{
	struct job *job = state;
	struct stream *stream = &job->out[number - AGENTD_STDOUT];

	stream->paused = paused != 0;
	if (!stream->event)
		return 0;
	if (paused)
		event_del(stream->event);
	else if (event_add(stream->event, NULL) < 0)
		return AGENTD_ERR_NOMEM;
	return 0;
}

/* ---- sessions */

static void on_change(evutil_socket_t fd, short what, void *userdata)
{
	struct session *session = userdata;

	(void)fd;
	(void)what;
	drop_event(&session->on_change);
	if (session->stopping) {
		agentd_task_log(session->task, AGENTD_LOG_DEBUG, "The session ends");
		agentd_task_closed(session->task);
	} else {
		agentd_task_started(session->task, 0);
	}
}

static int32_t session_start(void *self, agentd_task *task, const agentd_spec *spec,
			     void **ret_session, agentd_error **reterr)
{
	struct session *session = calloc(1, sizeof(*session));

	(void)reterr;
	if (!session || !agentd_spec_session_id(spec) || !agentd_spec_volume(spec)) {
		free(session);
		return AGENTD_ERR_INVALID;
	}
	session->backend = self;
	session->task = task;
	*ret_session = session;
	return add_timer(&session->on_change, session->backend->base, 5, false, on_change, session);
}

static int32_t session_stop(void *state, uint32_t grace_ms)
{
	struct session *session = state;

	(void)grace_ms;
	for (size_t i = 0; i < session->count; i++)
		kill(-session->groups[i], SIGKILL);
	session->count = 0;
	if (session->stopping)
		return 0;
	session->stopping = true;
	drop_event(&session->on_change);
	if (test_stuck > 0) {
		test_stuck--;
		return 0;
	}
	return add_timer(&session->on_change, session->backend->base, 5, false, on_change, session);
}

static void session_free(void *state)
{
	struct session *session = state;

	for (size_t i = 0; i < session->count; i++)
		kill(-session->groups[i], SIGKILL);
	drop_event(&session->on_change);
	free(session);
}

/* ---- the backend */

static int32_t backend_open(void *userdata, struct event_base *base, void **ret_self)
{
	struct backend *backend = calloc(1, sizeof(*backend));

	if (!backend)
		return AGENTD_ERR_NOMEM;
	backend->base = base;
	backend->deliver = userdata != NULL;
	*ret_self = backend;
	return 0;
}

static void backend_close(void *self)
{
	struct backend *backend = self;

	drop_event(&backend->probe);
	free(backend);
}

static void on_probe(evutil_socket_t fd, short what, void *userdata)
{
	struct backend *backend = userdata;

	(void)fd;
	(void)what;
	drop_event(&backend->probe);
	agentd_backend_report_done(backend->report, NULL);
}

static int32_t probe_start(void *self, agentd_backend_report *report)
{
	struct backend *backend = self;

	agentd_backend_report_layer(report, "procgroup", AGENTD_LAYER_ENFORCED, "killpg(2)");
	if (!backend->deliver) {
		agentd_backend_report_done(report, NULL);
		return 0;
	}
	backend->report = report;
	return add_timer(&backend->probe, backend->base, 20, false, on_probe, backend);
}

static const char *const attach_aliases[] = { "Test_Attached", NULL };

static const struct agentd_backend_ops attach_ops = {
	.size = sizeof(attach_ops),
	.abi = AGENTD_BACKEND_ABI,
	.name = "test-attach",
	.aliases = attach_aliases,
	.isolation = 0,
	.open = backend_open,
	.close = backend_close,
	.probe_start = probe_start,
	.task_start = task_start,
	.task_kill = task_kill,
	.task_free = job_free,
	.task_signal = task_signal,
	.task_write = task_write,
	.task_close_stdin = task_close_stdin,
	.session_start = session_start,
	.session_stop = session_stop,
	.session_free = session_free,
	.close_max_ms = 2000,
};

int test_backend_add_attach(agentd_runner *runner, agentd_error **reterr)
{
	return agentd_runner_add_backend(runner, &attach_ops, NULL, reterr);
}

int test_backend_add_deliver(agentd_runner *runner, agentd_error **reterr)
{
	struct agentd_backend_ops ops = attach_ops;

	ops.name = "test-deliver";
	ops.aliases = NULL;
	ops.task_set_paused = task_set_paused;
	return agentd_runner_add_backend(runner, &ops, &ops, reterr);
}

static int32_t write_nowhere(void *state, const uint8_t *data, size_t len, size_t *ret_taken)
{
	(void)state;
	(void)data;
	*ret_taken = len;
	return 0;
}

int test_backend_add_liar(agentd_runner *runner, agentd_error **reterr)
{
	struct agentd_backend_ops ops = attach_ops;

	ops.name = "test-liar";
	ops.aliases = NULL;
	ops.task_write = write_nowhere;
	return agentd_runner_add_backend(runner, &ops, NULL, reterr);
}
