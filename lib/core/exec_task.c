/* SPDX-License-Identifier: MIT */
/* What the backend reports of the task. */
#include "core/exec.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "sys/sys.h"

static agentd_exec *exec_of(agentd_task *task)
{
	return AD_CONTAINER_OF(task, agentd_exec, task);
}

static void on_started(agentd_task *task, int32_t pid)
{
	agentd_exec *exec = exec_of(task);
	struct ad_record record = { .count = 0 };

	exec->pid = pid;
	exec->started_at = exec->active_at = ad_sys_now_ns();
	exec->setup_until = AD_NEVER;
	exec->deadline = ad_exec_later_ms(exec->started_at, exec->spec.limits.timeout_ms);
	if (ad_log_wanted(exec->runner, AGENTD_LOG_INFO)) {
		exec->heartbeat_at = ad_exec_later(exec->started_at, exec->runner->heartbeat_ns);
		ad_record_i64(&record, "child_pid", pid);
		ad_record_text(&record, "workdir", exec->spec.workdir);
		ad_record_u64(&record, "spawn_ms",
			      (exec->started_at - exec->begun_at) / AD_NS_PER_MS);
		ad_log_exec(exec, AGENTD_LOG_INFO, "core", "Shell command spawned", &record);
	}
	if (exec->state == AGENTD_STATE_STARTING)
		exec->state = AGENTD_STATE_RUNNING;
	if (exec->finishing)
		return;
	ad_sink_started(exec->binding);
	if (exec->stdin_waiting)
		ad_sink_stdin_drained(exec->binding);
	ad_exec_settle(exec);
}

static int32_t on_output(agentd_task *task, agentd_stream number, const uint8_t *data, size_t len)
{
	agentd_exec *exec = exec_of(task);
	struct ad_stream *stream = &exec->streams[number - AGENTD_STDOUT];

	if (exec->finishing || stream->let_go) {
		stream->bytes += len;
		exec->dropped += len;
		return AGENTD_SINK_CONTINUE;
	}
	if (ad_stream_deliver(stream, data, len) == AGENTD_SINK_PAUSE) {
		stream->paused = true;
		ad_exec_settle(exec);
	}
	return stream->paused && !stream->let_go ? AGENTD_SINK_PAUSE : AGENTD_SINK_CONTINUE;
}

static void on_stdin_drained(agentd_task *task)
{
	agentd_exec *exec = exec_of(task);

	exec->stdin_refused = false;
	if (!exec->finishing)
		ad_sink_stdin_drained(exec->binding);
}

static void on_metric(agentd_task *task, int32_t metric, uint64_t value)
{
	if (metric == AGENTD_METRIC_CPU_NS || metric == AGENTD_METRIC_MEMORY_PEAK_BYTES)
		ad_exec_set_metric(exec_of(task), metric, value);
}

static int on_attach_fd(agentd_task *task, agentd_stream stream, int fd)
{
	return ad_stream_attach(exec_of(task), stream, fd);
}

static int on_attach_net(agentd_task *task, int fd)
{
	return ad_exec_net_attach(exec_of(task), fd);
}

static int on_attach_net_client(agentd_task *task, int fd)
{
	return ad_exec_net_serve(exec_of(task), fd);
}

void ad_exec_set_protection(agentd_exec *exec, const char *layer, int32_t state, const char *reason)
{
	if (ad_receipt_set(&exec->receipt, layer, state, reason) < 0) {
		if (!exec->error)
			(void)ad_fail_nomem(&exec->error);
		ad_exec_stop(exec, AGENTD_CAUSE_BACKEND_LOST, true);
	}
}

static void on_protection(agentd_task *task, const char *layer, int32_t state, const char *reason)
{
	ad_exec_set_protection(exec_of(task), layer, state, reason);
}

static void on_denied(agentd_task *task, const char *kind, const char *target, const char *rule,
		      const char *remedy)
{
	agentd_exec *exec = exec_of(task);
	agentd_denial denial = { kind, target, rule, remedy };

	exec->denied_count++;
	if (!exec->finishing)
		ad_sink_denied(exec->binding, &denial);
}

