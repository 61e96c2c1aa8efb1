/* SPDX-License-Identifier: MIT */
/* main FIRST COMMAND: run a command in bubblewrap, with the system's programs to read and the
 * current directory to write. FIRST is the program that first.c makes. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bwrap.h"

/* err by its address: arguments have no order, and rc is what sets it. */
static void must(int rc, agentd_error **err)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "bwrap: %s\n", agentd_error_message(*err));
	exit(1);
}

int main(int argc, char **argv)
{
	struct agentd_runner_opts opts = { .size = sizeof(opts) };
	const agentd_result *result;
	agentd_error *err = NULL;
	agentd_loop *loop;
	agentd_policy *policy;
	agentd_runner *runner;
	agentd_context *ctx;
	agentd_params *params;
	agentd_sink *sink;
	agentd_exec *exec;
	const uint8_t *data;
	char *cwd, *json;
	size_t len;
	int status;

	if (argc != 3) {
		fprintf(stderr, "usage: main FIRST COMMAND\n");
		return 2;
	}
	cwd = getcwd(NULL, 0);
	must(agentd_policy_new(&policy, &err), &err);
	must(agentd_policy_set_min_isolation(policy, AGENTD_ISOLATION_NONE, &err), &err);
	must(agentd_policy_allow_path(policy, "/usr", AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC,
				      &err),
	     &err);
	must(agentd_loop_new(&loop, &err), &err);
	opts.event_base = agentd_loop_event_base(loop);
	opts.policy = policy;
	must(agentd_runner_new(&opts, &runner, &err), &err);
	must(bwrap_add(runner, argv[1], &err), &err);
	must(agentd_context_new(&ctx, &err), &err);
	must(agentd_context_set_policy(ctx, policy, &err), &err);
	must(agentd_context_set_backend(ctx, "bwrap", &err), &err);
	must(agentd_context_set_workdir(ctx, cwd, &err), &err);
	must(agentd_params_new_shell(argv[2], 60000, &params, &err), &err);
	must(agentd_sink_new_buffer(1 << 20, 1 << 20, &sink, &err), &err);
	must(agentd_exec_start(runner, ctx, params, sink, NULL, &exec, &err), &err);
	must(agentd_loop_run_until(loop, exec, -1, &err), &err);

	agentd_sink_buffer_get(sink, AGENTD_STDOUT, &data, &len, NULL);
	fwrite(data, 1, len, stdout);
	agentd_sink_buffer_get(sink, AGENTD_STDERR, &data, &len, NULL);
	fwrite(data, 1, len, stderr);
	result = agentd_exec_result(exec);
	status = agentd_result_status(result);
	must(agentd_result_to_json(result, &json, NULL, &err), &err);
	fprintf(stderr, "%s\n", json);

	agentd_free(json);
	agentd_exec_unref(exec);
	agentd_sink_unref(sink);
	agentd_params_unref(params);
	agentd_context_unref(ctx);
	agentd_runner_unref(runner);
	agentd_policy_unref(policy);
	agentd_loop_unref(loop);
	free(cwd);
	return status == AGENTD_STATUS_OK ? 0 : 1;
}
