/* SPDX-License-Identifier: MIT */
/* Private to core: the runner, the execution and what they share. */
#ifndef AD_CORE_H
#define AD_CORE_H

#include <pthread.h>
#include <stdbool.h>

#include <agentd/agentd.h>

#include "backend/backend.h"
#include "core/context.h"
#include "core/params.h"
#include "loop/loop.h"
#include "policy/policy.h"
#include "pool/pool.h"
#include "sink/sink.h"
#include "util/util.h"

struct ad_egress;
struct ad_launcher;
struct ad_resolver;

#define AD_NEVER UINT64_MAX

enum {
	AD_READ_CHUNK = AD_TASK_OUTPUT_MAX, /* one read */
};

struct agentd_runner {
	ad_refcount refs;
	uint32_t flags;
	struct ad_loop *loop;
	struct ad_launcher *launcher; /* NULL once it is gone */
	struct ad_registry registry;
	struct ad_resolver *resolver; /* for networks of allowed hosts */
	struct ad_list pools;         /* made for it */
	agentd_pool *pool;            /* that sessions come from, or NULL */
	agentd_policy *policy;
	agentd_policy *no_policy; /* what a context without a policy has */
	agentd_log_fn log;
	void *log_userdata;
	int32_t log_level;
	uint32_t max_running, max_queued;
	uint64_t heartbeat_ns, drain_ns;
	uint64_t machine_memory;
	uint64_t next_id;
	char id_prefix[10];   /* of each execution's id */
	char *helper_path;    /* as the options say, or NULL */
	uint8_t *read_buffer; /* AD_READ_CHUNK, shared by all streams of all executions */

	struct ad_list queued;   /* executions waiting for a place, oldest first */
	struct ad_list given_up; /* finished, but their tasks have not ended */
	struct ad_list active;   /* those that have one, until they are released */
	uint32_t queued_count, active_count;

	uint32_t in_log; /* log callbacks on the stack */
	uint32_t pins;   /* frames that still use the runner */
	bool shutting_down, released;
	uint32_t shutdown_grace_ms;
	agentd_runner_fn shutdown_done;
	void *shutdown_userdata;
	struct ad_defer settle; /* after the last execution of a shutdown */
	struct ad_post wake;    /* other threads want cancels, or pools they dropped, seen to */
	struct ad_post drop;    /* the last reference is gone: only that may lead to the end */
};

/* One layer of a receipt; reason follows layer in the same allocation. */
struct ad_receipt_line {
	char *layer;
	const char *reason;
	int32_t state;
};

struct ad_receipt {
	struct ad_receipt_line *layers;
	size_t count, cap;
};

enum { AD_METRIC_COUNT = 11 }; /* AGENTD_METRIC_* are below */

struct agentd_result {
	ad_refcount refs;
	agentd_status status;
	int32_t cause;
	int32_t exit_code, signo;
	bool truncated;
	int32_t asked_isolation; /* AGENTD_ISOLATION_* of the policies */
	char id[32];
	char backend[36];
	char limit[24];
	agentd_error *error;
	uint64_t metrics[AD_METRIC_COUNT];
	uint32_t metrics_known; /* bit per AGENTD_METRIC_* */
	uint32_t denied_count;
	struct ad_receipt receipt;
	const struct ad_context_state *context; /* trace id, labels, backend asked for */
};

/* Where one run would go; see plan.c. */
struct ad_plan {
	struct ad_backend *backend; /* NULL when refused */
	agentd_pool *pool;          /* the session comes from it (a reference), or NULL */
	agentd_error *no_session;   /* why an ephemeral sandbox takes its place, or NULL */
	int32_t min_isolation;
	agentd_policy *context_policy;
	struct agentd_limits limits;
	uint32_t limits_requested;
	int32_t refused_cause; /* 0, or AGENTD_CAUSE_POLICY / _ISOLATION / _SPAWN */
	agentd_error *refusal;
};

/* A stream of output on its way to the sink. */
struct ad_stream {
	struct ad_io io; /* of an attached pipe */
	struct agentd_exec *exec;
	agentd_stream number;
	bool attached;  /* io has a descriptor */
	bool eof;       /* nothing more will come */
	bool paused;    /* by the sink */
	bool let_go;    /* that is waited for no longer: what the backend held back is dropped */
	bool enlarged;  /* its pipe was */
	uint64_t bytes; /* produced */
};

