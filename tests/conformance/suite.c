/* SPDX-License-Identifier: MIT */
#include "conformance.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"

/* Which backend is judged; set once, before the first case. */
static const struct conf_backend *conf;

static struct t_world *world_new(struct t_world_opts opts)
{
	opts.backend = conf->name;
	opts.add_backend = conf->add;
	opts.paths = !(conf->features & CONF_HOST_FS);
	return t_world_new(&opts);
}

static struct t_world *world_plain(void)
{
	return world_new((struct t_world_opts){ 0 });
}

static struct agentd_exec_opts exec_opts(uint32_t flags, const struct agentd_limits *limits,
					 uint32_t grace_ms)
{
	return (struct agentd_exec_opts){ .size = sizeof(struct agentd_exec_opts),
					  .flags = flags,
					  .limits = limits,
					  .grace_ms = grace_ms };
}

static struct agentd_limits limits_none(void)
{
	struct agentd_limits limits;

	agentd_limits_init(&limits, sizeof(limits));
	return limits;
}

static bool marker_exists(struct t_world *world, const char *name)
{
	char *path = t_format("%s/%s", world->workdir, name);
	bool found = access(path, F_OK) == 0;

	free(path);
	return found;
}

/* A run with everything default that must go well. */
static void expect_ok(struct t_world *world, const char *command, const char *out)
{
	struct t_run run;

	t_run(&run, world, command, 0);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_cause(&run, AGENTD_CAUSE_EXITED);
	t_expect_exit(&run, 0);
	t_expect_out(&run, AGENTD_STDOUT, out);
	t_run_free(&run);
}

static void expect_dropped(const struct t_run *run, uint64_t produced)
{
	uint64_t out = t_run_metric(run, AGENTD_METRIC_STDOUT_BYTES);
	uint64_t err = t_run_metric(run, AGENTD_METRIC_STDERR_BYTES);
	uint64_t dropped = t_run_metric(run, AGENTD_METRIC_DROPPED_BYTES);

	ck_assert_msg(run->total[AGENTD_STDOUT] + run->total[AGENTD_STDERR] + dropped == out + err,
		      "delivered + dropped is not what was produced: %s", t_run_story(run));
	if (produced != UINT64_MAX)
		ck_assert_msg(out + err == produced, "%llu bytes were produced: %s",
			      (unsigned long long)produced, t_run_story(run));
	ck_assert_msg(agentd_result_truncated(run->result) == (dropped > 0), "truncated: %s",
		      t_run_story(run));
}

/* How many of so many rows are tried. */
static size_t rows(size_t count)
{
	return conf->features & CONF_BRIEF ? 2 : count;
}

/* A limit that a shell does not reach before it has said something. */
static uint64_t limit_ms(uint64_t ms)
{
	return conf->features & CONF_COSTLY ? ms * 10 : t_slack(ms);
}

/* How long a command may take until it has shown a first sign: a machine boots before it, on a
 * processor that others use. */
static uint64_t first_sign_ms(void)
{
	return conf->features & CONF_COSTLY ? 60000 : t_slack(10000);
}

/* ---- how it ends */

START_TEST(exit_codes)
{
	static const int codes[] = { 0, 42, 1, 2, 124, 126, 127, 128, 255 };
	struct t_world *world = world_plain();

	for (size_t i = 0; i < rows(T_COUNT(codes)); i++) {
		char *command = t_format("exit %d", codes[i]);
		struct t_run run;

		t_run(&run, world, command, 0);
		t_expect_status(&run, codes[i] == 0 ? AGENTD_STATUS_OK : AGENTD_STATUS_ERROR);
		t_expect_cause(&run, AGENTD_CAUSE_EXITED);
		t_expect_exit(&run, codes[i]);
		ck_assert_int_eq(run.exit_code, codes[i]);
		ck_assert_int_eq(agentd_result_signal(run.result), 0);
		ck_assert_ptr_null(agentd_result_error(run.result));
		ck_assert_str_eq(agentd_result_limit(run.result), "");
		t_run_free(&run);
		free(command);
	}
	t_world_free(world);
}
END_TEST

START_TEST(signal_deaths)
{
	static const int signals[] = { SIGKILL, SIGSEGV, SIGHUP,  SIGINT, SIGQUIT,
				       SIGABRT, SIGPIPE, SIGTERM, SIGUSR1 };
	struct t_world *world = world_plain();

	for (size_t i = 0; i < rows(T_COUNT(signals)); i++) {
		char *command = t_format("ulimit -c 0; kill -%d $$; sleep 5", signals[i]);
		struct t_run run;

		t_run(&run, world, command, 0);
		t_expect_status(&run, AGENTD_STATUS_ERROR);
		t_expect_cause(&run, AGENTD_CAUSE_SIGNALED);
		t_expect_exit(&run, -1);
		ck_assert_msg(agentd_result_signal(run.result) == signals[i] &&
				      run.signo == signals[i],
			      "signal %d wanted: %s", signals[i], t_run_story(&run));
		t_run_free(&run);
		free(command);
	}
	t_world_free(world);
}
END_TEST

START_TEST(argv_without_shell)
{
	static const char *const argv[] = { "printf", "%s|", "a b", "$HOME", "", "*", NULL };
	struct t_world *world = world_plain();
	agentd_params *params = NULL;
	struct t_run run;

	t_run_init(&run, world);
	ck_assert_int_eq(agentd_params_new_argv(argv, 0, &params, NULL), 0);
	ck_assert_int_eq(t_run_start_params(&run, params, NULL), 0);
	agentd_params_unref(params);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, "a b|$HOME||*|");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(exited_before_finished)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run(&run, world, "echo a; exit 3", 0);
	ck_assert_int_eq(run.started, 1);
	ck_assert_int_eq(run.exited, 1);
	ck_assert_int_eq(run.finished, 1);
	ck_assert_int_eq(run.exit_code, 3);
	ck_assert_uint_le(run.exited_ns, run.end_ns);
	ck_assert_int_eq(run.events[run.event_count - 1].kind, T_FINISHED);
	/* whatever the loop still does, nothing comes after */
	ck_assert(!t_world_loop(world, 100, NULL));
	ck_assert_int_eq(run.finished, 1);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

static int32_t state_seen;

static void note_state(struct t_run *run, enum t_event_kind kind)
{
	if (kind == T_STARTED)
		state_seen = agentd_exec_state(run->exec);
}

