/* SPDX-License-Identifier: MIT */
/* One execution: from agentd_exec_start() to `finished`.
 *
 * exec_start() only checks and queues; all else happens on the loop:
 *   step: begin -> (backend's probe) -> task_start -> started -> output ... exited
 *         -> drain -> kill of what is left -> closed -> finish -> release
 * and in a session that was gone before the command began, once: task_start -> failed -> step
 *         -> another session -> task_start
 * Everything that happens ends in ad_exec_settle(), which looks at the whole state
 * and decides what is next, so that the order of events does not matter. */
#include "core/core.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "sys/sys.h"

#define GRACE_DEFAULT_MS 2000

uint64_t ad_exec_now(void)
{
	return ad_sys_now_ns();
}

static uint64_t later(uint64_t from, uint64_t by)
{
	return by > AD_NEVER - from ? AD_NEVER : from + by;
}

static uint64_t ms_to_ns(uint64_t ms)
{
	return ms > AD_NEVER / AD_NS_PER_MS ? AD_NEVER : ms * AD_NS_PER_MS;
}

void ad_exec_set_metric(agentd_exec *exec, int32_t metric, uint64_t value)
{
	if (metric <= 0 || metric >= AD_METRIC_COUNT)
		return;
	exec->metrics[metric] = value;
	exec->metrics_known |= 1u << metric;
}

/* ---- the timer: one per execution, set to the earliest of its times */

static void arm(agentd_exec *exec, uint64_t now)
{
	const uint64_t times[] = { exec->setup_until, exec->deadline, exec->heartbeat_at,
				   exec->kill_at, exec->lost_at,
				   /* past and not acted on: the sink is being waited for */
				   exec->drain_until > now ? exec->drain_until : AD_NEVER };
	uint64_t next = AD_NEVER;

	for (size_t i = 0; i < AD_COUNT(times); i++)
		if (times[i] < next)
			next = times[i];
	if (exec->spec.limits.idle_timeout_ms && exec->started_at && !exec->exited &&
	    !exec->stop_cause && !ad_streams_paused(exec)) {
		uint64_t idle = later(exec->active_at, ms_to_ns(exec->spec.limits.idle_timeout_ms));

		if (idle < next)
			next = idle;
	}
	/* A timer that is due earlier than needed costs one idle wake-up, setting it anew
	 * for every byte of output would cost more. */
	if (next == AD_NEVER || exec->armed_at <= next)
		return;
	exec->armed_at = next;
	if (ad_timer_start(&exec->timer, next > now ? next - now : 0) < 0)
		exec->armed_at = AD_NEVER;
}

/* ---- ending */

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

static void note_limit(agentd_exec *exec, const char *limit)
{
	if (!exec->limit[0])
		snprintf(exec->limit, sizeof(exec->limit), "%s", limit);
}

/* Did the command end before whatever we stopped it for? Then that is how it
 * ended: a command reaped before the limit never timed out. */
static bool completion_wins(const agentd_exec *exec)
{
	if (!exec->exited)
		return false;
	switch (exec->stop_cause) {
	case 0:
		return true;
	case AGENTD_CAUSE_SINK:
	case AGENTD_CAUSE_OUTPUT:
	case AGENTD_CAUSE_BACKEND_LOST: /* not all of it came */
		return false;
	case AGENTD_CAUSE_TIMEOUT:
		return exec->exited_at <=
		       later(exec->started_at, ms_to_ns(exec->spec.limits.timeout_ms));
	default:
		return exec->exited_at <= exec->stopped_at;
	}
}

static agentd_status status_of_stop(int cause)
{
	switch (cause) {
	case AGENTD_CAUSE_TIMEOUT:
	case AGENTD_CAUSE_IDLE_TIMEOUT:
		return AGENTD_STATUS_TIMEOUT;
	case AGENTD_CAUSE_BACKEND_LOST:
		return AGENTD_STATUS_ERROR;
	default:
		return AGENTD_STATUS_KILLED;
	}
}

static void set_outcome(agentd_exec *exec, agentd_result *result)
{
	int status = exec->wait_status;

	if (exec->exited && WIFSIGNALED(status))
		result->signo = WTERMSIG(status);
	if (exec->plan.refused_cause) {
		result->cause = exec->plan.refused_cause;
		result->status = result->cause == AGENTD_CAUSE_SPAWN ? AGENTD_STATUS_ERROR :
								       AGENTD_STATUS_DENIED;
	} else if (!completion_wins(exec) && exec->stop_cause) {
		result->cause = exec->stop_cause;
		result->status = status_of_stop(result->cause);
	} else if (exec->fatal_cause) {
		result->cause = exec->fatal_cause;
		result->status = AGENTD_STATUS_KILLED;
	} else if (!exec->exited) {
		result->cause = exec->started_at ? AGENTD_CAUSE_BACKEND_LOST : AGENTD_CAUSE_SPAWN;
		result->status = AGENTD_STATUS_ERROR;
	} else if (WIFSIGNALED(status)) {
		result->cause = AGENTD_CAUSE_SIGNALED;
		result->status = AGENTD_STATUS_ERROR;
		/* The kernel's own enforcement shows as a signal that nobody here sent. */
		if (result->signo == SIGXFSZ && exec->spec.limits.file_bytes) {
			note_limit(exec, "file_bytes");
			result->cause = AGENTD_CAUSE_FILE_SIZE;
			result->status = AGENTD_STATUS_KILLED;
		} else if (result->signo == SIGXCPU && exec->spec.limits.cpu_time_ms) {
			note_limit(exec, "cpu_time_ms");
			result->cause = AGENTD_CAUSE_CPU_TIME;
			result->status = AGENTD_STATUS_KILLED;
		}
	} else {
		result->cause = AGENTD_CAUSE_EXITED;
		result->exit_code = WEXITSTATUS(status);
		result->status = result->exit_code == 0 ? AGENTD_STATUS_OK : AGENTD_STATUS_ERROR;
	}
	if (result->cause == AGENTD_CAUSE_TIMEOUT)
		note_limit(exec, "timeout_ms");
	else if (result->cause == AGENTD_CAUSE_IDLE_TIMEOUT)
		note_limit(exec, "idle_timeout_ms");
}

