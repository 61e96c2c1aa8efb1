/* SPDX-License-Identifier: MIT */
/* The acceptance list: a context with a temporary workdir, no session, no pool,
 * trace `test-trace-123`, an empty HOME, and the default shell, `bash -lc`. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"

enum { NO_CODE = -1 };

static struct t_world *login_world(void)
{
	return t_world_new(&(struct t_world_opts){ .login_shell = true });
}

static agentd_params *parse(const char *json)
{
	agentd_params *params = NULL;
	agentd_error *err = NULL;
	int r = agentd_params_parse(json, strlen(json), &params, &err);

	ck_assert_msg(r == 0, "%s: %s", json, agentd_error_message(err));
	return params;
}

static void json_run(struct t_run *run, struct t_world *world, const char *json)
{
	agentd_params *params = parse(json);

	t_run_init(run, world);
	ck_assert_int_eq(t_run_start_params(run, params, NULL), 0);
	agentd_params_unref(params);
	t_run_wait(run);
}

/* ---- parameters */

START_TEST(accepted)
{
	static const struct {
		const char *json, *timeout;
	} rows[] = {
		{ "{\"command\":\"echo hello\"}", "\"timeout_ms\":30000" },
		{ "{\"command\":\"sleep 5\",\"timeout_ms\":60000}", "\"timeout_ms\":60000" },
		{ "{\"command\":\"a\",\"timeout_ms\":0}", "\"timeout_ms\":1" },
		{ "{\"command\":\"a\",\"timeout_ms\":1}", "\"timeout_ms\":1" },
		{ "{\"command\":\"a\",\"timeout_ms\":18446744073709551615}",
		  "\"timeout_ms\":18446744073709551615" },
		{ "{\"command\":\"a\",\"timeout_ms\":4294967297}", "\"timeout_ms\":4294967297" },
		{ "{\"command\":\"a\",\"unknown\":[1,{\"x\":null}],\"Command\":7}",
		  "\"timeout_ms\":30000" },
	};

	for (size_t i = 0; i < T_COUNT(rows); i++) {
		agentd_params *params = parse(rows[i].json);
		char *text = NULL;

		ck_assert_int_eq(agentd_params_to_json(params, &text, NULL, NULL), 0);
		ck_assert_msg(strstr(text, rows[i].timeout), "%s gave %s", rows[i].json, text);
		agentd_free(text);
		agentd_params_unref(params);
	}
}
END_TEST