START_TEST(states)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run_init(&run, world);
	run.on_event = note_state;
	ck_assert_int_eq(t_run_start(&run, "sleep 0.05", 0), 0);
	ck_assert_int_le(agentd_exec_state(run.exec), AGENTD_STATE_STARTING);
	ck_assert_ptr_null(agentd_exec_result(run.exec));
	ck_assert_int_eq(agentd_exec_signal(run.exec, SIGTERM, NULL), AGENTD_ERR_STATE);
	t_run_wait(&run);
	ck_assert_int_eq(state_seen, AGENTD_STATE_RUNNING);
	ck_assert_int_eq(agentd_exec_state(run.exec), AGENTD_STATE_FINISHED);
	ck_assert_ptr_eq(agentd_exec_result(run.exec), run.result);
	ck_assert_int_eq(agentd_exec_signal(run.exec, SIGTERM, NULL), AGENTD_ERR_STATE);
	ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
	ck_assert_int_eq(agentd_exec_kill(run.exec), 0);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(result_facts)
{
	struct t_world *world = world_plain();
	struct t_run run;
	uint64_t wall, before, after;
	char *json = NULL;
	size_t len = 0;

	t_run(&run, world, "sleep 0.2; echo abc; echo de >&2", 0);
	ck_assert_str_eq(agentd_result_backend(run.result), conf->name);
	wall = t_run_metric(&run, AGENTD_METRIC_WALL_NS);
	before = T_MS(190);
	after = run.end_ns - run.begin_ns;
	ck_assert_msg(wall >= before && wall <= after, "wall time: %s", t_run_story(&run));
	ck_assert_uint_ne(t_run_metric(&run, AGENTD_METRIC_STARTUP_NS), UINT64_MAX);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_STDOUT_BYTES), 4);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_STDERR_BYTES), 3);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_DROPPED_BYTES), 0);
	ck_assert_uint_ne(t_run_metric(&run, AGENTD_METRIC_CPU_NS), UINT64_MAX);
	ck_assert_uint_ne(t_run_metric(&run, AGENTD_METRIC_MEMORY_PEAK_BYTES), UINT64_MAX);
	ck_assert_uint_eq(t_run_metric(&run, 9999), UINT64_MAX);
	ck_assert_int_eq(agentd_result_truncated(run.result), 0);
	ck_assert_uint_ge(agentd_result_protection_count(run.result), 1);
	ck_assert_int_eq(agentd_result_protection_at(run.result, 9999, NULL, NULL, NULL),
			 AGENTD_ERR_NOTFOUND);
	ck_assert_int_eq(agentd_result_to_json(run.result, &json, &len, NULL), 0);
	ck_assert_uint_eq(strlen(json), len);
	ck_assert_msg(json[0] == '{' && json[len - 1] == '}', "%s", json);
	agentd_free(json);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* ---- output */

START_TEST(output_binary)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run(&run, world, "printf '\\377\\000x\\033]0;\\007\\r\\n'; printf '\\200\\000' >&2", 0);
	ck_assert_uint_eq(run.out_len[AGENTD_STDOUT], 10);
	ck_assert_mem_eq(run.out[AGENTD_STDOUT], "\377\000x\033]0;\007\r\n", 10);
	ck_assert_uint_eq(run.out_len[AGENTD_STDERR], 2);
	ck_assert_mem_eq(run.out[AGENTD_STDERR], "\200\000", 2);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(output_as_it_comes)
{
	struct t_world *world = world_plain();
	struct t_run run;
	uint64_t first = 0, last = 0;

	t_run(&run, world, "echo a; sleep 0.3; echo b", 0);
	for (size_t i = 0; i < run.event_count; i++) {
		if (run.events[i].kind != T_OUTPUT)
			continue;
		if (!first)
			first = run.events[i].at_ns;
		last = run.events[i].at_ns;
	}
	ck_assert_msg(last - first > T_MS(150), "output was held back: %s", t_run_story(&run));
	t_expect_out(&run, AGENTD_STDOUT, "a\nb\n");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

static const char lines_command[] =
	"i=0; while [ $i -lt 200 ]; do echo o$i; echo e$i >&2; i=$((i+1)); done";

START_TEST(output_order)
{
	struct t_world *world = world_plain();
	struct t_run run;
	size_t at[3] = { 0, 0, 0 };

	t_run(&run, world, lines_command, 0);
	for (int i = 0; i < 200; i++) {
		char text[16];

		for (int stream = 1; stream < 3; stream++) {
			int len = snprintf(text, sizeof(text), "%c%d\n", stream == 1 ? 'o' : 'e',
					   i);

			ck_assert_uint_le(at[stream] + (size_t)len, run.out_len[stream]);
			ck_assert_mem_eq(run.out[stream] + at[stream], text, (size_t)len);
			at[stream] += (size_t)len;
		}
	}
	ck_assert_uint_eq(at[1], run.out_len[1]);
	ck_assert_uint_eq(at[2], run.out_len[2]);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(output_merged)
{
	struct agentd_exec_opts opts = exec_opts(AGENTD_EXEC_MERGE_STDERR, NULL, 0);
	struct t_world *world = world_plain();
	struct t_run run;
	size_t at = 0;

	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, lines_command, 0), 0);
	t_run_wait(&run);
	for (int i = 0; i < 200; i++) {
		char text[32];
		int len = snprintf(text, sizeof(text), "o%d\ne%d\n", i, i);

		ck_assert_uint_le(at + (size_t)len, run.out_len[AGENTD_STDOUT]);
		ck_assert_mem_eq(run.out[AGENTD_STDOUT] + at, text, (size_t)len);
		at += (size_t)len;
	}
	ck_assert_uint_eq(at, run.out_len[AGENTD_STDOUT]);
	ck_assert_uint_eq(run.total[AGENTD_STDERR], 0);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(output_large)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run(&run, world, "yes 0123456789abcde | head -c 6400000; head -c 100000 /dev/zero >&2",
	      0);
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_uint_eq(run.total[AGENTD_STDOUT], 6400000);
	ck_assert_uint_eq(run.total[AGENTD_STDERR], 100000);
	for (size_t i = 0; i < run.out_len[AGENTD_STDOUT]; i++)
		T_CHECK(run.out[AGENTD_STDOUT][i] == (uint8_t) "0123456789abcde\n"[i % 16],
			"byte %zu is wrong", i);
	expect_dropped(&run, 6500000);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(output_cap)
{
	struct agentd_limits limits = limits_none();
	struct agentd_exec_opts opts = exec_opts(0, &limits, 0);
	struct t_world *world = world_plain();
	struct t_run run;

	limits.output_bytes = 1000;
	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "head -c 500000 /dev/zero; echo end >&2; exit 3", 0), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_ERROR);
	t_expect_exit(&run, 3);
	ck_assert_uint_eq(run.total[1] + run.total[2], 1000);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_DROPPED_BYTES), 499004);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_STDOUT_BYTES), 500000);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_STDERR_BYTES), 4);
	ck_assert_int_eq(agentd_result_truncated(run.result), 1);
	ck_assert_str_eq(agentd_result_limit(run.result), "output_bytes");
	t_run_free(&run);

	/* exactly as much as is allowed is not too much */
	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "head -c 1000 /dev/zero", 0), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	expect_dropped(&run, 1000);
	ck_assert_int_eq(agentd_result_truncated(run.result), 0);
	ck_assert_str_eq(agentd_result_limit(run.result), "");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(kill_on_output)
{
	struct agentd_limits limits = limits_none();
	struct agentd_exec_opts opts = exec_opts(AGENTD_EXEC_KILL_ON_OUTPUT, &limits, 0);
	struct t_world *world = world_plain();
	struct t_run run;

	limits.output_bytes = 5000;
	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "yes; sleep 20", 0), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run, AGENTD_CAUSE_OUTPUT);
	ck_assert_str_eq(agentd_result_limit(run.result), "output_bytes");
	ck_assert_uint_eq(run.total[1], 5000);
	expect_dropped(&run, UINT64_MAX);
	ck_assert_uint_lt(t_run_wall_ms(&run), t_slack(5000));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* ---- pausing */

