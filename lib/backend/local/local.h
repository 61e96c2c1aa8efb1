/* SPDX-License-Identifier: MIT */
/* What backends have in common whose commands are processes that the helper starts on
 * this machine: the job and its streams, the environment commands begin with, and the
 * receipt's lines about limits. What is a backend's own is in struct ad_local_kind. */
#ifndef AD_BACKEND_LOCAL_H
#define AD_BACKEND_LOCAL_H

#include <stdbool.h>

#include <agentd/backend.h>

#include "launch/launch.h"
#include "util/util.h"

/* ---- environment: variables every command has unless its specification says otherwise */

struct ad_local_default {
	const char *name;
	const char *value; /* NULL: only if the host program has it */
	bool from_host;    /* as the host program has it, if it does */
};

struct ad_local_environment {
	char *vars[12];
	size_t count;
};

/* From the environment of the host program as it is now. AGENTD_ERR_NOMEM or 0. */
int ad_local_environment_init(struct ad_local_environment *environment,
			      const struct ad_local_default *defaults, size_t count);
void ad_local_environment_free(struct ad_local_environment *environment);
/* Those of ours and extra (NULL-terminated, or NULL), as far as wanted does not name them,
 * then wanted: a vector to be freed, that borrows its strings. NULL: out of memory. */
const char **ad_local_environment_merge(const struct ad_local_environment *environment,
					const char *const *extra, const char *const *wanted);

/* ---- receipt */

/* The lines of limits, of the end of the tree and of the environment. */
void ad_local_report(agentd_task *task, const struct agentd_limits *limits,
		     const struct ad_launch_receipt *receipt);
/* What this machine allows of them, for a probe. */
void ad_local_report_best(agentd_backend_report *report, const struct ad_launch_receipt *best);
/* Which resource limits a command has. */
void ad_local_put_rlimits(struct ad_buf *text, const struct agentd_limits *limits);
void ad_local_put_ids(struct ad_buf *text, const struct ad_launch_receipt *receipt);

/* ---- backends */

struct ad_local_kind {
	/* Lines of the receipt besides those of ad_local_report(). */
	void (*report)(agentd_task *task, const agentd_spec *spec,
		       const struct agentd_limits *limits, const struct ad_launch_receipt *receipt);
	/* The same for a probe. */
	void (*report_best)(agentd_backend_report *report, const struct ad_launch_receipt *best);
	/* The start failed: the error to pass on, for err or instead of it. */
	agentd_error *(*explain)(const agentd_spec *spec, const struct ad_launch_failure *failure,
				 agentd_error *err);
	/* The sandbox stopped something; see struct ad_job_events. */
	void (*denied)(agentd_task *task, const char *kind, const char *target);
};

/* First member of a backend's own struct, so that the members of struct
 * agentd_backend_ops below fit it. */
struct ad_local {
	const struct ad_local_kind *kind;
	struct ad_launcher *launcher;
	struct ad_launcher_watch watch;
	agentd_backend_report *report; /* until the probe is over */
	struct ad_local_environment environment;
};

/* AGENTD_ERR_NOMEM or 0. launcher outlives every start; what was given up may be cleared
 * and freed after it. */
int ad_local_init(struct ad_local *local, const struct ad_local_kind *kind,
		  struct ad_launcher *launcher, const struct ad_local_default *defaults,
		  size_t count);
void ad_local_clear(struct ad_local *local);
/* What a command in a session finds there, instead of a sandbox of its own. */
struct ad_local_session {
	const struct ad_job *job; /* that it runs in */
	int network;              /* listening socket that its proxy is to serve, or -1 */
};
/* Start the command of spec; for task_start. extra: see ad_local_environment_merge().
 * session: or NULL. */
int32_t ad_local_task_start(struct ad_local *local, agentd_task *task, const agentd_spec *spec,
			    const struct ad_launch_sandbox *sandbox,
			    const struct ad_local_session *session, const char *const *extra,
			    void **ret_state, agentd_error **reterr);
/* What a specification says of limits, as a request. */
void ad_local_fill_limits(const agentd_spec *spec, struct ad_launch_request *ret);

int32_t ad_local_probe_start(void *self, agentd_backend_report *report);
int32_t ad_local_task_kill(void *state);
int32_t ad_local_task_signal(void *state, int32_t signo);
void ad_local_task_free(void *state);
int32_t ad_local_task_write(void *state, const uint8_t *data, size_t len, size_t *ret_taken);
int32_t ad_local_task_close_stdin(void *state);

#endif
