/* SPDX-License-Identifier: MIT */
/* Shared by the files of lib/policy only. */
#ifndef AD_POLICY_PRIVATE_H
#define AD_POLICY_PRIVATE_H

#include <stdatomic.h>

#include "policy/policy.h"
#include "util/util.h"

enum {
	AD_POLICY_RULES_MAX = 4096, /* of one kind: what is searched linearly stays short */
	AD_POLICY_HOST_SIZE = AD_NET_HOST_SIZE,
};

/* A host pattern, taken apart. */
struct ad_host_pattern {
	char text[AD_POLICY_HOST_SIZE]; /* normalised */
	int family;                     /* AF_INET, AF_INET6, or 0 for a name */
	bool wildcard;                  /* "*.name": the name and all below it */
	unsigned int prefix;            /* bits that count of addr */
	uint8_t addr[16];
};

/* Check and normalise. */
int ad_host_parse(const char *text, struct ad_host_pattern *ret, agentd_error **reterr);
/* Is everything that b matches matched by a? */
bool ad_host_covers(const struct ad_host_pattern *a, const struct ad_host_pattern *b);
/* The first count bits of two addresses. */
bool ad_host_same_bits(const uint8_t *a, const uint8_t *b, unsigned int count);
/* The JSON form: "host", "host:443", "host:8000-8100", "[v6]:443". */
int ad_host_split_ports(const char *text, char *host, size_t size, uint16_t *first, uint16_t *last,
			agentd_error **reterr);
bool ad_host_join_ports(struct ad_buf *buf, const struct ad_policy_host *host);

struct ad_host_rule {
	struct ad_policy_host host; /* its pattern points into parsed */
	struct ad_host_pattern parsed;
};

struct agentd_policy {
	ad_refcount refs;
	atomic_bool frozen;
	bool require_kvm, discard_unfinished;
	int32_t min_isolation, net;
	int32_t protection[AD_POLICY_LAYER_COUNT];
	struct agentd_limits limits;
	struct ad_policy_path *paths;
	size_t path_count;
	struct ad_host_rule **hosts;
	size_t host_count;
	struct ad_strlist env, protect;
};

/* Remember where in its JSON a path is. AGENTD_ERR_NOMEM or 0. */
int ad_policy_note_pointer(agentd_policy *policy, const char *path, const char *pointer);
/* The denied path that hides path, or NULL. */
const char *ad_policy_path_denied(const agentd_policy *policy, const char *path);
/* The denied host that covers what the rule allows, or NULL. */
const struct ad_host_rule *ad_policy_host_denied(const agentd_policy *policy,
						 const struct ad_host_pattern *pattern);
/* An explicit list takes the place of the built-in one. */
void ad_policy_clear_protected(agentd_policy *policy);

#endif
