/* SPDX-License-Identifier: MIT */
#include "sink/private.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "sys/sys.h"

enum {
	TTY_STEP = 128,
	STEPS_MAX = 64 /* two system calls each: enough for one turn of the loop */
};

/* ---- one write */

static ssize_t write_nowait(int fd, enum ad_write_way *way, const uint8_t *data, size_t len)
{
	struct iovec iov = { .iov_base = (void *)(uintptr_t)data, .iov_len = len };
	ssize_t written = pwritev2(fd, &iov, 1, -1, RWF_NOWAIT);

	/* Named pipes and terminals do not have it, nor do old kernels; system call
	 * filters may refuse it. */
	if (written < 0 &&
	    (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS || errno == EPERM))
		*way = isatty(fd) ? AD_WRITE_TTY : AD_WRITE_POLLED;
	return written;
}

/* What polls writable has room for PIPE_BUF bytes, but a terminal only for one
 * run of plain characters, less than 256, or one that it may replace: after that
 * it may have none, though there is space in its buffer. */
static size_t step_of(enum ad_write_way way, const uint8_t *data, size_t len)
{
	size_t most = way == AD_WRITE_TTY ? TTY_STEP : PIPE_BUF, plain = 0;

	if (len > most)
		len = most;
	if (way != AD_WRITE_TTY)
		return len;
	while (plain < len && !memchr("\n\r\t", data[plain], 3))
		plain++;
	return plain > 0 ? plain : 1;
}

static ssize_t write_polled(int fd, enum ad_write_way way, const uint8_t *data, size_t len)
{
	struct pollfd pfd = { .fd = fd, .events = POLLOUT };
	int ready = poll(&pfd, 1, 0);

	if (ready < 0)
		return -1;
	if (ready == 0) {
		errno = EAGAIN;
		return -1;
	}
	/* Also with POLLERR alone: the write says what is wrong. */
	return write(fd, data, step_of(way, data, len));
}

static int way_of(int fd, enum ad_write_way *way)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		return errno;
	if (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))
		*way = AD_WRITE_FILE;
	else if (S_ISSOCK(st.st_mode))
		*way = AD_WRITE_SOCKET;
	else
		*way = AD_WRITE_NOWAIT;
	return 0;
}

/* ---- all of it */

static int write_all(int fd, enum ad_write_way *way, const uint8_t *data, size_t len,
		     size_t *ret_written)
{
	int steps = 0;

	while (len > 0) {
		ssize_t written;

		switch (*way) {
		case AD_WRITE_SOCKET:
			written = send(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
			break;
		case AD_WRITE_NOWAIT:
			written = write_nowait(fd, way, data, len);
			if (written < 0 && *way != AD_WRITE_NOWAIT)
				continue;
			break;
		case AD_WRITE_POLLED:
		case AD_WRITE_TTY:
			if (steps++ == STEPS_MAX)
				return 0;
			written = write_polled(fd, *way, data, len);
			break;
		case AD_WRITE_FILE:
		case AD_WRITE_UNKNOWN:
		default:
			written = write(fd, data, len);
			break;
		}
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			return errno == EAGAIN ? 0 : errno;
		/* Nothing taken and nothing said: trying again would never end. */
		if (written == 0)
			return EIO;
		data += written;
		len -= (size_t)written;
		*ret_written += (size_t)written;
	}
	return 0;
}

int ad_sink_write(int fd, enum ad_write_way *way, const uint8_t *data, size_t len,
		  size_t *ret_written)
{
	int saved = errno, error = 0;
	struct ad_sys_signals held;

	if (*way == AD_WRITE_UNKNOWN)
		error = way_of(fd, way);
	if (error == 0 && *way == AD_WRITE_SOCKET) {
		error = write_all(fd, way, data, len, ret_written);
	} else if (error == 0) {
		ad_sys_signals_hold(&held);
		error = write_all(fd, way, data, len, ret_written);
		ad_sys_signals_release(&held, error);
	}
	errno = saved;
	return error;
}
