/* SPDX-License-Identifier: MIT */
/* The library's side of agentd/backend.h: registry of backends, tasks and specs.
 * Implements every agentd_spec_*, agentd_task_* and agentd_backend_report_*. */
#ifndef AD_BACKEND_H
#define AD_BACKEND_H

#include <stdbool.h>

#include <agentd/backend.h>
#include <agentd/error.h>
#include <agentd/policy.h>
#include <agentd/sink.h>

#include "util/util.h"

struct event_base;

/* ---- specifications: plain data, filled by core, owned by the execution */

struct ad_spec_mount {
	const char *source, *target;
	const char *pointer; /* "" or where its JSON names it */
	uint32_t access;
};

struct agentd_spec {
	const char *const *argv;
	const char *const *env;
	const char *workdir, *rootfs;
	uint32_t workdir_access; /* AGENTD_ACCESS_* */
	uint32_t flags;          /* AGENTD_EXEC_* */
	uint32_t grace_ms;
	int32_t log_level;
	int32_t net;
	int netns, credentials_fd;
	struct agentd_limits limits;
	uint32_t limits_requested; /* bit per ad_limit_descs index */
	struct ad_spec_mount *mounts;
	size_t mount_count;
	agentd_policy *policy[2];                  /* runner's and context's; references */
	const char *session_id, *volume, *options; /* or NULL */
	void *session;                             /* a command's: the backend's state */
};

/* A specification that outlives what it was copied from; without argv and without
 * credentials. */
struct ad_spec_copy {
	agentd_spec spec;
	struct ad_strlist texts;
	const char **env;
};
int ad_spec_copy(struct ad_spec_copy *ret, const agentd_spec *from, agentd_error **reterr);
void ad_spec_copy_free(struct ad_spec_copy *copy); /* also one that was zeroed */
/* agentd_spec_protection() of the layer with this index in ad_policy_layers. */
int32_t ad_spec_protection(const agentd_spec *spec, int layer);
/* Whether an allow rule is about just this name or address, in whatever ports. */
bool ad_spec_names_host(const agentd_spec *spec, const char *host);

enum { AD_TASK_OUTPUT_MAX = 262144 }; /* most that a sink gets at once */

/* ---- tasks: what a backend reports, checked here, passed on to core. */

/* Who does not want to hear of something has NULL there, but for started, closed, failed, and
 * closed_late of who gives tasks up. */
struct ad_task_listener {
	void (*started)(agentd_task *task, int32_t pid);
	int32_t (*output)(agentd_task *task, agentd_stream stream, const uint8_t *data, size_t len);
	void (*stdin_drained)(agentd_task *task);
	void (*metric)(agentd_task *task, int32_t metric, uint64_t value);
	int (*attach_fd)(agentd_task *task, agentd_stream stream, int fd); /* owns fd */
	int (*attach_net)(agentd_task *task, int fd);                      /* owns fd */
	int (*attach_net_client)(agentd_task *task, int fd);               /* owns fd */
	void (*protection)(agentd_task *task, const char *layer, int32_t state, const char *reason);
	void (*denied)(agentd_task *task, const char *kind, const char *target, const char *rule,
		       const char *remedy);
	void (*limit_hit)(agentd_task *task, const char *limit, bool fatal);
	void (*exited)(agentd_task *task, int wait_status, uint64_t at_ns);
	void (*closed)(agentd_task *task);
	void (*failed)(agentd_task *task, agentd_error *err); /* owns err, never NULL */
	void (*log)(agentd_task *task, int32_t level, const char *message);
	void (*closed_late)(agentd_task *task); /* after ad_task_give_up() */
};

/* Embedded in the execution. Enforces the rules of agentd/backend.h on the
 * backend: what comes out of order is dropped and counted as a protocol error. */
