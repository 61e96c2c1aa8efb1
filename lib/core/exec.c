/* SPDX-License-Identifier: MIT */
/* One execution, as the host program has it: how it comes, goes, and is spoken to. */
#include "core/exec.h"

#include <string.h>

#include "sys/sys.h"

enum { GRACE_DEFAULT_MS = 2000 };

/* The next thing to do. */
static void step(struct ad_defer *defer, void *userdata)
{
	agentd_exec *exec = userdata;
	agentd_runner *runner = exec->runner;

	(void)defer;
	if (!runner) {
		ad_exec_ended_late(exec);
		return;
	}
	ad_runner_pin(runner);
	agentd_exec_ref(exec);
	if (exec->finishing && !ad_exec_sink_delays_end(exec))
		ad_exec_finish(exec);
	else if (exec->state == AGENTD_STATE_QUEUED)
		ad_exec_begin(exec);
	else if (exec->waiting_probe && exec->plan.backend->probe != AD_PROBE_PENDING)
		ad_exec_launch(exec);
	else if (exec->starts_anew)
		ad_exec_acquire_again(exec);
	agentd_exec_unref(exec);
	ad_runner_unpin(runner);
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
	exec->created_at = ad_sys_now_ns();
	exec->spec.netns = exec->spec.credentials_fd = -1;
	_Static_assert(sizeof(exec->id) >= sizeof(runner->id_prefix) - 1 + AD_DECIMAL_SIZE,
		       "it fits");
	memcpy(exec->id, runner->id_prefix, sizeof(runner->id_prefix));
	ad_decimal(++runner->next_id, exec->id + sizeof(runner->id_prefix) - 1);
	ad_list_init(&exec->link);
	ad_list_init(&exec->asks);
	ad_streams_init(exec);
	ad_exec_init_clocks(exec);
	ad_defer_init(&exec->step, runner->loop, step, exec);
	return exec;
}

static int prepare(agentd_exec *exec, agentd_context *ctx, agentd_params *params, agentd_sink *sink,
		   agentd_error **reterr)
{
	int r;

	exec->context = ad_context_snapshot(ctx);
	exec->params = agentd_params_ref(params);
	exec->result = ad_result_new(); /* so that the end of a command cannot fail */
	if (!exec->result)
		return ad_fail_nomem(reterr);
	r = ad_plan_make(exec->runner, exec->context, params, &exec->own_limits, &exec->plan,
			 reterr);
	if (r < 0)
		return r;
	exec->spec.limits = exec->plan.limits;
	r = ad_sink_bind(sink, exec, exec->runner->loop, ad_exec_go_on, &exec->binding);
	return r < 0 ? ad_fail(reterr, r, NULL, "the sink could not be attached: %s",
			       agentd_strerror(r)) :
		       0;
}

int agentd_exec_start(agentd_runner *runner, agentd_context *ctx, agentd_params *params,
		      agentd_sink *sink, const struct agentd_exec_opts *given, agentd_exec **ret,
		      agentd_error **reterr)
{
	struct agentd_exec_opts opts;
	struct agentd_limits limits;
	agentd_exec *exec;
	AD_KEEP_ERRNO;
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
	exec->grace_ns = (opts.grace_ms ? opts.grace_ms : GRACE_DEFAULT_MS) * AD_NS_PER_MS;
	r = prepare(exec, ctx, params, sink, reterr);
	if (r < 0) {
		ad_plan_clear(&exec->plan);
		ad_context_state_unref(exec->context);
		agentd_params_unref(exec->params);
		agentd_exec_unref(exec);
		return r;
	}
	ad_runner_exec_add(runner, exec);
	if (ret)
		*ret = agentd_exec_ref(exec);
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

void ad_exec_apply_wanted(agentd_exec *exec)
{
	int wanted = atomic_load(&exec->wanted);

	if (wanted != AD_STOP_NONE)
		ad_exec_stop(exec, AGENTD_CAUSE_CANCELED, wanted == AD_STOP_KILL);
}

static int want_stop(agentd_exec *exec, int level)
{
	AD_KEEP_ERRNO;
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
	AD_KEEP_ERRNO;
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
	AD_KEEP_ERRNO;
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
	exec->stdin_refused |= r == AGENTD_ERR_AGAIN;
	if (r == 0) {
		*ret_taken = taken;
		exec->stdin_given |= taken > 0;
		exec->active_at = ad_sys_now_ns();
	}
	return r;
}

int agentd_exec_close_stdin(agentd_exec *exec)
{
	AD_KEEP_ERRNO;
	int r = check_live(exec);

	if (r < 0)
		return exec && r == AGENTD_ERR_STATE ? 0 : r;
	if (!(exec->flags & AGENTD_EXEC_STDIN_OPEN))
		return AGENTD_ERR_STATE;
	exec->stdin_closed = true; /* for a task that is still to be started */
	return exec->task.running ? ad_task_close_stdin(&exec->task) : 0;
}

int agentd_exec_resume(agentd_exec *exec, agentd_stream stream)
{
	AD_KEEP_ERRNO;
	int r;

	if (!exec || (stream != AGENTD_STDOUT && stream != AGENTD_STDERR))
		return AGENTD_ERR_INVALID;
	r = check_live(exec);
	if (r < 0)
		return r == AGENTD_ERR_STATE ? 0 : r;
	if (ad_sink_resume(exec->binding, stream))
		ad_exec_go_on(exec, stream);
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
