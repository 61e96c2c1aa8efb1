/* SPDX-License-Identifier: MIT */
/* The kinds of commands, and what must come of each: known before it starts. */
#include "soak.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int32_t any_code(struct job *job)
{
	return (int32_t)rng_below(&job->rng, 256);
}

static int32_t bad_code(struct job *job)
{
	return (int32_t)rng_range(&job->rng, 1, 255);
}

/* Small ones mostly, some larger than what a pipe holds. */
static uint64_t any_size(struct job *job)
{
	switch (rng_below(&job->rng, 8)) {
	case 0:
		return 0;
	case 1:
		return rng_below(&job->rng, 2000000);
	case 2:
		return rng_below(&job->rng, 200000);
	default:
		return rng_below(&job->rng, 5000);
	}
}

static void stop_some_time(struct job *job)
{
	static const enum moment moments[] = { AT_ONCE,   IN_LOG, IN_STARTED,
					       IN_OUTPUT, LATER,  ELSEWHERE };

	job->stop_at = moments[rng_below(&job->rng, T_COUNT(moments))];
	job->stop = rng_one_in(&job->rng, 3) ? STOP_KILL : STOP_CANCEL;
	job->delay_ms = rng_below(&job->rng, 20);
	if (job->stop_at == AT_ONCE || job->stop_at == IN_LOG)
		job_never_starts(job);
	else if (job->stop_at == LATER || job->stop_at == ELSEWHERE)
		job->want_started = job->want_exited = ANY;
}

/* ---- that end by themselves */

static void plan_exit(struct job *job)
{
	int32_t code = any_code(job);

	switch (rng_below(&job->rng, 5)) {
	case 0:
		job_script(job, "exec sh -c 'exit %d'", code);
		break;
	case 1:
		job_script(job, "(exit %d)", code);
		break;
	case 2:
		job_script(job, "exit %d", code);
		job->argv[0] = "/bin/sh";
		job->argv[1] = "-c";
		job->argv[2] = job->script;
		break;
	case 3:
		job->default_shell = true;
		__attribute__((fallthrough));
	default:
		job_script(job, "exit %d", code);
	}
	job_want_exit(job, code);
}

static void plan_signal(struct job *job)
{
	static const int signals[] = { SIGHUP,  SIGINT,  SIGQUIT,   SIGILL,  SIGTRAP,
				       SIGABRT, SIGBUS,  SIGFPE,    SIGKILL, SIGUSR1,
				       SIGSEGV, SIGUSR2, SIGPIPE,   SIGALRM, SIGTERM,
				       SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGIO,
				       SIGPWR,  SIGSYS,  34,        50,      64 };
	int signo = signals[rng_below(&job->rng, T_COUNT(signals))];

	job_script(job, "kill -%d $$; sleep 60", signo);
	/* Of which nobody can tell whether the filter sent it. */
	job->want_denied = signo == SIGSYS && job->sandbox;
	/* Files in a sandbox have a limit of their own. */
	if (signo == SIGXFSZ && job->sandbox)
		job_want(job, AGENTD_STATUS_KILLED, AGENTD_CAUSE_FILE_SIZE, -1, signo,
			 "file_bytes");
	else
		job_want(job, AGENTD_STATUS_ERROR, AGENTD_CAUSE_SIGNALED, -1, signo, "");
}

static void plan_output(struct job *job)
{
	uint64_t out = any_size(job), err = any_size(job);
	int32_t code = any_code(job);

	job_script(job, "yes %s | head -c %llu; yes %s | head -c %llu >&2; exit %d", job->token,
		   (unsigned long long)out, job->token, (unsigned long long)err, code);
	if (rng_one_in(&job->rng, 4)) {
		job->opts.flags |= AGENTD_EXEC_MERGE_STDERR;
		job->want_out[0] = out + err;
	} else {
		job->patterned = true;
		job->want_out[0] = out;
		job->want_out[1] = err;
	}
	job_want_exit(job, code);
}

static void plan_slow_sink(struct job *job)
{
	plan_output(job);
	job->pause_one_in = rng_range(&job->rng, 1, 4);
	job->delay_ms = rng_below(&job->rng, 4);
}

static void plan_stdin(struct job *job)
{
	int32_t code = any_code(job);
	uint64_t size = any_size(job), part = size / 2;

	job->opts.flags |= AGENTD_EXEC_STDIN_OPEN;
	job->feed = size;
	job->patterned = true;
	switch (rng_below(&job->rng, 4)) {
	case 0:
		job_script(job, "head -c %llu; exit %d", (unsigned long long)part, code);
		job->want_out[0] = part;
		break;
	case 1:
		job->close_at_once = true;
		job->feed = 0;
		job_script(job, "cat; exit %d", code);
		break;
	case 2: /* nobody reads, and the reader is gone */
		job_script(job, "exec 0<&-; exit %d", code);
		break;
	default:
		job_script(job, "cat; exit %d", code);
		job->want_out[0] = size;
	}
	job_want_exit(job, code);
}

