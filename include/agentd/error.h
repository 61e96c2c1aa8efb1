/* SPDX-License-Identifier: MIT */
/** @file
 * Result codes and the error object.
 *
 * Every function that can fail returns int: 0 or more is success, less is one
 * of the codes below. They say what the *library* could not do; how a command
 * ended is never an error, it is in agentd_result. errno is left as it was.
 *
 * A function's last parameter `agentd_error **reterr` may be NULL. On failure
 * it receives a new reference, which the caller unrefs; on success it is left
 * untouched. Output parameters are written on success only.
 */
#ifndef AGENTD_ERROR_H
#define AGENTD_ERROR_H

#include <agentd/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Codes. New codes may be added: treat an unknown negative value as
 * AGENTD_ERR_INTERNAL. */
enum {
	AGENTD_OK = 0,
	AGENTD_ERR_INVALID = -1,     /**< argument or JSON malformed */
	AGENTD_ERR_NOMEM = -2,       /**< out of memory */
	AGENTD_ERR_STATE = -3,       /**< not valid now: frozen, finished, closed */
	AGENTD_ERR_REENTRANT = -4,   /**< not allowed from inside this callback */
	AGENTD_ERR_DENIED = -5,      /**< the policy refused; nothing was run */
	AGENTD_ERR_UNSUPPORTED = -6, /**< kernel or backend lacks a needed feature */
	AGENTD_ERR_NOTFOUND = -7,    /**< no such backend, key, file, value */
	AGENTD_ERR_LIMIT = -8,       /**< a library quota is used up */
	AGENTD_ERR_AGAIN = -9,       /**< buffer full: retry after stdin_drained */
	AGENTD_ERR_TIMEOUT = -10,    /**< set-up did not finish in time */
	AGENTD_ERR_CANCELED = -11,   /**< cancelled before it started */
	AGENTD_ERR_SYSTEM = -12,     /**< a system call failed: see os_errno */
	AGENTD_ERR_BACKEND = -13,    /**< the isolation backend failed */
	AGENTD_ERR_PROTOCOL = -14,   /**< a helper or guest sent something malformed */
	AGENTD_ERR_ABI = -15,        /**< size, abi or non-zero unknown tail bytes */
	AGENTD_ERR_USER = -16,       /**< never from the library: for callbacks */
	AGENTD_ERR_INTERNAL = -17    /**< a bug here; please report */
};

/** Short English name of a code. Static storage; never NULL. [any thread] */
AGENTD_API const char *agentd_strerror(int code);

/** Take another reference; returns err. [any thread] */
AGENTD_API agentd_error *agentd_error_ref(agentd_error *err);
/** Drop a reference; the last one frees it. [any thread] */
AGENTD_API void agentd_error_unref(agentd_error *err);
/** The AGENTD_ERR_* code; 0 for NULL. [any thread] */
AGENTD_API int agentd_error_code(const agentd_error *err);
/** errno of the failed system call, or 0. [any thread] */
AGENTD_API int agentd_error_os_errno(const agentd_error *err);
/** One line, no trailing newline, no secrets. Borrowed from err; never NULL.
 *  [any thread] */
AGENTD_API const char *agentd_error_message(const agentd_error *err);
/** JSON pointer (RFC 6901) of the offending input, "/limits/mem_bytes", or "".
 *  Borrowed from err; never NULL. [any thread] */
AGENTD_API const char *agentd_error_pointer(const agentd_error *err);

#ifdef __cplusplus
}
#endif

#endif
