/* SPDX-License-Identifier: MIT */
/* How long does a command take from start to finish, beside other ways to run it? One of
 * each in turn, in another order each time, so that what else the machine does falls on all.
 *
 *     bench_latency [--quick | --few]
 *
 * --few: posix_spawn and what is kept ready, without all the others, which put it out of the
 * processor's caches in between.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "peer.h"
#include "tool.h"

enum {
	/* Between two of them: what one leaves to be cleaned up must not fall on the next. */
	PAUSE_MS = 2,
	/* After all of them: a sandbox is made ready again when its commands pause. Whoever comes
	 * first after a rest takes a tenth to a third longer. */
	REST_MS = 60
};

enum subject {
	SPAWN,
	SPAWN_READ,
	VFORK,
	FORK,
	LIBUV,
	GLIB,
	PYTHON,
	HOST,
	FRESH,
	SANDBOX,
	SESSION,
	TOOLS,
	SUBJECTS = TOOLS + TOOL_COUNT
};

static const char *const names[TOOLS] = {
	[SPAWN] = "posix_spawn",
	[SPAWN_READ] = "posix_spawn, output read",
	[VFORK] = "vfork + exec",
	[FORK] = "fork + exec",
	[LIBUV] = "libuv",
	[GLIB] = "GLib",
	[PYTHON] = "Python subprocess",
	[HOST] = "agentd, host",
	[FRESH] = "agentd, sandbox fresh",
	[SANDBOX] = "agentd, sandbox",
	[SESSION] = "agentd, sandbox session",
};

static struct bench_runner runners[SUBJECTS];
static struct tool_command tools[TOOL_COUNT];

static const char *const python_argv[] = { "/usr/bin/python3", "-S",         "-B",
					   BENCH_PYTHON_PEER,  "subprocess", NULL };
static struct bench_server servers[TOOLS]; /* pid 0: not one of these */

static const char *name_of(int subject)
{
	return subject >= TOOLS ? tool_name((enum tool)(subject - TOOLS)) : names[subject];
}

/* NULL: it can. */
static const char *why_not(int subject)
{
#ifndef BENCH_HAVE_UV
	if (subject == LIBUV)
		return "built without";
#endif
#ifndef BENCH_HAVE_GLIB
	if (subject == GLIB)
		return "built without";
#endif
	if (subject == PYTHON && access(python_argv[0], X_OK) < 0)
		return "not installed";
	if (subject >= TOOLS && tools[subject - TOOLS].cannot[0])
		return tools[subject - TOOLS].cannot;
	return NULL;
}

/* ---- in a process of their own */

static double timed(uint64_t (*peer)(const char *const *argv), const char *const *argv)
{
	uint64_t begin = bench_now_ns();

	peer(argv);
	return (double)(bench_now_ns() - begin) / 1e3;
}

static uint64_t fork_and_wait(const char *const *argv)
{
	bench_run_program(argv, BENCH_FORK);
	return 0;
}

static double by_fork(const char *const *argv)
{
	return timed(fork_and_wait, argv);
}

#ifdef BENCH_HAVE_UV
static double by_uv(const char *const *argv)
{
	return timed(peer_uv, argv);
}
#endif

#ifdef BENCH_HAVE_GLIB
static double by_glib(const char *const *argv)
{
	return timed(peer_glib, argv);
}
#endif

static void open_servers(void)
{
	bench_server_open(&servers[FORK], by_fork);
#ifdef BENCH_HAVE_UV
	bench_server_open(&servers[LIBUV], by_uv);
#endif
#ifdef BENCH_HAVE_GLIB
	bench_server_open(&servers[GLIB], by_glib);
#endif
	if (!why_not(PYTHON))
		bench_server_open_program(&servers[PYTHON], python_argv);
}

static void close_servers(void)
{
	for (int subject = 0; subject < TOOLS; subject++) {
		if (servers[subject].pid > 0)
			bench_server_close(&servers[subject]);
		servers[subject].pid = 0;
	}
}

/* ---- all of them */

static void run(int subject, const char *const *argv)
{
	if (subject == SPAWN || subject == VFORK)
		bench_run_program(argv, subject == SPAWN ? BENCH_SPAWN : BENCH_VFORK);
	else if (subject == SPAWN_READ)
		peer_read_loop(argv);
	else if (subject < TOOLS)
		bench_runner_run(&runners[subject]);
	else
		tool_run(&tools[subject - TOOLS]);
}

