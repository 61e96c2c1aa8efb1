/* SPDX-License-Identifier: MIT */
/* What a host may do inside callbacks: everything but running the loop. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"

/* ---- one action in one kind of callback */

struct act {
	struct t_run run;
	enum t_event_kind when;
	bool (*action)(struct act *act); /* true when the runner survived it */
	bool done, runner_gone;
	struct t_run second;
	agentd_params *params;
};

static void feed(struct t_run *run)
{
	static const uint8_t zeros[65536];
	size_t taken;

	while (agentd_exec_write(run->exec, zeros, sizeof(zeros), &taken) == 0)
		;
}

static void act_on(struct t_run *run, enum t_event_kind kind)
{
	struct act *act = run->userdata;

	if (kind == T_STARTED && act->when != T_STARTED && !act->done)
		feed(run);
	if (kind == act->when && !act->done) {
		act->done = true;
		act->runner_gone = !act->action(act);
		return;
	}
	/* Let the command see the end of its input. */
	if (kind == T_DRAINED && run->exec)
		agentd_exec_close_stdin(run->exec);
}

static bool drop_exec(struct act *act)
{
	agentd_exec_unref(act->run.exec);
	act->run.exec = NULL;
	return true;
}

static bool drop_all(struct act *act)
{
	struct t_world *world = act->run.world;

	agentd_runner_unref(world->runner);
	world->runner = NULL;
	agentd_context_unref(world->ctx);
	world->ctx = NULL;
	agentd_params_unref(act->params);
	act->params = NULL;
	drop_exec(act);
	return false;
}

static bool cancel_it(struct act *act)
{
	ck_assert_int_eq(agentd_exec_cancel(act->run.exec), 0);
	ck_assert_int_eq(agentd_exec_cancel(act->run.exec), 0);
	return true;
}

static bool kill_it(struct act *act)
{
	ck_assert_int_eq(agentd_exec_kill(act->run.exec), 0);
	return true;
}

static bool kill_and_drop(struct act *act)
{
	agentd_exec_kill(act->run.exec);
	return drop_exec(act);
}

static bool start_another(struct act *act)
{
	t_run_init(&act->second, act->run.world);
	ck_assert_int_eq(t_run_start(&act->second, "echo second", 0), 0);
	return true;
}

static bool shut_down(struct act *act)
{
	struct t_world *world = act->run.world;

	ck_assert_int_eq(agentd_runner_shutdown(world->runner, 50, NULL, NULL), 0);
	agentd_runner_unref(world->runner);
	world->runner = NULL;
	return false;
}

static bool close_input(struct act *act)
{
	ck_assert_int_eq(agentd_exec_close_stdin(act->run.exec), 0);
	ck_assert_int_eq(agentd_exec_resume(act->run.exec, AGENTD_STDOUT) == 0 ||
				 act->when == T_FINISHED,
			 1);
	return true;
}

static const struct {
	bool (*action)(struct act *act);
	bool ends; /* it may end the command */
} actions[] = {
	{ drop_exec, false }, { drop_all, true },      { cancel_it, true },
	{ kill_it, true },    { kill_and_drop, true }, { start_another, false },
	{ shut_down, true },  { close_input, false },
};

static const enum t_event_kind kinds[] = { T_LOG,     T_STARTED, T_OUTPUT,
					   T_DRAINED, T_EXITED,  T_FINISHED };

