/* SPDX-License-Identifier: MIT */
/* Runners, parties of commands on a runner that is struck, and the other thread. */
#include "soak.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- runners */

static void count_record(const agentd_log_record *record, void *userdata)
{
	struct soak *soak = userdata;

	if (agentd_log_record_message(record)[0])
		soak->records++;
}

struct rig *rig_new(struct soak *soak, const struct rig_opts *given)
{
	struct rig *rig = calloc(1, sizeof(*rig));
	struct agentd_runner_opts opts = {
		.size = sizeof(opts),
		.event_base = soak->base,
		.policy = soak->policy,
		.log = count_record,
		.log_userdata = soak,
		.log_level = AGENTD_LOG_INFO,
		.max_running = given->max_running,
		.max_queued = given->max_queued,
		.heartbeat_ms = 20,
		.drain_ms = 20,
		.sandbox_prewarm = given->prewarm,
	};
	agentd_error *err = NULL;
	char *path;

	if (!rig)
		abort();
	snprintf(rig->name, sizeof(rig->name), "ak%x-%x", (unsigned int)getpid() & 0xffffffU,
		 ++soak->rig_count & 0xffffU);
	/* A name of its own, by which its processes are known. */
	path = t_format("%s/%s", soak->dir, rig->name);
	if (link(soak->helper, path) < 0)
		soak_must(AGENTD_ERR_SYSTEM, path, NULL);
	opts.helper_path = path;
	soak_must(agentd_runner_new(&opts, &rig->runner, &err), "runner", &err);
	unlink(path);
	free(path);
	if (t_count_processes(NULL, rig->name, &rig->helper, 1) != 1)
		soak_must(AGENTD_ERR_NOTFOUND, "the helper's process", NULL);
	soak->helper_was_killed = false;
	return rig;
}

void rig_gone(struct soak *soak, struct rig *rig)
{
	soak->gone = reallocarray(soak->gone, soak->gone_count + 1, sizeof(*soak->gone));
	if (!soak->gone)
		abort();
	soak->gone[soak->gone_count++] = rig->helper;
	free(rig);
}

static void shutdown_done(agentd_runner *runner, void *userdata)
{
	struct soak *soak = userdata;

	(void)runner;
	soak->closing--;
}

void rig_close(struct soak *soak, struct rig *rig, bool gently)
{
	if (gently) {
		soak->closing++;
		soak->in_api++;
		soak_must(agentd_runner_shutdown(rig->runner, 0, shutdown_done, soak), "shutdown",
			  NULL);
		soak->in_api--;
	}
	soak->in_api++;
	agentd_runner_unref(rig->runner);
	soak->in_api--;
	rig->runner = NULL;
}

void rig_kill_helper(struct soak *soak, struct rig *rig)
{
	soak->helper_was_killed = true;
	soak->killed_helpers++;
	if (kill(rig->helper, SIGKILL) < 0)
		soak_must(AGENTD_ERR_SYSTEM, "kill of the helper", NULL);
}

/* In how many pid namespaces it has a number. */
static size_t numbers_of(pid_t pid)
{
	char *path = t_format("/proc/%d/status", (int)pid), *status = t_read_file(path, NULL);
	char *line = status ? strstr(status, "\nNSpid:") : NULL;
	size_t count = 0;

	for (char *at = line ? line + 1 : NULL; at && *at && *at != '\n'; at++)
		count += *at == '\t';
	free(status);
	free(path);
	return count;
}

pid_t rig_find(const struct rig *rig, bool zygote)
{
	pid_t pids[64];
	size_t count = t_count_processes(NULL, rig->name, pids, T_COUNT(pids));

	for (size_t i = 0; i < count && i < T_COUNT(pids); i++) {
		if (pids[i] != rig->helper && (numbers_of(pids[i]) == 1) == zygote)
			return pids[i];
	}
	return 0;
}

/* ---- parties */

static void party_over(struct party *party)
{
	struct soak *soak = party->soak;

	if (party->rig->runner)
		rig_close(soak, party->rig, party->fate == FATE_SUPERVISOR_KILLED);
	rig_gone(soak, party->rig);
	if (party->timer)
		event_free(party->timer);
	soak->parties--;
	free(party);
}

