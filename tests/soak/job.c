/* SPDX-License-Identifier: MIT */
/* One command: started, watched through its callbacks, judged. */
#include "soak.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK_MAX = 262144, SUPERVISOR_MS = 6000 };

/* ---- what went wrong, and the rest of the story */

void job_complain(struct job *job, const char *fmt, ...)
{
	va_list args;

	if (job->complaint)
		return;
	va_start(args, fmt);
	if (vasprintf(&job->complaint, fmt, args) < 0)
		abort();
	va_end(args);
}

static void note(struct job *job, const char *what, uint64_t value)
{
	job->events[job->event_count++ % JOB_EVENTS] = (struct event_note){ what, t_now(), value };
}

void job_report(const struct job *job, const char *what)
{
	const struct soak *soak = job->soak;
	size_t from = job->event_count > JOB_EVENTS ? job->event_count - JOB_EVENTS : 0;
	char *json = NULL;

	fprintf(stderr,
		"soak: command %llu.%u (%s, %s): %s\n"
		"  again: soak --seed %llu --only %llu --backend %s\n"
		"  script: %s\n",
		(unsigned long long)job->number, job->part, job->kind->name,
		job->sandbox ? "sandbox" : "host", what, (unsigned long long)soak->seed,
		(unsigned long long)job->number,
		soak->host && soak->sandbox ? "mix" :
		soak->host                  ? "host" :
					      "sandbox",
		job->script ? job->script : "-");
	for (size_t i = 0; i < job->want_count; i++) {
		const struct outcome *want = &job->wants[i];

		fprintf(stderr, "  wanted: %s, %s, code %d, signal %d, limit \"%s\"\n",
			agentd_status_name(want->status), agentd_cause_name(want->cause),
			want->code, want->signo, want->limit ? want->limit : "(any)");
	}
	if (job->result && agentd_result_to_json(job->result, &json, NULL, NULL) == 0) {
		const char *receipt = strstr(json, ",\"receipt\"");

		fprintf(stderr, "  result: %.*s\n", (int)(receipt ? receipt - json : 0), json);
	}
	agentd_free(json);
	fprintf(stderr, "  stop %d (%d, %u ms), drop %d, form %d, %llu and %llu bytes; ",
		job->stop_at, job->stop, job->delay_ms, job->drop_at, job->form,
		(unsigned long long)job->bytes[0], (unsigned long long)job->bytes[1]);
	for (size_t i = from; i < job->event_count; i++) {
		const struct event_note *event = &job->events[i % JOB_EVENTS];

		fprintf(stderr, "[%.1f ms %s %lld]", (double)(event->at_ns - job->begin_ns) / 1e6,
			event->what, (long long)event->value);
	}
	fputc('\n', stderr);
}

/* ---- planning */

void job_script(struct job *job, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	if (vasprintf(&job->script, fmt, args) < 0)
		abort();
	va_end(args);
}

void job_want(struct job *job, int32_t status, int32_t cause, int32_t code, int32_t signo,
	      const char *limit)
{
	if (job->want_count == JOB_WANTS)
		abort();
	job->wants[job->want_count++] = (struct outcome){ status, cause, code, signo, limit };
}

void job_want_exit(struct job *job, int32_t code)
{
	job_want(job, code ? AGENTD_STATUS_ERROR : AGENTD_STATUS_OK, AGENTD_CAUSE_EXITED, code, 0,
		 "");
}

void job_never_starts(struct job *job)
{
	job->want_started = job->want_exited = 0;
}

