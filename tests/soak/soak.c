/* SPDX-License-Identifier: MIT */
/* Commands of all kinds at random, for as long as one likes, and nothing may be wrong: each
 * outcome is known beforehand, and whenever all have ended nothing may have grown or be
 * left. The same seed makes the same commands. SIGINT ends it early.
 *
 *     soak [--seconds N | --commands N] [--seed S] [--backend host|sandbox|mix]
 *          [--concurrency N] [--only N] [--json FILE] [--mistake NAME]
 *
 * --only repeats a single command. --mistake makes one on purpose, to see that it is
 * noticed: outcome, bytes, fd, heap, process, file. */
#include "soak.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __WALL
#define __WALL 0x40000000
#endif

enum {
	FAILURES_MAX = 10,
	SKIP = 77,
	STUCK_MS = 120000,
	SETTLE_MS = 5000,
	PHASE_MAX_S = 20,
	OVERDUE_PER_THOUSAND = 2,
	LEAK = 1 << 16,
	PHASES = 4,         /* at least */
	RETIRE_AFTER = 400, /* commands of a rig */
};

static const char *const mistakes[] = {
	"none", "outcome", "bytes", "fd", "heap", "process", "file"
};

/* ---- small things */

void soak_must(int r, const char *what, agentd_error **err)
{
	if (r >= 0)
		return;
	fprintf(stderr, "soak: %s: %s%s%s\n", what, agentd_strerror(r), err ? ": " : "",
		err ? agentd_error_message(*err) : "");
	exit(1);
}

struct timeval soak_ms(uint64_t ms)
{
	return (struct timeval){ .tv_sec = (time_t)(ms / 1000),
				 .tv_usec = (suseconds_t)(ms % 1000) * 1000 };
}

uint64_t rng_next(struct rng *rng) /* splitmix64 */
{
	uint64_t z = rng->state += 0x9e3779b97f4a7c15U;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
	return z ^ (z >> 31);
}

uint32_t rng_below(struct rng *rng, uint32_t bound)
{
	return (uint32_t)((rng_next(rng) >> 32) * bound >> 32);
}

uint32_t rng_range(struct rng *rng, uint32_t low, uint32_t high)
{
	return low + rng_below(rng, high - low + 1);
}

bool rng_one_in(struct rng *rng, uint32_t n)
{
	return rng_below(rng, n) == 0;
}

/* ---- policies and contexts */

agentd_policy *soak_policy(const struct soak *soak, bool sandbox, bool varied)
{
	static const char *const programs[] = { "/usr", "/bin", "/sbin", "/lib", "/lib64" };
	agentd_policy *policy = t_policy_none();

	for (size_t i = 0; sandbox && i < T_COUNT(programs); i++) {
		if (access(programs[i], F_OK) == 0)
			soak_must(agentd_policy_allow_path(policy, programs[i],
							   AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC,
							   NULL),
				  programs[i], NULL);
	}
	if (sandbox)
		soak_must(agentd_policy_allow_path(policy, soak->home,
						   AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE, NULL),
			  soak->home, NULL);
	if (sandbox && varied) {
		soak_must(agentd_policy_protect_name(policy, ".git/hooks", NULL), "name", NULL);
		soak_must(agentd_policy_deny_path(policy, "/usr/share", NULL), "path", NULL);
	}
	return policy;
}

agentd_context *soak_context(struct soak *soak, bool sandbox, bool varied)
{
	static const char *const sh[] = { "sh", "-c", NULL };
	agentd_policy *policy = soak_policy(soak, sandbox, varied);
	agentd_context *ctx = NULL;

	soak_must(agentd_context_new(&ctx, NULL), "context", NULL);
	soak_must(agentd_context_set_policy(ctx, policy, NULL), "policy", NULL);
	agentd_policy_unref(policy);
	soak_must(agentd_context_set_backend(ctx, sandbox ? "sandbox" : "host", NULL), "backend",
		  NULL);
	soak_must(agentd_context_set_workdir(ctx, soak->workdir, NULL), "workdir", NULL);
	soak_must(agentd_context_set_env(ctx, "HOME", soak->home, NULL), "HOME", NULL);
	soak_must(agentd_context_set_env(ctx, "AGENTD_TEST_TAG", soak->tag, NULL), "tag", NULL);
	soak_must(agentd_context_set_shell(ctx, sh, NULL), "shell", NULL);
	if (varied) {
		soak_must(agentd_context_set_label(ctx, "tenant", "soak", NULL), "label", NULL);
		soak_must(agentd_context_set_trace_id(ctx, "soak-1", NULL), "trace", NULL);
	}
	/* The host backend has no private place for it. */
	if (varied && sandbox)
		soak_must(agentd_context_set_credentials(ctx, "secret", 0, NULL), "token", NULL);
	return ctx;
}

