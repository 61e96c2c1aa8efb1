/* SPDX-License-Identifier: MIT */
/* Where and as whom a command runs. Implements agentd/context.h. */
#ifndef AD_CORE_CONTEXT_H
#define AD_CORE_CONTEXT_H

#include <agentd/context.h>
#include <agentd/policy.h>

#include "util/util.h"

/* Whom to ask about hosts; see net.c. */
struct ad_ask_state;
int ad_ask_state_new(const struct agentd_ask_opts *opts, struct ad_ask_state **ret,
		     agentd_error **reterr);
struct ad_ask_state *ad_ask_state_ref(struct ad_ask_state *state);
void ad_ask_state_unref(struct ad_ask_state *state);

struct ad_context_env {
	char *name;
	char *value; /* NULL: not in the environment */
};

struct ad_context_label {
	char *key, *value;
};

struct ad_context_mount {
	char *source, *target;
	uint32_t access; /* AGENTD_ACCESS_* */
};

/* What a context says at one moment. Changed only while the context alone holds
 * it: a setter of a shared one works on a copy. */
struct ad_context_state {
	ad_refcount refs;
	int netns;                /* descriptor, or -1 */
	agentd_policy *policy;    /* frozen, or NULL */
	struct ad_ask_state *ask; /* or NULL */
	struct agentd_limits limits;
	char *backend, *rootfs, *workdir, *trace_id;         /* each may be NULL */
	char *token;                                         /* NULL: no credentials */
	uint64_t expires_unix_ms;                            /* 0: never */
	char **shell;                                        /* NULL: the default */
	char *session_id, *session_domain, *session_profile; /* each may be NULL */
	struct ad_context_env *env; /* no name twice, as labels' keys and mounts' targets */
	size_t env_count;
	struct ad_context_label *labels;
	size_t label_count;
	struct ad_context_mount *mounts;
	size_t mount_count;
};

/* A reference to what ctx says now. */
const struct ad_context_state *ad_context_snapshot(agentd_context *ctx);
const struct ad_context_state *ad_context_state_ref(const struct ad_context_state *state);
void ad_context_state_unref(const struct ad_context_state *state);

#endif
