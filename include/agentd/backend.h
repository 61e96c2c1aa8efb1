/* SPDX-License-Identifier: MIT */
/** @file
 * The interface a third party implements to bring its own isolation. Hosts that
 * only run commands do not include this. The built-in backends use nothing else.
 *
 * Rules that keep old and new halves working together:
 *  - fill `size` with sizeof and zero the rest: the library reads no member at
 *    or past `size`, and reads a missing or NULL optional member as "cannot";
 *  - members are only ever appended; what a member means never changes. A
 *    change of meaning is a new member, or a new `abi` the library takes beside
 *    the old one for as long as the soname lives;
 *  - everything is asynchronous, on the loop thread, and must not block; a
 *    task_start that returns 0 ends in exactly one agentd_task_closed or _failed,
 *    with at most one agentd_task_exited before it and output in between;
 *  - a backend calls agentd_task_* freely, also from inside its own members.
 */
#ifndef AGENTD_BACKEND_H
#define AGENTD_BACKEND_H

#include <agentd/base.h>
#include <agentd/limits.h>

#ifdef __cplusplus
extern "C" {
#endif

/** What a table is made for: its member abi. */
enum { AGENTD_BACKEND_ABI = 1 };

/** The library's half of one execution. Valid from task_start until task_free. */
typedef struct agentd_task agentd_task;
/** What to run, policy already applied. Valid as long as its task. */
typedef struct agentd_spec agentd_spec;
/** Answer to a probe. Valid until agentd_backend_report_done(). */
typedef struct agentd_backend_report agentd_backend_report;

/** One backend. Functions return 0 or an AGENTD_ERR_* code. */
struct agentd_backend_ops {
	uint32_t size;              /**< sizeof(struct agentd_backend_ops) */
	uint32_t abi;               /**< AGENTD_BACKEND_ABI */
	const char *name;           /**< [a-z0-9-]{1,32}, unique in the runner */
	const char *const *aliases; /**< NULL-terminated, or NULL */
	int32_t isolation;          /**< the most it can give; the receipt says what it gave */
	uint32_t reserved0;         /**< must be 0 */

	/* required */

	/** Called once, when the backend is added. */
	int32_t (*open)(void *userdata, struct event_base *base, void **ret_self);
	/** Called once, when the runner goes; no tasks are left. */
	void (*close)(void *self);
	/** Can this backend run anything here? Try, do not guess. Ends in one
	 *  agentd_backend_report_done(), now or later, or never once close was
	 *  called. Tasks start only after a report without error. */
	int32_t (*probe_start)(void *self, agentd_backend_report *report);
	/** Start spec. On failure *reterr may receive an error, and task_free is not
	 *  called. */
	int32_t (*task_start)(void *self, agentd_task *task, const agentd_spec *spec,
			      void **ret_state, agentd_error **reterr);
	/** Kill everything of the task, now. May be called more than once, also after
	 *  the command exited. */
	int32_t (*task_kill)(void *state);
	/** Called once, after closed or failed, from the loop. Or when the runner or its session
	 *  goes, if a task that was killed has not ended within close_max_ms: all of it goes
	 *  then, and nothing is reported of it any more. */
	void (*task_free)(void *state);

	/* optional */

	/** Deliver a signal to the command's process group. Without it a stop has no
	 *  grace: it kills. */
	int32_t (*task_signal)(void *state, int32_t signo);
	/** Take bytes for stdin; AGENTD_ERR_AGAIN when none fits, then
	 *  agentd_task_stdin_drained() when it can go on. */
	int32_t (*task_write)(void *state, const uint8_t *data, size_t len, size_t *ret_taken);
	/** End of input after what was taken. */
	int32_t (*task_close_stdin)(void *state);
	/** Stop (1) or go on (0) delivering a stream. Not called for streams handed
	 *  over with agentd_task_attach_fd(). A kill that does not wait for the sink is
	 *  followed by 0: what comes then is counted as dropped. */
	int32_t (*task_set_paused)(void *state, agentd_stream stream, int32_t paused);
	/** Milliseconds from task_start to started or failed, at most: a command that takes
	 *  longer to start is given up. 0: 30,000. */
	uint32_t setup_max_ms;
	/** Milliseconds from a kill, which also follows every exit, to closed or failed, at
	 *  most. 0: 10,000. They begin anew when a stream that is waited for goes on. */
	uint32_t close_max_ms;

	/* optional, all three or none: persistent sessions, which pools hand out */

	/** Start a session. A session is a task without a command: agentd_task_started()
	 *  when commands can run in it (within setup_max_ms), agentd_task_failed() when it
	 *  cannot be had or dies unasked, agentd_task_closed() after session_stop. What it
	 *  logs is passed on; output and exits of it are ignored. spec has no argv; it is
	 *  valid until session_free. What spec says of the file system, network, policies
	 *  and protections holds for the whole session, and so do the limits on memory,
	 *  tasks and CPU bandwidth where they are the session's to keep.
	 *
	 *  Commands come to task_start, one at a time, with *ret_session as
	 *  agentd_spec_session(). Their receipt has the session's lines too. task_kill ends
	 *  everything that the command has started; but once it has exited only the task
	 *  ends: processes it left behind live on until the session stops. If the session
	 *  dies under a command, the command fails before the session does.
	 *
	 *  A command may come before it is known that the session has died. If surely nothing
	 *  of it has run, nor will, it fails with AGENTD_ERR_BACKEND and the os_errno ESRCH, by
	 *  task_start or by agentd_task_failed() before agentd_task_started(), and with nothing
	 *  attached: the library ends the session, starts it anew, and the command in it. If
	 *  that fails like this too, it is the command's failure.
	 *
	 *  Files below the working directory survive the session: what commands change
	 *  there is in agentd_spec_volume() once it is closed, also if the session or the
	 *  host program is killed and the file system had been synced before. */
	int32_t (*session_start)(void *self, agentd_task *task, const agentd_spec *spec,
				 void **ret_session, agentd_error **reterr);
	/** Sync its files, ask processes left in it to end, then end it: closed within
	 *  grace_ms, else it is killed, and closed within close_max_ms of that. grace_ms 0:
	 *  kill now, also while a command runs. May be called again with less grace. */
	int32_t (*session_stop)(void *session, uint32_t grace_ms);
	/** Called once, after closed or failed, from the loop, or when its pool or the runner
	 *  goes: it is killed then. No command of it is left. */
	void (*session_free)(void *session);

	/* optional: sessions that are half started before anybody asks for one */

	/** With this member session_start also takes a spec that has no volume and no workdir
	 *  (agentd_spec_volume() is NULL): a spare, which is started as far as that goes, and
	 *  then reports agentd_task_started(). session_adopt() gives such a spare away, once:
	 *  from then on it is the session of task and spec, reports started again or failed
	 *  to that task, and uses the ones it was started with no more. On failure, as when
	 *  the spare is not like what spec asks for, it still is theirs; it will be stopped,
	 *  and session_start be called for spec. */
	int32_t (*session_adopt)(void *session, agentd_task *task, const agentd_spec *spec,
				 agentd_error **reterr);
	/* end of 0.1 */
};

/** @name What a backend reads
 * Accessors, so that the specification can grow. Strings
 * and vectors are borrowed from spec.
 * @{ */

/** NULL-terminated; the first is looked up in the PATH of agentd_spec_env(). */
AGENTD_API const char *const *agentd_spec_argv(const agentd_spec *spec);
/** "NAME=VALUE", NULL-terminated: what context and policies say. A backend may
 *  put defaults of its own *before* these (HOME, PATH); a name listed here wins,
 *  and a bare "NAME" means that there must be no such variable. */
AGENTD_API const char *const *agentd_spec_env(const agentd_spec *spec);
/** Absolute path, or NULL. */
AGENTD_API const char *agentd_spec_workdir(const agentd_spec *spec);
/** What the command may do in its working directory, AGENTD_ACCESS_*: everything,
 *  unless paths of the policies cover it. 0: they deny it. */
AGENTD_API uint32_t agentd_spec_workdir_access(const agentd_spec *spec);
/** Absolute path of a directory or image, or NULL. */
AGENTD_API const char *agentd_spec_rootfs(const agentd_spec *spec);
/** AGENTD_EXEC_*. */
AGENTD_API uint32_t agentd_spec_flags(const agentd_spec *spec);
/** The effective limits: 0 = none, in every member but size. Writes at most
 *  out->size bytes; set out->size first. */
AGENTD_API int agentd_spec_limits(const agentd_spec *spec, struct agentd_limits *out);
/** 1 if the limit of this name was asked for by someone, 0 if it is a built-in
 *  default. */
AGENTD_API int32_t agentd_spec_limit_requested(const agentd_spec *spec, const char *limit);
/** Paths of the policy and mounts of the context, as one list. */
AGENTD_API size_t agentd_spec_mount_count(const agentd_spec *spec);
/** Entry i of that list; source equals target for paths of the policy, access 0
 *  is a denied path, which is also to be hidden where a mount above it shows it.
 *  AGENTD_ERR_NOTFOUND past the end. */
AGENTD_API int agentd_spec_mount_at(const agentd_spec *spec, size_t i, const char **ret_source,
				    const char **ret_target, uint32_t *ret_access);
/** JSON pointer of entry i in the policy or context that named it, for errors; ""
 *  for a path of a policy that was not made from JSON. */
AGENTD_API const char *agentd_spec_mount_pointer(const agentd_spec *spec, size_t i);
/** Protected names. */
AGENTD_API size_t agentd_spec_protected_count(const agentd_spec *spec);
/** Protected name i, or NULL past the end. */
AGENTD_API const char *agentd_spec_protected_at(const agentd_spec *spec, size_t i);
/** AGENTD_PROTECTION_* of a layer, as the stricter of the policies has it. */
AGENTD_API int32_t agentd_spec_protection(const agentd_spec *spec, const char *layer);
/** AGENTD_NET_*. */
AGENTD_API int32_t agentd_spec_net(const agentd_spec *spec);
/** 1 if a policy insists on KVM where a virtual machine is used. */
AGENTD_API int32_t agentd_spec_require_kvm(const agentd_spec *spec);
/** 1 if nothing of what a stopped command has changed may reach the working directory; a
 *  backend that cannot do that refuses. */
AGENTD_API int32_t agentd_spec_discard_unfinished(const agentd_spec *spec);
/** Network namespace to join, or -1. The spec owns the descriptor. */
AGENTD_API int32_t agentd_spec_netns(const agentd_spec *spec);
/** Sealed memfd with the token, or -1. The spec owns the descriptor. */
AGENTD_API int32_t agentd_spec_credentials_fd(const agentd_spec *spec);
/** Id of the session that this is, or is to run in: a UUID in lower case; or NULL. */
AGENTD_API const char *agentd_spec_session_id(const agentd_spec *spec);
/** Of a session and its commands: the absolute path of the folder that outlives it, or
 *  NULL, also of a spare. It exists, nobody else uses it while the session lives, and the
 *  backend may keep in it what it likes (the files themselves, or a disk image); backups are
 *  made of it while the session is stopped. agentd_spec_workdir() is then where commands see the
 *  session's files: the same path. */
AGENTD_API const char *agentd_spec_volume(const agentd_spec *spec);
/** What the pool's configuration has for this backend ("vm"), a JSON object; "{}" if there
 *  is nothing. Checked by the backend, which refuses what it does not know. Never NULL. */
AGENTD_API const char *agentd_spec_options(const agentd_spec *spec);
/** What session_start returned, of a command that runs in a session; or NULL. */
AGENTD_API void *agentd_spec_session(const agentd_spec *spec);
/** Milliseconds between SIGTERM and SIGKILL. */
AGENTD_API uint32_t agentd_spec_grace_ms(const agentd_spec *spec);
/** Most detailed AGENTD_LOG_* that somebody reads. */
AGENTD_API int32_t agentd_spec_log_level(const agentd_spec *spec);
/** @} */

/** @name What a backend reports
 * @{ */

/** The command runs; pid for the log, or 0. Of a command in a pid namespace of its
 *  own: that of its pid 1 as the host program sees it. */
AGENTD_API void agentd_task_started(agentd_task *task, int32_t pid);
/** Deliver output, at most 262144 bytes at once. Returns AGENTD_SINK_CONTINUE or
 *  _PAUSE (these bytes are taken; task_set_paused() follows when it may go on), or
 *  AGENTD_ERR_INVALID (nothing was taken). */
AGENTD_API int32_t agentd_task_output(agentd_task *task, agentd_stream stream, const uint8_t *data,
				      size_t len);
/** task_write() can take more. */
AGENTD_API void agentd_task_stdin_drained(agentd_task *task);
/** Report AGENTD_METRIC_CPU_NS or _MEMORY_PEAK_BYTES; others are the library's. */
AGENTD_API void agentd_task_metric(agentd_task *task, int32_t metric, uint64_t value);
/** Hand over the read end of a pipe: the library reads, caps, pauses and drains
 *  it, so that a process-based backend need not. Must be non-blocking. Ownership
 *  moves to the library, also on failure. */
AGENTD_API int agentd_task_attach_fd(agentd_task *task, agentd_stream stream, int32_t fd);
/** Hand over a listening TCP socket in the network of a command that may reach some hosts
 *  only (agentd_spec_net() is AGENTD_NET_ALLOWLIST): the library serves on it, as a proxy
 *  for HTTP and SOCKS5, what the policies allow, until the task is over. Once per task,
 *  before agentd_task_started(). Nothing else may lead out of that network, which is the
 *  backend's to see to, as are the variables that tell the command of the proxy. Ownership
 *  moves to the library, also on failure. */
AGENTD_API int agentd_task_attach_net(agentd_task *task, int32_t fd);
/** Instead of a listening socket: hand over one connection that a client of such a command
 *  has made, as a stream socket whose other end the backend keeps, for it is in another
 *  machine. Any number of times, from agentd_task_started() on. AGENTD_ERR_LIMIT: there are
 *  as many as the library serves at once. Ownership moves to the library, also on failure,
 *  which ends that connection and nothing else. */
AGENTD_API int agentd_task_attach_net_client(agentd_task *task, int32_t fd);
/** For the receipt: a layer, AGENTD_LAYER_*, how or why. A later call for the
 *  same layer replaces the earlier one. */
AGENTD_API void agentd_task_protection(agentd_task *task, const char *layer, int32_t state,
				       const char *reason);
/** Something the policy stopped; see agentd_denial_kind() and the others. */
AGENTD_API void agentd_task_denied(agentd_task *task, const char *kind, const char *target,
				   const char *rule, const char *remedy);
/** A limit was hit: its name in struct agentd_limits. Call before exited. With
 *  `fatal` the command was or will be killed for it. */
AGENTD_API void agentd_task_limit_hit(agentd_task *task, const char *limit, int32_t fatal);
/** The command ended. wait_status as from waitpid(2); at_ns: CLOCK_MONOTONIC when
 *  it was reaped, 0 for now (an exit before the deadline is never a timeout). */
AGENTD_API void agentd_task_exited(agentd_task *task, int32_t wait_status, uint64_t at_ns);
/** No more output will come but what attached descriptors still hold; nothing of
 *  the command is alive. */
AGENTD_API void agentd_task_closed(agentd_task *task);
/** It could not be started, or the backend lost it. err: a reference the library
 *  takes over; NULL: AGENTD_ERR_BACKEND. Codes DENIED and UNSUPPORTED before
 *  started are a refusal (status denied, cause ISOLATION). */
AGENTD_API void agentd_task_failed(agentd_task *task, agentd_error *err);
/** A line for the log (AGENTD_LOG_*), sink and runner. */
AGENTD_API void agentd_task_log(agentd_task *task, int32_t level, const char *message);
/** One layer this backend can give here, for agentd_runner_explain(). */
AGENTD_API void agentd_backend_report_layer(agentd_backend_report *report, const char *layer,
					    int32_t state, const char *reason);
/** The probe is over; err NULL: usable. err: a reference the library takes over. */
AGENTD_API void agentd_backend_report_done(agentd_backend_report *report, agentd_error *err);
/** @} */

/** For backends that need to raise an error. message is copied. Never NULL: out
 *  of memory returns a static AGENTD_ERR_NOMEM. [any thread] */
AGENTD_API agentd_error *agentd_error_create(int code, int os_errno, const char *message);

#ifdef __cplusplus
}
#endif

#endif
