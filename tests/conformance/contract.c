/* SPDX-License-Identifier: MIT */
/* The library's side of agentd/backend.h: what a backend is told, what it may get
 * wrong, and that whatever it does a run finishes once. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <agentd/backend.h>

#include "harness.h"

#define STATUS_EXIT(code) ((code) << 8)

struct fake;
typedef void (*fake_fn)(struct fake *fake);

struct fake {
	/* what it does */
	fake_fn inside;  /* inside task_start, before it returns */
	fake_fn act;     /* from the loop, soon after task_start */
	fake_fn on_kill; /* from the loop, after task_kill */
	void (*look)(struct fake *fake, const agentd_spec *spec);
	int32_t start_code, open_code, probe_code;
	agentd_error *start_error, *probe_error;
	bool probe_silent;

	/* what it saw */
	struct event_base *base;
	agentd_backend_report *report;
	agentd_task *task;
	int opened, closed, probes, starts, kills, frees, signals;
	int paused[3];
	int last_signal;
	void *state; /* where task_free can be told from a wrong pointer */
};

struct call {
	struct fake *fake;
	agentd_task *task;
	fake_fn fn;
};

static void call_now(evutil_socket_t fd, short what, void *userdata)
{
	struct call *call = userdata;

	(void)fd;
	(void)what;
	if (call->fake->frees < call->fake->starts) {
		call->fake->task = call->task;
		call->fn(call->fake);
	}
	free(call);
}

static void later(struct fake *fake, fake_fn fn)
{
	struct timeval now = { 0, 1000 };
	struct call *call;

	if (!fn)
		return;
	call = malloc(sizeof(*call));
	ck_assert_ptr_nonnull(call);
	*call = (struct call){ fake, fake->task, fn };
	ck_assert_int_eq(event_base_once(fake->base, -1, EV_TIMEOUT, call_now, call, &now), 0);
}

static int32_t fake_open(void *userdata, struct event_base *base, void **ret_self)
{
	struct fake *fake = userdata;

	fake->opened++;
	fake->base = base;
	*ret_self = fake;
	return fake->open_code;
}

static void fake_close(void *self)
{
	struct fake *fake = self;

	ck_assert_int_eq(fake->frees, fake->starts);
	fake->closed++;
}

static int32_t fake_probe(void *self, agentd_backend_report *report)
{
	struct fake *fake = self;

	fake->probes++;
	fake->report = report;
	agentd_backend_report_layer(report, "paper", AGENTD_LAYER_ENFORCED, "a wall of paper");
	agentd_backend_report_layer(report, NULL, 0, NULL);
	agentd_backend_report_layer(report, "nothing", AGENTD_LAYER_ABSENT, NULL);
	if (fake->probe_code == 0 && !fake->probe_silent)
		agentd_backend_report_done(report, agentd_error_ref(fake->probe_error));
	return fake->probe_code;
}

static int32_t fake_start(void *self, agentd_task *task, const agentd_spec *spec, void **ret_state,
			  agentd_error **reterr)
{
	struct fake *fake = self;

	ck_assert_ptr_nonnull(task);
	ck_assert_ptr_nonnull(spec);
	ck_assert_ptr_nonnull(reterr);
	fake->starts += fake->start_code == 0;
	fake->task = task;
	*ret_state = &fake->state;
	if (fake->look)
		fake->look(fake, spec);
	if (fake->inside)
		fake->inside(fake);
	later(fake, fake->act);
	if (fake->start_code < 0) {
		*reterr = agentd_error_ref(fake->start_error);
	}
	return fake->start_code;
}

static struct fake *fake_of(void *state)
{
	return (struct fake *)(void *)((char *)state - offsetof(struct fake, state));
}

static int32_t fake_kill(void *state)
{
	struct fake *fake = fake_of(state);

	ck_assert_int_lt(fake->frees, fake->starts);
	if (fake->kills++ == 0)
		later(fake, fake->on_kill);
	return 0;
}

static void fake_free(void *state)
{
	struct fake *fake = fake_of(state);

	fake->frees++;
}

static int32_t fake_signal(void *state, int32_t signo)
{
	struct fake *fake = fake_of(state);

	fake->signals++;
	fake->last_signal = signo;
	return 0;
}

static int32_t fake_paused(void *state, agentd_stream stream, int32_t paused)
{
	ck_assert_int_eq(stream, AGENTD_STDOUT);
	fake_of(state)->paused[stream] = paused;
	return 0;
}

static struct agentd_backend_ops ops_of(const char *name)
{
	return (struct agentd_backend_ops){
		.size = sizeof(struct agentd_backend_ops),
		.abi = AGENTD_BACKEND_ABI,
		.name = name,
		.open = fake_open,
		.close = fake_close,
		.probe_start = fake_probe,
		.task_start = fake_start,
		.task_kill = fake_kill,
		.task_free = fake_free,
	};
}

/* ---- things a backend does */

static void put(struct fake *fake, const char *text)
{
	agentd_task_output(fake->task, AGENTD_STDOUT, (const uint8_t *)text, strlen(text));
}

static void end_with(struct fake *fake, int status)
{
	agentd_task_exited(fake->task, status, 0);
	agentd_task_closed(fake->task);
}

static void do_killed(struct fake *fake)
{
	end_with(fake, SIGKILL);
}

static void do_well(struct fake *fake)
{
	agentd_task_started(fake->task, 4711);
	put(fake, "hello\n");
	end_with(fake, STATUS_EXIT(0));
}

static void do_nothing_more(struct fake *fake)
{
	agentd_task_started(fake->task, 4711);
}

/* Everything that must be dropped once a task is closed. */
static void do_too_much(struct fake *fake)
{
	int fds[2];

	put(fake, "too late");
	agentd_task_started(fake->task, 1);
	agentd_task_stdin_drained(fake->task);
	agentd_task_metric(fake->task, AGENTD_METRIC_CPU_NS, 1);
	agentd_task_protection(fake->task, "late", AGENTD_LAYER_ENFORCED, "late");
	agentd_task_denied(fake->task, "net", "a", "b", "c");
	agentd_task_limit_hit(fake->task, "mem_bytes", 1);
	agentd_task_log(fake->task, AGENTD_LOG_ERROR, "late");
	agentd_task_exited(fake->task, STATUS_EXIT(99), 0);
	agentd_task_closed(fake->task);
	agentd_task_failed(fake->task, agentd_error_create(AGENTD_ERR_BACKEND, 0, "late"));
	agentd_task_failed(fake->task, NULL);
	ck_assert_int_eq(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
	ck_assert_int_lt(agentd_task_attach_fd(fake->task, AGENTD_STDOUT, fds[0]), 0);
	ck_assert_int_lt(fcntl(fds[0], F_GETFD), 0);
	close(fds[1]);
}

/* ---- the frame of a test */

static struct t_world *fake_world(struct fake *fake, const struct agentd_backend_ops *ops)
{
	struct t_world *world = t_world_new(&(struct t_world_opts){ .backend = ops->name });
	agentd_error *err = NULL;
	int r = agentd_runner_add_backend(world->runner, ops, fake, &err);

	ck_assert_msg(r == 0, "%s", agentd_error_message(err));
	return world;
}

static void start_run(struct t_run *run, struct t_world *world, uint64_t timeout_ms)
{
	t_run_init(run, world);
	ck_assert_int_eq(t_run_start(run, "paper", timeout_ms), 0);
}

/* One run; everything must have been called as often as it should. */
static void one_run(struct fake *fake, struct t_run *run, struct t_world *world,
		    uint64_t timeout_ms)
{
	start_run(run, world, timeout_ms);
	t_run_wait(run);
	t_world_loop(world, 20, NULL);
	ck_assert_int_eq(run->finished, 1);
	ck_assert_int_eq(fake->frees, fake->starts);
}

static void fake_world_free(struct fake *fake, struct t_world *world)
{
	t_world_free(world);
	ck_assert_int_eq(fake->opened, 1);
	ck_assert_int_eq(fake->closed, 1);
	ck_assert_int_eq(fake->probes, 1);
	agentd_error_unref(fake->start_error);
	agentd_error_unref(fake->probe_error);
}

#define FAKE_RUN(fake_, status_, cause_, timeout_)                                                 \
	struct fake fake = fake_;                                                                  \
	struct agentd_backend_ops ops = ops_of("paper");                                           \
	struct t_world *world = fake_world(&fake, &ops);                                           \
	struct t_run run;                                                                          \
	one_run(&fake, &run, world, timeout_);                                                     \
	t_expect_status(&run, status_);                                                            \
	t_expect_cause(&run, cause_)

#define FAKE_END()                                                                                 \
	t_run_free(&run);                                                                          \
	fake_world_free(&fake, world)

/* ---- behaviours */

START_TEST(well)
{
	FAKE_RUN((struct fake){ .act = do_well }, AGENTD_STATUS_OK, AGENTD_CAUSE_EXITED, 0);
	t_expect_out(&run, AGENTD_STDOUT, "hello\n");
	ck_assert_str_eq(agentd_result_backend(run.result), "paper");
	ck_assert_str_eq(t_log_field(t_logs_find(&world->logs, 0, "Shell command spawned"),
				     "child_pid"),
			 "4711");
	FAKE_END();
}
END_TEST

/* Reports from inside task_start: legal, and no callback comes inside a call. */
START_TEST(all_inside_start)
{
	FAKE_RUN((struct fake){ .inside = do_well }, AGENTD_STATUS_OK, AGENTD_CAUSE_EXITED, 0);
	t_expect_out(&run, AGENTD_STDOUT, "hello\n");
	FAKE_END();
}
END_TEST

static void do_exited_twice(struct fake *fake)
{
	agentd_task_started(fake->task, 1);
	agentd_task_exited(fake->task, STATUS_EXIT(3), 0);
	agentd_task_exited(fake->task, STATUS_EXIT(0), 0);
	agentd_task_closed(fake->task);
}

START_TEST(exited_twice)
{
	FAKE_RUN((struct fake){ .act = do_exited_twice }, AGENTD_STATUS_ERROR, AGENTD_CAUSE_EXITED,
		 0);
	t_expect_exit(&run, 3);
	ck_assert_int_eq(run.exited, 1);
	FAKE_END();
}
END_TEST

static void do_started_twice(struct fake *fake)
{
	agentd_task_started(fake->task, 1);
	agentd_task_started(fake->task, 2);
	end_with(fake, STATUS_EXIT(0));
}

START_TEST(started_twice)
{
	FAKE_RUN((struct fake){ .act = do_started_twice }, AGENTD_STATUS_OK, AGENTD_CAUSE_EXITED,
		 0);
	ck_assert_int_eq(run.started, 1);
	FAKE_END();
}
END_TEST

static void do_well_then_too_much(struct fake *fake)
{
	do_well(fake);
	do_too_much(fake);
}

START_TEST(reports_after_closed)
{
	FAKE_RUN((struct fake){ .act = do_well_then_too_much }, AGENTD_STATUS_OK,
		 AGENTD_CAUSE_EXITED, 0);
	t_expect_out(&run, AGENTD_STDOUT, "hello\n");
	t_expect_exit(&run, 0);
	ck_assert_str_eq(agentd_result_limit(run.result), "");
	ck_assert_ptr_null(t_run_layer(&run, "late", NULL));
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_CPU_NS), UINT64_MAX);
	FAKE_END();
}
END_TEST