struct job *job_new(struct soak *soak, uint64_t number, const struct kind *kind)
{
	static const enum moment drops[] = { AT_ONCE,   IN_LOG,      IN_STARTED, IN_OUTPUT,
					     IN_EXITED, IN_FINISHED, AFTERWARDS };
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		abort();
	job->soak = soak;
	job->number = number;
	job->kind = kind;
	job->fd = -1;
	/* Of its own, so that one command is the same whatever ran before. */
	job->rng.state = soak->seed * 0x9e3779b97f4a7c15U + number;
	agentd_limits_init(&job->limits, sizeof(job->limits));
	job->opts = (struct agentd_exec_opts){ .size = sizeof(job->opts), .grace_ms = 40 };
	job->timeout_ms = t_slack(60000);
	job->refuse_from = job->want_delivered = SOAK_ANY;
	job->want_started = job->want_exited = 1;
	snprintf(job->token, sizeof(job->token), "t%llx-%llu", (unsigned long long)soak->seed,
		 (unsigned long long)number);
	job->sandbox = soak->sandbox && (!soak->host || rng_one_in(&job->rng, 2));
	job->drop_at = drops[rng_below(&job->rng, T_COUNT(drops))];
	job->fresh_context = rng_one_in(&job->rng, 4);
	job->from_json = rng_one_in(&job->rng, 4);
	job->restart_inside = rng_one_in(&job->rng, 2);
	job->form = rng_below(&job->rng, 8);
	if (job->form > FORM_TEE_FD)
		job->form = FORM_PLAIN;
	return job;
}

void job_free(struct job *job)
{
	struct event **timers[] = { &job->resume_timer, &job->stop_timer };

	for (size_t i = 0; i < T_COUNT(timers); i++) {
		if (*timers[i])
			event_free(*timers[i]);
	}
	agentd_exec_unref(job->exec);
	agentd_exec_unref(job->resume_exec);
	agentd_exec_unref(job->stop_exec);
	agentd_result_unref(job->result);
	agentd_sink_unref(job->buffer);
	agentd_context_unref(job->ctx);
	if (job->fd >= 0)
		close(job->fd);
	free(job->file);
	free(job->script);
	free(job->complaint);
	free(job);
}

/* ---- stopping, dropping and resuming at their moments */

static void stop(struct job *job, agentd_exec *exec)
{
	int r = 0;

	note(job, "stop", (uint64_t)job->stop);
	job->stopped = true;
	job->soak->in_api++;
	switch (job->stop) {
	case STOP_CANCEL:
		r = agentd_exec_cancel(exec);
		break;
	case STOP_KILL:
		r = agentd_exec_kill(exec);
		break;
	case STOP_SIGNAL:
		r = agentd_exec_signal(exec, job->signo, NULL);
	}
	job->soak->in_api--;
	if (r < 0)
		job_complain(job, "it could not be stopped: %s", agentd_strerror(r));
}

void job_moment(struct job *job, agentd_exec *exec, enum moment at)
{
	if (job->stop_at == at && !job->stopped)
		stop(job, exec);
	if (job->drop_at == at && job->exec) {
		agentd_exec *dropped = job->exec;

		job->exec = NULL;
		agentd_exec_unref(dropped);
	}
}

static void stop_later(evutil_socket_t fd, short what, void *userdata)
{
	struct job *job = userdata;

	(void)fd;
	(void)what;
	stop(job, job->stop_exec);
	agentd_exec_unref(job->stop_exec);
	job->stop_exec = NULL;
}

static void resume_later(evutil_socket_t fd, short what, void *userdata)
{
	struct job *job = userdata;
	agentd_exec *exec = job->resume_exec;
	int r;

	(void)fd;
	(void)what;
	job->resume_exec = NULL;
	job->resuming = false;
	event_free(job->resume_timer);
	job->resume_timer = NULL;
	job->soak->in_api++;
	/* Whichever of them it is. */
	r = agentd_exec_resume(exec, AGENTD_STDOUT);
	if (r == 0)
		r = agentd_exec_resume(exec, AGENTD_STDERR);
	job->soak->in_api--;
	if (r < 0)
		job_complain(job, "resume: %s", agentd_strerror(r));
	agentd_exec_unref(exec);
}

static struct event *timer_in(struct job *job, uint32_t ms, event_callback_fn fn)
{
	struct timeval tv = soak_ms(ms);
	struct event *timer = evtimer_new(job->soak->base, fn, job);

	if (!timer || evtimer_add(timer, &tv) < 0)
		abort();
	return timer;
}

