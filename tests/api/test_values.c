/* SPDX-License-Identifier: MIT */
/* What comes out: JSON, logs, errors, sinks, the loop for hosts without one. */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"

/* ---- JSON */

static struct json_object *parse(const char *text, size_t len)
{
	struct json_tokener *tok = json_tokener_new();
	struct json_object *json;

	ck_assert_ptr_nonnull(tok);
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	json = json_tokener_parse_ex(tok, text, (int)len + 1);
	ck_assert_msg(json && json_tokener_get_error(tok) == json_tokener_success, "not JSON: %s",
		      text);
	json_tokener_free(tok);
	return json;
}

static struct json_object *get(struct json_object *json, const char *path)
{
	struct json_object *value = NULL;

	ck_assert_msg(json_pointer_get(json, path, &value) == 0, "no %s in %s", path,
		      json_object_to_json_string(json));
	return value;
}

static void expect_text(struct json_object *json, const char *path, const char *want)
{
	struct json_object *value = get(json, path);

	if (!want)
		ck_assert_msg(value == NULL, "%s is not null in %s", path,
			      json_object_to_json_string(json));
	else
		ck_assert_msg(value && strcmp(json_object_get_string(value), want) == 0,
			      "%s is not %s in %s", path, want, json_object_to_json_string(json));
}

static struct json_object *result_json(const agentd_result *result)
{
	struct json_object *json;
	char *text = NULL;
	size_t len = 0;

	ck_assert_int_eq(agentd_result_to_json(result, &text, &len, NULL), 0);
	ck_assert_uint_eq(strlen(text), len);
	json = parse(text, len);
	agentd_free(text);
	return json;
}

