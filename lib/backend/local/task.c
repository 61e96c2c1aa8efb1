/* SPDX-License-Identifier: MIT */
#include "backend/local/local.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <agentd/exec.h>
#include <agentd/log.h>
#include <agentd/policy.h>
#include <agentd/result.h>

#include "loop/loop.h"
#include "policy/policy.h"
#include "proto/helper_msg.h"
#include "sys/sys.h"

struct local_task {
	const struct ad_local_kind *kind;
	agentd_task *task;
	const agentd_spec *spec; /* lives as long as its task */
	struct ad_loop *loop;
	struct ad_job *job;
	struct agentd_limits limits;
	bool stdin_open, started, close_stdin, told_again;
	int stdin_fd; /* or -1 */
	struct ad_io writable;
	int network;       /* of the session, until the command starts; or -1 */
	int network_error; /* 0, or why there is none */
};

/* ---- stdin: written straight into the pipe */

static void stdin_close(struct local_task *self)
{
	self->stdin_open = false;
	if (self->stdin_fd < 0)
		return;
	ad_io_stop(&self->writable);
	close(ad_steal_fd(&self->stdin_fd));
}

static void on_writable(struct ad_io *io, void *userdata)
{
	struct local_task *self = userdata;

	ad_io_stop(io);
	agentd_task_stdin_drained(self->task);
}

int32_t ad_local_task_write(void *state, const uint8_t *data, size_t len, size_t *ret_taken)
{
	struct local_task *self = state;
	ssize_t n;

	if (!self->stdin_open || self->close_stdin)
		return AGENTD_ERR_STATE;
	if (!self->started) {
		self->told_again = true;
		return AGENTD_ERR_AGAIN;
	}
	do {
		n = ad_sys_write_nosignal(self->stdin_fd, data, len);
	} while (n == -EINTR);
	if (n >= 0) {
		*ret_taken = (size_t)n;
		return 0;
	}
	if (n != -EAGAIN) {
		stdin_close(self);
		return AGENTD_ERR_STATE;
	}
	return ad_io_start(&self->writable) < 0 ? AGENTD_ERR_NOMEM : AGENTD_ERR_AGAIN;
}

int32_t ad_local_task_close_stdin(void *state)
{
	struct local_task *self = state;

	self->close_stdin = true;
	if (self->started)
		stdin_close(self);
	return 0;
}

/* ---- what the job reports */

static void job_network(struct ad_job *job, int fd, void *userdata)
{
	struct local_task *self = userdata;

	(void)job;
	self->network_error = agentd_task_attach_net(self->task, fd);
}

static void job_started(struct ad_job *job, int32_t pid, int stdin_fd, int stdout_fd, int stderr_fd,
			const struct ad_launch_receipt *receipt, void *userdata)
{
	struct local_task *self = userdata;
	int r;

	self->started = true;
	self->stdin_fd = stdin_fd;
	if (stdin_fd >= 0)
		ad_io_init(&self->writable, self->loop, stdin_fd, AD_IO_WRITE, on_writable, self);
	if (self->close_stdin)
		stdin_close(self);
	r = agentd_task_attach_fd(self->task, AGENTD_STDOUT, stdout_fd);
	if (stderr_fd >= 0) {
		int second = agentd_task_attach_fd(self->task, AGENTD_STDERR, stderr_fd);

		r = r < 0 ? r : second;
	}
	/* Not before: what is left of earlier commands may be waiting there. */
	if (self->network >= 0)
		job_network(job, ad_steal_fd(&self->network), self);
	ad_local_report(self->task, &self->limits, receipt);
	self->kind->report(self->task, self->spec, &self->limits, receipt);
	agentd_task_started(self->task, pid);
	if (r < 0 || self->network_error < 0) {
		/* Freeing the task kills the job. */
		agentd_task_failed(self->task,
				   agentd_error_create(r < 0 ? r : self->network_error, 0,
						       r < 0 ? "the output of the command cannot "
							       "be read" :
							       "the network of the command cannot "
							       "be served"));
		return;
	}
	if (self->told_again)
		agentd_task_stdin_drained(self->task);
}

/* The helper says so of a request that nobody has taken, and will. */
static bool session_is_gone(const struct local_task *self, const struct ad_launch_failure *failure)
{
	return agentd_spec_session(self->spec) && failure->stage == AD_STAGE_REQUEST &&
	       failure->os_errno == ESRCH;
}

static void job_failed(struct ad_job *job, agentd_error *err,
		       const struct ad_launch_failure *failure, void *userdata)
{
	struct local_task *self = userdata;

	(void)job;
	stdin_close(self);
	if (failure && session_is_gone(self, failure)) {
		agentd_error_unref(err);
		err = agentd_error_create(AGENTD_ERR_BACKEND, ESRCH,
					  "the session ended before the command began");
	} else if (failure && self->kind->explain) {
		err = self->kind->explain(self->spec, failure, err);
	}
	agentd_task_failed(self->task, err);
}

static void job_denied(struct ad_job *job, const char *kind, const char *target, void *userdata)
{
	struct local_task *self = userdata;

	(void)job;
	if (self->kind->denied)
		self->kind->denied(self->task, kind, target);
}

static void job_limit_hit(struct ad_job *job, const char *limit, bool fatal, void *userdata)
{
	struct local_task *self = userdata;

	(void)job;
	agentd_task_limit_hit(self->task, limit, fatal);
}

static void job_exited(struct ad_job *job, int wait_status, uint64_t at_ns, void *userdata)
{
	struct local_task *self = userdata;

	(void)job;
	stdin_close(self);
	agentd_task_exited(self->task, wait_status, at_ns);
}