static void feed(struct job *job, agentd_exec *exec)
{
	char text[64 * TOKEN_SIZE];
	size_t period = strlen(job->token) + 1, len = sizeof(text) / period * period;
	int r = 0;

	for (size_t i = 0; i < len; i++)
		text[i] = i % period == period - 1 ? '\n' : job->token[i % period];
	while (job->fed < job->feed && r == 0) {
		size_t from = (size_t)(job->fed % period), left = len - from, taken = 0;

		if (left > job->feed - job->fed)
			left = (size_t)(job->feed - job->fed);
		job->soak->in_api++;
		r = agentd_exec_write(exec, (const uint8_t *)text + from, left, &taken);
		job->soak->in_api--;
		if (r == 0 && (taken == 0 || taken > left))
			job_complain(job, "%zu of %zu bytes were taken", taken, left);
		job->fed += taken;
	}
	if (r == AGENTD_ERR_AGAIN)
		return;
	if (r < 0 && r != AGENTD_ERR_STATE)
		job_complain(job, "write: %s", agentd_strerror(r));
	job->fed = job->feed;
	r = agentd_exec_close_stdin(exec);
	if (r < 0)
		job_complain(job, "close_stdin: %s", agentd_strerror(r));
}

/* ---- callbacks */

static struct job *called(void *userdata, const char *what, uint64_t value)
{
	struct job *job = userdata;

	note(job, what, value);
	job->soak->callbacks++;
	if (job->soak->in_api > 0)
		job_complain(job, "%s was called inside of an agentd_* call", what);
	if (job->finished)
		job_complain(job, "%s was called after finished", what);
	return job;
}

static void on_started(agentd_exec *exec, void *userdata)
{
	struct job *job = called(userdata, "started", 0);

	if (job->started++ || job->exited)
		job_complain(job, "started came twice or after exited");
	if (job->opts.flags & AGENTD_EXEC_STDIN_OPEN && !job->close_at_once)
		feed(job, exec);
	job_moment(job, exec, IN_STARTED);
	if (job->party)
		party_job_started(job->party);
}

static bool is_pattern(const struct job *job, uint64_t from, const uint8_t *data, size_t len)
{
	size_t period = strlen(job->token) + 1, at = (size_t)(from % period);

	for (size_t i = 0; i < len; i++) {
		if (data[i] != (at + 1 == period ? '\n' : job->token[at]))
			return false;
		at = at + 1 == period ? 0 : at + 1;
	}
	return true;
}

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct job *job = called(userdata, stream == AGENTD_STDERR ? "stderr" : "stdout", len);
	uint64_t *bytes = &job->bytes[stream == AGENTD_STDERR];

	if (!job->started)
		job_complain(job, "output came before started");
	if (stream != AGENTD_STDOUT && stream != AGENTD_STDERR)
		job_complain(job, "output of stream %d", stream);
	if (len == 0 || len > CHUNK_MAX)
		job_complain(job, "%zu bytes of output at once", len);
	if (job->resuming && stream == AGENTD_STDOUT)
		job_complain(job, "output came in a pause");
	if (job->patterned && !is_pattern(job, *bytes, data, len))
		job_complain(job, "output that is not its own near byte %llu",
			     (unsigned long long)*bytes);
	*bytes += len;
	job_moment(job, exec, IN_OUTPUT);
	if (job->bytes[0] + job->bytes[1] >= job->refuse_from)
		return CODE_OF_SINK;
	if (job->pause_one_in && stream == AGENTD_STDOUT && !job->resume_timer &&
	    rng_one_in(&job->rng, job->pause_one_in)) {
		job->resuming = true;
		job->resume_exec = agentd_exec_ref(exec);
		job->resume_timer = timer_in(job, job->delay_ms, resume_later);
		return AGENTD_SINK_PAUSE;
	}
	return AGENTD_SINK_CONTINUE;
}

static void on_drained(agentd_exec *exec, void *userdata)
{
	struct job *job = called(userdata, "drained", 0);

	if (!job->started || job->exited)
		job_complain(job, "stdin_drained came before started or after exited");
	feed(job, exec);
}

static int32_t on_log(agentd_exec *exec, const agentd_log_record *record, void *userdata)
{
	struct job *job = called(userdata, "log", 0);

	if (!agentd_log_record_message(record)[0])
		job_complain(job, "an empty log record");
	job_moment(job, exec, IN_LOG);
	return job->refuse_log ? CODE_OF_SINK : 0;
}

static void on_denied(agentd_exec *exec, const agentd_denial *denial, void *userdata)
{
	struct job *job = called(userdata, "denied", 0);

	(void)exec;
	if (job->denied++ == job->want_denied)
		job_complain(job, "denied: %s %s", agentd_denial_kind(denial),
			     agentd_denial_target(denial));
}

