/* SPDX-License-Identifier: MIT */
/* What the tests share: a world (base, runner, context, temporary directories),
 * runs that record everything that happened, and the check that nothing of it is
 * left behind. Public headers only. */
#ifndef TESTS_HARNESS_H
#define TESTS_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <check.h>
#include <event2/event.h>

#include <agentd/agentd.h>

/* For what is called often, or outside of tests: libcheck writes a record for every
 * assertion that holds. */
#define T_CHECK(condition, ...)                                                                    \
	do {                                                                                       \
		if (!(condition))                                                                  \
			ck_abort_msg(__VA_ARGS__);                                                 \
	} while (0)

#define T_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define T_MS(ms) ((uint64_t)(ms)*1000000U)

/* ---- time */

uint64_t t_now(void); /* CLOCK_MONOTONIC, ns */
void t_sleep_ms(uint64_t ms);
/* Deadlines are stretched where everything is slow: sanitizers, valgrind, and where a
 * program or AGENTD_TEST_STRETCH asks for it. */
uint64_t t_slack(uint64_t ms);
void t_stretch(unsigned int factor);
bool t_is_slow(void);
/* Smaller numbers will do: slow, or what is repeated as another user. */
bool t_is_small(void);
bool t_on_valgrind(void);
/* Is there what virtual machines need? If not, that is skipped (t_skip). */
bool t_can_host_machines(void);
const char *t_image_dir(void); /* of the real machines */

/* ---- the process and the machine */

/* Print "SKIP-CANNOT: <reason>" and remember that something was skipped. */
void t_skip(const char *fmt, ...) __attribute__((__format__(__printf__, 1, 2)));
/* Exit status of a test program: 1 after failures, 77 when all it could do was
 * skip, else 0. */
int t_main(const char *name, TCase *const *cases, size_t count);

/* A TCase with tests that may take `seconds` (stretched by t_slack). */
TCase *t_case(const char *name, unsigned int seconds);

uint64_t t_status_number(const char *key, int base); /* of /proc/self/status */
uint64_t t_rss_bytes(void);
/* dir and all that is beneath it. */
size_t t_count_files(const char *dir);
uint64_t t_meminfo_bytes(const char *key);
/* All of a file, NUL-terminated, to be freed; NULL when it cannot be read. */
char *t_read_file(const char *path, size_t *ret_len);
void t_write_file(const char *path, const char *text);
int t_listen(int *ret_port); /* a TCP socket on 127.0.0.2 */
char *t_format(const char *fmt, ...) __attribute__((__format__(__printf__, 1, 2)));
void t_remove_tree(const char *path);

struct t_fds {
	int *fds;
	size_t count;
};
void t_fds_take(struct t_fds *fds);
void t_fds_free(struct t_fds *fds);
/* Fails the test when a descriptor is open that was not, or the reverse. */
void t_fds_expect_same(const struct t_fds *before, const char *when);

/* Living processes other than this one that carry tag in their environment or
 * arguments, or are called name; either may be NULL. */
size_t t_count_processes(const char *tag, const char *name, pid_t *ret_pids, size_t max);
/* 'S' sleeps, 'Z' is a zombie (proc_pid_stat(5)); 0: there is none. */
char t_process_state(pid_t pid);
/* All there are, zombies too. */
size_t t_children(pid_t parent, pid_t *ret_pids, size_t max);
/* How many control groups agentd-<pid>-<number> are there? *ret is the path of one, to be
 * freed, or NULL. */
size_t t_find_cgroups(const pid_t *pids, size_t count, char **ret);

/* ---- worlds */

struct t_field {
	char *key, *value;
};

struct t_log {
	int32_t level;
	uint64_t at_ns;
	char *component, *message;
	struct t_field *fields;
	size_t field_count;
};

struct t_logs {
	struct t_log *items;
	size_t count, cap;
};

void t_logs_add(struct t_logs *logs, const agentd_log_record *record);
void t_logs_free(struct t_logs *logs);
const struct t_log *t_logs_find(const struct t_logs *logs, size_t from, const char *message);
size_t t_logs_count(const struct t_logs *logs, const char *message);
const char *t_log_field(const struct t_log *log, const char *key);

struct t_world_opts {
	uint32_t max_running, max_queued, heartbeat_ms, drain_ms, runner_flags;
	uint32_t sandbox_prewarm;
	int32_t log_level;   /* 0: debug */
	const char *backend; /* NULL: host; "": none named */
	bool login_shell;    /* bash -lc, the default of the library; else sh -c */
	bool paths;          /* the policy names the system's programs and home, for a sandbox */
	bool no_log;         /* no log callback */
	agentd_log_fn log;
	void *log_userdata;
	/* To add a backend before the first command; NULL: none. */
	int (*add_backend)(agentd_runner *runner, agentd_error **reterr);
	struct event_base *base;            /* NULL: one of its own, from `loop` or new */
	const struct agentd_limits *limits; /* of the runner's policy */
	const char *runner_policy;          /* JSON; NULL: as the context's */
	const char *microvm_image, *microvm_monitor, *microvm_guest; /* as the runner's */
};

struct t_world {
	struct t_world_opts opts;
	struct event_base *base;
	bool owns_base;
	agentd_runner *runner;
	agentd_context *ctx;
	char *dir, *workdir, *home;
	/* A copy of the helper in dir, with a name by which its processes are known. */
	char *helper, helper_name[16];
	/* A link to the virtual machine monitor, for the same reason. */
	char *monitor, monitor_name[16];
	char tag[48];
	struct t_logs logs; /* through the runner's callback */
	struct t_fds fds_before;
	pid_t helpers[4]; /* of this world, also when they are gone */
	size_t helper_count;
	int in_api; /* > 0 inside an agentd_* call: no callback may come */
};