static void plan_kept_busy(struct job *job)
{
	int32_t code = any_code(job);

	job_script(job, "for i in 1 2 3 4; do echo %s; sleep 0.01; done; exit %d", job->token,
		   code);
	job->limits.idle_timeout_ms = t_slack(30000);
	job->patterned = true;
	job->want_out[0] = 4 * (strlen(job->token) + 1);
	job_want_exit(job, code);
}

static void plan_background(struct job *job)
{
	static const char *const holders[] = {
		"(setsid sleep 60 &);",
		"sleep 60 &",
		"(trap '' TERM HUP INT; sleep 60; sleep 60) &",
		"(setsid sh -c 'trap \"\" TERM; sleep 60; sleep 60' &);",
		"sh -c 'kill -STOP $$' &",
		"(setsid sh -c 'trap \"\" TERM HUP INT; cd /; exec <&- >&- 2>&-; sleep 60; sleep 60' &);",
		"setsid sh -c 'setsid sh -c \"setsid sleep 60 & sleep 60\" & sleep 60' &",
		"for i in 1 2 3 4 5 6 7 8; do (setsid sleep 60 &); done;",
	};
	int32_t code = any_code(job);

	job_script(job, "echo %s; %s exit %d", job->token,
		   holders[rng_below(&job->rng, T_COUNT(holders))], code);
	job->patterned = true;
	job->want_out[0] = strlen(job->token) + 1;
	job_want_exit(job, code);
}

static void plan_tree(struct job *job)
{
	uint32_t wide = rng_range(&job->rng, 1, 4), deep = rng_range(&job->rng, 1, 4);
	int32_t code = any_code(job);

	job_script(job,
		   "i=0; while [ $i -lt %u ]; do (j=0; while [ $j -lt %u ]; do echo %s & "
		   "j=$((j+1)); done; wait) & i=$((i+1)); done; wait; exit %d",
		   wide, deep, job->token, code);
	job->patterned = true;
	job->want_out[0] = (uint64_t)wide * deep * (strlen(job->token) + 1);
	job_want_exit(job, code);
}

/* ---- that are ended */

static const char *const sleepers[] = {
	"exec sleep 60",
	"sleep 60",
	"trap '' TERM; sleep 60; sleep 60",
	"kill -STOP $$",
	"exec 1>&- 2>&-; exec sleep 60",
	"trap 'exit 9' TERM; sleep 60 & wait",
	"(setsid sh -c 'trap \"\" TERM; sleep 60; sleep 60' &); sleep 60",
	"sleep 60 & sleep 60 & kill -STOP $!; trap '' TERM; kill -STOP $$",
	"while :; do sleep 0.01; done",
};

static const char *any_sleeper(struct job *job)
{
	return sleepers[rng_below(&job->rng, T_COUNT(sleepers))];
}

static void plan_timeout(struct job *job)
{
	job_script(job, "%s", any_sleeper(job));
	if (rng_one_in(&job->rng, 2))
		job->timeout_ms = rng_range(&job->rng, 1, 100);
	else
		job->limits.timeout_ms = rng_range(&job->rng, 1, 100);
	job_want(job, AGENTD_STATUS_TIMEOUT, AGENTD_CAUSE_TIMEOUT, -1, ANY, "timeout_ms");
}

static void plan_idle(struct job *job)
{
	job_script(job, "%s", any_sleeper(job));
	job->limits.idle_timeout_ms = rng_range(&job->rng, 20, 80);
	job_want(job, AGENTD_STATUS_TIMEOUT, AGENTD_CAUSE_IDLE_TIMEOUT, -1, ANY, "idle_timeout_ms");
}

static void plan_cancel(struct job *job)
{
	stop_some_time(job);
	if (job->stop_at == IN_OUTPUT)
		job_script(job, "echo %s; %s", job->token, any_sleeper(job));
	else
		job_script(job, "%s", any_sleeper(job));
	job->want_out[0] = SOAK_ANY;
	job_want(job, AGENTD_STATUS_KILLED, AGENTD_CAUSE_CANCELED, -1, ANY, "");
}

