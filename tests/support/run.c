/* SPDX-License-Identifier: MIT */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEEP_BYTES = 8 << 20, MAX_CHUNK = 262144 };

static struct t_event *add_event(struct t_run *run, enum t_event_kind kind)
{
	struct t_event *event;

	T_CHECK(run->world->in_api == 0, "callback %d came inside an agentd_* call", (int)kind);
	T_CHECK(!run->finished, "callback %d came after finished", (int)kind);
	if (run->event_count == run->event_cap) {
		run->event_cap = run->event_cap ? run->event_cap * 2 : 16;
		run->events = realloc(run->events, run->event_cap * sizeof(*run->events));
		T_CHECK(run->events, "run->events is NULL");
	}
	event = &run->events[run->event_count++];
	*event = (struct t_event){ .kind = kind, .at_ns = t_now() };
	return event;
}

static void told(struct t_run *run, enum t_event_kind kind)
{
	if (run->on_event)
		run->on_event(run, kind);
}

static void on_started(agentd_exec *exec, void *userdata)
{
	struct t_run *run = userdata;

	add_event(run, T_STARTED);
	T_CHECK(exec, "exec is NULL");
	T_CHECK(!run->started, "started came twice");
	T_CHECK(!run->exited, "started came after exited");
	run->started++;
	told(run, T_STARTED);
}

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct t_run *run = userdata;
	struct t_event *event = add_event(run, T_OUTPUT);

	event->stream = stream;
	event->len = len;
	T_CHECK(exec, "exec is NULL");
	T_CHECK(run->started, "output came before started");
	T_CHECK(stream == AGENTD_STDOUT || stream == AGENTD_STDERR, "output of stream %d", stream);
	T_CHECK(data && len > 0 && len <= MAX_CHUNK, "output of %zu bytes", len);
	run->total[stream] += len;
	if (len > run->max_chunk)
		run->max_chunk = len;
	if (!run->discard && run->out_len[stream] < KEEP_BYTES) {
		size_t keep = KEEP_BYTES - run->out_len[stream];

		if (keep > len)
			keep = len;
		run->out[stream] = realloc(run->out[stream], run->out_len[stream] + keep + 1);
		T_CHECK(run->out[stream], "run->out[stream] is NULL");
		memcpy(run->out[stream] + run->out_len[stream], data, keep);
		run->out_len[stream] += keep;
		run->out[stream][run->out_len[stream]] = '\0';
	}
	if (run->discard)
		run->event_count--; /* a flood is counted, not listed */
	if (run->on_output)
		return run->on_output(run, stream, data, len);
	told(run, T_OUTPUT);
	return AGENTD_SINK_CONTINUE;
}

static void on_drained(agentd_exec *exec, void *userdata)
{
	struct t_run *run = userdata;

	add_event(run, T_DRAINED);
	T_CHECK(exec, "exec is NULL");
	T_CHECK(run->started && !run->exited, "stdin_drained out of order");
	told(run, T_DRAINED);
}

static int32_t on_log(agentd_exec *exec, const agentd_log_record *record, void *userdata)
{
	struct t_run *run = userdata;
	struct t_event *event = add_event(run, T_LOG);

	event->log = run->logs.count;
	T_CHECK(exec, "exec is NULL");
	t_logs_add(&run->logs, record);
	if (run->on_log)
		return run->on_log(run, record);
	told(run, T_LOG);
	return 0;
}

static void on_denied(agentd_exec *exec, const agentd_denial *denial, void *userdata)
{
	struct t_run *run = userdata;
	char *lines;

	add_event(run, T_DENIED);
	T_CHECK(exec, "exec is NULL");
	T_CHECK(agentd_denial_kind(denial), "agentd_denial_kind(denial) is NULL");
	T_CHECK(agentd_denial_target(denial), "agentd_denial_target(denial) is NULL");
	T_CHECK(agentd_denial_rule(denial), "agentd_denial_rule(denial) is NULL");
	T_CHECK(agentd_denial_remedy(denial), "agentd_denial_remedy(denial) is NULL");
	T_CHECK(run->started, "denied came before started");
	lines = t_format("%s%s %s\n", run->denials ? run->denials : "", agentd_denial_rule(denial),
			 agentd_denial_target(denial));
	free(run->denials);
	run->denials = lines;
	told(run, T_DENIED);
}

