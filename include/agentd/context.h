/* SPDX-License-Identifier: MIT */
/** @file
 * Where and as whom a command runs. A context comes from the host program,
 * never from a model.
 *
 * Reusable and mutable, one thread at a time. agentd_exec_start() takes a
 * snapshot, so later changes touch only later runs. Everything passed in is
 * copied; objects are referenced. A backend that cannot honour a setting
 * refuses to run (status denied), it never ignores it.
 */
#ifndef AGENTD_CONTEXT_H
#define AGENTD_CONTEXT_H

#include <agentd/base.h>
#include <agentd/limits.h>

#ifdef __cplusplus
extern "C" {
#endif

/** An empty context: policy of nothing but defaults, the strongest backend, no
 *  workdir (running then fails until one is set). */
AGENTD_API int agentd_context_new(agentd_context **ret, agentd_error **reterr) AGENTD_NODISCARD;
/** From JSON, UTF-8 bytes with a length; agentd_context(5) has the format.
 *  Unknown and duplicate keys are AGENTD_ERR_INVALID with a JSON pointer. */
AGENTD_API int agentd_context_from_json(const char *json, size_t len, agentd_context **ret,
					agentd_error **reterr) AGENTD_NODISCARD;
/** Take another reference; returns ctx. [any thread] */
AGENTD_API agentd_context *agentd_context_ref(agentd_context *ctx);
/** Drop a reference; the last one frees it. [any thread] */
AGENTD_API void agentd_context_unref(agentd_context *ctx);
/** Freezes the policy and keeps a reference. NULL: a new policy's defaults. */
AGENTD_API int agentd_context_set_policy(agentd_context *ctx, agentd_policy *policy,
					 agentd_error **reterr);

/** A question: may this command reach a host that no rule of the policies decides about?
 *  Reference counted. [unref: any thread] */
typedef struct agentd_ask agentd_ask;

/** Answers. */
enum {
	AGENTD_ASK_DENY = 0,
	AGENTD_ASK_ONCE = 1,   /**< this connection, and those that wait for the same answer */
	AGENTD_ASK_CONTEXT = 2 /**< also later ones, of every command of this context */
};

/** Called on the loop thread. ask is borrowed: take a reference to answer later. */
typedef void (*agentd_ask_fn)(agentd_ask *ask, void *userdata);

/** Whom to ask. Zero means "default" in every member but ask. */
struct agentd_ask_opts {
	uint32_t size;             /**< sizeof(struct agentd_ask_opts) */
	uint32_t timeout_ms;       /**< time for an answer; 0: 60000. The command's own limits
				    *   go on meanwhile. */
	int32_t fallback;          /**< what holds without one: AGENTD_ASK_DENY or _ONCE */
	uint32_t reserved0;        /**< must be 0 */
	agentd_ask_fn ask;         /**< required */
	void *userdata;            /**< given to ask and destroy */
	agentd_destroy_fn destroy; /**< may be NULL */
};

/** Ask the host program about hosts that the policy of this context says nothing about, in
 *  mode AGENTD_NET_ALLOWLIST. It is not asked about what a rule denies, what the runner's
 *  policy does not allow, and addresses that only a rule can allow (loopback, private,
 *  link-local and their like), nor does an answer allow a name that leads to such. opts is
 *  copied; on failure destroy is not called. NULL: nobody is asked, and they are denied. */
AGENTD_API int agentd_context_set_ask(agentd_context *ctx, const struct agentd_ask_opts *opts,
				      agentd_error **reterr);
/** Take another reference; returns ask. [any thread] */
AGENTD_API agentd_ask *agentd_ask_ref(agentd_ask *ask);
/** Drop a reference. [any thread] */
AGENTD_API void agentd_ask_unref(agentd_ask *ask);
/** Name or address, normalised. Borrowed from ask. */
AGENTD_API const char *agentd_ask_host(const agentd_ask *ask);
/** 1 to 65535. */
AGENTD_API int32_t agentd_ask_port(const agentd_ask *ask);
/** Whose command it is; NULL once the question is answered, or its command is over.
 *  Borrowed. */
AGENTD_API agentd_exec *agentd_ask_exec(const agentd_ask *ask);
/** Answer, AGENTD_ASK_*; also from inside of the callback. AGENTD_ERR_STATE: the question
 *  is over (answered, timed out with its command gone). AGENTD_ERR_LIMIT: allowed, but the
 *  context remembers no more hosts. */
AGENTD_API int agentd_ask_answer(agentd_ask *ask, int32_t answer, agentd_error **reterr);
/** Limits of this context; they only lower what the policies say. */
AGENTD_API int agentd_context_set_limits(agentd_context *ctx, const struct agentd_limits *limits,
					 agentd_error **reterr);
/** Backend by name or alias, compared trimmed, without case, `_` as `-`; NULL:
 *  the strongest that is usable and meets the policies. A run never falls below
 *  the policies' minimum. */
AGENTD_API int agentd_context_set_backend(agentd_context *ctx, const char *name,
					  agentd_error **reterr);
/** Root file system: an absolute path of a directory or an image, or NULL for
 *  the backend's own. */
AGENTD_API int agentd_context_set_rootfs(agentd_context *ctx, const char *path_or_image,
					 agentd_error **reterr);
/** Working directory: an absolute path without "." and ".." components. It is
 *  looked at only when a command starts. */
AGENTD_API int agentd_context_set_workdir(agentd_context *ctx, const char *path,
					  agentd_error **reterr);
/** Set a variable of the command's environment; value NULL removes it. The
 *  environment is built from nothing: a base set by the backend, then what the
 *  policies let through of the host program's, then these. A name that is empty
 *  or has other characters than letters, digits and "_" is AGENTD_ERR_INVALID. */
AGENTD_API int agentd_context_set_env(agentd_context *ctx, const char *name, const char *value,
				      agentd_error **reterr);
/** Make the host's absolute source path appear at the absolute target. A run is denied if
 *  the runner's policy does not allow this access to source, nor does a context's policy
 *  that has a rule about it. */
AGENTD_API int agentd_context_add_mount(agentd_context *ctx, const char *source, const char *target,
					uint32_t access, agentd_error **reterr);
/** Exported to the command as SMITH_TRACE_ID, last, so nothing overrides it,
 *  and a field of every log record. NULL: none. */
AGENTD_API int agentd_context_set_trace_id(agentd_context *ctx, const char *trace_id,
					   agentd_error **reterr);
/** Run in a persistent session: one of the runner's pool, see agentd/pool.h. id is a UUID;
 *  domain and profile are for log records and may be NULL. Commands then work on the
 *  session's files instead of the workdir. If the session cannot be had, the command runs
 *  in an ephemeral sandbox in the workdir, which its log, result and receipt say, unless
 *  the pool or the policies forbid that. id NULL: no session. */
AGENTD_API int agentd_context_set_session(agentd_context *ctx, const char *id, const char *domain,
					  const char *profile, agentd_error **reterr);
/** Short-lived token, given to the command as a private file named by
 *  AGENTD_TOKEN_FILE (/run/credentials/token in a sandbox), never in its
 *  environment. Past expires_unix_ms (0: never) a run is denied. token NULL: none. */
AGENTD_API int agentd_context_set_credentials(agentd_context *ctx, const char *token,
					      uint64_t expires_unix_ms, agentd_error **reterr);
/** Network namespace to join; the descriptor is duplicated. -1: none. */
AGENTD_API int agentd_context_set_netns(agentd_context *ctx, int32_t fd, agentd_error **reterr);
/** Shell and its arguments before the command, NULL-terminated; NULL: "bash",
 *  "-lc". The first is looked up in the command's PATH. */
AGENTD_API int agentd_context_set_shell(agentd_context *ctx, const char *const *argv,
					agentd_error **reterr);
/** Free-form tag carried to log records and results (agent, tenant, request);
 *  value NULL removes it. */
AGENTD_API int agentd_context_set_label(agentd_context *ctx, const char *key, const char *value,
					agentd_error **reterr);

#ifdef __cplusplus
}
#endif

#endif