START_TEST(refused)
{
#define PARSE "Failed to parse shell.exec parameters: "
	static const struct {
		const char *json, *message, *pointer;
	} rows[] = {
		{ "{}", PARSE "missing field `command`", NULL },
		{ "{\"timeout_ms\":5000}", PARSE "missing field `command`", NULL },
		{ "{\"COMMAND\":\"a\"}", PARSE "missing field `command`", NULL },
		{ "{\"command\":12345}", PARSE "invalid type: integer `12345`, expected a string",
		  "/command" },
		{ "{\"command\":null}", PARSE "invalid type: null, expected a string", "/command" },
		{ "{\"command\":true}", PARSE "invalid type: boolean `true`, expected a string",
		  "/command" },
		{ "{\"command\":\"a\",\"timeout_ms\":null}",
		  PARSE "invalid type: null, expected u64", "/timeout_ms" },
		{ "{\"command\":\"a\",\"timeout_ms\":-1}",
		  PARSE "invalid value: integer `-1`, expected u64", "/timeout_ms" },
		{ "{\"command\":\"a\",\"timeout_ms\":1.5}",
		  PARSE "invalid type: floating point `1.5`, expected u64", "/timeout_ms" },
		{ "{\"command\":\"a\",\"timeout_ms\":5000.0}",
		  PARSE "invalid type: floating point `5000", "/timeout_ms" },
		{ "{\"command\":\"a\",\"timeout_ms\":1e4}",
		  PARSE "invalid type: floating point `10000", "/timeout_ms" },
		{ "{\"command\":\"a\",\"timeout_ms\":\"5000\"}",
		  PARSE "invalid type: string \"5000\", expected u64", "/timeout_ms" },
		{ "{\"command\":\"a\",\"timeout_ms\":true}",
		  PARSE "invalid type: boolean `true`, expected u64", "/timeout_ms" },
		{ "[]", PARSE, NULL },
		{ "\"echo\"", PARSE, NULL },
		{ "null", PARSE, NULL },
		{ "", PARSE, NULL },
		{ "{\"command\":\"a\"", PARSE, NULL },
		{ "{\"command\":\"a\"} x", PARSE, NULL },
		{ "{\"command\":\"a\\u0000b\"}", PARSE, "/command" },
		{ "{\"command\":\"a\",\"command\":\"EVIL\"}", "command", NULL },
		{ "{\"command\":\"a\",\"\\u0063ommand\":\"EVIL\"}", "command", NULL },
		{ "{\"command\":\"\"}", "Shell command must not be empty", NULL },
		{ "{\"command\":\"   \\t\\n   \"}", "Shell command must not be empty", NULL },
		{ "{\"command\":\"\\u0085\\u00a0\\u1680\\u2000\\u200a\\u2028\\u2029\\u202f\\u205f"
		  "\\u3000\\u000b\\u000c\"}",
		  "Shell command must not be empty", NULL },
	};
	struct t_world *world = login_world();

	for (size_t i = 0; i < T_COUNT(rows); i++) {
		agentd_params *params = NULL;
		agentd_error *err = NULL;
		int r = agentd_params_parse(rows[i].json, strlen(rows[i].json), &params, &err);

		ck_assert_ptr_null(params);
		ck_assert_msg(r == AGENTD_ERR_INVALID, "%s: %d", rows[i].json, r);
		if (strstr(rows[i].message, "must not be empty"))
			ck_assert_str_eq(agentd_error_message(err), rows[i].message);
		t_expect_error(r, AGENTD_ERR_INVALID, err, rows[i].message, rows[i].pointer);
		err = NULL;
		r = agentd_runner_validate(world->runner, rows[i].json, strlen(rows[i].json), &err);
		t_expect_error(r, AGENTD_ERR_INVALID, err, rows[i].message, rows[i].pointer);
	}
	/* not white space: U+200B, U+FEFF */
	agentd_params_unref(parse("{\"command\":\"\\u200b\"}"));
	agentd_params_unref(parse("{\"command\":\"\\ufeff\"}"));
	ck_assert_uint_eq(world->logs.count, 0);
	t_world_free(world);
}
END_TEST

/* ---- results */