START_TEST(action_in_callback)
{
	const size_t which = (size_t)_i / T_COUNT(kinds);
	struct agentd_exec_opts opts = { .size = sizeof(opts),
					 .flags = AGENTD_EXEC_STDIN_OPEN,
					 .grace_ms = 100 };
	struct t_world *world = t_world_new(NULL);
	struct act act = { .when = kinds[(size_t)_i % T_COUNT(kinds)],
			   .action = actions[which].action };

	t_run_init(&act.run, world);
	act.run.exec_opts = &opts;
	act.run.on_event = act_on;
	act.run.userdata = &act;
	ck_assert_int_eq(agentd_params_new_shell("echo out; echo err >&2; sleep 0.05; "
						 "exec cat > /dev/null",
						 t_slack(2000), &act.params, NULL),
			 0);
	ck_assert_int_eq(t_run_start_params(&act.run, act.params, NULL), 0);
	while (!act.done && !act.run.started)
		t_world_loop(world, 10, &act.run.started);
	/* The input ends when the test let it end, or with the handle. */
	if (!t_world_loop(world, t_slack(300), &act.run.finished) && act.run.exec)
		agentd_exec_close_stdin(act.run.exec);
	t_run_wait(&act.run);
	ck_assert_msg(act.done, "no callback %d came: %s", (int)act.when, t_run_story(&act.run));
	ck_assert_int_eq(act.run.finished, 1);
	if (act.second.world) {
		t_run_wait(&act.second);
		t_expect_status(&act.second, AGENTD_STATUS_OK);
		t_expect_out(&act.second, AGENTD_STDOUT, "second\n");
		t_run_free(&act.second);
	}
	if (!actions[which].ends && act.when != T_LOG && act.run.exec)
		t_expect_status(&act.run, AGENTD_STATUS_OK);
	if (act.runner_gone)
		t_world_loop(world, 300, NULL);
	agentd_params_unref(act.params);
	t_run_free(&act.run);
	t_world_free(world);
}
END_TEST

/* The first record is the sink's veto: dropping the handle there is no veto. */
START_TEST(cancel_in_first_log)
{
	struct t_world *world = t_world_new(NULL);
	struct act act = { .when = T_LOG, .action = cancel_it };

	t_run_init(&act.run, world);
	act.run.on_event = act_on;
	act.run.userdata = &act;
	ck_assert_int_eq(t_run_start(&act.run, "echo never", 0), 0);
	t_run_wait(&act.run);
	t_expect_status(&act.run, AGENTD_STATUS_KILLED);
	t_expect_cause(&act.run, AGENTD_CAUSE_CANCELED);
	ck_assert_int_eq(act.run.started, 0);
	t_run_free(&act.run);
	t_world_free(world);
}
END_TEST

/* ---- a new one inside finished, again and again */

struct chain {
	struct t_world *world;
	agentd_params *params;
	agentd_sink *sink;
	int left, done;
	int total;
	uintptr_t frame_low, frame_high;
	uint64_t warm_rss;
};

static void chain_next(struct chain *chain)
{
	T_CHECK(agentd_exec_start(chain->world->runner, chain->world->ctx, chain->params,
				  chain->sink, NULL, NULL, NULL) == 0,
		"no start");
}

static void chain_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct chain *chain = userdata;
	uintptr_t here = (uintptr_t)__builtin_frame_address(0);

	(void)exec;
	T_CHECK(agentd_result_status(result) == AGENTD_STATUS_OK, "status");
	if (here < chain->frame_low)
		chain->frame_low = here;
	if (here > chain->frame_high)
		chain->frame_high = here;
	if (chain->left == chain->total - chain->total / 10)
		chain->warm_rss = t_rss_bytes();
	if (--chain->left == 0)
		chain->done = 1;
	else
		chain_next(chain);
}

START_TEST(start_inside_finished)
{
	static const char *const argv[] = { "/bin/true", NULL };
	static const struct agentd_sink_ops ops = { .size = sizeof(ops),
						    .finished = chain_finished };
	struct t_world *world = t_world_new(&(struct t_world_opts){ .no_log = true });
	struct chain chain = { .world = world, .frame_low = UINTPTR_MAX };
	uint64_t growth;

	/* A frame each would show after ten; memory takes more. */
	chain.total = chain.left = t_is_small() ? 300 : 2000;
	ck_assert_int_eq(agentd_params_new_argv(argv, 0, &chain.params, NULL), 0);
	ck_assert_int_eq(agentd_sink_new(&ops, &chain, &chain.sink, NULL), 0);
	chain_next(&chain);
	ck_assert(t_world_loop(world, t_slack(100000), &chain.done));
	ck_assert_msg(chain.frame_high - chain.frame_low < 1024, "the stack grew by %zu bytes",
		      (size_t)(chain.frame_high - chain.frame_low));
	growth = t_rss_bytes() - chain.warm_rss;
	if (t_rss_bytes() < chain.warm_rss)
		growth = 0;
	if (!t_is_slow())
		ck_assert_msg(growth < 1 << 20, "memory grew by %llu bytes",
			      (unsigned long long)growth);
	agentd_sink_unref(chain.sink);
	agentd_params_unref(chain.params);
	t_world_free(world);
}
END_TEST

/* ---- the runner's log callback may call nothing */