START_TEST(reports_after_closed_inside_start)
{
	FAKE_RUN((struct fake){ .inside = do_well_then_too_much }, AGENTD_STATUS_OK,
		 AGENTD_CAUSE_EXITED, 0);
	t_expect_out(&run, AGENTD_STDOUT, "hello\n");
	FAKE_END();
}
END_TEST

static void do_without_started(struct fake *fake)
{
	put(fake, "hi");
	end_with(fake, STATUS_EXIT(0));
}

START_TEST(never_said_started)
{
	FAKE_RUN((struct fake){ .act = do_without_started }, AGENTD_STATUS_OK, AGENTD_CAUSE_EXITED,
		 0);
	ck_assert_int_eq(run.started, 1);
	t_expect_out(&run, AGENTD_STDOUT, "hi");
	FAKE_END();
}
END_TEST

static void do_close_only(struct fake *fake)
{
	agentd_task_started(fake->task, 1);
	put(fake, "hi");
	agentd_task_closed(fake->task);
}

START_TEST(closed_without_exited)
{
	FAKE_RUN((struct fake){ .act = do_close_only }, AGENTD_STATUS_ERROR,
		 AGENTD_CAUSE_BACKEND_LOST, 0);
	t_expect_exit(&run, -1);
	t_expect_out(&run, AGENTD_STDOUT, "hi");
	ck_assert_ptr_nonnull(agentd_result_error(run.result));
	FAKE_END();
}
END_TEST

static void do_close_at_once(struct fake *fake)
{
	agentd_task_closed(fake->task);
}

START_TEST(closed_without_anything)
{
	FAKE_RUN((struct fake){ .act = do_close_at_once }, AGENTD_STATUS_ERROR,
		 run.started ? AGENTD_CAUSE_BACKEND_LOST : AGENTD_CAUSE_SPAWN, 0);
	ck_assert_ptr_nonnull(agentd_result_error(run.result));
	FAKE_END();
}
END_TEST

static void do_fail_after_started(struct fake *fake)
{
	agentd_task_started(fake->task, 1);
	put(fake, "partial");
	agentd_task_failed(fake->task, agentd_error_create(AGENTD_ERR_PROTOCOL, 5, "it broke"));
}

START_TEST(failed_after_started)
{
	FAKE_RUN((struct fake){ .act = do_fail_after_started }, AGENTD_STATUS_ERROR,
		 AGENTD_CAUSE_BACKEND_LOST, 0);
	t_expect_out(&run, AGENTD_STDOUT, "partial");
	ck_assert_int_eq(agentd_error_code(agentd_result_error(run.result)), AGENTD_ERR_PROTOCOL);
	ck_assert_int_eq(agentd_error_os_errno(agentd_result_error(run.result)), 5);
	ck_assert_ptr_nonnull(
		strstr(agentd_error_message(agentd_result_error(run.result)), "it broke"));
	FAKE_END();
}
END_TEST

static void do_fail_after_exited(struct fake *fake)
{
	agentd_task_started(fake->task, 1);
	agentd_task_exited(fake->task, STATUS_EXIT(4), 0);
	agentd_task_failed(fake->task, agentd_error_create(AGENTD_ERR_BACKEND, 0, "it broke"));
}

/* The command's end was seen: that stays true. */
START_TEST(failed_after_exited)
{
	FAKE_RUN((struct fake){ .act = do_fail_after_exited }, AGENTD_STATUS_ERROR,
		 AGENTD_CAUSE_EXITED, 0);
	t_expect_exit(&run, 4);
	FAKE_END();
}
END_TEST

static void do_fail_null(struct fake *fake)
{
	agentd_task_failed(fake->task, NULL);
}

START_TEST(failed_without_error)
{
	FAKE_RUN((struct fake){ .act = do_fail_null }, AGENTD_STATUS_ERROR, AGENTD_CAUSE_SPAWN, 0);
	ck_assert_int_eq(agentd_error_code(agentd_result_error(run.result)), AGENTD_ERR_BACKEND);
	ck_assert_int_eq(run.started, 0);
	FAKE_END();
}
END_TEST

static void do_refuse(struct fake *fake)
{
	agentd_task_failed(fake->task, agentd_error_create(AGENTD_ERR_DENIED, 0, "not this one"));
}

START_TEST(refused_before_started)
{
	FAKE_RUN((struct fake){ .act = do_refuse }, AGENTD_STATUS_DENIED, AGENTD_CAUSE_ISOLATION,
		 0);
	ck_assert_int_eq(run.started, 0);
	ck_assert_str_eq(agentd_error_message(agentd_result_error(run.result)), "not this one");
	FAKE_END();
}
END_TEST

START_TEST(refused_inside_start)
{
	FAKE_RUN((struct fake){ .inside = do_refuse }, AGENTD_STATUS_DENIED, AGENTD_CAUSE_ISOLATION,
		 0);
	ck_assert_int_eq(run.started, 0);
	FAKE_END();
}
END_TEST

START_TEST(start_fails)
{
	static const struct {
		int32_t code;
		agentd_status status;
		int32_t cause;
	} rows[] = { { AGENTD_ERR_SYSTEM, AGENTD_STATUS_ERROR, AGENTD_CAUSE_SPAWN },
		     { AGENTD_ERR_NOMEM, AGENTD_STATUS_ERROR, AGENTD_CAUSE_SPAWN },
		     { -9999, AGENTD_STATUS_ERROR, AGENTD_CAUSE_SPAWN },
		     { AGENTD_ERR_DENIED, AGENTD_STATUS_DENIED, AGENTD_CAUSE_ISOLATION },
		     { AGENTD_ERR_UNSUPPORTED, AGENTD_STATUS_DENIED, AGENTD_CAUSE_ISOLATION } };

	for (size_t i = 0; i < T_COUNT(rows) * 2; i++) {
		int32_t code = rows[i / 2].code;
		FAKE_RUN((struct fake){ .start_code = code }, rows[i / 2].status, rows[i / 2].cause,
			 0);

		ck_assert_int_eq(run.started, 0);
		ck_assert_ptr_nonnull(agentd_result_error(run.result));
		ck_assert_int_eq(agentd_error_code(agentd_result_error(run.result)), code);
		t_run_free(&run);
		/* the second time with an error of its own */
		fake.start_error = agentd_error_create(code, 7, "because");
		one_run(&fake, &run, world, 0);
		t_expect_status(&run, rows[i / 2].status);
		t_expect_cause(&run, rows[i / 2].cause);
		ck_assert_int_eq(agentd_error_os_errno(agentd_result_error(run.result)), 7);
		ck_assert_ptr_nonnull(
			strstr(agentd_error_message(agentd_result_error(run.result)), "because"));
		/* and then it works again */
		t_run_free(&run);
		agentd_error_unref(fake.start_error);
		fake.start_error = NULL;
		fake.start_code = 0;
		fake.act = do_well;
		start_run(&run, world, 0);
		t_run_wait(&run);
		t_expect_status(&run, AGENTD_STATUS_OK);
		FAKE_END();
	}
}
END_TEST

/* Reported as failed and returned as an error as well: still one end. */
static void do_fail_inside(struct fake *fake)
{
	agentd_task_failed(fake->task, agentd_error_create(AGENTD_ERR_BACKEND, 0, "inside"));
}

START_TEST(fails_in_both_ways)
{
	FAKE_RUN(((struct fake){ .inside = do_fail_inside, .start_code = AGENTD_ERR_BACKEND }),
		 AGENTD_STATUS_ERROR, AGENTD_CAUSE_SPAWN, 0);
	FAKE_END();
}
END_TEST