START_TEST(acceptance)
{
	static const struct {
		const char *json;
		agentd_status status;
		int32_t exit_code, signo;
		const char *out, *err; /* NULL: not looked at */
		size_t out_len, err_len;
		const char *warn; /* the record of stderr; NULL: none */
	} rows[] = {
		{ "{\"command\":\"echo hello\",\"timeout_ms\":5000}", AGENTD_STATUS_OK, 0, 0,
		  "hello\n", "", 6, 0, NULL },
		{ "{\"command\":\"exit 42\"}", AGENTD_STATUS_ERROR, 42, 0, "", "", 0, 0, NULL },
		{ "{\"command\":\"echo error >&2\"}", AGENTD_STATUS_OK, 0, 0, "", "error\n", 0, 6,
		  "error" },
		{ "{\"command\":\"ls test.txt\"}", AGENTD_STATUS_OK, 0, 0, "test.txt\n", "", 9, 0,
		  NULL },
		{ "{\"command\":\"printf ' a \\\\n\\\\n' >&2\"}", AGENTD_STATUS_OK, 0, 0, "",
		  " a \n\n", 0, 5, " a" },
		{ "{\"command\":\"printf '\\\\377x' >&2\"}", AGENTD_STATUS_OK, 0, 0, "", "\377x", 0,
		  2, NULL },
		{ "{\"command\":\"printf '\\\\377\\\\000x'\"}", AGENTD_STATUS_OK, 0, 0, "\377\000x",
		  "", 3, 0, NULL },
		{ "{\"command\":\"kill -KILL $$\"}", AGENTD_STATUS_ERROR, NO_CODE, SIGKILL, "", "",
		  0, 0, NULL },
		{ "{\"command\":\"no_such_cmd_xyz 2>/dev/null\"}", AGENTD_STATUS_ERROR, 127, 0, "",
		  "", 0, 0, NULL },
		{ "{\"command\":\"cat\"}", AGENTD_STATUS_OK, 0, 0, "", "", 0, 0, NULL },
		{ "{\"command\":\"printf '\\\\303\\\\244 ' >&2; printf '\\\\342\\\\200\\\\211' "
		  ">&2\"}",
		  AGENTD_STATUS_OK, 0, 0, "", "\303\244 \342\200\211", 0, 6, "\303\244" },
		{ "{\"command\":\"printf ' \\\\n' >&2\"}", AGENTD_STATUS_OK, 0, 0, "", " \n", 0, 2,
		  "" },
	};
	struct t_world *world = login_world();
	char *path = t_format("%s/test.txt", world->workdir);

	t_write_file(path, "x");
	free(path);
	for (size_t i = 0; i < T_COUNT(rows); i++) {
		struct t_run run;
		size_t warns = 0;

		json_run(&run, world, rows[i].json);
		t_expect_status(&run, rows[i].status);
		t_expect_exit(&run, rows[i].exit_code);
		ck_assert_msg(agentd_result_signal(run.result) == rows[i].signo, "signal: %s",
			      t_run_story(&run));
		ck_assert_msg(run.out_len[1] == rows[i].out_len &&
				      memcmp(run.out_len[1] ? run.out[1] : (uint8_t *)"",
					     rows[i].out, rows[i].out_len) == 0,
			      "stdout: %s", t_run_story(&run));
		ck_assert_msg(run.out_len[2] == rows[i].err_len &&
				      memcmp(run.out_len[2] ? run.out[2] : (uint8_t *)"",
					     rows[i].err, rows[i].err_len) == 0,
			      "stderr: %s", t_run_story(&run));
		ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_STDOUT_BYTES), rows[i].out_len);
		ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_STDERR_BYTES), rows[i].err_len);
		for (size_t j = 0; j < run.logs.count; j++) {
			if (run.logs.items[j].level != AGENTD_LOG_WARN)
				continue;
			warns++;
			ck_assert_msg(rows[i].warn, "a warning: %s", t_run_story(&run));
			ck_assert_str_eq(run.logs.items[j].message, rows[i].warn);
		}
		/* of nothing but white space the original logs the empty rest */
		if (rows[i].warn && *rows[i].warn)
			ck_assert_uint_eq(warns, 1);
		t_run_free(&run);
	}
	t_world_free(world);
}
END_TEST

