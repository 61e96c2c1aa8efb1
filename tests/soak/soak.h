/* SPDX-License-Identifier: MIT */
/* The parts of the soak: soak.c is the program and decides what runs when, kinds.c says
 * what kinds of commands there are and what must come of them, job.c follows one through
 * its life and judges it, rig.c has the runners, census.c counts what is there. */
#ifndef TESTS_SOAK_H
#define TESTS_SOAK_H

#include <pthread.h>
#include <signal.h>

#include "harness.h"

#define SOAK_ANY UINT64_MAX

enum {
	ANY = INT32_MIN,
	PARTY_MAX = 5,
	RIGS = 3, /* the first lives as long as the program, the others come and go */
	JOB_WANTS = 4,
	JOB_EVENTS = 24,
	TOKEN_SIZE = 32,
	CODE_OF_SINK = -4242,
};

struct rng {
	uint64_t state;
};

uint64_t rng_next(struct rng *rng);
uint32_t rng_below(struct rng *rng, uint32_t bound);
uint32_t rng_range(struct rng *rng, uint32_t low, uint32_t high); /* both inclusive */
bool rng_one_in(struct rng *rng, uint32_t n);

/* What the soak itself does wrong on purpose, to see that it notices. */
enum mistake {
	MISTAKE_NONE,
	MISTAKE_OUTCOME,
	MISTAKE_BYTES,
	MISTAKE_FD,
	MISTAKE_HEAP,
	MISTAKE_PROCESS,
	MISTAKE_FILE,
};

enum moment {
	NEVER,
	AT_ONCE,
	IN_LOG,
	IN_STARTED,
	IN_OUTPUT,
	IN_EXITED,
	IN_FINISHED,
	AFTERWARDS,
	LATER,     /* from a timer of the loop */
	ELSEWHERE, /* from another thread */
};

enum stop { STOP_CANCEL, STOP_KILL, STOP_SIGNAL };

enum form { FORM_PLAIN, FORM_TEE_BUFFER, FORM_TEE_FD };

/* ---- runners */

struct rig {
	agentd_runner *runner;
	char name[16]; /* of the helper's processes */
	pid_t helper;
	unsigned int users, started;
	struct rig *next; /* that is closed when its commands are over */
};

struct rig_opts {
	uint32_t max_running, max_queued, prewarm;
};

/* ---- commands */

struct outcome {
	int32_t status, cause, code, signo;
	const char *limit; /* NULL: any */
};

struct job;
struct party;
struct soak;

struct kind {
	const char *name;
	unsigned int weight;
	void (*plan)(struct job *job);
};

struct event_note {
	const char *what;
	uint64_t at_ns, value;
};

struct job {
	struct soak *soak;
	uint64_t number;
	unsigned int part; /* of a party, from 1 */
	const struct kind *kind;
	struct party *party;
	struct rig *rig;
	struct rng rng;
	struct job *next, *next_done;

	/* What to run. */
	bool sandbox, fresh_context, from_json, default_shell;
	char *script;
	const char *argv[4];
	uint64_t timeout_ms;
	struct agentd_limits limits;
	struct agentd_exec_opts opts;
	agentd_context *ctx; /* NULL: the soak's, or one as the flags above say */
	char *file;          /* to be of file_size bytes afterwards, and removed */
	uint64_t file_size;

	/* What to do meanwhile. */
	enum form form;
	enum moment stop_at, drop_at;
	enum stop stop;
	int32_t signo;
	uint32_t delay_ms;
	bool restart_inside;
	uint32_t pause_one_in; /* pieces of output; 0: never */
	uint64_t refuse_from;  /* bytes of output; SOAK_ANY: never */
	bool refuse_log;
	uint64_t feed, fed;
	bool close_at_once;

	/* What must come of it. */
	char token[TOKEN_SIZE];
	bool patterned; /* each stream is the token, again and again */
	struct outcome wants[JOB_WANTS];
	size_t want_count;
	int32_t want_started, want_exited, want_denied, want_error;
	uint64_t want_out[2], want_delivered;
	int want_refusal; /* of agentd_exec_start() */

	/* What came. */
	agentd_exec *exec, *resume_exec, *stop_exec;
	agentd_sink *buffer;
	int fd;
	struct event *resume_timer, *stop_timer;
	agentd_stream resume_stream;
	agentd_result *result;
	uint64_t begin_ns, bytes[2];
	int started, denied, exited, finished, destroyed;
	int32_t exit_code, exit_signo;
	bool stopped, resuming;
	char *complaint; /* the first */
	struct event_note events[JOB_EVENTS];
	size_t event_count;
};

struct job *job_new(struct soak *soak, uint64_t number, const struct kind *kind);
/* False when it was refused, as it may have to be; the job is then over. */
bool job_start(struct job *job);
void job_complain(struct job *job, const char *fmt, ...)
	__attribute__((__format__(__printf__, 2, 3)));
