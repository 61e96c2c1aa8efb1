/* SPDX-License-Identifier: MIT */
#include "backend/host/host.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <agentd/exec.h>
#include <agentd/log.h>
#include <agentd/policy.h>
#include <agentd/result.h>

#include "backend/host/private.h"
#include "launch/launch.h"
#include "loop/loop.h"
#include "policy/policy.h"
#include "sys/sys.h"
#include "util/util.h"

struct host {
	struct ad_launcher *launcher;
	struct ad_launcher_watch watch;
	agentd_backend_report *report; /* until the probe is over */
	struct host_environment environment;
};

struct host_task {
	agentd_task *task;
	struct ad_loop *loop;
	struct ad_job *job; /* NULL: refused */
	struct agentd_limits limits;
	bool stdin_open, started, close_stdin, told_again;
	int stdin_fd; /* or -1 */
	struct ad_io writable;
};

/* ---- stdin: written straight into the pipe */

static void stdin_close(struct host_task *self)
{
	self->stdin_open = false;
	if (self->stdin_fd < 0)
		return;
	ad_io_stop(&self->writable);
	close(ad_steal_fd(&self->stdin_fd));
}

static void on_writable(struct ad_io *io, void *userdata)
{
	struct host_task *self = userdata;

	ad_io_stop(io);
	agentd_task_stdin_drained(self->task);
}

