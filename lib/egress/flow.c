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

/* For all flows together in one turn, so that many busy tunnels do not hold up the host
 * program's timers. */
static const uint64_t turn_ns = 4000000;

enum {
	CHUNK = 64 * 1024, /* what a new pipe holds */
	BURST = 2 * CHUNK, /* for one flow in a turn of the loop */
	COPY = 16 * 1024,  /* where there is no pipe */
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

static struct ad_pipe *pipe_take(struct ad_flows *flows)
{
	struct ad_pipe *pipe = flows->idle;

	if (pipe) {
		flows->idle = pipe->next;
		flows->kept--;
	} else {
		if (flows->lent >= PIPES_MAX)
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
	flows->lent++;
	return pipe;
}

static void pipe_give_back(struct ad_flow *flow)
{
	struct ad_flows *flows = flow->flows;
	struct ad_pipe *pipe = AD_STEAL(flow->pipe);

	if (!pipe)
		return;
	flows->lent--;
	if (flow->piped > 0 || flows->kept >= PIPES_KEPT) {
		pipe_close(pipe);
	} else {
		pipe->next = flows->idle;
		flows->idle = pipe;
		flows->kept++;
	}
	flow->piped = 0;
}

void ad_flows_free(struct ad_flows *flows)
{
	ad_defer_cancel(&flows->turn_over);
	while (flows->idle) {
		struct ad_pipe *pipe = flows->idle;

		flows->idle = pipe->next;
		pipe_close(pipe);
	}
	flows->kept = 0;
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
	ssize_t n = splice(flow->pipe->fd[0], NULL, ad_io_fd(&flow->sink), NULL, flow->piped,
			   SPLICE_F_MOVE | SPLICE_F_NONBLOCK);

	if (n < 0)
		return -errno;
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
	struct ad_flows *flows = flow->flows;
	uint64_t left = flow->left < flows->left ? flow->left : flows->left;
	size_t most = left < CHUNK ? (size_t)left : CHUNK;
	ssize_t n;

	flow->pipe = pipe_take(flow->flows);
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
	if (n > 0 && flows->left != UINT64_MAX)
		flows->left -= (uint64_t)n;
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

static int watch_one(struct ad_io *io, bool *watched, bool wanted)
{
	if (*watched == wanted)
		return 0;
	*watched = wanted;
	if (wanted)
		return ad_io_start(io);
	ad_io_stop(io);
	return 0;
}

/* Watch what it waits for, and nothing else. */
static int watch(struct ad_flow *flow)
{
	bool stuck = has_something(flow);
	int r = watch_one(&flow->sink, &flow->sink_watched, stuck);

	return r < 0 ? r :
		       watch_one(&flow->source, &flow->source_watched,
				 !stuck && !flow->eof && flow->left > 0 && flow->flows->left > 0);
}

static void on_turn_over(struct ad_defer *defer, void *userdata)
{
	struct ad_flows *flows = userdata;

	(void)defer;
	flows->skip = flows->out_of_time && flows->served < flows->came ? flows->served : 0;
	flows->came = flows->served = 0;
	flows->out_of_time = false;
}

/* Whether this flow's turn has come. The loop reports those that are ready in the same order
 * again and again. */
static bool has_turn(struct ad_flows *flows)
{
	uint64_t now = ad_sys_now_ns();

	if (flows->came++ == 0) {
		flows->until = now + turn_ns;
		ad_defer(&flows->turn_over);
	}
	if (now >= flows->until)
		flows->out_of_time = true;
	if (flows->out_of_time || flows->came <= flows->skip)
		return false;
	flows->served = flows->came;
	return true;
}

/* A negative errno, or 0. */
static int move(struct ad_flow *flow)
{
	int r = drain(flow);

	for (size_t taken = 0;
	     r == 1 && taken < BURST && !flow->eof && flow->left > 0 && flow->flows->left > 0;) {
		ssize_t n = take(flow);

		if (n == -EAGAIN)
			break;
		if (n < 0 && n != -EINTR)
			return (int)n;
		taken += n > 0 ? (size_t)n : 0;
		r = drain(flow);
		/* Less than there was room for: it was all. */
		if (n > 0 && n < COPY)
			break;
	}
	if (r == 1 && flow->eof && !flow->over) {
		flow->over = true;
		/* Gone already: whoever reads from it will be told. */
		shutdown(ad_io_fd(&flow->sink), SHUT_WR);
	}
	flow->unwanted = r < 0;
	return r < 0 ? r : 0;
}

static bool run(struct ad_flow *flow)
{
	struct ad_sys_signals held;
	int r;

	if (!has_turn(flow->flows))
		return true;
	ad_sys_signals_hold(&held);
	r = move(flow);
	ad_sys_signals_release(&held, -r);
	return r == 0 && watch(flow) == 0;
}

static void ready(struct ad_io *io, void *userdata)
{
	struct ad_flow *flow = userdata;

	(void)io;
	flow->changed(flow, run(flow), flow->userdata);
}

/* ---- life */

void ad_flows_init(struct ad_flows *flows, struct ad_loop *loop, uint64_t most)
{
	flows->left = most;
	ad_defer_init(&flows->turn_over, loop, on_turn_over, flows);
}

void ad_flow_init(struct ad_flow *flow, struct ad_loop *loop, struct ad_flows *flows, int from,
		  int to, void (*changed)(struct ad_flow *flow, bool alive, void *userdata),
		  void *userdata)
{
	*flow = (struct ad_flow){
		.flows = flows, .left = UINT64_MAX, .changed = changed, .userdata = userdata
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
	return watch_one(&flow->sink, &flow->sink_watched, true);
}

void ad_flow_stop(struct ad_flow *flow)
{
	ad_io_stop(&flow->source);
	ad_io_stop(&flow->sink);
	flow->source_watched = flow->sink_watched = false;
	if (flow->flows)
		pipe_give_back(flow);
	free(AD_STEAL(flow->pending));
}