static struct job *party_add(struct party *party, uint64_t number, unsigned int part, bool sandbox)
{
	struct job *job = job_new(party->soak, number, kinds_party());

	job->part = part;
	job->rng.state += part * 0x517cc1b727220a95U;
	job->party = party;
	job->rig = party->rig;
	job->sandbox = sandbox;
	return job;
}

static void party_run(struct party *party, struct job *job)
{
	party->unfinished++;
	soak_started(job);
}

static void strike(struct party *party)
{
	struct soak *soak = party->soak;
	struct rig *rig = party->rig;
	pid_t pid;

	if (party->struck)
		return;
	party->struck = true;
	switch (party->fate) {
	case FATE_HELPER_KILLED:
		rig_kill_helper(soak, rig);
		break;
	case FATE_SHUT_DOWN:
		soak->closing++;
		soak->in_api++;
		soak_must(agentd_runner_shutdown(rig->runner, party->grace_ms, shutdown_done, soak),
			  "shutdown", NULL);
		soak->in_api--;
		break;
	case FATE_DROPPED:
		rig_close(soak, rig, false);
		break;
	case FATE_DROPPED_ELSEWHERE:
		elsewhere_drop(&soak->elsewhere, rig->runner, 0);
		rig->runner = NULL;
		break;
	case FATE_ZYGOTE_KILLED:
	case FATE_SUPERVISOR_KILLED:
		pid = rig_find(rig, party->fate == FATE_ZYGOTE_KILLED);
		if (pid)
			kill(pid, SIGKILL);
		break;
	case FATE_COUNT:
		break;
	}
}

static void strike_later(evutil_socket_t fd, short what, void *userdata)
{
	(void)fd;
	(void)what;
	strike(userdata);
}

void party_job_started(struct party *party)
{
	if (party->started++ == 0 && party->strike_at == IN_STARTED)
		strike(party);
}

/* Not from inside of its callbacks. */
void party_job_over(struct party *party)
{
	struct job *job;

	if (--party->unfinished > 0)
		return;
	if (party->fate != FATE_HELPER_KILLED || party->last_one || !party->struck) {
		party_over(party);
		return;
	}
	/* This runner is of no more use, and says so. */
	party->last_one = true;
	job = party_add(party, party->number, PARTY_MAX + 1, party->sandbox);
	job_script(job, "echo never");
	job_never_starts(job);
	job->want_error = AGENTD_ERR_BACKEND;
	job_want(job, AGENTD_STATUS_ERROR, AGENTD_CAUSE_SPAWN, -1, 0, "");
	party_run(party, job);
}

void party_start(struct job *host)
{
	static const enum moment moments[] = { AT_ONCE, IN_STARTED, LATER };
	static const uint32_t counts[] = { UINT32_MAX, 0, 2 };
	struct soak *soak = host->soak;
	struct party *party = calloc(1, sizeof(*party));
	uint32_t count = rng_range(&host->rng, 2, PARTY_MAX);
	struct rig_opts opts = { .max_running = rng_range(&host->rng, 1, PARTY_MAX - 1),
				 .max_queued = 1,
				 .prewarm = counts[rng_below(&host->rng, 3)] };

	if (!party)
		abort();
	party->soak = soak;
	party->number = host->number;
	party->sandbox = host->sandbox;
	party->fate = rng_below(&host->rng, FATE_COUNT);
	if (party->fate == FATE_ZYGOTE_KILLED && !party->sandbox)
		party->fate = FATE_SUPERVISOR_KILLED;
	party->grace_ms = rng_one_in(&host->rng, 2) ? 0 : 30;
	party->strike_at = moments[rng_below(&host->rng, T_COUNT(moments))];
	party->rig = rig_new(soak, &opts);
	soak->parties++;
	for (unsigned int part = 1; part <= count; part++) {
		struct job *job = party_add(party, party->number, part, party->sandbox);

		kinds_plan_doomed(job);
		/* There is no place for more. */
		if (part > opts.max_running + opts.max_queued)
			job->want_refusal = AGENTD_ERR_LIMIT;
		party_run(party, job);
	}
	if (party->strike_at == AT_ONCE) {
		strike(party);
	} else if (party->strike_at == LATER) {
		struct timeval tv = soak_ms(rng_below(&host->rng, 30));

		party->timer = evtimer_new(soak->base, strike_later, party);
		if (!party->timer || evtimer_add(party->timer, &tv) < 0)
			abort();
	}
	job_free(host);
}

