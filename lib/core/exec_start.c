/* SPDX-License-Identifier: MIT */
/* From an execution's first log record to a task that runs. */
#include "core/exec.h"

#include <errno.h>

#include "sys/sys.h"

static void fail_to_start(agentd_exec *exec, int code, agentd_error *err)
{
	exec->plan.refused_cause = code == AGENTD_ERR_DENIED || code == AGENTD_ERR_UNSUPPORTED ?
					   AGENTD_CAUSE_ISOLATION :
					   AGENTD_CAUSE_SPAWN;
	agentd_error_unref(exec->plan.refusal);
	exec->plan.refusal = err;
	ad_exec_finish(exec);
}

static uint64_t setup_until(const agentd_exec *exec)
{
	return ad_exec_later_ms(ad_sys_now_ns(), exec->plan.backend->ops.setup_max_ms);
}

/* An ephemeral sandbox takes the place of the session, and says so. */
static void report_fallback(agentd_exec *exec)
{
	ad_autobuf struct ad_buf text = { 0 };
	const char *why = agentd_error_message(exec->plan.no_session);
	struct ad_record record = { .count = 0 };

	ad_record_text(&record, "session_id", exec->context->session_id);
	ad_record_text(&record, "error", why);
	ad_exec_check_logged(
		exec, ad_log_both(exec, AGENTD_LOG_WARN, "core",
				  "Failed to acquire micro-VM; falling back to ephemeral sandbox",
				  &record));
	ad_buf_printf(&text, "an ephemeral sandbox took its place: %s", why);
	ad_exec_set_protection(exec, "session", AGENTD_LAYER_ABSENT,
			       text.failed ? "an ephemeral sandbox took its place" : text.data);
}

static void launch_when_probed(agentd_exec *exec)
{
	if (exec->plan.no_session)
		report_fallback(exec);
	if (exec->finishing || exec->stop_cause)
		return;
	exec->setup_until = setup_until(exec);
	exec->waiting_probe = exec->plan.backend->probe == AD_PROBE_PENDING;
	if (exec->waiting_probe)
		ad_exec_settle(exec);
	else
		ad_exec_launch(exec);
}

/* Takes why. */
static void fall_back(agentd_exec *exec, agentd_error *why)
{
	agentd_error *err = NULL;
	int r;

	ad_spec_clear(exec);
	r = ad_plan_fall_back(exec, why, &err);
	if (r < 0)
		fail_to_start(exec, r, err);
	else if (exec->plan.refused_cause)
		ad_exec_finish(exec);
	else
		launch_when_probed(exec);
}

bool ad_exec_starts_anew(agentd_exec *exec, const agentd_error *err)
{
	struct ad_record record = { .count = 0 };

	if (!exec->lease.entry || exec->started_anew || exec->finishing || exec->stop_cause ||
	    exec->started_at || exec->pipes || exec->egress || exec->stdin_given ||
	    agentd_error_code(err) != AGENTD_ERR_BACKEND || agentd_error_os_errno(err) != ESRCH)
		return false;
	exec->starts_anew = exec->started_anew = exec->task_lost = true;
	exec->setup_until = AD_NEVER;
	ad_defer(&exec->step);
	ad_record_text(&record, "session_id", exec->context->session_id);
	ad_record_text(&record, "error", agentd_error_message(err));
	ad_exec_check_logged(exec,
			     ad_log_both(exec, AGENTD_LOG_WARN, "core",
					 "The session was gone before the command began; it is "
					 "started anew",
					 &record));
	return true;
}

static void start_task(agentd_exec *exec)
{
	agentd_error *err = NULL;
	int r;

	/* Perhaps while it waited for its session: stdin is /dev/null then. */
	if (exec->stdin_closed)
		exec->spec.flags &= ~(uint32_t)AGENTD_EXEC_STDIN_OPEN;
	r = ad_task_start(&exec->task, exec->plan.backend, &ad_exec_task_listener, &exec->spec,
			  &err);
	if (r < 0) {
		if (ad_exec_starts_anew(exec, err))
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
		ad_exec_set_protection(exec, "session", AGENTD_LAYER_ENFORCED,
				       exec->context->session_id);
		if (!exec->finishing)
			start_task(exec);
	}
	agentd_exec_unref(exec);
	ad_runner_unpin(runner);
}

/* It had been given up. */
static void session_gone(struct ad_pool_lease *lease)
{
	ad_exec_forget_late(AD_CONTAINER_OF(lease, agentd_exec, lease));
}

/* The pool's own limit of time holds until it has answered. r, err: of the asking. */
static void await_session(agentd_exec *exec, int r, agentd_error *err)
{
	if (r < 0)
		fall_back(exec, err);
	else
		exec->setup_until = AD_NEVER;
}

static void acquire(agentd_exec *exec)
{
	agentd_error *err = NULL;
	int r;

	exec->lease.spec = &exec->spec;
	exec->lease.granted = session_granted;
	exec->lease.gone = session_gone;
	r = ad_pool_acquire(exec->plan.pool, &exec->lease, exec->context->session_id, &err);
	await_session(exec, r, err);
}

void ad_exec_acquire_again(agentd_exec *exec)
{
	agentd_error *err = NULL;
	int r;

	exec->starts_anew = exec->task_lost = false;
	exec->stdin_waiting |= exec->stdin_refused;
	exec->spec.session = NULL;
	ad_task_release(&exec->task);
	ad_receipt_clear(&exec->receipt);
	r = ad_pool_acquire_again(&exec->lease, &err);
	await_session(exec, r, err);
}

void ad_exec_launch(agentd_exec *exec)
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
	ad_autobuf struct ad_buf text = { 0 };

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
	return text.failed ? AGENTD_ERR_NOMEM :
			     ad_log_sink(exec, AGENTD_LOG_INFO, "core", text.data, false);
}

void ad_exec_begin(agentd_exec *exec)
{
	struct ad_record record = { .count = 0 };
	int32_t r;

	exec->state = AGENTD_STATE_STARTING;
	exec->begun_at = ad_sys_now_ns();
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
		ad_exec_finish(exec);
		return;
	}
	if (ad_log_wanted(exec->runner, AGENTD_LOG_DEBUG)) {
		ad_record_u64(&record, "timeout_ms", exec->plan.limits.timeout_ms);
		ad_record_text(&record, "workdir", exec->context->workdir);
		ad_log_exec(exec, AGENTD_LOG_DEBUG, "core", "Starting shell.exec runner", &record);
	}
	exec->begun_at = ad_sys_now_ns();
	launch_when_probed(exec);
}