START_TEST(result_ok)
{
	struct t_world *world = t_world_new(NULL);
	struct json_object *json, *layers;
	struct t_run run;

	ck_assert_int_eq(agentd_context_set_label(world->ctx, "tenant", "t\"1\\", NULL), 0);
	ck_assert_int_eq(agentd_context_set_label(world->ctx, "gone", "x", NULL), 0);
	ck_assert_int_eq(agentd_context_set_label(world->ctx, "gone", NULL, NULL), 0);
	t_run(&run, world, "echo abc; echo de >&2", 0);
	json = result_json(run.result);
	expect_text(json, "/id", run.id);
	expect_text(json, "/status", "ok");
	expect_text(json, "/cause", "exited");
	expect_text(json, "/backend", "host");
	expect_text(json, "/exit_code", "0");
	expect_text(json, "/signal", NULL);
	expect_text(json, "/limit", NULL);
	expect_text(json, "/truncated", "false");
	expect_text(json, "/error", NULL);
	expect_text(json, "/metrics/stdout_bytes", "4");
	expect_text(json, "/metrics/stderr_bytes", "3");
	expect_text(json, "/metrics/dropped_bytes", "0");
	ck_assert_uint_eq((uint64_t)json_object_get_int64(get(json, "/metrics/wall_ns")),
			  t_run_metric(&run, AGENTD_METRIC_WALL_NS));
	ck_assert_uint_eq((uint64_t)json_object_get_int64(get(json, "/duration_ms")),
			  t_run_metric(&run, AGENTD_METRIC_WALL_NS) / 1000000);
	expect_text(json, "/trace_id", "test-trace-123");
	expect_text(json, "/labels/tenant", "t\"1\\");
	ck_assert_int_eq(json_object_object_length(get(json, "/labels")), 1);
	expect_text(json, "/receipt/requested/backend", "host");
	expect_text(json, "/receipt/requested/min_isolation", "none");
	layers = get(json, "/receipt/layers");
	ck_assert_uint_eq(json_object_array_length(layers),
			  agentd_result_protection_count(run.result));
	ck_assert_uint_ge(json_object_array_length(layers), 1);
	json_object_put(json);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(result_others)
{
	struct t_world *world = t_world_new(NULL);
	char *missing = t_format("%s/missing", world->workdir);
	struct json_object *json;
	struct t_run run;

	t_run(&run, world, "kill -KILL $$", 0);
	json = result_json(run.result);
	expect_text(json, "/status", "error");
	expect_text(json, "/cause", "signaled");
	expect_text(json, "/exit_code", NULL);
	expect_text(json, "/signal", "9");
	json_object_put(json);
	t_run_free(&run);

	t_run(&run, world, "exec sleep 20", 100);
	json = result_json(run.result);
	expect_text(json, "/status", "timeout");
	expect_text(json, "/cause", "timeout");
	expect_text(json, "/exit_code", NULL);
	expect_text(json, "/limit", "timeout_ms");
	json_object_put(json);
	t_run_free(&run);

	/* bytes that are no text do not make the JSON bad */
	ck_assert_int_eq(agentd_context_set_workdir(world->ctx, missing, NULL), 0);
	t_run(&run, world, "exit 0", 0);
	json = result_json(run.result);
	expect_text(json, "/status", "error");
	expect_text(json, "/cause", "spawn");
	expect_text(json, "/error/os_errno", "2");
	ck_assert_ptr_nonnull(strstr(json_object_get_string(get(json, "/error/message")),
				     "Failed to spawn shell command"));
	json_object_put(json);
	t_run_free(&run);
	free(missing);
	t_world_free(world);
}
END_TEST

static struct json_object *explain(struct t_world *world, agentd_params *params)
{
	struct json_object *json;
	char *text = NULL;
	size_t len = 0;

	ck_assert_int_eq(agentd_runner_explain(world->runner, world->ctx, params, &text, &len,
					       NULL),
			 0);
	ck_assert_uint_eq(strlen(text), len);
	json = parse(text, len);
	agentd_free(text);
	text = NULL;
	ck_assert_int_eq(agentd_runner_explain(world->runner, world->ctx, params, &text, NULL,
					       NULL),
			 0);
	agentd_free(text);
	return json;
}

/* What explain says is what happens, and it starts nothing. */
START_TEST(explain_and_run_agree)
{
	struct t_world *world = t_world_new(NULL);
	struct json_object *json;
	agentd_params *params = NULL;
	agentd_error *err = NULL;
	agentd_policy *policy;
	struct agentd_limits limits;
	char *text = NULL, *dump;
	struct t_run run;
	int r;

	ck_assert_int_eq(agentd_params_new_shell("echo > marker", 7000, &params, NULL), 0);
	agentd_limits_init(&limits, sizeof(limits));
	limits.pids_max = 33;
	ck_assert_int_eq(agentd_context_set_limits(world->ctx, &limits, NULL), 0);
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "API_KEY", "hush-hush", NULL), 0);
	json = explain(world, params);
	dump = strdup(json_object_to_json_string(json));
	expect_text(json, "/backend", "host");
	expect_text(json, "/refusal", NULL);
	expect_text(json, "/limits/timeout_ms", "7000");
	expect_text(json, "/limits/pids_max", "33");
	ck_assert_ptr_nonnull(strstr(dump, "API_KEY"));
	ck_assert_ptr_null(strstr(dump, "hush-hush"));
	free(dump);
	json_object_put(json);

	/* refused by isolation */
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, NULL, NULL), 0);
	json = explain(world, params);
	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start_params(&run, params, NULL), 0);
	t_run_wait(&run);
	expect_text(json, "/refusal/cause", agentd_cause_name(agentd_result_cause(run.result)));
	expect_text(json, "/refusal/message",
		    agentd_error_message(agentd_result_error(run.result)));
	t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
	json_object_put(json);
	t_run_free(&run);

	/* refused by the ceiling */
	policy = t_policy_none();
	ck_assert_int_eq(agentd_policy_allow_path(policy, "/usr", AGENTD_ACCESS_READ, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	agentd_policy_unref(policy);
	json = explain(world, params);
	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start_params(&run, params, NULL), 0);
	t_run_wait(&run);
	expect_text(json, "/refusal/cause", agentd_cause_name(agentd_result_cause(run.result)));
	t_expect_cause(&run, AGENTD_CAUSE_POLICY);
	json_object_put(json);
	t_run_free(&run);

	/* what start itself refuses, explain refuses in the same way */
	ck_assert_int_eq(agentd_context_set_backend(world->ctx, "nosuch", NULL), 0);
	r = agentd_runner_explain(world->runner, world->ctx, params, &text, NULL, &err);
	t_expect_error(r, AGENTD_ERR_NOTFOUND, err, "nosuch", "/backend");
	ck_assert_ptr_null(text);
	text = t_format("%s/marker", world->workdir);
	ck_assert_int_ne(access(text, F_OK), 0);
	free(text);
	agentd_params_unref(params);
	t_world_free(world);
}
END_TEST

