/* SPDX-License-Identifier: MIT */
/** @file
 * One running command.
 */
#ifndef AGENTD_EXEC_H
#define AGENTD_EXEC_H

#include <agentd/base.h>
#include <agentd/limits.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Flags of struct agentd_exec_opts, or'ed together. */
enum {
	AGENTD_EXEC_STDIN_OPEN = 1,    /**< else stdin is /dev/null */
	AGENTD_EXEC_MERGE_STDERR = 2,  /**< stderr into stdout, in the order written */
	AGENTD_EXEC_KILL_ON_OUTPUT = 4 /**< else what exceeds output_bytes is dropped, counted */
};

/** How far an execution is: agentd_exec_state(). */
enum {
	AGENTD_STATE_QUEUED = 0,
	AGENTD_STATE_STARTING = 1,
	AGENTD_STATE_RUNNING = 2,
	AGENTD_STATE_STOPPING = 3,
	AGENTD_STATE_FINISHED = 4
};

/** Zero means "default" in every member. */
struct agentd_exec_opts {
	uint32_t size;                      /**< sizeof(struct agentd_exec_opts) */
	uint32_t flags;                     /**< AGENTD_EXEC_* */
	const struct agentd_limits *limits; /**< lower still; NULL: the context's */
	uint32_t grace_ms;                  /**< SIGTERM to SIGKILL; 0: 2000 */
	uint32_t reserved0;                 /**< must be 0 */
};

/** Start ctx/params, output to sink (NULL: discard). opts may be NULL. Returns
 *  before anything has run and before any callback: on failure no callback is
 *  ever made, on success `finished` always is. ret may be NULL if the caller
 *  needs no handle. A refusal by policy or isolation is not a failure here but a
 *  result with status denied.
 *
 *  Errors: INVALID, NOTFOUND (no such backend), LIMIT (max_running + max_queued
 *  reached), STATE (shutting down), NOMEM. */
AGENTD_API int agentd_exec_start(agentd_runner *runner, agentd_context *ctx, agentd_params *params,
				 agentd_sink *sink, const struct agentd_exec_opts *opts,
				 agentd_exec **ret, agentd_error **reterr) AGENTD_NODISCARD;
/** Take another reference; returns exec. [any thread] */
AGENTD_API agentd_exec *agentd_exec_ref(agentd_exec *exec);
/** Dropping the last reference does not stop the command: the runner keeps it
 *  until it has finished. Cancel first to stop it. [any thread] */
AGENTD_API void agentd_exec_unref(agentd_exec *exec);
/** Ask it to end: SIGTERM to its process group, grace, SIGKILL of the whole tree.
 *  Idempotent; 0 also when already finished. The outcome comes through
 *  `finished`. [any thread] */
AGENTD_API int agentd_exec_cancel(agentd_exec *exec);
/** End it now, without grace: SIGKILL of the whole tree. [any thread] */
AGENTD_API int agentd_exec_kill(agentd_exec *exec);
/** Deliver a Linux signal number to the command's process group.
 *  AGENTD_ERR_STATE before it runs and after it ended. */
AGENTD_API int agentd_exec_signal(agentd_exec *exec, int32_t signo, agentd_error **reterr);
/** Offer bytes for stdin. Takes what fits (*ret_taken, may be short of len);
 *  AGENTD_ERR_AGAIN if none does: stdin_drained says when to go on.
 *  AGENTD_ERR_STATE when stdin is not open or the reader is gone. */
AGENTD_API int agentd_exec_write(agentd_exec *exec, const uint8_t *data, size_t len,
				 size_t *ret_taken);
/** End of input after what was taken. Idempotent. */
AGENTD_API int agentd_exec_close_stdin(agentd_exec *exec);
/** Go on after AGENTD_SINK_PAUSE. 0 also when it was not paused or is over. */
AGENTD_API int agentd_exec_resume(agentd_exec *exec, agentd_stream stream);
/** AGENTD_STATE_*. */
AGENTD_API int32_t agentd_exec_state(const agentd_exec *exec);
/** Unique in this process, printable, also a field of every log record.
 *  Borrowed. */
AGENTD_API const char *agentd_exec_id(const agentd_exec *exec);
/** Borrowed; NULL until FINISHED. */
AGENTD_API agentd_result *agentd_exec_result(const agentd_exec *exec);

#ifdef __cplusplus
}
#endif

#endif
