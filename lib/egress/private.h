/* SPDX-License-Identifier: MIT */
/* Shared by the files of lib/egress and their tests only. */
#ifndef AD_EGRESS_PRIVATE_H
#define AD_EGRESS_PRIVATE_H

#include <netinet/in.h>

#include "egress/egress.h"
#include "policy/policy.h"

/* ---- request.c: what a client wants. Pure. */

enum {
	/* Of all that a client says before it is connected. Servers take 8 KiB, some 32. */
	AD_REQUEST_MAX = 32 * 1024,
};

enum ad_request_kind { AD_REQUEST_CONNECT, AD_REQUEST_FORWARD, AD_REQUEST_SOCKS };

enum ad_request_verdict {
	AD_REQUEST_MORE,     /* not all of it is here */
	AD_REQUEST_GREETING, /* of SOCKS: `used` bytes are done with, answer 05 00, go on */
	AD_REQUEST_DONE,
	AD_REQUEST_BAD /* status and why say so */
};

struct ad_request {
	enum ad_request_kind kind;
	bool greeted; /* the caller keeps it between calls */
	struct ad_net_host host;
	uint16_t port;
	size_t used;        /* bytes of the input that were the request */
	struct ad_buf head; /* FORWARD: what the server gets for it; to be freed */
	uint64_t body;      /* bytes that follow it; UINT64_MAX: until the client ends */
	int status;         /* of HTTP, when BAD */
	const char *why;
};

/* data: all that came so far (after a GREETING, without it). */
enum ad_request_verdict ad_request_parse(struct ad_request *request, const uint8_t *data,
					 size_t len);

/* ---- resolve.c */

struct ad_lookup;

enum { AD_LOOKUP_ADDRESSES_MAX = 16 };

/* addresses: count of them, 0: error says why. */
typedef void (*ad_lookup_fn)(const struct ad_net_host *addresses, size_t count, const char *error,
			     void *userdata);
/* fn comes from the loop, once, unless cancelled. AGENTD_ERR_NOMEM or 0. */
int ad_lookup_start(struct ad_resolver *resolver, const char *name, ad_lookup_fn fn, void *userdata,
		    struct ad_lookup **ret);
void ad_lookup_cancel(struct ad_lookup *lookup);

/* ---- flow.c: bytes from one socket to another */

struct ad_pipe {
	struct ad_pipe *next;
	int fd[2];
};

/* What flows share: pipes, which are lent for as long as something is in them, and a turn of
 * the loop, which has to be short. */
struct ad_flows {
	struct ad_pipe *idle;
	size_t lent, kept;
	uint64_t left; /* most that may still come, of all of them together */
	/* Of the turn: until when flows are served, how many came, up to which were served, and
	 * how many that had their time before let others go first. */
	uint64_t until;
	size_t came, served, skip;
	bool out_of_time;
	struct ad_defer turn_over;
};
/* most: bytes of all of them together. */
void ad_flows_init(struct ad_flows *flows, struct ad_loop *loop, uint64_t most);
void ad_flows_free(struct ad_flows *flows);

struct ad_flow {
	struct ad_io source, sink;
	bool source_watched, sink_watched;
	struct ad_flows *flows;
	struct ad_pipe *pipe; /* or NULL */
	size_t piped;         /* bytes in it */
	uint8_t *pending;     /* goes before them; or NULL */
	size_t pending_at, pending_len;
	uint64_t left;  /* most that may still come from the source */
	uint64_t moved; /* that has gone to the sink */
	bool eof;       /* of the source */
	bool over;      /* all there was is out, and the sink knows that no more will come */
	bool unwanted;  /* the sink is dead: it takes no more */
	void (*changed)(struct ad_flow *flow, bool alive, void *userdata);
	void *userdata;
};

/* changed: something has moved, or it is over; not alive: one of the sockets is dead. Both
 * sockets are non-blocking and outlive it. */
void ad_flow_init(struct ad_flow *flow, struct ad_loop *loop, struct ad_flows *flows, int from,
		  int to, void (*changed)(struct ad_flow *flow, bool alive, void *userdata),
		  void *userdata);
/* Before anything else: these bytes, which are copied. AGENTD_ERR_NOMEM or 0. */
int ad_flow_put(struct ad_flow *flow, const void *data, size_t len);
/* Go on. changed() is called later, from the loop. */
int ad_flow_start(struct ad_flow *flow);
void ad_flow_stop(struct ad_flow *flow); /* and free what it has; idempotent */

#endif