static void fill_result(agentd_exec *exec, agentd_result *result)
{
	uint64_t end = exec->exited ? exec->exited_at : ad_exec_now();

	set_outcome(exec, result);
	if (result->cause == AGENTD_CAUSE_CANCELED && !exec->started_at && !exec->error)
		ad_fail(&exec->error, AGENTD_ERR_CANCELED, NULL, "cancelled before it started");
	result->asked_isolation = exec->plan.min_isolation;
	memcpy(result->id, exec->id, sizeof(result->id));
	memcpy(result->limit, exec->limit, sizeof(result->limit));
	if (exec->plan.backend && exec->started_at)
		snprintf(result->backend, sizeof(result->backend), "%s", exec->plan.backend->name);
	if (exec->plan.refusal)
		result->error = agentd_error_ref(exec->plan.refusal);
	else if (result->cause != AGENTD_CAUSE_EXITED)
		result->error = AD_STEAL(exec->error);
	ad_exec_set_metric(exec, AGENTD_METRIC_STDOUT_BYTES, exec->streams[0].bytes);
	ad_exec_set_metric(exec, AGENTD_METRIC_STDERR_BYTES, exec->streams[1].bytes);
	ad_exec_set_metric(exec, AGENTD_METRIC_DROPPED_BYTES, exec->dropped);
	if (exec->started_at) {
		ad_exec_set_metric(exec, AGENTD_METRIC_WALL_NS,
				   end > exec->begun_at ? end - exec->begun_at : 0);
		ad_exec_set_metric(exec, AGENTD_METRIC_STARTUP_NS,
				   exec->started_at - exec->created_at);
	}
	memcpy(result->metrics, exec->metrics, sizeof(result->metrics));
	result->metrics_known = exec->metrics_known;
	result->truncated = exec->dropped > 0;
	result->denied_count = exec->denied_count;
	result->receipt = exec->receipt;
	exec->receipt = (struct ad_receipt){ 0 };
}

/* stderr as one record: all of it UTF-8, cut at the front to AD_STDERR_LOG_MAX on
 * a character's first byte, trailing white space (Unicode's, as Rust's trim_end)
 * left out. */
static void log_stderr(agentd_exec *exec)
{
	struct ad_buf *tail = &exec->stderr_tail;
	size_t start = 0, end = tail->len;

	if (!tail->data || tail->failed || end == 0 || !ad_utf8_done(&exec->stderr_utf8))
		return;
	if (end > AD_STDERR_LOG_MAX)
		start = end - AD_STDERR_LOG_MAX;
	while ((exec->stderr_kept_from || start) && start < end &&
	       ((unsigned char)tail->data[start] & 0xc0) == 0x80)
		start++;
	end = start + ad_params_trim_end(tail->data + start, end - start);
	tail->data[end] = '\0';
	if (!memchr(tail->data + start, '\0', end - start))
		(void)ad_log_sink(exec, AGENTD_LOG_WARN, "shell", tail->data + start, false);
}

static void log_end(agentd_exec *exec, const agentd_result *result)
{
	log_stderr(exec);
	if (result->status == AGENTD_STATUS_TIMEOUT) {
		(void)ad_log_sink(exec, AGENTD_LOG_ERROR, "core",
				  result->cause == AGENTD_CAUSE_TIMEOUT ?
					  "Shell command timed out" :
					  "Shell command timed out: no output for too long",
				  true);
	} else if (exec->exited) {
		struct ad_record record = { .count = 0 };

		if (result->exit_code >= 0)
			ad_record_i64(&record, "exit_code", result->exit_code);
		ad_record_text(&record, "exited_successfully",
			       result->status == AGENTD_STATUS_OK ? "true" : "false");
		ad_record_u64(&record, "duration_ms",
			      result->metrics[AGENTD_METRIC_WALL_NS] / AD_NS_PER_MS);
		ad_log_exec(exec, AGENTD_LOG_INFO, "core", "Shell command completed", &record);
	} else if (result->error) {
		struct ad_record record = { .count = 0 };

		ad_record_text(&record, "error", agentd_error_message(result->error));
		ad_log_exec(exec, AGENTD_LOG_ERROR, "core",
			    result->status == AGENTD_STATUS_DENIED ? "Shell command refused" :
								     "Shell command failed",
			    &record);
	}
}

/* What the backend may look at as long as it has the task. */
static void forget_spec(agentd_exec *exec)
{
	ad_spec_clear(exec);
	ad_context_state_unref(AD_STEAL(exec->context));
	agentd_params_unref(AD_STEAL(exec->params));
}