static void measure_once(int subject, const char *const *argv, struct bench_samples *samples)
{
	bench_sleep_ms(PAUSE_MS);
	if (subject < TOOLS && servers[subject].pid > 0) {
		bench_sample(samples, bench_server_ask(&servers[subject], argv));
	} else {
		uint64_t begin = bench_now_ns();

		run(subject, argv);
		bench_sample_since(samples, begin);
	}
}

static void measure(const char *where, const char *const *argv, const bool *taken, int times)
{
	const int warm_up = times / 20 + 1;
	struct bench_samples samples[SUBJECTS] = { 0 };
	int order[SUBJECTS];

	bench_order(order, SUBJECTS);
	for (int subject = HOST; subject <= SESSION; subject++)
		bench_runner_set_argv(&runners[subject], argv);
	for (int i = -warm_up; i < times; i++) {
		bench_shuffle(order, SUBJECTS);
		for (int j = 0; j < SUBJECTS; j++) {
			int subject = order[j];

			if (taken[subject] && !why_not(subject))
				measure_once(subject, argv, &samples[subject]);
			if (i == -1)
				samples[subject].count = 0;
		}
		bench_sleep_ms(REST_MS);
	}
	for (int subject = 0; subject < SUBJECTS; subject++) {
		const struct bench_row row = { .bench = "latency",
					       .where = where,
					       .subject = name_of(subject),
					       .metric = "start to finish",
					       .unit = "us" };

		if (taken[subject] && why_not(subject))
			bench_print_cannot(&row, why_not(subject));
		else if (taken[subject])
			bench_print(&row, &samples[subject]);
	}
}

static void measure_programs(int times, size_t count, const bool *taken)
{
	static const struct {
		const char *name;
		const char *argv[4];
	} programs[] = {
		{ "static true", { BENCH_STATIC_TRUE } },
		{ "/bin/true", { "/bin/true" } },
		{ "bash -c :", { "/bin/bash", "-c", ":" } },
		{ "bash -lc :", { "/bin/bash", "-lc", ":" } },
	};

	open_servers();
	for (size_t i = 0; i < BENCH_COUNT(programs) && i < count; i++) {
		for (int tool = 0; tool < TOOL_COUNT; tool++)
			tool_prepare((enum tool)tool, programs[i].argv, &tools[tool]);
		measure(programs[i].name, programs[i].argv, taken, times);
		for (int tool = 0; tool < TOOL_COUNT; tool++)
			tool_release(&tools[tool]);
	}
	close_servers();
}

/* The same beside a host program that is large. */
static void measure_large(int times, bool quick)
{
	static const char *const argv[] = { "/bin/true", NULL };
	const bool taken[SUBJECTS] = {
		[SPAWN] = true, [FORK] = true, [HOST] = true, [SANDBOX] = true
	};

	for (const struct bench_size *size = bench_sizes(quick); size->name; size++) {
		const char *why;

		if (bench_hold(size, &why)) {
			/* As large as we are. */
			bench_server_open(&servers[FORK], by_fork);
			measure(size->name, argv, taken, times);
			close_servers();
			bench_let_go();
			continue;
		}
		for (int subject = 0; subject < SUBJECTS; subject++) {
			const struct bench_row row = { .bench = "latency",
						       .where = size->name,
						       .subject = name_of(subject),
						       .metric = "start to finish",
						       .unit = "us" };

			if (taken[subject])
				bench_print_cannot(&row, why);
		}
	}
}

int main(int argc, char **argv)
{
	static const bool few[SUBJECTS] = {
		[SPAWN] = true, [HOST] = true, [SANDBOX] = true, [SESSION] = true
	};
	bool only_few = argc == 2 && strcmp(argv[1], "--few") == 0;
	bool quick = bench_init(only_few ? 1 : argc, argv);
	bool all[SUBJECTS];

	bench_runner_open(&runners[HOST], NULL, "host", 0, 1);
	bench_runner_open(&runners[FRESH], NULL, "sandbox", UINT32_MAX, 1);
	bench_runner_open(&runners[SANDBOX], NULL, "sandbox", 0, 1);
	bench_runner_open(&runners[SESSION], NULL, "sandbox", 0, 1);
	bench_runner_use_session(&runners[SESSION]);
	memset(all, true, sizeof(all));
	measure_programs(quick ? 2 : 100, quick ? 2 : SIZE_MAX, only_few ? few : all);
	if (!only_few)
		measure_large(quick ? 2 : 60, quick);
	for (int subject = HOST; subject <= SESSION; subject++)
		bench_runner_close(&runners[subject]);
	bench_exit();
	return 0;
}
