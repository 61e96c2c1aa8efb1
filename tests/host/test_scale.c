/* SPDX-License-Identifier: MIT */
/* Many at once, and many one after the other: right results, bounded growth. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "harness.h"

/* Small, so that it is the library's memory that is measured. */
struct tally {
	struct t_world *world;
	agentd_params *params;
	agentd_sink *sink;
	int started, finished, wrong, left, done;
	int want; /* of started, or finished: then done */
	uint64_t bytes;
};

static void tally_started(agentd_exec *exec, void *userdata)
{
	struct tally *tally = userdata;

	(void)exec;
	if (++tally->started == tally->want)
		tally->done = 1;
}

static int32_t tally_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data,
			    size_t len, void *userdata)
{
	struct tally *tally = userdata;

	(void)exec;
	(void)stream;
	(void)data;
	tally->bytes += len;
	return 0;
}

/* ---- at once */

enum { AT_ONCE = 1000 };

struct one {
	struct tally *tally;
	int32_t code;
};

static void one_started(agentd_exec *exec, void *userdata)
{
	tally_started(exec, ((struct one *)userdata)->tally);
}

static int32_t one_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			  void *userdata)
{
	return tally_output(exec, stream, data, len, ((struct one *)userdata)->tally);
}

static void one_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct one *one = userdata;

	(void)exec;
	if (agentd_result_exit_code(result) != one->code) {
		char *json = NULL;

		if (one->tally->wrong++ == 0 &&
		    agentd_result_to_json(result, &json, NULL, NULL) == 0)
			fprintf(stderr, "exit %d wanted: %s\n", one->code, json);
		agentd_free(json);
	}
	if (++one->tally->finished == AT_ONCE)
		one->tally->done = 1;
}

START_TEST(at_once)
{
	static const struct agentd_sink_ops ops = { .size = sizeof(ops),
						    .started = one_started,
						    .output = one_output,
						    .finished = one_finished };
	static struct one ones[AT_ONCE];
	struct rlimit limit;
	struct t_world *world;
	struct tally tally = { .want = AT_ONCE };
	uint64_t before, after, at;
	struct t_run run;
	FILE *gate;
	char *path;

	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	limit.rlim_cur = limit.rlim_max;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
	if (limit.rlim_max < 2 * AT_ONCE + 100) {
		t_skip("%d commands: RLIMIT_NOFILE is %llu", AT_ONCE,
		       (unsigned long long)limit.rlim_max);
		return;
	}
	if (t_meminfo_bytes("MemAvailable") < (uint64_t)1 << 30) {
		t_skip("%d commands: %llu MiB of memory are available", AT_ONCE,
		       (unsigned long long)t_meminfo_bytes("MemAvailable") >> 20);
		return;
	}
	world = t_world_new(&(struct t_world_opts){ .max_running = AT_ONCE, .no_log = true });
	tally.world = world;
	path = t_format("%s/go", world->workdir);
	t_run(&run, world, "mkfifo go", 0);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_run_free(&run);
	before = t_rss_bytes();
	at = t_now();
	for (int i = 0; i < AT_ONCE; i++) {
		/* none ends before the last has started: they read what comes then */
		char *command = t_format("echo %d; read line < go; exit %d", i, i % 251);
		agentd_params *params = NULL;
		agentd_sink *sink = NULL;

		ones[i] = (struct one){ &tally, i % 251 };
		ck_assert_int_eq(agentd_params_new_shell(command, t_slack(100000), &params, NULL),
				 0);
		ck_assert_int_eq(agentd_sink_new(&ops, &ones[i], &sink, NULL), 0);
		ck_assert_int_eq(agentd_exec_start(world->runner, world->ctx, params, sink, NULL,
						   NULL, NULL),
				 0);
		agentd_params_unref(params);
		agentd_sink_unref(sink);
		free(command);
	}
	ck_assert_msg(t_world_loop(world, t_slack(60000), &tally.done), "%d of %d started",
		      tally.started, AT_ONCE);
	tally.done = 0;
	tally.want = 0;
	t_world_loop(world, 500, NULL);
	ck_assert_int_eq(tally.finished, 0);
	after = t_rss_bytes();
	fprintf(stderr, "%d started in %.1f ms, %.0f bytes of host memory each\n", AT_ONCE,
		(double)(t_now() - at) / 1e6 - 500,
		after > before ? (double)(after - before) / AT_ONCE : 0.0);
	if (!t_is_slow())
		ck_assert_msg(after < before + (uint64_t)AT_ONCE * 8192,
			      "%llu bytes of host memory each",
			      (unsigned long long)(after - before) / AT_ONCE);
	gate = fopen(path, "we");
	ck_assert_ptr_nonnull(gate);
	for (int i = 0; i < AT_ONCE; i++)
		fputs("\n", gate);
	fflush(gate);
	ck_assert(t_world_loop(world, t_slack(60000), &tally.done));
	fclose(gate);
	free(path);
	ck_assert_int_eq(tally.wrong, 0);
	ck_assert_int_eq(tally.finished, AT_ONCE);
	ck_assert_uint_eq(tally.bytes, 10 * 2 + 90 * 3 + 900 * 4);
	t_world_expect_commands_dead(world, 1000);
	t_world_free(world);
}
END_TEST

