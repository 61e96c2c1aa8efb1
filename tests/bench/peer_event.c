/* SPDX-License-Identifier: MIT */
/* posix_spawn and libevent's bufferevent: what a program on libevent would use first. */
#include "peer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>

#include "bench.h"

struct reading {
	unsigned int open;
	uint64_t total;
};

static void on_data(struct bufferevent *bev, void *userdata)
{
	struct evbuffer *input = bufferevent_get_input(bev);
	struct reading *reading = userdata;
	size_t len = evbuffer_get_length(input);

	reading->total += len;
	evbuffer_drain(input, len);
}

static void on_end(struct bufferevent *bev, short what, void *userdata)
{
	struct reading *reading = userdata;

	if (!(what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)))
		return;
	bufferevent_disable(bev, EV_READ);
	reading->open--;
}

uint64_t peer_bufferevent(const char *const *argv)
{
	struct reading reading = { .open = 2 };
	struct event_base *base = event_base_new();
	struct bufferevent *bevs[2];
	int out[2], err[2], pid;

	if (!base || pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
		bench_fail("pipe2", strerror(errno));
	pid = bench_spawn(argv, BENCH_SPAWN, (int[]){ -1, out[1], err[1] });
	close(out[1]);
	close(err[1]);
	for (int i = 0; i < 2; i++) {
		int fd = i == 0 ? out[0] : err[0];

		if (evutil_make_socket_nonblocking(fd) < 0)
			bench_fail("a pipe", strerror(errno));
		bevs[i] = bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
		if (!bevs[i])
			bench_fail("bufferevent", "out of memory");
		bufferevent_setcb(bevs[i], on_data, NULL, on_end, &reading);
		bufferevent_enable(bevs[i], EV_READ);
	}
	while (reading.open > 0) {
		if (event_base_loop(base, EVLOOP_ONCE) != 0)
			bench_fail("event_base_loop", "nothing to wait for");
	}
	for (int i = 0; i < 2; i++)
		bufferevent_free(bevs[i]);
	event_base_free(base);
	if (bench_wait(pid) != 0)
		bench_fail(argv[0], "did not exit with 0");
	return reading.total;
}