struct agentd_exec {
	ad_refcount refs;
	pthread_mutex_t lock;  /* guards runner against calls from other threads */
	agentd_runner *runner; /* NULL once released */
	_Atomic int wanted;    /* enum ad_stop_level asked for by agentd_exec_cancel() */
	struct ad_list link;   /* of the runner's lists */
	char id[32];
	int32_t state;  /* AGENTD_STATE_* */
	uint32_t flags; /* AGENTD_EXEC_* */
	const struct ad_context_state *context;
	agentd_params *params;
	struct agentd_limits own_limits; /* of agentd_exec_opts */
	struct ad_plan plan;
	struct ad_sink_binding *binding;
	struct agentd_task task;
	struct agentd_spec spec;
	void *spec_memory[4];        /* argv, environment, mounts, volume */
	struct ad_pool_lease lease;  /* of the session */
	struct ad_stream streams[2]; /* stdout, stderr */
	struct ad_egress *egress;    /* its network, or NULL */
	struct ad_list asks;         /* open questions about that */
	struct ad_defer step;        /* next thing to do, from the loop */
	struct ad_timer timer;       /* the earliest of the times below */
	int32_t pid;

	/* CLOCK_MONOTONIC nanoseconds; AD_NEVER or 0: not set */
	uint64_t created_at, begun_at, started_at, exited_at, stopped_at;
	uint64_t setup_until, deadline, heartbeat_at, kill_at, drain_until, lost_at;
	uint64_t active_at; /* last output or stdin */
	uint64_t armed_at;  /* what the timer is set to */
	uint64_t grace_ns;

	int stop_cause; /* AGENTD_CAUSE_*, 0: nobody stopped it */
	bool killed, exited, task_over, sink_failed, waiting_probe, finishing;
	bool task_lost;       /* by the backend, and its session with it */
	bool starts_anew;     /* the step is to acquire the session again */
	bool started_anew;    /* once is enough */
	bool placed;          /* counts as active, not as queued */
	bool deadline_passed; /* after it had exited */
	bool stdin_closed, stdin_waiting;
	bool stdin_given;   /* a task has taken some: another one would not have it */
	bool stdin_refused; /* and promised to tell when it takes more */
	bool pipes;         /* output comes through attached pipes, not pushed by the backend */
	int wait_status;
	char limit[24];
	int32_t fatal_cause; /* of a limit the backend killed for */
	agentd_error *error;
	uint64_t delivered, dropped;
	uint64_t metrics[AD_METRIC_COUNT];
	uint32_t metrics_known;
	uint32_t denied_count;
	struct ad_receipt receipt;
	struct ad_utf8 stderr_utf8;
	struct ad_buf stderr_tail;
	uint64_t stderr_kept_from; /* offset of stderr_tail in the stream */
	agentd_result *result;
};

enum ad_stop_level { AD_STOP_NONE, AD_STOP_CANCEL, AD_STOP_KILL };

/* ---- runner.c */
void ad_runner_pin(agentd_runner *runner);
void ad_runner_unpin(agentd_runner *runner); /* may free it */
/* On the loop's thread, and not in a log callback, which may come from anywhere.
 * [any thread] */
bool ad_runner_on_loop(const agentd_runner *runner);
/* Have what other threads want seen to. [any thread] */
void ad_runner_wake(agentd_runner *runner);
/* A new execution: it gets a place and its first step, or waits for that. */
void ad_runner_exec_add(agentd_runner *runner, agentd_exec *exec);
/* An execution is over: give its place to the next one, settle a shutdown. */
void ad_runner_exec_over(agentd_runner *runner, bool placed);

/* ---- the execution; what its files offer each other is in exec.h */
/* Stop for a cause; the first cause stays. now: without grace. */
void ad_exec_stop(agentd_exec *exec, int cause, bool now);
/* Apply what agentd_exec_cancel() asked for. */
void ad_exec_apply_wanted(agentd_exec *exec);
/* The base was freed: kill and forget, without callbacks. */
void ad_exec_abandon(agentd_exec *exec);
/* The runner or the session goes, and with it the task of one that is finished. */
void ad_exec_forget_late(agentd_exec *exec);
/* Look at everything and go on: kill, drain, finish, arm the timer. */
void ad_exec_settle(agentd_exec *exec);
/* For the result; what was noted first stays. */
void ad_exec_note_limit(agentd_exec *exec, const char *limit);
void ad_exec_set_metric(agentd_exec *exec, int32_t metric, uint64_t value);

