/* SPDX-License-Identifier: MIT */
/* Back-pressure: a consumer that needs time pauses the stream, which fills the
 * pipe and makes the command wait. Nothing is lost and nothing piles up here.
 * The same command runs twice: read as fast as it writes, then at a pace. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

#include <event2/event.h>

#include <agentd/agentd.h>

enum { TOTAL = 8 << 20, STEP_MS = 20 };

struct consumer {
	struct event *rested;
	agentd_exec *exec;
	bool slow;
	uint64_t taken;
	unsigned pauses;
	double seconds;
};

/* err by its address: arguments have no order, and rc is what sets it. */
static void must(int rc, agentd_error **err)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "stream: %s\n", err ? agentd_error_message(*err) : agentd_strerror(rc));
	exit(1);
}

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	static const struct timeval rest = { .tv_usec = STEP_MS * 1000 };
	struct consumer *consumer = userdata;

	(void)data;
	(void)stream;
	consumer->taken += len; /* taken also when the answer is PAUSE */
	if (!consumer->slow)
		return AGENTD_SINK_CONTINUE;
	consumer->exec = exec;
	consumer->pauses++;
	event_add(consumer->rested, &rest);
	return AGENTD_SINK_PAUSE;
}

static void on_rested(evutil_socket_t fd, short what, void *userdata)
{
	struct consumer *consumer = userdata;

	(void)fd;
	(void)what;
	if (agentd_exec_resume(consumer->exec, AGENTD_STDOUT) < 0)
		fputs("stream: cannot resume\n", stderr);
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct consumer *consumer = userdata;
	uint64_t ns = 0;

	(void)exec;
	event_del(consumer->rested);
	agentd_result_metric(result, AGENTD_METRIC_WALL_NS, &ns);
	consumer->seconds = (double)ns / 1e9;
}

static void run(agentd_loop *loop, agentd_runner *runner, agentd_context *ctx,
		struct consumer *consumer)
{
	struct agentd_sink_ops ops = { .size = sizeof(ops),
				       .output = on_output,
				       .finished = on_finished };
	agentd_params *params = NULL;
	agentd_sink *sink = NULL;
	agentd_exec *exec = NULL;
	agentd_error *err = NULL;
	char script[64];

	consumer->rested = event_new(agentd_loop_event_base(loop), -1, 0, on_rested, consumer);
	if (!consumer->rested)
		exit(1);
	snprintf(script, sizeof(script), "head -c %d /dev/zero", TOTAL);
	must(agentd_params_new_shell(script, 0, &params, &err), &err);
	must(agentd_sink_new(&ops, consumer, &sink, &err), &err);
	must(agentd_exec_start(runner, ctx, params, sink, NULL, &exec, &err), &err);
	must(agentd_loop_run_until(loop, exec, -1, &err), &err);
	printf("%s: %llu bytes, paused %u times, the command took %.3f s\n",
	       consumer->slow ? "slow consumer" : "fast consumer",
	       (unsigned long long)consumer->taken, consumer->pauses, consumer->seconds);
	event_free(consumer->rested);
	agentd_exec_unref(exec);
	agentd_sink_unref(sink);
	agentd_params_unref(params);
}

int main(void)
{
	struct agentd_runner_opts opts = { .size = sizeof(opts) };
	struct consumer fast = { .slow = false }, slow = { .slow = true };
	agentd_policy *policy = NULL;
	agentd_runner *runner = NULL;
	agentd_context *ctx = NULL;
	agentd_error *err = NULL;
	agentd_loop *loop = NULL;

	must(agentd_policy_new(&policy, &err), &err);
	must(agentd_policy_set_min_isolation(policy, AGENTD_ISOLATION_NONE, &err), &err);
	must(agentd_loop_new(&loop, &err), &err);
	opts.event_base = agentd_loop_event_base(loop);
	opts.policy = policy;
	must(agentd_runner_new(&opts, &runner, &err), &err);
	must(agentd_context_new(&ctx, &err), &err);
	must(agentd_context_set_policy(ctx, policy, &err), &err);
	must(agentd_context_set_backend(ctx, "host", &err), &err);
	must(agentd_context_set_workdir(ctx, "/tmp", &err), &err);

	run(loop, runner, ctx, &fast);
	run(loop, runner, ctx, &slow);

	agentd_context_unref(ctx);
	agentd_runner_unref(runner);
	agentd_policy_unref(policy);
	agentd_loop_unref(loop);
	/* The slow one was made to wait: the last pause may come after it had exited
	 * and what the pipe holds is read without it, but no more than that. */
	return fast.taken == TOTAL && slow.taken == TOTAL && slow.seconds > fast.seconds ? 0 : 1;
}