/* ---- mistakes */

static pid_t strays[64];
static size_t stray_count;

static void stray_process(const struct soak *soak)
{
	char *tag = t_format("AGENTD_TEST_TAG=%s", soak->tag);
	char *argv[] = { "sleep", "60", NULL }, *env[] = { tag, NULL };

	if (stray_count < T_COUNT(strays) &&
	    posix_spawn(&strays[stray_count], "/bin/sleep", NULL, NULL, argv, env) == 0)
		stray_count++;
	free(tag);
}

static void end_strays(void)
{
	for (size_t i = 0; i < stray_count; i++) {
		kill(strays[i], SIGKILL);
		waitpid(strays[i], NULL, 0);
	}
}

static void make_mistake(struct soak *soak, struct job *job)
{
	static void *hoard;
	void **more;
	char *path;

	switch (soak->mistake) {
	case MISTAKE_NONE:
		return;
	case MISTAKE_OUTCOME:
		job->wants[0].code += job->want_count > 0;
		return;
	case MISTAKE_BYTES:
		job->want_out[0] += job->want_out[0] != SOAK_ANY;
		return;
	case MISTAKE_FD:
		if (fcntl(0, F_DUPFD_CLOEXEC, 3) < 0)
			abort();
		return;
	case MISTAKE_HEAP:
		more = malloc(LEAK);
		if (!more)
			abort();
		*more = hoard;
		hoard = more;
		return;
	case MISTAKE_PROCESS:
		stray_process(soak);
		return;
	case MISTAKE_FILE:
		path = t_format("%s/%s", soak->workdir, job->token);
		t_write_file(path, "");
		free(path);
	}
}

/* ---- starting, and what has ended */

static void retire(struct soak *soak, size_t at)
{
	static const struct rig_opts opts = { .max_running = 64,
					      .max_queued = 64,
					      .prewarm = UINT32_MAX };
	static const struct rig_opts prewarming = { .max_running = 64,
						    .max_queued = 64,
						    .prewarm = 2 };
	struct rig *rig = soak->rigs[at];

	if (rig) {
		rig->next = soak->retired;
		soak->retired = rig;
	}
	soak->rigs[at] = rig_new(soak, soak->rig_count % 2 ? &opts : &prewarming);
}

static void close_retired(struct soak *soak)
{
	struct rig **at = &soak->retired;

	while (*at) {
		struct rig *rig = *at;

		if (rig->users > 0) {
			at = &rig->next;
			continue;
		}
		*at = rig->next;
		rig_close(soak, rig, rig->helper % 2);
		rig_gone(soak, rig);
	}
}

void soak_started(struct job *job)
{
	struct soak *soak = job->soak;

	job->next = soak->jobs;
	soak->jobs = job;
	soak->active++;
	job->rig->users++;
	soak->counts[job->kind - soak_kinds][job->sandbox]++;
	soak->executions++;
	if (job_start(job))
		return;
	soak->active--;
	job->rig->users--;
	soak_job_done(job);
}

static void start_next(struct soak *soak)
{
	uint64_t number = soak->next++;
	struct rng rng = { .state = soak->seed ^ number * 0xd1342543de82ef95U };
	const struct kind *kind = kinds_pick(&rng);
	struct job *job = job_new(soak, number, kind);
	size_t at = rng_below(&rng, RIGS);

	if (kind == kinds_party()) {
		party_start(job);
		return;
	}
	kind->plan(job);
	if (job->stop_at == AFTERWARDS)
		job->drop_at = AFTERWARDS;
	make_mistake(soak, job);
	if (!job->script) { /* it was about its parameters */
		job->next = soak->jobs;
		soak->jobs = job;
		soak->counts[kind - soak_kinds][job->sandbox]++;
		soak_job_done(job);
		return;
	}
	if (at > 0 && ++soak->rigs[at]->started > RETIRE_AFTER)
		retire(soak, at);
	job->rig = soak->rigs[at];
	soak_started(job);
}

