/* SPDX-License-Identifier: MIT */
/* agentd_task_*: a backend's reports, held to the order that agentd/backend.h
 * promises. What comes out of order is dropped: core never sees it. */
#include "backend/backend.h"

#include <unistd.h>

/* A backend may report from inside task_start, and its reports make the host act. */
static void catch_up(agentd_task *task)
{
	for (int i = 0; i < 2; i++)
		if (task->pause_wanted[i])
			(void)ad_task_set_paused(task, AGENTD_STDOUT + i, true);
	if (task->drain_wanted)
		agentd_task_stdin_drained(task);
	if (task->close_wanted)
		(void)ad_task_close_stdin(task);
	if (task->kill_wanted)
		(void)ad_task_kill(task);
	else if (task->signal_wanted)
		(void)ad_task_signal(task, task->signal_wanted);
}

static int start(agentd_task *task, struct ad_backend *backend,
		 const struct ad_task_listener *listener, const agentd_spec *spec, bool session,
		 agentd_error **reterr)
{
	int32_t (*fn)(void *self, agentd_task *task, const agentd_spec *spec, void **ret_state,
		      agentd_error **reterr) = session ? backend->ops.session_start :
							 backend->ops.task_start;
	ad_autoerror agentd_error *err = NULL;
	void *state = NULL;
	int r;

	*task = (agentd_task){ .listener = listener,
			       .backend = backend,
			       .session = session,
			       .running = true,
			       .starting = true };
	ad_backend_ref(backend);
	r = fn(backend->self, task, spec, &state, &err);
	task->starting = false;
	if (r < 0) {
		task->running = task->closed = false;
		if (!err)
			return ad_fail(reterr, r, NULL, "backend \"%s\" could not start: %s",
				       backend->name, agentd_strerror(r));
		if (reterr)
			*reterr = AD_STEAL(err);
		return r;
	}
	task->state = state;
	catch_up(task);
	return 0;
}

int ad_task_start(agentd_task *task, struct ad_backend *backend,
		  const struct ad_task_listener *listener, const agentd_spec *spec,
		  agentd_error **reterr)
{
	return start(task, backend, listener, spec, false, reterr);
}

int ad_session_start(agentd_task *task, struct ad_backend *backend,
		     const struct ad_task_listener *listener, const agentd_spec *spec,
		     agentd_error **reterr)
{
	return start(task, backend, listener, spec, true, reterr);
}

int ad_session_adopt(agentd_task *task, agentd_task *spare, const struct ad_task_listener *listener,
		     const agentd_spec *spec, agentd_error **reterr)
{
	agentd_task session = { .listener = listener,
				.backend = spare->backend,
				.state = spare->state,
				.session = true,
				.running = true,
				.starting = true };
	int r;

	*task = session;
	r = spare->backend->ops.session_adopt(spare->state, task, spec, reterr);
	if (r < 0) {
		*task = (agentd_task){ 0 };
		return r;
	}
	*spare = (agentd_task){ 0 };
	task->starting = false;
	catch_up(task);
	return 0;
}

int ad_session_stop(agentd_task *task, uint32_t grace_ms)
{
	if (task->starting)
		task->kill_wanted = true;
	else if (task->running)
		return task->backend->ops.session_stop(task->state, grace_ms);
	return 0;
}

int ad_task_kill(agentd_task *task)
{
	if (task->session)
		return ad_session_stop(task, 0);
	if (task->starting)
		task->kill_wanted = true;
	else if (task->running)
		return task->backend->ops.task_kill(task->state);
	return 0;
}

int ad_task_signal(agentd_task *task, int32_t signo)
{
	if (!task->running || !task->started || task->exited)
		return AGENTD_ERR_STATE;
	if (!task->backend->ops.task_signal)
		return AGENTD_ERR_UNSUPPORTED;
	if (task->starting) {
		task->signal_wanted = signo;
		return 0;
	}
	return task->backend->ops.task_signal(task->state, signo);
}

int ad_task_write(agentd_task *task, const uint8_t *data, size_t len, size_t *ret_taken)
{
	if (!task->running || task->exited)
		return AGENTD_ERR_STATE;
	if (!task->backend->ops.task_write)
		return AGENTD_ERR_UNSUPPORTED;
	if (task->starting) {
		task->drain_wanted = true;
		return AGENTD_ERR_AGAIN;
	}
	return task->backend->ops.task_write(task->state, data, len, ret_taken);
}

int ad_task_close_stdin(agentd_task *task)
{
	if (!task->running || task->exited)
		return 0;
	if (!task->backend->ops.task_close_stdin)
		return AGENTD_ERR_UNSUPPORTED;
	if (task->starting) {
		task->close_wanted = true;
		return 0;
	}
	return task->backend->ops.task_close_stdin(task->state);
}

int ad_task_set_paused(agentd_task *task, agentd_stream stream, bool paused)
{
	if (!task->running)
		return 0;
	if (!task->backend->ops.task_set_paused)
		return AGENTD_ERR_UNSUPPORTED;
	if (task->starting) {
		task->pause_wanted[stream - AGENTD_STDOUT] = paused;
		return 0;
	}
	return task->backend->ops.task_set_paused(task->state, stream, paused);
}

