/* SPDX-License-Identifier: MIT */
/* Limits on the host backend: by control groups where there are any for us, else by
 * rlimits and by watching. The receipt says which. Meant to be run as root and as
 * somebody else. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include "harness.h"

static struct agentd_limits limits_none(void)
{
	struct agentd_limits limits;

	agentd_limits_init(&limits, sizeof(limits));
	return limits;
}

static void limited(struct t_run *run, struct t_world *world, const char *command,
		    uint64_t timeout_ms, const struct agentd_limits *limits)
{
	/* kept until the run is over */
	static struct agentd_exec_opts opts;

	opts = (struct agentd_exec_opts){ .size = sizeof(opts), .limits = limits, .grace_ms = 200 };
	t_run_init(run, world);
	run->exec_opts = &opts;
	run->discard = true;
	ck_assert_int_eq(t_run_start(run, command, t_slack(timeout_ms)), 0);
	t_run_wait(run);
}

static bool by_cgroup(const struct t_run *run, const char *layer)
{
	const char *reason = t_run_layer(run, layer, NULL);

	ck_assert_msg(reason, "no layer \"%s\" in the receipt: %s", layer, t_run_story(run));
	return strncmp(reason, "cgroup", 6) == 0;
}

/* The receipt: a control group enforces, anything else is less than was asked. */
static void expect_layer(const struct t_run *run, const char *layer)
{
	int32_t state = -99;
	const char *reason = t_run_layer(run, layer, &state);

	ck_assert_msg(reason && *reason, "no layer \"%s\": %s", layer, t_run_story(run));
	ck_assert_msg(state == (strncmp(reason, "cgroup", 6) == 0 ? AGENTD_LAYER_ENFORCED :
								    AGENTD_LAYER_DEGRADED),
		      "%s is %d: %s", layer, state, reason);
}

static void expect_killed(const struct t_run *run, int32_t cause, const char *limit)
{
	t_expect_status(run, AGENTD_STATUS_KILLED);
	t_expect_cause(run, cause);
	ck_assert_msg(strcmp(agentd_result_limit(run->result), limit) == 0, "limit \"%s\": %s",
		      agentd_result_limit(run->result), t_run_story(run));
	ck_assert_int_eq(agentd_result_exit_code(run->result), -1);
}

/* Something that fills memory in the processes of a tree: `tail` keeps what has no
 * line end. */
START_TEST(memory)
{
	struct agentd_limits limits = limits_none();
	struct t_world *world = t_world_new(NULL);
	uint64_t before = t_rss_bytes(), peak;
	struct t_run run;

	limits.mem_bytes = 96 << 20;
	limited(&run, world, "exec tail /dev/zero", 20000, &limits);
	expect_layer(&run, "memory");
	if (by_cgroup(&run, "memory")) {
		expect_killed(&run, AGENTD_CAUSE_MEMORY, "mem_bytes");
		peak = t_run_metric(&run, AGENTD_METRIC_MEMORY_PEAK_BYTES);
		/* the kernel may take a few pages beyond it */
		ck_assert_msg(peak > 64 << 20 && peak <= 97 << 20, "peak %llu",
			      (unsigned long long)peak);
	} else if (agentd_result_status(run.result) == AGENTD_STATUS_KILLED) {
		expect_killed(&run, AGENTD_CAUSE_MEMORY, "mem_bytes");
	} else {
		/* its own allocation failed at the rlimit: it gave up by itself */
		t_expect_status(&run, AGENTD_STATUS_ERROR);
		ck_assert_uint_gt(run.total[AGENTD_STDERR], 0);
	}
	ck_assert_uint_lt(t_rss_bytes(), before + (16 << 20));
	t_run_free(&run);

	/* each alone is small, the tree is not */
	limited(&run, world,
		"for i in 1 2 3 4 5 6; do (head -c 40000000 /dev/zero | tail -c 35000000 | "
		"(sleep 10; cat >/dev/null)) & done; wait; exit 0",
		20000, &limits);
	if (by_cgroup(&run, "memory"))
		ck_assert_str_eq(agentd_result_limit(run.result), "mem_bytes");
	else
		expect_killed(&run, AGENTD_CAUSE_MEMORY, "mem_bytes");
	t_run_free(&run);

	/* within it */
	limited(&run, world, "head -c 20000000 /dev/zero | tail -c 10000000 | wc -c", 20000,
		&limits);
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_str_eq(agentd_result_limit(run.result), "");
	t_run_free(&run);
	t_world_expect_commands_dead(world, 1000);
	t_world_free(world);
}
END_TEST