static bool more_to_start(const struct soak *soak)
{
	return !soak->holding && soak->next < soak->commands && soak->failures < FAILURES_MAX;
}

void soak_fill(struct soak *soak)
{
	while (soak->active < soak->concurrency && more_to_start(soak))
		start_next(soak);
}

void soak_job_over(struct job *job)
{
	struct soak *soak = job->soak;

	soak->active--;
	job->rig->users--;
	if (job->restart_inside)
		soak_fill(soak);
}

void soak_job_done(struct job *job)
{
	job->next_done = job->soak->done;
	job->soak->done = job;
	event_active(job->soak->refill, EV_TIMEOUT, 0);
}

static void reap(struct soak *soak)
{
	while (soak->done) {
		struct job *job = soak->done, **at = &soak->jobs;
		struct party *party = job->party;

		soak->done = job->next_done;
		if (job->exec)
			job_moment(job, job->exec, AFTERWARDS);
		if (job->complaint) {
			soak->failures++;
			job_report(job, job->complaint);
		}
		while (*at != job)
			at = &(*at)->next;
		*at = job->next;
		job_free(job);
		if (party)
			party_job_over(party);
	}
	close_retired(soak);
}

static void on_refill(evutil_socket_t fd, short what, void *userdata)
{
	(void)fd;
	(void)what;
	reap(userdata);
	soak_fill(userdata);
}

/* Enough of it: what runs may end, and there is a summary. */
static void on_interrupt(evutil_socket_t fd, short what, void *userdata)
{
	struct soak *soak = userdata;

	(void)fd;
	(void)what;
	soak->commands = soak->next;
}

static void on_tick(evutil_socket_t fd, short what, void *userdata)
{
	struct soak *soak = userdata;
	uint64_t now = t_now();

	(void)fd;
	(void)what;
	for (const struct job *job = soak->jobs; job; job = job->next) {
		if (job->begin_ns && now - job->begin_ns > T_MS(t_slack(STUCK_MS))) {
			job_report(job, "it does not end");
			t_remove_tree(soak->dir);
			exit(1);
		}
	}
}

/* ---- phases: all run, then all end, then there is a count */

static bool is_quiet(struct soak *soak)
{
	return soak->active == 0 && soak->parties == 0 && soak->closing == 0 && !soak->jobs &&
	       !soak->retired && elsewhere_idle(&soak->elsewhere);
}

static void turn(struct soak *soak)
{
	if (event_base_loop(soak->base, EVLOOP_ONCE) != 0)
		abort();
}

/* What is still on its way to its end gets its time. */
static void count(struct soak *soak, struct census *ret)
{
	uint64_t until = t_now() + T_MS(t_slack(SETTLE_MS));

	do {
		if (soak->base)
			t_base_loop(soak->base, 20, NULL);
		else
			t_sleep_ms(20);
		census_take(soak, ret);
	} while ((ret->commands || ret->strangers || ret->cgroups_left) && t_now() < until);
}

static void run_phase(struct soak *soak, uint64_t ms, uint64_t commands)
{
	uint64_t until = t_now() + T_MS(ms), end = soak->next + commands;

	soak->holding = false;
	soak_fill(soak);
	while (more_to_start(soak) && soak->next < end && t_now() < until)
		turn(soak);
	soak->holding = true;
	while (!is_quiet(soak))
		turn(soak);
	/* Leaves of helpers that were killed are removed by the next one. */
	if (soak->helper_was_killed) {
		retire(soak, RIGS - 1);
		close_retired(soak);
		while (!is_quiet(soak))
			turn(soak);
	}
	count(soak, &soak->last);
	if (soak->censuses++ == 0)
		soak->first = soak->last;
	soak->failures += census_compare(soak, &soak->last);
	soak->gone_count = 0;
}