static int32_t host_task_write(void *state, const uint8_t *data, size_t len, size_t *ret_taken)
{
	struct host_task *self = state;
	ssize_t n;

	if (!self->stdin_open || self->close_stdin)
		return AGENTD_ERR_STATE;
	if (!self->started) {
		self->told_again = true;
		return AGENTD_ERR_AGAIN;
	}
	do {
		n = ad_sys_write_nosigpipe(self->stdin_fd, data, len);
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

static int32_t host_task_close_stdin(void *state)
{
	struct host_task *self = state;

	self->close_stdin = true;
	if (self->started)
		stdin_close(self);
	return 0;
}

/* ---- what the job reports */

static void job_started(struct ad_job *job, int32_t pid, int stdin_fd, int stdout_fd, int stderr_fd,
			const struct ad_launch_receipt *receipt, void *userdata)
{
	struct host_task *self = userdata;
	int r;

	(void)job;
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
	host_receipt_report(self->task, &self->limits, receipt);
	agentd_task_started(self->task, pid);
	if (r < 0) {
		/* Freeing the task kills the job. */
		agentd_task_failed(self->task, agentd_error_create(r, 0,
								   "the output of the "
								   "command cannot be read"));
		return;
	}
	if (self->told_again)
		agentd_task_stdin_drained(self->task);
}

static void job_failed(struct ad_job *job, agentd_error *err, void *userdata)
{
	struct host_task *self = userdata;

	(void)job;
	stdin_close(self);
	agentd_task_failed(self->task, err);
}

static void job_limit_hit(struct ad_job *job, const char *limit, bool fatal, void *userdata)
{
	struct host_task *self = userdata;

	(void)job;
	agentd_task_limit_hit(self->task, limit, fatal);
}

static void job_exited(struct ad_job *job, int wait_status, uint64_t at_ns, void *userdata)
{
	struct host_task *self = userdata;

	(void)job;
	stdin_close(self);
	agentd_task_exited(self->task, wait_status, at_ns);
}

static void job_closed(struct ad_job *job, const struct ad_launch_usage *usage, void *userdata)
{
	struct host_task *self = userdata;

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
	.started = job_started,
	.failed = job_failed,
	.limit_hit = job_limit_hit,
	.exited = job_exited,
	.closed = job_closed,
};

/* ---- starting */

/* What of the specification this backend cannot honour, or NULL. */
static const char *unsupported(const agentd_spec *spec)
{
	const char *source, *target;
	uint32_t access;

	if (agentd_spec_rootfs(spec))
		return "a root file system";
	if (agentd_spec_netns(spec) >= 0)
		return "a network namespace";
	if (agentd_spec_credentials_fd(spec) >= 0)
		return "credentials as a private file";
	for (size_t i = 0; agentd_spec_mount_at(spec, i, &source, &target, &access) == 0; i++) {
		if (strcmp(source, target) != 0)
			return "mounts";
	}
	return NULL;
}

static void refuse(agentd_task *task, const char *what)
{
	ad_autobuf struct ad_buf text = { 0 };

	ad_buf_printf(&text, "the host backend does not support %s", what);
	agentd_task_failed(task, agentd_error_create(AGENTD_ERR_UNSUPPORTED, 0, text.data));
}

static const char *const limit_names[] = { "mem_bytes", "pids_max", "cpu_time_ms", "io_bytes" };

static void fill_request(const agentd_spec *spec, struct ad_launch_request *ret)
{
	uint32_t flags = agentd_spec_flags(spec);

	*ret = (struct ad_launch_request){
		.argv = agentd_spec_argv(spec),
		.workdir = agentd_spec_workdir(spec),
		.stdin_open = flags & AGENTD_EXEC_STDIN_OPEN,
		.merge_stderr = flags & AGENTD_EXEC_MERGE_STDERR,
		.cgroup_required = agentd_spec_protection(spec, "cgroup") ==
				   AGENTD_PROTECTION_REQUIRED,
		.limits = { .size = sizeof(ret->limits) },
	};
	agentd_spec_limits(spec, &ret->limits);
	for (size_t i = 0; i < AD_COUNT(limit_names); i++) {
		if (agentd_spec_limit_requested(spec, limit_names[i]) == 1)
			ret->limits_requested |= UINT32_C(1) << ad_limit_index(limit_names[i]);
	}
}

static int32_t host_task_start(void *self, agentd_task *task, const agentd_spec *spec,
			       void **ret_state, agentd_error **reterr)
{
	const struct host *host = self;
	const char *missing = unsupported(spec);
	struct ad_launch_request request;
	struct host_task *state = calloc(1, sizeof(*state));
	ad_autofree const char **env = NULL;
	int r;

	if (!state)
		return ad_fail_nomem(reterr);
	state->task = task;
	state->loop = ad_launcher_loop(host->launcher);
	state->stdin_fd = -1;
	if (missing) {
		*ret_state = state;
		refuse(task, missing);
		return 0;
	}
	fill_request(spec, &request);
	env = host_environment_merge(&host->environment, agentd_spec_env(spec));
	request.env = env;
	state->limits = request.limits;
	state->stdin_open = request.stdin_open;
	r = env ? ad_job_start(host->launcher, &request, &job_events, state, &state->job, reterr) :
		  ad_fail_nomem(reterr);
	if (r < 0)
		free(state);
	else
		*ret_state = state;
	return r;
}

static int32_t host_task_kill(void *state)
{
	const struct host_task *self = state;

	return self->job ? ad_job_kill(self->job) : 0;
}

static int32_t host_task_signal(void *state, int32_t signo)
{
	const struct host_task *self = state;

	return ad_job_signal(self->job, signo);
}

static void host_task_free(void *state)
{
	struct host_task *self = state;

	stdin_close(self);
	ad_job_free(self->job);
	free(self);
}

/* ---- the backend */

static void probe_over(struct ad_launcher *launcher, const agentd_error *err, void *userdata)
{
	struct host *host = userdata;
	agentd_backend_report *report = AD_STEAL(host->report);

	/* Lost later: each command that suffers says so. */
	if (!report)
		return;
	if (!err)
		host_receipt_probe(report, ad_launcher_best(launcher));
	agentd_backend_report_done(report, agentd_error_ref((agentd_error *)(uintptr_t)err));
}

static int32_t host_open(void *userdata, struct event_base *base, void **ret_self)
{
	struct host *host = calloc(1, sizeof(*host));

	(void)base;
	if (!host || host_environment_init(&host->environment) < 0) {
		free(host);
		return AGENTD_ERR_NOMEM;
	}
	host->launcher = userdata;
	*ret_self = host;
	return 0;
}

static int32_t host_probe_start(void *self, agentd_backend_report *report)
{
	struct host *host = self;

	host->report = report;
	ad_launcher_watch(host->launcher, &host->watch, probe_over, host);
	return 0;
}

static void host_close(void *self)
{
	struct host *host = self;

	ad_launcher_unwatch(&host->watch);
	host_environment_free(&host->environment);
	free(host);
}

const struct agentd_backend_ops *ad_host_backend_ops(void)
{
	static const char *const aliases[] = { "host-direct", "none", "workstation", NULL };
	static const struct agentd_backend_ops ops = {
		.size = sizeof(ops),
		.abi = AGENTD_BACKEND_ABI,
		.name = "host",
		.aliases = aliases,
		.isolation = AGENTD_ISOLATION_NONE,
		.open = host_open,
		.close = host_close,
		.probe_start = host_probe_start,
		.task_start = host_task_start,
		.task_kill = host_task_kill,
		.task_free = host_task_free,
		.task_signal = host_task_signal,
		.task_write = host_task_write,
		.task_close_stdin = host_task_close_stdin,
	};

	return &ops;
}
