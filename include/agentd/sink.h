/* SPDX-License-Identifier: MIT */
/** @file
 * Where output and events go.
 */
#ifndef AGENTD_SINK_H
#define AGENTD_SINK_H

#include <agentd/base.h>
#include <agentd/log.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Something the policy stopped; valid only during the callback. */
typedef struct agentd_denial agentd_denial;
/** "net", "path" or "syscall". Borrowed. */
AGENTD_API const char *agentd_denial_kind(const agentd_denial *denial);
/** What was wanted: "example.org:443", a path, a system call. Borrowed. */
AGENTD_API const char *agentd_denial_target(const agentd_denial *denial);
/** The rule that stopped it. Borrowed. */
AGENTD_API const char *agentd_denial_rule(const agentd_denial *denial);
/** A sentence on how the operator can allow it, or "". Borrowed. */
AGENTD_API const char *agentd_denial_remedy(const agentd_denial *denial);

/** What an output callback returns. Any negative value cancels the execution
 * (cause SINK); the value is kept in the result's error. */
enum { AGENTD_SINK_CONTINUE = 0, AGENTD_SINK_PAUSE = 1 };

/** Callbacks of one execution, always on the loop thread, never from inside an
 *  agentd_* call, in this order:
 *
 *      log* started? (output | log | denied | stdin_drained)* exited?
 *      (output | log | denied)* finished
 *
 *  then destroy when the last reference to the sink goes. NULL members are
 *  skipped. Inside any of them the host may cancel, write, resume or unref the
 *  exec and start new ones; the library holds its own references while it calls
 *  out. agentd_loop_run*() is the only thing not allowed. */
struct agentd_sink_ops {
	uint32_t size;      /**< sizeof(struct agentd_sink_ops) */
	uint32_t reserved0; /**< must be 0 */
	/** The command is running. */
	void (*started)(agentd_exec *exec, void *userdata);
	/** data: raw bytes (may hold NUL, may split UTF-8), 0 < len <= 262144, valid
	 *  during the call. PAUSE: these bytes are taken, no more of this stream
	 *  until agentd_exec_resume(). */
	int32_t (*output)(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			  void *userdata);
	/** agentd_exec_write() can take more. */
	void (*stdin_drained)(agentd_exec *exec, void *userdata);
	/** One line for the caller's log: "Executing shell command: ...", timeouts,
	 *  stderr at the end. Non-zero cancels; at the first record nothing has run
	 *  yet and then nothing will. */
	int32_t (*log)(agentd_exec *exec, const agentd_log_record *record, void *userdata);
	/** Something was stopped that the library sees: a host (network mode
	 *  "allow"), a protected name, one of the few system calls that only an
	 *  attacker makes (docs/sandbox.md), a change that does not come back from a
	 *  virtual machine. Not what the command is told alone, as a path that it
	 *  does not see or may not write. */
	void (*denied)(agentd_exec *exec, const agentd_denial *denial, void *userdata);
	/** The command itself has ended (exit code or -1, signal or 0); output may
	 *  still follow until finished, which comes after a bounded drain. */
	void (*exited)(agentd_exec *exec, int32_t exit_code, int32_t signo, void *userdata);
	/** Exactly once, after the last output; nothing of the command is alive.
	 *  result is borrowed: ref to keep. */
	void (*finished)(agentd_exec *exec, agentd_result *result, void *userdata);
	/** userdata is no longer reachable by the library. */
	agentd_destroy_fn destroy;
};

/** A sink of callbacks. ops is copied. On failure destroy is not called.
 *  [any thread] */
AGENTD_API int agentd_sink_new(const struct agentd_sink_ops *ops, void *userdata, agentd_sink **ret,
			       agentd_error **reterr) AGENTD_NODISCARD;
/** Keeps the first `head` and the last `tail` bytes of each stream. Meant for
 *  one execution; memory grows with the output up to head + tail per stream.
 *  [any thread] */
AGENTD_API int agentd_sink_new_buffer(size_t head, size_t tail, agentd_sink **ret,
				      agentd_error **reterr) AGENTD_NODISCARD;
/** Writes to descriptors the caller keeps open and owns; -1 discards. Never
 *  blocks the loop and never changes the descriptors' flags: a full pipe pauses
 *  the command. [any thread] */
AGENTD_API int agentd_sink_new_fd(int32_t out_fd, int32_t err_fd, agentd_sink **ret,
				  agentd_error **reterr) AGENTD_NODISCARD;
/** Everything to both; the slower one paces the command. References both.
 *  [any thread] */
AGENTD_API int agentd_sink_new_tee(agentd_sink *a, agentd_sink *b, agentd_sink **ret,
				   agentd_error **reterr) AGENTD_NODISCARD;
/** Take another reference; returns sink. [any thread] */
AGENTD_API agentd_sink *agentd_sink_ref(agentd_sink *sink);
/** Drop a reference; the last one calls destroy and frees it. [any thread] */
AGENTD_API void agentd_sink_unref(agentd_sink *sink);
/** What a buffer sink kept of one stream, head and tail joined; *ret_dropped
 *  bytes are missing between them. Borrowed until the next output or the last
 *  unref. ret_dropped may be NULL. AGENTD_ERR_INVALID on other sinks. */
AGENTD_API int agentd_sink_buffer_get(agentd_sink *sink, agentd_stream stream, const uint8_t **ret,
				      size_t *ret_len, uint64_t *ret_dropped);

#ifdef __cplusplus
}
#endif

#endif
