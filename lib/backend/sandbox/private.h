/* SPDX-License-Identifier: MIT */
#ifndef AD_BACKEND_SANDBOX_PRIVATE_H
#define AD_BACKEND_SANDBOX_PRIVATE_H

#include "backend/local/local.h"
#include "backend/sandbox/sandbox.h"
#include "proto/profile.h"

/* Where programs are looked for, unless the context or the policies say. */
#define SANDBOX_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* ---- profile.c: from a specification to what the helper is told */

struct sandbox_profile {
	struct ad_profile profile; /* path i is mount i of the specification */
	struct ad_profile_path *paths;
	const char **names;
};

/* Borrows the specification's strings. AGENTD_ERR_NOMEM or 0. */
int sandbox_profile_init(struct sandbox_profile *ret, const agentd_spec *spec,
			 const struct ad_sandbox_opts *opts);
void sandbox_profile_free(struct sandbox_profile *profile);
/* AD_STRICT_* of a layer. Without the first three there is no sandbox at all: they are
 * required whatever a policy says. */
uint8_t sandbox_strictness(const agentd_spec *spec, enum ad_layer layer);

/* What of the specification this backend cannot honour, or refuses to. */
int sandbox_check(const agentd_spec *spec, agentd_error **reterr);

/* ---- session.c: the same namespaces for one command after the other */

struct sandbox_session;
int sandbox_session_start(const struct ad_sandbox_opts *opts, agentd_task *task,
			  const agentd_spec *spec, struct sandbox_session **ret,
			  agentd_error **reterr);
/* Whether a command with this specification may run in it, and what it finds there. */
int sandbox_session_enter(const struct sandbox_session *session, const agentd_spec *spec,
			  const struct sandbox_profile *profile, struct ad_local_session *ret,
			  agentd_error **reterr);
int32_t sandbox_session_stop(void *session, uint32_t grace_ms);
void sandbox_session_free(void *session);

/* ---- layers.c: what became of it, in words */

void sandbox_report(agentd_task *task, const agentd_spec *spec, const struct agentd_limits *limits,
		    const struct ad_launch_receipt *receipt);
void sandbox_report_best(agentd_backend_report *report, const struct ad_launch_receipt *best);

#endif
