/* SPDX-License-Identifier: MIT */
/* Persistent sessions: who may use which, when they are started and stopped, and what
 * becomes of their files. Implements agentd/pool.h but for agentd_pool_new(), which needs
 * a runner. */
#ifndef AD_POOL_H
#define AD_POOL_H

#include <stdbool.h>

#include <agentd/pool.h>

#include "backend/backend.h"
#include "loop/loop.h"
#include "util/util.h"

struct ad_launcher;

/* What the pool has of the runner, until ad_pool_detach_all(). */
struct ad_pool_host {
	struct ad_loop *loop;
	struct ad_registry *registry;
	struct ad_launcher *launcher;
	char *worker; /* path of agentd-backup; the pool frees it */
	/* For the runner's log. session may be NULL, and so may error. */
	void (*log)(int32_t level, const char *message, const char *session, const char *error,
		    void *userdata);
	/* From one to the other the runner does not go. */
	void (*pin)(void *userdata);
	void (*unpin)(void *userdata);
	/* Whether what is the loop's may go here, or has to be posted. [any thread] */
	bool (*on_loop)(void *userdata);
	/* Then: have ad_pool_free_dropped() called on the loop. [any thread] */
	void (*wake)(void *userdata);
	void *userdata;
};

/* Takes host->worker, also on failure. pools: those of the runner, to which it is added. */
int ad_pool_new(const struct ad_pool_host *host, struct ad_list *pools, const char *config,
		size_t len, agentd_pool **ret, agentd_error **reterr);
/* Those whose last reference was given up where they could not go. */
void ad_pool_free_dropped(struct ad_list *pools);
/* The runner is about to go: sessions are killed at once, nothing of it is used after. */
void ad_pool_detach_all(struct ad_list *pools);
/* Stop all sessions; nothing is started any more. done is called as each pool is over;
 * false: all are. */
bool ad_pool_shutdown_all(struct ad_list *pools, uint32_t grace_ms, void (*done)(void *userdata),
			  void *userdata);

/* Whether it was made with that host, which still is there. */
bool ad_pool_is_of(const agentd_pool *pool, const void *userdata);
bool ad_pool_enabled(const agentd_pool *pool);
/* Whether a session that cannot be had may be replaced by an ephemeral sandbox. */
bool ad_pool_fallback(const agentd_pool *pool);
const char *ad_pool_backend(const agentd_pool *pool);
/* The shell with its arguments, NULL-terminated. */
const char *const *ad_pool_shell(const agentd_pool *pool);
/* Name and value in turn, NULL-terminated. */
const char *const *ad_pool_env(const agentd_pool *pool);
const char *ad_pool_options(const agentd_pool *pool);
/* Where the files of that session are; malloc'ed, NULL: out of memory. */
char *ad_pool_volume(const agentd_pool *pool, const char *id);
/* A UUID in the usual form, in lower case. */
bool ad_pool_id_valid(const char *id);
enum { AD_POOL_ID_SIZE = 37 };
/* In lower case, so that it is one session however it is written. False: no UUID. */
bool ad_pool_id_fold(const char *id, char ret[static AD_POOL_ID_SIZE]);

/* ---- the use of a session by one command */

struct ad_pool_lease {
	struct ad_list link;
	struct ad_pool_entry *entry; /* NULL: not in use */
	const agentd_spec *spec;     /* for starting the session, until granted */
	/* From the loop, once: session to give to the command, or an error (owned). */
	void (*granted)(struct ad_pool_lease *lease, void *session, agentd_error *err);
	/* The session is about to go, and what ad_pool_give_up() said of goes before it. */
	void (*gone)(struct ad_pool_lease *lease);
	struct ad_timer timer; /* acquire_timeout_ms */
	uint64_t until;        /* when they are over */
};

/* lease->spec, granted, gone are set; the spec stays until then. An error, or granted follows
 * unless the lease is released first. */
int ad_pool_acquire(agentd_pool *pool, struct ad_pool_lease *lease, const char *id,
		    agentd_error **reterr);
/* What was granted is gone and the command has not begun: it is the first to have the session
 * that is started in its place, within the same acquire_timeout_ms. As ad_pool_acquire(). */
int ad_pool_acquire_again(struct ad_pool_lease *lease, agentd_error **reterr);
/* The command is over, or no longer wants it. broken: it has not ended, and the session is
 * killed for it. Idempotent. */
void ad_pool_release(struct ad_pool_lease *lease, bool broken);
/* The command does not end: the session is killed for it, and gone() follows unless the lease is
 * released first. */
void ad_pool_give_up(struct ad_pool_lease *lease);

#endif