static void on_exited(agentd_exec *exec, int32_t exit_code, int32_t signo, void *userdata)
{
	struct job *job = called(userdata, "exited",
				 (uint64_t)(exit_code >= 0 ? exit_code : -signo));

	if (job->exited++ || !job->started)
		job_complain(job, "exited came twice or before started");
	job->exit_code = exit_code;
	job->exit_signo = signo;
	job_moment(job, exec, IN_EXITED);
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct job *job = called(userdata, "finished", (uint64_t)agentd_result_cause(result));

	job->finished++;
	job->result = agentd_result_ref(result);
	if (agentd_exec_result(exec) != result || agentd_exec_state(exec) != AGENTD_STATE_FINISHED)
		job_complain(job, "finished, and the handle says otherwise");
	job_moment(job, exec, IN_FINISHED);
	soak_job_over(job);
}

static void judge(struct job *job);

static void on_destroy(void *userdata)
{
	struct job *job = userdata;

	note(job, "destroy", 0);
	if (job->destroyed++)
		job_complain(job, "destroy came twice");
	/* Refused: whoever started it goes on with it. */
	if (job->result) {
		judge(job);
		soak_job_done(job);
	}
}

/* ---- judging */

static uint64_t metric(struct job *job, int32_t number)
{
	uint64_t value = 0;

	if (agentd_result_metric(job->result, number, &value) < 0)
		job_complain(job, "metric %d is missing", number);
	return value;
}

static bool outcome_is(const struct job *job, const struct outcome *want)
{
	const agentd_result *result = job->result;

	return agentd_result_status(result) == want->status &&
	       agentd_result_cause(result) == want->cause &&
	       (want->code == ANY || agentd_result_exit_code(result) == want->code) &&
	       (want->signo == ANY || agentd_result_signal(result) == want->signo) &&
	       (!want->limit || strcmp(agentd_result_limit(result), want->limit) == 0);
}

/* The helper gives a supervisor this long to kill its tree, then does it itself, and the
 * result is that the backend was lost: on a machine that stands still it comes to that. */
static bool is_overdue(const struct job *job)
{
	bool was_to_be_killed = false;

	for (size_t i = 0; i < job->want_count; i++)
		was_to_be_killed |= job->wants[i].status == AGENTD_STATUS_KILLED ||
				    job->wants[i].status == AGENTD_STATUS_TIMEOUT;
	return was_to_be_killed && agentd_result_cause(job->result) == AGENTD_CAUSE_BACKEND_LOST &&
	       t_now() - job->begin_ns > T_MS(SUPERVISOR_MS);
}

static void judge_outcome(struct job *job)
{
	int32_t cause = agentd_result_cause(job->result);
	const agentd_error *error = agentd_result_error(job->result);
	const char *backend = job->started ? job->sandbox ? "sandbox" : "host" : "";
	bool good = false;

	for (size_t i = 0; i < job->want_count; i++)
		good |= outcome_is(job, &job->wants[i]);
	if (!good && is_overdue(job)) {
		job->soak->overdue++;
		good = true;
	}
	if (!good)
		job_complain(job, "another outcome: %s, %s, code %d, signal %d, limit \"%s\"",
			     agentd_status_name(agentd_result_status(job->result)),
			     agentd_cause_name(cause), agentd_result_exit_code(job->result),
			     agentd_result_signal(job->result), agentd_result_limit(job->result));
	if (job->want_error && agentd_error_code(error) != job->want_error)
		job_complain(job, "error %d (%s), not %d", agentd_error_code(error),
			     agentd_error_message(error), job->want_error);
	if (cause == AGENTD_CAUSE_EXITED ? error != NULL :
	    cause == AGENTD_CAUSE_SPAWN || cause == AGENTD_CAUSE_POLICY ||
			    cause == AGENTD_CAUSE_ISOLATION || cause == AGENTD_CAUSE_BACKEND_LOST ||
			    cause == AGENTD_CAUSE_SINK ?
					   error == NULL :
					   false)
		job_complain(job, "%s error", error ? "an" : "no");
	if (strcmp(agentd_result_backend(job->result), backend) != 0)
		job_complain(job, "backend \"%s\", not \"%s\"", agentd_result_backend(job->result),
			     backend);
	if (cause == AGENTD_CAUSE_SPAWN && job->started)
		job_complain(job, "it could not be started, and was");
	if (cause == AGENTD_CAUSE_EXITED &&
	    (!job->exited || job->exit_code != agentd_result_exit_code(job->result)))
		job_complain(job, "exited said %d", job->exit_code);
	if (cause == AGENTD_CAUSE_SIGNALED &&
	    (!job->exited || job->exit_signo != agentd_result_signal(job->result)))
		job_complain(job, "exited said signal %d", job->exit_signo);
}

