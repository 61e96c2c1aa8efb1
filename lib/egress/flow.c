/* SPDX-License-Identifier: MIT */
/* One direction of a tunnel. What comes goes through a pipe (splice(2)), so that no byte is
 * copied here; pipes are lent only while something is in one, so that idle tunnels have none
 * and a stuck one has what it holds up, no more. */
#include "egress/private.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sys/sys.h"

enum {
	CHUNK = 64 * 1024, /* what a new pipe holds */
	/* Taken per wake-up, so that many busy tunnels do not hold up the loop's timers. */
	BURST = 2 * CHUNK,
	COPY = 16 * 1024, /* where there is no pipe */
	/* Stuck directions beyond these are copied. */
	PIPES_MAX = 64,
	PIPES_KEPT = 4
};

/* ---- pipes */

static void pipe_close(struct ad_pipe *pipe)
{
	for (int i = 0; i < 2; i++)
		ad_util_closep(&pipe->fd[i]);
	free(pipe);
}

static struct ad_pipe *pipe_take(struct ad_pipes *pipes)
{
	struct ad_pipe *pipe = pipes->idle;

	if (pipe) {
		pipes->idle = pipe->next;
		pipes->kept--;
	} else {
		if (pipes->lent >= PIPES_MAX)
			return NULL;
		pipe = malloc(sizeof(*pipe));
		if (!pipe)
			return NULL;
		if (pipe2(pipe->fd, O_CLOEXEC | O_NONBLOCK) < 0) {
			free(pipe);
			return NULL;
		}
		for (int i = 0; i < 2; i++)
			pipe->fd[i] = ad_sys_high_fd(pipe->fd[i]);
		if (pipe->fd[0] < 0 || pipe->fd[1] < 0) {
			pipe_close(pipe);
			return NULL;
		}
	}
	pipes->lent++;
	return pipe;
}

static void pipe_give_back(struct ad_flow *flow)
{
	struct ad_pipes *pipes = flow->pipes;
	struct ad_pipe *pipe = AD_STEAL(flow->pipe);

	if (!pipe)
		return;
	pipes->lent--;
	if (flow->piped > 0 || pipes->kept >= PIPES_KEPT) {
		pipe_close(pipe);
	} else {
		pipe->next = pipes->idle;
		pipes->idle = pipe;
		pipes->kept++;
	}
	flow->piped = 0;
}

void ad_pipes_free(struct ad_pipes *pipes)
{
	while (pipes->idle) {
		struct ad_pipe *pipe = pipes->idle;

		pipes->idle = pipe->next;
		pipe_close(pipe);
	}
	pipes->kept = 0;
}

/* ---- moving */

static ssize_t put_pending(struct ad_flow *flow)
{
	ssize_t n = send(ad_io_fd(&flow->sink), flow->pending + flow->pending_at,
			 flow->pending_len - flow->pending_at, MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n < 0)
		return -errno;
	flow->pending_at += (size_t)n;
	if (flow->pending_at == flow->pending_len) {
		free(AD_STEAL(flow->pending));
		flow->pending_at = flow->pending_len = 0;
	}
	return n;
}

static ssize_t put_piped(struct ad_flow *flow)
{
	ssize_t n = ad_sys_splice_nosigpipe(flow->pipe->fd[0], ad_io_fd(&flow->sink), flow->piped);

	if (n > 0)
		flow->piped -= (size_t)n;
	if (flow->piped == 0)
		pipe_give_back(flow);
	return n;
}

static ssize_t take_copied(struct ad_flow *flow, size_t most)
{
	uint8_t *data = malloc(most < COPY ? most : COPY);
	ssize_t n;

	if (!data)
		return -ENOMEM;
	n = recv(ad_io_fd(&flow->source), data, most < COPY ? most : COPY, MSG_DONTWAIT);
	if (n <= 0) {
		n = n < 0 ? -errno : 0;
		free(data);
		return n;
	}
	flow->pending = data;
	flow->pending_len = (size_t)n;
	return n;
}

