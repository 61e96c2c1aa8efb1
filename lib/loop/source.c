/* SPDX-License-Identifier: MIT */
#include "loop/loop.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <event2/event.h>

#include "loop/private.h"

/* libevent adds it to a clock: any bound will do that cannot overflow. */
enum { TIMER_MAX_S = INT32_MAX };

/* event_assign() reads the base. Without one only the descriptor is kept. */
static void assign(struct event *event, struct ad_loop *loop, int fd, short events,
		   event_callback_fn fn, void *userdata)
{
	memset(event, 0, sizeof(*event));
	event->ev_fd = fd;
	if (ad_loop_alive(loop))
		event_assign(event, ad_loop_base(loop), fd, events, fn, userdata);
}

static void del(struct ad_loop *loop, struct event *event)
{
	int saved = errno;

	if (loop && ad_loop_alive(loop))
		event_del(event);
	errno = saved;
}

/* ---- descriptors */

static void io_ready(evutil_socket_t fd, short events, void *userdata)
{
	struct ad_io *io = userdata;
	struct ad_loop *loop = io->loop;

	(void)fd;
	(void)events;
	ad_loop_enter(loop);
	io->fn(io, io->userdata);
	ad_loop_leave(loop);
}

void ad_io_init(struct ad_io *io, struct ad_loop *loop, int fd, enum ad_io_dir dir, ad_io_fn fn,
		void *userdata)
{
	short events = dir == AD_IO_READ ? EV_READ | EV_PERSIST : EV_WRITE | EV_PERSIST;

	io->loop = loop;
	io->fn = fn;
	io->userdata = userdata;
	assign(&io->event, loop, fd, events, io_ready, io);
}

/* What epoll would refuse: found out first, because libevent reports that on the
 * host's stderr, and because its other methods would take it and spin. */
static int check_pollable(int fd)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		return AGENTD_ERR_SYSTEM;
	if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode) && !S_ISBLK(st.st_mode))
		return 0;
	errno = EPERM;
	return AGENTD_ERR_SYSTEM;
}

int ad_io_start(struct ad_io *io)
{
	int code = check_pollable(ad_io_fd(io));

	return code ? code : ad_loop_event_add(io->loop, &io->event, NULL);
}

void ad_io_stop(struct ad_io *io)
{
	del(io->loop, &io->event);
}

int ad_io_fd(const struct ad_io *io)
{
	return io->event.ev_fd;
}

/* ---- timers */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * AD_NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* Rounded up. */
static struct timeval timeval_of(uint64_t ns)
{
	uint64_t us = ns / 1000 + (ns % 1000 != 0);
	struct timeval tv = { .tv_sec = TIMER_MAX_S };

	if (us / 1000000 < TIMER_MAX_S) {
		tv.tv_sec = (time_t)(us / 1000000);
		tv.tv_usec = (suseconds_t)(us % 1000000);
	}
	return tv;
}

static int arm(struct ad_timer *timer, uint64_t delay_ns)
{
	struct timeval tv = timeval_of(delay_ns);

	return ad_loop_event_add(timer->loop, &timer->event, &tv);
}

static void timer_ready(evutil_socket_t fd, short events, void *userdata)
{
	struct ad_timer *timer = userdata;
	struct ad_loop *loop = timer->loop;
	uint64_t now = now_ns();

	(void)fd;
	(void)events;
	/* Rather early than never, should there be no memory to wait on. */
	if (now < timer->deadline_ns && arm(timer, timer->deadline_ns - now) == 0)
		return;
	ad_loop_enter(loop);
	timer->fn(timer, timer->userdata);
	ad_loop_leave(loop);
}

void ad_timer_init(struct ad_timer *timer, struct ad_loop *loop, ad_timer_fn fn, void *userdata)
{
	timer->loop = loop;
	timer->fn = fn;
	timer->userdata = userdata;
	timer->deadline_ns = 0;
	assign(&timer->event, loop, -1, 0, timer_ready, timer);
}

int ad_timer_start(struct ad_timer *timer, uint64_t delay_ns)
{
	if (__builtin_add_overflow(now_ns(), delay_ns, &timer->deadline_ns))
		timer->deadline_ns = UINT64_MAX;
	return arm(timer, delay_ns);
}

void ad_timer_stop(struct ad_timer *timer)
{
	del(timer->loop, &timer->event);
}
