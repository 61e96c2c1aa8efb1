/* SPDX-License-Identifier: MIT */
#include "sink/sink.h"

#include <errno.h>

#include "sink/private.h"

/* A tee of a tee with itself, and so on, would double with every level. */
enum { DEPTH_MAX = 16, LEAVES_MAX = 64 };

struct tee_sink {
	agentd_sink sink;
	agentd_sink *part[2];
};

struct tee_binding {
	struct ad_sink_binding binding;
	struct ad_sink_binding *part[2];
};

static struct tee_binding *own(const struct ad_sink_binding *binding)
{
	return AD_CONTAINER_OF(binding, struct tee_binding, binding);
}

static void tee_free(agentd_sink *sink)
{
	struct tee_sink *self = AD_CONTAINER_OF(sink, struct tee_sink, sink);

	agentd_sink_unref(self->part[0]);
	agentd_sink_unref(self->part[1]);
	agentd_free(self);
}

static int tee_bind(struct ad_sink_binding *binding)
{
	const struct tee_sink *self = AD_CONTAINER_OF(binding->sink, struct tee_sink, sink);
	struct tee_binding *tee = own(binding);
	int code = ad_sink_bind_child(self->part[0], binding, &tee->part[0]);

	if (code < 0)
		return code;
	code = ad_sink_bind_child(self->part[1], binding, &tee->part[1]);
	if (code < 0)
		ad_sink_unbind(tee->part[0]);
	return code;
}

/* The parts go at once, or, if this is called from inside a call into one of
 * them, when that call returns: tee_output() and the others look at unbound. */
static void tee_unbind(struct ad_sink_binding *binding)
{
	ad_sink_unbind(own(binding)->part[0]);
	ad_sink_unbind(own(binding)->part[1]);
}

static void tee_started(struct ad_sink_binding *binding)
{
	ad_sink_started(own(binding)->part[0]);
	if (!binding->unbound)
		ad_sink_started(own(binding)->part[1]);
}

static int32_t tee_output(struct ad_sink_binding *binding, agentd_stream stream,
			  const uint8_t *data, size_t len)
{
	int32_t first = ad_sink_output(own(binding)->part[0], stream, data, len);
	int32_t second = 0;

	if (!binding->unbound)
		second = ad_sink_output(own(binding)->part[1], stream, data, len);
	if (first < 0)
		return first;
	if (second < 0)
		return second;
	/* The second may have resumed the first. */
	return !binding->unbound && ad_sink_paused(binding, stream) ? AGENTD_SINK_PAUSE :
								      AGENTD_SINK_CONTINUE;
}

static void tee_stdin_drained(struct ad_sink_binding *binding)
{
	ad_sink_stdin_drained(own(binding)->part[0]);
	if (!binding->unbound)
		ad_sink_stdin_drained(own(binding)->part[1]);
}

static int32_t tee_log(struct ad_sink_binding *binding, const agentd_log_record *record)
{
	int32_t first = ad_sink_log(own(binding)->part[0], record), second = 0;

	if (!binding->unbound)
		second = ad_sink_log(own(binding)->part[1], record);
	return first ? first : second;
}

static void tee_denied(struct ad_sink_binding *binding, const agentd_denial *denial)
{
	ad_sink_denied(own(binding)->part[0], denial);
	if (!binding->unbound)
		ad_sink_denied(own(binding)->part[1], denial);
}

static void tee_exited(struct ad_sink_binding *binding, int32_t exit_code, int32_t signo)
{
	ad_sink_exited(own(binding)->part[0], exit_code, signo);
	if (!binding->unbound)
		ad_sink_exited(own(binding)->part[1], exit_code, signo);
}

static void tee_finished(struct ad_sink_binding *binding, agentd_result *result)
{
	ad_sink_finished(own(binding)->part[0], result);
	if (!binding->unbound)
		ad_sink_finished(own(binding)->part[1], result);
}

static void tee_resume(struct ad_sink_binding *binding, agentd_stream stream)
{
	ad_sink_resume(own(binding)->part[0], stream);
	ad_sink_resume(own(binding)->part[1], stream);
}

static bool tee_paused(const struct ad_sink_binding *binding, agentd_stream stream)
{
	return ad_sink_paused(own(binding)->part[0], stream) ||
	       ad_sink_paused(own(binding)->part[1], stream);
}

static size_t tee_pending(const struct ad_sink_binding *binding)
{
	return ad_sink_pending(own(binding)->part[0]) + ad_sink_pending(own(binding)->part[1]);
}

static size_t tee_abandon(struct ad_sink_binding *binding)
{
	size_t first = ad_sink_abandon(own(binding)->part[0]);

	return first + ad_sink_abandon(own(binding)->part[1]);
}

static const struct ad_sink_kind tee_kind = {
	.binding_size = sizeof(struct tee_binding),
	.free = tee_free,
	.bind = tee_bind,
	.unbind = tee_unbind,
	.started = tee_started,
	.output = tee_output,
	.stdin_drained = tee_stdin_drained,
	.log = tee_log,
	.denied = tee_denied,
	.exited = tee_exited,
	.finished = tee_finished,
	.resume = tee_resume,
	.paused = tee_paused,
	.pending = tee_pending,
	.abandon = tee_abandon,
};

int agentd_sink_new_tee(agentd_sink *a, agentd_sink *b, agentd_sink **ret, agentd_error **reterr)
{
	struct tee_sink *self;
	unsigned int depth, leaves;
	int saved = errno;

	if (!a || !b || !ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s must not be NULL",
			       !a ? "a" : (b ? "ret" : "b"));
	depth = 1U + (a->depth > b->depth ? a->depth : b->depth);
	leaves = (unsigned int)a->leaves + b->leaves;
	if (depth > DEPTH_MAX || leaves > LEAVES_MAX)
		return ad_fail(reterr, AGENTD_ERR_LIMIT, NULL,
			       "a tee may be %d deep and hold %d sinks, not %u and %u", DEPTH_MAX,
			       LEAVES_MAX, depth, leaves);
	self = calloc(1, sizeof(*self));
	errno = saved;
	if (!self)
		return ad_fail_nomem(reterr);
	ad_sink_init(&self->sink, &tee_kind);
	self->sink.depth = (uint16_t)depth;
	self->sink.leaves = (uint16_t)leaves;
	self->part[0] = agentd_sink_ref(a);
	self->part[1] = agentd_sink_ref(b);
	*ret = &self->sink;
	return 0;
}
