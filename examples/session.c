/* SPDX-License-Identifier: MIT */
/* A persistent session: two commands that find each other's files and processes, and a
 * stop after which the files are still there. usage: session POOL.json UUID */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <agentd/agentd.h>

static void must(int rc, agentd_error **err)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "%s\n", err && *err ? agentd_error_message(*err) : agentd_strerror(rc));
	exit(1);
}

static char *read_file(const char *path, size_t *ret_len)
{
	static char text[65536];
	FILE *file = fopen(path, "r");

	if (!file) {
		perror(path);
		exit(1);
	}
	*ret_len = fread(text, 1, sizeof(text), file);
	fclose(file);
	return text;
}

static void run(agentd_loop *loop, agentd_runner *runner, agentd_context *ctx, const char *command)
{
	agentd_params *params = NULL;
	agentd_sink *sink = NULL;
	agentd_exec *exec = NULL;
	agentd_error *err = NULL;
	const char *layer, *reason;
	int32_t state;

	must(agentd_params_new_shell(command, 10000, &params, &err), &err);
	must(agentd_sink_new_fd(1, 2, &sink, &err), &err);
	must(agentd_exec_start(runner, ctx, params, sink, NULL, &exec, &err), &err);
	must(agentd_loop_run_until(loop, exec, -1, &err), &err);
	/* Whether it was the session, the receipt says. */
	for (size_t i = 0;
	     agentd_result_protection_at(agentd_exec_result(exec), i, &layer, &state, &reason) == 0;
	     i++)
		if (strcmp(layer, "session") == 0)
			printf("[%s, session %s]\n",
			       agentd_status_name(agentd_result_status(agentd_exec_result(exec))),
			       state > 0 ? "kept" : reason);
	fflush(stdout);
	agentd_exec_unref(exec);
	agentd_sink_unref(sink);
	agentd_params_unref(params);
}

static void stopped(agentd_pool *pool, const agentd_error *err, void *userdata)
{
	(void)pool;
	if (err)
		fprintf(stderr, "stop: %s\n", agentd_error_message(err));
	agentd_loop_wakeup(userdata);
}

static void gone(agentd_runner *runner, void *userdata)
{
	(void)runner;
	agentd_loop_wakeup(userdata);
}

int main(int argc, char **argv)
{
	struct agentd_runner_opts opts = { .size = sizeof(opts) };
	agentd_policy *policy = NULL;
	agentd_loop *loop = NULL;
	agentd_runner *runner = NULL;
	agentd_pool *pool = NULL;
	agentd_context *ctx = NULL;
	agentd_error *err = NULL;
	const char *config;
	size_t len;

	if (argc != 3) {
		fputs("usage: session POOL.json UUID\n", stderr);
		return 2;
	}
	config = read_file(argv[1], &len);
	must(agentd_policy_new(&policy, &err), &err);
	must(agentd_policy_allow_path(policy, "/usr", AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC,
				      &err),
	     &err);
	must(agentd_loop_new(&loop, &err), &err);
	opts.event_base = agentd_loop_event_base(loop);
	opts.policy = policy;
	must(agentd_runner_new(&opts, &runner, &err), &err);
	must(agentd_pool_new(runner, config, len, &pool, &err), &err);
	must(agentd_runner_set_pool(runner, pool, &err), &err);

	must(agentd_context_new(&ctx, &err), &err);
	must(agentd_context_set_policy(ctx, policy, &err), &err);
	must(agentd_context_set_workdir(ctx, "/tmp", &err), &err);
	must(agentd_context_set_session(ctx, argv[2], NULL, NULL, &err), &err);

	run(loop, runner, ctx, "echo hello >note; sleep 60 & echo $! >pid");
	run(loop, runner, ctx,
	    "cat note; grep -q sleep /proc/$(cat pid)/comm && echo still running");
	must(agentd_pool_stop(pool, argv[2], stopped, loop), NULL);
	must(agentd_loop_run(loop, -1, &err), &err);
	run(loop, runner, ctx,
	    "cat note; grep -qs sleep /proc/$(cat pid)/comm || echo it ended with the session");

	/* Gracefully: an unref alone would kill the session. */
	must(agentd_runner_shutdown(runner, 5000, gone, loop), NULL);
	must(agentd_loop_run(loop, -1, &err), &err);
	agentd_context_unref(ctx);
	agentd_pool_unref(pool);
	agentd_runner_unref(runner);
	agentd_policy_unref(policy);
	agentd_loop_unref(loop);
	return 0;
}