START_TEST(params_json)
{
	static const char *const argv[] = { "echo", "a \"b\"", NULL };
	agentd_params *params = NULL, *again = NULL;
	struct json_object *json;
	char *text = NULL;
	size_t len = 0;

	ck_assert_int_eq(agentd_params_new_shell("echo \"x\"\n", 0, &params, NULL), 0);
	ck_assert_int_eq(agentd_params_to_json(params, &text, &len, NULL), 0);
	json = parse(text, len);
	expect_text(json, "/command", "echo \"x\"\n");
	expect_text(json, "/timeout_ms", "30000");
	json_object_put(json);
	ck_assert_int_eq(agentd_params_parse(text, len, &again, NULL), 0);
	agentd_free(text);
	agentd_params_unref(again);
	agentd_params_unref(params);
	ck_assert_int_eq(agentd_params_new_argv(argv, UINT64_MAX, &params, NULL), 0);
	ck_assert_int_eq(agentd_params_to_json(params, &text, &len, NULL), 0);
	json = parse(text, len);
	expect_text(json, "/argv/1", "a \"b\"");
	ck_assert_ptr_nonnull(strstr(text, "18446744073709551615"));
	json_object_put(json);
	agentd_free(text);
	agentd_params_unref(params);
	json = parse(agentd_params_schema(), strlen(agentd_params_schema()));
	expect_text(json, "/type", "object");
	expect_text(json, "/properties/command/type", "string");
	json_object_put(json);
}
END_TEST

START_TEST(digest_and_validate)
{
	struct t_world *world = t_world_new(NULL);
	char *want = t_format("shell-exec-runner-%s", agentd_version_string());
	static const char good[] = "{\"command\":\"echo > marker\",\"timeout_ms\":5}";
	static const char bad[] = "{\"command\":12345}";
	agentd_error *err = NULL;
	char *marker = t_format("%s/marker", world->workdir);
	struct t_fds fds;
	int r;

	ck_assert_str_eq(agentd_runner_digest(world->runner), want);
	ck_assert_uint_eq(agentd_version_number(), AGENTD_VERSION_MAJOR << 16 |
							   AGENTD_VERSION_MINOR << 8 |
							   AGENTD_VERSION_PATCH);
	ck_assert_uint_eq(agentd_libevent_version_number(), LIBEVENT_VERSION_NUMBER);
	t_fds_take(&fds);
	ck_assert_int_eq(agentd_runner_validate(world->runner, good, sizeof(good) - 1, NULL), 0);
	r = agentd_runner_validate(world->runner, bad, sizeof(bad) - 1, &err);
	t_expect_error(r, AGENTD_ERR_INVALID, err,
		       "Failed to parse shell.exec parameters: invalid type: integer `12345`, "
		       "expected a string",
		       "/command");
	t_fds_expect_same(&fds, "validate");
	t_fds_free(&fds);
	t_world_loop(world, 100, NULL);
	ck_assert_int_ne(access(marker, F_OK), 0);
	ck_assert_uint_eq(world->logs.count, 0);
	free(marker);
	free(want);
	t_world_free(world);
}
END_TEST

START_TEST(names)
{
	static const char *const statuses[] = { "ok", "error", "denied", "timeout", "killed" };
	static const char *const causes[] = { "exited",   "signaled",  "timeout", "idle_timeout",
					      "cpu_time", "memory",    "pids",    "io",
					      "output",   "canceled",  "sink",    "violation",
					      "policy",   "isolation", "spawn",   "backend_lost",
					      "file_size" };

	for (int i = 0; i < (int)T_COUNT(statuses); i++)
		ck_assert_str_eq(agentd_status_name(i), statuses[i]);
	for (int i = 0; i < (int)T_COUNT(causes); i++)
		ck_assert_str_eq(agentd_cause_name(i + 1), causes[i]);
	ck_assert_str_eq(agentd_status_name(99), "unknown");
	ck_assert_str_eq(agentd_status_name(-1), "unknown");
	ck_assert_str_eq(agentd_cause_name(0), "unknown");
	ck_assert_str_eq(agentd_cause_name(99), "unknown");
	ck_assert_str_eq(agentd_cause_name(INT32_MIN), "unknown");
	for (int code = -40; code <= 3; code++)
		ck_assert_str_ne(agentd_strerror(code), "");
	ck_assert_str_ne(agentd_strerror(INT32_MIN), "");
	for (int a = AGENTD_ERR_INTERNAL; a < 0; a++)
		for (int b = AGENTD_ERR_INTERNAL; b < a; b++)
			ck_assert_str_ne(agentd_strerror(a), agentd_strerror(b));
}
END_TEST