void job_script(struct job *job, const char *fmt, ...)
	__attribute__((__format__(__printf__, 2, 3)));
void job_want(struct job *job, int32_t status, int32_t cause, int32_t code, int32_t signo,
	      const char *limit);
void job_want_exit(struct job *job, int32_t code);
void job_never_starts(struct job *job);
void job_moment(struct job *job, agentd_exec *exec, enum moment at);
void job_report(const struct job *job, const char *what);
void job_free(struct job *job);

/* ---- several on a runner of their own, to which something happens */

enum fate {
	FATE_HELPER_KILLED,
	FATE_SHUT_DOWN,
	FATE_DROPPED,
	FATE_DROPPED_ELSEWHERE,
	FATE_ZYGOTE_KILLED,
	FATE_SUPERVISOR_KILLED,
	FATE_COUNT,
};

struct party {
	struct soak *soak;
	struct rig *rig;
	uint64_t number;
	bool sandbox;
	enum fate fate;
	enum moment strike_at; /* AT_ONCE, IN_STARTED (the first), LATER */
	uint32_t grace_ms;
	unsigned int unfinished, started;
	bool struck, last_one;
	struct event *timer;
};

void party_start(struct job *job);
void party_job_started(struct party *party);
void party_job_over(struct party *party);

/* ---- everything */

struct census {
	uint64_t heap, rss, fds, threads, mounts, files, commands, strangers, cgroups_left;
	/* Of the first rig: */
	uint64_t helper_rss, helper_fds, others, others_rss, cgroups;
};

struct elsewhere {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct errand *first;
	bool busy, over;
};

struct soak {
	uint64_t seed, commands; /* SOAK_ANY: no end of them */
	uint64_t seconds;
	unsigned int concurrency;
	bool host, sandbox;
	enum mistake mistake;
	const char *json;

	char *dir, *workdir, *home, *away, *plain_file, *helper, tag[48];
	struct event_base *base;
	struct event *refill, *tick, *interrupt;
	agentd_policy *policy;
	agentd_context *contexts[2]; /* host, sandbox */
	struct rig *rigs[RIGS], *retired;
	unsigned int rig_count; /* ever made */
	pid_t *gone;            /* helpers */
	size_t gone_count;
	bool helper_was_killed; /* and no runner was made since */
	struct elsewhere elsewhere;
	int in_api;

	uint64_t next, executions, callbacks, bytes, records, killed_helpers;
	unsigned int active, parties, closing, failures, overdue;
	bool holding;
	struct job *jobs, *done;
	uint64_t (*counts)[2]; /* per kind: host, sandbox */

	struct census outside, first, last;
	unsigned int censuses;
};

agentd_policy *soak_policy(const struct soak *soak, bool sandbox, bool varied);
agentd_context *soak_context(struct soak *soak, bool sandbox, bool varied);
void soak_must(int r, const char *what, agentd_error **err);
void soak_job_over(struct job *job); /* it has finished */
void soak_job_done(struct job *job); /* and nobody knows of it any more */
/* Starts what there is a place for. */
void soak_fill(struct soak *soak);
void soak_started(struct job *job);
struct timeval soak_ms(uint64_t ms);

struct rig *rig_new(struct soak *soak, const struct rig_opts *opts);
/* Lets go of the runner. */
void rig_close(struct soak *soak, struct rig *rig, bool gently);
/* Remembers its helper's number for the next count, and frees it. */
void rig_gone(struct soak *soak, struct rig *rig);
void rig_kill_helper(struct soak *soak, struct rig *rig);
/* Of the helper's processes one of the kind: zygote (of no pid namespace of its own) or
 * what starts a command. 0: there is none. */
pid_t rig_find(const struct rig *rig, bool zygote);

void elsewhere_start(struct elsewhere *elsewhere);
/* Takes the references. */
void elsewhere_stop(struct elsewhere *elsewhere, agentd_exec *exec, bool now, uint32_t delay_ms);
void elsewhere_drop(struct elsewhere *elsewhere, agentd_runner *runner, uint32_t delay_ms);
bool elsewhere_idle(struct elsewhere *elsewhere);
void elsewhere_end(struct elsewhere *elsewhere);

void census_take(const struct soak *soak, struct census *ret);
/* What grew; the number of complaints, which are printed. */
unsigned int census_compare(const struct soak *soak, const struct census *now);
unsigned int census_left(const struct soak *soak, const struct census *now);

extern const struct kind soak_kinds[];
extern const size_t soak_kind_count;
void kinds_plan_doomed(struct job *job);
const struct kind *kinds_pick(struct rng *rng);
const struct kind *kinds_party(void);

#endif
