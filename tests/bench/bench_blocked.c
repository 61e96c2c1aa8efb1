/* SPDX-License-Identifier: MIT */
/* How long does starting a command keep the caller's loop from anything else?
 *
 *     bench_blocked [--quick]
 */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench.h"

static const char *const true_argv[] = { "/bin/true", NULL };

/* ---- the time that the loop does not wait
 *
 * This epoll_wait() takes the place of libc's for libevent too. From the call of
 * agentd_exec_start() on, what is not spent in here is spent in the library, and a little
 * in libevent. */

static struct {
	const struct bench_runner *runner; /* NULL: not looking */
	unsigned int started_before;
	uint64_t begin, waited;
	uint64_t start, answer; /* until the loop waits again, after the call and after `started` */
} probe;

int epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout)
{
	uint64_t enter = 0;
	long n;

	if (probe.runner) {
		enter = bench_now_ns();
		if (probe.start == 0)
			probe.start = enter - probe.begin;
		if (probe.runner->started != probe.started_before) {
			probe.answer = enter - probe.begin - probe.waited - probe.start;
			probe.runner = NULL;
		}
	}
	n = syscall(SYS_epoll_pwait, epfd, events, maxevents, timeout, NULL, 8);
	if (probe.runner)
		probe.waited += bench_now_ns() - enter;
	return (int)n;
}

/* ---- one start of each kind */

enum subject { SPAWN, FORK, HOST, SANDBOX, SUBJECTS };

enum metric { CALL, START, ANSWER, METRICS };

static const char *const subjects[SUBJECTS] = {
	[SPAWN] = "posix_spawn",
	[FORK] = "fork + exec",
	[HOST] = "agentd, host",
	[SANDBOX] = "agentd, sandbox",
};

static const char *const metrics[METRICS] = {
	[CALL] = "agentd_exec_start",
	[START] = "start",
	[ANSWER] = "answer",
};

static double start_program(const char *const *argv, enum bench_how how)
{
	uint64_t begin = bench_now_ns();
	int pid = bench_spawn(argv, how, NULL);
	double us = (double)(bench_now_ns() - begin) / 1e3;

	if (bench_wait(pid) != 0)
		bench_fail(argv[0], "did not exit with 0");
	return us;
}

static double by_fork(const char *const *argv)
{
	return start_program(argv, BENCH_FORK);
}

static void start_command(struct bench_runner *runner, struct bench_samples *samples)
{
	unsigned int finished = runner->finished + 1;

	memset(&probe, 0, sizeof(probe));
	probe.runner = runner;
	probe.started_before = runner->started;
	probe.begin = bench_now_ns();
	bench_runner_start(runner, 0);
	bench_sample_since(&samples[CALL], probe.begin);
	bench_runner_until(runner, &runner->finished, finished);
	/* Finished in the turn that said started: the next wait has not come yet. */
	if (probe.runner) {
		probe.answer = bench_now_ns() - probe.begin - probe.waited - probe.start;
		probe.runner = NULL;
	}
	bench_sample(&samples[START], (double)probe.start / 1e3);
	bench_sample(&samples[ANSWER], (double)probe.answer / 1e3);
}

static void measure(const char *where, struct bench_runner *runners, int times)
{
	struct bench_samples samples[SUBJECTS][METRICS] = { 0 };
	struct bench_server forker;

	bench_server_open(&forker, by_fork); /* as large as we are */
	for (int i = -times / 10 - 1; i < times; i++) {
		if (i == 0) {
			for (int subject = 0; subject < SUBJECTS; subject++) {
				for (int metric = 0; metric < METRICS; metric++)
					samples[subject][metric].count = 0;
			}
		}
		bench_sample(&samples[SPAWN][START], start_program(true_argv, BENCH_SPAWN));
		bench_sample(&samples[FORK][START], bench_server_ask(&forker, true_argv));
		start_command(&runners[HOST], samples[HOST]);
		start_command(&runners[SANDBOX], samples[SANDBOX]);
	}
	bench_server_close(&forker);
	for (int subject = 0; subject < SUBJECTS; subject++) {
		for (int metric = 0; metric < METRICS; metric++) {
			const struct bench_row row = { .bench = "blocked",
						       .where = where,
						       .subject = subjects[subject],
						       .metric = metrics[metric],
						       .unit = "us" };

			if (subject >= HOST || metric == START)
				bench_print(&row, &samples[subject][metric]);
		}
	}
}

static void say_cannot(const char *where, const char *why)
{
	for (int subject = 0; subject < SUBJECTS; subject++) {
		const struct bench_row row = { .bench = "blocked",
					       .where = where,
					       .subject = subjects[subject],
					       .metric = metrics[START],
					       .unit = "us" };

		bench_print_cannot(&row, why);
	}
}

int main(int argc, char **argv)
{
	bool quick = bench_init(argc, argv);
	const int times = quick ? 3 : 300;
	struct bench_runner runners[SUBJECTS];
	const char *why;

	bench_runner_open(&runners[HOST], NULL, "host", 0, 1);
	bench_runner_open(&runners[SANDBOX], NULL, "sandbox", 0, 1);
	bench_runner_set_argv(&runners[HOST], true_argv);
	bench_runner_set_argv(&runners[SANDBOX], true_argv);
	measure("as it is", runners, times);
	for (const struct bench_size *size = bench_sizes(quick); size->name; size++) {
		if (bench_hold(size, &why)) {
			/* fork() of 4 GiB takes its time. */
			measure(size->name, runners, times / 3);
			bench_let_go();
		} else {
			say_cannot(size->name, why);
		}
	}
	bench_runner_close(&runners[HOST]);
	bench_runner_close(&runners[SANDBOX]);
	bench_exit();
	return 0;
}
