/* SPDX-License-Identifier: MIT */
/* What the helper tells the library: in order, and without waiting for it to listen. */
#include "helper/job.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sys/sys.h"

struct outgoing {
	struct outgoing *next;
	int fd; /* that goes with it, or -1 */
	size_t len;
	uint8_t data[AD_MSG_FIXED_MAX];
};

static struct {
	struct outgoing *first, **tail;
} out = { .tail = &out.first };

static int send_now(const uint8_t *data, size_t len, int fd, int flags)
{
	int r = ad_sys_send(HELPER_SOCKET, data, len, &fd, fd >= 0, flags);

	/* Without its descriptor the library knows that it is lost. */
	return r == -ETOOMANYREFS ? ad_sys_send(HELPER_SOCKET, data, len, NULL, 0, flags) : r;
}

void report_with(const struct ad_msg *msg, int fd)
{
	struct outgoing *queued = NULL;
	uint8_t buf[AD_MSG_FIXED_MAX];
	size_t len = ad_msg_encode(msg, buf);

	if (!helper.host_lost && (out.first || send_now(buf, len, fd, MSG_DONTWAIT) == -EAGAIN)) {
		queued = malloc(sizeof(*queued));
		/* Waiting for the host is the only way left not to lose it. */
		if (!queued)
			send_now(buf, len, fd, 0);
	}
	if (!queued) {
		if (fd >= 0)
			close(fd);
		return;
	}
	queued->next = NULL;
	queued->fd = fd;
	queued->len = len;
	memcpy(queued->data, buf, len);
	*out.tail = queued;
	out.tail = &queued->next;
}

void report(const struct ad_msg *msg)
{
	report_with(msg, -1);
}

void report_fault(uint32_t job, uint32_t stage, uint32_t index, int error, const char *text)
{
	struct ad_msg msg = { .type = AD_MSG_FAILED, .job = job };

	msg.u.failed.stage = stage;
	msg.u.failed.index = index;
	msg.u.failed.os_errno = error;
	strncpy(msg.u.failed.text, text, sizeof(msg.u.failed.text) - 1);
	report(&msg);
}

void report_failed(uint32_t job, uint32_t stage, int error, const char *text)
{
	report_fault(job, stage, 0, error, text);
}

bool report_waits(void)
{
	return out.first;
}

void report_flush(void)
{
	while (out.first) {
		struct outgoing *first = out.first;

		if (!helper.host_lost &&
		    send_now(first->data, first->len, first->fd, MSG_DONTWAIT) == -EAGAIN)
			return;
		if (first->fd >= 0)
			close(first->fd);
		out.first = first->next;
		if (!out.first)
			out.tail = &out.first;
		free(first);
	}
}