static void on_exited(agentd_exec *exec, int32_t exit_code, int32_t signo, void *userdata)
{
	struct t_run *run = userdata;
	struct t_event *event = add_event(run, T_EXITED);

	event->exit_code = exit_code;
	event->signo = signo;
	T_CHECK(exec, "exec is NULL");
	T_CHECK(run->started, "exited came before started");
	T_CHECK(!run->exited, "exited came twice");
	T_CHECK((exit_code >= 0 && exit_code <= 255 && signo == 0) ||
			(exit_code == -1 && signo > 0 && signo <= 64),
		"exited with code %d and signal %d", exit_code, signo);
	run->exited++;
	run->exited_ns = event->at_ns;
	run->exit_code = exit_code;
	run->signo = signo;
	told(run, T_EXITED);
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct t_run *run = userdata;
	struct t_event *event = add_event(run, T_FINISHED);

	ck_assert_ptr_nonnull(exec);
	ck_assert_ptr_nonnull(result);
	ck_assert_int_eq(agentd_exec_state(exec), AGENTD_STATE_FINISHED);
	ck_assert_ptr_eq(agentd_exec_result(exec), result);
	run->end_ns = event->at_ns;
	run->result = agentd_result_ref(result);
	ck_assert_ptr_eq(run->result, result);
	run->finished++;
	told(run, T_FINISHED);
}

static void on_destroy(void *userdata)
{
	struct t_run *run = userdata;

	run->destroyed++;
}

void t_run_init(struct t_run *run, struct t_world *world)
{
	*run = (struct t_run){ .world = world };
	/* never NULL, so that nothing at all can be compared too */
	for (size_t i = 0; i < T_COUNT(run->out); i++) {
		run->out[i] = calloc(1, 1);
		ck_assert_ptr_nonnull(run->out[i]);
	}
}

agentd_sink *t_run_sink(struct t_run *run)
{
	static const struct agentd_sink_ops ops = {
		.size = sizeof(ops),
		.started = on_started,
		.output = on_output,
		.stdin_drained = on_drained,
		.log = on_log,
		.denied = on_denied,
		.exited = on_exited,
		.finished = on_finished,
		.destroy = on_destroy,
	};
	agentd_sink *sink = NULL;

	ck_assert_int_eq(agentd_sink_new(&ops, run, &sink, NULL), 0);
	return sink;
}

int t_run_start_params(struct t_run *run, agentd_params *params, agentd_error **reterr)
{
	agentd_sink *sink = t_run_sink(run);
	agentd_exec *exec = NULL;
	int r;

	run->begin_ns = t_now();
	run->world->in_api++;
	r = agentd_exec_start(run->world->runner, run->ctx ? run->ctx : run->world->ctx, params,
			      sink, run->exec_opts, &exec, reterr);
	run->world->in_api--;
	if (r < 0) {
		ck_assert_ptr_null(exec);
		agentd_sink_unref(sink);
		ck_assert_int_eq(run->destroyed, 1);
		ck_assert_uint_eq(run->event_count, 0);
		t_run_free(run);
		return r;
	}
	ck_assert_ptr_nonnull(exec);
	agentd_sink_unref(sink);
	ck_assert_int_eq(run->destroyed, 0);
	run->id = strdup(agentd_exec_id(exec));
	ck_assert_ptr_nonnull(run->id);
	if (run->detached)
		agentd_exec_unref(exec);
	else
		run->exec = exec;
	return r;
}

int t_run_start(struct t_run *run, const char *command, uint64_t timeout_ms)
{
	agentd_params *params = NULL;
	int r;

	ck_assert_int_eq(agentd_params_new_shell(command, timeout_ms, &params, NULL), 0);
	r = t_run_start_params(run, params, NULL);
	agentd_params_unref(params);
	return r;
}

