/* SPDX-License-Identifier: MIT */
/** @file
 * The engine that runs commands on one event base.
 */
#ifndef AGENTD_RUNNER_H
#define AGENTD_RUNNER_H

#include <agentd/base.h>
#include <agentd/log.h>

#ifdef __cplusplus
extern "C" {
#endif

struct agentd_backend_ops; /* agentd/backend.h */

/** Called on the loop thread. */
typedef void (*agentd_runner_fn)(agentd_runner *runner, void *userdata);

/** Flags of struct agentd_runner_opts. */
enum {
	AGENTD_RUNNER_NO_STDERR_LOG = 1, /**< do not repeat stderr as a log record */
	/** The backend "microvm": also commands without a session get a clone of a machine
	 *  that was booted once. The first one takes as long as a boot, the others about a
	 *  tenth of a second; what a machine touches until it has booted (about 100 MiB)
	 *  stays in memory. */
	AGENTD_RUNNER_SNAPSHOTS = 2
};

/** How to make a runner. Zero means "default" in every member. */
struct agentd_runner_opts {
	uint32_t size;                 /**< sizeof(struct agentd_runner_opts) */
	uint32_t flags;                /**< AGENTD_RUNNER_* */
	struct event_base *event_base; /**< required; must outlive the last callback */
	agentd_policy *policy;         /**< ceiling for every context; NULL: a new policy */
	agentd_log_fn log;             /**< NULL: silent */
	void *log_userdata;            /**< given to log */
	int32_t log_level;             /**< most detailed AGENTD_LOG_* wanted */
	uint32_t max_running;          /**< commands alive at once, or waiting for their
					*   session; 0: 16 */
	uint32_t max_queued;           /**< commands waiting for a place; 0: 64 */
	uint32_t heartbeat_ms;         /**< "still running" record; 0: 5000 */
	uint32_t drain_ms;             /**< wait for output after exit or kill; 0: 250 */
	uint32_t reserved0;            /**< must be 0 */
	const char *helper_path;       /**< agentd-helper; NULL: the installed one, or the one
					*   beside an uninstalled library. The environment is
					*   never consulted. */
	/* The backend "sandbox". */
	uint64_t sandbox_tmp_bytes; /**< size of each command's private /tmp; 0: 1 GiB */
	uint32_t sandbox_uid;       /**< whom commands run as outside of their sandbox when
				     *   the host program is root; 0: 65530 */
	uint32_t sandbox_gid;       /**< the same, their group; 0: 65530 */
	uint32_t sandbox_prewarm;   /**< sandboxes kept ready, per policy, at most 64; 0: 1,
				     *   UINT32_MAX: none */
	uint32_t reserved1;         /**< must be 0 */
	/* The backend "microvm". */
	const char *microvm_image;      /**< directory that scripts/build-image made; NULL:
				      *   /var/cache/agentd for root, else agentd in
				      *   $XDG_CACHE_HOME or ~/.cache */
	const char *microvm_monitor;    /**< QEMU; NULL: /usr/bin/qemu-system-x86_64 */
	const char *microvm_guest;      /**< agentd-guest; NULL: beside the helper */
	uint64_t microvm_memory_bytes;  /**< of each machine, at least 128 MiB; 0: 512 MiB. More
					 *   where a memory limit asks for it. */
	uint64_t microvm_workdir_bytes; /**< most that the files of a working directory may
					 *   hold, which is copied; 0: 256 MiB */
	uint32_t microvm_uid; /**< whom QEMU runs as when the host program is root; nobody else
			       *   should; 0: 65531 */
	uint32_t microvm_gid; /**< the same, its group; 0: 65531 */
	/* Networks of allowed hosts (AGENTD_NET_ALLOWLIST). */
	const char *net_resolver; /**< name server that alone is asked for addresses:
				   *   "ADDRESS" or "ADDRESS:PORT"; NULL: the machine's
				   *   (/etc/resolv.conf) and /etc/hosts */
};

/** A runner on opts->event_base. Starts the helper process (about 1 ms); every
 *  later call returns at once. The helper keeps the privileges the process has
 *  now; commands on the host backend nevertheless run with the real user and
 *  group id that the process has when they start.
 *
 *  The runner belongs to the thread that runs event_base. Every call on it and
 *  on what it made comes from that thread, but for what is marked [any thread].
 *  It installs no signal handler, leaves the host no child to reap, starts no
 *  thread, changes no process-wide state, and never runs or stops the base. In
 *  a forked child nothing here may be called.
 *
 *  Errors: INVALID (opts), ABI, NOTFOUND (helper), SYSTEM, NOMEM. */
AGENTD_API int agentd_runner_new(const struct agentd_runner_opts *opts, agentd_runner **ret,
				 agentd_error **reterr) AGENTD_NODISCARD;
/** Take another reference; returns runner. [any thread] */
AGENTD_API agentd_runner *agentd_runner_ref(agentd_runner *runner);
/** Any order of unrefs is safe (garbage-collected hosts). On the loop thread the
 *  last one frees all before it returns if nothing is alive; else it kills at
 *  once, and `finished` and the memory follow on the loop. Before freeing the
 *  base, see agentd_runner_shutdown() through to `done`: if the base is freed
 *  under a living runner, the helper kills the commands when the runner is
 *  dropped, and their `finished` is never called. [any thread] */
AGENTD_API void agentd_runner_unref(agentd_runner *runner);
/** Refuse new work, ask running commands to end, kill them after grace_ms;
 *  `done` (may be NULL) is called on the loop when nothing is left and the
 *  helper is gone. A second call is AGENTD_ERR_STATE. */
AGENTD_API int agentd_runner_shutdown(agentd_runner *runner, uint32_t grace_ms,
				      agentd_runner_fn done, void *userdata);
/** Register a backend for this runner. ops and its strings are copied. A name or
 *  alias that is taken is AGENTD_ERR_STATE and names both backends. */
AGENTD_API int agentd_runner_add_backend(agentd_runner *runner,
					 const struct agentd_backend_ops *ops, void *userdata,
					 agentd_error **reterr);
/** Sessions come from this pool, which was made for this runner; NULL takes it away.
 *  Commands under way keep theirs. */
AGENTD_API int agentd_runner_set_pool(agentd_runner *runner, agentd_pool *pool,
				      agentd_error **reterr);
/** "shell-exec-runner-<version>". Static storage. */
AGENTD_API const char *agentd_runner_digest(const agentd_runner *runner);
/** Check parameters as agentd_params_parse() would; runs nothing, no side
 *  effects. */
AGENTD_API int agentd_runner_validate(agentd_runner *runner, const char *json, size_t len,
				      agentd_error **reterr);
/** Would this run, and how? Decides without starting anything; *ret is a JSON
 *  object: backend, effective limits, environment names, refusal. Free it with
 *  agentd_free(); ret_len may be NULL. */
AGENTD_API int agentd_runner_explain(agentd_runner *runner, agentd_context *ctx,
				     agentd_params *params, char **ret, size_t *ret_len,
				     agentd_error **reterr);

#ifdef __cplusplus
}
#endif

#endif