/* ---- one after the other, some at a time */

enum { AT_A_TIME = 8 };

static void next(struct tally *tally)
{
	tally->left--;
	T_CHECK(agentd_exec_start(tally->world->runner, tally->world->ctx, tally->params,
				  tally->sink, NULL, NULL, NULL) == 0,
		"no start");
}

static void serial_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct tally *tally = userdata;

	(void)exec;
	tally->wrong += agentd_result_status(result) != AGENTD_STATUS_OK;
	if (++tally->finished == tally->want)
		tally->done = 1;
	else if (tally->left > 0)
		next(tally);
}

static void run_more(struct tally *tally, int count)
{
	tally->left = count;
	tally->finished = tally->done = 0;
	tally->want = count;
	for (int i = 0; i < AT_A_TIME; i++)
		next(tally);
	ck_assert_msg(t_world_loop(tally->world, t_slack(100000), &tally->done), "%d of %d",
		      tally->finished, count);
	ck_assert_int_eq(tally->wrong, 0);
}

static size_t count_entries(const char *path)
{
	DIR *dir = opendir(path);
	size_t count = 0;

	while (dir && readdir(dir))
		count++;
	if (dir)
		closedir(dir);
	return count;
}

/* R20 */
START_TEST(many_in_a_row)
{
	static const struct agentd_sink_ops ops = { .size = sizeof(ops),
						    .output = tally_output,
						    .finished = serial_finished };
	struct t_world *world = t_world_new(&(struct t_world_opts){ .no_log = true });
	struct tally tally = { .world = world };
	int warm_up = t_is_small() ? 50 : 1000, rest = t_is_small() ? 500 : 9000;
	uint64_t before, after, helper_before, helper_after, at;
	size_t left;
	char *path = NULL, *statm;
	struct t_fds fds;

	ck_assert_int_eq(agentd_params_new_shell("true", 0, &tally.params, NULL), 0);
	ck_assert_int_eq(agentd_sink_new(&ops, &tally, &tally.sink, NULL), 0);
	path = t_format("/proc/%d/statm", (int)t_world_helper(world));
	run_more(&tally, warm_up);
	t_world_loop(world, 50, NULL);
	t_fds_take(&fds);
	before = t_rss_bytes();
	statm = t_read_file(path, NULL);
	helper_before = strtoull(strchr(statm, ' '), NULL, 10);
	free(statm);
	at = t_now();
	run_more(&tally, rest);
	fprintf(stderr, "%d x true in %.1f s\n", rest, (double)(t_now() - at) / 1e9);
	t_world_loop(world, 50, NULL);
	after = t_rss_bytes();
	statm = t_read_file(path, NULL);
	helper_after = strtoull(strchr(statm, ' '), NULL, 10);
	free(statm);
	free(path);
	t_fds_expect_same(&fds, "after all of them");
	t_fds_free(&fds);
	if (!t_is_slow()) {
		ck_assert_msg(after < before + (1 << 20), "memory grew from %llu to %llu",
			      (unsigned long long)before, (unsigned long long)after);
		ck_assert_msg(helper_after < helper_before + 64, "the helper grew by %llu pages",
			      (unsigned long long)(helper_after - helper_before));
	}
	/* The helper is left of it, with a supervisor and a process for the next command, and
	 * nothing in the places for such things. */
	at = t_now() + T_MS(t_slack(5000));
	while ((left = t_world_helper_pids(world, NULL, 0)) != 3 && t_now() < at)
		t_world_loop(world, 10, NULL);
	ck_assert_uint_eq(left, 3);
	ck_assert_uint_eq(count_entries(world->workdir), 2);
	ck_assert_uint_eq(count_entries(world->home), 2);
	agentd_sink_unref(tally.sink);
	agentd_params_unref(tally.params);
	t_world_free(world);
}
END_TEST

/* Runners come and go as well. */
START_TEST(many_runners)
{
	int count = t_is_small() ? 10 : 100;
	struct t_world *world = t_world_new(NULL);
	uint64_t before = 0;
	struct t_fds fds;

	t_fds_take(&fds);
	for (int i = 0; i < count; i++) {
		struct agentd_runner_opts opts = { .size = sizeof(opts),
						   .event_base = world->base,
						   .helper_path = world->helper };
		agentd_runner *runner = NULL;

		if (i == count / 10)
			before = t_rss_bytes();
		ck_assert_int_eq(agentd_runner_new(&opts, &runner, NULL), 0);
		if (i % 2)
			t_world_loop(world, 1, NULL);
		agentd_runner_unref(runner);
	}
	if (!t_is_slow())
		ck_assert_uint_lt(t_rss_bytes(), before + (1 << 20));
	t_fds_expect_same(&fds, "after many runners");
	t_fds_free(&fds);
	t_world_free(world);
}
END_TEST

int main(void)
{
	TCase *scale = t_case("scale", 120);
	TCase *const cases[] = { scale };

	tcase_add_test(scale, at_once);
	tcase_add_test(scale, many_in_a_row);
	tcase_add_test(scale, many_runners);
	return t_main("scale", cases, T_COUNT(cases));
}