/* ---- logs */

START_TEST(log_fields)
{
	struct t_world *world = t_world_new(&(struct t_world_opts){ .heartbeat_ms = 100 });
	const struct t_log *log;
	struct t_run run;

	t_run(&run, world, "echo warn >&2; sleep 0.35; exit 3", 9000);
	ck_assert_uint_ge(world->logs.count, 4);
	for (size_t i = 0; i < world->logs.count; i++) {
		const struct t_log *one = &world->logs.items[i];
		bool has_id = false;

		for (size_t j = 0; j < one->field_count; j++) {
			has_id |= strcmp(one->fields[j].value, run.id) == 0;
			for (size_t k = 0; k < j; k++)
				ck_assert_str_ne(one->fields[j].key, one->fields[k].key);
		}
		ck_assert_msg(has_id, "no id in \"%s\"", one->message);
		ck_assert_str_eq(t_log_field(one, "trace_id"), "test-trace-123");
		ck_assert_str_ne(one->component, "");
		ck_assert_ptr_null(strchr(one->message, '\n'));
	}
	for (size_t i = 0; i < run.logs.count; i++)
		ck_assert_str_eq(t_log_field(&run.logs.items[i], "trace_id"), "test-trace-123");
	log = t_logs_find(&world->logs, 0, "Shell command still running");
	ck_assert_ptr_nonnull(log);
	ck_assert_int_eq(log->level, AGENTD_LOG_INFO);
	ck_assert_uint_ge(t_logs_count(&world->logs, "Shell command still running"), 2);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(log_level)
{
	static const int32_t levels[] = { AGENTD_LOG_WARN, AGENTD_LOG_INFO, AGENTD_LOG_DEBUG };

	for (size_t i = 0; i < T_COUNT(levels); i++) {
		struct t_world *world =
			t_world_new(&(struct t_world_opts){ .log_level = levels[i] });
		struct t_run run;
		bool most = false;

		t_run(&run, world, "exec sleep 20", 50);
		for (size_t j = 0; j < world->logs.count; j++) {
			ck_assert_int_le(world->logs.items[j].level, levels[i]);
			most |= world->logs.items[j].level == levels[i];
		}
		ck_assert_msg(most, "no record of level %d", levels[i]);
		/* the sink's own records do not depend on it */
		ck_assert_ptr_nonnull(
			t_logs_find(&run.logs, 0, "Executing shell command: exec sleep 20"));
		t_run_free(&run);
		t_world_free(world);
	}
}
END_TEST

START_TEST(silent_runner)
{
	struct t_world *world = t_world_new(&(struct t_world_opts){ .no_log = true });
	struct t_run run;

	t_run(&run, world, "echo a", 0);
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_uint_ge(run.logs.count, 1);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* ---- ready-made sinks */

static agentd_exec *start_with(struct t_world *world, const char *command, agentd_sink *sink)
{
	agentd_params *params = NULL;
	agentd_exec *exec = NULL;

	ck_assert_int_eq(agentd_params_new_shell(command, 0, &params, NULL), 0);
	ck_assert_int_eq(agentd_exec_start(world->runner, world->ctx, params, sink, NULL, &exec,
					   NULL),
			 0);
	agentd_params_unref(params);
	return exec;
}

static void wait_for(struct t_world *world, agentd_exec *exec)
{
	uint64_t deadline = t_now() + T_MS(t_slack(20000));

	while (agentd_exec_state(exec) != AGENTD_STATE_FINISHED && t_now() < deadline)
		t_world_loop(world, 5, NULL);
	ck_assert_int_eq(agentd_exec_state(exec), AGENTD_STATE_FINISHED);
}

START_TEST(buffer_sink)
{
	static const struct {
		size_t head, tail;
		const char *command, *want;
		uint64_t dropped;
	} rows[] = {
		{ 100, 100, "printf 0123456789", "0123456789", 0 },
		{ 3, 2, "printf 0123456789", "01289", 5 },
		{ 5, 5, "printf 0123456789", "0123456789", 0 },
		{ 0, 4, "printf 0123456789", "6789", 6 },
		{ 4, 0, "printf 0123456789", "0123", 6 },
		{ 0, 0, "printf 0123456789", "", 10 },
		{ 3, 3, "printf 0; sleep 0.05; printf 12345; sleep 0.05; printf 6789", "012789",
		  4 },
		{ 2, 3, "head -c 1000000 /dev/zero | tr '\\0' a; printf xyz", "aaxyz", 999998 },
	};
	struct t_world *world = t_world_new(NULL);

	for (size_t i = 0; i < T_COUNT(rows); i++) {
		const uint8_t *data = NULL;
		uint64_t dropped = 99;
		agentd_sink *sink = NULL;
		agentd_exec *exec;
		size_t len = 99;

		ck_assert_int_eq(agentd_sink_new_buffer(rows[i].head, rows[i].tail, &sink, NULL),
				 0);
		exec = start_with(world, rows[i].command, sink);
		wait_for(world, exec);
		ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDOUT, &data, &len, &dropped),
				 0);
		ck_assert_msg(len == strlen(rows[i].want) &&
				      (len == 0 || memcmp(data, rows[i].want, len) == 0),
			      "row %zu: \"%.*s\"", i, (int)len, (const char *)data);
		ck_assert_uint_eq(dropped, rows[i].dropped);
		ck_assert_int_eq(agentd_sink_buffer_get(sink, AGENTD_STDERR, &data, &len, NULL), 0);
		ck_assert_uint_eq(len, 0);
		agentd_exec_unref(exec);
		agentd_sink_unref(sink);
	}
	t_world_free(world);
}
END_TEST

