/* SPDX-License-Identifier: MIT */
/* A program that has only what is installed. C99 and C++17. */
#include <stdio.h>
#include <string.h>

#include <agentd/agentd.h>

static int failed(const char *what, agentd_error *err)
{
	fprintf(stderr, "%s: %s\n", what, agentd_error_message(err));
	agentd_error_unref(err);
	return 1;
}

int main(void)
{
	struct agentd_runner_opts opts;
	agentd_error *err = NULL;
	agentd_loop *loop = NULL;
	agentd_policy *policy = NULL;
	agentd_runner *runner = NULL;
	agentd_context *ctx = NULL;
	agentd_params *params = NULL;
	agentd_sink *sink = NULL;
	agentd_exec *exec = NULL;
	agentd_result *result;
	const uint8_t *output = NULL;
	size_t len = 0;

	if (agentd_version_number() !=
	    (AGENTD_VERSION_MAJOR << 16 | AGENTD_VERSION_MINOR << 8 | AGENTD_VERSION_PATCH)) {
		fprintf(stderr, "header and library are of different versions\n");
		return 1;
	}
	if (agentd_loop_new(&loop, &err) < 0)
		return failed("agentd_loop_new", err);
	if (agentd_policy_new(&policy, &err) < 0 ||
	    agentd_policy_set_min_isolation(policy, AGENTD_ISOLATION_NONE, &err) < 0)
		return failed("policy", err);
	memset(&opts, 0, sizeof(opts));
	opts.size = sizeof(opts);
	opts.event_base = agentd_loop_event_base(loop);
	opts.policy = policy;
	if (agentd_runner_new(&opts, &runner, &err) < 0)
		return failed("agentd_runner_new", err);
	if (agentd_context_new(&ctx, &err) < 0 ||
	    agentd_context_set_policy(ctx, policy, &err) < 0 ||
	    agentd_context_set_workdir(ctx, "/", &err) < 0 ||
	    agentd_context_set_backend(ctx, "host", &err) < 0)
		return failed("context", err);
	if (agentd_params_new_shell("echo hi", 0, &params, &err) < 0)
		return failed("agentd_params_new_shell", err);
	if (agentd_sink_new_buffer(64, 64, &sink, &err) < 0)
		return failed("agentd_sink_new_buffer", err);
	if (agentd_exec_start(runner, ctx, params, sink, NULL, &exec, &err) < 0)
		return failed("agentd_exec_start", err);
	if (agentd_loop_run_until(loop, exec, 30000, &err) != 1)
		return failed("agentd_loop_run_until", err);

	result = agentd_exec_result(exec);
	if (agentd_sink_buffer_get(sink, AGENTD_STDOUT, &output, &len, NULL) < 0)
		return failed("agentd_sink_buffer_get", NULL);
	fwrite(output, 1, len, stdout);
	printf("%s %s %d %s\n", agentd_status_name(agentd_result_status(result)),
	       agentd_cause_name(agentd_result_cause(result)), agentd_result_exit_code(result),
	       agentd_result_backend(result));

	agentd_exec_unref(exec);
	agentd_sink_unref(sink);
	agentd_params_unref(params);
	agentd_context_unref(ctx);
	agentd_runner_unref(runner);
	agentd_policy_unref(policy);
	agentd_loop_unref(loop);
	return 0;
}