static void judge_bytes(struct job *job)
{
	const uint64_t made[2] = { metric(job, AGENTD_METRIC_STDOUT_BYTES),
				   metric(job, AGENTD_METRIC_STDERR_BYTES) };
	uint64_t dropped = metric(job, AGENTD_METRIC_DROPPED_BYTES);
	uint64_t delivered = job->bytes[0] + job->bytes[1];

	for (int i = 0; i < 2; i++) {
		if (job->want_out[i] != SOAK_ANY && made[i] != job->want_out[i])
			job_complain(job, "%llu bytes on stream %d, not %llu",
				     (unsigned long long)made[i], i + 1,
				     (unsigned long long)job->want_out[i]);
	}
	if (made[0] + made[1] != delivered + dropped)
		job_complain(job, "%llu bytes made, %llu delivered, %llu dropped",
			     (unsigned long long)(made[0] + made[1]), (unsigned long long)delivered,
			     (unsigned long long)dropped);
	if (job->want_delivered != SOAK_ANY && delivered != job->want_delivered)
		job_complain(job, "%llu bytes delivered, not %llu", (unsigned long long)delivered,
			     (unsigned long long)job->want_delivered);
	/* What was all wanted and nobody refused is all there. */
	if (job->want_delivered == SOAK_ANY && job->want_out[0] != SOAK_ANY &&
	    job->want_out[1] != SOAK_ANY && dropped)
		job_complain(job, "%llu bytes dropped", (unsigned long long)dropped);
	if (agentd_result_truncated(job->result) != (dropped > 0))
		job_complain(job, "truncated: %d", agentd_result_truncated(job->result));
	job->soak->bytes += delivered;
}

static void judge_copies(struct job *job)
{
	struct stat st;

	for (int i = 0; job->buffer && i < 2; i++) {
		const uint8_t *data = NULL;
		uint64_t missing = 0;
		size_t len = 0;

		if (agentd_sink_buffer_get(job->buffer, i == 0 ? AGENTD_STDOUT : AGENTD_STDERR,
					   &data, &len, &missing) < 0 ||
		    len + missing != job->bytes[i])
			job_complain(job, "the buffer has %zu bytes, lacks %llu of stream %d", len,
				     (unsigned long long)missing, i + 1);
	}
	if (job->fd >= 0 && (fstat(job->fd, &st) < 0 || (uint64_t)st.st_size != job->bytes[0]))
		job_complain(job, "the file has %lld bytes", (long long)st.st_size);
	if (job->file) {
		if (stat(job->file, &st) < 0 || (uint64_t)st.st_size != job->file_size)
			job_complain(job, "%s: %s or not of %llu bytes", job->file, strerror(errno),
				     (unsigned long long)job->file_size);
		unlink(job->file);
	}
}

static void judge(struct job *job)
{
	if (job->want_started != ANY && job->started != job->want_started)
		job_complain(job, "started was called %d times", job->started);
	if (job->want_exited != ANY && !is_overdue(job) && job->exited != job->want_exited)
		job_complain(job, "exited was called %d times", job->exited);
	if (job->denied != job->want_denied)
		job_complain(job, "denied was called %d times", job->denied);
	judge_outcome(job);
	judge_bytes(job);
	judge_copies(job);
}

/* ---- starting */