START_TEST(shell_words)
{
	struct t_world *world = login_world();
	struct t_run run;

	json_run(&run, world, "{\"command\":\"no_such_cmd_xyz\"}");
	t_expect_exit(&run, 127);
	t_expect_cause(&run, AGENTD_CAUSE_EXITED);
	ck_assert_uint_gt(run.total[AGENTD_STDERR], 0);
	t_run_free(&run);
	json_run(&run, world, "{\"command\":\"if then\"}");
	t_expect_exit(&run, 2);
	t_run_free(&run);
	/* bash, through PATH, as a login shell, with the command as one argument */
	json_run(&run, world,
		 "{\"command\":\"shopt -q login_shell && echo \\\"$0 ${#BASH_VERSION} $#\\\"\"}");
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_ptr_nonnull(strstr((char *)run.out[AGENTD_STDOUT], "bash "));
	t_run_free(&run);
	/* not trimmed */
	json_run(&run, world, "{\"command\":\"  echo '  a  '  \\n\"}");
	t_expect_out(&run, AGENTD_STDOUT, "  a  \n");
	ck_assert_ptr_nonnull(
		t_logs_find(&run.logs, 0, "Executing shell command:   echo '  a  '  \n"));
	t_run_free(&run);
	/* nothing overrides the trace */
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "SMITH_TRACE_ID", "other", NULL), 0);
	json_run(&run, world, "{\"command\":\"echo $SMITH_TRACE_ID; pwd\"}");
	ck_assert_int_eq(strncmp((char *)run.out[1], "test-trace-123\n/", 16), 0);
	ck_assert_ptr_nonnull(strstr((char *)run.out[1], world->workdir));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(times_out)
{
	struct t_world *world = login_world();
	const struct t_log *log;
	struct t_run run;
	size_t from;

	json_run(&run, world, "{\"command\":\"sleep 10\",\"timeout_ms\":100}");
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	t_expect_exit(&run, NO_CODE);
	ck_assert_msg(t_run_wall_ms(&run) < t_slack(1000), "%s", t_run_story(&run));
	log = t_logs_find(&run.logs, 0, "Shell command timed out");
	ck_assert_ptr_nonnull(log);
	ck_assert_int_eq(log->level, AGENTD_LOG_ERROR);
	t_run_free(&run);

	from = world->logs.count;
	json_run(&run, world,
		 "{\"command\":\"echo part; echo perr >&2; exec sleep 10\",\"timeout_ms\":400}");
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_STDOUT_BYTES), 5);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_STDERR_BYTES), 5);
	t_expect_out(&run, AGENTD_STDOUT, "part\n");
	t_expect_out(&run, AGENTD_STDERR, "perr\n");
	/* the runner's records, in their order */
	log = t_logs_find(&world->logs, from, "Shell exec timeout reached");
	ck_assert_ptr_nonnull(log);
	ck_assert_int_eq(log->level, AGENTD_LOG_DEBUG);
	log = t_logs_find(&world->logs, (size_t)(log - world->logs.items),
			  "Shell command timed out; attempting to terminate");
	ck_assert_ptr_nonnull(log);
	ck_assert_int_eq(log->level, AGENTD_LOG_WARN);
	ck_assert_str_eq(t_log_field(log, "timeout_ms"), "400");
	ck_assert_int_ge(atoi(t_log_field(log, "elapsed_ms")), 400);
	ck_assert_ptr_null(t_logs_find(&world->logs, from, "Shell command completed"));
	t_run_free(&run);

	json_run(&run, world, "{\"command\":\"sleep 10\",\"timeout_ms\":0}");
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	ck_assert_uint_lt(t_run_wall_ms(&run), t_slack(1000));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* What both a killed shell and its pipes used to keep waiting for. */
START_TEST(whole_tree)
{
	static const struct {
		const char *json;
		agentd_status status;
		int32_t exit_code;
		const char *out;
		uint64_t wall_ms;
	} rows[] = {
		{ "{\"command\":\"sleep 30; true\",\"timeout_ms\":300}", AGENTD_STATUS_TIMEOUT,
		  NO_CODE, "", 1300 },
		{ "{\"command\":\"sleep 30 & echo hi; exit 7\",\"timeout_ms\":5000}",
		  AGENTD_STATUS_ERROR, 7, "hi\n", 1500 },
		{ "{\"command\":\"setsid sleep 30 & echo x\",\"timeout_ms\":5000}",
		  AGENTD_STATUS_OK, 0, "x\n", 1500 },
		{ "{\"command\":\"sleep 2 & echo hi\",\"timeout_ms\":9000}", AGENTD_STATUS_OK, 0,
		  "hi\n", 1500 },
	};
	struct t_world *world = login_world();

	for (size_t i = 0; i < T_COUNT(rows); i++) {
		struct t_run run;

		json_run(&run, world, rows[i].json);
		t_expect_status(&run, rows[i].status);
		t_expect_exit(&run, rows[i].exit_code);
		t_expect_out(&run, AGENTD_STDOUT, rows[i].out);
		ck_assert_msg(t_run_wall_ms(&run) < t_slack(rows[i].wall_ms), "%s",
			      t_run_story(&run));
		t_world_expect_commands_dead(world, 500);
		t_run_free(&run);
	}
	t_world_free(world);
}
END_TEST

START_TEST(memory_is_flat)
{
	struct t_world *world = login_world();
	uint64_t before = t_rss_bytes(), after;
	struct t_run run;
	agentd_params *params = parse("{\"command\":\"head -c 50M /dev/zero\"}");

	t_run_init(&run, world);
	run.discard = true;
	ck_assert_int_eq(t_run_start_params(&run, params, NULL), 0);
	agentd_params_unref(params);
	t_run_wait(&run);
	after = t_rss_bytes();
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_STDOUT_BYTES), 52428800);
	ck_assert_uint_eq(run.total[AGENTD_STDOUT], 52428800);
	if (!t_is_slow())
		ck_assert_msg(after < before + (4 << 20), "grew from %llu to %llu",
			      (unsigned long long)before, (unsigned long long)after);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* ---- logs */