static void run_all(struct soak *soak)
{
	uint64_t phase_ms = PHASE_MAX_S * 1000, end = t_now() + T_MS(soak->seconds * 1000);
	uint64_t phase = (soak->commands - soak->next) / PHASES + 1;

	if (soak->seconds && soak->seconds * 1000 / PHASES < phase_ms)
		phase_ms = soak->seconds * 1000 / PHASES;
	while (soak->next < soak->commands && soak->failures < FAILURES_MAX &&
	       (!soak->seconds || t_now() < end))
		run_phase(soak, phase_ms, phase);
}

/* ---- beginning and end */

static void make_places(struct soak *soak)
{
	const char *tmp = getenv("TMPDIR"), *source = t_helper_source();
	struct stat st;
	off_t done = 0;
	int in, out;

	soak->dir = t_format("%s/agentd-soak-XXXXXX", tmp && *tmp == '/' ? tmp : "/tmp");
	if (!mkdtemp(soak->dir) || chmod(soak->dir, 0755) < 0)
		soak_must(AGENTD_ERR_SYSTEM, soak->dir, NULL);
	soak->workdir = t_format("%s/work", soak->dir);
	soak->home = t_format("%s/home", soak->dir);
	soak->away = t_format("%s/away", soak->dir);
	soak->plain_file = t_format("%s/plain", soak->dir);
	soak->helper = t_format("%s/helper", soak->dir);
	/* The mask of whoever starts us. */
	if (mkdir(soak->workdir, 0755) < 0 || chmod(soak->workdir, 0777) < 0 ||
	    mkdir(soak->home, 0755) < 0 || chmod(soak->home, 0777) < 0)
		soak_must(AGENTD_ERR_SYSTEM, soak->workdir, NULL);
	t_write_file(soak->plain_file, "");
	in = source ? open(source, O_RDONLY | O_CLOEXEC) : -1;
	out = open(soak->helper, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
	if (in < 0 || out < 0 || fstat(in, &st) < 0 || fchmod(out, 0755) < 0)
		soak_must(AGENTD_ERR_SYSTEM, "the helper", NULL);
	while (done < st.st_size) {
		if (sendfile(out, in, &done, (size_t)(st.st_size - done)) <= 0)
			soak_must(AGENTD_ERR_SYSTEM, "the helper", NULL);
	}
	close(in);
	close(out);
	snprintf(soak->tag, sizeof(soak->tag), "agentd-soak-%d-%" PRIx64, (int)getpid(), t_now());
}

/* Can this machine host a sandbox at all? */
static bool sandbox_works(struct soak *soak)
{
	agentd_params *params = NULL;
	agentd_exec *exec = NULL;
	bool works;

	soak_must(agentd_params_new_shell("exit 0", 60000, &params, NULL), "params", NULL);
	soak_must(agentd_exec_start(soak->rigs[0]->runner, soak->contexts[1], params, NULL, NULL,
				    &exec, NULL),
		  "start", NULL);
	agentd_params_unref(params);
	while (agentd_exec_state(exec) != AGENTD_STATE_FINISHED)
		turn(soak);
	works = agentd_result_status(agentd_exec_result(exec)) == AGENTD_STATUS_OK;
	if (!works)
		fprintf(stderr, "SKIP-CANNOT: the sandbox: %s\n",
			agentd_error_message(agentd_result_error(agentd_exec_result(exec))));
	agentd_exec_unref(exec);
	return works;
}

static void open_all(struct soak *soak)
{
	struct timeval second = { .tv_sec = 1 };

	elsewhere_start(&soak->elsewhere);
	soak->base = event_base_new();
	if (!soak->base)
		abort();
	soak->refill = event_new(soak->base, -1, 0, on_refill, soak);
	soak->tick = event_new(soak->base, -1, EV_PERSIST, on_tick, soak);
	soak->interrupt = evsignal_new(soak->base, SIGINT, on_interrupt, soak);
	if (!soak->refill || !soak->tick || !soak->interrupt ||
	    event_add(soak->tick, &second) < 0 || event_add(soak->interrupt, NULL) < 0)
		abort();
	soak->policy = soak_policy(soak, true, false);
	for (size_t i = 0; i < RIGS; i++)
		retire(soak, i);
	soak->contexts[0] = soak_context(soak, false, false);
	soak->contexts[1] = soak_context(soak, true, false);
}

static void close_all(struct soak *soak)
{
	for (size_t i = 0; i < RIGS; i++) {
		rig_close(soak, soak->rigs[i], i == 0);
		rig_gone(soak, soak->rigs[i]);
		soak->rigs[i] = NULL;
	}
	while (!is_quiet(soak))
		turn(soak);
	agentd_context_unref(soak->contexts[0]);
	agentd_context_unref(soak->contexts[1]);
	agentd_policy_unref(soak->policy);
	event_free(soak->refill);
	event_free(soak->tick);
	event_free(soak->interrupt);
	event_base_free(soak->base);
	soak->base = NULL;
	elsewhere_end(&soak->elsewhere);
}

static void free_all(struct soak *soak)
{
	t_remove_tree(soak->dir);
	free(soak->dir);
	free(soak->workdir);
	free(soak->home);
	free(soak->away);
	free(soak->plain_file);
	free(soak->helper);
	free(soak->gone);
	free(soak->counts);
}

/* ---- the summary */

static double growth_kib(uint64_t now, uint64_t first)
{
	return ((double)now - (double)first) / 1024;
}

static void summarize(const struct soak *soak, double seconds)
{
	const struct census *first = &soak->first, *last = &soak->last;

	printf("seed %" PRIu64 ": %" PRIu64 " executions in %.1f s, %.0f/s, %u at a time, uid %d\n"
	       "%" PRIu64 " callbacks, %" PRIu64 " log records, %.1f MiB of output, %u runners, "
	       "%" PRIu64 " helpers killed, %u counts\n",
	       soak->seed, soak->executions, seconds, (double)soak->executions / seconds,
	       soak->concurrency, (int)getuid(), soak->callbacks, soak->records,
	       (double)soak->bytes / (1024 * 1024), soak->rig_count, soak->killed_helpers,
	       soak->censuses);
	printf("%-14s %8s %8s\n", "kind", "host", "sandbox");
	for (size_t i = 0; i < soak_kind_count; i++)
		printf("%-14s %8" PRIu64 " %8" PRIu64 "\n", soak_kinds[i].name, soak->counts[i][0],
		       soak->counts[i][1]);
	printf("after the first count and after the last: heap %+.1f KiB, RSS %+.1f KiB, the helper "
	       "%+.1f KiB, its zygotes %+.1f KiB, its descriptors %" PRIu64 " and %" PRIu64
	       ", its control groups %" PRIu64 " and %" PRIu64 "\n",
	       growth_kib(last->heap, first->heap), growth_kib(last->rss, first->rss),
	       growth_kib(last->helper_rss, first->helper_rss),
	       growth_kib(last->others_rss, first->others_rss), first->helper_fds, last->helper_fds,
	       first->cgroups, last->cgroups);
	printf("%u wrong, %u killed by the helper because their supervisors were late\n",
	       soak->failures, soak->overdue);
}

static void write_json(const struct soak *soak, double seconds)
{
	const struct census *first = &soak->first, *last = &soak->last;
	FILE *out = fopen(soak->json, "we");

	if (!out)
		soak_must(AGENTD_ERR_SYSTEM, soak->json, NULL);
	fprintf(out,
		"{\"seed\":%" PRIu64 ",\"executions\":%" PRIu64
		",\"seconds\":%.3f,\"uid\":%d,\"wrong\":%u,\"overdue\":%u,\"counts\":%u,\"runners\":%u"
		",\"helpers_killed\":%" PRIu64 ",\"callbacks\":%" PRIu64 ",\"bytes\":%" PRIu64,
		soak->seed, soak->executions, seconds, (int)getuid(), soak->failures, soak->overdue,
		soak->censuses, soak->rig_count, soak->killed_helpers, soak->callbacks,
		soak->bytes);
	fprintf(out,
		",\"growth_kib\":{\"heap\":%.1f,\"rss\":%.1f,\"helper\":%.1f,\"zygotes\":%.1f}"
		",\"kinds\":{",
		growth_kib(last->heap, first->heap), growth_kib(last->rss, first->rss),
		growth_kib(last->helper_rss, first->helper_rss),
		growth_kib(last->others_rss, first->others_rss));
	for (size_t i = 0; i < soak_kind_count; i++)
		fprintf(out, "%s\"%s\":{\"host\":%" PRIu64 ",\"sandbox\":%" PRIu64 "}",
			i ? "," : "", soak_kinds[i].name, soak->counts[i][0], soak->counts[i][1]);
	fputs("}}\n", out);
	if (fclose(out) != 0)
		soak_must(AGENTD_ERR_SYSTEM, soak->json, NULL);
}

/* ---- the program */

static _Noreturn void usage(void)
{
	fputs("usage: soak [--seconds N | --commands N] [--seed S] [--backend host|sandbox|mix]\n"
	      "            [--concurrency N] [--only N] [--json FILE] [--mistake NAME]\n",
	      stderr);
	exit(2);
}

static uint64_t number(const char *text, uint64_t most)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value > most)
		usage();
	return value;
}

