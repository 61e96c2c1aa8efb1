/* SPDX-License-Identifier: MIT */
/* What happens to an execution, and what is next. */
#include "core/exec.h"

#include <signal.h>

#include "sys/sys.h"

/* ---- stopping */

void ad_exec_finish_soon(agentd_exec *exec)
{
	exec->finishing = true;
	ad_defer(&exec->step);
}

/* One that was killed can end from now on: nothing of it waits for the sink. */
static void await_end(agentd_exec *exec, uint64_t now)
{
	exec->lost_at = ad_exec_later_ms(now, exec->plan.backend->ops.close_max_ms);
}

static void kill_task(agentd_exec *exec)
{
	exec->kill_at = AD_NEVER;
	if (!exec->killed) {
		exec->killed = true;
		await_end(exec, ad_sys_now_ns());
	}
	(void)ad_task_kill(&exec->task);
}

void ad_exec_stop(agentd_exec *exec, int cause, bool now)
{
	if (exec->finishing || exec->state == AGENTD_STATE_FINISHED)
		return;
	if (!exec->stop_cause) {
		exec->stop_cause = cause;
		exec->stopped_at = ad_sys_now_ns();
	} else if (!now) {
		uint64_t kill_at = ad_exec_later(ad_sys_now_ns(), exec->grace_ns);

		/* A shutdown may have less patience than whoever asked before. */
		if (exec->kill_at != AD_NEVER && kill_at < exec->kill_at) {
			exec->kill_at = kill_at;
			ad_exec_settle(exec);
		}
		return;
	}
	exec->heartbeat_at = AD_NEVER;
	if (exec->state == AGENTD_STATE_QUEUED || !exec->task.running) {
		/* Nothing runs (yet, or any more): only what is in the pipes is left. */
		if (!exec->task_over)
			ad_exec_finish_soon(exec);
		else
			ad_exec_settle(exec);
		return;
	}
	exec->state = AGENTD_STATE_STOPPING;
	if (!now && exec->started_at && !exec->exited && ad_task_signal(&exec->task, SIGTERM) == 0)
		exec->kill_at = ad_exec_later(exec->stopped_at, exec->grace_ns);
	else
		kill_task(exec);
	ad_exec_settle(exec);
}

void ad_exec_check_logged(agentd_exec *exec, int32_t r)
{
	if (r == 0)
		return;
	exec->sink_failed = true;
	if (!exec->error)
		ad_fail(&exec->error, r < 0 ? r : AGENTD_ERR_USER, NULL,
			"the sink refused a log record");
	ad_exec_stop(exec, AGENTD_CAUSE_SINK, true);
}

/* ---- what is next */

/* A sink that said "not now" stops the clock of the drain, until the deadline or a kill. */
static bool sink_is_waited_for(const agentd_exec *exec)
{
	return (ad_streams_paused(exec) || ad_sink_pending(exec->binding) > 0) &&
	       !exec->stop_cause && !exec->deadline_passed;
}

static uint64_t idle_until(const agentd_exec *exec)
{
	/* A sink that said "not now" makes the command wait: that is not its idleness. */
	if (!exec->spec.limits.idle_timeout_ms || !exec->started_at || exec->exited ||
	    exec->stop_cause || ad_streams_paused(exec))
		return AD_NEVER;
	return ad_exec_later_ms(exec->active_at, exec->spec.limits.idle_timeout_ms);
}

/* One timer, set to the earliest of the times. */
static void arm(agentd_exec *exec, uint64_t now)
{
	const uint64_t times[] = { exec->setup_until, exec->deadline, exec->heartbeat_at,
				   exec->kill_at, exec->lost_at, idle_until(exec),
				   /* past and not acted on: the sink is being waited for */
				   exec->drain_until > now ? exec->drain_until : AD_NEVER };
	uint64_t next = AD_NEVER;

	for (size_t i = 0; i < AD_COUNT(times); i++)
		if (times[i] < next)
			next = times[i];
	/* A timer that is due earlier than needed costs one idle wake-up, setting it anew
	 * for every byte of output would cost more. */
	if (next == AD_NEVER || exec->armed_at <= next)
		return;
	exec->armed_at = next;
	if (ad_timer_start(&exec->timer, next > now ? next - now : 0) < 0)
		exec->armed_at = AD_NEVER;
}

