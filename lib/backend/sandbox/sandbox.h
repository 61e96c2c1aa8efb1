/* SPDX-License-Identifier: MIT */
/* The sandbox backend: commands in namespaces of their own, with a file system view made
 * from the policy, Landlock, a system call filter and no privileges. What is put up is
 * the helper's work; here is what of it is asked for, and what became of it. */
#ifndef AD_BACKEND_SANDBOX_H
#define AD_BACKEND_SANDBOX_H

#include <agentd/backend.h>

#include "backend/local/local.h"
#include "launch/launch.h"

enum {
	AD_SANDBOX_UID = 65530, /* and the group, unless the runner's options say */
	/* Commands of an agent come one after the other. */
	AD_SANDBOX_PREWARM = 1,
	AD_SANDBOX_PREWARM_MAX = 64
};
/* Where the proxy of a network of allowed hosts listens, inside: a port that no command may
 * take, for it has no rights. */
enum { AD_SANDBOX_PROXY_PORT = 911 };
#define AD_SANDBOX_PROXY_PORT_TEXT "911"
#define AD_SANDBOX_TMP_BYTES (UINT64_C(1) << 30)

/* userdata at registration; copied. */
struct ad_sandbox_opts {
	struct ad_launcher *launcher; /* outlives the backend */
	uint32_t uid, gid;            /* outside, when the host program is root */
	uint32_t prewarm;             /* sandboxes to keep ready */
	uint64_t tmp_bytes;
};

const struct agentd_backend_ops *ad_sandbox_backend_ops(void);

/* ---- for a backend whose commands find the same environment */

enum { AD_SANDBOX_DEFAULTS = 7 };

/* What every command has, and nothing of the host program's own. */
void ad_sandbox_defaults(const char *shell, struct ad_local_default ret[AD_SANDBOX_DEFAULTS]);
/* How programs are told of the proxy of a network of allowed hosts; NULL-terminated, in *ret. */
struct ad_sandbox_proxy_env {
	const char *vars[10];
	char no_proxy[2][48];
};
const char *const *ad_sandbox_proxy_env(const agentd_spec *spec, struct ad_sandbox_proxy_env *ret);

/* ---- for a backend that needs a process as confined as the command of spec would be */

/* Run argv[0], an absolute path that it sees whatever the policy says, with the paths and
 * protected names of spec, no network and pipes for stdin, stdout and stderr; file_bytes is the most
 * that the files it writes hold. The rest is as of ad_job_start(). */
int ad_sandbox_job_start(const struct ad_sandbox_opts *opts, const agentd_spec *spec,
			 const char *const *argv, uint64_t file_bytes,
			 const struct ad_job_events *events, void *userdata, struct ad_job **ret,
			 agentd_error **reterr);
/* The error to pass on for one of ad_job_events.failed(), or for taking its place. */
agentd_error *ad_sandbox_explain(const agentd_spec *spec, const struct ad_launch_failure *failure,
				 agentd_error *err);
/* Tell task of what ad_job_events.denied() was told. */
void ad_sandbox_denied(agentd_task *task, const char *kind, const char *target);

#endif
