/* SPDX-License-Identifier: MIT */
/* What the kinds of sinks share. */
#ifndef AD_SINK_PRIVATE_H
#define AD_SINK_PRIVATE_H

#include <sys/types.h>

#include "sink/sink.h"
#include "util/util.h"

/* Most bytes one output may hold, by agentd/sink.h. */
#define AD_SINK_CHUNK_MAX 262144U

enum { AD_SINK_STREAMS = 2 };

/* What one kind of sink does. All but free may be NULL: nothing to do, to count
 * or to hold; output then takes everything. */
struct ad_sink_kind {
	size_t binding_size;
	void (*free)(agentd_sink *sink);
	int (*bind)(struct ad_sink_binding *binding);
	void (*unbind)(struct ad_sink_binding *binding);
	void (*started)(struct ad_sink_binding *binding);
	int32_t (*output)(struct ad_sink_binding *binding, agentd_stream stream,
			  const uint8_t *data, size_t len);
	void (*stdin_drained)(struct ad_sink_binding *binding);
	int32_t (*log)(struct ad_sink_binding *binding, const agentd_log_record *record);
	void (*denied)(struct ad_sink_binding *binding, const agentd_denial *denial);
	void (*exited)(struct ad_sink_binding *binding, int32_t exit_code, int32_t signo);
	void (*finished)(struct ad_sink_binding *binding, agentd_result *result);
	void (*resume)(struct ad_sink_binding *binding, agentd_stream stream);
	bool (*paused)(const struct ad_sink_binding *binding, agentd_stream stream);
	size_t (*pending)(const struct ad_sink_binding *binding);
	size_t (*abandon)(struct ad_sink_binding *binding);
};

struct agentd_sink {
	ad_refcount refs;
	uint16_t depth;  /* tees above one another, itself included */
	uint16_t leaves; /* sinks in the tree that are no tees */
	const struct ad_sink_kind *kind;
};

/* Kinds that keep state per execution embed it as their first member. */
struct ad_sink_binding {
	agentd_sink *sink;
	const struct ad_sink_kind *kind;
	agentd_exec *exec;
	struct ad_loop *loop;
	ad_sink_resume_fn resume;
	struct ad_sink_binding *parent; /* the tee it is a part of */
	unsigned int holds;             /* the owner's, and one per call on the stack */
	bool unbound;                   /* the owner's is gone */
	bool exited;
};

static inline unsigned int ad_sink_index(agentd_stream stream)
{
	return stream == AGENTD_STDERR;
}

void ad_sink_init(agentd_sink *sink, const struct ad_sink_kind *kind);
/* Bind as a part of the tee parent. */
int ad_sink_bind_child(agentd_sink *sink, struct ad_sink_binding *parent,
		       struct ad_sink_binding **ret);
/* Keep the binding's memory while something is called that may unbind it. */
void ad_sink_hold(struct ad_sink_binding *binding);
void ad_sink_release(struct ad_sink_binding *binding);
/* A part of the sink no longer holds stream: tell the execution if that makes a
 * difference. The binding may be unbound afterwards. */
void ad_sink_resumed(struct ad_sink_binding *binding, agentd_stream stream);

/* ---- writing to a descriptor of somebody else's */

enum ad_write_way {
	AD_WRITE_UNKNOWN, /* not looked at yet */
	AD_WRITE_FILE,    /* never waits for a reader */
	AD_WRITE_SOCKET,
	AD_WRITE_NOWAIT, /* the kernel can be told not to wait */
	/* Else ask for room, then write no more than there surely is. */
	AD_WRITE_POLLED,
	AD_WRITE_TTY
};

/* Write what can be written without waiting, without changing the flags of fd
 * and without a signal to this process. Adds to *ret_written also on failure.
 * 0 if all was written or the rest must wait, else errno. *way belongs to fd. */
int ad_sink_write(int fd, enum ad_write_way *way, const uint8_t *data, size_t len,
		  size_t *ret_written);

#endif
