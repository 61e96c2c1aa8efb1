/* SPDX-License-Identifier: MIT */
/** @file
 * Resource limits: plain numbers, so a plain struct.
 */
#ifndef AGENTD_LIMITS_H
#define AGENTD_LIMITS_H

#include <agentd/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** In every member 0 means "not set" (inherit) and the type's maximum means
 *  "explicitly unlimited", which holds only where the policy says so too. The
 *  effective limit is the least of runner policy, context policy, context and
 *  exec options; a limit can be lowered on that way, never raised. What nobody
 *  set has a roomy default: 512 tasks, half of the machine's memory, 64 MiB of
 *  delivered output, and in a sandbox 2 GiB for one file. The effective timeout
 *  is also bounded by the parameters' timeout_ms. */
struct agentd_limits {
	uint32_t size;             /**< sizeof(struct agentd_limits) */
	uint32_t pids_max;         /**< tasks (threads count) alive at once in the tree */
	uint64_t timeout_ms;       /**< CLOCK_MONOTONIC, from started() to the exit */
	uint64_t idle_timeout_ms;  /**< no output and no stdin for this long */
	uint64_t cpu_time_ms;      /**< user + system CPU time of the whole tree */
	uint64_t mem_bytes;        /**< memory of the whole tree */
	uint64_t io_bytes;         /**< written to storage by the whole tree */
	uint64_t output_bytes;     /**< delivered to the sink, both streams together */
	uint64_t file_bytes;       /**< largest single file (RLIMIT_FSIZE) */
	uint32_t cpu_ms_per_100ms; /**< CPU bandwidth: 100 = one whole CPU */
	uint32_t open_files_max;   /**< descriptors per process (RLIMIT_NOFILE) */
	uint64_t net_bytes;        /**< to and from the hosts of the network mode "allow" */
};

/** Zero *limits and set its size. `size` is the caller's sizeof: the library
 *  never writes past it, whichever of the two is older. NULL or a size below 8
 *  does nothing. [any thread] */
AGENTD_API void agentd_limits_init(struct agentd_limits *limits, uint32_t size);

#ifdef __cplusplus
}
#endif

#endif