/* The runner's part of an execution's life is over. */
static void release(agentd_exec *exec)
{
	agentd_runner *runner = exec->runner;

	ad_timer_stop(&exec->timer);
	ad_defer_cancel(&exec->step);
	ad_streams_discard(exec);
	ad_exec_net_close(exec);
	ad_task_release(&exec->task);
	/* Of a session that lost a command nothing good can be expected. */
	ad_pool_release(&exec->lease, exec->task.given_up || exec->task_lost);
	ad_sink_unbind(AD_STEAL(exec->binding));
	ad_spec_close(exec);
	ad_plan_clear(&exec->plan);
	if (!exec->task.given_up)
		forget_spec(exec);
	ad_buf_free(&exec->stderr_tail);
	ad_receipt_clear(&exec->receipt);
	ad_list_remove(&exec->link);
	pthread_mutex_lock(&exec->lock);
	exec->runner = NULL;
	pthread_mutex_unlock(&exec->lock);
	ad_runner_exec_over(runner, exec->placed);
	agentd_exec_unref(exec);
}

/* `finished`, exactly once. */
static void finish(agentd_exec *exec)
{
	agentd_runner *runner = exec->runner;
	agentd_result *result = exec->result;

	ad_runner_pin(runner);
	ad_timer_stop(&exec->timer);
	exec->setup_until = exec->deadline = exec->heartbeat_at = exec->kill_at =
		exec->drain_until = exec->lost_at = AD_NEVER;
	ad_streams_finish(exec);
	ad_exec_net_close(exec);
	exec->dropped += ad_sink_abandon(exec->binding);
	fill_result(exec, result);
	result->context = ad_context_state_ref(exec->context);
	log_end(exec, result);
	exec->state = AGENTD_STATE_FINISHED;
	ad_sink_finished(exec->binding, result);
	if (exec->task.running) {
		/* The backend may still speak of its task: that must stay until it ends. */
		ad_task_give_up(&exec->task);
		agentd_exec_ref(exec);
	}
	release(exec);
	ad_runner_unpin(runner);
}

static void finish_soon(agentd_exec *exec)
{
	exec->finishing = true;
	ad_defer(&exec->step);
}

/* ---- stopping */

static void kill_task(agentd_exec *exec)
{
	exec->kill_at = AD_NEVER;
	if (!exec->killed) {
		exec->killed = true;
		exec->lost_at = later(ad_exec_now(),
				      ms_to_ns(exec->plan.backend->ops.close_max_ms));
	}
	(void)ad_task_kill(&exec->task);
}

void ad_exec_stop(agentd_exec *exec, int cause, bool now)
{
	if (exec->finishing || exec->state == AGENTD_STATE_FINISHED)
		return;
	if (!exec->stop_cause) {
		exec->stop_cause = cause;
		exec->stopped_at = ad_exec_now();
	} else if (!now) {
		return;
	}
	exec->heartbeat_at = AD_NEVER;
	if (exec->state == AGENTD_STATE_QUEUED || !exec->task.running) {
		/* Nothing runs (yet, or any more): only what is in the pipes is left. */
		if (!exec->task_over)
			finish_soon(exec);
		else
			ad_exec_settle(exec);
		return;
	}
	exec->state = AGENTD_STATE_STOPPING;
	if (!now && exec->started_at && !exec->exited && ad_task_signal(&exec->task, SIGTERM) == 0)
		exec->kill_at = later(exec->stopped_at, exec->grace_ns);
	else
		kill_task(exec);
	ad_exec_settle(exec);
}

void ad_exec_apply_wanted(agentd_exec *exec)
{
	int wanted = atomic_load(&exec->wanted);

	if (wanted != AD_STOP_NONE)
		ad_exec_stop(exec, AGENTD_CAUSE_CANCELED, wanted == AD_STOP_KILL);
}

/* ---- what is due */

static void timed_out(agentd_exec *exec, uint64_t now, bool idle)
{
	struct ad_record record = { .count = 0 };
	uint64_t limit = idle ? exec->spec.limits.idle_timeout_ms : exec->spec.limits.timeout_ms;

	exec->deadline = AD_NEVER;
	ad_log_exec(exec, AGENTD_LOG_DEBUG, "core", "Shell exec timeout reached", NULL);
	ad_exec_stop(exec, idle ? AGENTD_CAUSE_IDLE_TIMEOUT : AGENTD_CAUSE_TIMEOUT, false);
	ad_record_u64(&record, "timeout_ms", limit);
	ad_record_u64(&record, "elapsed_ms", (now - exec->begun_at) / AD_NS_PER_MS);
	ad_log_exec(exec, AGENTD_LOG_WARN, "core",
		    "Shell command timed out; attempting to terminate", &record);
}

static void heartbeat(agentd_exec *exec, uint64_t now)
{
	struct ad_record record = { .count = 0 };

	exec->heartbeat_at = later(now, exec->runner->heartbeat_ns);
	ad_record_i64(&record, "child_pid", exec->pid);
	ad_record_u64(&record, "elapsed_ms", (now - exec->begun_at) / AD_NS_PER_MS);
	ad_log_exec(exec, AGENTD_LOG_INFO, "core", "Shell command still running", &record);
}

static bool idle_for_too_long(const agentd_exec *exec, uint64_t now)
{
	uint64_t limit = exec->spec.limits.idle_timeout_ms;

	/* A sink that said "not now" makes the command wait: that is not its idleness. */
	return limit && exec->started_at && !exec->exited && !exec->stop_cause &&
	       !ad_streams_paused(exec) && now >= later(exec->active_at, ms_to_ns(limit));
}

static void give_up(agentd_exec *exec, const char *what)
{
	if (!exec->error)
		ad_fail(&exec->error, exec->started_at ? AGENTD_ERR_BACKEND : AGENTD_ERR_TIMEOUT,
			NULL, "backend \"%s\" %s", exec->plan.backend->name, what);
	finish_soon(exec);
}

