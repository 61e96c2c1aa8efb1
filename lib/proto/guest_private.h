/* SPDX-License-Identifier: MIT */
/* What guest_frame.c (the form of a message), guest_order.c (which may come when) and
 * guest_link.c (queues) share, and nobody else includes. */
#ifndef AD_PROTO_GUEST_PRIVATE_H
#define AD_PROTO_GUEST_PRIVATE_H

#include "proto/guest.h"

#include "util/util.h"

/* ---- form */

struct ad_guest_header {
	uint32_t len;
	uint16_t connection; /* 0: of none */
	uint8_t type, stream;
	uint32_t id;
};

struct ad_guest_kind {
	const char *name;
	bool from[2]; /* by role: who sends it */
	bool of_task, of_stream;
	uint32_t min, max;  /* of the body */
	bool of_connection; /* always; what is of a stream may be of a connection instead */
};

/* NULL: there is no such type. */
const struct ad_guest_kind *ad_guest_kind(unsigned int type);
void ad_guest_header_decode(struct ad_guest_header *ret, const uint8_t *at);
/* Appends a frame; false: too large, or out of memory (out->failed). Texts are made fit. */
bool ad_guest_encode(const struct ad_guest_msg *msg, struct ad_buf *out);
/* NULL, or what is wrong with the body. What is in ret is borrowed from body but for the
 * vectors of RUN, *ret_vectors, which are to be freed; NULL in a RUN that is right: out of
 * memory. Without ret_vectors there are none. */
const char *ad_guest_decode(struct ad_guest_msg *ret, const struct ad_guest_header *header,
			    const uint8_t *body, const char ***ret_vectors);

/* ---- order: the same state on both sides, moved by what is sent and by what comes */

struct ad_guest_stream_state {
	bool exists, ended;
	bool blocked;  /* sender: not all was taken */
	uint32_t room; /* what may still be sent; the rest of the window is under way, or */
	uint32_t held; /* receiver: came and is not dealt with, or */
	uint32_t owed; /* receiver: dealt with, and not granted again */
};

struct ad_guest_task {
	uint32_t id; /* 0: nothing is here */
	enum ad_guest_type begun_by;
	bool alive, killed, started, exited;
	uint8_t limits;  /* which LIMIT were sent */
	uint32_t queued; /* frames that have not left; keeps the place when no longer alive */
	struct ad_guest_stream_state streams[AD_GUEST_STREAMS];
};

struct ad_guest_connection {
	bool open;                               /* the number is in use */
	bool hung_up[2];                         /* by role */
	uint32_t queued;                         /* as of a task */
	struct ad_guest_stream_state streams[2]; /* by the role that sends */
};

/* Where something flows, in either direction. */
struct ad_guest_place {
	uint32_t id;
	enum ad_guest_stream stream;
	uint16_t connection; /* not 0: a direction of it, which sender tells */
	enum ad_guest_role sender;
};

struct ad_guest_order {
	enum ad_guest_role role; /* ours */
	bool hello, setup, setup_open, ready, stopping;
	uint32_t last_id;
	uint64_t logs; /* that the agent may still send */
	struct {
		bool open;
		uint64_t token;
	} pings[2]; /* by the role that sent PING */
	struct ad_guest_task tasks[AD_GUEST_TASKS_MAX];
	uint32_t net; /* the task that has the network; 0: none that is alive */
	struct ad_guest_connection connections[AD_GUEST_CONNECTIONS_MAX + 1]; /* by number */
};

enum ad_guest_role ad_guest_stream_sender(enum ad_guest_stream stream);
static inline enum ad_guest_role ad_guest_peer(enum ad_guest_role role)
{
	return role == AD_GUEST_HOST ? AD_GUEST_AGENT : AD_GUEST_HOST;
}

uint32_t ad_guest_window(uint16_t connection);

/* NULL: there is no such flow. */
struct ad_guest_stream_state *ad_guest_flow(struct ad_guest_order *order,
					    const struct ad_guest_place *place);
/* What came of it goes nowhere: this side has hung up. */
bool ad_guest_order_deaf(const struct ad_guest_order *order, const struct ad_guest_msg *msg);
/* NULL if it is not alive. */
struct ad_guest_task *ad_guest_task_find(struct ad_guest_order *order, uint32_t id);
/* Whether the host sent it before it could know that the task is over. */
bool ad_guest_order_crossed(struct ad_guest_order *order, const struct ad_guest_msg *msg);
/* NULL if it may come now from there, or why not. */
const char *ad_guest_order_check(struct ad_guest_order *order, const struct ad_guest_msg *msg,
				 enum ad_guest_role from);
/* It comes, or goes into a queue of ours; was checked. */
void ad_guest_order_apply(struct ad_guest_order *order, const struct ad_guest_msg *msg,
			  enum ad_guest_role from);
/* A frame with this header has left its queue. */
void ad_guest_order_left(struct ad_guest_order *order, const struct ad_guest_header *header);

#endif
