/* SPDX-License-Identifier: MIT */
/* What the benchmarks share: a clock, samples and their rows, the runner that is
 * measured, and what makes a host program large. Each prints one JSON object per row
 * (docs/PERFORMANCE.md has the members) and judges nothing. */
#ifndef TESTS_BENCH_H
#define TESTS_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <agentd/agentd.h>

#define BENCH_COUNT(array) (sizeof(array) / sizeof((array)[0]))

_Noreturn void bench_fail(const char *what, const char *why);
/* err by its address: arguments have no order, and rc is what sets it. */
void bench_must(int rc, const char *what, agentd_error **err);

/* The same environment for all that is started, and none of the user's profile; as many
 * descriptors as we may have. True: --quick was asked for, few of everything. What else
 * is in argv is an error. */
bool bench_init(int argc, char *const *argv);
void bench_init_process(void);

/* A directory of our own that commands may write to; bench_exit() removes it. */
const char *bench_workdir(void);
void bench_exit(void);

/* ---- time and samples */

uint64_t bench_now_ns(void);
void bench_sleep_ms(unsigned int ms);

/* 0 to count - 1. */
void bench_order(int *order, int count);
/* In another order each time, so that nobody always comes after the same, or after a rest. */
void bench_shuffle(int *order, int count);

struct bench_samples {
	double *values;
	size_t count, room;
};

void bench_sample(struct bench_samples *samples, double value);
/* What took since begin, in us. */
void bench_sample_since(struct bench_samples *samples, uint64_t begin_ns);

/* A timer of 2 ms on somebody's base: how late is it each time? Embedded, and not moved
 * between start and stop. */
struct bench_ticker {
	struct event *event;
	uint64_t due;
	struct bench_samples *samples;
};

void bench_ticker_start(struct bench_ticker *ticker, struct event_base *base,
			struct bench_samples *samples);
void bench_ticker_stop(struct bench_ticker *ticker);

struct bench_row {
	const char *bench, *where, *subject, *metric, *unit;
	bool more_is_better;
};

/* Print the row and forget the samples. */
void bench_print(const struct bench_row *row, struct bench_samples *samples);
void bench_print_cannot(const struct bench_row *row, const char *reason);

/* ---- the host program */

struct bench_size {
	const char *name; /* NULL: the last */
	size_t mib;       /* touched, in small pages: the worst case */
	unsigned int fds; /* open */
};

const struct bench_size *bench_sizes(bool quick);
/* Be so large. False, and why: it cannot. */
bool bench_hold(const struct bench_size *size, const char **ret_why);
void bench_let_go(void);

unsigned int bench_entries(const char *path, bool (*wanted)(const char *name));
/* Sum of the lines of a /proc file that begin with one of the names, in bytes; 0: it
 * cannot be read. */
uint64_t bench_proc_kb(const char *path, const char *const *names);

/* ---- starting programs without the library */

enum bench_how { BENCH_SPAWN, BENCH_VFORK, BENCH_FORK };

/* Start argv. stdio, unless NULL: what becomes its 0 to 2; -1: stays as ours. */
int bench_spawn(const char *const *argv, enum bench_how how, const int *stdio);
/* Its wait status. */
int bench_wait(int pid);
/* From start to finish; ends the benchmark unless it exits with 0. */
void bench_run_program(const char *const *argv, enum bench_how how);

/* ---- a process of its own for who forks
 *
 * fork() leaves every page of its caller to be faulted in again, which would fall on
 * whatever is measured next in the same process. */

struct bench_server {
	int pid;
	void *requests, *answers; /* FILE */
};

/* run says how many us it took. */
void bench_server_open(struct bench_server *server, double (*run)(const char *const *argv));
/* argv: a program that does the same, with a line per request. */
void bench_server_open_program(struct bench_server *server, const char *const *argv);
double bench_server_ask(struct bench_server *server, const char *const *argv);
void bench_server_close(struct bench_server *server);

/* ---- the runner that is measured */

struct bench_runner {
	struct event_base *base;
	agentd_policy *policy;
	agentd_context *ctx;
	agentd_runner *runner;
	agentd_params *params;
	agentd_sink *sink;
	unsigned int to_start; /* one more whenever one has finished */
	unsigned int started, finished, ok;
	char wrong[200]; /* what the last one was that is not ok; empty: none */
	uint64_t bytes;
};

/* Takes base; NULL: what event_base_new() makes. */
void bench_runner_open(struct bench_runner *runner, struct event_base *base, const char *backend,
		       uint32_t prewarm, uint32_t max_running);
/* For runners that are opened from now on; borrowed. */
void bench_use_machines(const char *image, const char *monitor);
/* In a sandbox with this network, AGENTD_NET_*. */
void bench_runner_open_net(struct bench_runner *runner, int32_t net);
/* Commands of a sandbox runner in one persistent session from now on. */
void bench_runner_use_session(struct bench_runner *runner);
void bench_runner_set_argv(struct bench_runner *runner, const char *const *argv);
/* Borrowed, until it has finished. */
agentd_exec *bench_runner_start(struct bench_runner *runner, uint32_t flags); /* AGENTD_EXEC_* */
/* Run the loop until a counter has got there. */
void bench_runner_until(struct bench_runner *runner, const unsigned int *counter,
			unsigned int target);
/* One command, from start to finish. */
void bench_runner_run(struct bench_runner *runner);
void bench_runner_close(struct bench_runner *runner);

#endif