static void timer_fired(struct ad_timer *timer, void *userdata)
{
	agentd_exec *exec = userdata;
	agentd_runner *runner = exec->runner;
	uint64_t now = ad_exec_now();

	(void)timer;
	ad_runner_pin(runner);
	agentd_exec_ref(exec);
	exec->armed_at = AD_NEVER;
	if (now >= exec->setup_until) {
		exec->setup_until = AD_NEVER;
		(void)ad_task_kill(&exec->task);
		give_up(exec, "did not start the command in time");
	}
	if (now >= exec->heartbeat_at)
		heartbeat(exec, now);
	if (now >= exec->deadline) {
		exec->deadline = AD_NEVER;
		if (!exec->exited)
			timed_out(exec, now, false);
		else /* it ended in time; only its output is waiting for the sink */
			exec->deadline_passed = true;
	} else if (idle_for_too_long(exec, now)) {
		timed_out(exec, now, true);
	}
	if (now >= exec->kill_at)
		kill_task(exec);
	if (now >= exec->lost_at) {
		exec->lost_at = AD_NEVER;
		give_up(exec, "did not report the end of a killed command");
	}
	if (exec->runner)
		ad_exec_settle(exec);
	agentd_exec_unref(exec);
	ad_runner_unpin(runner);
}

/* A sink that said "not now" stops the clock of the drain, until the deadline or a kill. */
static bool sink_is_waited_for(const agentd_exec *exec)
{
	return (ad_streams_paused(exec) || ad_sink_pending(exec->binding) > 0) &&
	       !exec->stop_cause && !exec->deadline_passed;
}

void ad_exec_settle(agentd_exec *exec)
{
	uint64_t now;
	bool drained, over, waiting;

	if (!exec->runner || exec->finishing)
		return;
	now = ad_exec_now();
	over = ad_streams_over(exec);
	drained = over && ad_sink_pending(exec->binding) == 0;
	waiting = sink_is_waited_for(exec);
	if (exec->exited && exec->task.running && !exec->killed) {
		/* Descendants outlive the command: they may finish writing for a bounded time,
		 * unless nobody would read it. */
		if (over || (now >= exec->drain_until && !waiting))
			kill_task(exec);
	}
	if (exec->task_over && (drained || (now >= exec->drain_until && !waiting)))
		finish_soon(exec);
	else
		arm(exec, now);
}

/* ---- what the backend reports */

static agentd_exec *exec_of(agentd_task *task)
{
	return AD_CONTAINER_OF(task, agentd_exec, task);
}

