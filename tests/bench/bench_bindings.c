/* SPDX-License-Identifier: MIT */
/* What do the bindings of other languages cost, beside C and beside what those languages
 * have themselves? One of each in turn, each in a process of its own that waits for its
 * turn.
 *
 *     bench_bindings [--quick]
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bench.h"

enum { PAUSE_MS = 2 };

enum subject { C, PYTHON, PYTHON_ASYNCIO, RUST, SUBPROCESS, ASYNCIO, STD_PROCESS, SUBJECTS };

static const struct {
	const char *name, *program, *how;
} subjects[SUBJECTS] = {
	[C] = { "agentd, C", NULL, NULL },
	[PYTHON] = { "agentd, Python", BENCH_PYTHON_PEER, "agentd" },
	[PYTHON_ASYNCIO] = { "agentd, Python asyncio", BENCH_PYTHON_PEER, "agentd-asyncio" },
	[RUST] = { "agentd, Rust", BENCH_RUST_PEER, "agentd" },
	[SUBPROCESS] = { "Python subprocess", BENCH_PYTHON_PEER, "subprocess" },
	[ASYNCIO] = { "Python asyncio", BENCH_PYTHON_PEER, "asyncio" },
	[STD_PROCESS] = { "Rust std::process", BENCH_RUST_PEER, "std" },
};

static const struct {
	const char *name, *backend;
	const char *argv[4];
} cases[] = {
	{ "static true, host", "host", { BENCH_STATIC_TRUE } },
	{ "bash -lc true, sandbox", "sandbox", { "/bin/bash", "-lc", "true" } },
};

static const char python[] = "/usr/bin/python3";
static struct bench_server servers[SUBJECTS];
static struct bench_runner runner; /* in the process of C */
static const char *backend;

static bool is_python(int subject)
{
	return subject == PYTHON || subject == PYTHON_ASYNCIO || subject == SUBPROCESS ||
	       subject == ASYNCIO;
}

/* NULL: it can. */
static const char *why_not(int subject)
{
	if (is_python(subject))
		return access(python, X_OK) < 0 ? "not installed" : NULL;
	return subject != C && access(subjects[subject].program, X_OK) < 0 ? "built without" : NULL;
}

static double by_c(const char *const *argv)
{
	uint64_t begin;

	if (!runner.runner)
		bench_runner_open(&runner, NULL, backend, 0, 1);
	begin = bench_now_ns();
	bench_runner_set_argv(&runner, argv);
	bench_runner_run(&runner);
	return (double)(bench_now_ns() - begin) / 1e3;
}

/* The policy of the runner in C, for the others. */
static char *policy_json(void)
{
	agentd_error *err = NULL;
	struct bench_runner like;
	char *json = NULL;

	bench_runner_open(&like, NULL, backend, 0, 1);
	bench_must(agentd_policy_to_json(like.policy, &json, NULL, &err), "policy", &err);
	bench_runner_close(&like);
	return json;
}

/* Where Python finds the package, and that the library. */
static void set_paths(bool ours)
{
	if (ours ? setenv("PYTHONPATH", BENCH_PYTHON_PATH, 1) ||
			    setenv("LD_LIBRARY_PATH", BENCH_LIBRARY_PATH, 1) :
		   unsetenv("PYTHONPATH") || unsetenv("LD_LIBRARY_PATH"))
		bench_fail("environment", "cannot be set");
}

static void open_servers(void)
{
	char *policy = policy_json();

	for (int subject = 0; subject < SUBJECTS; subject++) {
		const char *argv[] = { python,
				       "-S",
				       "-B",
				       subjects[subject].program,
				       subjects[subject].how,
				       backend,
				       bench_workdir(),
				       policy,
				       NULL };

		set_paths(subject == PYTHON || subject == PYTHON_ASYNCIO);
		if (subject == C)
			bench_server_open(&servers[subject], by_c);
		else if (!why_not(subject))
			bench_server_open_program(&servers[subject],
						  argv + (is_python(subject) ? 0 : 3));
	}
	agentd_free(policy);
}

static void close_servers(void)
{
	for (int subject = 0; subject < SUBJECTS; subject++) {
		if (!why_not(subject))
			bench_server_close(&servers[subject]);
	}
}

static void print(const char *where, int subject, const char *metric, struct bench_samples *samples)
{
	const struct bench_row row = { .bench = "bindings",
				       .where = where,
				       .subject = subjects[subject].name,
				       .metric = metric,
				       .unit = "us" };

	if (why_not(subject))
		bench_print_cannot(&row, why_not(subject));
	else
		bench_print(&row, samples);
}

static void measure(const char *where, const char *const *argv, int times)
{
	struct bench_samples total[SUBJECTS] = { 0 }, more[SUBJECTS] = { 0 };
	int order[SUBJECTS];

	bench_order(order, SUBJECTS);
	for (int i = -times / 20 - 1; i < times; i++) {
		double took[SUBJECTS] = { 0 };

		bench_shuffle(order, SUBJECTS);
		for (int j = 0; j < SUBJECTS; j++) {
			int subject = order[j];

			if (why_not(subject))
				continue;
			bench_sleep_ms(PAUSE_MS);
			took[subject] = bench_server_ask(&servers[subject], argv);
		}
		for (int subject = 0; subject < SUBJECTS && i >= 0; subject++) {
			bench_sample(&total[subject], took[subject]);
			bench_sample(&more[subject], took[subject] - took[C]);
		}
	}
	for (int subject = 0; subject < SUBJECTS; subject++)
		print(where, subject, "start to finish", &total[subject]);
	for (int subject = PYTHON; subject <= RUST; subject++)
		print(where, subject, "more than C", &more[subject]);
}

int main(int argc, char **argv)
{
	bool quick = bench_init(argc, argv);

	for (size_t i = 0; i < BENCH_COUNT(cases); i++) {
		backend = cases[i].backend;
		open_servers();
		measure(cases[i].name, cases[i].argv, quick ? 2 : 300);
		close_servers();
	}
	bench_exit();
	return 0;
}