START_TEST(timeout_without_task_signal)
{
	FAKE_RUN(((struct fake){ .act = do_nothing_more, .on_kill = do_killed }),
		 AGENTD_STATUS_TIMEOUT, AGENTD_CAUSE_TIMEOUT, 200);
	ck_assert_int_ge(fake.kills, 1);
	/* no task_signal: a stop has no grace */
	ck_assert_uint_lt(t_run_wall_ms(&run), 200 + t_slack(1000));
	FAKE_END();
}
END_TEST

START_TEST(optional_members_missing)
{
	struct agentd_exec_opts opts = { .size = sizeof(opts), .flags = AGENTD_EXEC_STDIN_OPEN };
	struct fake fake = { .act = do_nothing_more, .on_kill = do_killed };
	struct agentd_backend_ops ops_ = ops_of("paper");
	struct t_world *world = fake_world(&fake, &ops_);
	agentd_error *err = NULL;
	struct t_run run;
	size_t taken = 99;
	int r;

	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "paper", 0), 0);
	ck_assert(t_world_loop(world, t_slack(5000), &run.started));
	r = agentd_exec_signal(run.exec, SIGUSR1, &err);
	t_expect_error(r, AGENTD_ERR_UNSUPPORTED, err, NULL, NULL);
	ck_assert_int_eq(agentd_exec_write(run.exec, (const uint8_t *)"x", 1, &taken),
			 AGENTD_ERR_UNSUPPORTED);
	ck_assert_uint_eq(taken, 99);
	ck_assert_int_eq(agentd_exec_close_stdin(run.exec), AGENTD_ERR_UNSUPPORTED);
	ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
	t_run_free(&run);
	fake_world_free(&fake, world);
}
END_TEST

START_TEST(signal_then_kill)
{
	struct agentd_exec_opts opts = { .size = sizeof(opts), .grace_ms = 200 };
	struct fake fake = { .act = do_nothing_more, .on_kill = do_killed };
	struct agentd_backend_ops ops_ = ops_of("paper");
	struct t_world *world;
	struct t_run run;
	uint64_t at;

	ops_.task_signal = fake_signal;
	world = fake_world(&fake, &ops_);
	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "paper", 0), 0);
	ck_assert(t_world_loop(world, t_slack(5000), &run.started));
	ck_assert_int_eq(agentd_exec_signal(run.exec, SIGUSR1, NULL), 0);
	ck_assert_int_eq(fake.last_signal, SIGUSR1);
	at = t_now();
	ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
	ck_assert_int_eq(fake.kills, 0);
	t_run_wait(&run);
	ck_assert_int_eq(fake.last_signal, SIGTERM);
	ck_assert_int_eq(fake.signals, 2);
	ck_assert_int_ge(fake.kills, 1);
	ck_assert_uint_ge(t_now() - at, T_MS(190));
	t_run_free(&run);
	fake_world_free(&fake, world);
}
END_TEST

/* The library gives up on a backend that never says closed, but keeps its half of
 * the task until it does. */
START_TEST(never_closed_after_kill)
{
	struct fake fake = { .act = do_nothing_more };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world = fake_world(&fake, &ops);
	struct t_run run;

	start_run(&run, world, 100);
	t_run_wait(&run);
	ck_assert_int_eq(run.finished, 1);
	ck_assert_int_ne(agentd_result_status(run.result), AGENTD_STATUS_OK);
	ck_assert_ptr_nonnull(agentd_result_error(run.result));
	ck_assert_int_eq(fake.frees, 0);
	do_too_much(&fake);
	t_world_loop(world, 50, NULL);
	ck_assert_int_eq(run.finished, 1);
	ck_assert_int_eq(fake.frees, 1);
	FAKE_END();
}
END_TEST

/* It goes with the runner. */
START_TEST(never_closed_while_the_runner_lives)
{
	struct fake fake = { .act = do_nothing_more };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world;
	struct t_run run;

	ops.close_max_ms = 50;
	world = fake_world(&fake, &ops);
	start_run(&run, world, 100);
	t_run_wait(&run);
	t_run_free(&run);
	ck_assert_int_eq(fake.frees, 0);
	agentd_runner_unref(world->runner);
	world->runner = NULL;
	ck_assert_int_eq(fake.frees, 1);
	ck_assert_int_eq(fake.closed, 1);
	t_world_free(world);
}
END_TEST

/* ---- a session, of which a command does not end */

static struct {
	struct fake *fake;
	agentd_task *task;
	bool ends; /* when it is asked to, whatever is in it */
	int stops, frees;
} session;

static int32_t fake_session_start(void *self, agentd_task *task, const agentd_spec *spec,
				  void **ret_session, agentd_error **reterr)
{
	(void)spec;
	(void)reterr;
	session.fake = self;
	session.task = task;
	session.stops = 0;
	*ret_session = &session;
	agentd_task_started(task, 0);
	return 0;
}

static int32_t fake_session_stop(void *state, uint32_t grace_ms)
{
	(void)state;
	(void)grace_ms;
	if (session.stops++ == 0 && session.ends)
		agentd_task_closed(session.task);
	return 0;
}

static void fake_session_free(void *state)
{
	(void)state;
	ck_assert_msg(session.fake->frees == session.fake->starts, "a command of it is left");
	session.frees++;
}

static struct agentd_backend_ops session_ops(void)
{
	struct agentd_backend_ops ops = ops_of("paper");

	ops.session_start = fake_session_start;
	ops.session_stop = fake_session_stop;
	ops.session_free = fake_session_free;
	return ops;
}

static agentd_context *session_context(struct t_world *world)
{
	agentd_context *ctx = t_world_context(world);

	ck_assert_int_eq(agentd_context_set_backend(ctx, NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_set_session(ctx, "aaaaaaaa-0000-4000-8000-000000000000",
						    NULL, NULL, NULL),
			 0);
	return ctx;
}

static agentd_pool *fake_pool(struct t_world *world)
{
	char *json = t_format("{\"enabled\": true, \"backend\": \"paper\", "
			      "\"volume_root\": \"%s/volumes\", \"fallback\": false}",
			      world->dir);
	agentd_pool *pool = NULL;

	ck_assert_int_eq(agentd_pool_new(world->runner, json, strlen(json), &pool, NULL), 0);
	ck_assert_int_eq(agentd_runner_set_pool(world->runner, pool, NULL), 0);
	free(json);
	return pool;
}

/* It goes before its session: with the pool, which only it may hold, when that ends after all, or
 * with the runner. */
START_TEST(never_closed_in_a_session)
{
	enum { WITH_POOL, WITH_ITS_POOL, WITH_SESSION, WITH_RUNNER };
	struct fake fake = { .act = do_nothing_more };
	struct agentd_backend_ops ops = session_ops();
	struct t_world *world;
	struct t_run run;
	agentd_pool *pool;

	memset(&session, 0, sizeof(session));
	session.ends = _i == WITH_SESSION;
	ops.close_max_ms = 50;
	world = fake_world(&fake, &ops);
	pool = fake_pool(world);
	t_run_init(&run, world);
	run.ctx = session_context(world);
	ck_assert_int_eq(t_run_start(&run, "paper", 100), 0);
	if (_i == WITH_ITS_POOL) {
		ck_assert_int_eq(agentd_runner_set_pool(world->runner, NULL, NULL), 0);
		agentd_pool_unref(pool);
		pool = NULL;
	}
	t_run_wait(&run);
	t_expect_cause(&run, AGENTD_CAUSE_TIMEOUT);
	ck_assert_int_eq(fake.starts, 1);
	agentd_context_unref(run.ctx);
	t_run_free(&run);
	t_world_loop(world, 20, NULL);
	ck_assert_int_eq(session.stops > 0, 1);
	if (_i == WITH_SESSION || _i == WITH_ITS_POOL) {
		ck_assert_int_eq(session.frees, 1);
		ck_assert_int_eq(fake.frees, 1);
	} else {
		ck_assert_int_eq(fake.frees, 0);
	}
	ck_assert_int_eq(agentd_runner_set_pool(world->runner, NULL, NULL), 0);
	if (_i == WITH_RUNNER) {
		agentd_runner_unref(world->runner);
		world->runner = NULL;
	}
	agentd_pool_unref(pool);
	ck_assert_int_eq(session.frees, 1);
	ck_assert_int_eq(fake.frees, 1);
	t_world_free(world);
	ck_assert_int_eq(fake.closed, 1);
}
END_TEST

static int32_t take_no_byte(void *state, const uint8_t *data, size_t len, size_t *ret_taken)
{
	(void)state;
	(void)data;
	*ret_taken = 0;
	return len > 0 ? AGENTD_ERR_AGAIN : 0;
}

/* Who was told to wait for room is told of it, also by the task that takes the place of the first,
 * and whatever was written of nothing meanwhile. */
START_TEST(refused_input_is_asked_for_again)
{
	struct fake fake = { .on_kill = do_killed };
	struct agentd_backend_ops ops = session_ops();
	struct agentd_exec_opts opts = { .size = sizeof(opts), .flags = AGENTD_EXEC_STDIN_OPEN };
	struct t_world *world;
	struct t_run run;
	agentd_pool *pool;
	size_t drained = 0, taken = 0;

	memset(&session, 0, sizeof(session));
	session.ends = true;
	ops.task_write = take_no_byte;
	world = fake_world(&fake, &ops);
	pool = fake_pool(world);
	t_run_init(&run, world);
	run.ctx = session_context(world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "paper", 0), 0);
	while (fake.starts == 0)
		t_world_loop(world, 1, NULL);
	if (_i != 0)
		ck_assert_int_eq(agentd_exec_write(run.exec, (const uint8_t *)"x", 1, &taken),
				 AGENTD_ERR_AGAIN);
	if (_i == 2)
		ck_assert_int_eq(agentd_exec_write(run.exec, NULL, 0, &taken), 0);
	fake.act = do_nothing_more;
	agentd_task_failed(fake.task, agentd_error_create(AGENTD_ERR_BACKEND, ESRCH, "gone"));
	ck_assert(t_world_loop(world, t_slack(5000), &run.started));
	ck_assert_int_eq(fake.starts, 2);
	for (size_t i = 0; i < run.event_count; i++)
		drained += run.events[i].kind == T_DRAINED;
	ck_assert_uint_eq(drained, _i != 0);
	ck_assert_int_eq(agentd_exec_kill(run.exec), 0);
	t_run_wait(&run);
	agentd_context_unref(run.ctx);
	agentd_pool_unref(pool);
	FAKE_END();
	ck_assert_int_eq(session.frees, 2);
}
END_TEST