static size_t slurp(int fd, char *text, size_t size)
{
	size_t len = 0;
	ssize_t n;

	while (len < size && (n = read(fd, text + len, size - len)) > 0)
		len += (size_t)n;
	return len;
}

START_TEST(fd_sink)
{
	struct t_world *world = t_world_new(NULL);
	int out[2], err[2], flags;
	agentd_sink *sink = NULL;
	agentd_exec *exec;
	char text[64];

	ck_assert_int_eq(pipe2(out, O_CLOEXEC), 0);
	ck_assert_int_eq(pipe2(err, O_CLOEXEC), 0);
	flags = fcntl(out[1], F_GETFL);
	ck_assert_int_eq(agentd_sink_new_fd(out[1], err[1], &sink, NULL), 0);
	exec = start_with(world, "echo o; echo e >&2", sink);
	wait_for(world, exec);
	ck_assert_int_eq(fcntl(out[1], F_GETFL), flags);
	agentd_exec_unref(exec);
	agentd_sink_unref(sink);
	/* they are the caller's still */
	ck_assert_int_eq(fcntl(out[1], F_GETFD), FD_CLOEXEC);
	close(out[1]);
	close(err[1]);
	ck_assert_uint_eq(slurp(out[0], text, sizeof(text)), 2);
	ck_assert_mem_eq(text, "o\n", 2);
	ck_assert_uint_eq(slurp(err[0], text, sizeof(text)), 2);
	ck_assert_mem_eq(text, "e\n", 2);
	close(out[0]);
	close(err[0]);

	/* -1 throws away */
	ck_assert_int_eq(agentd_sink_new_fd(-1, -1, &sink, NULL), 0);
	exec = start_with(world, "echo o; echo e >&2; exit 4", sink);
	wait_for(world, exec);
	ck_assert_int_eq(agentd_result_exit_code(agentd_exec_result(exec)), 4);
	ck_assert_int_eq(agentd_result_truncated(agentd_exec_result(exec)), 0);
	agentd_exec_unref(exec);
	agentd_sink_unref(sink);
	t_world_free(world);
}
END_TEST

