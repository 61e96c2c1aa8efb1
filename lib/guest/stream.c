/* SPDX-License-Identifier: MIT */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

bool pipe_open(int *ours, int *theirs, bool we_read)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return false;
	*ours = ends[we_read ? 0 : 1];
	*theirs = ends[we_read ? 1 : 0];
	/* An open file description of its own. */
	return ad_sys_set_nonblock(*ours) == 0;
}

bool pipe_open_output(int *ours, int *theirs)
{
	if (!pipe_open(ours, theirs, true))
		return false;
	fcntl(*ours, F_SETPIPE_SZ, AD_GUEST_WINDOW);
	return true;
}

/* ---- to the library */

static void outlet_end(struct outlet *outlet)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_END, .id = outlet->id };

	msg.u.end.stream = outlet->stream;
	watch_close(&outlet->watch);
	outlet->open = false;
	agent_send(&msg);
	task_check(outlet->id);
}

/* All of what was read, before more is: whether that may be. */
static bool pass_on(struct outlet *outlet)
{
	outlet->start += ad_guest_link_data(agent_link(), outlet->id, outlet->stream,
					    outlet->data + outlet->start,
					    outlet->end - outlet->start);
	if (outlet->start < outlet->end) {
		watch_for(&outlet->watch, 0);
		return false;
	}
	if (outlet->left == 0) {
		outlet_end(outlet);
		return false;
	}
	return true;
}

/* Whether there may be more at once. */
static bool outlet_read(struct outlet *outlet)
{
	size_t size = sizeof(outlet->data) < outlet->left ? sizeof(outlet->data) : outlet->left;
	ssize_t n = read(outlet->watch.fd, outlet->data, size);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		outlet_end(outlet);
		return false;
	}
	outlet->left -= (size_t)n;
	outlet->start = 0;
	outlet->end = (size_t)n;
	return pass_on(outlet) && (size_t)n == size;
}

/* The link takes no more than it queues. */
static void outlet_ready(struct watch *watch, uint32_t events)
{
	struct outlet *outlet = AD_CONTAINER_OF(watch, struct outlet, watch);

	(void)events;
	while (outlet_read(outlet))
		;
}

void outlet_open(struct outlet *outlet, uint32_t id, enum ad_guest_stream stream, int fd)
{
	outlet->watch = (struct watch){ .ready = outlet_ready, .fd = fd };
	outlet->id = id;
	outlet->stream = stream;
	outlet->open = true;
	outlet->start = outlet->end = 0;
	outlet->left = SIZE_MAX;
	watch_for(&outlet->watch, EPOLLIN);
}

void outlet_go_on(struct outlet *outlet)
{
	if (outlet->open && pass_on(outlet))
		watch_for(&outlet->watch, EPOLLIN);
}

void outlet_finish(struct outlet *outlet)
{
	int left;

	if (!outlet->open)
		return;
	outlet->left = ioctl(outlet->watch.fd, FIONREAD, &left) < 0 ? 0 : (size_t)left;
	outlet_go_on(outlet);
}

void outlet_close(struct outlet *outlet)
{
	if (outlet->open)
		outlet_end(outlet);
}

/* ---- from the library */

static void taken(const struct inlet *inlet, size_t len)
{
	ad_guest_link_taken(agent_link(), inlet->id, inlet->stream, len);
}

/* Nobody reads it any more: what still comes is dealt with by dropping it. */
static void inlet_break(struct inlet *inlet)
{
	taken(inlet, inlet->data.len);
	ad_buf_free(&inlet->data);
	watch_close(&inlet->watch);
}

/* How much of it the pipe took; false when it is broken. */
static bool push(struct inlet *inlet, const uint8_t *data, size_t len, size_t *ret)
{
	ssize_t n;

	*ret = 0;
	while (*ret < len) {
		n = write(inlet->watch.fd, data + *ret, len - *ret);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		*ret += (size_t)n;
	}
	return true;
}

static void inlet_ready(struct watch *watch, uint32_t events)
{
	struct inlet *inlet = AD_CONTAINER_OF(watch, struct inlet, watch);
	size_t done;

	(void)events;
	if (!push(inlet, (const uint8_t *)inlet->data.data, inlet->data.len, &done)) {
		inlet_break(inlet);
		return;
	}
	taken(inlet, done);
	inlet->data.len -= done;
	if (inlet->data.len > 0) {
		memmove(inlet->data.data, inlet->data.data + done, inlet->data.len);
		return;
	}
	watch_for(watch, 0);
	if (inlet->ending)
		inlet_close(inlet);
}

void inlet_open(struct inlet *inlet, uint32_t id, enum ad_guest_stream stream, int fd)
{
	*inlet = (struct inlet){ .watch = { .ready = inlet_ready, .fd = fd },
				 .id = id,
				 .stream = stream };
}

void inlet_put(struct inlet *inlet, const uint8_t *data, size_t len)
{
	size_t done = len;

	if (inlet->watch.fd < 0) {
		taken(inlet, len);
		return;
	}
	if (inlet->data.len == 0) {
		if (!push(inlet, data, len, &done)) {
			taken(inlet, len);
			inlet_break(inlet);
			return;
		}
		taken(inlet, done);
	} else {
		done = 0;
	}
	if (done == len)
		return;
	if (!ad_buf_append(&inlet->data, data + done, len - done)) {
		taken(inlet, len - done);
		inlet_break(inlet);
		return;
	}
	watch_for(&inlet->watch, EPOLLOUT);
}

void inlet_end(struct inlet *inlet)
{
	inlet->ending = true;
	if (inlet->data.len == 0)
		inlet_close(inlet);
}

void inlet_close(struct inlet *inlet)
{
	ad_buf_free(&inlet->data);
	watch_close(&inlet->watch);
}
