/* SPDX-License-Identifier: MIT */
/* Commands side by side, or one by one, on one runner: what one helper started must
 * not know of each other.
 *
 *     crowd [--one-by-one] CONTEXT.json POLICY.json COMMAND...
 *
 * The policy is the runner's and the context's. For each command prints how it ended
 * and its output, both streams. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <agentd/agentd.h>

enum { JSON_MAX = 1 << 16, OUTPUT_MAX = 1 << 18, COMMANDS_MAX = 64, TIMEOUT_MS = 20000 };

struct command {
	agentd_sink *sink;
	agentd_exec *exec;
};

static void must(int rc, agentd_error **err)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "crowd: %s\n", err ? agentd_error_message(*err) : agentd_strerror(rc));
	exit(1);
}

static void print_stream(agentd_sink *sink, agentd_stream stream)
{
	const uint8_t *out;
	size_t len;

	must(agentd_sink_buffer_get(sink, stream, &out, &len, NULL), NULL);
	fwrite(out, 1, len, stdout);
}

static unsigned int stretch(void)
{
	const char *factor = getenv("AGENTD_TEST_STRETCH");

	return factor ? (unsigned int)atoi(factor) : 1;
}

static void command_start(struct command *command, agentd_runner *runner, agentd_context *ctx,
			  const char *text)
{
	agentd_error *err = NULL;
	agentd_params *params;

	must(agentd_params_new_shell(text, TIMEOUT_MS * stretch(), &params, &err), &err);
	must(agentd_sink_new_buffer(OUTPUT_MAX, OUTPUT_MAX, &command->sink, &err), &err);
	must(agentd_exec_start(runner, ctx, params, command->sink, NULL, &command->exec, &err),
	     &err);
	agentd_params_unref(params);
}

static void command_finish(struct command *command, agentd_loop *loop, int number)
{
	agentd_error *err = NULL;
	const agentd_result *result;

	must(agentd_loop_run_until(loop, command->exec, -1, &err), &err);
	result = agentd_exec_result(command->exec);
	printf("== %d %s %d %d\n", number, agentd_status_name(agentd_result_status(result)),
	       agentd_result_exit_code(result), agentd_result_signal(result));
	print_stream(command->sink, AGENTD_STDOUT);
	print_stream(command->sink, AGENTD_STDERR);
	agentd_exec_unref(command->exec);
	agentd_sink_unref(command->sink);
}

static size_t read_file(const char *path, char *buf, size_t size)
{
	FILE *file = fopen(path, "re");
	size_t len;

	if (!file) {
		perror(path);
		exit(1);
	}
	len = fread(buf, 1, size, file);
	fclose(file);
	return len;
}

int main(int argc, char **argv)
{
	static struct command commands[COMMANDS_MAX];
	static char json[JSON_MAX];
	bool one_by_one = argc > 1 && strcmp(argv[1], "--one-by-one") == 0;
	char **arg = argv + 1 + one_by_one;
	int count = argc - 3 - one_by_one;
	struct agentd_runner_opts opts = { .size = sizeof(opts), .max_running = COMMANDS_MAX };
	agentd_error *err = NULL;
	agentd_runner *runner;
	agentd_policy *policy;
	agentd_context *ctx;
	agentd_loop *loop;

	if (count < 1 || count > COMMANDS_MAX) {
		fputs("usage: crowd [--one-by-one] CONTEXT.json POLICY.json COMMAND...\n", stderr);
		return 2;
	}
	must(agentd_context_from_json(json, read_file(arg[0], json, sizeof(json)), &ctx, &err),
	     &err);
	must(agentd_policy_from_json(json, read_file(arg[1], json, sizeof(json)), &policy, &err),
	     &err);
	must(agentd_context_set_policy(ctx, policy, &err), &err);
	must(agentd_loop_new(&loop, &err), &err);
	opts.event_base = agentd_loop_event_base(loop);
	opts.policy = policy;
	must(agentd_runner_new(&opts, &runner, &err), &err);

	for (int i = 0; i < count; i++) {
		command_start(&commands[i], runner, ctx, arg[2 + i]);
		if (one_by_one)
			command_finish(&commands[i], loop, i);
	}
	for (int i = 0; !one_by_one && i < count; i++)
		command_finish(&commands[i], loop, i);

	agentd_runner_unref(runner);
	agentd_context_unref(ctx);
	agentd_policy_unref(policy);
	agentd_loop_unref(loop);
	return 0;
}
