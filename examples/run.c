/* SPDX-License-Identifier: MIT */
/* Run one command and wait for it: cc run.c $(pkg-config --cflags --libs agentd) */
#include <stdio.h>
#include <stdlib.h>

#include <agentd/agentd.h>

/* err by its address: arguments have no order, and rc is what sets it. */
static void must(int rc, agentd_error **err)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "run: %s\n", err ? agentd_error_message(*err) : agentd_strerror(rc));
	exit(1);
}

int main(int argc, char **argv)
{
	struct agentd_runner_opts opts = { .size = sizeof(opts) };
	agentd_error *err = NULL;
	agentd_loop *loop;
	agentd_policy *policy;
	agentd_runner *runner;
	agentd_context *ctx;
	agentd_params *params;
	agentd_sink *sink;
	agentd_exec *exec;
	const uint8_t *out;
	size_t len;
	int status;

	/* The operator's part: a sandbox with the system's programs and a working directory. */
	must(agentd_policy_new(&policy, &err), &err);
	must(agentd_policy_allow_path(policy, "/usr", AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC,
				      &err),
	     &err);
	must(agentd_loop_new(&loop, &err), &err);
	opts.event_base = agentd_loop_event_base(loop);
	opts.policy = policy;
	must(agentd_runner_new(&opts, &runner, &err), &err);
	must(agentd_context_new(&ctx, &err), &err);
	must(agentd_context_set_policy(ctx, policy, &err), &err);
	must(agentd_context_set_workdir(ctx, "/tmp", &err), &err);

	/* The model's part. */
	must(agentd_params_new_shell(argc > 1 ? argv[1] : "echo hello", 5000, &params, &err), &err);

	must(agentd_sink_new_buffer(65536, 65536, &sink, &err), &err);
	must(agentd_exec_start(runner, ctx, params, sink, NULL, &exec, &err), &err);
	must(agentd_loop_run_until(loop, exec, -1, &err), &err);

	must(agentd_sink_buffer_get(sink, AGENTD_STDOUT, &out, &len, NULL), NULL);
	fwrite(out, 1, len, stdout);
	status = agentd_result_status(agentd_exec_result(exec));
	printf("%s, exit code %d\n", agentd_status_name(status),
	       agentd_result_exit_code(agentd_exec_result(exec)));

	agentd_exec_unref(exec);
	agentd_sink_unref(sink);
	agentd_params_unref(params);
	agentd_context_unref(ctx);
	agentd_runner_unref(runner);
	agentd_policy_unref(policy);
	agentd_loop_unref(loop);
	return status == AGENTD_STATUS_OK ? 0 : 1;
}
