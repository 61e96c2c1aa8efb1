/* SPDX-License-Identifier: MIT */
#include "sink/sink.h"

#include <errno.h>

#include "sink/private.h"

/* The members of the first release; what comes later may be missing. */
#define OPS_SIZE_0_1                                                                               \
	((uint32_t)(offsetof(struct agentd_sink_ops, destroy) + sizeof(agentd_destroy_fn)))

struct callback_sink {
	agentd_sink sink;
	struct agentd_sink_ops ops;
	void *userdata;
};

struct callback_binding {
	struct ad_sink_binding binding;
	bool paused[AD_SINK_STREAMS];
};

static const struct callback_sink *sink_of(const struct ad_sink_binding *binding)
{
	return AD_CONTAINER_OF(binding->sink, struct callback_sink, sink);
}

static void callback_free(agentd_sink *sink)
{
	struct callback_sink *self = AD_CONTAINER_OF(sink, struct callback_sink, sink);
	agentd_destroy_fn destroy = self->ops.destroy;
	void *userdata = self->userdata;

	agentd_free(self);
	if (destroy)
		destroy(userdata);
}

static void callback_started(struct ad_sink_binding *binding)
{
	const struct callback_sink *self = sink_of(binding);

	if (self->ops.started)
		self->ops.started(binding->exec, self->userdata);
}

static int32_t callback_output(struct ad_sink_binding *binding, agentd_stream stream,
			       const uint8_t *data, size_t len)
{
	struct callback_binding *own = AD_CONTAINER_OF(binding, struct callback_binding, binding);
	const struct callback_sink *self = sink_of(binding);
	int32_t ret;

	if (!self->ops.output)
		return AGENTD_SINK_CONTINUE;
	ret = self->ops.output(binding->exec, stream, data, len, self->userdata);
	/* Such as a count of bytes: better refused than taken for a pause. */
	if (ret > AGENTD_SINK_PAUSE)
		return AGENTD_ERR_INVALID;
	if (ret == AGENTD_SINK_PAUSE)
		own->paused[ad_sink_index(stream)] = true;
	return ret;
}

static void callback_stdin_drained(struct ad_sink_binding *binding)
{
	const struct callback_sink *self = sink_of(binding);

	if (self->ops.stdin_drained)
		self->ops.stdin_drained(binding->exec, self->userdata);
}

static int32_t callback_log(struct ad_sink_binding *binding, const agentd_log_record *record)
{
	const struct callback_sink *self = sink_of(binding);

	return self->ops.log ? self->ops.log(binding->exec, record, self->userdata) : 0;
}

static void callback_denied(struct ad_sink_binding *binding, const agentd_denial *denial)
{
	const struct callback_sink *self = sink_of(binding);

	if (self->ops.denied)
		self->ops.denied(binding->exec, denial, self->userdata);
}

static void callback_exited(struct ad_sink_binding *binding, int32_t exit_code, int32_t signo)
{
	const struct callback_sink *self = sink_of(binding);

	if (self->ops.exited)
		self->ops.exited(binding->exec, exit_code, signo, self->userdata);
}

static void callback_finished(struct ad_sink_binding *binding, agentd_result *result)
{
	const struct callback_sink *self = sink_of(binding);

	if (self->ops.finished)
		self->ops.finished(binding->exec, result, self->userdata);
}

static void callback_resume(struct ad_sink_binding *binding, agentd_stream stream)
{
	struct callback_binding *own = AD_CONTAINER_OF(binding, struct callback_binding, binding);

	own->paused[ad_sink_index(stream)] = false;
}

static bool callback_paused(const struct ad_sink_binding *binding, agentd_stream stream)
{
	const struct callback_binding *own = AD_CONTAINER_OF(binding, struct callback_binding,
							     binding);

	return own->paused[ad_sink_index(stream)];
}

static const struct ad_sink_kind callback_kind = {
	.binding_size = sizeof(struct callback_binding),
	.free = callback_free,
	.started = callback_started,
	.output = callback_output,
	.stdin_drained = callback_stdin_drained,
	.log = callback_log,
	.denied = callback_denied,
	.exited = callback_exited,
	.finished = callback_finished,
	.resume = callback_resume,
	.paused = callback_paused,
};

static int callback_new(const struct agentd_sink_ops *ops, void *userdata, agentd_sink **ret,
			agentd_error **reterr)
{
	ad_autofree struct callback_sink *self = calloc(1, sizeof(*self));
	int code;

	if (!self)
		return ad_fail_nomem(reterr);
	code = ad_sized_copy(&self->ops, sizeof(self->ops), ops, OPS_SIZE_0_1, "agentd_sink_ops",
			     reterr);
	if (code < 0)
		return code;
	if (self->ops.reserved0 != 0)
		return ad_fail(reterr, AGENTD_ERR_ABI, NULL,
			       "agentd_sink_ops: reserved0 must be 0");
	self->userdata = userdata;
	ad_sink_init(&self->sink, &callback_kind);
	*ret = &AD_STEAL(self)->sink;
	return 0;
}

int agentd_sink_new(const struct agentd_sink_ops *ops, void *userdata, agentd_sink **ret,
		    agentd_error **reterr)
{
	int saved = errno, code;

	if (!ops || !ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s must not be NULL",
			       ops ? "ret" : "ops");
	code = callback_new(ops, userdata, ret, reterr);
	errno = saved;
	return code;
}