static void job_closed(struct ad_job *job, const struct ad_launch_usage *usage, void *userdata)
{
	struct local_task *self = userdata;

	(void)job;
	stdin_close(self);
	agentd_task_metric(self->task, AGENTD_METRIC_CPU_NS, usage->cpu_ns);
	agentd_task_metric(self->task, AGENTD_METRIC_MEMORY_PEAK_BYTES, usage->memory_peak_bytes);
	if (usage->survivors > 0) {
		ad_autobuf struct ad_buf text = { 0 };

		ad_buf_printf(&text,
			      "%u processes of the command could not be killed (another user's, or "
			      "stuck in the kernel)",
			      usage->survivors);
		if (!text.failed) {
			agentd_task_log(self->task, AGENTD_LOG_WARN, text.data);
			agentd_task_protection(self->task, "tree-kill", AGENTD_LAYER_ABSENT,
					       text.data);
		}
	}
	agentd_task_closed(self->task);
}

static const struct ad_job_events job_events = {
	.network = job_network,
	.started = job_started,
	.failed = job_failed,
	.denied = job_denied,
	.limit_hit = job_limit_hit,
	.exited = job_exited,
	.closed = job_closed,
};

/* ---- starting */

static const char *const limit_names[] = { "mem_bytes", "pids_max", "cpu_time_ms", "io_bytes" };

void ad_local_fill_limits(const agentd_spec *spec, struct ad_launch_request *ret)
{
	ret->cgroup_required = agentd_spec_protection(spec, "cgroup") == AGENTD_PROTECTION_REQUIRED;
	ret->limits.size = sizeof(ret->limits);
	agentd_spec_limits(spec, &ret->limits);
	for (size_t i = 0; i < AD_COUNT(limit_names); i++) {
		if (agentd_spec_limit_requested(spec, limit_names[i]) == 1)
			ret->limits_requested |= UINT32_C(1) << ad_limit_index(limit_names[i]);
	}
}

static void fill_request(const agentd_spec *spec, struct ad_launch_request *ret)
{
	uint32_t flags = agentd_spec_flags(spec);

	*ret = (struct ad_launch_request){
		.argv = agentd_spec_argv(spec),
		.workdir = agentd_spec_workdir(spec),
		.stdin_open = flags & AGENTD_EXEC_STDIN_OPEN,
		.merge_stderr = flags & AGENTD_EXEC_MERGE_STDERR,
		.session_credentials_fd = agentd_spec_credentials_fd(spec),
	};
	ad_local_fill_limits(spec, ret);
}

static int keep_network(struct local_task *state, int fd, agentd_error **reterr)
{
	state->network = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	return state->network < 0 ? ad_fail_errno(reterr, errno, "the network of the session") : 0;
}

int32_t ad_local_task_start(struct ad_local *local, agentd_task *task, const agentd_spec *spec,
			    const struct ad_launch_sandbox *sandbox,
			    const struct ad_local_session *session, const char *const *extra,
			    void **ret_state, agentd_error **reterr)
{
	struct ad_launch_request request;
	struct local_task *state = calloc(1, sizeof(*state));
	ad_autofree const char **env = NULL;
	int r;

	if (!state)
		return ad_fail_nomem(reterr);
	fill_request(spec, &request);
	env = ad_local_environment_merge(&local->environment, extra, agentd_spec_env(spec));
	request.env = env;
	request.sandbox = sandbox;
	request.session = session ? session->job : NULL;
	state->kind = local->kind;
	state->task = task;
	state->spec = spec;
	state->loop = ad_launcher_loop(local->launcher);
	state->stdin_fd = state->network = -1;
	state->limits = request.limits;
	state->stdin_open = request.stdin_open;
	r = env ? 0 : ad_fail_nomem(reterr);
	if (r == 0 && session && session->network >= 0)
		r = keep_network(state, session->network, reterr);
	if (r == 0)
		r = ad_job_start(local->launcher, &request, &job_events, state, &state->job,
				 reterr);
	if (r < 0)
		ad_local_task_free(state);
	else
		*ret_state = state;
	return r;
}

int32_t ad_local_task_kill(void *state)
{
	const struct local_task *self = state;

	return ad_job_kill(self->job);
}

int32_t ad_local_task_signal(void *state, int32_t signo)
{
	const struct local_task *self = state;

	return ad_job_signal(self->job, signo);
}

void ad_local_task_free(void *state)
{
	struct local_task *self = state;

	stdin_close(self);
	if (self->network >= 0)
		close(self->network);
	ad_job_free(self->job);
	free(self);
}

/* ---- the backend */

static void probe_over(struct ad_launcher *launcher, const agentd_error *err, void *userdata)
{
	struct ad_local *local = userdata;
	agentd_backend_report *report = AD_STEAL(local->report);

	/* Lost later: each command that suffers says so. */
	if (!report)
		return;
	if (!err) {
		ad_local_report_best(report, ad_launcher_best(launcher));
		local->kind->report_best(report, ad_launcher_best(launcher));
	}
	agentd_backend_report_done(report, agentd_error_ref((agentd_error *)(uintptr_t)err));
}

int ad_local_init(struct ad_local *local, const struct ad_local_kind *kind,
		  struct ad_launcher *launcher, const struct ad_local_default *defaults,
		  size_t count)
{
	*local = (struct ad_local){ .kind = kind, .launcher = launcher };
	return ad_local_environment_init(&local->environment, defaults, count);
}

int32_t ad_local_probe_start(void *self, agentd_backend_report *report)
{
	struct ad_local *local = self;

	local->report = report;
	ad_launcher_watch(local->launcher, &local->watch, probe_over, local);
	return 0;
}

void ad_local_clear(struct ad_local *local)
{
	ad_launcher_unwatch(&local->watch);
	ad_local_environment_free(&local->environment);
}