static int32_t pause_once(struct t_run *run, agentd_stream stream, const uint8_t *data, size_t len)
{
	int *paused = run->userdata;

	(void)data;
	(void)len;
	if (stream == AGENTD_STDOUT && !*paused) {
		*paused = 1;
		return AGENTD_SINK_PAUSE;
	}
	return AGENTD_SINK_CONTINUE;
}

START_TEST(pause_resume)
{
	struct t_world *world = world_plain();
	struct t_run run;
	int paused = 0;
	uint64_t before;

	t_run_init(&run, world);
	run.on_output = pause_once;
	run.userdata = &paused;
	ck_assert_int_eq(t_run_start(&run, "echo first >&2; head -c 6000000 /dev/zero; echo x >&2",
				     0),
			 0);
	ck_assert(t_world_loop(world, first_sign_ms(), &paused));
	before = run.total[AGENTD_STDOUT];
	t_world_loop(world, 400, NULL);
	ck_assert_uint_eq(run.total[AGENTD_STDOUT], before);
	ck_assert_msg(!run.exited, "it went on although nobody read: %s", t_run_story(&run));
	ck_assert_int_eq(agentd_exec_resume(run.exec, AGENTD_STDOUT), 0);
	ck_assert_uint_eq(run.total[AGENTD_STDOUT], before);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_uint_eq(run.total[AGENTD_STDOUT], 6000000);
	t_expect_out(&run, AGENTD_STDERR, "first\nx\n");
	expect_dropped(&run, 6000008);
	/* resuming what is over, twice, is nothing */
	ck_assert_int_eq(agentd_exec_resume(run.exec, AGENTD_STDOUT), 0);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(pause_one_stream)
{
	struct t_world *world = world_plain();
	struct t_run run;
	int paused = 0;
	uint64_t deadline = t_now() + T_MS(first_sign_ms());

	t_run_init(&run, world);
	run.on_output = pause_once;
	run.userdata = &paused;
	ck_assert_int_eq(t_run_start(&run,
				     "echo a; sleep 0.1; head -c 300000 /dev/zero >&2; echo b; "
				     "sleep 0.3",
				     0),
			 0);
	while (run.total[AGENTD_STDERR] < 300000 && t_now() < deadline)
		t_world_loop(world, 10, NULL);
	ck_assert_uint_eq(run.total[AGENTD_STDERR], 300000);
	t_expect_out(&run, AGENTD_STDOUT, "a\n");
	ck_assert_int_eq(agentd_exec_resume(run.exec, AGENTD_STDOUT), 0);
	t_run_wait(&run);
	t_expect_out(&run, AGENTD_STDOUT, "a\nb\n");
	expect_dropped(&run, 300004);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* The sink is slow, not the command: nothing may be lost once it goes on. */
START_TEST(pause_over_the_exit)
{
	struct t_world *world = world_new((struct t_world_opts){ .drain_ms = 100 });
	struct t_run run;
	int paused = 0;

	t_run_init(&run, world);
	run.on_output = pause_once;
	run.userdata = &paused;
	ck_assert_int_eq(t_run_start(&run, "echo a; sleep 0.1; head -c 30000 /dev/zero", 0), 0);
	ck_assert(t_world_loop(world, first_sign_ms(), &paused));
	t_world_loop(world, 250, &run.exited);
	t_world_loop(world, 20, NULL);
	if (!run.finished)
		ck_assert_int_eq(agentd_exec_resume(run.exec, AGENTD_STDOUT), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	expect_dropped(&run, 30002);
	ck_assert_uint_eq(run.total[AGENTD_STDOUT], 30002);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* A sink that never goes on does not keep the command or the time limit. */
START_TEST(pause_for_ever)
{
	struct agentd_exec_opts opts = exec_opts(0, NULL, 100);
	struct t_world *world = world_plain();
	struct t_run run;
	int paused = 0;

	t_run_init(&run, world);
	run.exec_opts = &opts;
	run.on_output = pause_once;
	run.userdata = &paused;
	ck_assert_int_eq(t_run_start(&run, "yes", 400), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	expect_dropped(&run, UINT64_MAX);
	ck_assert_uint_lt(t_run_wall_ms(&run), t_slack(3000));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* ---- stdin */

START_TEST(stdin_none)
{
	struct t_world *world = world_plain();
	struct t_run run;
	size_t taken = 99;

	expect_ok(world, "cat; echo over", "over\n");
	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "sleep 0.3", 0), 0);
	ck_assert_int_eq(agentd_exec_write(run.exec, (const uint8_t *)"x", 1, &taken),
			 AGENTD_ERR_STATE);
	ck_assert(t_world_loop(world, first_sign_ms(), &run.started));
	ck_assert_int_eq(agentd_exec_write(run.exec, (const uint8_t *)"x", 1, &taken),
			 AGENTD_ERR_STATE);
	ck_assert_uint_eq(taken, 99);
	t_run_wait(&run);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

struct feed {
	const uint8_t *data;
	size_t len, at;
	int again, ended; /* AGAIN was seen; the reader is gone */
	bool close_at_end;
};

static void feed_more(struct t_run *run)
{
	struct feed *feed = run->userdata;

	while (feed->at < feed->len && !feed->ended) {
		size_t taken = 0;
		int r;

		run->world->in_api++;
		r = agentd_exec_write(run->exec, feed->data + feed->at, feed->len - feed->at,
				      &taken);
		run->world->in_api--;
		if (r == AGENTD_ERR_AGAIN) {
			ck_assert_uint_eq(taken, 0);
			feed->again++;
			return;
		}
		if (r == AGENTD_ERR_STATE) {
			feed->ended = 1;
			return;
		}
		ck_assert_int_eq(r, 0);
		ck_assert_uint_gt(taken, 0);
		ck_assert_uint_le(taken, feed->len - feed->at);
		feed->at += taken;
	}
	if (feed->close_at_end) {
		feed->close_at_end = false;
		ck_assert_int_eq(agentd_exec_close_stdin(run->exec), 0);
		ck_assert_int_eq(agentd_exec_close_stdin(run->exec), 0);
	}
}

static void feed_on_event(struct t_run *run, enum t_event_kind kind)
{
	if (kind == T_STARTED || kind == T_DRAINED)
		feed_more(run);
}

START_TEST(stdin_back_pressure)
{
	enum { SIZE = 3000000 };
	struct agentd_exec_opts opts = exec_opts(AGENTD_EXEC_STDIN_OPEN, NULL, 0);
	struct t_world *world = world_plain();
	uint8_t *data = malloc(SIZE);
	struct feed feed = { .data = data, .len = SIZE, .close_at_end = true };
	struct t_run run;

	ck_assert_ptr_nonnull(data);
	for (size_t i = 0; i < SIZE; i++)
		data[i] = (uint8_t)(i * 2654435761U >> 13);
	t_run_init(&run, world);
	run.exec_opts = &opts;
	run.on_event = feed_on_event;
	run.userdata = &feed;
	ck_assert_int_eq(t_run_start(&run, "sleep 0.2; cat; echo end >&2", 0), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_int_gt(feed.again, 0);
	ck_assert_uint_eq(run.out_len[AGENTD_STDOUT], SIZE);
	ck_assert_int_eq(memcmp(run.out[AGENTD_STDOUT], data, SIZE), 0);
	ck_assert_int_eq(agentd_exec_write(run.exec, data, 1, &feed.at), AGENTD_ERR_STATE);
	ck_assert_int_eq(agentd_exec_close_stdin(run.exec), 0);
	free(data);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(stdin_written_before_start)
{
	struct agentd_exec_opts opts = exec_opts(AGENTD_EXEC_STDIN_OPEN, NULL, 0);
	struct feed feed = { .data = (const uint8_t *)"early", .len = 5, .close_at_end = true };
	struct t_world *world = world_plain();
	struct t_run run;

	t_run_init(&run, world);
	run.exec_opts = &opts;
	run.on_event = feed_on_event;
	run.userdata = &feed;
	ck_assert_int_eq(t_run_start(&run, "cat", 0), 0);
	/* Refused or taken, but never lost. */
	feed_more(&run);
	feed.ended = 0;
	t_run_wait(&run);
	t_expect_out(&run, AGENTD_STDOUT, "early");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(stdin_closed_at_once)
{
	struct agentd_exec_opts opts = exec_opts(AGENTD_EXEC_STDIN_OPEN, NULL, 0);
	struct t_world *world = world_plain();
	struct t_run run;

	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "cat; echo over", 0), 0);
	ck_assert_int_eq(agentd_exec_close_stdin(run.exec), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, "over\n");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* SIGPIPE has its default action here: it must not come. */
START_TEST(stdin_reader_gone)
{
	enum { SIZE = 2000000 };
	struct agentd_exec_opts opts = exec_opts(AGENTD_EXEC_STDIN_OPEN, NULL, 0);
	struct t_world *world = world_plain();
	uint8_t *data = calloc(1, SIZE);
	struct feed feed = { .data = data, .len = SIZE };
	struct t_run run;
	uint64_t deadline;

	ck_assert_ptr_nonnull(data);
	t_run_init(&run, world);
	run.exec_opts = &opts;
	run.on_event = feed_on_event;
	run.userdata = &feed;
	ck_assert_int_eq(t_run_start(&run, "exec 0<&-; echo gone; sleep 1", 0), 0);
	deadline = t_now() + T_MS(first_sign_ms());
	while (run.total[AGENTD_STDOUT] < 5 && t_now() < deadline)
		t_world_loop(world, 10, NULL);
	while (!feed.ended && !run.exited && t_now() < deadline) {
		feed_more(&run);
		t_world_loop(world, 10, NULL);
	}
	ck_assert_msg(feed.ended || !(conf->features & CONF_READER),
		      "the reader is gone, %zu bytes were taken: %s", feed.at, t_run_story(&run));
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	free(data);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* ---- stopping */

static void cancel_on_start(struct t_run *run, enum t_event_kind kind)
{
	if (kind != T_STARTED)
		return;
	run->world->in_api++;
	ck_assert_int_eq(agentd_exec_cancel(run->exec), 0);
	ck_assert_int_eq(agentd_exec_cancel(run->exec), 0);
	run->world->in_api--;
}

START_TEST(cancel)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run_init(&run, world);
	run.on_event = cancel_on_start;
	ck_assert_int_eq(t_run_start(&run, "exec sleep 20", 0), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
	t_expect_exit(&run, -1);
	ck_assert_int_eq(agentd_result_signal(run.result), SIGTERM);
	ck_assert_uint_lt(t_run_wall_ms(&run), t_slack(1800));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* A command that cleans up on SIGTERM gets the time to do it. */
START_TEST(cancel_is_gentle)
{
	struct t_world *world = world_plain();
	struct t_run run;
	uint64_t deadline = t_now() + T_MS(first_sign_ms());

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run,
				     "trap 'echo cleanup; exit 5' TERM; echo ready; "
				     "while :; do sleep 0.05; done",
				     0),
			 0);
	while (run.total[AGENTD_STDOUT] < 6 && t_now() < deadline)
		t_world_loop(world, 10, NULL);
	ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
	t_expect_out(&run, AGENTD_STDOUT, "ready\ncleanup\n");
	ck_assert_int_eq(run.exit_code, 5);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(cancel_before_it_runs)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "sleep 1; echo > marker", 0), 0);
	ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
	ck_assert(!marker_exists(world, "marker"));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* Wherever it is on its way: that it did not run is all that went wrong. */
START_TEST(cancel_while_it_starts)
{
	static const uint64_t waits_ms[] = { 0, 2, 5, 10, 15, 20, 30 };

	for (size_t i = 0; i < sizeof(waits_ms) / sizeof(waits_ms[0]); i++) {
		struct t_world *world = world_plain();
		const agentd_error *err;
		uint64_t startup_ns;
		struct t_run run;
		bool ran;

		t_run_init(&run, world);
		ck_assert_int_eq(t_run_start(&run, "exec sleep 20", 0), 0);
		t_world_loop(world, waits_ms[i], NULL);
		ck_assert_int_eq(agentd_exec_kill(run.exec), 0);
		t_run_wait(&run);
		t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
		err = agentd_result_error(run.result);
		ran = agentd_result_metric(run.result, AGENTD_METRIC_STARTUP_NS, &startup_ns) == 0;
		ck_assert_msg(agentd_error_code(err) == (ran ? 0 : AGENTD_ERR_CANCELED),
			      "after %d ms: %s", (int)waits_ms[i], t_run_story(&run));
		t_run_free(&run);
		t_world_free(world);
	}
}
END_TEST

START_TEST(cancel_ignored_is_killed)
{
	struct agentd_exec_opts opts = exec_opts(0, NULL, 200);
	struct t_world *world = world_plain();
	struct t_run run;
	uint64_t at, deadline = t_now() + T_MS(first_sign_ms());

	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "trap '' TERM INT HUP; echo ready; sleep 20; sleep 20",
				     0),
			 0);
	while (run.total[AGENTD_STDOUT] < 6 && t_now() < deadline)
		t_world_loop(world, 10, NULL);
	at = t_now();
	ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
	ck_assert_int_eq(agentd_result_signal(run.result), SIGKILL);
	ck_assert_msg(run.end_ns - at >= T_MS(190), "no grace: %s", t_run_story(&run));
	ck_assert_msg(run.end_ns - at < T_MS(t_slack(1200)), "grace too long: %s",
		      t_run_story(&run));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(kill_now)
{
	struct t_world *world = world_plain();
	struct t_run run;
	uint64_t at, deadline = t_now() + T_MS(first_sign_ms());

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "trap '' TERM; echo ready; sleep 20; sleep 20", 0), 0);
	while (run.total[AGENTD_STDOUT] < 6 && t_now() < deadline)
		t_world_loop(world, 10, NULL);
	at = t_now();
	ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
	ck_assert_int_eq(agentd_exec_kill(run.exec), 0);
	ck_assert_int_eq(agentd_exec_kill(run.exec), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
	ck_assert_int_eq(agentd_result_signal(run.result), SIGKILL);
	ck_assert_msg(run.end_ns - at < T_MS(t_slack(1000)), "slow: %s", t_run_story(&run));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(signal_reaches_it)
{
	struct t_world *world = world_plain();
	struct t_run run;
	agentd_error *err = NULL;
	uint64_t deadline = t_now() + T_MS(first_sign_ms());
	int r;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run,
				     "trap 'echo got; exit 9' USR1; echo ready; "
				     "while :; do sleep 0.05; done",
				     0),
			 0);
	while (run.total[AGENTD_STDOUT] < 6 && t_now() < deadline)
		t_world_loop(world, 10, NULL);
	r = agentd_exec_signal(run.exec, 0x4000, &err);
	t_expect_error(r, AGENTD_ERR_INVALID, err, NULL, NULL);
	err = NULL;
	r = agentd_exec_signal(run.exec, -1, &err);
	t_expect_error(r, AGENTD_ERR_INVALID, err, NULL, NULL);
	ck_assert_int_eq(agentd_exec_signal(run.exec, SIGUSR1, NULL), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_ERROR);
	t_expect_exit(&run, 9);
	t_expect_out(&run, AGENTD_STDOUT, "ready\ngot\n");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(timeout)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run(&run, world, "echo part; echo perr >&2; exec sleep 20", limit_ms(300));
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	t_expect_cause(&run, AGENTD_CAUSE_TIMEOUT);
	t_expect_exit(&run, -1);
	ck_assert_str_eq(agentd_result_limit(run.result), "timeout_ms");
	t_expect_out(&run, AGENTD_STDOUT, "part\n");
	t_expect_out(&run, AGENTD_STDERR, "perr\n");
	expect_dropped(&run, 10);
	ck_assert_msg(t_run_wall_ms(&run) >= limit_ms(300) - 1 &&
			      t_run_wall_ms(&run) < t_slack(1300),
		      "%s", t_run_story(&run));
	ck_assert_ptr_nonnull(t_logs_find(&run.logs, 0, "Shell command timed out"));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(idle_timeout)
{
	struct agentd_limits limits = limits_none();
	struct agentd_exec_opts opts = exec_opts(0, &limits, 100);
	struct t_world *world = world_plain();
	struct t_run run;

	limits.idle_timeout_ms = limit_ms(400);
	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "echo a; exec sleep 20", 0), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	t_expect_cause(&run, AGENTD_CAUSE_IDLE_TIMEOUT);
	ck_assert_str_eq(agentd_result_limit(run.result), "idle_timeout_ms");
	ck_assert_msg(t_run_wall_ms(&run) >= limit_ms(400) - 1 &&
			      t_run_wall_ms(&run) < t_slack(2000),
		      "%s", t_run_story(&run));
	t_run_free(&run);

	/* output keeps it going */
	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "for i in 1 2 3 4 5 6; do sleep 0.1; echo $i; done", 0),
			 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(limits_lowest_wins)
{
	struct agentd_limits policy = limits_none(), own = limits_none();
	struct agentd_exec_opts opts = exec_opts(0, &own, 100);
	struct t_world *world;
	struct t_run run;

	policy.timeout_ms = 300;
	own.timeout_ms = UINT64_MAX;
	world = world_new((struct t_world_opts){ .limits = &policy });
	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "exec sleep 20", 10000), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	ck_assert_uint_lt(t_run_wall_ms(&run), t_slack(2000));
	t_run_free(&run);
	t_world_free(world);

	/* and the largest number is not a small one */
	world = world_plain();
	t_run_init(&run, world);
	opts.limits = NULL;
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "sleep 0.2; echo ok", UINT64_MAX), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(limits_accepted)
{
	struct agentd_limits limits = limits_none();
	struct agentd_exec_opts opts = exec_opts(0, &limits, 0);
	struct t_world *world = world_plain();
	struct t_run run;

	/* Roomy, so that they are not hit: asking alone changes nothing. */
	limits.timeout_ms = 60000;
	limits.idle_timeout_ms = 60000;
	limits.cpu_time_ms = 60000;
	limits.output_bytes = 1 << 20;
	limits.file_bytes = 1 << 20;
	limits.open_files_max = 64;
	limits.pids_max = 256;
	if (conf->features & CONF_REFUSES) {
		t_run_init(&run, world);
		run.exec_opts = &opts;
		ck_assert_int_eq(t_run_start(&run, "echo never", 0), 0);
		t_run_wait(&run);
		t_expect_status(&run, AGENTD_STATUS_DENIED);
		t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
		ck_assert_ptr_nonnull(
			strstr(agentd_error_message(agentd_result_error(run.result)), "pids_max"));
		ck_assert_int_eq(run.started, 0);
		t_run_free(&run);
		limits.cpu_time_ms = 0;
		limits.pids_max = 0;
	}
	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "ulimit -n; echo ok", 0), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	if (conf->features & (CONF_LIMITS | CONF_REFUSES))
		t_expect_out(&run, AGENTD_STDOUT, "64\nok\n");
	t_run_free(&run);

	if (conf->features & (CONF_LIMITS | CONF_REFUSES)) {
		limits.file_bytes = 65536;
		t_run_init(&run, world);
		run.exec_opts = &opts;
		ck_assert_int_eq(t_run_start(&run, "exec head -c 1000000 /dev/zero > big", 0), 0);
		t_run_wait(&run);
		t_expect_status(&run, AGENTD_STATUS_KILLED);
		t_expect_cause(&run, AGENTD_CAUSE_FILE_SIZE);
		ck_assert_str_eq(agentd_result_limit(run.result), "file_bytes");
		t_run_free(&run);
	}
	t_world_free(world);
}
END_TEST

/* ---- the tree */

START_TEST(background_holder)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run(&run, world, "sleep 30 & echo hi; exit 7", 10000);
	t_expect_status(&run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run, AGENTD_CAUSE_EXITED);
	t_expect_exit(&run, 7);
	t_expect_out(&run, AGENTD_STDOUT, "hi\n");
	ck_assert_msg(t_run_wall_ms(&run) < t_slack(2500), "waited for the background: %s",
		      t_run_story(&run));
	t_world_expect_commands_dead(world, 1000);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(background_output_drains)
{
	struct t_world *world = world_new((struct t_world_opts){ .drain_ms = 2000 });
	struct t_run run;

	t_run(&run, world, "(sleep 0.2; echo late) & echo now", 10000);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, "now\nlate\n");
	ck_assert_msg(t_run_wall_ms(&run) < t_slack(1800), "waited although all was over: %s",
		      t_run_story(&run));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(tree_dies_at_timeout)
{
	struct agentd_exec_opts opts = exec_opts(0, NULL, 200);
	struct t_world *world = world_plain();
	struct t_run run;

	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "(trap '' TERM; sleep 30; sleep 30) & sleep 30; true",
				     300),
			 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	ck_assert_uint_lt(t_run_wall_ms(&run), t_slack(2500));
	t_world_expect_commands_dead(world, 1000);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(tree_dies_after_setsid)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run(&run, world,
	      "setsid sleep 30 & (setsid sh -c 'setsid sleep 31 & sleep 32' &) ; echo x", 10000);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, "x\n");
	ck_assert_uint_lt(t_run_wall_ms(&run), t_slack(2500));
	t_world_expect_commands_dead(world, 1000);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(eof_is_not_exit)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run(&run, world, "exec 1>&- 2>&-; exec sleep 20", 500);
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	ck_assert_uint_ge(t_run_wall_ms(&run), 499);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* ---- a sink that fails */

