/* SPDX-License-Identifier: MIT */
/** @file
 * What this machine can do, found by trying it: a probe runs each act that a
 * sandbox is there to refuse, once without a sandbox and once inside of one.
 */
#ifndef AGENTD_PROBE_H
#define AGENTD_PROBE_H

#include <agentd/base.h>

#ifdef __cplusplus
extern "C" {
#endif

struct event_base;

/** Immutable once it exists; everything about it may be called from any thread. */
typedef struct agentd_probe agentd_probe;

/** Capabilities are numbered, not bits: they never run out. */
enum {
	/** The backend "sandbox" with every layer required ran a command, and that
	 *  command could do none of the acts below. */
	AGENTD_CAP_SANDBOX = 1,
	AGENTD_CAP_USER_NAMESPACE = 2,
	AGENTD_CAP_LANDLOCK = 3, /**< level: Landlock ABI version */
	AGENTD_CAP_SECCOMP = 4,  /**< level: libseccomp API level, seccomp_api_get(3) */
	AGENTD_CAP_CGROUP = 5,   /**< limits are the tree's, and exact */
	AGENTD_CAP_IDMAP = 6     /**< writable paths of another owner can be used */
};

/** What came of trying an act. */
enum {
	AGENTD_ACT_UNKNOWN = -1, /**< not tried: nothing ran */
	AGENTD_ACT_REFUSED = 0,
	AGENTD_ACT_POSSIBLE = 1
};

/** Flags of struct agentd_probe_opts. */
enum {
	AGENTD_PROBE_NO_CACHE = 1 /**< try, whatever is known already */
};

/** How to probe. Zero means "default" in every member. */
struct agentd_probe_opts {
	uint32_t size;                 /**< sizeof(struct agentd_probe_opts) */
	uint32_t flags;                /**< AGENTD_PROBE_* */
	struct event_base *event_base; /**< must outlive the callback; NULL: the call blocks */
	const char *helper_path;       /**< as in struct agentd_runner_opts */
	/** Directory that keeps what was found until the machine starts again, or what
	 *  it depends on changes (the caller's ids and namespaces, the helper, the
	 *  kernel's settings). Made if it is missing; one that others may write to is
	 *  not used. NULL: /run/agentd for root, /run/user/UID/agentd for others, and
	 *  nothing is kept where that cannot be made, nor what came of a lack of
	 *  descriptors, processes, memory or time. */
	const char *cache_dir;
};

/** Called once, on the loop thread. probe is borrowed: take a reference to keep
 *  it. NULL with an error (borrowed) if nothing could be tried: a machine without
 *  a sandbox is no error but what the probe says. */
typedef void (*agentd_probe_fn)(agentd_probe *probe, const agentd_error *err, void *userdata);

/** Look at this machine: less than a second (0.8 s measured where a fork(2) takes
 *  1.3 ms), 3 s where limits do not hold; at most 30 s. Runs commands of this library's own
 *  helper in a private directory of /tmp, which is removed. On failure fn is never called, on
 *  success it is once; with opts->event_base NULL before this returns. opts may be NULL.
 *
 *  Errors: INVALID, ABI, NOTFOUND (helper), SYSTEM, NOMEM. */
AGENTD_API int agentd_probe_start(const struct agentd_probe_opts *opts, agentd_probe_fn fn,
				  void *userdata, agentd_error **reterr) AGENTD_NODISCARD;
/** Take another reference; returns probe. */
AGENTD_API agentd_probe *agentd_probe_ref(agentd_probe *probe);
/** Drop a reference; the last one frees it. */
AGENTD_API void agentd_probe_unref(agentd_probe *probe);
/** Of AGENTD_CAP_*: 0 absent, or unknown to this library; 1 or more: present, at
 *  that level. */
AGENTD_API int32_t agentd_probe_level(const agentd_probe *probe, int32_t cap);
/** Why it is absent and what to do about it, for people. Borrowed; "" when it is
 *  present. */
AGENTD_API const char *agentd_probe_reason(const agentd_probe *probe, int32_t cap);
/** "sandbox", "landlock", ...; "unknown" for a value this library does not know.
 *  Static storage. */
AGENTD_API const char *agentd_cap_name(int32_t cap);
/** 1 if it was kept from an earlier probe, 0 if it was tried now. */
AGENTD_API int32_t agentd_probe_cached(const agentd_probe *probe);
/** Number of acts tried. */
AGENTD_API size_t agentd_probe_act_count(const agentd_probe *probe);
/** One act, in words: what came of it without a sandbox and inside of one
 *  (AGENTD_ACT_*), and how the sandbox refused it ("Operation not permitted",
 *  "killed by SIGSYS", "ended by pids_max"; "" if it did not). Refused in both, it
 *  says nothing of the sandbox. Strings are borrowed; each output parameter may be
 *  NULL. AGENTD_ERR_NOTFOUND past the end. */
AGENTD_API int agentd_probe_act_at(const agentd_probe *probe, size_t i, const char **ret_act,
				   int32_t *ret_outside, int32_t *ret_inside, const char **ret_how);
/** Number of layers that the sandbox has here. */
AGENTD_API size_t agentd_probe_layer_count(const agentd_probe *probe);
/** One layer, as in a receipt: agentd_result_protection_at(). */
AGENTD_API int agentd_probe_layer_at(const agentd_probe *probe, size_t i, const char **ret_layer,
				     int32_t *ret_state, const char **ret_reason);
/** As JSON; docs/probe.schema.json has the format. Free *ret with agentd_free();
 *  ret_len may be NULL. */
AGENTD_API int agentd_probe_to_json(const agentd_probe *probe, char **ret, size_t *ret_len,
				    agentd_error **reterr);

#ifdef __cplusplus
}
#endif

#endif