static int cause_of_limit(const char *limit)
{
	static const struct {
		const char *limit;
		int cause;
	} causes[] = {
		{ "mem_bytes", AGENTD_CAUSE_MEMORY },
		{ "pids_max", AGENTD_CAUSE_PIDS },
		{ "cpu_time_ms", AGENTD_CAUSE_CPU_TIME },
		{ "io_bytes", AGENTD_CAUSE_IO },
		{ "output_bytes", AGENTD_CAUSE_OUTPUT },
		{ "file_bytes", AGENTD_CAUSE_FILE_SIZE },
		{ "timeout_ms", AGENTD_CAUSE_TIMEOUT },
		{ "idle_timeout_ms", AGENTD_CAUSE_IDLE_TIMEOUT },
	};

	for (size_t i = 0; i < AD_COUNT(causes); i++)
		if (strcmp(causes[i].limit, limit) == 0)
			return causes[i].cause;
	return AGENTD_CAUSE_VIOLATION;
}

static void on_limit_hit(agentd_task *task, const char *limit, bool fatal)
{
	agentd_exec *exec = exec_of(task);

	ad_exec_note_limit(exec, limit);
	if (fatal && !exec->fatal_cause) {
		exec->fatal_cause = cause_of_limit(limit);
		snprintf(exec->limit, sizeof(exec->limit), "%s", limit);
	}
}

static void on_exited(agentd_task *task, int wait_status, uint64_t at_ns)
{
	agentd_exec *exec = exec_of(task);
	uint64_t now = ad_sys_now_ns();

	exec->exited = true;
	exec->wait_status = wait_status;
	exec->exited_at = at_ns && at_ns <= now ? at_ns : now;
	exec->kill_at = exec->heartbeat_at = AD_NEVER;
	exec->drain_until = ad_exec_later(now, exec->runner->drain_ns);
	if (exec->finishing)
		return;
	ad_sink_exited(exec->binding, WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -1,
		       WIFSIGNALED(wait_status) ? WTERMSIG(wait_status) : 0);
	ad_exec_settle(exec);
}

/* Only what it has written is left. */
static void task_over(agentd_exec *exec)
{
	exec->task_over = true;
	exec->setup_until = exec->kill_at = exec->lost_at = AD_NEVER;
	ad_exec_net_close(exec);
	ad_streams_end_pushed(exec);
	exec->drain_until = ad_exec_later(ad_sys_now_ns(), exec->runner->drain_ns);
}

static void on_closed(agentd_task *task)
{
	agentd_exec *exec = exec_of(task);

	task_over(exec);
	if (!exec->exited && !exec->error)
		ad_fail(&exec->error, AGENTD_ERR_BACKEND, NULL,
			"backend \"%s\" lost the command: it closed without an exit status",
			exec->plan.backend->name);
	ad_exec_settle(exec);
}

static void on_failed(agentd_task *task, agentd_error *err)
{
	agentd_exec *exec = exec_of(task);
	int code = agentd_error_code(err);

	if (ad_exec_starts_anew(exec, err)) {
		agentd_error_unref(err);
		return;
	}
	exec->task_lost = code == AGENTD_ERR_BACKEND || code == AGENTD_ERR_PROTOCOL;
	task_over(exec);
	if (!exec->started_at && (code == AGENTD_ERR_DENIED || code == AGENTD_ERR_UNSUPPORTED)) {
		exec->plan.refused_cause = AGENTD_CAUSE_ISOLATION;
		agentd_error_unref(exec->plan.refusal);
		exec->plan.refusal = err;
	} else {
		if (exec->error)
			agentd_error_unref(err);
		else
			exec->error = err;
		/* What it was stopped for did not end it; and if it had been seen to exit,
		 * that stays true. */
		if (exec->started_at && !exec->exited)
			exec->stop_cause = AGENTD_CAUSE_BACKEND_LOST;
	}
	if (exec->started_at)
		ad_exec_settle(exec);
	else
		ad_exec_finish_soon(exec);
}

static void on_closed_late(agentd_task *task)
{
	ad_defer(&exec_of(task)->step);
}

static void on_log(agentd_task *task, int32_t level, const char *message)
{
	agentd_exec *exec = exec_of(task);

	if (!exec->finishing && level <= ad_log_most(exec->runner))
		ad_exec_check_logged(exec, ad_log_sink(exec, level, exec->plan.backend->name,
						       message, true));
}

const struct ad_task_listener ad_exec_task_listener = {
	.started = on_started,
	.output = on_output,
	.stdin_drained = on_stdin_drained,
	.metric = on_metric,
	.attach_fd = on_attach_fd,
	.attach_net = on_attach_net,
	.attach_net_client = on_attach_net_client,
	.protection = on_protection,
	.denied = on_denied,
	.limit_hit = on_limit_hit,
	.exited = on_exited,
	.closed = on_closed,
	.failed = on_failed,
	.log = on_log,
	.closed_late = on_closed_late,
};