/* A pipe that nobody reads paces the command; the loop is never blocked. */
START_TEST(fd_sink_back_pressure)
{
	enum { SIZE = 2000000 };
	struct t_world *world = t_world_new(NULL);
	agentd_sink *sink = NULL;
	agentd_exec *exec;
	uint64_t deadline, got = 0;
	uint8_t *data = malloc(SIZE + 1);
	int out[2];

	ck_assert_int_eq(pipe2(out, O_CLOEXEC), 0);
	ck_assert_int_eq(agentd_sink_new_fd(out[1], -1, &sink, NULL), 0);
	exec = start_with(world, "yes 1234567 | head -c 2000000", sink);
	deadline = t_now() + T_MS(700);
	while (t_now() < deadline)
		t_world_loop(world, 20, NULL);
	ck_assert_int_ne(agentd_exec_state(exec), AGENTD_STATE_FINISHED);
	ck_assert_int_eq(fcntl(out[0], F_SETFL, O_NONBLOCK), 0);
	deadline = t_now() + T_MS(t_slack(20000));
	while (got < SIZE && t_now() < deadline) {
		ssize_t n = read(out[0], data + got, SIZE + 1 - got);

		if (n > 0)
			got += (uint64_t)n;
		else
			t_world_loop(world, 1, NULL);
	}
	ck_assert_uint_eq(got, SIZE);
	for (size_t i = 0; i < SIZE; i++)
		T_CHECK(data[i] == (uint8_t) "1234567\n"[i % 8], "byte %zu is %u", i, data[i]);
	wait_for(world, exec);
	ck_assert_int_eq(agentd_result_status(agentd_exec_result(exec)), AGENTD_STATUS_OK);
	ck_assert_int_eq(agentd_result_truncated(agentd_exec_result(exec)), 0);
	agentd_exec_unref(exec);
	agentd_sink_unref(sink);
	close(out[0]);
	close(out[1]);
	free(data);
	t_world_free(world);
}
END_TEST

/* The reader goes away: no SIGPIPE, the command ends, the cause is the sink. */
START_TEST(fd_sink_reader_gone)
{
	struct t_world *world = t_world_new(NULL);
	agentd_sink *sink = NULL;
	agentd_exec *exec;
	int out[2];

	ck_assert_int_eq(pipe2(out, O_CLOEXEC), 0);
	ck_assert_int_eq(agentd_sink_new_fd(out[1], -1, &sink, NULL), 0);
	close(out[0]);
	exec = start_with(world, "yes; sleep 20", sink);
	wait_for(world, exec);
	ck_assert_int_eq(agentd_result_status(agentd_exec_result(exec)), AGENTD_STATUS_KILLED);
	ck_assert_int_eq(agentd_result_cause(agentd_exec_result(exec)), AGENTD_CAUSE_SINK);
	agentd_exec_unref(exec);
	agentd_sink_unref(sink);
	close(out[1]);
	t_world_free(world);
}
END_TEST

static int32_t pause_first(struct t_run *run, agentd_stream stream, const uint8_t *data, size_t len)
{
	(void)data;
	return stream == AGENTD_STDOUT && run->total[AGENTD_STDOUT] == len ? AGENTD_SINK_PAUSE :
									     AGENTD_SINK_CONTINUE;
}