static int32_t refuse_log(struct t_run *run, const agentd_log_record *record)
{
	(void)run;
	(void)record;
	return AGENTD_ERR_USER;
}

START_TEST(sink_refuses_first_log)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run_init(&run, world);
	run.on_log = refuse_log;
	ck_assert_int_eq(t_run_start(&run, "echo > marker", 0), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run, AGENTD_CAUSE_SINK);
	ck_assert_int_eq(run.started, 0);
	ck_assert_int_eq(agentd_error_code(agentd_result_error(run.result)), AGENTD_ERR_USER);
	t_world_loop(world, 100, NULL);
	ck_assert(!marker_exists(world, "marker"));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

static int32_t refuse_output(struct t_run *run, agentd_stream stream, const uint8_t *data,
			     size_t len)
{
	(void)stream;
	(void)data;
	(void)len;
	return run->total[AGENTD_STDOUT] >= *(uint64_t *)run->userdata ? -12345 : 0;
}

START_TEST(sink_refuses_output)
{
	static const struct {
		const char *command;
		uint64_t at;
	} rows[] = { { "yes; sleep 20", 1 },
		     { "echo abc; exec sleep 20", 4 },
		     { "head -c 1000000 /dev/zero; exec sleep 20", 1000000 } };
	struct t_world *world = world_plain();

	for (size_t i = 0; i < T_COUNT(rows); i++) {
		uint64_t at = rows[i].at;
		struct t_run run;

		t_run_init(&run, world);
		run.discard = true;
		run.on_output = refuse_output;
		run.userdata = &at;
		ck_assert_int_eq(t_run_start(&run, rows[i].command, 0), 0);
		t_run_wait(&run);
		t_expect_status(&run, AGENTD_STATUS_KILLED);
		t_expect_cause(&run, AGENTD_CAUSE_SINK);
		ck_assert_int_eq(agentd_error_code(agentd_result_error(run.result)), -12345);
		ck_assert_uint_lt(t_run_wall_ms(&run), t_slack(5000));
		t_run_free(&run);
	}
	t_world_expect_commands_dead(world, 1000);
	t_world_free(world);
}
END_TEST