static void do_blob(struct fake *fake)
{
	uint8_t *data = malloc(1000000);

	ck_assert_ptr_nonnull(data);
	memset(data, 'b', 1000000);
	ck_assert_int_eq(agentd_task_output(fake->task, AGENTD_STDOUT, data, 262144), 0);
	ck_assert_int_lt(agentd_task_output(fake->task, AGENTD_STDOUT, data, 262145), 0);
	ck_assert_int_lt(agentd_task_output(fake->task, AGENTD_STDOUT, data, 1000000), 0);
	ck_assert_int_lt(agentd_task_output(fake->task, AGENTD_STDIN, data, 10), 0);
	ck_assert_int_lt(agentd_task_output(fake->task, 3, data, 10), 0);
	ck_assert_int_lt(agentd_task_output(fake->task, -1, data, 10), 0);
	agentd_task_output(fake->task, AGENTD_STDERR, data, 0);
	agentd_task_output(fake->task, AGENTD_STDERR, NULL, 10);
	free(data);
	end_with(fake, STATUS_EXIT(0));
}

START_TEST(output_sizes)
{
	FAKE_RUN((struct fake){ .act = do_blob }, AGENTD_STATUS_OK, AGENTD_CAUSE_EXITED, 0);
	ck_assert_uint_eq(run.total[AGENTD_STDOUT], 262144);
	ck_assert_uint_eq(run.total[AGENTD_STDERR], 0);
	ck_assert_uint_le(run.max_chunk, 262144);
	FAKE_END();
}
END_TEST

static int32_t say_pause(struct t_run *run, agentd_stream stream, const uint8_t *data, size_t len)
{
	(void)run;
	(void)data;
	(void)len;
	return stream == AGENTD_STDOUT ? AGENTD_SINK_PAUSE : AGENTD_SINK_CONTINUE;
}

static void do_put_and_wait(struct fake *fake)
{
	agentd_task_started(fake->task, 1);
	ck_assert_int_eq(agentd_task_output(fake->task, AGENTD_STDERR, (const uint8_t *)"e", 1),
			 AGENTD_SINK_CONTINUE);
	ck_assert_int_eq(agentd_task_output(fake->task, AGENTD_STDOUT, (const uint8_t *)"o", 1),
			 AGENTD_SINK_PAUSE);
}

/* Up to where it has put its first bytes and its output is paused. */
static struct t_world *begin_paused(struct fake *fake, struct t_run *run)
{
	struct agentd_backend_ops ops = ops_of("paper");
	uint64_t deadline = t_now() + T_MS(t_slack(5000));
	struct t_world *world;

	fake->paused[AGENTD_STDOUT] = 7; /* neither answer */
	ops.task_set_paused = fake_paused;
	world = fake_world(fake, &ops);
	t_run_init(run, world);
	run->on_output = say_pause;
	ck_assert_int_eq(t_run_start(run, "paper", 0), 0);
	while (run->total[AGENTD_STDOUT] == 0 && t_now() < deadline)
		t_world_loop(world, 10, NULL);
	return world;
}

START_TEST(paused_and_resumed)
{
	struct fake fake = { .act = do_put_and_wait, .on_kill = do_killed };
	struct t_run run;
	struct t_world *world = begin_paused(&fake, &run);

	ck_assert_int_eq(fake.paused[AGENTD_STDERR], 0);
	ck_assert_int_eq(agentd_exec_resume(run.exec, AGENTD_STDOUT), 0);
	t_world_loop(world, 20, NULL);
	ck_assert_int_eq(fake.paused[AGENTD_STDOUT], 0);
	end_with(&fake, STATUS_EXIT(0));
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, "o");
	FAKE_END();
}
END_TEST

static void do_put_the_rest(struct fake *fake)
{
	ck_assert_int_eq(fake->paused[AGENTD_STDOUT], 0);
	ck_assert_int_eq(agentd_task_output(fake->task, AGENTD_STDOUT, (const uint8_t *)"pp", 2),
			 AGENTD_SINK_CONTINUE);
	end_with(fake, SIGKILL);
}

/* Nobody waits for the sink of one that is killed: what it does not take is counted. */
START_TEST(paused_and_killed)
{
	struct fake fake = { .act = do_put_and_wait, .on_kill = do_put_the_rest };
	struct t_run run;
	struct t_world *world = begin_paused(&fake, &run);

	ck_assert_int_eq(fake.paused[AGENTD_STDOUT], 7);
	ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_out(&run, AGENTD_STDOUT, "o");
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_DROPPED_BYTES), 2);
	FAKE_END();
}
END_TEST

static void do_exit_and_stay(struct fake *fake)
{
	agentd_task_started(fake->task, 1);
	agentd_task_exited(fake->task, STATUS_EXIT(0), 0);
}

static void do_put_only(struct fake *fake)
{
	ck_assert_int_eq(agentd_task_output(fake->task, AGENTD_STDOUT, (const uint8_t *)"o", 1),
			 AGENTD_SINK_PAUSE);
}

/* A task that has to wait for the sink has close_max_ms from when it need not any more: the sink
 * goes on, or the deadline passes. It is not given up for the time before. */
START_TEST(end_waits_for_the_sink)
{
	const uint32_t close_ms = (uint32_t)t_slack(1000);
	struct fake fake = { .act = do_exit_and_stay, .on_kill = do_put_only };
	struct agentd_backend_ops ops = ops_of("paper");
	bool deadline = _i == 1;
	struct t_world *world;
	struct t_run run;

	fake.paused[AGENTD_STDOUT] = 7; /* neither answer */
	ops.task_set_paused = fake_paused;
	ops.close_max_ms = close_ms;
	world = fake_world(&fake, &ops);
	t_run_init(&run, world);
	run.on_output = say_pause;
	ck_assert_int_eq(t_run_start(&run, "paper", deadline ? close_ms * 8 / 5 : 0), 0);
	while (run.total[AGENTD_STDOUT] == 0 && !run.finished)
		t_world_loop(world, 1, NULL);
	if (!deadline) {
		t_world_loop(world, close_ms * 3 / 5, NULL);
		ck_assert_int_eq(agentd_exec_resume(run.exec, AGENTD_STDOUT), 0);
	}
	while (fake.paused[AGENTD_STDOUT] == 7 && !run.finished)
		t_world_loop(world, 1, NULL);
	ck_assert_int_eq(fake.paused[AGENTD_STDOUT], 0);
	t_world_loop(world, close_ms * 4 / 5, NULL);
	ck_assert_int_eq(run.finished, 0);
	agentd_task_closed(fake.task);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, "o");
	FAKE_END();
}
END_TEST

/* But not longer, also if somebody who was not asked to wait says again and again that it goes on. */
START_TEST(end_does_not_wait_for_ever)
{
	struct fake fake = { .act = do_exit_and_stay, .on_kill = do_put_only };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world;
	struct t_run run;

	ops.task_set_paused = fake_paused;
	ops.close_max_ms = 100;
	world = fake_world(&fake, &ops);
	t_run_init(&run, world);
	run.on_output = say_pause;
	ck_assert_int_eq(t_run_start(&run, "paper", 0), 0);
	while (run.total[AGENTD_STDOUT] == 0 && !run.finished)
		t_world_loop(world, 1, NULL);
	t_world_loop(world, 300, NULL);
	ck_assert_int_eq(run.finished, 0);
	for (uint64_t end = t_now() + T_MS(t_slack(5000)); t_now() < end && !run.finished;) {
		ck_assert_int_eq(agentd_exec_resume(run.exec, AGENTD_STDOUT), 0);
		t_world_loop(world, 10, NULL);
	}
	ck_assert_int_eq(run.finished, 1);
	ck_assert_int_eq(fake.frees, 0);
	agentd_task_closed(fake.task);
	t_world_loop(world, 50, NULL);
	ck_assert_int_eq(fake.frees, 1);
	FAKE_END();
}
END_TEST

static int left_open; /* by what a command left in the background */