/* Whichever comes first; after the exit it is the exit. */
static void plan_cancel_race(struct job *job)
{
	static const enum moment moments[] = { LATER,     ELSEWHERE,   ELSEWHERE,
					       IN_EXITED, IN_FINISHED, AFTERWARDS };
	int32_t code = any_code(job);

	job_script(job, "exit %d", code);
	job->stop_at = moments[rng_below(&job->rng, T_COUNT(moments))];
	job->stop = rng_one_in(&job->rng, 2) ? STOP_KILL : STOP_CANCEL;
	job->delay_ms = rng_below(&job->rng, 9);
	job_want_exit(job, code);
	if (job->stop_at == LATER || job->stop_at == ELSEWHERE) {
		job->want_started = job->want_exited = ANY;
		job_want(job, AGENTD_STATUS_KILLED, AGENTD_CAUSE_CANCELED, -1, ANY, "");
	}
}

static void plan_signal_sent(struct job *job)
{
	job->stop = STOP_SIGNAL;
	if (rng_one_in(&job->rng, 2)) {
		job->stop_at = IN_STARTED;
		job->signo = SIGUSR2;
		job_script(job, "exec sleep 60");
		job_want(job, AGENTD_STATUS_ERROR, AGENTD_CAUSE_SIGNALED, -1, SIGUSR2, "");
	} else {
		int32_t code = any_code(job);

		job->stop_at = IN_OUTPUT;
		job->signo = SIGUSR1;
		job->want_out[0] = strlen(job->token) + 1;
		job->patterned = true;
		job_script(job,
			   "exec 2>&-; trap 'exit %d' USR1; echo %s; while :; do sleep 0.02; done",
			   code, job->token);
		job_want_exit(job, code);
	}
}

static void plan_sink_error(struct job *job)
{
	job->form = FORM_PLAIN;
	job->want_error = CODE_OF_SINK;
	job_script(job, "yes %s | head -c 300000; sleep 60", job->token);
	job_want(job, AGENTD_STATUS_KILLED, AGENTD_CAUSE_SINK, -1, ANY, "");
	if (rng_one_in(&job->rng, 3)) {
		job->refuse_log = true;
		job_never_starts(job);
	} else {
		job->patterned = true;
		job->refuse_from = rng_range(&job->rng, 1, 300000);
		job->want_out[0] = SOAK_ANY;
	}
}

/* ---- limits */

static void plan_output_cut(struct job *job)
{
	uint64_t limit = rng_range(&job->rng, 1, 100000);
	uint64_t size = limit + rng_range(&job->rng, 1, 500000);
	int32_t code = any_code(job);

	job_script(job, "yes %s | head -c %llu; exit %d", job->token, (unsigned long long)size,
		   code);
	job->limits.output_bytes = limit;
	job->patterned = true;
	job->want_out[0] = size;
	job->want_delivered = limit;
	job_want(job, code ? AGENTD_STATUS_ERROR : AGENTD_STATUS_OK, AGENTD_CAUSE_EXITED, code, 0,
		 "output_bytes");
}

static void plan_output_kill(struct job *job)
{
	job_script(job, "yes %s", job->token);
	job->opts.flags |= AGENTD_EXEC_KILL_ON_OUTPUT;
	job->limits.output_bytes = rng_range(&job->rng, 1, 500000);
	job->patterned = true;
	job->want_out[0] = SOAK_ANY;
	job->want_delivered = job->limits.output_bytes;
	job_want(job, AGENTD_STATUS_KILLED, AGENTD_CAUSE_OUTPUT, -1, ANY, "output_bytes");
}

static void plan_bomb(struct job *job)
{
	job->limits.pids_max = rng_range(&job->rng, 8, 24);
	job->want_out[1] = SOAK_ANY;
	if (rng_one_in(&job->rng, 3)) {
		/* Its first process may end before the others have reached anything. */
		job_script(job, "f() { f | f & }; f; sleep 60");
		job->timeout_ms = 400;
		job_want(job, AGENTD_STATUS_TIMEOUT, AGENTD_CAUSE_TIMEOUT, -1, ANY, NULL);
	} else {
		job_script(job, "i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; "
				"sleep 60; sleep 60");
	}
	/* With a control group forks fail, and dash ends; without one the tree is killed. */
	job_want(job, AGENTD_STATUS_ERROR, AGENTD_CAUSE_EXITED, ANY, 0, "pids_max");
	job_want(job, AGENTD_STATUS_KILLED, AGENTD_CAUSE_PIDS, -1, ANY, "pids_max");
}