/* One of a pipeline is killed for it, the shell lives on: not a killed command, but
 * the result names the limit. */
START_TEST(memory_of_a_part)
{
	struct agentd_limits limits = limits_none();
	struct t_world *world = t_world_new(NULL);
	struct t_run run;

	limits.mem_bytes = 96 << 20;
	limited(&run, world, "tail /dev/zero; exit 0", 20000, &limits);
	if (by_cgroup(&run, "memory")) {
		t_expect_status(&run, AGENTD_STATUS_OK);
		t_expect_exit(&run, 0);
		ck_assert_str_eq(agentd_result_limit(run.result), "mem_bytes");
	}
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(pids)
{
	struct agentd_limits limits = limits_none();
	struct t_world *world = t_world_new(NULL);
	struct t_run run;

	limits.pids_max = 16;
	limited(&run, world,
		"i=0; while [ $i -lt 60 ]; do sleep 50 & i=$((i+1)); done 2>/dev/null; sleep 4; exit 0",
		20000, &limits);
	expect_layer(&run, "pids");
	ck_assert_msg(strcmp(agentd_result_limit(run.result), "pids_max") == 0, "limit: %s",
		      t_run_story(&run));
	if (!by_cgroup(&run, "pids"))
		expect_killed(&run, AGENTD_CAUSE_PIDS, "pids_max");
	t_run_free(&run);

	/* as many as are allowed */
	limited(&run, world, "for i in 1 2 3 4 5 6 7 8; do sleep 0.2 & done; wait; exit 0", 10000,
		&limits);
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_str_eq(agentd_result_limit(run.result), "");
	t_run_free(&run);
	t_world_expect_commands_dead(world, 1000);
	t_world_free(world);
}
END_TEST

/* Whoever waits for the next command was made for the limits of the last one. */
START_TEST(others_than_the_last)
{
	static const uint32_t most[] = { 0, 16, 16, 0, 16 };
	struct t_world *world = t_world_new(NULL);

	for (size_t i = 0; i < T_COUNT(most); i++) {
		struct agentd_limits limits = limits_none();
		struct t_run run;

		limits.pids_max = most[i];
		limited(&run, world,
			"i=0; while [ $i -lt 40 ]; do sleep 2 & i=$((i+1)); done 2>/dev/null; wait; exit 0",
			20000, &limits);
		ck_assert_msg(strcmp(agentd_result_limit(run.result), most[i] ? "pids_max" : "") ==
				      0,
			      "%zu: %s", i, t_run_story(&run));
		t_run_free(&run);
		t_world_loop(world, 50, NULL);
	}
	t_world_free(world);
}
END_TEST

START_TEST(cpu_time)
{
	static const char *const commands[] = {
		"while :; do :; done",
		/* in children, in another session, one after the other */
		"(setsid sh -c 'while :; do :; done' &) ; sleep 100",
		"while :; do sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'; done",
	};
	struct agentd_limits limits = limits_none();
	struct t_world *world = t_world_new(NULL);
	struct t_run run;

	limits.cpu_time_ms = t_slack(500);
	for (size_t i = 0; i < T_COUNT(commands); i++) {
		uint64_t cpu;

		limited(&run, world, commands[i], 20000, &limits);
		expect_killed(&run, AGENTD_CAUSE_CPU_TIME, "cpu_time_ms");
		cpu = t_run_metric(&run, AGENTD_METRIC_CPU_NS);
		ck_assert_msg(cpu >= T_MS(t_slack(450)) && cpu < T_MS(t_slack(1800)),
			      "cpu time %.1f ms: %s", (double)cpu / 1e6, t_run_story(&run));
		ck_assert_ptr_nonnull(t_run_layer(&run, "cpu-time", NULL));
		t_run_free(&run);
	}
	/* waiting costs none */
	limited(&run, world, "sleep 1", 20000, &limits);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_run_free(&run);
	t_world_expect_commands_dead(world, 1000);
	t_world_free(world);
}
END_TEST

START_TEST(cpu_bandwidth)
{
	struct agentd_limits limits = limits_none();
	struct t_world *world = t_world_new(NULL);
	struct t_run run;
	double share;

	limits.cpu_ms_per_100ms = 20;
	limited(&run, world, "while :; do :; done", 2000, &limits);
	if (agentd_result_status(run.result) == AGENTD_STATUS_DENIED) {
		/* only a control group can: without one it is refused, not ignored */
		t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
		ck_assert_int_eq(run.started, 0);
		ck_assert_ptr_nonnull(strstr(agentd_error_message(agentd_result_error(run.result)),
					     "cpu_ms_per_100ms"));
		t_run_free(&run);
		t_world_free(world);
		return;
	}
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	ck_assert(by_cgroup(&run, "cpu"));
	share = (double)t_run_metric(&run, AGENTD_METRIC_CPU_NS) /
		(double)t_run_metric(&run, AGENTD_METRIC_WALL_NS);
	ck_assert_msg(share > 0.02 && share < 0.30, "%.0f %% of a processor: %s", share * 100,
		      t_run_story(&run));
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(file_size)
{
	struct agentd_limits limits = limits_none();
	struct t_world *world = t_world_new(NULL);
	struct t_run run;

	limits.file_bytes = 100000;
	limited(&run, world, "exec head -c 1000000 /dev/zero > big", 20000, &limits);
	expect_killed(&run, AGENTD_CAUSE_FILE_SIZE, "file_bytes");
	t_run_free(&run);
	run.discard = false;
	t_run(&run, world, "stat -c %s big", 0);
	t_expect_out(&run, AGENTD_STDOUT, "100000\n");
	t_run_free(&run);
	limited(&run, world, "head -c 100000 /dev/zero > fits", 20000, &limits);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_run_free(&run);
	/* a pipe is no file */
	limited(&run, world, "head -c 1000000 /dev/zero", 20000, &limits);
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_uint_eq(run.total[AGENTD_STDOUT], 1000000);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(open_files)
{
	struct agentd_limits limits = limits_none();
	struct t_world *world = t_world_new(NULL);
	struct agentd_exec_opts opts = { .size = sizeof(opts), .limits = &limits };
	struct t_run run;

	limits.open_files_max = 32;
	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "ulimit -Sn; ulimit -Hn; ulimit -n 33 || echo no", 0),
			 0);
	t_run_wait(&run);
	/* root may raise it again: the host backend takes no rights away */
	ck_assert_int_eq(strncmp((char *)run.out[AGENTD_STDOUT], "32\n32\n", 6), 0);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

START_TEST(io_total)
{
	struct agentd_limits limits = limits_none();
	struct t_world *world = t_world_new(NULL);
	struct statfs fs;
	struct t_run run;

	ck_assert_int_eq(statfs(world->workdir, &fs), 0);
	if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC) {
		t_skip("io_bytes: %s is no storage (writes to tmpfs are not counted)",
		       world->workdir);
		t_world_free(world);
		return;
	}
	limits.io_bytes = 4 << 20;
	/* in many short-lived processes: what the reaped have written counts */
	limited(&run, world,
		"i=0; while [ $i -lt 200 ]; do head -c 500000 /dev/zero >> x; sleep 0.03; i=$((i+1)); "
		"done",
		20000, &limits);
	expect_killed(&run, AGENTD_CAUSE_IO, "io_bytes");
	expect_layer(&run, "io");
	t_run_free(&run);
	run.discard = false;
	t_run(&run, world, "test $(stat -c %s x) -le 12582912 && echo bounded", 0);
	t_expect_out(&run, AGENTD_STDOUT, "bounded\n");
	t_run_free(&run);
	limited(&run, world, "head -c 1000000 /dev/zero > y; sleep 0.3", 20000, &limits);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* What nobody asked for is there as well, roomy, and in the receipt. */
START_TEST(defaults)
{
	struct t_world *world = t_world_new(NULL);
	struct t_run run;

	t_run(&run, world, "exit 0", 0);
	expect_layer(&run, "memory");
	expect_layer(&run, "pids");
	ck_assert_ptr_nonnull(t_run_layer(&run, "tree-kill", NULL));
	ck_assert_ptr_nonnull(t_run_layer(&run, "rlimits", NULL));
	ck_assert_ptr_null(t_run_layer(&run, "cpu", NULL));
	t_run_free(&run);

	/* a fork bomb meets the 512 */
	t_run_init(&run, world);
	run.discard = true;
	ck_assert_int_eq(
		t_run_start(
			&run,
			"i=0; while [ $i -lt 700 ]; do sleep 100 & i=$((i+1)); done 2>/dev/null; "
			"sleep 4; exit 0",
			t_slack(20000)),
		0);
	t_run_wait(&run);
	ck_assert_msg(strcmp(agentd_result_limit(run.result), "pids_max") == 0, "limit: %s",
		      t_run_story(&run));
	t_run_free(&run);

	/* 64 MiB of output */
	t_run_init(&run, world);
	run.discard = true;
	ck_assert_int_eq(t_run_start(&run, "head -c 70000000 /dev/zero", 0), 0);
	t_run_wait(&run);
	ck_assert_uint_eq(run.total[AGENTD_STDOUT], 64 << 20);
	t_run_free(&run);
	t_world_expect_commands_dead(world, 1000);
	t_world_free(world);
}
END_TEST

/* "Unlimited" is for the policies to say. */
START_TEST(explicitly_unlimited)
{
	struct agentd_limits policy = limits_none(), own = limits_none();
	struct t_world *world;
	struct agentd_exec_opts opts = { .size = sizeof(opts), .limits = &own };
	struct t_run run;

	own.pids_max = UINT32_MAX;
	own.output_bytes = UINT64_MAX;
	policy.output_bytes = UINT64_MAX;
	world = t_world_new(&(struct t_world_opts){ .limits = &policy });
	t_run_init(&run, world);
	run.exec_opts = &opts;
	run.discard = true;
	ck_assert_int_eq(t_run_start(&run, "head -c 70000000 /dev/zero", 0), 0);
	t_run_wait(&run);
	ck_assert_uint_eq(run.total[AGENTD_STDOUT], 70000000);
	/* no policy says it of pids: the default holds */
	expect_layer(&run, "pids");
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

int main(void)
{
	TCase *hits = t_case("hits", 60), *others = t_case("others", 60);
	TCase *const cases[] = { hits, others };

	tcase_add_test(hits, memory);
	tcase_add_test(hits, memory_of_a_part);
	tcase_add_test(hits, pids);
	tcase_add_test(hits, others_than_the_last);
	tcase_add_test(hits, cpu_time);
	tcase_add_test(hits, cpu_bandwidth);
	tcase_add_test(hits, file_size);
	tcase_add_test(hits, open_files);
	tcase_add_test(hits, io_total);
	tcase_add_test(others, defaults);
	tcase_add_test(others, explicitly_unlimited);
	return t_main("limits", cases, T_COUNT(cases));
}