static void do_leave_open(struct fake *fake)
{
	int fds[2];

	ck_assert_int_eq(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
	left_open = fds[1];
	agentd_task_started(fake->task, 1);
	ck_assert_int_eq(agentd_task_attach_fd(fake->task, AGENTD_STDOUT, fds[0]), 0);
	agentd_task_exited(fake->task, STATUS_EXIT(0), 0);
}

static void do_close_left(struct fake *fake)
{
	close(left_open);
	agentd_task_closed(fake->task);
}

/* The same of the time that a command's background has to finish writing. */
START_TEST(drain_does_not_wait_for_nothing)
{
	struct fake fake = { .act = do_leave_open, .on_kill = do_close_left };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world = fake_world(&fake, &ops);
	struct t_run run;

	start_run(&run, world, 0);
	for (uint64_t end = t_now() + T_MS(t_slack(5000)); t_now() < end && !run.finished;) {
		ck_assert_int_eq(agentd_exec_resume(run.exec, AGENTD_STDOUT), 0);
		t_world_loop(world, 10, NULL);
	}
	ck_assert_int_eq(run.finished, 1);
	t_expect_status(&run, AGENTD_STATUS_OK);
	FAKE_END();
}
END_TEST

static void do_attach(struct fake *fake)
{
	int a[2], b[2];

	ck_assert_int_eq(pipe2(a, O_CLOEXEC | O_NONBLOCK), 0);
	ck_assert_int_eq(pipe2(b, O_CLOEXEC | O_NONBLOCK), 0);
	ck_assert_int_eq(write(a[1], "attached", 8), 8);
	agentd_task_started(fake->task, 1);
	ck_assert_int_eq(agentd_task_attach_fd(fake->task, AGENTD_STDOUT, a[0]), 0);
	/* a second one, a wrong stream, no descriptor: refused, and never leaked */
	ck_assert_int_lt(agentd_task_attach_fd(fake->task, AGENTD_STDOUT, b[0]), 0);
	ck_assert_int_lt(fcntl(b[0], F_GETFD), 0);
	b[0] = fcntl(b[1], F_DUPFD_CLOEXEC, 0);
	ck_assert_int_lt(agentd_task_attach_fd(fake->task, 7, b[0]), 0);
	ck_assert_int_lt(fcntl(b[0], F_GETFD), 0);
	ck_assert_int_lt(agentd_task_attach_fd(fake->task, AGENTD_STDERR, -1), 0);
	close(b[1]);
	end_with(fake, STATUS_EXIT(0));
	close(a[1]);
}

/* What an attached pipe holds is still read after closed. */
START_TEST(attached_pipes)
{
	FAKE_RUN((struct fake){ .act = do_attach }, AGENTD_STATUS_OK, AGENTD_CAUSE_EXITED, 0);
	t_expect_out(&run, AGENTD_STDOUT, "attached");
	FAKE_END();
}
END_TEST

static void do_facts(struct fake *fake)
{
	agentd_task_started(fake->task, 1);
	agentd_task_protection(fake->task, "paper", AGENTD_LAYER_DEGRADED, "first");
	agentd_task_protection(fake->task, "paper", AGENTD_LAYER_ENFORCED, "second");
	agentd_task_protection(fake->task, "glass", AGENTD_LAYER_ABSENT, NULL);
	agentd_task_protection(fake->task, NULL, AGENTD_LAYER_ABSENT, "x");
	agentd_task_metric(fake->task, AGENTD_METRIC_CPU_NS, 123);
	agentd_task_metric(fake->task, AGENTD_METRIC_MEMORY_PEAK_BYTES, 456);
	agentd_task_metric(fake->task, AGENTD_METRIC_STDOUT_BYTES, 999);
	agentd_task_metric(fake->task, -1, 999);
	agentd_task_metric(fake->task, 4000, 999);
	agentd_task_denied(fake->task, "net", "example.org:443", "allow list", "allow it");
	agentd_task_denied(fake->task, NULL, NULL, NULL, NULL);
	agentd_task_limit_hit(fake->task, "pids_max", 0);
	agentd_task_limit_hit(fake->task, NULL, 0);
	agentd_task_log(fake->task, AGENTD_LOG_WARN, "a word of warning");
	agentd_task_log(fake->task, AGENTD_LOG_WARN, NULL);
	end_with(fake, STATUS_EXIT(0));
}

START_TEST(facts_reach_the_result)
{
	int32_t state = 99;
	size_t denied = 0;

	FAKE_RUN((struct fake){ .act = do_facts }, AGENTD_STATUS_OK, AGENTD_CAUSE_EXITED, 0);
	ck_assert_str_eq(t_run_layer(&run, "paper", &state), "second");
	ck_assert_int_eq(state, AGENTD_LAYER_ENFORCED);
	ck_assert_str_eq(t_run_layer(&run, "glass", &state), "");
	ck_assert_int_eq(state, AGENTD_LAYER_ABSENT);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_CPU_NS), 123);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_MEMORY_PEAK_BYTES), 456);
	ck_assert_uint_eq(t_run_metric(&run, AGENTD_METRIC_STDOUT_BYTES), 0);
	ck_assert_str_eq(agentd_result_limit(run.result), "pids_max");
	ck_assert_ptr_nonnull(t_logs_find(&run.logs, 0, "a word of warning"));
	for (size_t i = 0; i < run.event_count; i++)
		denied += run.events[i].kind == T_DENIED;
	ck_assert_uint_eq(denied, 2);
	FAKE_END();
}
END_TEST

static void do_warn(struct fake *fake)
{
	agentd_task_started(fake->task, 1);
	agentd_task_log(fake->task, AGENTD_LOG_WARN, "a word of warning");
}

static int32_t refuse_warning(struct t_run *run, const agentd_log_record *record)
{
	(void)run;
	return strcmp(agentd_log_record_message(record), "a word of warning") == 0;
}