void t_run_wait(struct t_run *run)
{
	if (!t_world_loop(run->world, t_slack(30000), &run->finished))
		ck_abort_msg("never finished: %s", t_run_story(run));
	/* exactly once: whatever else was queued must not call again */
	event_base_loop(run->world->base, EVLOOP_NONBLOCK);
}

void t_run(struct t_run *run, struct t_world *world, const char *command, uint64_t timeout_ms)
{
	t_run_init(run, world);
	ck_assert_int_eq(t_run_start(run, command, timeout_ms), 0);
	t_run_wait(run);
}

void t_run_free(struct t_run *run)
{
	agentd_exec_unref(run->exec);
	if (run->finished && run->world->base) {
		/* The binding may let go of the sink from the loop. */
		t_world_loop(run->world, t_slack(2000), &run->destroyed);
		ck_assert_msg(run->destroyed == 1, "the sink was not let go (%d)", run->destroyed);
	}
	agentd_result_unref(run->result);
	for (size_t i = 0; i < T_COUNT(run->out); i++)
		free(run->out[i]);
	free(run->events);
	free(run->denials);
	free(run->id);
	t_logs_free(&run->logs);
	*run = (struct t_run){ 0 };
}

uint64_t t_run_wall_ms(const struct t_run *run)
{
	uint64_t startup_ns = t_run_metric(run, AGENTD_METRIC_STARTUP_NS);

	return (run->end_ns - run->begin_ns - (startup_ns == UINT64_MAX ? 0 : startup_ns)) /
	       1000000U;
}

uint64_t t_run_metric(const struct t_run *run, int32_t metric)
{
	uint64_t value = UINT64_MAX;
	int r = agentd_result_metric(run->result, metric, &value);

	ck_assert_msg(r == 0 || (r == AGENTD_ERR_NOTFOUND && value == UINT64_MAX), "metric: %d", r);
	return value;
}

const char *t_run_layer(const struct t_run *run, const char *layer, int32_t *ret_state)
{
	size_t count = agentd_result_protection_count(run->result);

	for (size_t i = 0; i < count; i++) {
		const char *name = NULL, *reason = NULL;
		int32_t state = -99;

		ck_assert_int_eq(agentd_result_protection_at(run->result, i, &name, &state,
							     &reason),
				 0);
		if (strcmp(name, layer) == 0) {
			if (ret_state)
				*ret_state = state;
			return reason;
		}
	}
	return NULL;
}

const char *t_run_story(const struct t_run *run)
{
	static char *story;
	static const char *const kinds[] = { "?",   "started", "output", "drained",
					     "log", "denied",  "exited", "finished" };
	size_t size = 0, shown = 0;
	FILE *out;
	char *json = NULL;

	free(story);
	story = NULL;
	out = open_memstream(&story, &size);
	ck_assert_ptr_nonnull(out);
	for (size_t i = 0; i < run->event_count; i++) {
		const struct t_event *event = &run->events[i];

		if (event->kind == T_OUTPUT && ++shown > 20)
			continue;
		fprintf(out, "[%.1f ms %s", (double)(event->at_ns - run->begin_ns) / 1e6,
			kinds[event->kind]);
		if (event->kind == T_OUTPUT)
			fprintf(out, " %d: %zu", event->stream, event->len);
		else if (event->kind == T_EXITED)
			fprintf(out, " %d/%d", event->exit_code, event->signo);
		else if (event->kind == T_LOG && event->log < run->logs.count)
			fprintf(out, " %d %.200s", run->logs.items[event->log].level,
				run->logs.items[event->log].message);
		fputs("] ", out);
	}
	fprintf(out, "out %llu err %llu ", (unsigned long long)run->total[1],
		(unsigned long long)run->total[2]);
	for (int i = 1; i < 3; i++) {
		if (run->out_len[i] > 0)
			fprintf(out, "<%.*s> ", run->out_len[i] > 300 ? 300 : (int)run->out_len[i],
				(const char *)run->out[i]);
	}
	if (run->denials)
		fprintf(out, "denied <%s> ", run->denials);
	if (run->result && agentd_result_to_json(run->result, &json, NULL, NULL) == 0)
		fputs(json, out);
	fclose(out);
	agentd_free(json);
	return story;
}
