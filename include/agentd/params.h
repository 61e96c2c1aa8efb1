/* SPDX-License-Identifier: MIT */
/** @file
 * What to run: the untrusted part, usually a model's tool call.
 *
 * Parsed and checked once, then immutable and shareable between threads.
 */
#ifndef AGENTD_PARAMS_H
#define AGENTD_PARAMS_H

#include <agentd/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** From JSON, UTF-8 bytes with a length (no NUL needed); agentd_params(5) has
 *  the format: `command` (string, required), `timeout_ms` (0..2^64-1, default
 *  30000). Unknown keys are ignored. Refused with AGENTD_ERR_INVALID: duplicate
 *  keys, more than 1 MiB of text, 64 levels, 10,000 keys or 4 KiB in one key.
 *  Policy and context JSON come from the host: there unknown keys are errors
 *  too. [any thread] */
AGENTD_API int agentd_params_parse(const char *json, size_t len, agentd_params **ret,
				   agentd_error **reterr) AGENTD_NODISCARD;
/** script goes to the context's shell as one argument: no quoting is applied.
 *  timeout_ms 0: the default, 30000. [any thread] */
AGENTD_API int agentd_params_new_shell(const char *script, uint64_t timeout_ms, agentd_params **ret,
				       agentd_error **reterr) AGENTD_NODISCARD;
/** argv is NULL-terminated and copied; no shell is involved. timeout_ms 0: the
 *  default, 30000. [any thread] */
AGENTD_API int agentd_params_new_argv(const char *const *argv, uint64_t timeout_ms,
				      agentd_params **ret, agentd_error **reterr) AGENTD_NODISCARD;
/** Take another reference; returns params. [any thread] */
AGENTD_API agentd_params *agentd_params_ref(agentd_params *params);
/** Drop a reference; the last one frees it. [any thread] */
AGENTD_API void agentd_params_unref(agentd_params *params);
/** As JSON, with the effective timeout_ms. Those of agentd_params_new_argv()
 *  have "argv" in place of "command". Free *ret with agentd_free(); ret_len may
 *  be NULL. [any thread] */
AGENTD_API int agentd_params_to_json(const agentd_params *params, char **ret, size_t *ret_len,
				     agentd_error **reterr);
/** JSON Schema (draft 2020-12) of what agentd_params_parse() takes, ready for a
 *  tool definition. Static storage. [any thread] */
AGENTD_API const char *agentd_params_schema(void);

#ifdef __cplusplus
}
#endif

#endif