static void parse(struct soak *soak, int argc, char **argv)
{
	static const struct option options[] = {
		{ "seconds", required_argument, NULL, 't' },
		{ "commands", required_argument, NULL, 'n' },
		{ "seed", required_argument, NULL, 's' },
		{ "backend", required_argument, NULL, 'b' },
		{ "concurrency", required_argument, NULL, 'c' },
		{ "only", required_argument, NULL, 'o' },
		{ "json", required_argument, NULL, 'j' },
		{ "mistake", required_argument, NULL, 'm' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 't':
			soak->seconds = number(optarg, 1 << 24);
			break;
		case 'n':
			soak->commands = number(optarg, SOAK_ANY);
			break;
		case 's':
			soak->seed = number(optarg, SOAK_ANY);
			break;
		case 'b':
			soak->host = strcmp(optarg, "sandbox") != 0;
			soak->sandbox = strcmp(optarg, "host") != 0;
			if (soak->host && soak->sandbox && strcmp(optarg, "mix") != 0)
				usage();
			break;
		case 'c':
			soak->concurrency = (unsigned int)number(optarg, 32);
			break;
		case 'o':
			soak->next = number(optarg, SOAK_ANY - 1);
			soak->commands = soak->next + 1;
			break;
		case 'j':
			soak->json = optarg;
			break;
		case 'm':
			while (strcmp(mistakes[soak->mistake], optarg) != 0) {
				if (++soak->mistake == T_COUNT(mistakes))
					usage();
			}
			break;
		default:
			usage();
		}
	}
	if (optind < argc || soak->concurrency == 0)
		usage();
	if (soak->commands == SOAK_ANY && soak->seconds == 0)
		soak->seconds = 10;
}