/* ---- where and as what it runs */

START_TEST(environment)
{
	struct t_world *world = world_plain();
	struct t_run run;
	char *want;

	ck_assert_int_eq(setenv("AGENTD_TEST_SECRET", "host", 1), 0);
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "A", "1 2", NULL), 0);
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "B", "gone", NULL), 0);
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "B", NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "SMITH_TRACE_ID", "fake", NULL), 0);
	want = t_format("1 2||%s|test-trace-123|", world->home);
	t_run(&run, world,
	      "printf '%s|' \"$A\" \"$B$AGENTD_TEST_SECRET\" \"$HOME\" \"$SMITH_TRACE_ID\"", 0);
	t_expect_out(&run, AGENTD_STDOUT, want);
	t_run_free(&run);
	/* no variable twice: the last of two would win in some shells, not in others */
	t_run(&run, world, "env | cut -d= -f1 | sort | uniq -d", 0);
	t_expect_out(&run, AGENTD_STDOUT, "");
	t_run_free(&run);
	free(want);
	t_world_free(world);
}
END_TEST

START_TEST(working_directory)
{
	struct t_world *world = world_plain();
	char *want = t_format("%s\n", world->workdir);

	expect_ok(world, "pwd", want);
	expect_ok(world, "echo data > made; cat made", "data\n");
	if (conf->features & CONF_HOST_FS)
		ck_assert(marker_exists(world, "made"));
	free(want);
	t_world_free(world);
}
END_TEST