static void on_started(agentd_task *task, int32_t pid)
{
	agentd_exec *exec = exec_of(task);
	struct ad_record record = { .count = 0 };

	exec->pid = pid;
	exec->started_at = exec->active_at = ad_exec_now();
	exec->setup_until = AD_NEVER;
	exec->deadline = later(exec->started_at, ms_to_ns(exec->spec.limits.timeout_ms));
	if (ad_log_wanted(exec->runner, AGENTD_LOG_INFO)) {
		exec->heartbeat_at = later(exec->started_at, exec->runner->heartbeat_ns);
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

	if (exec->finishing) {
		stream->bytes += len;
		exec->dropped += len;
		return AGENTD_SINK_CONTINUE;
	}
	if (ad_stream_deliver(stream, data, len) == AGENTD_SINK_PAUSE)
		stream->paused = true;
	return stream->paused ? AGENTD_SINK_PAUSE : AGENTD_SINK_CONTINUE;
}

static void on_stdin_drained(agentd_task *task)
{
	agentd_exec *exec = exec_of(task);

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

static void on_protection(agentd_task *task, const char *layer, int32_t state, const char *reason)
{
	agentd_exec *exec = exec_of(task);

	/* A receipt that lost a line would not be true: such a run must not go on. */
	if (ad_receipt_set(&exec->receipt, layer, state, reason) < 0) {
		if (!exec->error)
			(void)ad_fail_nomem(&exec->error);
		ad_exec_stop(exec, AGENTD_CAUSE_BACKEND_LOST, true);
	}
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

static void on_limit_hit(agentd_task *task, const char *limit, bool fatal)
{
	agentd_exec *exec = exec_of(task);

	note_limit(exec, limit);
	if (fatal && !exec->fatal_cause) {
		exec->fatal_cause = cause_of_limit(limit);
		snprintf(exec->limit, sizeof(exec->limit), "%s", limit);
	}
}

static void on_exited(agentd_task *task, int wait_status, uint64_t at_ns)
{
	agentd_exec *exec = exec_of(task);
	uint64_t now = ad_exec_now();

	exec->exited = true;
	exec->wait_status = wait_status;
	exec->exited_at = at_ns && at_ns <= now ? at_ns : now;
	exec->kill_at = exec->heartbeat_at = AD_NEVER;
	exec->drain_until = later(now, exec->runner->drain_ns);
	if (exec->finishing)
		return;
	ad_sink_exited(exec->binding, WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : -1,
		       WIFSIGNALED(wait_status) ? WTERMSIG(wait_status) : 0);
	ad_exec_settle(exec);
}

static void on_closed(agentd_task *task)
{
	agentd_exec *exec = exec_of(task);

	exec->task_over = true;
	exec->lost_at = AD_NEVER;
	ad_exec_net_close(exec);
	ad_streams_end_pushed(exec);
	exec->drain_until = later(ad_exec_now(), exec->runner->drain_ns);
	if (!exec->exited && !exec->error)
		ad_fail(&exec->error, AGENTD_ERR_BACKEND, NULL,
			"backend \"%s\" lost the command: it closed without an exit status",
			exec->plan.backend->name);
	ad_exec_settle(exec);
}

/* r: what the sink answered to a record, not the first. */
static void check_logged(agentd_exec *exec, int32_t r)
{
	if (r == 0)
		return;
	exec->sink_failed = true;
	if (!exec->error)
		ad_fail(&exec->error, r < 0 ? r : AGENTD_ERR_USER, NULL,
			"the sink refused a log record");
	ad_exec_stop(exec, AGENTD_CAUSE_SINK, true);
}

/* Does err say that the session was gone before the command began (agentd/backend.h, of
 * session_start)? Then it is started anew, once, unless the command is stopped meanwhile. */
static bool starts_anew(agentd_exec *exec, const agentd_error *err)
{
	struct ad_record record = { .count = 0 };

	if (!exec->lease.entry || exec->started_anew || exec->finishing || exec->stop_cause ||
	    exec->started_at || exec->pipes || exec->egress ||
	    agentd_error_code(err) != AGENTD_ERR_BACKEND || agentd_error_os_errno(err) != ESRCH)
		return false;
	exec->starts_anew = exec->started_anew = exec->task_lost = true;
	exec->setup_until = AD_NEVER;
	ad_defer(&exec->step);
	ad_record_text(&record, "session_id", exec->context->session_id);
	ad_record_text(&record, "error", agentd_error_message(err));
	check_logged(exec, ad_log_both(exec, AGENTD_LOG_WARN, "core",
				       "The session was gone before the command began; it is "
				       "started anew",
				       &record));
	return true;
}

static void on_failed(agentd_task *task, agentd_error *err)
{
	agentd_exec *exec = exec_of(task);
	int code = agentd_error_code(err);

	if (starts_anew(exec, err)) {
		agentd_error_unref(err);
		return;
	}
	exec->task_over = true;
	exec->task_lost = code == AGENTD_ERR_BACKEND || code == AGENTD_ERR_PROTOCOL;
	exec->lost_at = exec->setup_until = AD_NEVER;
	ad_exec_net_close(exec);
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
	ad_streams_end_pushed(exec);
	exec->drain_until = later(ad_exec_now(), exec->runner->drain_ns);
	if (exec->started_at)
		ad_exec_settle(exec);
	else
		finish_soon(exec);
}

static void on_closed_late(agentd_task *task)
{
	ad_defer(&exec_of(task)->step);
}

static void on_log(agentd_task *task, int32_t level, const char *message)
{
	agentd_exec *exec = exec_of(task);

	if (!exec->finishing && level <= ad_log_most(exec->runner))
		check_logged(exec,
			     ad_log_sink(exec, level, exec->plan.backend->name, message, true));
}

static const struct ad_task_listener task_listener = {
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

/* ---- starting */

static void fail_to_start(agentd_exec *exec, int code, agentd_error *err)
{
	exec->plan.refused_cause = code == AGENTD_ERR_DENIED || code == AGENTD_ERR_UNSUPPORTED ?
					   AGENTD_CAUSE_ISOLATION :
					   AGENTD_CAUSE_SPAWN;
	agentd_error_unref(exec->plan.refusal);
	exec->plan.refusal = err;
	exec->finishing = true;
	finish(exec);
}

static uint64_t setup_until(const agentd_exec *exec)
{
	return later(ad_exec_now(), ms_to_ns(exec->plan.backend->ops.setup_max_ms));
}

static bool probe_is_awaited(agentd_exec *exec)
{
	exec->setup_until = setup_until(exec);
	if (exec->plan.backend->probe != AD_PROBE_PENDING)
		return false;
	exec->waiting_probe = true;
	arm(exec, ad_exec_now());
	return true;
}

static void launch(agentd_exec *exec);

/* An ephemeral sandbox takes the place of the session, and says so. */
static void report_fallback(agentd_exec *exec)
{
	ad_autobuf struct ad_buf text = { 0 };
	const char *why = agentd_error_message(exec->plan.no_session);
	struct ad_record record = { .count = 0 };

	ad_record_text(&record, "session_id", exec->context->session_id);
	ad_record_text(&record, "error", why);
	check_logged(exec,
		     ad_log_both(exec, AGENTD_LOG_WARN, "core",
				 "Failed to acquire micro-VM; falling back to ephemeral sandbox",
				 &record));
	ad_buf_printf(&text, "an ephemeral sandbox took its place: %s", why);
	on_protection(&exec->task, "session", AGENTD_LAYER_ABSENT,
		      text.failed ? "an ephemeral sandbox took its place" : text.data);
}

/* Takes why. */
static void fall_back(agentd_exec *exec, agentd_error *why)
{
	agentd_error *err = NULL;
	int r;

	ad_spec_clear(exec);
	r = ad_plan_fall_back(exec, why, &err);
	if (r < 0) {
		fail_to_start(exec, r, err);
	} else if (exec->plan.refused_cause) {
		exec->finishing = true;
		finish(exec);
	} else {
		report_fallback(exec);
		if (!exec->finishing && !exec->stop_cause && !probe_is_awaited(exec))
			launch(exec);
	}
}

static void start_task(agentd_exec *exec)
{
	agentd_error *err = NULL;
	int r = ad_task_start(&exec->task, exec->plan.backend, &task_listener, &exec->spec, &err);

	if (r < 0) {
		if (starts_anew(exec, err))
			agentd_error_unref(err);
		else
			fail_to_start(exec, r, err);
		return;
	}
	/* Stopped or failed from inside task_start: what follows is on its way. */
	ad_exec_settle(exec);
}

static void session_granted(struct ad_pool_lease *lease, void *session, agentd_error *err)
{
	agentd_exec *exec = AD_CONTAINER_OF(lease, agentd_exec, lease);
	agentd_runner *runner = exec->runner;
	struct ad_record record = { .count = 0 };

	ad_runner_pin(runner);
	agentd_exec_ref(exec);
	exec->waiting_session = false;
	if (exec->finishing) {
		agentd_error_unref(err);
	} else if (err) {
		fall_back(exec, err);
	} else {
		exec->spec.session = session;
		exec->setup_until = setup_until(exec);
		ad_record_text(&record, "session_id", exec->context->session_id);
		ad_record_text(&record, "domain",
			       exec->context->session_domain ? exec->context->session_domain :
							       "unknown");
		ad_log_exec(exec, AGENTD_LOG_INFO, "core",
			    "Executing shell command inside persistent VM", &record);
		on_protection(&exec->task, "session", AGENTD_LAYER_ENFORCED,
			      exec->context->session_id);
		if (!exec->finishing)
			start_task(exec);
	}
	agentd_exec_unref(exec);
	ad_runner_unpin(runner);
}

/* The pool's own limit of time holds until it has answered. r, err: of the asking. */
static void await_session(agentd_exec *exec, int r, agentd_error *err)
{
	if (r < 0) {
		fall_back(exec, err);
		return;
	}
	exec->waiting_session = true;
	exec->setup_until = AD_NEVER;
}

static void acquire(agentd_exec *exec)
{
	agentd_error *err = NULL;
	int r;

	exec->lease.spec = &exec->spec;
	exec->lease.granted = session_granted;
	r = ad_pool_acquire(exec->plan.pool, &exec->lease, exec->context->session_id, &err);
	await_session(exec, r, err);
}

static void acquire_again(agentd_exec *exec)
{
	agentd_error *err = NULL;
	int r;

	exec->starts_anew = exec->task_lost = false;
	exec->spec.session = NULL;
	ad_task_release(&exec->task);
	ad_receipt_clear(&exec->receipt);
	r = ad_pool_acquire_again(&exec->lease, &err);
	await_session(exec, r, err);
}

static void launch(agentd_exec *exec)
{
	agentd_error *err = NULL;
	int r;

	exec->waiting_probe = false;
	if (exec->plan.backend->probe == AD_PROBE_UNUSABLE) {
		err = agentd_error_ref(exec->plan.backend->probe_error);
		if (exec->plan.pool)
			fall_back(exec, err);
		else
			fail_to_start(exec, agentd_error_code(err), err);
		return;
	}
	r = ad_spec_fill(exec, &err);
	if (r < 0)
		fail_to_start(exec, r, err);
	else if (exec->plan.pool)
		acquire(exec);
	else
		start_task(exec);
}

/* "Executing shell command: <command>", as the original's first record. */
static int32_t announce(agentd_exec *exec)
{
	struct ad_buf text = { 0 };
	int32_t r;

	ad_buf_puts(&text, "Executing shell command: ");
	if (exec->params->script) {
		ad_buf_puts(&text, exec->params->script);
	} else {
		for (char **arg = exec->params->argv; *arg; arg++) {
			ad_buf_puts(&text, *arg);
			if (arg[1])
				ad_buf_puts(&text, " ");
		}
	}
	r = text.failed ? AGENTD_ERR_NOMEM :
			  ad_log_sink(exec, AGENTD_LOG_INFO, "core", text.data, false);
	ad_buf_free(&text);
	return r;
}

static void begin(agentd_exec *exec)
{
	struct ad_record record = { .count = 0 };
	int32_t r;

	exec->state = AGENTD_STATE_STARTING;
	exec->begun_at = ad_exec_now();
	r = announce(exec);
	if (r != 0) {
		if (!exec->error)
			ad_fail(&exec->error, r < 0 ? r : AGENTD_ERR_USER, NULL,
				"the sink refused the first log record");
		exec->sink_failed = true;
		exec->stop_cause = AGENTD_CAUSE_SINK;
		exec->stopped_at = exec->begun_at;
	}
	if (exec->stop_cause || exec->plan.refused_cause) {
		exec->finishing = true;
		finish(exec);
		return;
	}
	if (ad_log_wanted(exec->runner, AGENTD_LOG_DEBUG)) {
		ad_record_u64(&record, "timeout_ms", exec->plan.limits.timeout_ms);
		ad_record_text(&record, "workdir", exec->context->workdir);
		ad_log_exec(exec, AGENTD_LOG_DEBUG, "core", "Starting shell.exec runner", &record);
	}
	exec->begun_at = ad_exec_now();
	if (exec->plan.no_session)
		report_fallback(exec);
	if (!exec->finishing && !exec->stop_cause && !probe_is_awaited(exec))
		launch(exec);
}

/* The drain may have run out because the host was busy elsewhere: what is in the pipes
 * by then is delivered, and the sink may say "not now" of that too. True: it did. */
static bool sink_delays_end(agentd_exec *exec)
{
	if (!exec->task_over || exec->stop_cause || exec->deadline_passed || exec->sink_failed)
		return false;
	exec->finishing = false;
	ad_streams_read_rest(exec);
	if (!exec->finishing && sink_is_waited_for(exec)) {
		arm(exec, ad_exec_now());
		return true;
	}
	exec->finishing = true;
	return false;
}

void ad_exec_step(struct ad_defer *defer, void *userdata)
{
	agentd_exec *exec = userdata;
	agentd_runner *runner = exec->runner;

	(void)defer;
	if (!runner) { /* it had been given up, and has ended after all */
		ad_task_release(&exec->task);
		forget_spec(exec);
		agentd_exec_unref(exec);
		return;
	}
	ad_runner_pin(runner);
	agentd_exec_ref(exec);
	if (exec->finishing && !sink_delays_end(exec))
		finish(exec);
	else if (exec->state == AGENTD_STATE_QUEUED)
		begin(exec);
	else if (exec->waiting_probe && exec->plan.backend->probe != AD_PROBE_PENDING)
		launch(exec);
	else if (exec->starts_anew)
		acquire_again(exec);
	agentd_exec_unref(exec);
	ad_runner_unpin(runner);
}

void ad_exec_abandon(agentd_exec *exec)
{
	(void)ad_task_kill(&exec->task);
	exec->state = AGENTD_STATE_FINISHED;
	agentd_result_unref(AD_STEAL(exec->result));
	if (exec->task.running) {
		exec->task.running = false;
		exec->task.closed = true;
	}
	release(exec);
}

/* The sink takes more of a stream: the clocks that stood still start anew. */
static void go_on(agentd_exec *exec, agentd_stream stream)
{
	uint64_t now = ad_exec_now();

	if (!exec->runner || exec->finishing)
		return;
	exec->active_at = now;
	if (exec->drain_until != AD_NEVER && !exec->stop_cause)
		exec->drain_until = later(now, exec->runner->drain_ns);
	if (!ad_sink_paused(exec->binding, stream))
		ad_stream_resume(exec, stream);
	ad_exec_settle(exec);
}

static int check_opts(const struct agentd_exec_opts *given, struct agentd_exec_opts *opts,
		      struct agentd_limits *limits, agentd_error **reterr)
{
	int r = 0;

	*opts = (struct agentd_exec_opts){ .size = sizeof(*opts) };
	*limits = (struct agentd_limits){ .size = sizeof(*limits) };
	if (given)
		r = ad_sized_copy(opts, sizeof(*opts), given, sizeof(*opts),
				  "struct agentd_exec_opts", reterr);
	if (r == 0 && opts->limits)
		r = ad_sized_copy(limits, sizeof(*limits), opts->limits, sizeof(*limits),
				  "struct agentd_limits", reterr);
	if (r < 0)
		return r;
	if (opts->reserved0)
		return ad_fail(reterr, AGENTD_ERR_ABI, NULL, "agentd_exec_opts.reserved0 is not 0");
	if (opts->flags & ~(uint32_t)(AGENTD_EXEC_STDIN_OPEN | AGENTD_EXEC_MERGE_STDERR |
				      AGENTD_EXEC_KILL_ON_OUTPUT))
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "agentd_exec_opts.flags has unknown bits: 0x%x", opts->flags);
	return 0;
}

static int check_start(agentd_runner *runner, agentd_context *ctx, agentd_params *params,
		       agentd_error **reterr)
{
	if (!runner || !ctx || !params)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s is NULL",
			       !runner ? "runner" :
			       !ctx    ? "ctx" :
					 "params");
	if (runner->in_log)
		return ad_fail(reterr, AGENTD_ERR_REENTRANT, NULL,
			       "a log callback may not start a command");
	if (runner->shutting_down || runner->released)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL, "the runner is shutting down");
	if (runner->active_count >= runner->max_running &&
	    runner->queued_count >= runner->max_queued)
		return ad_fail(reterr, AGENTD_ERR_LIMIT, NULL,
			       "%u commands are running and %u waiting: max_running and max_queued "
			       "are reached",
			       runner->active_count, runner->queued_count);
	return 0;
}

static agentd_exec *exec_new(agentd_runner *runner)
{
	agentd_exec *exec = calloc(1, sizeof(*exec));

	if (!exec)
		return NULL;
	pthread_mutex_init(&exec->lock, NULL);
	exec->refs = 1;
	exec->runner = runner;
	exec->created_at = ad_exec_now();
	exec->setup_until = exec->deadline = exec->heartbeat_at = exec->kill_at =
		exec->drain_until = exec->lost_at = exec->armed_at = AD_NEVER;
	exec->spec.netns = exec->spec.credentials_fd = -1;
	snprintf(exec->id, sizeof(exec->id), "%s-%llu", runner->id_prefix,
		 (unsigned long long)++runner->next_id);
	ad_list_init(&exec->link);
	ad_list_init(&exec->asks);
	ad_streams_init(exec);
	ad_timer_init(&exec->timer, runner->loop, timer_fired, exec);
	ad_defer_init(&exec->step, runner->loop, ad_exec_step, exec);
	return exec;
}

int agentd_exec_start(agentd_runner *runner, agentd_context *ctx, agentd_params *params,
		      agentd_sink *sink, const struct agentd_exec_opts *given, agentd_exec **ret,
		      agentd_error **reterr)
{
	struct agentd_exec_opts opts;
	struct agentd_limits limits;
	agentd_exec *exec;
	int saved = errno;
	int r = check_start(runner, ctx, params, reterr);

	if (r == 0)
		r = check_opts(given, &opts, &limits, reterr);
	if (r < 0)
		return r;
	exec = exec_new(runner);
	if (!exec)
		return ad_fail_nomem(reterr);
	exec->flags = opts.flags;
	exec->own_limits = limits;
	exec->grace_ns = ms_to_ns(opts.grace_ms ? opts.grace_ms : GRACE_DEFAULT_MS);
	exec->context = ad_context_snapshot(ctx);
	exec->params = agentd_params_ref(params);
	exec->result = ad_result_new(); /* so that the end of a command cannot fail */
	r = exec->result ? ad_plan_make(runner, exec->context, params, &exec->own_limits,
					&exec->plan, reterr) :
			   ad_fail_nomem(reterr);
	if (r == 0) {
		r = ad_sink_bind(sink, exec, runner->loop, go_on, &exec->binding);
		if (r < 0)
			ad_fail(reterr, r, NULL, "the sink could not be attached: %s",
				agentd_strerror(r));
	}
	if (r < 0) {
		ad_plan_clear(&exec->plan);
		ad_context_state_unref(exec->context);
		agentd_params_unref(exec->params);
		agentd_exec_unref(exec);
		errno = saved;
		return r;
	}
	exec->spec.limits = exec->plan.limits;
	if (runner->active_count < runner->max_running) {
		exec->placed = true;
		runner->active_count++;
		ad_list_append(&runner->active, &exec->link);
		ad_defer(&exec->step);
	} else {
		runner->queued_count++;
		ad_list_append(&runner->queued, &exec->link);
	}
	if (ret)
		*ret = agentd_exec_ref(exec);
	errno = saved;
	return 0;
}

agentd_exec *agentd_exec_ref(agentd_exec *exec)
{
	if (exec)
		ad_ref(&exec->refs);
	return exec;
}

void agentd_exec_unref(agentd_exec *exec)
{
	if (!exec || !ad_unref(&exec->refs))
		return;
	agentd_result_unref(exec->result);
	agentd_error_unref(exec->error);
	pthread_mutex_destroy(&exec->lock);
	free(exec);
}

static int want_stop(agentd_exec *exec, int level)
{
	int saved = errno;
	int before;
	bool here = false;

	if (!exec)
		return AGENTD_ERR_INVALID;
	before = atomic_load(&exec->wanted);
	while (before < level && !atomic_compare_exchange_weak(&exec->wanted, &before, level))
		;
	pthread_mutex_lock(&exec->lock);
	if (exec->runner) {
		here = ad_runner_on_loop(exec->runner);
		if (!here)
			ad_runner_wake(exec->runner);
	}
	pthread_mutex_unlock(&exec->lock);
	if (here)
		ad_exec_apply_wanted(exec);
	errno = saved;
	return 0;
}

int agentd_exec_cancel(agentd_exec *exec)
{
	return want_stop(exec, AD_STOP_CANCEL);
}

int agentd_exec_kill(agentd_exec *exec)
{
	return want_stop(exec, AD_STOP_KILL);
}

static int check_live(const agentd_exec *exec)
{
	if (!exec)
		return AGENTD_ERR_INVALID;
	if (!exec->runner || exec->state == AGENTD_STATE_FINISHED)
		return AGENTD_ERR_STATE;
	return exec->runner->in_log ? AGENTD_ERR_REENTRANT : 0;
}

int agentd_exec_signal(agentd_exec *exec, int32_t signo, agentd_error **reterr)
{
	int r = check_live(exec);

	if (r == 0 && (signo < 1 || signo > 64)) /* signal(7): standard and real-time */
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "signal %d does not exist", signo);
	if (r == 0)
		r = ad_task_signal(&exec->task, signo);
	if (r == AGENTD_ERR_STATE)
		return ad_fail(reterr, r, NULL, "the command is not running");
	return r < 0 ? ad_fail(reterr, r, NULL, "signal %d could not be delivered: %s", signo,
			       agentd_strerror(r)) :
		       r;
}