/* Any record may be refused, not only the first. */
START_TEST(sink_refuses_later_log)
{
	struct fake fake = { .act = do_warn, .on_kill = do_killed };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world = fake_world(&fake, &ops);
	struct t_run run;

	t_run_init(&run, world);
	run.on_log = refuse_warning;
	ck_assert_int_eq(t_run_start(&run, "paper", 0), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_expect_cause(&run, AGENTD_CAUSE_SINK);
	ck_assert_int_eq(agentd_error_code(agentd_result_error(run.result)), AGENTD_ERR_USER);
	ck_assert_int_ge(fake.kills, 1);
	FAKE_END();
}
END_TEST

static void do_fatal_limit(struct fake *fake)
{
	agentd_task_started(fake->task, 1);
	agentd_task_limit_hit(fake->task, "mem_bytes", 1);
	end_with(fake, SIGKILL);
}

START_TEST(fatal_limit)
{
	FAKE_RUN((struct fake){ .act = do_fatal_limit }, AGENTD_STATUS_KILLED, AGENTD_CAUSE_MEMORY,
		 0);
	ck_assert_str_eq(agentd_result_limit(run.result), "mem_bytes");
	ck_assert_int_eq(agentd_result_signal(run.result), SIGKILL);
	FAKE_END();
}
END_TEST

static void do_unknown_limit(struct fake *fake)
{
	agentd_task_started(fake->task, 1);
	agentd_task_limit_hit(fake->task,
			      "a_limit_of_a_later_version_with_a_name_longer_than_any_we_know", 1);
	end_with(fake, SIGKILL);
}

START_TEST(unknown_fatal_limit)
{
	struct fake fake = { .act = do_unknown_limit };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world = fake_world(&fake, &ops);
	struct t_run run;

	one_run(&fake, &run, world, 0);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	FAKE_END();
}
END_TEST

/* When the exit was is the backend's to say: before the limit is in time. */
static uint64_t exited_ago_ns;

static void do_exit_reported_late(struct fake *fake)
{
	agentd_task_exited(fake->task, STATUS_EXIT(0), t_now() - exited_ago_ns);
	agentd_task_closed(fake->task);
}

START_TEST(exit_before_the_limit_reported_after)
{
	struct fake fake = { .act = do_nothing_more, .on_kill = do_exit_reported_late };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world = fake_world(&fake, &ops);
	struct t_run run;

	exited_ago_ns = T_MS(100);
	one_run(&fake, &run, world, 200);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_exit(&run, 0);
	ck_assert_ptr_null(t_logs_find(&run.logs, 0, "Shell command timed out"));
	t_run_free(&run);

	exited_ago_ns = 0;
	fake.kills = 0;
	one_run(&fake, &run, world, 200);
	t_expect_status(&run, AGENTD_STATUS_TIMEOUT);
	ck_assert_int_eq(agentd_result_exit_code(run.result), -1);
	FAKE_END();
}
END_TEST

/* ---- probes */

START_TEST(probe_fails)
{
	static const int32_t codes[] = { AGENTD_ERR_UNSUPPORTED, AGENTD_ERR_DENIED };

	for (size_t i = 0; i < T_COUNT(codes); i++) {
		FAKE_RUN((struct fake){ .probe_error = agentd_error_create(codes[i], 0,
									   "no paper here") },
			 AGENTD_STATUS_DENIED, AGENTD_CAUSE_ISOLATION, 0);
		ck_assert_int_eq(fake.starts, 0);
		ck_assert_ptr_nonnull(strstr(agentd_error_message(agentd_result_error(run.result)),
					     "no paper here"));
		FAKE_END();
	}
}
END_TEST

START_TEST(probe_start_fails)
{
	struct fake fake = { .probe_code = AGENTD_ERR_SYSTEM };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world = fake_world(&fake, &ops);
	struct t_run run;

	one_run(&fake, &run, world, 0);
	ck_assert_int_eq(fake.starts, 0);
	ck_assert_int_ne(agentd_result_status(run.result), AGENTD_STATUS_OK);
	ck_assert_ptr_nonnull(agentd_result_error(run.result));
	FAKE_END();
}
END_TEST

START_TEST(probe_is_waited_for)
{
	struct fake fake = { .probe_silent = true, .act = do_well };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world = fake_world(&fake, &ops);
	struct t_run runs[3];

	for (size_t i = 0; i < T_COUNT(runs); i++)
		start_run(&runs[i], world, 0);
	t_world_loop(world, 100, NULL);
	ck_assert_int_eq(fake.starts, 0);
	ck_assert_int_eq(runs[0].finished, 0);
	/* one of them does not want to wait */
	ck_assert_int_eq(agentd_exec_cancel(runs[1].exec), 0);
	t_run_wait(&runs[1]);
	t_expect_cause(&runs[1], AGENTD_CAUSE_CANCELED);
	agentd_backend_report_done(fake.report, NULL);
	agentd_backend_report_layer(fake.report, "late", AGENTD_LAYER_ENFORCED, "late");
	agentd_backend_report_done(fake.report, NULL);
	agentd_backend_report_done(fake.report, agentd_error_create(AGENTD_ERR_BACKEND, 0, "x"));
	t_run_wait(&runs[0]);
	fake.act = do_well;
	t_run_wait(&runs[2]);
	ck_assert_int_eq(fake.starts, 2);
	t_expect_status(&runs[0], AGENTD_STATUS_OK);
	t_expect_status(&runs[2], AGENTD_STATUS_OK);
	for (size_t i = 0; i < T_COUNT(runs); i++)
		t_run_free(&runs[i]);
	fake_world_free(&fake, world);
}
END_TEST

START_TEST(probe_never_ends)
{
	struct fake fake = { .probe_silent = true };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world = fake_world(&fake, &ops);
	struct t_run run;

	start_run(&run, world, 0);
	t_world_loop(world, 50, NULL);
	ck_assert_int_eq(run.finished, 0);
	/* shutting down does not wait for it */
	t_world_shutdown(world);
	ck_assert_int_eq(run.finished, 1);
	t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
	t_run_free(&run);
	fake_world_free(&fake, world);
}
END_TEST

/* ---- registration */

static void expect_refused(agentd_runner *runner, const struct agentd_backend_ops *ops,
			   struct fake *fake, int code, const char *text)
{
	agentd_error *err = NULL;
	int opened = fake->opened;
	int r = agentd_runner_add_backend(runner, ops, fake, &err);

	t_expect_error(r, code, err, text, NULL);
	ck_assert_int_eq(fake->opened, opened);
	ck_assert_int_eq(agentd_runner_add_backend(runner, ops, fake, NULL), code);
}

START_TEST(bad_names)
{
	static const char *const bad[] = {
		"",       "Paper",   "pa per", "pa_per", "päper",
		" paper", "paper\n", "p/q",    "p.q",    "a23456789012345678901234567890123"
	};
	static const char *const taken[] = { "host", "host-direct", "none", "workstation" };
	static const char *const sandboxes[] = {
		"sandbox",  "linux-native", "linux",     "native",
		"landlock", "container",    "namespace", "mount-ns"
	};
	struct fake fake = { 0 };
	struct t_world *world = t_world_new(NULL);
	struct agentd_backend_ops ops;

	for (size_t i = 0; i < T_COUNT(bad); i++) {
		ops = ops_of(bad[i]);
		expect_refused(world->runner, &ops, &fake, AGENTD_ERR_INVALID, NULL);
	}
	ops = ops_of(NULL);
	expect_refused(world->runner, &ops, &fake, AGENTD_ERR_INVALID, NULL);
	for (size_t i = 0; i < T_COUNT(taken); i++) {
		ops = ops_of(taken[i]);
		expect_refused(world->runner, &ops, &fake, AGENTD_ERR_STATE, "host");
	}
	for (size_t i = 0; i < T_COUNT(sandboxes); i++) {
		ops = ops_of(sandboxes[i]);
		expect_refused(world->runner, &ops, &fake, AGENTD_ERR_STATE, "sandbox");
	}
	/* the longest name there may be */
	ops = ops_of("a2345678901234567890123456789012");
	ck_assert_int_eq(agentd_runner_add_backend(world->runner, &ops, &fake, NULL), 0);
	t_world_free(world);
	ck_assert_int_eq(fake.opened, 1);
	ck_assert_int_eq(fake.closed, 1);
}
END_TEST

START_TEST(aliases)
{
	static const char *const good[] = { " Paper_Wall ", "WALL", NULL };
	static const char *const own[] = { "wall-paper", NULL };
	static const char *const twice[] = { "q1", "Q1", NULL };
	static const char *const hosts[] = { "q2", "HOST_DIRECT", NULL };
	static const char *const bad[] = { "q3", "a b", NULL };
	static const char *const papers[] = { "paper-wall", NULL };
	struct fake fake = { .act = do_well }, other = { 0 };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world;
	struct t_run run;
	static const char *const names[] = { "paper", "PAPER", " paper_wall", "Wall\n" };

	ops.aliases = good;
	world = fake_world(&fake, &ops);
	for (size_t i = 0; i < T_COUNT(names); i++) {
		ck_assert_int_eq(agentd_context_set_backend(world->ctx, names[i], NULL), 0);
		start_run(&run, world, 0);
		t_run_wait(&run);
		ck_assert_str_eq(agentd_result_backend(run.result), "paper");
		t_run_free(&run);
	}
	ops = ops_of("wall");
	expect_refused(world->runner, &ops, &other, AGENTD_ERR_STATE, "paper");
	ops = ops_of("wall-paper");
	ops.aliases = own;
	expect_refused(world->runner, &ops, &other, AGENTD_ERR_STATE, "wall-paper");
	ops.aliases = twice;
	expect_refused(world->runner, &ops, &other, AGENTD_ERR_STATE, "q1");
	ops.aliases = hosts;
	expect_refused(world->runner, &ops, &other, AGENTD_ERR_STATE, "host");
	ops.aliases = papers;
	expect_refused(world->runner, &ops, &other, AGENTD_ERR_STATE, "paper");
	ops.aliases = bad;
	expect_refused(world->runner, &ops, &other, AGENTD_ERR_INVALID, "a b");
	fake_world_free(&fake, world);
}
END_TEST

/* More room than any table, to try other sizes. */
union table {
	struct agentd_backend_ops ops;
	uint8_t bytes[8192];
};

START_TEST(table_sizes)
{
	const uint32_t required = offsetof(struct agentd_backend_ops, task_signal);
	const uint32_t bad[] = { 0, 4, required - 1, 4097, 8192, UINT32_MAX };
	struct fake fake = { .act = do_nothing_more, .on_kill = do_killed };
	struct t_world *world = t_world_new(&(struct t_world_opts){ .backend = "paper" });
	union table *table = calloc(1, sizeof(*table));
	struct t_run run;

	ck_assert_ptr_nonnull(table);
	table->ops = ops_of("paper");
	for (size_t i = 0; i < T_COUNT(bad); i++) {
		table->ops.size = bad[i];
		expect_refused(world->runner, &table->ops, &fake, AGENTD_ERR_ABI, NULL);
	}
	table->ops.size = sizeof(table->ops) + 16;
	table->bytes[sizeof(table->ops) + 3] = 1;
	expect_refused(world->runner, &table->ops, &fake, AGENTD_ERR_ABI, NULL);
	table->bytes[sizeof(table->ops) + 3] = 0;
	for (uint32_t abi = 0; abi < 4; abi++) {
		table->ops.abi = abi == AGENTD_BACKEND_ABI ? UINT32_MAX : abi;
		expect_refused(world->runner, &table->ops, &fake, AGENTD_ERR_ABI, NULL);
	}
	table->ops.abi = AGENTD_BACKEND_ABI;
	table->ops.reserved0 = 1;
	expect_refused(world->runner, &table->ops, &fake, AGENTD_ERR_ABI, "reserved0");
	table->ops.reserved0 = 0;

	/* a zero tail is a later version that wants nothing of it */
	ck_assert_int_eq(agentd_runner_add_backend(world->runner, &table->ops, &fake, NULL), 0);

	/* an older one: what lies past its size is not read */
	table->ops.name = "older";
	table->ops.size = required;
	memset(&table->ops.task_signal, 0xff, sizeof(*table) - required);
	ck_assert_int_eq(agentd_runner_add_backend(world->runner, &table->ops, &fake, NULL), 0);
	memset(table, 0xff, sizeof(*table));
	free(table);

	ck_assert_int_eq(agentd_context_set_backend(world->ctx, "older", NULL), 0);
	start_run(&run, world, 0);
	ck_assert(t_world_loop(world, t_slack(5000), &run.started));
	ck_assert_int_eq(agentd_exec_signal(run.exec, SIGTERM, NULL), AGENTD_ERR_UNSUPPORTED);
	ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_KILLED);
	t_run_free(&run);
	t_world_free(world);
	ck_assert_int_eq(fake.closed, 2);
}
END_TEST

START_TEST(required_members)
{
	struct fake fake = { 0 };
	struct t_world *world = t_world_new(NULL);
	struct agentd_backend_ops ops;

#define WITHOUT(member)                                                                            \
	do {                                                                                       \
		ops = ops_of("paper");                                                             \
		ops.member = NULL;                                                                 \
		expect_refused(world->runner, &ops, &fake, AGENTD_ERR_INVALID, "paper");           \
	} while (0)
	WITHOUT(open);
	WITHOUT(close);
	WITHOUT(probe_start);
	WITHOUT(task_start);
	WITHOUT(task_kill);
	WITHOUT(task_free);
	/* Sessions: all three members or none. */
	ops = ops_of("paper");
	ops.session_free = ops.close;
	expect_refused(world->runner, &ops, &fake, AGENTD_ERR_INVALID, "session_start");
	t_world_free(world);
}
END_TEST

