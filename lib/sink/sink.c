/* SPDX-License-Identifier: MIT */
#include "sink/sink.h"

#include <errno.h>

#include "sink/private.h"

/* ---- sinks */

void ad_sink_init(agentd_sink *sink, const struct ad_sink_kind *kind)
{
	atomic_init(&sink->refs, 1);
	sink->depth = 0;
	sink->leaves = 1;
	sink->kind = kind;
}

agentd_sink *agentd_sink_ref(agentd_sink *sink)
{
	if (sink)
		ad_ref(&sink->refs);
	return sink;
}

void agentd_sink_unref(agentd_sink *sink)
{
	int saved = errno;

	if (sink && ad_unref(&sink->refs))
		sink->kind->free(sink);
	errno = saved;
}

/* ---- denials */

const char *agentd_denial_kind(const agentd_denial *denial)
{
	return denial && denial->kind ? denial->kind : "";
}

const char *agentd_denial_target(const agentd_denial *denial)
{
	return denial && denial->target ? denial->target : "";
}

const char *agentd_denial_rule(const agentd_denial *denial)
{
	return denial && denial->rule ? denial->rule : "";
}

const char *agentd_denial_remedy(const agentd_denial *denial)
{
	return denial && denial->remedy ? denial->remedy : "";
}

/* ---- bindings */

static const struct ad_sink_kind discard_kind = {
	.binding_size = sizeof(struct ad_sink_binding),
};

static int bind_new(agentd_sink *sink, const struct ad_sink_binding *proto,
		    struct ad_sink_binding **ret)
{
	const struct ad_sink_kind *kind = sink ? sink->kind : &discard_kind;
	struct ad_sink_binding *binding = calloc(1, kind->binding_size);
	int code = 0;

	if (!binding)
		return AGENTD_ERR_NOMEM;
	*binding = *proto;
	binding->sink = agentd_sink_ref(sink);
	binding->kind = kind;
	binding->holds = 1;
	if (kind->bind)
		code = kind->bind(binding);
	if (code < 0) {
		agentd_sink_unref(sink);
		agentd_free(binding);
		return code;
	}
	*ret = binding;
	return 0;
}

int ad_sink_bind(agentd_sink *sink, agentd_exec *exec, struct ad_loop *loop,
		 ad_sink_resume_fn resume, struct ad_sink_binding **ret)
{
	struct ad_sink_binding proto = { .exec = exec, .loop = loop, .resume = resume };

	return bind_new(sink, &proto, ret);
}

int ad_sink_bind_child(agentd_sink *sink, struct ad_sink_binding *parent,
		       struct ad_sink_binding **ret)
{
	struct ad_sink_binding proto = { .exec = parent->exec,
					 .loop = parent->loop,
					 .parent = parent };

	return bind_new(sink, &proto, ret);
}

void ad_sink_hold(struct ad_sink_binding *binding)
{
	binding->holds++;
}

void ad_sink_release(struct ad_sink_binding *binding)
{
	agentd_sink *sink = binding->sink;

	if (--binding->holds > 0)
		return;
	agentd_free(binding);
	agentd_sink_unref(sink);
}

void ad_sink_unbind(struct ad_sink_binding *binding)
{
	if (!binding)
		return;
	binding->unbound = true;
	if (binding->kind->unbind)
		binding->kind->unbind(binding);
	ad_sink_release(binding);
}

void ad_sink_resumed(struct ad_sink_binding *binding, agentd_stream stream)
{
	if (binding->unbound)
		return;
	while (binding->parent)
		binding = binding->parent;
	/* After the exit the execution waits for what is pending, also on a stream
	 * that a callback holds. */
	if (!ad_sink_paused(binding, stream) || (binding->exited && ad_sink_pending(binding) == 0))
		binding->resume(binding->exec, stream);
}

void ad_sink_started(struct ad_sink_binding *binding)
{
	if (!binding->kind->started)
		return;
	ad_sink_hold(binding);
	binding->kind->started(binding);
	ad_sink_release(binding);
}

int32_t ad_sink_output(struct ad_sink_binding *binding, agentd_stream stream, const uint8_t *data,
		       size_t len)
{
	int32_t ret;

	if (!binding->kind->output)
		return AGENTD_SINK_CONTINUE;
	ad_sink_hold(binding);
	ret = binding->kind->output(binding, stream, data, len);
	ad_sink_release(binding);
	return ret;
}

void ad_sink_stdin_drained(struct ad_sink_binding *binding)
{
	if (!binding->kind->stdin_drained)
		return;
	ad_sink_hold(binding);
	binding->kind->stdin_drained(binding);
	ad_sink_release(binding);
}

int32_t ad_sink_log(struct ad_sink_binding *binding, const agentd_log_record *record)
{
	int32_t ret;

	if (!binding->kind->log)
		return 0;
	ad_sink_hold(binding);
	ret = binding->kind->log(binding, record);
	ad_sink_release(binding);
	return ret;
}

void ad_sink_denied(struct ad_sink_binding *binding, const agentd_denial *denial)
{
	if (!binding->kind->denied)
		return;
	ad_sink_hold(binding);
	binding->kind->denied(binding, denial);
	ad_sink_release(binding);
}

void ad_sink_exited(struct ad_sink_binding *binding, int32_t exit_code, int32_t signo)
{
	binding->exited = true;
	if (!binding->kind->exited)
		return;
	ad_sink_hold(binding);
	binding->kind->exited(binding, exit_code, signo);
	ad_sink_release(binding);
}

void ad_sink_finished(struct ad_sink_binding *binding, agentd_result *result)
{
	if (!binding->kind->finished)
		return;
	ad_sink_hold(binding);
	binding->kind->finished(binding, result);
	ad_sink_release(binding);
}

bool ad_sink_resume(struct ad_sink_binding *binding, agentd_stream stream)
{
	if (binding->kind->resume)
		binding->kind->resume(binding, stream);
	return !ad_sink_paused(binding, stream);
}

bool ad_sink_paused(const struct ad_sink_binding *binding, agentd_stream stream)
{
	return binding->kind->paused && binding->kind->paused(binding, stream);
}

size_t ad_sink_pending(const struct ad_sink_binding *binding)
{
	return binding->kind->pending ? binding->kind->pending(binding) : 0;
}

size_t ad_sink_abandon(struct ad_sink_binding *binding)
{
	return binding->kind->abandon ? binding->kind->abandon(binding) : 0;
}