START_TEST(descriptors)
{
	struct t_world *world = world_plain();
	struct t_run run;

	/* 3 is ls reading the directory */
	t_run(&run, world, "exec ls /proc/self/fd", 0);
	t_expect_out(&run, AGENTD_STDOUT, "0\n1\n2\n3\n");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(signal_state)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run(&run, world, "exec grep -E '^Sig(Blk|Ign)' /proc/self/status", 0);
	t_expect_out(&run, AGENTD_STDOUT, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(cannot_start)
{
	static const char *const none[] = { "no_such_program_xyz", NULL };
	struct t_world *world = world_plain();
	agentd_params *params = NULL;
	struct t_run run;
	char *path = t_format("%s/missing", world->workdir);

	t_run_init(&run, world);
	ck_assert_int_eq(agentd_params_new_argv(none, 0, &params, NULL), 0);
	ck_assert_int_eq(t_run_start_params(&run, params, NULL), 0);
	agentd_params_unref(params);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run, AGENTD_CAUSE_SPAWN);
	t_expect_exit(&run, -1);
	ck_assert_int_eq(run.started, 0);
	ck_assert_ptr_nonnull(agentd_result_error(run.result));
	ck_assert_int_eq(agentd_error_os_errno(agentd_result_error(run.result)), ENOENT);
	t_run_free(&run);

	ck_assert_int_eq(agentd_context_set_workdir(world->ctx, path, NULL), 0);
	t_run(&run, world, "echo never", 0);
	t_expect_status(&run, AGENTD_STATUS_ERROR);
	t_expect_cause(&run, AGENTD_CAUSE_SPAWN);
	ck_assert_int_eq(run.started, 0);
	t_run_free(&run);

	/* and the next one is fine */
	ck_assert_int_eq(agentd_context_set_workdir(world->ctx, world->workdir, NULL), 0);
	expect_ok(world, "echo fine", "fine\n");
	free(path);
	t_world_free(world);
}
END_TEST

/* ---- many */

START_TEST(many_at_once)
{
	enum { LINES = 5000 };
	/* All have to begin within the time that the library waits for each. */
	const int count = conf->features & CONF_COSTLY ? 4 : t_is_small() ? 10 : 40;
	struct t_world *world = world_new((struct t_world_opts){ .max_running = (uint32_t)count });
	struct t_run *runs = calloc((size_t)count, sizeof(*runs));

	ck_assert_ptr_nonnull(runs);
	for (int i = 0; i < count; i++) {
		char *command = t_format("yes TAG%03d | head -n %d; exit %d", i, LINES, i);

		t_run_init(&runs[i], world);
		ck_assert_int_eq(t_run_start(&runs[i], command, 0), 0);
		free(command);
	}
	for (int i = 0; i < count; i++) {
		char text[16];

		t_run_wait(&runs[i]);
		t_expect_exit(&runs[i], i);
		snprintf(text, sizeof(text), "TAG%03d\n", i);
		ck_assert_uint_eq(runs[i].out_len[1], LINES * 7);
		for (size_t j = 0; j < LINES; j++)
			T_CHECK(memcmp(runs[i].out[1] + j * 7, text, 7) == 0, "run %d mixed", i);
		t_run_free(&runs[i]);
	}
	free(runs);
	t_world_free(world);
}
END_TEST

START_TEST(shutdown_ends_all)
{
	struct t_world *world = world_plain();
	struct t_run runs[3];
	uint64_t at;

	for (size_t i = 0; i < T_COUNT(runs); i++) {
		t_run_init(&runs[i], world);
		ck_assert_int_eq(t_run_start(&runs[i], "exec sleep 20", 0), 0);
	}
	ck_assert(t_world_loop(world, first_sign_ms(), &runs[2].started));
	at = t_now();
	t_world_shutdown(world);
	ck_assert_uint_lt(t_now() - at, T_MS(t_slack(3000)));
	for (size_t i = 0; i < T_COUNT(runs); i++) {
		ck_assert_int_eq(runs[i].finished, 1);
		t_expect_status(&runs[i], AGENTD_STATUS_KILLED);
		t_expect_cause(&runs[i], AGENTD_CAUSE_CANCELED);
		t_run_free(&runs[i]);
	}
	t_world_free(world);
}
END_TEST

START_TEST(runner_dropped_while_running)
{
	struct t_world *world = world_plain();
	struct t_run run;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "exec sleep 20", 0), 0);
	ck_assert(t_world_loop(world, first_sign_ms(), &run.started));
	world->in_api++;
	agentd_runner_unref(world->runner);
	world->in_api--;
	world->runner = NULL;
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
	t_run_free(&run);
	/* its memory follows on the loop */
	t_world_loop(world, 100, NULL);
	t_world_free(world);
}
END_TEST

