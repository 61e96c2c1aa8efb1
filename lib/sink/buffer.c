/* SPDX-License-Identifier: MIT */
#include "sink/sink.h"

#include <errno.h>
#include <string.h>

#include "sink/private.h"

enum { FIRST_SIZE = 4096 };

/* One block: the head, then the tail. Once it is full the tail is a ring. */
struct kept {
	uint8_t *data;
	size_t len, cap;
	size_t oldest; /* where in the tail the oldest byte is, and the next goes */
	uint64_t total;
	bool failed; /* out of memory: what came later is missing at the end */
};

struct buffer_sink {
	agentd_sink sink;
	size_t head, tail;
	struct kept kept[AD_SINK_STREAMS];
};

static void buffer_free(agentd_sink *sink)
{
	struct buffer_sink *self = AD_CONTAINER_OF(sink, struct buffer_sink, sink);

	for (unsigned int i = 0; i < AD_SINK_STREAMS; i++)
		agentd_free(self->kept[i].data);
	agentd_free(self);
}

static bool grow(struct kept *kept, size_t need, size_t limit)
{
	size_t cap = kept->cap > limit / 2 ? limit : kept->cap * 2;
	uint8_t *data;

	if (need <= kept->cap)
		return true;
	if (cap < FIRST_SIZE)
		cap = FIRST_SIZE < limit ? FIRST_SIZE : limit;
	if (cap < need)
		cap = need;
	data = realloc(kept->data, cap);
	if (!data)
		return false;
	kept->data = data;
	kept->cap = cap;
	return true;
}

/* Over the oldest bytes of the tail. */
static void overwrite(struct kept *kept, size_t head, size_t tail, const uint8_t *data, size_t len)
{
	size_t first;

	if (tail == 0)
		return;
	if (len > tail) {
		data += len - tail;
		len = tail;
	}
	first = tail - kept->oldest < len ? tail - kept->oldest : len;
	memcpy(kept->data + head + kept->oldest, data, first);
	memcpy(kept->data + head, data + first, len - first);
	kept->oldest = (kept->oldest + len) % tail;
}

static int32_t buffer_output(struct ad_sink_binding *binding, agentd_stream stream,
			     const uint8_t *data, size_t len)
{
	struct buffer_sink *self = AD_CONTAINER_OF(binding->sink, struct buffer_sink, sink);
	struct kept *kept = &self->kept[ad_sink_index(stream)];
	size_t limit = self->head + self->tail;
	size_t fits = limit - kept->len < len ? limit - kept->len : len;

	kept->total += len;
	if (kept->failed || !grow(kept, kept->len + fits, limit)) {
		kept->failed = true;
		return AGENTD_ERR_NOMEM;
	}
	if (fits > 0)
		memcpy(kept->data + kept->len, data, fits);
	kept->len += fits;
	if (fits < len)
		overwrite(kept, self->head, self->tail, data + fits, len - fits);
	return AGENTD_SINK_CONTINUE;
}

static void reverse(uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len / 2; i++) {
		uint8_t byte = data[i];

		data[i] = data[len - 1 - i];
		data[len - 1 - i] = byte;
	}
}

/* In place, so that reading what is there cannot fail. */
static void straighten(struct kept *kept, size_t head, size_t tail)
{
	if (kept->oldest == 0)
		return;
	reverse(kept->data + head, kept->oldest);
	reverse(kept->data + head + kept->oldest, tail - kept->oldest);
	reverse(kept->data + head, tail);
	kept->oldest = 0;
}

static const struct ad_sink_kind buffer_kind = {
	.binding_size = sizeof(struct ad_sink_binding),
	.free = buffer_free,
	.output = buffer_output,
};

int agentd_sink_buffer_get(agentd_sink *sink, agentd_stream stream, const uint8_t **ret,
			   size_t *ret_len, uint64_t *ret_dropped)
{
	struct buffer_sink *self;
	struct kept *kept;

	if (!sink || !ret || !ret_len || sink->kind != &buffer_kind ||
	    (stream != AGENTD_STDOUT && stream != AGENTD_STDERR))
		return AGENTD_ERR_INVALID;
	self = AD_CONTAINER_OF(sink, struct buffer_sink, sink);
	kept = &self->kept[ad_sink_index(stream)];
	straighten(kept, self->head, self->tail);
	*ret = kept->data ? kept->data : (const uint8_t *)"";
	*ret_len = kept->len;
	if (ret_dropped)
		*ret_dropped = kept->total - kept->len;
	return 0;
}

int agentd_sink_new_buffer(size_t head, size_t tail, agentd_sink **ret, agentd_error **reterr)
{
	struct buffer_sink *self;
	int saved = errno;
	size_t limit;

	if (!ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "ret must not be NULL");
	if (__builtin_add_overflow(head, tail, &limit))
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "head and tail together are too large");
	self = calloc(1, sizeof(*self));
	errno = saved;
	if (!self)
		return ad_fail_nomem(reterr);
	self->head = head;
	self->tail = tail;
	ad_sink_init(&self->sink, &buffer_kind);
	*ret = &self->sink;
	return 0;
}