static void plan_memory(struct job *job)
{
	job->limits.mem_bytes = (uint64_t)rng_range(&job->rng, 24, 48) << 20;
	job->want_out[1] = SOAK_ANY;
	job_script(job, "exec tail /dev/zero");
	job_want(job, AGENTD_STATUS_KILLED, AGENTD_CAUSE_MEMORY, -1, ANY, "mem_bytes");
	/* Without a control group its own allocation fails first, or not. */
	job_want(job, AGENTD_STATUS_ERROR, AGENTD_CAUSE_EXITED, 1, 0, NULL);
}

static void plan_cpu(struct job *job)
{
	job->limits.cpu_time_ms = rng_range(&job->rng, 30, 90);
	job_script(job, "while :; do :; done");
	job_want(job, AGENTD_STATUS_KILLED, AGENTD_CAUSE_CPU_TIME, -1, ANY, "cpu_time_ms");
}

static void plan_file_size(struct job *job)
{
	job->limits.file_bytes = rng_range(&job->rng, 1, 50000);
	if (job->sandbox) {
		job_script(job, "exec head -c 100000 /dev/zero >/tmp/file");
	} else {
		job->file = t_format("%s/%s", job->soak->workdir, job->token);
		job->file_size = job->limits.file_bytes;
		job_script(job, "exec head -c 100000 /dev/zero >%s", job->token);
	}
	job_want(job, AGENTD_STATUS_KILLED, AGENTD_CAUSE_FILE_SIZE, -1, SIGXFSZ, "file_bytes");
}

/* ---- that never run */

static void plan_missing(struct job *job)
{
	static const char *const no_shell[] = { "/no/such/shell", "-c", NULL };
	const struct soak *soak = job->soak;
	agentd_context *ctx = soak_context(job->soak, job->sandbox, false);

	job->ctx = ctx;
	job_script(job, "echo never");
	job_never_starts(job);
	job_want(job, AGENTD_STATUS_ERROR, AGENTD_CAUSE_SPAWN, -1, 0, "");
	switch (rng_below(&job->rng, 4)) {
	case 0:
		soak_must(agentd_context_set_workdir(ctx, soak->away, NULL), "workdir", NULL);
		break;
	case 1:
		soak_must(agentd_context_set_workdir(ctx, soak->plain_file, NULL), "workdir", NULL);
		break;
	case 2:
		soak_must(agentd_context_set_shell(ctx, no_shell, NULL), "shell", NULL);
		break;
	default:
		job->argv[0] = rng_one_in(&job->rng, 2) ? "no_such_program" : "/etc/hostname";
	}
}

static void plan_denied(struct job *job)
{
	agentd_policy *policy = soak_policy(job->soak, true, false);
	agentd_context *ctx = soak_context(job->soak, job->sandbox, false);
	int32_t cause = AGENTD_CAUSE_POLICY;

	job->ctx = ctx;
	job_script(job, "echo never");
	job_never_starts(job);
	switch (rng_below(&job->rng, 4)) {
	case 0:
		soak_must(agentd_policy_allow_path(policy, "/etc", AGENTD_ACCESS_READ, NULL),
			  "path", NULL);
		break;
	case 1:
		soak_must(agentd_policy_set_net(policy, AGENTD_NET_FULL, NULL), "net", NULL);
		break;
	case 2:
		soak_must(agentd_context_set_credentials(ctx, "token", 1, NULL), "credentials",
			  NULL);
		break;
	default:
		soak_must(agentd_policy_set_min_isolation(policy, AGENTD_ISOLATION_VM, NULL),
			  "isolation", NULL);
		cause = AGENTD_CAUSE_ISOLATION;
	}
	soak_must(agentd_context_set_policy(ctx, policy, NULL), "policy", NULL);
	agentd_policy_unref(policy);
	job->want_error = AGENTD_ERR_DENIED;
	job_want(job, AGENTD_STATUS_DENIED, cause, -1, 0, "");
}

static void plan_refused(struct job *job)
{
	agentd_context *ctx;

	job_script(job, "echo never");
	if (rng_one_in(&job->rng, 3)) {
		job->opts.flags = 1u << rng_range(&job->rng, 3, 31);
		job->want_refusal = AGENTD_ERR_INVALID;
		return;
	}
	if (rng_one_in(&job->rng, 2)) {
		job->ctx = ctx = soak_context(job->soak, job->sandbox, false);
		soak_must(agentd_context_set_backend(ctx, "no-such-backend", NULL), "backend",
			  NULL);
		job->want_refusal = AGENTD_ERR_NOTFOUND;
		return;
	}
	soak_must(agentd_context_new(&job->ctx, NULL), "context", NULL);
	job->want_refusal = AGENTD_ERR_INVALID; /* it has no workdir */
}