/* ---- the other thread */

struct errand {
	struct errand *next;
	uint64_t at_ns;
	agentd_exec *exec;
	agentd_runner *runner;
	bool now;
};

static void run_errand(struct errand *errand)
{
	if (errand->exec &&
	    (errand->now ? agentd_exec_kill(errand->exec) : agentd_exec_cancel(errand->exec)) < 0)
		abort();
	agentd_exec_unref(errand->exec);
	agentd_runner_unref(errand->runner);
	free(errand);
}

static void *work(void *userdata)
{
	struct elsewhere *elsewhere = userdata;

	pthread_mutex_lock(&elsewhere->lock);
	while (!elsewhere->over || elsewhere->first) {
		struct errand *errand = elsewhere->first;
		uint64_t now = t_now();

		if (!errand) {
			pthread_cond_wait(&elsewhere->changed, &elsewhere->lock);
		} else if (errand->at_ns > now) {
			struct timespec until = { .tv_sec = (time_t)(errand->at_ns / 1000000000),
						  .tv_nsec = (long)(errand->at_ns % 1000000000) };

			pthread_cond_timedwait(&elsewhere->changed, &elsewhere->lock, &until);
		} else {
			elsewhere->busy = true;
			elsewhere->first = errand->next;
			pthread_mutex_unlock(&elsewhere->lock);
			run_errand(errand);
			pthread_mutex_lock(&elsewhere->lock);
			elsewhere->busy = false;
		}
	}
	pthread_mutex_unlock(&elsewhere->lock);
	return NULL;
}

static void add_errand(struct elsewhere *elsewhere, const struct errand *given, uint32_t delay_ms)
{
	struct errand *errand = malloc(sizeof(*errand)), **at = &elsewhere->first;

	if (!errand)
		abort();
	*errand = *given;
	errand->at_ns = t_now() + T_MS(delay_ms);
	pthread_mutex_lock(&elsewhere->lock);
	while (*at && (*at)->at_ns <= errand->at_ns)
		at = &(*at)->next;
	errand->next = *at;
	*at = errand;
	pthread_cond_signal(&elsewhere->changed);
	pthread_mutex_unlock(&elsewhere->lock);
}

void elsewhere_stop(struct elsewhere *elsewhere, agentd_exec *exec, bool now, uint32_t delay_ms)
{
	add_errand(elsewhere, &(struct errand){ .exec = exec, .now = now }, delay_ms);
}

void elsewhere_drop(struct elsewhere *elsewhere, agentd_runner *runner, uint32_t delay_ms)
{
	add_errand(elsewhere, &(struct errand){ .runner = runner }, delay_ms);
}

bool elsewhere_idle(struct elsewhere *elsewhere)
{
	bool idle;

	pthread_mutex_lock(&elsewhere->lock);
	idle = !elsewhere->first && !elsewhere->busy;
	pthread_mutex_unlock(&elsewhere->lock);
	return idle;
}

void elsewhere_start(struct elsewhere *elsewhere)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&elsewhere->changed, &attr);
	pthread_condattr_destroy(&attr);
	pthread_mutex_init(&elsewhere->lock, NULL);
	if (pthread_create(&elsewhere->thread, NULL, work, elsewhere) != 0)
		abort();
}

void elsewhere_end(struct elsewhere *elsewhere)
{
	pthread_mutex_lock(&elsewhere->lock);
	elsewhere->over = true;
	pthread_cond_signal(&elsewhere->changed);
	pthread_mutex_unlock(&elsewhere->lock);
	pthread_join(elsewhere->thread, NULL);
	pthread_cond_destroy(&elsewhere->changed);
	pthread_mutex_destroy(&elsewhere->lock);
}