int main(int argc, char **argv)
{
	struct soak soak = {
		.seed = 1, .commands = SOAK_ANY, .concurrency = 8, .host = true, .sandbox = true
	};
	struct census left;
	siginfo_t info = { 0 };
	uint64_t begin;
	double seconds;
	bool can = true;

	parse(&soak, argc, argv);
	/* Whoever runs us under nohup ignores it. */
	signal(SIGHUP, SIG_DFL);
	soak.counts = calloc(soak_kind_count, sizeof(*soak.counts));
	if (!soak.counts)
		abort();
	make_places(&soak);
	census_take(&soak, &soak.outside);
	open_all(&soak);
	if (soak.sandbox && !sandbox_works(&soak)) {
		soak.sandbox = false;
		can = soak.host;
	}
	begin = t_now();
	if (can)
		run_all(&soak);
	seconds = (double)(t_now() - begin) / 1e9;
	if (soak.overdue > 2 + soak.executions * OVERDUE_PER_THOUSAND / 1000) {
		fprintf(stderr, "soak: %u supervisors were late\n", soak.overdue);
		soak.failures++;
	}
	close_all(&soak);
	end_strays();
	count(&soak, &left);
	soak.failures += census_left(&soak, &left);
	if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | __WALL) == 0 || errno != ECHILD) {
		fprintf(stderr, "soak: a child was left to the host (pid %d)\n", (int)info.si_pid);
		soak.failures++;
	}
	if (can)
		summarize(&soak, seconds);
	if (can && soak.json)
		write_json(&soak, seconds);
	free_all(&soak);
	return soak.failures > 0 ? 1 : can ? 0 : SKIP;
}