/* ---- stream.c */
void ad_streams_init(agentd_exec *exec);
int ad_stream_attach(agentd_exec *exec, agentd_stream number, int fd);
/* Deliver, cap and count. AGENTD_SINK_CONTINUE or _PAUSE. */
int32_t ad_stream_deliver(struct ad_stream *stream, const uint8_t *data, size_t len);
bool ad_streams_over(const agentd_exec *exec);
bool ad_streams_paused(const agentd_exec *exec);
void ad_stream_resume(agentd_exec *exec, agentd_stream number);
/* Of one that was killed: the sink that said "not now" is waited for no longer. What a backend
 * has held back, and what still comes, is counted as dropped. True: there was something to wait
 * for. */
bool ad_streams_let_go(agentd_exec *exec);
/* What is in attached pipes now is delivered, until the sink says "not now". */
void ad_streams_read_rest(agentd_exec *exec);
/* What is still in attached pipes is read; delivered where the sink takes it, else
 * counted as dropped. Everything is closed afterwards. */
void ad_streams_finish(agentd_exec *exec);
/* The backend is done: what it delivered itself is all there is. */
void ad_streams_end_pushed(agentd_exec *exec);
void ad_streams_discard(agentd_exec *exec); /* close without reading */
/* stderr as one record to the sink, if all of it was UTF-8. */
void ad_streams_log_stderr(agentd_exec *exec);

/* ---- net.c */
/* Serve a listening socket in the command's network. Takes it, also on failure. */
int ad_exec_net_attach(agentd_exec *exec, int fd);
/* Serve one client of a command that is in another machine. Takes it, also on failure. */
int ad_exec_net_serve(agentd_exec *exec, int fd);
/* Everything is closed, and counted. Idempotent. */
void ad_exec_net_close(agentd_exec *exec);

/* ---- record.c: log records with their fields */
enum { AD_FIELD_MAX = 12 };
struct ad_record {
	struct ad_log_field fields[AD_FIELD_MAX];
	char numbers[AD_FIELD_MAX][AD_DECIMAL_SIZE + 1]; /* and a sign */
	size_t count;
};
void ad_record_text(struct ad_record *record, const char *key, const char *value);
void ad_record_u64(struct ad_record *record, const char *key, uint64_t value);
void ad_record_i64(struct ad_record *record, const char *key, int64_t value);
bool ad_log_wanted(const agentd_runner *runner, int32_t level);
/* The most detailed level that a backend's records are passed on at: sinks get them
 * down to INFO, further down only where the runner was asked for that. */
int32_t ad_log_most(const agentd_runner *runner);
/* To the runner's log; fields of record (may be NULL), then id and trace id. */
void ad_log_exec(agentd_exec *exec, int32_t level, const char *component, const char *message,
		 struct ad_record *record);
/* To the execution's sink (and, if both, the runner's log). Non-zero: it refused. */
int32_t ad_log_sink(agentd_exec *exec, int32_t level, const char *component, const char *message,
		    bool both);
/* To both, with fields. */
int32_t ad_log_both(agentd_exec *exec, int32_t level, const char *component, const char *message,
		    struct ad_record *record);
/* What concerns no execution; a value of NULL is left out. */
void ad_log_session(agentd_runner *runner, int32_t level, const char *message, const char *session,
		    const char *error);

/* ---- plan.c */
/* Where the session could not be had: an ephemeral sandbox, or a refusal. Takes why. */
int ad_plan_fall_back(agentd_exec *exec, agentd_error *why, agentd_error **reterr);
/* Decide without side effects. 0 with plan->refused_cause 0 or a refusal; negative
 * for what agentd_exec_start() itself must fail with. */
int ad_plan_make(agentd_runner *runner, const struct ad_context_state *context,
		 const agentd_params *params, const struct agentd_limits *own_limits,
		 struct ad_plan *ret, agentd_error **reterr);
void ad_plan_clear(struct ad_plan *plan);
/* Fill exec->spec from its plan, context and params. */
int ad_spec_fill(agentd_exec *exec, agentd_error **reterr);
/* Its descriptors go; what else it says stays. */
void ad_spec_close(agentd_exec *exec);
void ad_spec_clear(agentd_exec *exec);

/* ---- result.c */
int ad_receipt_set(struct ad_receipt *receipt, const char *layer, int32_t state,
		   const char *reason);
void ad_receipt_clear(struct ad_receipt *receipt);
agentd_result *ad_result_new(void);
const char *ad_isolation_name(int32_t isolation);
const char *ad_layer_state_name(int32_t state);

#endif