struct agentd_task {
	const struct ad_task_listener *listener;
	struct ad_backend *backend;
	void *state;  /* the backend's; valid while running */
	bool session; /* it is one, see agentd_backend_ops.session_start */
	bool running, started, exited, closed, given_up;
	/* Inside task_start there is no state yet: what is asked for meanwhile. */
	bool starting, kill_wanted, close_wanted, drain_wanted, pause_wanted[2];
	int32_t signal_wanted;
};

/* ---- backends of one runner */

enum ad_backend_probe { AD_PROBE_PENDING, AD_PROBE_USABLE, AD_PROBE_UNUSABLE };

struct ad_backend_layer {
	char *layer, *reason;
	int32_t state;
};

/* Embedded in the backend, so that a second report_done() is harmless. */
struct agentd_backend_report {
	struct ad_backend *backend;
};

struct ad_backend {
	struct ad_list link;
	/* Ours: members the backend lacks are NULL, times it does not say are the defaults. */
	struct agentd_backend_ops ops;
	char *name;
	struct ad_strlist aliases;
	void *self;
	struct ad_registry *registry; /* NULL: closed, and kept for its tasks only */
	uint32_t tasks;               /* not released yet */
	struct agentd_backend_report report;
	enum ad_backend_probe probe;
	agentd_error *probe_error;
	struct ad_backend_layer *layers;
	size_t layer_count;
};

struct ad_registry {
	struct ad_list backends; /* in the order added */
	/* A probe ended: executions that waited for it may go on. */
	void (*probed)(struct ad_backend *backend, void *userdata);
	void *userdata;
};

void ad_registry_init(struct ad_registry *registry,
		      void (*probed)(struct ad_backend *backend, void *userdata), void *userdata);
/* Checks ops, copies it, opens the backend and starts its probe. */
int ad_registry_add(struct ad_registry *registry, const struct agentd_backend_ops *ops,
		    void *userdata, struct event_base *base, agentd_error **reterr);
/* Closes and frees all, each as soon as it has no task left. */
void ad_registry_close(struct ad_registry *registry);
/* A task holds one from ad_task_start() until ad_task_release(). */
void ad_backend_ref(struct ad_backend *backend);
void ad_backend_unref(struct ad_backend *backend);
/* Name normalised for comparison: trimmed, lower case, '_' as '-'; malloc'ed. */
char *ad_backend_normalize(const char *name);
/* By name or alias, normalised. AGENTD_ERR_NOTFOUND, AGENTD_ERR_NOMEM. */
int ad_registry_find(const struct ad_registry *registry, const char *name, struct ad_backend **ret);

/* Start task on backend; on failure the task is not running and nothing follows. */
int ad_task_start(agentd_task *task, struct ad_backend *backend,
		  const struct ad_task_listener *listener, const agentd_spec *spec,
		  agentd_error **reterr);
/* The same for a session, of a backend that has them. */
int ad_session_start(agentd_task *task, struct ad_backend *backend,
		     const struct ad_task_listener *listener, const agentd_spec *spec,
		     agentd_error **reterr);
/* What was started without a volume becomes the session of task. On failure it is what it was,
 * and task is not running. */
int ad_session_adopt(agentd_task *task, agentd_task *spare, const struct ad_task_listener *listener,
		     const agentd_spec *spec, agentd_error **reterr);
int ad_session_stop(agentd_task *task, uint32_t grace_ms);
int ad_task_kill(agentd_task *task);
int ad_task_signal(agentd_task *task, int32_t signo); /* AGENTD_ERR_UNSUPPORTED if it cannot */
int ad_task_write(agentd_task *task, const uint8_t *data, size_t len, size_t *ret_taken);
int ad_task_close_stdin(agentd_task *task);
int ad_task_set_paused(agentd_task *task, agentd_stream stream, bool paused);
/* It does not end although it was killed: hear nothing more of it but its end. */
void ad_task_give_up(agentd_task *task);
/* After closed or failed, from the loop: the backend frees its half. */
void ad_task_release(agentd_task *task);
/* As if the backend had ended it: it frees its half, and kills it. */
void ad_task_abandon(agentd_task *task);

#endif