START_TEST(names)
{
	struct t_world *world = world_plain();
	char *odd = t_format(" \t%s ", conf->name);
	agentd_error *err = NULL;
	struct t_run run;
	agentd_params *params = NULL;
	int r;

	for (char *c = odd; *c; c++) {
		if (*c >= 'a' && *c <= 'z')
			*c = (char)(*c - 'a' + 'A');
		else if (*c == '-')
			*c = '_';
	}
	ck_assert_int_eq(agentd_context_set_backend(world->ctx, odd, NULL), 0);
	t_run(&run, world, "echo found", 0);
	t_expect_out(&run, AGENTD_STDOUT, "found\n");
	ck_assert_str_eq(agentd_result_backend(run.result), conf->name);
	t_run_free(&run);

	ck_assert_int_eq(agentd_context_set_backend(world->ctx, "no-such-backend", NULL), 0);
	t_run_init(&run, world);
	ck_assert_int_eq(agentd_params_new_shell("true", 0, &params, NULL), 0);
	r = t_run_start_params(&run, params, &err);
	agentd_params_unref(params);
	t_expect_error(r, AGENTD_ERR_NOTFOUND, err, "no-such-backend", NULL);
	if (conf->add) {
		err = NULL;
		r = conf->add(world->runner, &err);
		t_expect_error(r, AGENTD_ERR_STATE, err, conf->name, NULL);
	}
	free(odd);
	t_world_free(world);
}
END_TEST

