/* SPDX-License-Identifier: MIT */
#include "sink/sink.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "loop/loop.h"
#include "sink/private.h"

struct fd_sink {
	agentd_sink sink;
	int fd[AD_SINK_STREAMS];
};

/* One descriptor of one execution. What it did not take waits here, in the order
 * it came, at most one output of each stream. */
struct channel {
	struct ad_sink_binding *binding;
	struct ad_io io;
	int fd;
	enum ad_write_way way;
	uint8_t *data;
	size_t start, end;
	size_t taken[AD_SINK_STREAMS]; /* bytes of each stream since it was last empty */
	size_t lost;                   /* to a failed write, not reported yet */
	bool failed;
};

struct fd_binding {
	struct ad_sink_binding binding;
	struct channel channel[AD_SINK_STREAMS]; /* the first for both if they are the same */
};

static void fd_free(agentd_sink *sink)
{
	agentd_free(AD_CONTAINER_OF(sink, struct fd_sink, sink));
}

static struct channel *channel_of(const struct ad_sink_binding *binding, agentd_stream stream)
{
	const struct fd_sink *self = AD_CONTAINER_OF(binding->sink, struct fd_sink, sink);
	struct fd_binding *own = AD_CONTAINER_OF(binding, struct fd_binding, binding);

	return &own->channel[self->fd[0] == self->fd[1] ? 0 : ad_sink_index(stream)];
}

static size_t channel_pending(const struct channel *channel)
{
	return channel->end - channel->start;
}

/* Done with what was pending, whether it was written or not. */
static size_t channel_clear(struct channel *channel)
{
	size_t left = channel_pending(channel);

	ad_io_stop(&channel->io);
	agentd_free(channel->data);
	channel->data = NULL;
	channel->start = channel->end = 0;
	memset(channel->taken, 0, sizeof(channel->taken));
	return left;
}

static void channel_fail(struct channel *channel)
{
	channel->failed = true;
	channel->lost += channel_clear(channel);
}

static void channel_writable(struct ad_io *io, void *userdata)
{
	struct channel *channel = userdata;
	struct ad_sink_binding *binding = channel->binding;
	bool waits[AD_SINK_STREAMS] = { channel->taken[0] > 0, channel->taken[1] > 0 };
	int error = ad_sink_write(channel->fd, &channel->way, channel->data + channel->start,
				  channel_pending(channel), &channel->start);

	(void)io;
	if (error)
		channel_fail(channel); /* said at the next output */
	else if (channel_pending(channel) > 0)
		return;
	else
		channel_clear(channel);
	ad_sink_hold(binding);
	if (waits[0])
		ad_sink_resumed(binding, AGENTD_STDOUT);
	if (waits[1])
		ad_sink_resumed(binding, AGENTD_STDERR);
	ad_sink_release(binding);
}

static int32_t channel_keep(struct channel *channel, agentd_stream stream, const uint8_t *data,
			    size_t len)
{
	size_t *taken = &channel->taken[ad_sink_index(stream)];
	size_t old = channel_pending(channel);
	uint8_t *joined;
	int code;

	/* Only somebody who does not heed PAUSE gets here. */
	if (len > AD_SINK_CHUNK_MAX - *taken)
		return AGENTD_ERR_LIMIT;
	joined = malloc(old + len);
	if (!joined)
		return AGENTD_ERR_NOMEM;
	if (old == 0) {
		code = ad_io_start(&channel->io);
		if (code < 0) {
			agentd_free(joined);
			return code;
		}
	} else {
		memcpy(joined, channel->data + channel->start, old);
	}
	memcpy(joined + old, data, len);
	agentd_free(channel->data);
	channel->data = joined;
	channel->start = 0;
	channel->end = old + len;
	*taken += len;
	return AGENTD_SINK_PAUSE;
}

