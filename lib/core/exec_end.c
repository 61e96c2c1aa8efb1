/* SPDX-License-Identifier: MIT */
/* How an execution ended, who is told, and what goes. */
#include "core/exec.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "sys/sys.h"

void ad_exec_set_metric(agentd_exec *exec, int32_t metric, uint64_t value)
{
	if (metric <= 0 || metric >= AD_METRIC_COUNT)
		return;
	exec->metrics[metric] = value;
	exec->metrics_known |= 1u << metric;
}

void ad_exec_note_limit(agentd_exec *exec, const char *limit)
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
		       ad_exec_later_ms(exec->started_at, exec->spec.limits.timeout_ms);
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
			ad_exec_note_limit(exec, "file_bytes");
			result->cause = AGENTD_CAUSE_FILE_SIZE;
			result->status = AGENTD_STATUS_KILLED;
		} else if (result->signo == SIGXCPU && exec->spec.limits.cpu_time_ms) {
			ad_exec_note_limit(exec, "cpu_time_ms");
			result->cause = AGENTD_CAUSE_CPU_TIME;
			result->status = AGENTD_STATUS_KILLED;
		}
	} else {
		result->cause = AGENTD_CAUSE_EXITED;
		result->exit_code = WEXITSTATUS(status);
		result->status = result->exit_code == 0 ? AGENTD_STATUS_OK : AGENTD_STATUS_ERROR;
	}
	if (result->cause == AGENTD_CAUSE_TIMEOUT)
		ad_exec_note_limit(exec, "timeout_ms");
	else if (result->cause == AGENTD_CAUSE_IDLE_TIMEOUT)
		ad_exec_note_limit(exec, "idle_timeout_ms");
}

static void fill_result(agentd_exec *exec, agentd_result *result)
{
	uint64_t end = exec->exited ? exec->exited_at : ad_sys_now_ns();

	set_outcome(exec, result);
	if (result->cause == AGENTD_CAUSE_CANCELED && !exec->started_at) {
		/* Whatever the backend says of a start that it was to give up. */
		agentd_error_unref(AD_STEAL(exec->error));
		ad_fail(&exec->error, AGENTD_ERR_CANCELED, NULL, "cancelled before it started");
	}
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

static void log_end(agentd_exec *exec, const agentd_result *result)
{
	ad_streams_log_stderr(exec);
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
	if (exec->task.given_up)
		ad_pool_give_up(&exec->lease);
	else
		ad_pool_release(&exec->lease, exec->task_lost);
	ad_sink_unbind(AD_STEAL(exec->binding));
	ad_spec_close(exec);
	ad_plan_clear(&exec->plan);
	if (!exec->task.given_up)
		forget_spec(exec);
	ad_buf_free(&exec->stderr_tail);
	ad_receipt_clear(&exec->receipt);
	ad_list_remove(&exec->link);
	if (exec->task.given_up)
		ad_list_append(&runner->given_up, &exec->link);
	pthread_mutex_lock(&exec->lock);
	exec->runner = NULL;
	pthread_mutex_unlock(&exec->lock);
	ad_runner_exec_over(runner, exec->placed);
	agentd_exec_unref(exec);
}

void ad_exec_finish(agentd_exec *exec)
{
	agentd_runner *runner = exec->runner;
	agentd_result *result = exec->result;

	ad_runner_pin(runner);
	exec->finishing = true;
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

void ad_exec_ended_late(agentd_exec *exec)
{
	ad_list_remove(&exec->link);
	ad_task_release(&exec->task);
	ad_pool_release(&exec->lease, false);
	forget_spec(exec);
	agentd_exec_unref(exec);
}

void ad_exec_forget_late(agentd_exec *exec)
{
	ad_defer_cancel(&exec->step);
	exec->task.given_up = false;
	exec->task.closed = true;
	ad_exec_ended_late(exec);
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
