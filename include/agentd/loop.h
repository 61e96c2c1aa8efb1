/* SPDX-License-Identifier: MIT */
/** @file
 * For hosts without libevent of their own (ctypes, cffi, Rust threads): a base
 * the library owns. C hosts with a base do not need this header.
 */
#ifndef AGENTD_LOOP_H
#define AGENTD_LOOP_H

#include <agentd/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** A loop with a base of its own. */
AGENTD_API int agentd_loop_new(agentd_loop **ret, agentd_error **reterr) AGENTD_NODISCARD;
/** Take another reference; returns loop. [any thread] */
AGENTD_API agentd_loop *agentd_loop_ref(agentd_loop *loop);
/** Drop a reference; the last one frees the base: runners on it must be gone. */
AGENTD_API void agentd_loop_unref(agentd_loop *loop);
/** The base, for agentd_runner_opts. Borrowed. */
AGENTD_API struct event_base *agentd_loop_event_base(agentd_loop *loop);
/** Run callbacks until timeout_ms passed (-1: no limit, 0: only what is ready)
 *  or wakeup. Returns 1 if woken, 0 on time-out, or an error; AGENTD_ERR_REENTRANT
 *  from inside a callback. */
AGENTD_API int agentd_loop_run(agentd_loop *loop, int64_t timeout_ms, agentd_error **reterr);
/** Run until exec has finished. Returns 1 when it has, 0 on time-out, or an
 *  error; AGENTD_ERR_REENTRANT from inside a callback. */
AGENTD_API int agentd_loop_run_until(agentd_loop *loop, agentd_exec *exec, int64_t timeout_ms,
				     agentd_error **reterr);
/** Make the current or next agentd_loop_run() return. [any thread] */
AGENTD_API int agentd_loop_wakeup(agentd_loop *loop);

#ifdef __cplusplus
}
#endif

#endif