struct nosy {
	struct t_world *world;
	struct t_run run;
	agentd_loop *loop;
	agentd_params *params;
	int calls;
};

static void nosy_log(const agentd_log_record *record, void *userdata)
{
	struct nosy *nosy = userdata;
	struct t_world *world = nosy->world;
	agentd_exec *exec = NULL, *known = nosy->run.exec;
	agentd_error *err = NULL;
	char *text = NULL;
	size_t taken;
	int r;

	(void)record;
	nosy->calls++;
	if (!world || !world->ctx)
		return;
	r = agentd_exec_start(world->runner, world->ctx, nosy->params, NULL, NULL, &exec, &err);
	t_expect_error(r, AGENTD_ERR_REENTRANT, err, NULL, NULL);
	ck_assert_ptr_null(exec);
	ck_assert_int_eq(agentd_runner_shutdown(world->runner, 0, NULL, NULL),
			 AGENTD_ERR_REENTRANT);
	err = NULL;
	r = agentd_runner_explain(world->runner, world->ctx, nosy->params, &text, NULL, &err);
	ck_assert_msg(r == AGENTD_ERR_REENTRANT || r == 0, "%d", r);
	agentd_error_unref(err);
	agentd_free(text);
	err = NULL;
	r = agentd_runner_validate(world->runner, "{}", 2, &err);
	ck_assert_int_lt(r, 0);
	agentd_error_unref(err);
	/* references come and go */
	agentd_runner_unref(agentd_runner_ref(world->runner));
	agentd_context_unref(agentd_context_ref(world->ctx));
	if (!known)
		return;
	agentd_exec_unref(agentd_exec_ref(known));
	r = agentd_exec_signal(known, SIGUSR1, NULL);
	ck_assert_msg(r == AGENTD_ERR_REENTRANT || r == AGENTD_ERR_STATE, "%d", r);
	r = agentd_exec_write(known, (const uint8_t *)"x", 1, &taken);
	ck_assert_msg(r == AGENTD_ERR_REENTRANT || r == AGENTD_ERR_STATE, "%d", r);
	r = agentd_exec_resume(known, AGENTD_STDOUT);
	ck_assert_msg(r == AGENTD_ERR_REENTRANT || r == AGENTD_ERR_STATE, "%d", r);
}

START_TEST(log_reentry)
{
	struct nosy nosy = { 0 };
	struct t_world *world =
		t_world_new_bare(&(struct t_world_opts){ .log = nosy_log, .log_userdata = &nosy });

	ck_assert_int_eq(agentd_params_new_shell("true", 0, &nosy.params, NULL), 0);
	t_world_start(world);
	nosy.world = world;
	t_run_init(&nosy.run, world);
	ck_assert_int_eq(t_run_start(&nosy.run, "echo a; echo b >&2; sleep 0.1; exit 3", 0), 0);
	t_run_wait(&nosy.run);
	t_expect_exit(&nosy.run, 3);
	ck_assert_int_ge(nosy.calls, 3);
	t_run_free(&nosy.run);
	agentd_params_unref(nosy.params);
	nosy.world = NULL;
	t_world_free(world);
}
END_TEST

static void cancel_log(const agentd_log_record *record, void *userdata)
{
	struct nosy *nosy = userdata;

	if (strcmp(agentd_log_record_message(record), "Shell command spawned") == 0) {
		nosy->calls++;
		agentd_exec_cancel(nosy->run.exec);
	}
}

/* Cancelling is [any thread], so it works here as well; but it does not act inside
 * the log callback. */
START_TEST(cancel_in_runner_log)
{
	struct nosy nosy = { 0 };
	struct t_world *world = t_world_new_bare(
		&(struct t_world_opts){ .log = cancel_log, .log_userdata = &nosy });

	t_world_start(world);
	t_run_init(&nosy.run, world);
	ck_assert_int_eq(t_run_start(&nosy.run, "exec sleep 20", 0), 0);
	t_run_wait(&nosy.run);
	ck_assert_int_eq(nosy.calls, 1);
	t_expect_cause(&nosy.run, AGENTD_CAUSE_CANCELED);
	t_run_free(&nosy.run);
	t_world_free(world);
}
END_TEST

