/* SPDX-License-Identifier: MIT */
/* How fast is a command's output read, beside other ways to read it?
 *
 *     bench_output [--quick]
 */
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "peer.h"

static struct bench_runner on_host, in_sandbox;

static uint64_t run(struct bench_runner *runner, const char *const *argv)
{
	runner->bytes = 0;
	bench_runner_set_argv(runner, argv);
	bench_runner_run(runner);
	return runner->bytes;
}

static uint64_t run_on_host(const char *const *argv)
{
	return run(&on_host, argv);
}

static uint64_t run_in_sandbox(const char *const *argv)
{
	return run(&in_sandbox, argv);
}

static const struct {
	const char *name;
	uint64_t (*run)(const char *const *argv); /* NULL: built without */
} subjects[] = {
	{ "read loop", peer_read_loop },
	{ "libevent bufferevent", peer_bufferevent },
#ifdef BENCH_HAVE_UV
	{ "libuv", peer_uv },
#else
	{ "libuv", NULL },
#endif
#ifdef BENCH_HAVE_GLIB
	{ "GLib", peer_glib },
#else
	{ "GLib", NULL },
#endif
	{ "agentd, host", run_on_host },
	{ "agentd, sandbox", run_in_sandbox },
};

static void measure(const char *where, const char *const *argv, int times)
{
	const uint64_t bytes = strtoull(argv[1], NULL, 10) * strtoull(argv[2], NULL, 10);
	struct bench_samples samples[BENCH_COUNT(subjects)] = { 0 };

	for (int i = -1; i < times; i++) {
		for (size_t subject = 0; subject < BENCH_COUNT(subjects); subject++) {
			uint64_t begin = bench_now_ns();

			if (!subjects[subject].run)
				continue;
			if (subjects[subject].run(argv) != bytes)
				bench_fail(subjects[subject].name, "wrong length");
			if (i >= 0)
				bench_sample(&samples[subject],
					     (double)bytes / (double)(bench_now_ns() - begin));
		}
	}
	for (size_t subject = 0; subject < BENCH_COUNT(subjects); subject++) {
		const struct bench_row row = { .bench = "output",
					       .where = where,
					       .subject = subjects[subject].name,
					       .metric = "throughput",
					       .unit = "GB/s",
					       .more_is_better = true };

		if (subjects[subject].run)
			bench_print(&row, &samples[subject]);
		else
			bench_print_cannot(&row, "built without");
	}
}

int main(int argc, char **argv)
{
	static const char *const large[] = { BENCH_FLOOD, "131072", "4096", NULL };
	static const char *const large_few[] = { BENCH_FLOOD, "131072", "64", NULL };
	static const char *const small[] = { BENCH_FLOOD, "4096", "65536", NULL };
	static const char *const small_few[] = { BENCH_FLOOD, "4096", "2048", NULL };
	bool quick = bench_init(argc, argv);
	const int times = quick ? 2 : 11;

	bench_runner_open(&on_host, NULL, "host", 0, 1);
	bench_runner_open(&in_sandbox, NULL, "sandbox", 0, 1);
	measure("128 KiB writes", quick ? large_few : large, times);
	measure("4 KiB writes", quick ? small_few : small, times);
	bench_runner_close(&on_host);
	bench_runner_close(&in_sandbox);
	bench_exit();
	return 0;
}
