/* SPDX-License-Identifier: MIT */
/** @file
 * Types every other header uses: visibility, handles, streams, memory.
 */
#ifndef AGENTD_BASE_H
#define AGENTD_BASE_H

/* With AGENTD_FFI_CDEF defined every attribute vanishes, and the standard headers
 * too (cffi knows their types), so that `cc -E -P -DAGENTD_FFI_CDEF` feeds cffi. */
#if defined(AGENTD_FFI_CDEF)
#define AGENTD_API
#define AGENTD_NODISCARD
#else
#include <stddef.h>
#include <stdint.h>
/** Exported by the library. */
#define AGENTD_API __attribute__((__visibility__("default")))
/** The result says whether it worked, and must be looked at. */
#define AGENTD_NODISCARD __attribute__((__warn_unused_result__))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** libevent's; this library only ever borrows it. */
struct event_base;

/** @name Opaque handles
 * Reference counted: ref and unref are atomic, take NULL, and
 * may be called in any order, in any callback and on any thread (finalizers):
 * tear-down that needs the loop is then posted to it. Everything else belongs
 * to the thread that runs the event base, unless marked [any thread].
 * @{ */
typedef struct agentd_error agentd_error;     /**< see agentd/error.h */
typedef struct agentd_runner agentd_runner;   /**< see agentd/runner.h */
typedef struct agentd_context agentd_context; /**< see agentd/context.h */
typedef struct agentd_params agentd_params;   /**< see agentd/params.h */
typedef struct agentd_policy agentd_policy;   /**< see agentd/policy.h */
typedef struct agentd_sink agentd_sink;       /**< see agentd/sink.h */
typedef struct agentd_exec agentd_exec;       /**< see agentd/exec.h */
typedef struct agentd_result agentd_result;   /**< see agentd/result.h */
typedef struct agentd_loop agentd_loop;       /**< see agentd/loop.h */
typedef struct agentd_pool agentd_pool;       /**< see agentd/pool.h */
/** @} */

/* Enumerations cross the ABI as int32_t; the enum only names the values.
 * Values are never renumbered or reused; callers must accept unknown ones. */

/** A standard stream of a command, by its descriptor number. */
typedef int32_t agentd_stream;
/** The streams. */
enum { AGENTD_STDIN = 0, AGENTD_STDOUT = 1, AGENTD_STDERR = 2 };

/** Called once, on the loop thread or in the last unref, when userdata is no
 *  longer reachable by the library. */
typedef void (*agentd_destroy_fn)(void *userdata);

/** Free memory that a function returned through a `char **ret` parameter and
 *  said to free here. NULL is a no-op. [any thread] */
AGENTD_API void agentd_free(void *ptr);

#ifdef __cplusplus
}
#endif

#endif