/* Fails the test when anything goes wrong. */
struct t_world *t_world_new(const struct t_world_opts *opts);
/* Everything but base and runner. */
struct t_world *t_world_new_bare(const struct t_world_opts *opts);
void t_world_start(struct t_world *world); /* base (if it has none), runner, context */
agentd_context *t_world_context(struct t_world *world);
agentd_policy *t_policy_none(void); /* accepts AGENTD_ISOLATION_NONE */
/* Shut the runner down, run the loop until it is gone, free the base and check
 * that nothing is left behind. */
void t_world_free(struct t_world *world);
/* The parts of it, for tests that tear down in their own way. */
void t_world_shutdown(struct t_world *world);
void t_world_expect_clean(struct t_world *world);
/* The memory alone, for a world whose runner and base somebody else took down. */
void t_world_forget(struct t_world *world);
/* Until no process of this world lives; fails after within_ms (stretched). */
void t_world_expect_dead(struct t_world *world, uint64_t within_ms);
/* Like it, but the helper itself may go on. */
void t_world_expect_commands_dead(struct t_world *world, uint64_t within_ms);
/* For tests that make the runner themselves. */
void t_world_note_helpers(struct t_world *world);
/* On a slow machine it does not have its name yet when the world is made. */
pid_t t_world_helper(struct t_world *world);
size_t t_world_helper_pids(struct t_world *world, pid_t *ret_pids, size_t max);
/* Run the loop for about ms, or until *flag is non-zero (flag may be NULL). True
 * when it is. */
bool t_world_loop(struct t_world *world, uint64_t ms, const int *flag);
bool t_base_loop(struct event_base *base, uint64_t ms, const int *flag);
const char *t_helper_source(void); /* NULL: only the library knows */
char *t_copy_program(const char *source, const char *dir, const char *name);

/* ---- runs */

enum t_event_kind { T_STARTED = 1, T_OUTPUT, T_DRAINED, T_LOG, T_DENIED, T_EXITED, T_FINISHED };

struct t_event {
	enum t_event_kind kind;
	uint64_t at_ns;
	agentd_stream stream;     /* OUTPUT */
	size_t len;               /* OUTPUT */
	int32_t exit_code, signo; /* EXITED */
	size_t log;               /* LOG: index */
};

struct t_run {
	struct t_world *world;
	const struct agentd_exec_opts *exec_opts;
	agentd_context *ctx; /* NULL: the world's */
	/* Called after the event was recorded; data and record as in the callback.
	 * What output and log return goes back to the library. */
	int32_t (*on_output)(struct t_run *run, agentd_stream stream, const uint8_t *data,
			     size_t len);
	int32_t (*on_log)(struct t_run *run, const agentd_log_record *record);
	void (*on_event)(struct t_run *run, enum t_event_kind kind);
	void *userdata;
	bool discard;  /* count output, do not keep it */
	bool detached; /* drop the handle as soon as it was started */

	agentd_exec *exec;
	agentd_result *result;
	char *id;
	struct t_event *events;
	size_t event_count, event_cap;
	struct t_logs logs; /* through the sink */
	char *denials;      /* lines: rule, blank, target */
	uint8_t *out[3];
	size_t out_len[3];
	uint64_t total[3];
	size_t max_chunk;
	int started, exited, finished, destroyed;
	int32_t exit_code, signo; /* as the exited callback said */
	uint64_t begin_ns, exited_ns, end_ns;
};

void t_run_init(struct t_run *run, struct t_world *world);
agentd_sink *t_run_sink(struct t_run *run);
/* Both return what agentd_exec_start() did; then nothing is to be freed. */
int t_run_start_params(struct t_run *run, agentd_params *params, agentd_error **reterr);
int t_run_start(struct t_run *run, const char *command, uint64_t timeout_ms);
/* Until finished; fails the test after 30 s (stretched). */
void t_run_wait(struct t_run *run);
void t_run_free(struct t_run *run);
/* All of it: start, wait. */
void t_run(struct t_run *run, struct t_world *world, const char *command, uint64_t timeout_ms);
uint64_t t_run_wall_ms(const struct t_run *run);                /* without what its start took */
uint64_t t_run_metric(const struct t_run *run, int32_t metric); /* UINT64_MAX: none */
const char *t_run_layer(const struct t_run *run, const char *layer, int32_t *ret_state);
/* Text of everything that is known of how it went, for failure messages. */
const char *t_run_story(const struct t_run *run);

#define t_expect_status(run, want)                                                                 \
	ck_assert_msg(agentd_result_status((run)->result) == (want), "status %s wanted: %s",       \
		      agentd_status_name(want), t_run_story(run))
#define t_expect_cause(run, want)                                                                  \
	ck_assert_msg(agentd_result_cause((run)->result) == (want), "cause %s wanted: %s",         \
		      agentd_cause_name(want), t_run_story(run))
#define t_expect_exit(run, want)                                                                   \
	ck_assert_msg(agentd_result_exit_code((run)->result) == (want), "exit code %d wanted: %s", \
		      (want), t_run_story(run))
#define t_expect_out(run, stream, text)                                                            \
	ck_assert_msg((run)->out_len[stream] == strlen(text) &&                                    \
			      memcmp((run)->out[stream], text, strlen(text)) == 0,                 \
		      "\"%s\" wanted on stream %d: %s", text, stream, t_run_story(run))

/* code, and that the error says the same and something readable; takes err. */
void t_expect_error(int got, int want, agentd_error *err, const char *text, const char *pointer);

#endif