START_TEST(tee_sink)
{
	struct t_world *world = t_world_new(NULL);
	agentd_sink *a, *buffer = NULL, *tee = NULL;
	const uint8_t *data;
	struct t_run run;
	uint64_t before;
	size_t len;

	t_run_init(&run, world);
	run.on_output = pause_first;
	a = t_run_sink(&run);
	ck_assert_int_eq(agentd_sink_new_buffer(4 << 20, 0, &buffer, NULL), 0);
	ck_assert_int_eq(agentd_sink_new_tee(a, buffer, &tee, NULL), 0);
	agentd_sink_unref(a);
	run.exec = start_with(world, "echo one; sleep 0.1; head -c 3000000 /dev/zero", tee);
	run.begin_ns = t_now();
	t_world_loop(world, 500, NULL);
	before = run.total[AGENTD_STDOUT];
	ck_assert_uint_lt(before, 1000000);
	ck_assert_int_eq(agentd_sink_buffer_get(buffer, AGENTD_STDOUT, &data, &len, NULL), 0);
	ck_assert_uint_lt(len, 2500000); /* the slower one paces */
	ck_assert_int_eq(agentd_exec_resume(run.exec, AGENTD_STDOUT), 0);
	t_run_wait(&run);
	ck_assert_uint_eq(run.total[AGENTD_STDOUT], 3000004);
	ck_assert_int_eq(agentd_sink_buffer_get(buffer, AGENTD_STDOUT, &data, &len, NULL), 0);
	ck_assert_uint_eq(len, 3000004);
	agentd_sink_unref(tee);
	agentd_sink_unref(buffer);
	run.id = NULL;
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(sink_of_nothing)
{
	static const struct agentd_sink_ops ops = { .size = sizeof(ops) };
	struct t_world *world = t_world_new(NULL);
	agentd_sink *sink = NULL;
	agentd_exec *exec;

	ck_assert_int_eq(agentd_sink_new(&ops, NULL, &sink, NULL), 0);
	exec = start_with(world, "echo a; echo b >&2; exit 6", sink);
	agentd_sink_unref(sink);
	wait_for(world, exec);
	ck_assert_int_eq(agentd_result_exit_code(agentd_exec_result(exec)), 6);
	agentd_exec_unref(exec);
	exec = start_with(world, "head -c 1000000 /dev/zero; exit 7", NULL);
	wait_for(world, exec);
	ck_assert_int_eq(agentd_result_exit_code(agentd_exec_result(exec)), 7);
	ck_assert_int_eq(agentd_result_truncated(agentd_exec_result(exec)), 0);
	agentd_exec_unref(exec);
	t_world_free(world);
}
END_TEST

/* ---- the library's own loop */

START_TEST(own_loop)
{
	struct t_world *world = t_world_new_bare(NULL);
	agentd_loop *loop = NULL;
	struct t_run run;
	uint64_t at = t_now();

	ck_assert_int_eq(agentd_loop_new(&loop, NULL), 0);
	ck_assert_ptr_nonnull(agentd_loop_event_base(loop));
	ck_assert_int_eq(agentd_loop_run(loop, 0, NULL), 0);
	ck_assert_int_eq(agentd_loop_run(loop, 100, NULL), 0);
	ck_assert_uint_ge(t_now() - at, T_MS(99));
	/* a wake-up that came before counts */
	ck_assert_int_eq(agentd_loop_wakeup(loop), 0);
	ck_assert_int_eq(agentd_loop_wakeup(loop), 0);
	ck_assert_int_eq(agentd_loop_run(loop, 5000, NULL), 1);
	ck_assert_int_eq(agentd_loop_run(loop, 50, NULL), 0);

	world->base = agentd_loop_event_base(loop);
	t_world_start(world);
	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "sleep 0.3; exit 5", 0), 0);
	ck_assert_int_eq(agentd_loop_run_until(loop, run.exec, 50, NULL), 0);
	ck_assert_int_eq(run.finished, 0);
	ck_assert_int_eq(agentd_loop_run_until(loop, run.exec, 0, NULL), 0);
	ck_assert_int_eq(agentd_loop_run_until(loop, run.exec, -1, NULL), 1);
	ck_assert_int_eq(run.finished, 1);
	t_expect_exit(&run, 5);
	/* it is over: at once */
	at = t_now();
	ck_assert_int_eq(agentd_loop_run_until(loop, run.exec, 5000, NULL), 1);
	ck_assert_uint_lt(t_now() - at, T_MS(t_slack(1000)));
	ck_assert_int_eq(agentd_loop_run_until(loop, run.exec, 0, NULL), 1);
	t_run_free(&run);
	ck_assert_ptr_eq(agentd_loop_ref(loop), loop);
	agentd_loop_unref(loop);
	t_world_shutdown(world);
	agentd_loop_unref(loop);
	world->base = NULL;
	t_world_free(world);
}
END_TEST

int main(void)
{
	TCase *json = t_case("json", 30), *logs = t_case("logs", 30);
	TCase *sinks = t_case("sinks", 60), *loops = t_case("loops", 30);
	TCase *const cases[] = { json, logs, sinks, loops };

	tcase_add_test(json, result_ok);
	tcase_add_test(json, result_others);
	tcase_add_test(json, explain_and_run_agree);
	tcase_add_test(json, params_json);
	tcase_add_test(json, digest_and_validate);
	tcase_add_test(json, names);
	tcase_add_test(logs, log_fields);
	tcase_add_test(logs, log_level);
	tcase_add_test(logs, silent_runner);
	tcase_add_test(sinks, buffer_sink);
	tcase_add_test(sinks, fd_sink);
	tcase_add_test(sinks, fd_sink_back_pressure);
	tcase_add_test(sinks, fd_sink_reader_gone);
	tcase_add_test(sinks, tee_sink);
	tcase_add_test(sinks, sink_of_nothing);
	tcase_add_test(loops, own_loop);
	return t_main("values", cases, T_COUNT(cases));
}
