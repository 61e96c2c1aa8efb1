/* SPDX-License-Identifier: MIT */
/* How long does a command take from start to finish, beside other ways to run it? One of
 * each in turn, so that what else the machine does falls on all.
 *
 *     bench_latency [--quick]
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "peer.h"
#include "tool.h"

enum {
	/* Between two of them: what one leaves to be cleaned up must not fall on the next. */
	PAUSE_MS = 2,
	/* A sandbox is made ready again when nothing has been asked for some time. */
	REFILL_MS = 40,
	PREWARM = 2,
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
	SANDBOX,
	PREWARMED,
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
	[SANDBOX] = "agentd, sandbox",
	[PREWARMED] = "agentd, sandbox prewarmed",
};

static struct bench_runner runners[SUBJECTS];
static struct tool_command tools[TOOL_COUNT];

/* ---- Python, kept running */

static struct {
	FILE *requests, *answers;
	int pid;
	const char *cannot;
} python;

static void python_open(void)
{
	static const char *const argv[] = { "/usr/bin/python3", "-S", "-B", BENCH_PYTHON_PEER,
					    NULL };
	int in[2], out[2];

	if (access(argv[0], X_OK) < 0) {
		python.cannot = "not installed";
		return;
	}
	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
		bench_fail("pipe2", strerror(errno));
	python.pid = fork();
	if (python.pid == 0) {
		if (dup2(in[0], STDIN_FILENO) >= 0 && dup2(out[1], STDOUT_FILENO) >= 0)
			execv(argv[0], (char *const *)(uintptr_t)argv);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	python.requests = fdopen(in[1], "w");
	python.answers = fdopen(out[0], "r");
	if (python.pid < 0 || !python.requests || !python.answers)
		bench_fail(argv[0], strerror(errno));
}

static double python_us(const char *const *argv)
{
	char line[64];

	for (size_t i = 0; argv[i]; i++)
		fprintf(python.requests, "%s%s", i > 0 ? "\t" : "", argv[i]);
	fputc('\n', python.requests);
	if (fflush(python.requests) != 0 || !fgets(line, sizeof(line), python.answers))
		bench_fail("python", "no answer");
	return strtod(line, NULL) / 1e3;
}

static void python_close(void)
{
	if (python.cannot)
		return;
	fclose(python.requests);
	fclose(python.answers);
	if (bench_wait(python.pid) != 0)
		bench_fail("python", "did not exit with 0");
}

/* ---- all of them */

static const char *name_of(enum subject subject)
{
	return subject >= TOOLS ? tool_name((enum tool)(subject - TOOLS)) : names[subject];
}

/* NULL: it can. */
static const char *why_not(enum subject subject)
{
#ifndef BENCH_HAVE_UV
	if (subject == LIBUV)
		return "built without";
#endif
#ifndef BENCH_HAVE_GLIB
	if (subject == GLIB)
		return "built without";
#endif
	if (subject == PYTHON)
		return python.cannot;
	if (subject >= TOOLS && tools[subject - TOOLS].cannot[0])
		return tools[subject - TOOLS].cannot;
	return NULL;
}

static void run(enum subject subject, const char *const *argv)
{
	switch (subject) {
	case SPAWN:
		bench_run_program(argv, BENCH_SPAWN);
		break;
	case SPAWN_READ:
		peer_read_loop(argv);
		break;
	case VFORK:
		bench_run_program(argv, BENCH_VFORK);
		break;
	case FORK:
		bench_run_program(argv, BENCH_FORK);
		break;
#ifdef BENCH_HAVE_UV
	case LIBUV:
		peer_uv(argv);
		break;
#endif
#ifdef BENCH_HAVE_GLIB
	case GLIB:
		peer_glib(argv);
		break;
#endif
	case HOST:
	case SANDBOX:
	case PREWARMED:
		bench_runner_run(&runners[subject]);
		break;
	default:
		tool_run(&tools[subject - TOOLS]);
	}
}

static void measure_once(enum subject subject, const char *const *argv,
			 struct bench_samples *samples)
{
	bench_sleep_ms(PAUSE_MS);
	if (subject == PYTHON) {
		bench_sample(samples, python_us(argv));
	} else {
		uint64_t begin = bench_now_ns();

		run(subject, argv);
		bench_sample_since(samples, begin);
	}
	if (subject == PREWARMED)
		bench_sleep_ms(REFILL_MS);
}

static void measure(const char *where, const char *const *argv, const bool *taken, int times)
{
	const int warm_up = times / 20 + 1;
	struct bench_samples samples[SUBJECTS] = { 0 };

	for (int subject = HOST; subject <= PREWARMED; subject++)
		bench_runner_set_argv(&runners[subject], argv);
	for (int i = -warm_up; i < times; i++) {
		for (int subject = 0; subject < SUBJECTS; subject++) {
			if (taken[subject] && !why_not(subject))
				measure_once(subject, argv, &samples[subject]);
			if (i == -1)
				samples[subject].count = 0;
		}
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

static void measure_programs(int times, size_t count)
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
	bool all[SUBJECTS];

	memset(all, true, sizeof(all));
	python_open();
	for (size_t i = 0; i < BENCH_COUNT(programs) && i < count; i++) {
		for (int tool = 0; tool < TOOL_COUNT; tool++)
			tool_prepare(tool, programs[i].argv, &tools[tool]);
		measure(programs[i].name, programs[i].argv, all, times);
		for (int tool = 0; tool < TOOL_COUNT; tool++)
			tool_release(&tools[tool]);
	}
	python_close();
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
			measure(size->name, argv, taken, times);
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
	bool quick = bench_init(argc, argv);

	bench_runner_open(&runners[HOST], NULL, "host", 0, 1);
	bench_runner_open(&runners[SANDBOX], NULL, "sandbox", 0, 1);
	bench_runner_open(&runners[PREWARMED], NULL, "sandbox", PREWARM, 1);
	measure_programs(quick ? 2 : 200, quick ? 2 : SIZE_MAX);
	measure_large(quick ? 2 : 100, quick);
	for (int subject = HOST; subject <= PREWARMED; subject++)
		bench_runner_close(&runners[subject]);
	bench_exit();
	return 0;
}