START_TEST(order_of_records)
{
	struct t_world *world = login_world();
	const struct t_log *log;
	struct t_run run;

	json_run(&run, world, "{\"command\":\"echo test; echo warn >&2; exit 3\"}");
	/* the sink: the announcement before anything runs, stderr at the end */
	ck_assert_int_eq(run.events[0].kind, T_LOG);
	ck_assert_str_eq(run.logs.items[0].message,
			 "Executing shell command: echo test; echo warn >&2; exit 3");
	ck_assert_int_eq(run.logs.items[0].level, AGENTD_LOG_INFO);
	ck_assert_int_eq(run.events[1].kind, T_STARTED);
	ck_assert_int_eq(run.events[run.event_count - 2].kind, T_LOG);
	ck_assert_str_eq(run.logs.items[run.logs.count - 1].message, "warn");
	ck_assert_int_eq(run.logs.items[run.logs.count - 1].level, AGENTD_LOG_WARN);
	ck_assert_uint_eq(run.logs.count, 2);

	/* the runner: three records with their fields */
	log = t_logs_find(&world->logs, 0, "Starting shell.exec runner");
	ck_assert_ptr_nonnull(log);
	ck_assert_int_eq(log->level, AGENTD_LOG_DEBUG);
	ck_assert_str_eq(t_log_field(log, "timeout_ms"), "30000");
	ck_assert_str_eq(t_log_field(log, "workdir"), world->workdir);
	ck_assert_str_eq(t_log_field(log, "trace_id"), "test-trace-123");
	log = t_logs_find(&world->logs, (size_t)(log - world->logs.items), "Shell command spawned");
	ck_assert_ptr_nonnull(log);
	ck_assert_int_eq(log->level, AGENTD_LOG_INFO);
	ck_assert_int_gt(atoi(t_log_field(log, "child_pid")), 1);
	ck_assert_str_eq(t_log_field(log, "workdir"), world->workdir);
	ck_assert_int_ge(atoi(t_log_field(log, "spawn_ms")), 0);
	log = t_logs_find(&world->logs, (size_t)(log - world->logs.items),
			  "Shell command completed");
	ck_assert_ptr_nonnull(log);
	ck_assert_int_eq(log->level, AGENTD_LOG_INFO);
	ck_assert_str_eq(t_log_field(log, "exit_code"), "3");
	ck_assert_str_eq(t_log_field(log, "exited_successfully"), "false");
	ck_assert_int_ge(atoi(t_log_field(log, "duration_ms")), 0);
	ck_assert_uint_eq(t_logs_count(&world->logs, "Shell command completed"), 1);
	t_run_free(&run);

	/* no code, no field */
	json_run(&run, world, "{\"command\":\"kill -KILL $$\"}");
	log = t_logs_find(&world->logs, (size_t)(log - world->logs.items) + 1,
			  "Shell command completed");
	ck_assert_ptr_nonnull(log);
	ck_assert_ptr_null(t_log_field(log, "exit_code"));
	ck_assert_str_eq(t_log_field(log, "exited_successfully"), "false");
	t_run_free(&run);
	json_run(&run, world, "{\"command\":\"true\"}");
	log = t_logs_find(&world->logs, (size_t)(log - world->logs.items) + 1,
			  "Shell command completed");
	ck_assert_str_eq(t_log_field(log, "exit_code"), "0");
	ck_assert_str_eq(t_log_field(log, "exited_successfully"), "true");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(still_running)
{
	struct t_world *world =
		t_world_new(&(struct t_world_opts){ .login_shell = true, .heartbeat_ms = 100 });
	const struct t_log *log;
	struct t_run run;
	size_t count;

	json_run(&run, world, "{\"command\":\"sleep 0.55\"}");
	count = t_logs_count(&world->logs, "Shell command still running");
	ck_assert_msg(count >= 2 && count <= 6, "%zu records", count);
	log = t_logs_find(&world->logs, 0, "Shell command still running");
	ck_assert_int_eq(log->level, AGENTD_LOG_INFO);
	ck_assert_int_ge(atoi(t_log_field(log, "elapsed_ms")), 100);
	ck_assert_str_eq(t_log_field(log, "child_pid"),
			 t_log_field(t_logs_find(&world->logs, 0, "Shell command spawned"),
				     "child_pid"));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(stderr_record)
{
	struct t_world *world = t_world_new(NULL);
	const struct t_log *log;
	struct t_run run;

	/* at most its last 64 KiB, on whole characters */
	t_run(&run, world,
	      "yes \303\244\303\244\303\244 | head -c 200003 >&2; printf 'x\\nEND\\n' >&2", 0);
	log = &run.logs.items[run.logs.count - 1];
	ck_assert_int_eq(log->level, AGENTD_LOG_WARN);
	ck_assert_uint_le(strlen(log->message), 65536);
	ck_assert_uint_ge(strlen(log->message), 65530);
	ck_assert_str_eq(log->message + strlen(log->message) - 4, "\nEND");
	ck_assert_int_ne((uint8_t)log->message[0] & 0xc0, 0x80);
	t_run_free(&run);
	t_world_free(world);

	/* a flag turns it off */
	world = t_world_new(&(struct t_world_opts){ .runner_flags = AGENTD_RUNNER_NO_STDERR_LOG });
	t_run(&run, world, "echo e >&2", 0);
	ck_assert_uint_eq(run.logs.count, 1);
	t_expect_out(&run, AGENTD_STDERR, "e\n");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* ---- spawn errors */

START_TEST(spawn_errors)
{
	struct t_world *world = login_world();
	char *file = t_format("%s/file", world->workdir),
	     *none = t_format("%s/none", world->workdir);
	char *large = malloc(100001);
	static const struct {
		const char *what, *text;
		int os_errno;
	} rows[] = {
		{ "missing", "No such file or directory (os error 2)", ENOENT },
		{ "file", "Not a directory (os error 20)", ENOTDIR },
		{ "long", "Argument list too long (os error 7)", E2BIG },
	};

	t_write_file(file, "x");
	memset(large, 'x', 100000);
	large[100000] = '\0';
	for (size_t i = 0; i < T_COUNT(rows); i++) {
		const char *dir = i == 0 ? none : i == 1 ? file : world->workdir;
		const agentd_error *err;
		struct t_run run;

		ck_assert_int_eq(agentd_context_set_workdir(world->ctx, dir, NULL), 0);
		for (int j = 0; i == 2 && j < 40; j++) {
			char *name = t_format("LARGE%d", j);

			ck_assert_int_eq(agentd_context_set_env(world->ctx, name, large, NULL), 0);
			free(name);
		}
		t_run(&run, world, "echo EVIL", 0);
		t_expect_status(&run, AGENTD_STATUS_ERROR);
		t_expect_cause(&run, AGENTD_CAUSE_SPAWN);
		t_expect_exit(&run, NO_CODE);
		err = agentd_result_error(run.result);
		ck_assert_ptr_nonnull(err);
		ck_assert_msg(strstr(agentd_error_message(err), "Failed to spawn shell command") &&
				      strstr(agentd_error_message(err), rows[i].text),
			      "%s: \"%s\"", rows[i].what, agentd_error_message(err));
		ck_assert_int_eq(agentd_error_os_errno(err), rows[i].os_errno);
		ck_assert_int_eq(run.started, 0);
		ck_assert_uint_eq(run.total[AGENTD_STDOUT], 0);
		t_run_free(&run);
	}
	free(large);
	free(file);
	free(none);
	t_world_free(world);
}
END_TEST

/* More than the kernel takes as one argument: whole or not at all. */
START_TEST(long_commands)
{
	static const size_t sizes[] = { 100000, 131071, 131072, 131073, 400000, 1000000 };
	struct t_world *world = t_world_new(NULL);
	size_t ran = 0;

	for (size_t i = 0; i < T_COUNT(sizes); i++) {
		char *command = malloc(sizes[i] + 1);
		agentd_params *params = NULL;
		struct t_run run;
		int r;

		/* cut short, it would not be "ok" at its end */
		memset(command, ' ', sizes[i]);
		memcpy(command, "false;", 6);
		memcpy(command + sizes[i] - 4, "true", 4);
		command[sizes[i]] = '\0';
		r = agentd_params_new_shell(command, 0, &params, NULL);
		free(command);
		if (r < 0) {
			ck_assert_int_eq(r, AGENTD_ERR_INVALID);
			continue;
		}
		t_run_init(&run, world);
		ck_assert_int_eq(t_run_start_params(&run, params, NULL), 0);
		agentd_params_unref(params);
		t_run_wait(&run);
		if (agentd_result_cause(run.result) == AGENTD_CAUSE_SPAWN) {
			ck_assert_int_eq(agentd_error_os_errno(agentd_result_error(run.result)),
					 E2BIG);
		} else {
			t_expect_status(&run, AGENTD_STATUS_OK);
			ran++;
		}
		t_run_free(&run);
	}
	ck_assert_uint_ge(ran, 2);
	t_world_free(world);
}
END_TEST

/* ---- what the original got wrong */

static int32_t refuse_errors(struct t_run *run, const agentd_log_record *record)
{
	(void)run;
	return agentd_log_record_level(record) == AGENTD_LOG_ERROR ? AGENTD_ERR_USER : 0;
}

START_TEST(sink_refuses_the_error_log)
{
	struct t_world *world = login_world();
	agentd_params *params =
		parse("{\"command\":\"setsid sleep 30 & sleep 30\",\"timeout_ms\":300}");
	struct t_run run;

	t_run_init(&run, world);
	run.on_log = refuse_errors;
	ck_assert_int_eq(t_run_start_params(&run, params, NULL), 0);
	agentd_params_unref(params);
	t_run_wait(&run);
	t_world_expect_commands_dead(world, 500);
	ck_assert_int_eq(run.finished, 1);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(environment_from_nothing)
{
	struct t_world *world;
	struct t_run run;
	agentd_policy *policy = t_policy_none();

	ck_assert_int_eq(setenv("AGENTD_TEST_SECRET", "hush", 1), 0);
	ck_assert_int_eq(setenv("BASH_ENV", "/nonexistent", 1), 0);
	ck_assert_int_eq(setenv("LC_TEST", "allowed", 1), 0);
	/* no login shell: /etc/profile may set anything */
	world = t_world_new(NULL);
	json_run(&run, world,
		 "{\"command\":\"env -0 | cut -z -d= -f1 | sort -z | tr '\\\\0' ' '\"}");
	/* what the backend sets, what the context sets, what bash itself adds */
	for (char *save = NULL, *name = strtok_r((char *)run.out[1], " ", &save); name;
	     name = strtok_r(NULL, " ", &save)) {
		static const char *const known[] = {
			"PATH",          "HOME",   "USER",  "LANG", "TMPDIR",  "SHELL",
			"PWD",           "OLDPWD", "SHLVL", "_",    "LOGNAME", "AGENTD_TEST_TAG",
			"SMITH_TRACE_ID"
		};
		bool found = false;

		for (size_t i = 0; i < T_COUNT(known); i++)
			found |= strcmp(name, known[i]) == 0;
		ck_assert_msg(found, "variable %s", name);
	}
	t_run_free(&run);

	/* allowed names come through where both policies say so: here only one does */
	ck_assert_int_eq(agentd_policy_allow_env(policy, "LC_*", NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	json_run(&run, world, "{\"command\":\"echo \\\"<$LC_TEST$AGENTD_TEST_SECRET>\\\"\"}");
	t_expect_out(&run, AGENTD_STDOUT, "<>\n");
	t_run_free(&run);
	agentd_policy_unref(policy);
	t_world_free(world);
}
END_TEST

START_TEST(environment_let_through)
{
	struct t_world *world = t_world_new_bare(&(struct t_world_opts){ .login_shell = true });
	struct agentd_runner_opts opts = { .size = sizeof(opts), .helper_path = world->helper };
	agentd_policy *policy = t_policy_none();
	struct t_run run;

	ck_assert_int_eq(setenv("LC_TEST", "allowed", 1), 0);
	ck_assert_int_eq(setenv("LD_PRELOADED", "no", 1), 0);
	ck_assert_int_eq(agentd_policy_allow_env(policy, "LC_*", NULL), 0);
	world->base = event_base_new();
	world->owns_base = true;
	opts.event_base = world->base;
	opts.policy = policy;
	ck_assert_int_eq(agentd_runner_new(&opts, &world->runner, NULL), 0);
	world->ctx = t_world_context(world);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	agentd_policy_unref(policy);
	json_run(&run, world, "{\"command\":\"echo \\\"<$LC_TEST$LD_PRELOADED>\\\"\"}");
	t_expect_out(&run, AGENTD_STDOUT, "<allowed>\n");
	t_run_free(&run);
	/* the context's own wins over the host program's */
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "LC_TEST", "own", NULL), 0);
	json_run(&run, world, "{\"command\":\"echo \\\"<$LC_TEST>\\\"\"}");
	t_expect_out(&run, AGENTD_STDOUT, "<own>\n");
	t_run_free(&run);
	/* and removing it there removes it */
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "LC_TEST", NULL, NULL), 0);
	json_run(&run, world, "{\"command\":\"echo \\\"<$LC_TEST>\\\"\"}");
	t_expect_out(&run, AGENTD_STDOUT, "<>\n");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* An end before the limit is never reported as a timeout, one at the limit is
 * one or the other, whole. */
START_TEST(near_the_limit)
{
	enum { COUNT = 200, AT_ONCE = 10, LIMIT_MS = 150 };
	struct t_world *world =
		t_world_new(&(struct t_world_opts){ .max_running = AT_ONCE, .max_queued = COUNT });
	static struct t_run runs[COUNT];
	int timeouts = 0, count = t_is_small() ? 40 : COUNT;

	for (int i = 0; i < count; i++) {
		char *command = t_format("sleep 0.%03d", 110 + i % 40);

		t_run_init(&runs[i], world);
		ck_assert_int_eq(t_run_start(&runs[i], command, LIMIT_MS), 0);
		free(command);
	}
	for (int i = 0; i < count; i++) {
		struct t_run *run = &runs[i];
		uint64_t wall;

		t_run_wait(run);
		wall = t_run_metric(run, AGENTD_METRIC_WALL_NS);
		ck_assert_int_eq(run->exited, 1);
		if (agentd_result_status(run->result) == AGENTD_STATUS_TIMEOUT) {
			timeouts++;
			t_expect_exit(run, NO_CODE);
			ck_assert_msg(wall >= T_MS(LIMIT_MS), "a timeout after %llu ns: %s",
				      (unsigned long long)wall, t_run_story(run));
			ck_assert_ptr_nonnull(
				t_logs_find(&run->logs, 0, "Shell command timed out"));
		} else {
			t_expect_status(run, AGENTD_STATUS_OK);
			t_expect_exit(run, 0);
			ck_assert_int_eq(run->exit_code, 0);
			ck_assert_ptr_null(t_logs_find(&run->logs, 0, "Shell command timed out"));
		}
		t_run_free(run);
	}
	fprintf(stderr, "near the limit: %d of %d timed out\n", timeouts, count);
	t_world_free(world);
}
END_TEST

int main(void)
{
	TCase *params = t_case("params", 30), *results = t_case("results", 60);
	TCase *logs = t_case("logs", 30), *differ = t_case("differ", 60);
	TCase *const cases[] = { params, results, logs, differ };

	tcase_add_test(params, accepted);
	tcase_add_test(params, refused);
	tcase_add_test(results, acceptance);
	tcase_add_test(results, shell_words);
	tcase_add_test(results, times_out);
	tcase_add_test(results, whole_tree);
	tcase_add_test(results, memory_is_flat);
	tcase_add_test(results, spawn_errors);
	tcase_add_test(results, long_commands);
	tcase_add_test(logs, order_of_records);
	tcase_add_test(logs, still_running);
	tcase_add_test(logs, stderr_record);
	tcase_add_test(differ, sink_refuses_the_error_log);
	tcase_add_test(differ, environment_from_nothing);
	tcase_add_test(differ, environment_let_through);
	tcase_add_test(differ, near_the_limit);
	return t_main("parity", cases, T_COUNT(cases));
}
