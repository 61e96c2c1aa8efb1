/* SPDX-License-Identifier: MIT */
/* The network of a command that may reach some hosts and no others: a proxy in the host
 * program's own loop. It speaks HTTP (CONNECT, and requests with a whole URL) and SOCKS5
 * on one port, decides by the policies, looks names up itself and connects to the very
 * address that it checked. docs/network.md */
#ifndef AD_EGRESS_H
#define AD_EGRESS_H

#include <agentd/error.h>
#include <agentd/policy.h>

#include "loop/loop.h"
#include "util/util.h"

struct ad_egress;
struct ad_resolver;

/* ---- names (resolve.c) */

/* One per runner. server: "ADDRESS" or "ADDRESS:PORT" of a name server that alone is asked;
 * NULL: the machine's, and its file of hosts. */
int ad_resolver_new(struct ad_loop *loop, const char *server, struct ad_resolver **ret,
		    agentd_error **reterr);
/* What was not answered never will be. */
void ad_resolver_free(struct ad_resolver *resolver);

/* ---- the proxy of one execution */

enum {
	/* Tunnels at once; more wait to be accepted. Fewer where the host program may open
	 * fewer descriptors: together they take half of what it may. */
	AD_EGRESS_CONNECTIONS_MAX = 512
};

struct ad_egress_opts {
	struct ad_loop *loop;
	struct ad_resolver *resolver;    /* outlives it */
	agentd_policy *ceiling, *policy; /* frozen; outlive it */
	/* Something was refused. The proxy may be freed from here. */
	void (*denied)(const char *target, const char *rule, const char *remedy, void *userdata);
	/* No rule decides about host: ad_egress_answer() will, or after ask_ns it is refused
	 * unless ask_default. NULL: it is refused at once. */
	void (*ask)(uint32_t question, const char *host, uint16_t port, void *userdata);
	uint64_t ask_ns;
	bool ask_default;
	uint64_t bytes_max; /* both ways together; 0: no limit */
	/* That many have been taken: all connections are closed, new ones refused. */
	void (*spent)(void *userdata);
	void *userdata;
};

struct ad_egress_counts {
	uint64_t connections;    /* made to a host */
	uint64_t sent, received; /* bytes, seen from the command */
};

int ad_egress_new(const struct ad_egress_opts *opts, struct ad_egress **ret, agentd_error **reterr);
/* Serve who connects to a listening socket. Takes it, also on failure. */
int ad_egress_listen(struct ad_egress *egress, int fd, agentd_error **reterr);
/* Serve one who is connected already: a stream socket. Takes it, also on failure, which is
 * AGENTD_ERR_LIMIT where there are as many as may be. */
int ad_egress_serve(struct ad_egress *egress, int fd);
/* A question that is over is no offence. */
void ad_egress_answer(struct ad_egress *egress, uint32_t question, bool allow);
const struct ad_egress_counts *ad_egress_counts(const struct ad_egress *egress);
/* Closes everything, at once. From any callback. */
void ad_egress_free(struct ad_egress *egress);

#endif
