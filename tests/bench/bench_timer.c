/* SPDX-License-Identifier: MIT */
/* How late is a timer of the host program's on the same base while a command floods?
 *
 *     bench_timer [--quick]
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>

#include "bench.h"

/* ---- the timer */

/* Else libevent reads a clock that moves every few milliseconds only. */
static struct event_base *precise_base(void)
{
	struct event_config *config = event_config_new();
	struct event_base *base = NULL;

	if (config && event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER) == 0)
		base = event_base_new_with_config(config);
	if (!base)
		bench_fail("event_base_new_with_config", "failed");
	event_config_free(config);
	return base;
}

static void tick(struct event_base *base, unsigned int ticks, struct bench_samples *samples)
{
	size_t until = samples->count + ticks;
	struct bench_ticker ticker;

	bench_ticker_start(&ticker, base, samples);
	while (samples->count < until) {
		if (event_base_loop(base, EVLOOP_ONCE) != 0)
			bench_fail("event_base_loop", "nothing to wait for");
	}
	bench_ticker_stop(&ticker);
}

/* ---- what goes on meanwhile */

static void beside_runner(struct bench_runner *runner, const char *const *argv, unsigned int ticks,
			  struct bench_samples *samples)
{
	unsigned int started = runner->started + 1, finished = runner->finished + 1;
	agentd_exec *exec;

	bench_runner_set_argv(runner, argv);
	exec = bench_runner_start(runner, 0);
	bench_runner_until(runner, &runner->started, started);
	runner->bytes = 0;
	tick(runner->base, ticks, samples);
	if (runner->bytes == 0)
		bench_fail("a flood", "nothing came");
	agentd_exec_kill(exec);
	bench_runner_until(runner, &runner->finished, finished);
}

static void on_data(struct bufferevent *bev, void *userdata)
{
	struct evbuffer *input = bufferevent_get_input(bev);
	uint64_t *bytes = userdata;

	*bytes += evbuffer_get_length(input);
	evbuffer_drain(input, evbuffer_get_length(input));
}

static void beside_bufferevent(const char *const *argv, unsigned int ticks,
			       struct bench_samples *samples)
{
	struct event_base *base = precise_base();
	struct bufferevent *bev;
	uint64_t bytes = 0;
	int out[2], pid;

	if (pipe2(out, O_CLOEXEC) < 0)
		bench_fail("pipe2", strerror(errno));
	pid = bench_spawn(argv, BENCH_SPAWN, (int[]){ -1, out[1], -1 });
	close(out[1]);
	if (evutil_make_socket_nonblocking(out[0]) < 0)
		bench_fail("a pipe", strerror(errno));
	bev = bufferevent_socket_new(base, out[0], BEV_OPT_CLOSE_ON_FREE);
	if (!bev)
		bench_fail("bufferevent", "out of memory");
	bufferevent_setcb(bev, on_data, NULL, NULL, &bytes);
	bufferevent_enable(bev, EV_READ);
	tick(base, ticks, samples);
	if (bytes == 0)
		bench_fail("a flood", "nothing came");
	kill(pid, SIGKILL);
	bufferevent_free(bev);
	event_base_free(base);
	bench_wait(pid);
}

static void beside_nothing(unsigned int ticks, struct bench_samples *samples)
{
	struct event_base *base = precise_base();

	tick(base, ticks, samples);
	event_base_free(base);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		const char *argv[4];
	} floods[] = {
		{ "128 KiB writes", { BENCH_FLOOD, "131072", "0" } },
		{ "4 KiB writes", { BENCH_FLOOD, "4096", "0" } },
	};
	static const char *const subjects[] = { "nothing", "libevent bufferevent", "agentd, host",
						"agentd, sandbox" };
	bool quick = bench_init(argc, argv);
	const unsigned int slices = quick ? 1 : 10, ticks = quick ? 20 : 200;
	struct bench_runner on_host, in_sandbox;

	bench_runner_open(&on_host, precise_base(), "host", 0, 1);
	bench_runner_open(&in_sandbox, precise_base(), "sandbox", 0, 1);
	for (size_t flood = 0; flood < BENCH_COUNT(floods); flood++) {
		struct bench_samples samples[BENCH_COUNT(subjects)] = { 0 };

		for (unsigned int i = 0; i < slices; i++) {
			beside_nothing(ticks, &samples[0]);
			beside_bufferevent(floods[flood].argv, ticks, &samples[1]);
			beside_runner(&on_host, floods[flood].argv, ticks, &samples[2]);
			beside_runner(&in_sandbox, floods[flood].argv, ticks, &samples[3]);
		}
		for (size_t subject = 0; subject < BENCH_COUNT(subjects); subject++) {
			const struct bench_row row = { .bench = "timer",
						       .where = floods[flood].name,
						       .subject = subjects[subject],
						       .metric = "lateness",
						       .unit = "us" };

			bench_print(&row, &samples[subject]);
		}
	}
	bench_runner_close(&on_host);
	bench_runner_close(&in_sandbox);
	bench_exit();
	return 0;
}