int agentd_exec_write(agentd_exec *exec, const uint8_t *data, size_t len, size_t *ret_taken)
{
	size_t taken = 0;
	int r = check_live(exec);

	if (r < 0)
		return r;
	if (!ret_taken || (!data && len > 0))
		return AGENTD_ERR_INVALID;
	if (!(exec->flags & AGENTD_EXEC_STDIN_OPEN))
		return AGENTD_ERR_STATE;
	if (!exec->task.running && (exec->task_over || exec->finishing || exec->stdin_closed))
		return AGENTD_ERR_STATE;
	if (!exec->task.running) {
		exec->stdin_waiting = true;
		return AGENTD_ERR_AGAIN;
	}
	r = ad_task_write(&exec->task, data, len, &taken);
	if (r == 0) {
		*ret_taken = taken;
		exec->active_at = ad_exec_now();
	}
	return r;
}

int agentd_exec_close_stdin(agentd_exec *exec)
{
	int r = check_live(exec);

	if (r < 0)
		return exec && r == AGENTD_ERR_STATE ? 0 : r;
	if (!(exec->flags & AGENTD_EXEC_STDIN_OPEN))
		return AGENTD_ERR_STATE;
	if (!exec->task.running && !exec->task_over && !exec->finishing) {
		exec->stdin_closed = true; /* before it runs: stdin is then /dev/null */
		return 0;
	}
	return ad_task_close_stdin(&exec->task);
}

int agentd_exec_resume(agentd_exec *exec, agentd_stream stream)
{
	int r;

	if (!exec || (stream != AGENTD_STDOUT && stream != AGENTD_STDERR))
		return AGENTD_ERR_INVALID;
	r = check_live(exec);
	if (r < 0)
		return r == AGENTD_ERR_STATE ? 0 : r;
	if (ad_sink_resume(exec->binding, stream))
		go_on(exec, stream);
	return 0;
}

int32_t agentd_exec_state(const agentd_exec *exec)
{
	return exec ? exec->state : AGENTD_STATE_FINISHED;
}

const char *agentd_exec_id(const agentd_exec *exec)
{
	return exec ? exec->id : "";
}

agentd_result *agentd_exec_result(const agentd_exec *exec)
{
	return exec && exec->state == AGENTD_STATE_FINISHED ? exec->result : NULL;
}