START_TEST(open_fails)
{
	struct fake fake = { .open_code = AGENTD_ERR_NOMEM };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world = t_world_new(NULL);
	agentd_error *err = NULL;
	int r = agentd_runner_add_backend(world->runner, &ops, &fake, &err);

	t_expect_error(r, AGENTD_ERR_NOMEM, err, "paper", NULL);
	ck_assert_int_eq(fake.probes, 0);
	/* the name is free again */
	fake.open_code = 0;
	ck_assert_int_eq(agentd_runner_add_backend(world->runner, &ops, &fake, NULL), 0);
	t_world_free(world);
	ck_assert_int_eq(fake.closed, 1);
}
END_TEST

/* The strongest usable one that is enough is taken when none is named. */
START_TEST(strongest_is_taken)
{
	struct fake weak = { .act = do_well }, strong = { .act = do_well };
	struct fake broken = { .probe_error = agentd_error_create(AGENTD_ERR_UNSUPPORTED, 0,
								  "broken") };
	struct agentd_backend_ops ops = ops_of("weak");
	struct t_world *world =
		t_world_new(&(struct t_world_opts){ .backend = "", .microvm_image = "/nowhere" });
	agentd_policy *policy = NULL;
	struct t_run run;

	ops.isolation = 10;
	ck_assert_int_eq(agentd_runner_add_backend(world->runner, &ops, &weak, NULL), 0);
	ops.name = "strong";
	ops.isolation = AGENTD_ISOLATION_SANDBOX + 1; /* than the built-in one */
	ck_assert_int_eq(agentd_runner_add_backend(world->runner, &ops, &strong, NULL), 0);
	ops.name = "broken";
	ops.isolation = AGENTD_ISOLATION_VM;
	ck_assert_int_eq(agentd_runner_add_backend(world->runner, &ops, &broken, NULL), 0);
	start_run(&run, world, 0);
	t_run_wait(&run);
	ck_assert_str_eq(agentd_result_backend(run.result), "strong");
	t_run_free(&run);

	/* naming one that is too weak is refused, never raised or lowered in silence */
	ck_assert_int_eq(agentd_policy_new(&policy, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	ck_assert_int_eq(agentd_context_set_backend(world->ctx, "weak", NULL), 0);
	start_run(&run, world, 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
	ck_assert_int_eq(run.started, 0);
	t_run_free(&run);
	agentd_policy_unref(policy);

	/* a VM is asked for and none works */
	ck_assert_int_eq(agentd_policy_new(&policy, NULL), 0);
	ck_assert_int_eq(agentd_policy_set_min_isolation(policy, AGENTD_ISOLATION_VM, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	ck_assert_int_eq(agentd_context_set_backend(world->ctx, NULL, NULL), 0);
	start_run(&run, world, 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_DENIED);
	t_expect_cause(&run, AGENTD_CAUSE_ISOLATION);
	ck_assert_int_eq(weak.starts, 0);
	ck_assert_int_eq(strong.starts, 1);
	ck_assert_int_eq(broken.starts, 0);
	t_run_free(&run);
	agentd_policy_unref(policy);
	t_world_free(world);
	agentd_error_unref(broken.probe_error);
}
END_TEST

/* ---- what a backend is told */

static void look_at_spec(struct fake *fake, const agentd_spec *spec)
{
	union {
		struct agentd_limits limits;
		uint8_t bytes[4096];
	} big;
	const char *source = NULL, *target = NULL;
	uint32_t access = 99;
	const char *const *env = agentd_spec_env(spec);
	bool trace_last = false, has_home = false;
	char token[64];
	ssize_t n;
	int fd;

	(void)fake;
	ck_assert_str_eq(agentd_spec_argv(spec)[0], "my-shell");
	ck_assert_str_eq(agentd_spec_argv(spec)[1], "-x");
	ck_assert_str_eq(agentd_spec_argv(spec)[2], "paper");
	ck_assert_ptr_null(agentd_spec_argv(spec)[3]);
	for (; *env; env++) {
		ck_assert_ptr_nonnull(strchr(*env, '='));
		has_home |= strncmp(*env, "HOME=", 5) == 0;
		trace_last = strcmp(*env, "SMITH_TRACE_ID=test-trace-123") == 0;
	}
	ck_assert(has_home && trace_last);
	ck_assert_ptr_nonnull(strstr(agentd_spec_workdir(spec), "/work"));
	ck_assert_str_eq(agentd_spec_rootfs(spec), "/some/root");
	ck_assert_uint_eq(agentd_spec_flags(spec),
			  AGENTD_EXEC_STDIN_OPEN | AGENTD_EXEC_MERGE_STDERR);
	ck_assert_uint_eq(agentd_spec_grace_ms(spec), 777);
	ck_assert_int_eq(agentd_spec_log_level(spec), AGENTD_LOG_DEBUG);
	ck_assert_int_eq(agentd_spec_net(spec), AGENTD_NET_NONE);
	ck_assert_int_eq(agentd_spec_protection(spec, "seccomp"), AGENTD_PROTECTION_DEGRADABLE);
	ck_assert_int_eq(agentd_spec_protection(spec, "landlock"), AGENTD_PROTECTION_REQUIRED);
	ck_assert_int_ge(agentd_spec_netns(spec), 3);

	/* limits: the least of all, 0 for none, also into a struct of another size */
	memset(&big, 0xff, sizeof(big));
	big.limits.size = sizeof(big.limits);
	ck_assert_int_eq(agentd_spec_limits(spec, &big.limits), 0);
	ck_assert_uint_eq(big.limits.size, sizeof(big.limits));
	ck_assert_uint_eq(big.limits.timeout_ms, 5000);
	ck_assert_uint_eq(big.limits.mem_bytes, 100 << 20);
	ck_assert_uint_eq(big.limits.cpu_time_ms, 0);
	ck_assert_uint_gt(big.limits.pids_max, 0);
	ck_assert_uint_eq(big.bytes[sizeof(big.limits)], 0xff);
	memset(&big, 0xff, sizeof(big));
	big.limits.size = offsetof(struct agentd_limits, idle_timeout_ms);
	ck_assert_int_eq(agentd_spec_limits(spec, &big.limits), 0);
	ck_assert_uint_eq(big.limits.timeout_ms, 5000);
	ck_assert_uint_eq(big.limits.idle_timeout_ms, UINT64_MAX);
	ck_assert_int_eq(agentd_spec_limit_requested(spec, "mem_bytes"), 1);
	ck_assert_int_eq(agentd_spec_limit_requested(spec, "pids_max"), 0);
	ck_assert_int_eq(agentd_spec_limit_requested(spec, "no_such_limit"), 0);

	/* paths of the policy, mounts of the context, and what is denied */
	ck_assert_uint_eq(agentd_spec_mount_count(spec), 3);
	for (size_t i = 0; i < 3; i++) {
		ck_assert_int_eq(agentd_spec_mount_at(spec, i, &source, &target, &access), 0);
		if (strcmp(target, "/usr") == 0) {
			ck_assert_str_eq(source, "/usr");
			ck_assert_uint_eq(access, AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC);
		} else if (strcmp(target, "/usr/secret") == 0) {
			ck_assert_uint_eq(access, 0);
		} else {
			ck_assert_str_eq(source, "/srv/data");
			ck_assert_str_eq(target, "/data");
			ck_assert_uint_eq(access, AGENTD_ACCESS_READ);
		}
	}
	ck_assert_int_eq(agentd_spec_mount_at(spec, 3, &source, &target, &access),
			 AGENTD_ERR_NOTFOUND);
	ck_assert_int_eq(agentd_spec_mount_at(spec, 0, NULL, NULL, NULL), 0);
	n = -1;
	for (size_t i = 0; i < agentd_spec_protected_count(spec); i++) {
		if (strcmp(agentd_spec_protected_at(spec, i), ".my/hooks") == 0)
			n = (ssize_t)i;
	}
	ck_assert_int_ge(n, 0);
	ck_assert_ptr_null(agentd_spec_protected_at(spec, agentd_spec_protected_count(spec)));

	/* the token comes as a file that nobody can change */
	fd = agentd_spec_credentials_fd(spec);
	ck_assert_int_ge(fd, 3);
	n = pread(fd, token, sizeof(token), 0);
	ck_assert_int_eq(n, 6);
	ck_assert_mem_eq(token, "s3cret", 6);
	ck_assert_int_ne(fcntl(fd, F_GET_SEALS) & F_SEAL_WRITE, 0);
	ck_assert_int_ne(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
}

START_TEST(spec_contents)
{
	static const char *const shell[] = { "my-shell", "-x", NULL };
	struct agentd_limits limits, own;
	struct agentd_exec_opts opts = { .size = sizeof(opts),
					 .flags = AGENTD_EXEC_STDIN_OPEN | AGENTD_EXEC_MERGE_STDERR,
					 .limits = &own,
					 .grace_ms = 777 };
	struct fake fake = { .act = do_well, .look = look_at_spec };
	struct agentd_backend_ops ops = ops_of("paper");
	struct t_world *world = t_world_new_bare(&(struct t_world_opts){ .backend = "paper" });
	struct agentd_runner_opts ropts = { .size = sizeof(ropts),
					    .helper_path = world->helper,
					    .log_level = AGENTD_LOG_DEBUG };
	agentd_policy *ceiling = t_policy_none(), *policy = t_policy_none();
	struct t_run run;
	int fd;

	/* a ceiling that holds what the context asks for */
	ck_assert_int_eq(agentd_policy_allow_path(ceiling, "/usr",
						  AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC, NULL),
			 0);
	ck_assert_int_eq(agentd_policy_allow_path(ceiling, "/srv", AGENTD_ACCESS_READ, NULL), 0);
	ck_assert_int_eq(agentd_policy_deny_path(ceiling, "/usr/secret", NULL), 0);
	ck_assert_int_eq(agentd_policy_protect_name(ceiling, ".my/hooks", NULL), 0);
	ck_assert_int_eq(agentd_policy_set_protection(ceiling, "seccomp",
						      AGENTD_PROTECTION_DEGRADABLE, NULL),
			 0);
	ck_assert_int_eq(agentd_policy_set_protection(ceiling, "landlock", AGENTD_PROTECTION_OFF,
						      NULL),
			 0);
	agentd_limits_init(&limits, sizeof(limits));
	limits.timeout_ms = 60000;
	limits.mem_bytes = 100 << 20;
	ck_assert_int_eq(agentd_policy_set_limits(ceiling, &limits, NULL), 0);
	ck_assert_int_eq(agentd_policy_allow_path(policy, "/usr",
						  AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC, NULL),
			 0);
	ck_assert_int_eq(agentd_policy_set_protection(policy, "seccomp",
						      AGENTD_PROTECTION_DEGRADABLE, NULL),
			 0);
	limits.timeout_ms = 5000;
	limits.mem_bytes = 200 << 20;
	ck_assert_int_eq(agentd_policy_set_limits(policy, &limits, NULL), 0);

	world->base = event_base_new();
	world->owns_base = true;
	ropts.event_base = world->base;
	ropts.policy = ceiling;
	ck_assert_int_eq(agentd_runner_new(&ropts, &world->runner, NULL), 0);
	world->ctx = t_world_context(world);
	ck_assert_int_eq(agentd_runner_add_backend(world->runner, &ops, &fake, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(world->ctx, policy, NULL), 0);
	ck_assert_int_eq(agentd_context_set_shell(world->ctx, shell, NULL), 0);
	ck_assert_int_eq(agentd_context_set_rootfs(world->ctx, "/some/root", NULL), 0);
	ck_assert_int_eq(agentd_context_add_mount(world->ctx, "/srv/data", "/data",
						  AGENTD_ACCESS_READ, NULL),
			 0);
	ck_assert_int_eq(agentd_context_set_credentials(world->ctx, "s3cret", 0, NULL), 0);
	fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(agentd_context_set_netns(world->ctx, fd, NULL), 0);
	close(fd);
	agentd_limits_init(&own, sizeof(own));
	own.timeout_ms = 9000;
	t_run_init(&run, world);
	run.exec_opts = &opts;
	ck_assert_int_eq(t_run_start(&run, "paper", 0), 0);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	ck_assert_int_eq(fake.starts, 1);
	t_run_free(&run);
	agentd_policy_unref(policy);
	agentd_policy_unref(ceiling);
	t_world_free(world);
}
END_TEST

START_TEST(null_everything)
{
	struct agentd_limits limits = { .size = sizeof(limits) };
	agentd_error *err;
	int fds[2];

	ck_assert_ptr_null(agentd_spec_argv(NULL));
	ck_assert_ptr_null(agentd_spec_env(NULL));
	ck_assert_ptr_null(agentd_spec_workdir(NULL));
	ck_assert_ptr_null(agentd_spec_rootfs(NULL));
	ck_assert_uint_eq(agentd_spec_flags(NULL), 0);
	ck_assert_int_lt(agentd_spec_limits(NULL, &limits), 0);
	ck_assert_int_eq(agentd_spec_limit_requested(NULL, "mem_bytes"), 0);
	ck_assert_uint_eq(agentd_spec_mount_count(NULL), 0);
	ck_assert_int_lt(agentd_spec_mount_at(NULL, 0, NULL, NULL, NULL), 0);
	ck_assert_uint_eq(agentd_spec_protected_count(NULL), 0);
	ck_assert_ptr_null(agentd_spec_protected_at(NULL, 0));
	agentd_spec_protection(NULL, "seccomp");
	agentd_spec_net(NULL);
	ck_assert_int_eq(agentd_spec_netns(NULL), -1);
	ck_assert_int_eq(agentd_spec_credentials_fd(NULL), -1);
	agentd_spec_grace_ms(NULL);
	agentd_spec_log_level(NULL);
	agentd_task_started(NULL, 1);
	agentd_task_output(NULL, AGENTD_STDOUT, (const uint8_t *)"x", 1);
	agentd_task_stdin_drained(NULL);
	agentd_task_metric(NULL, AGENTD_METRIC_CPU_NS, 1);
	ck_assert_int_eq(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
	ck_assert_int_eq(agentd_task_attach_fd(NULL, AGENTD_STDOUT, fds[0]), AGENTD_ERR_INVALID);
	ck_assert_int_lt(fcntl(fds[0], F_GETFD), 0);
	close(fds[1]);
	agentd_task_protection(NULL, "a", 1, "b");
	agentd_task_denied(NULL, "a", "b", "c", "d");
	agentd_task_limit_hit(NULL, "mem_bytes", 1);
	agentd_task_exited(NULL, 0, 0);
	agentd_task_closed(NULL);
	agentd_task_failed(NULL, NULL);
	agentd_task_failed(NULL, agentd_error_create(AGENTD_ERR_BACKEND, 0, "x"));
	agentd_task_log(NULL, AGENTD_LOG_INFO, "x");
	agentd_backend_report_layer(NULL, "a", 1, "b");
	agentd_backend_report_done(NULL, NULL);
	agentd_backend_report_done(NULL, agentd_error_create(AGENTD_ERR_BACKEND, 0, "x"));
	err = agentd_error_create(AGENTD_ERR_BACKEND, 0, NULL);
	ck_assert_ptr_nonnull(err);
	ck_assert_ptr_nonnull(agentd_error_message(err));
	agentd_error_unref(err);
}
END_TEST

static void look_null_limits(struct fake *fake, const agentd_spec *spec)
{
	struct agentd_limits limits = { .size = 0 };

	(void)fake;
	ck_assert_int_lt(agentd_spec_limits(spec, NULL), 0);
	ck_assert_int_lt(agentd_spec_limits(spec, &limits), 0);
	ck_assert_int_eq(agentd_spec_limit_requested(spec, NULL), 0);
	agentd_spec_protection(spec, NULL);
	ck_assert_int_eq(agentd_spec_mount_at(spec, 0, NULL, NULL, NULL), AGENTD_ERR_NOTFOUND);
	ck_assert_int_eq(agentd_spec_credentials_fd(spec), -1);
	ck_assert_int_eq(agentd_spec_netns(spec), -1);
}

START_TEST(spec_bad_arguments)
{
	FAKE_RUN(((struct fake){ .act = do_well, .look = look_null_limits }), AGENTD_STATUS_OK,
		 AGENTD_CAUSE_EXITED, 0);
	FAKE_END();
}
END_TEST

int main(void)
{
	TCase *behaves = t_case("behaves", 30), *slow = t_case("slow", 60);
	TCase *probes = t_case("probes", 30), *registers = t_case("registers", 30);
	TCase *told = t_case("told", 30);
	TCase *const cases[] = { behaves, slow, probes, registers, told };

	tcase_add_test(behaves, well);
	tcase_add_test(behaves, all_inside_start);
	tcase_add_test(behaves, exited_twice);
	tcase_add_test(behaves, started_twice);
	tcase_add_test(behaves, reports_after_closed);
	tcase_add_test(behaves, reports_after_closed_inside_start);
	tcase_add_test(behaves, never_said_started);
	tcase_add_test(behaves, closed_without_exited);
	tcase_add_test(behaves, closed_without_anything);
	tcase_add_test(behaves, failed_after_started);
	tcase_add_test(behaves, failed_after_exited);
	tcase_add_test(behaves, failed_without_error);
	tcase_add_test(behaves, refused_before_started);
	tcase_add_test(behaves, refused_inside_start);
	tcase_add_test(behaves, start_fails);
	tcase_add_test(behaves, fails_in_both_ways);
	tcase_add_test(behaves, timeout_without_task_signal);
	tcase_add_test(behaves, optional_members_missing);
	tcase_add_test(behaves, signal_then_kill);
	tcase_add_loop_test(behaves, refused_input_is_asked_for_again, 0, 3);
	tcase_add_test(behaves, output_sizes);
	tcase_add_test(behaves, paused_and_resumed);
	tcase_add_test(behaves, paused_and_killed);
	tcase_add_loop_test(behaves, end_waits_for_the_sink, 0, 2);
	tcase_add_test(behaves, end_does_not_wait_for_ever);
	tcase_add_test(behaves, drain_does_not_wait_for_nothing);
	tcase_add_test(behaves, attached_pipes);
	tcase_add_test(behaves, facts_reach_the_result);
	tcase_add_test(behaves, sink_refuses_later_log);
	tcase_add_test(behaves, fatal_limit);
	tcase_add_test(behaves, unknown_fatal_limit);
	tcase_add_test(behaves, exit_before_the_limit_reported_after);
	tcase_add_test(slow, never_closed_after_kill);
	tcase_add_test(slow, never_closed_while_the_runner_lives);
	tcase_add_loop_test(slow, never_closed_in_a_session, 0, 4);
	tcase_add_test(probes, probe_fails);
	tcase_add_test(probes, probe_start_fails);
	tcase_add_test(probes, probe_is_waited_for);
	tcase_add_test(probes, probe_never_ends);
	tcase_add_test(registers, bad_names);
	tcase_add_test(registers, aliases);
	tcase_add_test(registers, table_sizes);
	tcase_add_test(registers, required_members);
	tcase_add_test(registers, open_fails);
	tcase_add_test(registers, strongest_is_taken);
	tcase_add_test(told, spec_contents);
	tcase_add_test(told, spec_bad_arguments);
	tcase_add_test(told, null_everything);
	return t_main("backend contract", cases, T_COUNT(cases));
}
