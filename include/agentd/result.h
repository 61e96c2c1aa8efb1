/* SPDX-License-Identifier: MIT */
/** @file
 * How a command ended. Two questions, two answers: the status is what callers
 * switch on, the cause says exactly why. Immutable once it exists; everything
 * here may be called from any thread.
 */
#ifndef AGENTD_RESULT_H
#define AGENTD_RESULT_H

#include <agentd/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** AGENTD_STATUS_*. */
typedef int32_t agentd_status;
/** What callers switch on. */
enum {
	AGENTD_STATUS_OK = 0,      /**< exit code 0 */
	AGENTD_STATUS_ERROR = 1,   /**< non-zero exit, died of a signal not ours, or
				    *   could not be started */
	AGENTD_STATUS_DENIED = 2,  /**< refused by policy or isolation: nothing was run */
	AGENTD_STATUS_TIMEOUT = 3, /**< wall-clock or idle limit; never when the command
				    *   was reaped before the limit */
	AGENTD_STATUS_KILLED = 4   /**< stopped by this library for another cause */
};

/** Why it ended. */
enum {
	AGENTD_CAUSE_EXITED = 1,        /**< by itself, with an exit code */
	AGENTD_CAUSE_SIGNALED = 2,      /**< by a signal that was not ours */
	AGENTD_CAUSE_TIMEOUT = 3,       /**< limits.timeout_ms or params' timeout_ms */
	AGENTD_CAUSE_IDLE_TIMEOUT = 4,  /**< limits.idle_timeout_ms */
	AGENTD_CAUSE_CPU_TIME = 5,      /**< limits.cpu_time_ms */
	AGENTD_CAUSE_MEMORY = 6,        /**< limits.mem_bytes */
	AGENTD_CAUSE_PIDS = 7,          /**< limits.pids_max */
	AGENTD_CAUSE_IO = 8,            /**< limits.io_bytes */
	AGENTD_CAUSE_OUTPUT = 9,        /**< limits.output_bytes, with KILL_ON_OUTPUT */
	AGENTD_CAUSE_CANCELED = 10,     /**< agentd_exec_cancel(), or the runner went away */
	AGENTD_CAUSE_SINK = 11,         /**< a callback failed */
	AGENTD_CAUSE_VIOLATION = 12,    /**< killed by the system call filter */
	AGENTD_CAUSE_POLICY = 13,       /**< refused before it started */
	AGENTD_CAUSE_ISOLATION = 14,    /**< the required isolation is not to be had */
	AGENTD_CAUSE_SPAWN = 15,        /**< could not be started: see the error */
	AGENTD_CAUSE_BACKEND_LOST = 16, /**< VMM or helper died under it */
	AGENTD_CAUSE_FILE_SIZE = 17     /**< limits.file_bytes, by SIGXFSZ */
};

/** What is measured: agentd_result_metric(). */
enum {
	AGENTD_METRIC_WALL_NS = 1,           /**< CLOCK_MONOTONIC, to its exit from when its turn
					      *   came: limits.timeout_ms begins later, when
					      *   it runs */
	AGENTD_METRIC_CPU_NS = 2,            /**< user + system time of the whole tree */
	AGENTD_METRIC_MEMORY_PEAK_BYTES = 3, /**< of the tree with a cgroup, else the largest
					      *   process (getrusage(2) ru_maxrss) */
	AGENTD_METRIC_STDOUT_BYTES = 4,      /**< produced */
	AGENTD_METRIC_STDERR_BYTES = 5,      /**< produced */
	AGENTD_METRIC_DROPPED_BYTES = 6,     /**< produced, not delivered */
	AGENTD_METRIC_STARTUP_NS = 7,        /**< from agentd_exec_start() to started */
	/* Only with a network of allowed hosts: */
	AGENTD_METRIC_NET_CONNECTIONS = 8,    /**< made to a host */
	AGENTD_METRIC_NET_SENT_BYTES = 9,     /**< by the command */
	AGENTD_METRIC_NET_RECEIVED_BYTES = 10 /**< by the command */
};

/** State of one layer in the receipt. */
enum { AGENTD_LAYER_ABSENT = -1, AGENTD_LAYER_DEGRADED = 0, AGENTD_LAYER_ENFORCED = 1 };

/** Take another reference; returns result. */
AGENTD_API agentd_result *agentd_result_ref(agentd_result *result);
/** Drop a reference; the last one frees it. */
AGENTD_API void agentd_result_unref(agentd_result *result);
/** AGENTD_STATUS_*. */
AGENTD_API agentd_status agentd_result_status(const agentd_result *result);
/** AGENTD_CAUSE_*. */
AGENTD_API int32_t agentd_result_cause(const agentd_result *result);
/** Wire name: "ok", "error", "denied", "timeout", "killed"; "unknown" for a
 *  value this library does not know. Static storage. */
AGENTD_API const char *agentd_status_name(agentd_status status);
/** Wire name in lower case: "exited", "timeout", "memory", ...; "unknown" for a
 *  value this library does not know. Static storage. */
AGENTD_API const char *agentd_cause_name(int32_t cause);
/** Backend that ran it ("host"), or "" when none did. Borrowed. */
AGENTD_API const char *agentd_result_backend(const agentd_result *result);
/** 0..255, or -1 when the cause is not EXITED. */
AGENTD_API int32_t agentd_result_exit_code(const agentd_result *result);
/** Linux signal number that ended the command, or 0. */
AGENTD_API int32_t agentd_result_signal(const agentd_result *result);
/** Name of the limit that was hit ("mem_bytes"), also when the command survived
 *  it ("pids_max": forks failed), or "". Borrowed. */
AGENTD_API const char *agentd_result_limit(const agentd_result *result);
/** 1 if output was produced and not delivered. */
AGENTD_API int32_t agentd_result_truncated(const agentd_result *result);
/** What could not be done (causes SPAWN, POLICY, ISOLATION, BACKEND_LOST, SINK, and
 *  CANCELED if it had not started: AGENTD_ERR_CANCELED), else NULL. Borrowed. */
AGENTD_API const agentd_error *agentd_result_error(const agentd_result *result);
/** Read AGENTD_METRIC_*. AGENTD_ERR_NOTFOUND if unknown or not measured; *ret is
 *  then untouched. */
AGENTD_API int agentd_result_metric(const agentd_result *result, int32_t metric, uint64_t *ret);
/** The receipt: number of layers. */
AGENTD_API size_t agentd_result_protection_count(const agentd_result *result);
/** One layer of the receipt: its name, AGENTD_LAYER_*, and how or why. Strings
 *  are borrowed; each output parameter may be NULL. AGENTD_ERR_NOTFOUND past the
 *  end. */
AGENTD_API int agentd_result_protection_at(const agentd_result *result, size_t i,
					   const char **ret_layer, int32_t *ret_state,
					   const char **ret_reason);
/** As JSON; docs/result.schema.json has the format. Free *ret with agentd_free();
 *  ret_len may be NULL. */
AGENTD_API int agentd_result_to_json(const agentd_result *result, char **ret, size_t *ret_len,
				     agentd_error **reterr);

#ifdef __cplusplus
}
#endif

#endif
