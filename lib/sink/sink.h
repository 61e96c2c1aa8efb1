/* SPDX-License-Identifier: MIT */
/* Where output goes. Implements agentd/sink.h; core drives it through bindings. */
#ifndef AD_SINK_H
#define AD_SINK_H

#include <stdbool.h>

#include <agentd/sink.h>

struct ad_loop;

struct agentd_denial {
	const char *kind, *target, *rule, *remedy;
};

/* One sink attached to one execution. Freed with ad_sink_unbind(). A NULL sink
 * binds to a binding that discards. */
struct ad_sink_binding;

/* What a binding tells the execution: a sink that paused a stream by itself (fd
 * sink, tee) wants more. Called from the loop, never from inside ad_sink_*. */
typedef void (*ad_sink_resume_fn)(agentd_exec *exec, agentd_stream stream);

int ad_sink_bind(agentd_sink *sink, agentd_exec *exec, struct ad_loop *loop,
		 ad_sink_resume_fn resume, struct ad_sink_binding **ret);
void ad_sink_unbind(struct ad_sink_binding *binding);

void ad_sink_started(struct ad_sink_binding *binding);
/* AGENTD_SINK_CONTINUE, _PAUSE or negative. */
int32_t ad_sink_output(struct ad_sink_binding *binding, agentd_stream stream, const uint8_t *data,
		       size_t len);
void ad_sink_stdin_drained(struct ad_sink_binding *binding);
int32_t ad_sink_log(struct ad_sink_binding *binding, const agentd_log_record *record);
void ad_sink_denied(struct ad_sink_binding *binding, const agentd_denial *denial);
void ad_sink_exited(struct ad_sink_binding *binding, int32_t exit_code, int32_t signo);
void ad_sink_finished(struct ad_sink_binding *binding, agentd_result *result);
/* The host called agentd_exec_resume(): tells a tee that its paused callback
 * sinks may go on. Returns true if the stream as a whole may go on now. */
bool ad_sink_resume(struct ad_sink_binding *binding, agentd_stream stream);
/* Does any part of the sink still hold this stream? resume may be called while
 * one does: after ad_sink_exited(), because nothing is pending any more. */
bool ad_sink_paused(const struct ad_sink_binding *binding, agentd_stream stream);
/* Bytes taken but not yet written (fd sinks). While not 0, the execution waits
 * with `finished`; resume is called when it becomes 0. */
size_t ad_sink_pending(const struct ad_sink_binding *binding);
/* Give up pending bytes; returns how many were taken and will never be written,
 * with those that a failed write has cost since the last call. */
size_t ad_sink_abandon(struct ad_sink_binding *binding);

#endif