static agentd_sink *make_sink(struct job *job)
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
	agentd_sink *own = NULL, *other = NULL, *tee = NULL;

	soak_must(agentd_sink_new(&ops, job, &own, NULL), "sink", NULL);
	if (job->form == FORM_PLAIN)
		return own;
	if (job->form == FORM_TEE_BUFFER) {
		soak_must(agentd_sink_new_buffer(rng_below(&job->rng, 3000),
						 rng_below(&job->rng, 3000), &other, NULL),
			  "buffer", NULL);
		job->buffer = agentd_sink_ref(other);
	} else {
		job->fd = memfd_create("soak", MFD_CLOEXEC);
		if (job->fd < 0)
			soak_must(AGENTD_ERR_SYSTEM, "memfd_create", NULL);
		soak_must(agentd_sink_new_fd(job->fd, -1, &other, NULL), "fd sink", NULL);
	}
	soak_must(agentd_sink_new_tee(own, other, &tee, NULL), "tee", NULL);
	agentd_sink_unref(own);
	agentd_sink_unref(other);
	return tee;
}

static char *as_json(const struct job *job)
{
	size_t size;
	char *json = NULL;
	FILE *out = open_memstream(&json, &size);

	if (!out)
		abort();
	fputs("{\"command\":\"", out);
	for (const char *at = job->script; *at; at++) {
		if (*at == '"' || *at == '\\')
			fputc('\\', out);
		fputc(*at, out);
	}
	fprintf(out, "\",\"timeout_ms\":%llu,\"unknown\":[1]}",
		(unsigned long long)job->timeout_ms);
	fclose(out);
	return json;
}

static agentd_params *make_params(const struct job *job)
{
	agentd_params *params = NULL;
	agentd_error *err = NULL;
	int r;

	if (job->argv[0]) {
		r = agentd_params_new_argv(job->argv, job->timeout_ms, &params, &err);
	} else if (job->from_json) {
		char *json = as_json(job);

		r = agentd_params_parse(json, strlen(json), &params, &err);
		free(json);
	} else {
		r = agentd_params_new_shell(job->script, job->timeout_ms, &params, &err);
	}
	soak_must(r, "params", &err);
	return params;
}

static agentd_context *make_context(struct job *job)
{
	agentd_context *ctx;

	if (job->ctx) {
		ctx = job->ctx;
		job->ctx = NULL;
		return ctx;
	}
	if (!job->fresh_context && !job->default_shell)
		return agentd_context_ref(job->soak->contexts[job->sandbox]);
	ctx = soak_context(job->soak, job->sandbox, rng_one_in(&job->rng, 2));
	if (job->default_shell)
		soak_must(agentd_context_set_shell(ctx, NULL, NULL), "shell", NULL);
	return ctx;
}

/* A call that must be refused, and call nobody back. */
static void judge_refusal(struct job *job, int r, const agentd_error *err)
{
	if (r != job->want_refusal || agentd_error_code(err) != r)
		job_complain(job, "refused with %d (%s), not %d", r, agentd_error_message(err),
			     job->want_refusal);
	if (job->exec || job->event_count != 1 || job->destroyed != 1)
		job_complain(job, "refused, and called back");
}

bool job_start(struct job *job)
{
	struct soak *soak = job->soak;
	agentd_context *ctx = make_context(job);
	agentd_params *params = make_params(job);
	agentd_sink *sink = make_sink(job);
	agentd_error *err = NULL;
	int r;

	job->opts.limits = &job->limits;
	job->begin_ns = t_now();
	soak->in_api++;
	r = agentd_exec_start(job->rig->runner, ctx, params, sink, &job->opts, &job->exec, &err);
	soak->in_api--;
	/* Whatever it needs it holds. */
	agentd_context_unref(ctx);
	agentd_params_unref(params);
	agentd_sink_unref(sink);
	if (r < 0 || job->want_refusal) {
		judge_refusal(job, r, err);
		agentd_error_unref(err);
		if (r < 0)
			return false;
	}
	job->stop_exec = agentd_exec_ref(job->exec);
	if (job->opts.flags & AGENTD_EXEC_STDIN_OPEN && job->close_at_once)
		feed(job, job->exec);
	if (job->stop_at == LATER)
		job->stop_timer = timer_in(job, job->delay_ms, stop_later);
	else if (job->stop_at == ELSEWHERE)
		elsewhere_stop(&soak->elsewhere, agentd_exec_ref(job->exec), job->stop == STOP_KILL,
			       job->delay_ms);
	if (job->stop_at != LATER) {
		agentd_exec_unref(job->stop_exec);
		job->stop_exec = NULL;
	}
	job_moment(job, job->exec, AT_ONCE);
	return true;
}