/* A case, and whom it is put to. */
struct entry {
	const char *part;
	const TTest *test;
	uint32_t needs; /* CONF_* without which there is nothing to ask */
	bool rest;      /* of whose rules another case has the most */
};

static bool is_asked(const struct entry *entry, const char *only)
{
	if (entry->needs & ~conf->features)
		return false;
	if (only && strcmp(only, entry->test->name) == 0)
		return true;
	if (only && strcmp(only, entry->part) != 0)
		return false;
	return !entry->rest || !(conf->features & CONF_BRIEF);
}

/* Each by itself, so that its line is there when it is over. */
static bool run_entry(const struct entry *entry, size_t number)
{
	Suite *suite = suite_create(conf->name);
	TCase *tcase = t_case(entry->part, 90);
	TestResult **results;
	SRunner *runner;
	bool passed;
	char *text;

	tcase_add_test(tcase, entry->test);
	suite_add_tcase(suite, tcase);
	runner = srunner_create(suite);
	fflush(stdout);
	/* By name, whatever libcheck's environment variables select. */
	srunner_run(runner, conf->name, entry->part, CK_SILENT);
	results = srunner_results(runner);
	passed = tr_rtype(results[0]) == CK_PASS;
	printf("%sok %zu - %s %s\n", passed ? "" : "not ", number, entry->part, entry->test->name);
	if (!passed) {
		text = t_format("%s:%d: %s", tr_lfile(results[0]), tr_lno(results[0]),
				tr_msg(results[0]));
		for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
			printf("#   %s\n", line);
		free(text);
	}
	fflush(stdout);
	free(results);
	srunner_free(runner);
	return passed;
}

/* A case that fails leaves its directory behind. */
static char *make_dir(void)
{
	const char *tmp = getenv("TMPDIR");
	char *dir = t_format("%s/agentd-conformance-XXXXXX", tmp && *tmp == '/' ? tmp : "/tmp");

	if (mkdtemp(dir) && chmod(dir, 0755) == 0 && setenv("TMPDIR", dir, 1) == 0)
		return dir;
	fprintf(stderr, "agentd-conformance: %s: %s\n", dir, strerror(errno));
	free(dir);
	return NULL;
}

int conformance_main(const struct conf_backend *backend, const char *only, bool list)
{
	const struct entry entries[] = {
		{ "ends", exit_codes, 0, false },
		{ "ends", signal_deaths, 0, false },
		{ "ends", argv_without_shell, 0, true },
		{ "ends", exited_before_finished, 0, true },
		{ "ends", states, 0, true },
		{ "ends", result_facts, 0, false },
		{ "ends", cannot_start, 0, false },
		{ "ends", names, 0, true },
		{ "output", output_binary, 0, true },
		{ "output", output_as_it_comes, 0, false },
		{ "output", output_order, 0, true },
		{ "output", output_merged, 0, true },
		{ "output", output_large, 0, false },
		{ "output", output_cap, 0, false },
		{ "output", kill_on_output, 0, true },
		{ "output", pause_resume, 0, false },
		{ "output", pause_one_stream, 0, true },
		{ "output", pause_over_the_exit, 0, true },
		{ "output", pause_for_ever, 0, true },
		{ "output", sink_refuses_first_log, 0, true },
		{ "output", sink_refuses_output, 0, true },
		{ "stdin", stdin_none, 0, true },
		{ "stdin", stdin_back_pressure, 0, false },
		{ "stdin", stdin_written_before_start, 0, true },
		{ "stdin", stdin_closed_at_once, 0, true },
		{ "stdin", stdin_reader_gone, 0, false },
		{ "stops", cancel, 0, false },
		{ "stops", cancel_is_gentle, 0, true },
		{ "stops", cancel_before_it_runs, 0, false },
		{ "stops", cancel_while_it_starts, 0, false },
		{ "stops", cancel_ignored_is_killed, 0, false },
		{ "stops", kill_now, 0, true },
		{ "stops", signal_reaches_it, 0, true },
		{ "stops", timeout, 0, false },
		{ "stops", idle_timeout, 0, true },
		{ "stops", limits_lowest_wins, 0, true },
		{ "stops", limits_accepted, 0, true },
		{ "stops", background_holder, 0, false },
		{ "stops", background_output_drains, 0, true },
		{ "stops", tree_dies_at_timeout, 0, true },
		{ "stops", tree_dies_after_setsid, CONF_TREE, false },
		{ "stops", eof_is_not_exit, 0, false },
		{ "place", environment, 0, false },
		{ "place", working_directory, 0, false },
		{ "place", descriptors, 0, true },
		{ "place", signal_state, 0, false },
		{ "many", many_at_once, 0, false },
		{ "many", shutdown_ends_all, 0, false },
		{ "many", runner_dropped_while_running, 0, true },
	};
	size_t asked = 0, number = 0, failed = 0;
	char *dir;

	conf = backend;
	/* Without KVM a machine's processor is ten times slower. */
	if (conf->features & CONF_COSTLY)
		t_stretch(6);
	/* Whoever runs us under nohup ignores it. */
	signal(SIGHUP, SIG_DFL);
	for (size_t i = 0; i < T_COUNT(entries); i++) {
		asked += is_asked(&entries[i], only);
		if (list && is_asked(&entries[i], only))
			printf("%s %s\n", entries[i].part, entries[i].test->name);
	}
	if (asked == 0) {
		fprintf(stderr, "agentd-conformance: --only: no part and no case is called '%s'\n",
			only);
		return 2;
	}
	if (list)
		return 0;
	dir = make_dir();
	if (!dir)
		return 2;
	printf("1..%zu\n", asked);
	for (size_t i = 0; i < T_COUNT(entries); i++) {
		if (is_asked(&entries[i], only))
			failed += !run_entry(&entries[i], ++number);
	}
	t_remove_tree(dir);
	free(dir);
	return failed > 0;
}
