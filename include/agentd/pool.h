/* SPDX-License-Identifier: MIT */
/** @file
 * Persistent sessions: one sandbox of the pool's backend per session id, with files that
 * outlive it. One command at a time per session, first come, first served; sessions run
 * side by side. Idle ones are shut down, their files backed up and at last pruned; the
 * next command starts them again on the same files.
 *
 * A context names its session with agentd_context_set_session(). Sessions belong to the
 * runner's pool: see agentd_runner_set_pool().
 */
#ifndef AGENTD_POOL_H
#define AGENTD_POOL_H

#include <agentd/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** err: NULL if it went well; valid during the call, as pool is. Called once, on the
 *  loop, unless the runner goes before. */
typedef void (*agentd_pool_fn)(agentd_pool *pool, const agentd_error *err, void *userdata);

/** A pool for this runner, which it does not keep alive; when the runner goes, the
 *  sessions go with it, and the pool can do no more than be freed.
 *
 *  config: JSON, len bytes, see agentd_pool(5); an unknown member is an error. Volumes
 *  that an earlier process left below volume_root are adopted. Nothing is started.
 *
 *  Unless prune_after_seconds says otherwise, the files of a session that was not used for
 *  an hour (3600) are removed; they are backed up before only with a backup_destination. */
AGENTD_API int agentd_pool_new(agentd_runner *runner, const char *config, size_t len,
			       agentd_pool **ret, agentd_error **reterr) AGENTD_NODISCARD;
/** [any thread] */
AGENTD_API agentd_pool *agentd_pool_ref(agentd_pool *pool);
/** With the last one its sessions are killed; their files stay. To end them gracefully
 *  stop them first, or shut the runner down. [any thread] */
AGENTD_API void agentd_pool_unref(agentd_pool *pool);
/** One maintenance pass now, which else comes every minute: idle sessions are stopped,
 *  stopped ones backed up and pruned as the configuration says. Never touches a busy one.
 *  done (may be NULL): what the pass began has ended; err is the first failure.
 *  AGENTD_ERR_STATE: the runner is gone. */
AGENTD_API int agentd_pool_maintain(agentd_pool *pool, agentd_pool_fn done, void *userdata);
/** Shut one session down, when its command (if any) has ended; its files stay. The id may be
 *  in upper case. done (may be NULL) is called when it has, also if it did not run at all.
 *  AGENTD_ERR_NOTFOUND: the pool has no such session. */
AGENTD_API int agentd_pool_stop(agentd_pool *pool, const char *session_id, agentd_pool_fn done,
				void *userdata);
/** The pool as JSON: enabled, backend, and of each session id, state, and how long it has
 *  not been used. Free *ret with agentd_free(). */
AGENTD_API int agentd_pool_to_json(const agentd_pool *pool, char **ret, size_t *ret_len,
				   agentd_error **reterr);

#ifdef __cplusplus
}
#endif

#endif