static ssize_t take(struct ad_flow *flow)
{
	size_t most = flow->left < CHUNK ? (size_t)flow->left : CHUNK;
	ssize_t n;

	flow->pipe = pipe_take(flow->pipes);
	if (!flow->pipe) {
		n = take_copied(flow, most);
	} else {
		n = splice(ad_io_fd(&flow->source), NULL, flow->pipe->fd[1], NULL, most,
			   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
		if (n > 0)
			flow->piped = (size_t)n;
		else
			n = n < 0 ? -errno : 0;
		if (n <= 0)
			pipe_give_back(flow);
	}
	if (n > 0 && flow->left != UINT64_MAX)
		flow->left -= (uint64_t)n;
	if (n == 0)
		flow->eof = true;
	return n;
}

static bool has_something(const struct ad_flow *flow)
{
	return flow->pending || flow->piped > 0;
}

/* Out with what there is: 1 all of it, 0 the sink takes no more now, or a negative errno. */
static int drain(struct ad_flow *flow)
{
	while (has_something(flow)) {
		ssize_t n = flow->pending ? put_pending(flow) : put_piped(flow);

		if (n == -EINTR)
			continue;
		if (n == -EAGAIN)
			return 0;
		if (n <= 0)
			return n < 0 ? (int)n : -EPIPE;
		flow->moved += (uint64_t)n;
	}
	return 1;
}

/* Watch what it waits for, and nothing else. */
static int watch(struct ad_flow *flow)
{
	bool stuck = has_something(flow);
	int r = 0;

	if (stuck)
		r = ad_io_start(&flow->sink);
	else
		ad_io_stop(&flow->sink);
	if (stuck || flow->eof || flow->left == 0)
		ad_io_stop(&flow->source);
	else if (r == 0)
		r = ad_io_start(&flow->source);
	return r;
}

static bool run(struct ad_flow *flow)
{
	int r = drain(flow);

	for (size_t taken = 0; r == 1 && taken < BURST && !flow->eof && flow->left > 0;) {
		ssize_t n = take(flow);

		if (n == -EAGAIN)
			break;
		if (n < 0 && n != -EINTR)
			return false;
		taken += n > 0 ? (size_t)n : 0;
		r = drain(flow);
		/* Less than there was room for: it was all. */
		if (n > 0 && n < COPY)
			break;
	}
	if (r < 0)
		return false;
	if (r == 1 && flow->eof && !flow->over) {
		flow->over = true;
		/* Gone already: whoever reads from it will be told. */
		shutdown(ad_io_fd(&flow->sink), SHUT_WR);
	}
	return watch(flow) == 0;
}

static void ready(struct ad_io *io, void *userdata)
{
	struct ad_flow *flow = userdata;

	(void)io;
	flow->changed(flow, run(flow), flow->userdata);
}

/* ---- life */

void ad_flow_init(struct ad_flow *flow, struct ad_loop *loop, struct ad_pipes *pipes, int from,
		  int to, void (*changed)(struct ad_flow *flow, bool alive, void *userdata),
		  void *userdata)
{
	*flow = (struct ad_flow){
		.pipes = pipes, .left = UINT64_MAX, .changed = changed, .userdata = userdata
	};
	ad_io_init(&flow->source, loop, from, AD_IO_READ, ready, flow);
	ad_io_init(&flow->sink, loop, to, AD_IO_WRITE, ready, flow);
}

int ad_flow_put(struct ad_flow *flow, const void *data, size_t len)
{
	uint8_t *copy;

	if (len == 0)
		return 0;
	copy = realloc(flow->pending, flow->pending_len + len);
	if (!copy)
		return AGENTD_ERR_NOMEM;
	memcpy(copy + flow->pending_len, data, len);
	flow->pending = copy;
	flow->pending_len += len;
	return 0;
}

int ad_flow_start(struct ad_flow *flow)
{
	/* The sink is writable before long, and then all that there is to do is done. */
	int r = ad_io_start(&flow->sink);

	return r < 0 || flow->eof ? r : ad_io_start(&flow->source);
}

void ad_flow_stop(struct ad_flow *flow)
{
	ad_io_stop(&flow->source);
	ad_io_stop(&flow->sink);
	if (flow->pipes)
		pipe_give_back(flow);
	free(AD_STEAL(flow->pending));
}