void ad_exec_settle(agentd_exec *exec)
{
	uint64_t now;
	bool drained, over, waiting;

	if (!exec->runner || exec->finishing)
		return;
	now = ad_sys_now_ns();
	over = ad_streams_over(exec);
	drained = over && ad_sink_pending(exec->binding) == 0;
	waiting = sink_is_waited_for(exec);
	if (exec->exited && exec->task.running && !exec->killed) {
		/* Descendants outlive the command: they may finish writing for a bounded time,
		 * unless nobody would read it. */
		if (over || (now >= exec->drain_until && !waiting))
			kill_task(exec);
	}
	if (exec->killed && !waiting && ad_streams_let_go(exec) && !exec->task_over)
		await_end(exec, now);
	if (exec->task_over && (drained || (now >= exec->drain_until && !waiting)))
		ad_exec_finish_soon(exec);
	else
		arm(exec, now);
}

bool ad_exec_sink_delays_end(agentd_exec *exec)
{
	if (!exec->task_over || exec->stop_cause || exec->deadline_passed || exec->sink_failed)
		return false;
	exec->finishing = false;
	ad_streams_read_rest(exec);
	if (!exec->finishing && sink_is_waited_for(exec)) {
		arm(exec, ad_sys_now_ns());
		return true;
	}
	exec->finishing = true;
	return false;
}

void ad_exec_go_on(agentd_exec *exec, agentd_stream stream)
{
	uint64_t now = ad_sys_now_ns();

	if (!exec->runner || exec->finishing)
		return;
	if (sink_is_waited_for(exec)) {
		exec->active_at = now;
		if (exec->drain_until != AD_NEVER)
			exec->drain_until = ad_exec_later(now, exec->runner->drain_ns);
		if (exec->lost_at != AD_NEVER)
			await_end(exec, now);
	}
	if (!ad_sink_paused(exec->binding, stream))
		ad_stream_resume(exec, stream);
	ad_exec_settle(exec);
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

	exec->heartbeat_at = ad_exec_later(now, exec->runner->heartbeat_ns);
	ad_record_i64(&record, "child_pid", exec->pid);
	ad_record_u64(&record, "elapsed_ms", (now - exec->begun_at) / AD_NS_PER_MS);
	ad_log_exec(exec, AGENTD_LOG_INFO, "core", "Shell command still running", &record);
}

static void give_up(agentd_exec *exec, const char *what)
{
	if (!exec->error)
		ad_fail(&exec->error, exec->started_at ? AGENTD_ERR_BACKEND : AGENTD_ERR_TIMEOUT,
			NULL, "backend \"%s\" %s", exec->plan.backend->name, what);
	ad_exec_finish_soon(exec);
}

static void timer_fired(struct ad_timer *timer, void *userdata)
{
	agentd_exec *exec = userdata;
	agentd_runner *runner = exec->runner;
	uint64_t now = ad_sys_now_ns();
	bool waited = sink_is_waited_for(exec);

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
	if (now >= exec->deadline && exec->exited) {
		/* It ended in time; only its output is waiting for the sink. */
		exec->deadline = AD_NEVER;
		exec->deadline_passed = true;
	} else if (now >= exec->deadline) {
		timed_out(exec, now, false);
	} else if (now >= idle_until(exec)) {
		timed_out(exec, now, true);
	}
	if (now >= exec->kill_at)
		kill_task(exec);
	if (now >= exec->lost_at && waited) {
		/* It may not end before that has taken what came with the end. */
		await_end(exec, now);
	} else if (now >= exec->lost_at) {
		exec->lost_at = AD_NEVER;
		give_up(exec, "did not report the end of a killed command");
	}
	ad_exec_settle(exec);
	agentd_exec_unref(exec);
	ad_runner_unpin(runner);
}

void ad_exec_init_clocks(agentd_exec *exec)
{
	exec->setup_until = exec->deadline = exec->heartbeat_at = exec->kill_at =
		exec->drain_until = exec->lost_at = exec->armed_at = AD_NEVER;
	ad_timer_init(&exec->timer, exec->runner->loop, timer_fired, exec);
}