void ad_task_give_up(agentd_task *task)
{
	task->running = false;
	task->given_up = true;
}

/* Whether the task ended after it was given up. */
static bool ended_late(agentd_task *task)
{
	if (!task->given_up)
		return false;
	task->given_up = false;
	task->closed = true;
	task->listener->closed_late(task);
	return true;
}

void ad_task_release(agentd_task *task)
{
	if (!task->backend || task->given_up)
		return;
	if (task->closed && task->session)
		task->backend->ops.session_free(task->state);
	else if (task->closed)
		task->backend->ops.task_free(task->state);
	ad_backend_unref(AD_STEAL(task->backend));
}

void ad_task_abandon(agentd_task *task)
{
	if (!task->backend)
		return;
	(void)ad_task_kill(task);
	task->running = false;
	task->closed = true;
	ad_task_release(task);
}

void agentd_task_started(agentd_task *task, int32_t pid)
{
	if (!task || !task->running || task->started)
		return;
	task->started = true;
	task->listener->started(task, pid);
}

int32_t agentd_task_output(agentd_task *task, agentd_stream stream, const uint8_t *data, size_t len)
{
	if (!task || !data || len > AD_TASK_OUTPUT_MAX ||
	    (stream != AGENTD_STDOUT && stream != AGENTD_STDERR))
		return AGENTD_ERR_INVALID;
	if (!task->running || len == 0)
		return AGENTD_SINK_CONTINUE;
	agentd_task_started(task, 0);
	return task->listener->output ? task->listener->output(task, stream, data, len) :
					AGENTD_SINK_CONTINUE;
}

void agentd_task_stdin_drained(agentd_task *task)
{
	if (task && task->running && task->started && !task->exited &&
	    task->listener->stdin_drained)
		task->listener->stdin_drained(task);
}

void agentd_task_metric(agentd_task *task, int32_t metric, uint64_t value)
{
	if (task && task->running && task->listener->metric)
		task->listener->metric(task, metric, value);
}

int agentd_task_attach_fd(agentd_task *task, agentd_stream stream, int32_t fd)
{
	if (!task || !task->running || fd < 0 ||
	    (stream != AGENTD_STDOUT && stream != AGENTD_STDERR)) {
		if (fd >= 0)
			close(fd);
		return AGENTD_ERR_INVALID;
	}
	if (!task->listener->attach_fd) {
		close(fd);
		return 0;
	}
	return task->listener->attach_fd(task, stream, fd);
}

int agentd_task_attach_net(agentd_task *task, int32_t fd)
{
	if (!task || !task->running || fd < 0 || !task->listener->attach_net) {
		if (fd >= 0)
			close(fd);
		return AGENTD_ERR_INVALID;
	}
	return task->listener->attach_net(task, fd);
}

int agentd_task_attach_net_client(agentd_task *task, int32_t fd)
{
	if (!task || !task->running || !task->started || fd < 0 ||
	    !task->listener->attach_net_client) {
		if (fd >= 0)
			close(fd);
		return AGENTD_ERR_INVALID;
	}
	return task->listener->attach_net_client(task, fd);
}

void agentd_task_protection(agentd_task *task, const char *layer, int32_t state, const char *reason)
{
	if (task && task->running && layer && task->listener->protection)
		task->listener->protection(task, layer, state, reason ? reason : "");
}

void agentd_task_denied(agentd_task *task, const char *kind, const char *target, const char *rule,
			const char *remedy)
{
	if (!task || !task->running || !task->listener->denied)
		return;
	task->listener->denied(task, kind ? kind : "", target ? target : "", rule ? rule : "",
			       remedy ? remedy : "");
}

void agentd_task_limit_hit(agentd_task *task, const char *limit, int32_t fatal)
{
	if (task && task->running && limit && task->listener->limit_hit)
		task->listener->limit_hit(task, limit, fatal != 0);
}

void agentd_task_exited(agentd_task *task, int32_t wait_status, uint64_t at_ns)
{
	if (!task || !task->running || task->exited)
		return;
	agentd_task_started(task, 0);
	task->exited = true;
	if (task->listener->exited)
		task->listener->exited(task, wait_status, at_ns);
}

void agentd_task_closed(agentd_task *task)
{
	if (!task || ended_late(task) || !task->running)
		return;
	task->running = false;
	task->closed = true;
	task->listener->closed(task);
}

void agentd_task_failed(agentd_task *task, agentd_error *err)
{
	if (!task || ended_late(task) || !task->running) {
		agentd_error_unref(err);
		return;
	}
	task->running = false;
	task->closed = true;
	if (!err)
		err = agentd_error_create(AGENTD_ERR_BACKEND, 0, "the backend failed");
	task->listener->failed(task, err);
}

void agentd_task_log(agentd_task *task, int32_t level, const char *message)
{
	if (task && task->running && message && task->listener->log)
		task->listener->log(task, level, message);
}