/* No command at all comes of these. */
static void plan_malformed(struct job *job)
{
	static const char *const texts[] = {
		"",
		"{",
		"[]",
		"null",
		"{}",
		"{\"command\":}",
		"{\"command\":1}",
		"{\"command\":null}",
		"{\"command\":\"a\"} x",
		"{\"command\":\"a\",\"command\":\"b\"}",
		"{\"command\":\"a\",\"timeout_ms\":-1}",
		"{\"command\":\"a\",\"timeout_ms\":\"1\"}",
		"{\"command\":\"a\",\"timeout_ms\":1.5}",
		"{\"command\":\"a\\u0000b\"}",
		"{\"command\":\"\xff\"}",
		"{'command':'a'}",
	};
	const char *text = texts[rng_below(&job->rng, T_COUNT(texts))];
	agentd_params *params = NULL;
	agentd_error *err = NULL;
	int r = agentd_params_parse(text, strlen(text), &params, &err);

	if (r != AGENTD_ERR_INVALID || params || agentd_error_code(err) != r ||
	    !agentd_error_message(err)[0])
		job_complain(job, "parameters %s: %d, %s", text, r, agentd_error_message(err));
	agentd_params_unref(params);
	agentd_error_unref(err);
	job->want_refusal = AGENTD_ERR_INVALID;
}

/* ---- of a party */

void kinds_plan_doomed(struct job *job)
{
	const struct party *party = job->party;
	int32_t code = bad_code(job);

	job->want_started = job->want_exited = ANY;
	switch (party->fate) {
	case FATE_ZYGOTE_KILLED:
		/* Commands that run go on, and another is made for those to come. */
		job->want_started = job->want_exited = 1;
		job_script(job, "sleep 0.0%u; exit %d", rng_below(&job->rng, 6), code);
		job_want_exit(job, code);
		return;
	case FATE_HELPER_KILLED:
		job_script(job, "%s", any_sleeper(job));
		job_want(job, AGENTD_STATUS_ERROR, AGENTD_CAUSE_BACKEND_LOST, -1, ANY, "");
		job_want(job, AGENTD_STATUS_ERROR, AGENTD_CAUSE_SPAWN, -1, 0, "");
		return;
	case FATE_SUPERVISOR_KILLED:
		/* One of them is hit, the others are not to suffer. */
		job_script(job, "sleep 0.2; exit %d", code);
		job_want_exit(job, code);
		job_want(job, AGENTD_STATUS_ERROR, AGENTD_CAUSE_BACKEND_LOST, -1, ANY, "");
		job_want(job, AGENTD_STATUS_ERROR, AGENTD_CAUSE_SPAWN, -1, 0, "");
		return;
	default:
		job_script(job, "%s", any_sleeper(job));
		job_want(job, AGENTD_STATUS_KILLED, AGENTD_CAUSE_CANCELED, -1, ANY, "");
	}
}

const struct kind soak_kinds[] = {
	{ "exit", 60, plan_exit },
	{ "signal", 20, plan_signal },
	{ "output", 20, plan_output },
	{ "slow-sink", 6, plan_slow_sink },
	{ "stdin", 16, plan_stdin },
	{ "kept-busy", 3, plan_kept_busy },
	{ "background", 10, plan_background },
	{ "tree", 5, plan_tree },
	{ "timeout", 8, plan_timeout },
	{ "idle-timeout", 3, plan_idle },
	{ "cancel", 14, plan_cancel },
	{ "cancel-race", 14, plan_cancel_race },
	{ "signal-sent", 4, plan_signal_sent },
	{ "sink-error", 4, plan_sink_error },
	{ "output-cut", 4, plan_output_cut },
	{ "output-kill", 4, plan_output_kill },
	{ "bomb", 1, plan_bomb },
	{ "memory", 1, plan_memory },
	{ "cpu-time", 1, plan_cpu },
	{ "file-size", 3, plan_file_size },
	{ "missing", 6, plan_missing },
	{ "denied", 6, plan_denied },
	{ "refused", 4, plan_refused },
	{ "malformed", 4, plan_malformed },
	{ "party", 2, NULL },
};
const size_t soak_kind_count = T_COUNT(soak_kinds);

const struct kind *kinds_party(void)
{
	return &soak_kinds[soak_kind_count - 1];
}

const struct kind *kinds_pick(struct rng *rng)
{
	uint32_t all = 0, at;
	size_t i = 0;

	for (size_t j = 0; j < soak_kind_count; j++)
		all += soak_kinds[j].weight;
	at = rng_below(rng, all);
	while (at >= soak_kinds[i].weight)
		at -= soak_kinds[i++].weight;
	return &soak_kinds[i];
}