static int32_t fd_output(struct ad_sink_binding *binding, agentd_stream stream, const uint8_t *data,
			 size_t len)
{
	struct channel *channel = channel_of(binding, stream);
	size_t written = 0;
	int error = 0;

	if (channel->fd < 0)
		return AGENTD_SINK_CONTINUE;
	if (channel->failed)
		return AGENTD_ERR_SYSTEM;
	if (channel_pending(channel) == 0)
		error = ad_sink_write(channel->fd, &channel->way, data, len, &written);
	if (error) {
		channel_fail(channel);
		return AGENTD_ERR_SYSTEM;
	}
	if (written == len)
		return AGENTD_SINK_CONTINUE;
	return channel_keep(channel, stream, data + written, len - written);
}

static bool fd_paused(const struct ad_sink_binding *binding, agentd_stream stream)
{
	return channel_of(binding, stream)->taken[ad_sink_index(stream)] > 0;
}

static size_t fd_pending(const struct ad_sink_binding *binding)
{
	const struct fd_binding *own = AD_CONTAINER_OF(binding, struct fd_binding, binding);

	return channel_pending(&own->channel[0]) + channel_pending(&own->channel[1]);
}

static size_t fd_abandon(struct ad_sink_binding *binding)
{
	struct fd_binding *own = AD_CONTAINER_OF(binding, struct fd_binding, binding);
	size_t ret = 0;

	for (unsigned int i = 0; i < AD_SINK_STREAMS; i++) {
		ret += channel_clear(&own->channel[i]) + own->channel[i].lost;
		own->channel[i].lost = 0;
	}
	return ret;
}

static int fd_bind(struct ad_sink_binding *binding)
{
	const struct fd_sink *self = AD_CONTAINER_OF(binding->sink, struct fd_sink, sink);
	struct fd_binding *own = AD_CONTAINER_OF(binding, struct fd_binding, binding);

	for (unsigned int i = 0; i < AD_SINK_STREAMS; i++) {
		struct channel *channel = &own->channel[i];

		channel->binding = binding;
		channel->fd = self->fd[i];
		ad_io_init(&channel->io, binding->loop, channel->fd, AD_IO_WRITE, channel_writable,
			   channel);
	}
	return 0;
}

static void fd_unbind(struct ad_sink_binding *binding)
{
	fd_abandon(binding);
}

static const struct ad_sink_kind fd_kind = {
	.binding_size = sizeof(struct fd_binding),
	.free = fd_free,
	.bind = fd_bind,
	.unbind = fd_unbind,
	.output = fd_output,
	.paused = fd_paused,
	.pending = fd_pending,
	.abandon = fd_abandon,
};

static int check_fd(const char *name, int fd, agentd_error **reterr)
{
	int flags;

	if (fd == -1)
		return 0;
	if (fd < -1)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "%s: %d is neither a descriptor nor -1", name, fd);
	flags = fcntl(fd, F_GETFL);
	if (flags < 0)
		return ad_fail_errno(reterr, errno, "%s: descriptor %d", name, fd);
	if ((flags & O_ACCMODE) == O_RDONLY || (flags & O_PATH))
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "%s: descriptor %d is not open for writing", name, fd);
	return 0;
}

static int fd_new(int out_fd, int err_fd, agentd_sink **ret, agentd_error **reterr)
{
	struct fd_sink *self;
	int code = check_fd("out_fd", out_fd, reterr);

	if (code == 0)
		code = check_fd("err_fd", err_fd, reterr);
	if (code < 0)
		return code;
	self = calloc(1, sizeof(*self));
	if (!self)
		return ad_fail_nomem(reterr);
	self->fd[0] = out_fd;
	self->fd[1] = err_fd;
	ad_sink_init(&self->sink, &fd_kind);
	*ret = &self->sink;
	return 0;
}

int agentd_sink_new_fd(int32_t out_fd, int32_t err_fd, agentd_sink **ret, agentd_error **reterr)
{
	int saved = errno, code;

	if (!ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "ret must not be NULL");
	code = fd_new(out_fd, err_fd, ret, reterr);
	errno = saved;
	return code;
}
