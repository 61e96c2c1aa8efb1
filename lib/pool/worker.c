/* SPDX-License-Identifier: MIT */
#include "pool/private.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launch/launch.h"

enum { ARGS_MAX = 8, TEXT_MAX = 1024 };

struct worker {
	struct ad_job *job;
	worker_fn fn;
	void *userdata;
	int err_fd; /* what it says when it fails */
	int status;
};

static void close_err(struct worker *worker)
{
	if (worker->err_fd >= 0)
		close(ad_steal_fd(&worker->err_fd));
}

static void on_started(struct ad_job *job, int32_t pid, int stdin_fd, int stdout_fd, int stderr_fd,
		       const struct ad_launch_receipt *receipt, void *userdata)
{
	struct worker *worker = userdata;

	(void)job, (void)pid, (void)stdin_fd, (void)stderr_fd, (void)receipt;
	worker->err_fd = stdout_fd; /* both */
}

static void on_failed(struct ad_job *job, agentd_error *err,
		      const struct ad_launch_failure *failure, void *userdata)
{
	struct worker *worker = userdata;

	(void)job, (void)failure;
	close_err(worker);
	worker->fn(err, worker->userdata);
}

static void on_nothing(struct ad_job *job, const char *kind, const char *target, void *userdata)
{
	(void)job, (void)kind, (void)target, (void)userdata;
}

static void on_limit(struct ad_job *job, const char *limit, bool fatal, void *userdata)
{
	(void)job, (void)limit, (void)fatal, (void)userdata;
}

static void on_exited(struct ad_job *job, int wait_status, uint64_t at_ns, void *userdata)
{
	struct worker *worker = userdata;

	(void)job, (void)at_ns;
	worker->status = wait_status;
}

static void on_closed(struct ad_job *job, const struct ad_launch_usage *usage, void *userdata)
{
	struct worker *worker = userdata;
	char text[TEXT_MAX] = "";
	ssize_t n = worker->err_fd < 0 ? 0 : read(worker->err_fd, text, sizeof(text) - 1);
	agentd_error *err = NULL;

	(void)job, (void)usage;
	close_err(worker);
	text[n > 0 ? n : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (WIFSIGNALED(worker->status))
		ad_fail(&err, AGENTD_ERR_BACKEND, NULL, "agentd-backup was killed by signal %d",
			WTERMSIG(worker->status));
	else if (WEXITSTATUS(worker->status) != 0)
		ad_fail(&err, AGENTD_ERR_BACKEND, NULL, "%s",
			*text ? text : "agentd-backup failed");
	worker->fn(err, worker->userdata);
}

static const struct ad_job_events events = {
	.started = on_started,
	.failed = on_failed,
	.denied = on_nothing,
	.limit_hit = on_limit,
	.exited = on_exited,
	.closed = on_closed,
};

int worker_start(const struct ad_pool_host *host, const char *const *args, worker_fn fn,
		 void *userdata, struct worker **ret, agentd_error **reterr)
{
	static const char *const env[] = { "LANG=C.UTF-8", NULL };
	const char *argv[ARGS_MAX + 2] = { host->worker };
	const struct ad_launch_request request = { .argv = argv,
						   .env = env,
						   .workdir = "/",
						   .merge_stderr = true,
						   .limits = { .size = sizeof(request.limits) } };
	struct worker *worker = calloc(1, sizeof(*worker));
	int r;

	if (!worker)
		return ad_fail_nomem(reterr);
	for (size_t i = 0; args[i] && i < ARGS_MAX; i++)
		argv[i + 1] = args[i];
	worker->fn = fn;
	worker->userdata = userdata;
	worker->err_fd = -1;
	r = ad_job_start(host->launcher, &request, &events, worker, &worker->job, reterr);
	if (r < 0)
		free(worker);
	else
		*ret = worker;
	return r;
}

void worker_free(struct worker *worker)
{
	if (!worker)
		return;
	close_err(worker);
	ad_job_free(worker->job);
	free(worker);
}