static void drop_log(const agentd_log_record *record, void *userdata)
{
	struct nosy *nosy = userdata;
	struct t_world *world = nosy->world;

	if (!world || strcmp(agentd_log_record_message(record), "Shell command spawned") != 0)
		return;
	nosy->calls++;
	nosy->world = NULL;
	agentd_runner_unref(world->runner);
	world->runner = NULL;
	agentd_exec_unref(nosy->run.exec);
	nosy->run.exec = NULL;
}

START_TEST(drop_in_runner_log)
{
	struct nosy nosy = { 0 };
	struct t_world *world =
		t_world_new_bare(&(struct t_world_opts){ .log = drop_log, .log_userdata = &nosy });

	t_world_start(world);
	nosy.world = world;
	t_run_init(&nosy.run, world);
	ck_assert_int_eq(t_run_start(&nosy.run, "exec sleep 20", 0), 0);
	t_run_wait(&nosy.run);
	ck_assert_int_eq(nosy.calls, 1);
	t_expect_cause(&nosy.run, AGENTD_CAUSE_CANCELED);
	t_run_free(&nosy.run);
	t_world_loop(world, 200, NULL);
	t_world_free(world);
}
END_TEST

/* A sink's log callback is one of the sink's: there everything is allowed. */
static int32_t start_in_sink_log(struct t_run *run, const agentd_log_record *record)
{
	struct t_run *second = run->userdata;

	(void)record;
	if (!second->world) {
		t_run_init(second, run->world);
		ck_assert_int_eq(t_run_start(second, "echo second", 0), 0);
	}
	return 0;
}

START_TEST(start_inside_sink_log)
{
	struct t_world *world = t_world_new(NULL);
	struct t_run run, second = { 0 };

	t_run_init(&run, world);
	run.on_log = start_in_sink_log;
	run.userdata = &second;
	ck_assert_int_eq(t_run_start(&run, "echo first", 0), 0);
	t_run_wait(&run);
	t_run_wait(&second);
	t_expect_out(&run, AGENTD_STDOUT, "first\n");
	t_expect_out(&second, AGENTD_STDOUT, "second\n");
	t_run_free(&run);
	t_run_free(&second);
	t_world_free(world);
}
END_TEST

/* ---- the loop is not for callbacks */

static agentd_loop *the_loop;

static void run_the_loop(struct t_run *run, enum t_event_kind kind)
{
	agentd_error *err = NULL;
	int r = agentd_loop_run(the_loop, 0, &err);

	(void)kind;
	t_expect_error(r, AGENTD_ERR_REENTRANT, err, NULL, NULL);
	if (!run->exec)
		return;
	err = NULL;
	r = agentd_loop_run_until(the_loop, run->exec, 100, &err);
	t_expect_error(r, AGENTD_ERR_REENTRANT, err, NULL, NULL);
}

START_TEST(loop_inside_callbacks)
{
	struct t_world *world = t_world_new_bare(NULL);
	struct t_run run;

	ck_assert_int_eq(agentd_loop_new(&the_loop, NULL), 0);
	world->base = agentd_loop_event_base(the_loop);
	t_world_start(world);
	t_run_init(&run, world);
	run.on_event = run_the_loop;
	ck_assert_int_eq(t_run_start(&run, "echo a; echo b >&2", 0), 0);
	ck_assert_int_eq(agentd_loop_run_until(the_loop, run.exec, 20000, NULL), 1);
	ck_assert_int_eq(run.finished, 1);
	ck_assert_uint_ge(run.event_count, 5);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_run_free(&run);
	t_world_shutdown(world);
	agentd_loop_unref(the_loop);
	world->base = NULL;
	t_world_free(world);
}
END_TEST

int main(void)
{
	TCase *inside = t_case("inside", 30), *deep = t_case("deep", 120);
	TCase *logs = t_case("logs", 30);
	TCase *const cases[] = { inside, deep, logs };

	tcase_add_loop_test(inside, action_in_callback, 0,
			    (int)(T_COUNT(actions) * T_COUNT(kinds)));
	tcase_add_test(inside, cancel_in_first_log);
	tcase_add_test(inside, loop_inside_callbacks);
	tcase_add_test(deep, start_inside_finished);
	tcase_add_test(logs, log_reentry);
	tcase_add_test(logs, cancel_in_runner_log);
	tcase_add_test(logs, drop_in_runner_log);
	tcase_add_test(logs, start_inside_sink_log);
	return t_main("callbacks", cases, T_COUNT(cases));
}
