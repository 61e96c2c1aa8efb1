/* SPDX-License-Identifier: MIT */
/* The order in which things go away, and how many may be there at once. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"

/* ---- unref and shutdown */

static void settle(struct t_world *world)
{
	t_world_loop(world, 300, NULL);
}

START_TEST(idle_runner_dropped)
{
	struct t_world *world = t_world_new(NULL);

	/* nothing is alive: all of it is gone before unref returns, but the helper,
	 * which ends by itself */
	agentd_runner_unref(world->runner);
	world->runner = NULL;
	t_world_free(world);

	/* and after the base, which then holds nothing of ours */
	world = t_world_new(NULL);
	settle(world);
	event_base_free(world->base);
	world->base = NULL;
	agentd_runner_unref(world->runner);
	world->runner = NULL;
	t_world_free(world);
}
END_TEST

START_TEST(extra_references)
{
	struct t_world *world = t_world_new(NULL);
	struct t_run run;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "echo a", 0), 0);
	ck_assert_ptr_eq(agentd_runner_ref(world->runner), world->runner);
	ck_assert_ptr_eq(agentd_exec_ref(run.exec), run.exec);
	ck_assert_ptr_eq(agentd_context_ref(world->ctx), world->ctx);
	agentd_runner_unref(world->runner);
	agentd_exec_unref(run.exec);
	agentd_context_unref(world->ctx);
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* The handle, its result and its error live on without runner and base. */
START_TEST(handles_outlive_everything)
{
	struct t_world *world = t_world_new(NULL);
	struct t_run run;
	agentd_exec *exec;
	agentd_result *result;
	agentd_error *err;
	char *json = NULL, *id, *path = t_format("%s/none", world->workdir);

	ck_assert_int_eq(agentd_context_set_workdir(world->ctx, path, NULL), 0);
	t_run(&run, world, "echo a", 0);
	exec = agentd_exec_ref(run.exec);
	result = agentd_result_ref(run.result);
	ck_assert_ptr_nonnull(agentd_result_error(result));
	id = strdup(agentd_exec_id(exec));
	t_run_free(&run);
	t_world_free(world);
	ck_assert_int_eq(agentd_exec_state(exec), AGENTD_STATE_FINISHED);
	ck_assert_ptr_eq(agentd_exec_result(exec), result);
	ck_assert_str_eq(agentd_exec_id(exec), id);
	ck_assert_int_eq(agentd_exec_cancel(exec), 0);
	ck_assert_int_eq(agentd_exec_kill(exec), 0);
	ck_assert_int_eq(agentd_exec_signal(exec, 15, NULL), AGENTD_ERR_STATE);
	agentd_exec_unref(exec);
	err = agentd_error_ref((agentd_error *)(uintptr_t)agentd_result_error(result));
	ck_assert_int_eq(agentd_result_to_json(result, &json, NULL, NULL), 0);
	ck_assert_ptr_nonnull(strstr(json, id));
	agentd_free(json);
	agentd_result_unref(result);
	ck_assert_int_ne(agentd_error_code(err), 0);
	ck_assert_str_ne(agentd_error_message(err), "");
	agentd_error_unref(err);
	free(id);
	free(path);
}
END_TEST

/* Whatever is passed in may go away, or change, right after the start. */
START_TEST(inputs_are_taken_over)
{
	struct t_world *world = t_world_new(NULL);
	char script[] = "echo \"$V\"; pwd", value[] = "value";
	struct agentd_limits *limits = malloc(sizeof(*limits));
	struct agentd_exec_opts *opts = calloc(1, sizeof(*opts));
	agentd_params *params = NULL;
	struct t_run run;
	char *want = t_format("value\n%s\n", world->workdir);

	agentd_limits_init(limits, sizeof(*limits));
	limits->timeout_ms = 20000;
	*opts = (struct agentd_exec_opts){ .size = sizeof(*opts), .limits = limits };
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "V", value, NULL), 0);
	ck_assert_int_eq(agentd_params_new_shell(script, 0, &params, NULL), 0);
	memset(script, 'x', sizeof(script) - 1);
	memset(value, 'x', sizeof(value) - 1);
	t_run_init(&run, world);
	run.exec_opts = opts;
	ck_assert_int_eq(t_run_start_params(&run, params, NULL), 0);
	agentd_params_unref(params);
	memset(limits, 0xff, sizeof(*limits));
	free(limits);
	memset(opts, 0xff, sizeof(*opts));
	free(opts);
	/* a later change of the context is for later runs */
	ck_assert_int_eq(agentd_context_set_env(world->ctx, "V", "changed", NULL), 0);
	ck_assert_int_eq(agentd_context_set_workdir(world->ctx, "/", NULL), 0);
	agentd_context_unref(world->ctx);
	world->ctx = NULL;
	t_run_wait(&run);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_expect_out(&run, AGENTD_STDOUT, want);
	free(want);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

static void note_done(agentd_runner *runner, void *userdata)
{
	ck_assert_ptr_nonnull(runner);
	++*(int *)userdata;
}

START_TEST(shutdown_idle)
{
	struct t_world *world = t_world_new(NULL);
	int done = 0;

	ck_assert_int_eq(agentd_runner_shutdown(world->runner, 1000, note_done, &done), 0);
	ck_assert_int_eq(done, 0);
	ck_assert_int_eq(agentd_runner_shutdown(world->runner, 0, note_done, &done),
			 AGENTD_ERR_STATE);
	ck_assert(t_world_loop(world, t_slack(5000), &done));
	/* the helper is gone when done says so */
	t_world_expect_dead(world, 200);
	ck_assert_int_eq(agentd_runner_shutdown(world->runner, 0, note_done, &done),
			 AGENTD_ERR_STATE);
	settle(world);
	ck_assert_int_eq(done, 1);
	agentd_runner_unref(world->runner);
	world->runner = NULL;
	t_world_free(world);
}
END_TEST

/* The last reference is dropped before `done` came: it still comes. */
START_TEST(shutdown_and_drop)
{
	struct t_world *world = t_world_new(NULL);
	struct t_run run;
	int done = 0;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "exec sleep 20", 0), 0);
	ck_assert(t_world_loop(world, t_slack(5000), &run.started));
	ck_assert_int_eq(agentd_runner_shutdown(world->runner, 100, note_done, &done), 0);
	agentd_runner_unref(world->runner);
	world->runner = NULL;
	ck_assert(t_world_loop(world, t_slack(8000), &done));
	ck_assert_int_eq(run.finished, 1);
	t_run_free(&run);
	settle(world);
	t_world_free(world);
}
END_TEST

/* SIGTERM first, and grace_ms until SIGKILL, as shutdown was told; also of what is being ended
 * with more patience. */
START_TEST(shutdown_grace)
{
	static const uint32_t graces[] = { 0, 300 };
	struct agentd_exec_opts patient = { .size = sizeof(patient), .grace_ms = 30000 };

	for (size_t i = 0; i < T_COUNT(graces); i++) {
		struct t_world *world = t_world_new(NULL);
		uint64_t at, deadline = t_now() + T_MS(t_slack(5000));
		struct t_run run;
		int done = 0;

		t_run_init(&run, world);
		run.exec_opts = &patient;
		ck_assert_int_eq(
			t_run_start(&run, "trap '' TERM; echo ready; while :; do sleep 0.05; done",
				    0),
			0);
		while (run.total[AGENTD_STDOUT] < 6 && t_now() < deadline)
			t_world_loop(world, 10, NULL);
		if (_i)
			ck_assert_int_eq(agentd_exec_cancel(run.exec), 0);
		at = t_now();
		ck_assert_int_eq(agentd_runner_shutdown(world->runner, graces[i], note_done, &done),
				 0);
		ck_assert(t_world_loop(world, t_slack(8000), &done));
		ck_assert_int_eq(run.finished, 1);
		ck_assert_int_eq(agentd_result_signal(run.result), 9);
		ck_assert_msg(run.end_ns - at >= T_MS(graces[i]), "grace %u: %s", graces[i],
			      t_run_story(&run));
		ck_assert_msg(run.end_ns - at < T_MS(graces[i] + t_slack(1000)), "grace %u: %s",
			      graces[i], t_run_story(&run));
		agentd_runner_unref(world->runner);
		world->runner = NULL;
		t_run_free(&run);
		t_world_free(world);
	}
}
END_TEST

/* Orders in which runner, exec, context and base can be let go while a command
 * runs. With the base last, the loop runs until `finished` came; with the base
 * before the runner nobody can be told, but everything ends. */
static const char *const orders[] = { "recb", "cerb", "ecrb", "crb",  "bre",
				      "ber",  "ebr",  "cebr", "becr", "brce" };

START_TEST(drop_order)
{
	struct t_world *world = t_world_new(NULL);
	const char *order = orders[_i];
	bool base_last = order[strlen(order) - 1] == 'b';
	struct t_run run;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "trap '' TERM HUP; (setsid sleep 30 &) ; sleep 30", 0),
			 0);
	ck_assert(t_world_loop(world, t_slack(5000), &run.started));
	t_world_loop(world, 50, NULL);
	for (const char *c = order; *c; c++) {
		if (*c == 'r') {
			agentd_runner_unref(world->runner);
			world->runner = NULL;
		} else if (*c == 'e') {
			agentd_exec_unref(run.exec);
			run.exec = NULL;
		} else if (*c == 'c') {
			agentd_context_unref(world->ctx);
			world->ctx = NULL;
		} else {
			if (base_last) {
				t_run_wait(&run);
				settle(world);
			}
			event_base_free(world->base);
			world->base = NULL;
		}
	}
	t_world_expect_dead(world, 1000);
	agentd_exec_unref(run.exec);
	run.exec = NULL;
	ck_assert_int_eq(run.finished, base_last);
	ck_assert_int_eq(run.destroyed, 1);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

/* Those that wait and those that have only just started go the same way. */
START_TEST(base_freed_under_a_crowd)
{
	enum { COUNT = 12 };
	struct t_world *world =
		t_world_new(&(struct t_world_opts){ .max_running = 4, .max_queued = COUNT });
	struct t_run runs[COUNT];

	for (size_t i = 0; i < COUNT; i++) {
		t_run_init(&runs[i], world);
		ck_assert_int_eq(t_run_start(&runs[i], "yes | cat", 0), 0);
	}
	ck_assert(t_world_loop(world, t_slack(5000), &runs[2].started));
	event_base_free(world->base);
	world->base = NULL;
	for (size_t i = 0; i < COUNT; i++)
		ck_assert_int_eq(agentd_exec_cancel(runs[i].exec), 0);
	for (size_t i = 0; i < COUNT; i += 2) {
		agentd_exec_unref(runs[i].exec);
		runs[i].exec = NULL;
	}
	agentd_runner_unref(world->runner);
	world->runner = NULL;
	t_world_expect_dead(world, 1000);
	for (size_t i = 0; i < COUNT; i++) {
		ck_assert_int_eq(agentd_exec_cancel(runs[i].exec), i % 2 ? 0 : AGENTD_ERR_INVALID);
		ck_assert_int_eq(runs[i].finished, 0);
		ck_assert_int_eq(runs[i].destroyed, 1);
		t_run_free(&runs[i]);
	}
	t_world_free(world);
}
END_TEST

START_TEST(two_runners_on_one_base)
{
	struct t_world *a = t_world_new(NULL);
	struct t_world *b = t_world_new(&(struct t_world_opts){ .base = a->base });
	struct t_run x, y;

	t_run_init(&x, a);
	t_run_init(&y, b);
	ck_assert_int_eq(t_run_start(&x, "sleep 0.2; echo x", 0), 0);
	ck_assert_int_eq(t_run_start(&y, "sleep 0.1; echo y", 0), 0);
	t_run_wait(&x);
	t_run_wait(&y);
	t_expect_out(&x, AGENTD_STDOUT, "x\n");
	t_expect_out(&y, AGENTD_STDOUT, "y\n");
	ck_assert_str_ne(x.id, y.id);
	t_run_free(&x);
	t_run_free(&y);
	/* one goes, the other works on */
	agentd_runner_unref(b->runner);
	b->runner = NULL;
	t_run(&x, a, "echo again", 0);
	t_expect_out(&x, AGENTD_STDOUT, "again\n");
	t_run_free(&x);
	t_world_expect_dead(b, 1000);
	agentd_context_unref(b->ctx);
	t_world_forget(b);
	t_world_free(a);
}
END_TEST

/* ---- queueing */

static int alive, most_alive, begun;
static int begin_order[64];

static void count_alive(struct t_run *run, enum t_event_kind kind)
{
	/* The first record comes when it has a place; two that have one may then start
	 * in any order. */
	if (kind == T_LOG && run->logs.count == 1) {
		begin_order[begun++] = (int)(intptr_t)run->userdata;
	} else if (kind == T_STARTED) {
		if (++alive > most_alive)
			most_alive = alive;
	} else if (kind == T_FINISHED && run->started) {
		alive--;
	}
}

START_TEST(queue)
{
	enum { RUNNING = 2, QUEUED = 3, ALL = RUNNING + QUEUED };
	struct t_world *world =
		t_world_new(&(struct t_world_opts){ .max_running = RUNNING, .max_queued = QUEUED });
	struct t_run runs[ALL], more;
	agentd_params *params = NULL;
	agentd_error *err = NULL;
	int r;

	ck_assert_int_eq(agentd_params_new_shell("sleep 0.15; echo ok", 0, &params, NULL), 0);
	for (int i = 0; i < ALL; i++) {
		t_run_init(&runs[i], world);
		runs[i].on_event = count_alive;
		runs[i].userdata = (void *)(intptr_t)i;
		ck_assert_int_eq(t_run_start_params(&runs[i], params, NULL), 0);
		ck_assert_int_eq(agentd_exec_state(runs[i].exec), AGENTD_STATE_QUEUED);
	}
	t_run_init(&more, world);
	r = t_run_start_params(&more, params, &err);
	t_expect_error(r, AGENTD_ERR_LIMIT, err, "max_", NULL);
	ck_assert(t_world_loop(world, t_slack(5000), &runs[1].started));
	ck_assert(t_world_loop(world, t_slack(5000), &runs[0].started));
	ck_assert_int_eq(agentd_exec_state(runs[0].exec), AGENTD_STATE_RUNNING);
	ck_assert_int_eq(agentd_exec_state(runs[2].exec), AGENTD_STATE_QUEUED);
	ck_assert_int_eq(agentd_exec_signal(runs[2].exec, 15, NULL), AGENTD_ERR_STATE);
	for (int i = 0; i < ALL; i++)
		t_run_wait(&runs[i]);
	ck_assert_int_eq(most_alive, RUNNING);
	for (int i = 0; i < ALL; i++) {
		ck_assert_msg(begin_order[i] == i, "%d came as number %d", begin_order[i], i);
		t_expect_status(&runs[i], AGENTD_STATUS_OK);
		t_run_free(&runs[i]);
	}
	/* there is room again */
	t_run_init(&more, world);
	ck_assert_int_eq(t_run_start_params(&more, params, NULL), 0);
	t_run_wait(&more);
	t_run_free(&more);
	agentd_params_unref(params);
	t_world_free(world);
}
END_TEST

START_TEST(queued_is_cancelled)
{
	struct t_world *world =
		t_world_new(&(struct t_world_opts){ .max_running = 1, .max_queued = 2 });
	struct t_run first, queued, third, more;

	t_run_init(&first, world);
	ck_assert_int_eq(t_run_start(&first, "exec sleep 20", 0), 0);
	t_run_init(&queued, world);
	ck_assert_int_eq(t_run_start(&queued, "echo > marker", 0), 0);
	t_run_init(&third, world);
	ck_assert_int_eq(t_run_start(&third, "echo third", 0), 0);
	t_run_init(&more, world);
	ck_assert_int_eq(t_run_start(&more, "echo more", 0), AGENTD_ERR_LIMIT);
	ck_assert(t_world_loop(world, t_slack(5000), &first.started));
	world->in_api++;
	ck_assert_int_eq(agentd_exec_cancel(queued.exec), 0);
	world->in_api--;
	t_run_wait(&queued);
	ck_assert_int_eq(first.finished, 0);
	t_expect_status(&queued, AGENTD_STATUS_KILLED);
	t_expect_cause(&queued, AGENTD_CAUSE_CANCELED);
	ck_assert_int_eq(queued.started, 0);
	ck_assert_int_eq(agentd_error_code(agentd_result_error(queued.result)),
			 AGENTD_ERR_CANCELED);
	/* its place in the queue is free, the order stays */
	t_run_init(&more, world);
	ck_assert_int_eq(t_run_start(&more, "echo more", 0), 0);
	ck_assert_int_eq(agentd_exec_kill(first.exec), 0);
	t_run_wait(&more);
	ck_assert_int_eq(third.finished, 1);
	ck_assert_uint_le(third.end_ns, more.end_ns);
	t_run_free(&first);
	t_run_free(&queued);
	t_run_free(&third);
	t_run_free(&more);
	t_world_free(world);
}
END_TEST

START_TEST(queue_ends_with_the_runner)
{
	enum { COUNT = 6 };
	struct t_world *world = t_world_new(&(struct t_world_opts){ .max_running = 1 });
	struct t_run runs[COUNT];

	for (int i = 0; i < COUNT; i++) {
		t_run_init(&runs[i], world);
		ck_assert_int_eq(t_run_start(&runs[i], "exec sleep 20", 0), 0);
	}
	ck_assert(t_world_loop(world, t_slack(5000), &runs[0].started));
	if (_i == 0) {
		agentd_runner_unref(world->runner);
		world->runner = NULL;
	} else {
		ck_assert_int_eq(agentd_runner_shutdown(world->runner, 50, NULL, NULL), 0);
	}
	for (int i = 0; i < COUNT; i++) {
		t_run_wait(&runs[i]);
		t_expect_status(&runs[i], AGENTD_STATUS_KILLED);
		t_expect_cause(&runs[i], AGENTD_CAUSE_CANCELED);
		ck_assert_int_eq(runs[i].started, i == 0);
		t_run_free(&runs[i]);
	}
	agentd_runner_unref(world->runner);
	world->runner = NULL;
	settle(world);
	t_world_free(world);
}
END_TEST

int main(void)
{
	TCase *ends = t_case("ends", 30), *orders_ = t_case("orders", 30);
	TCase *queues = t_case("queues", 30);
	TCase *const cases[] = { ends, orders_, queues };

	tcase_add_test(ends, idle_runner_dropped);
	tcase_add_test(ends, extra_references);
	tcase_add_test(ends, handles_outlive_everything);
	tcase_add_test(ends, inputs_are_taken_over);
	tcase_add_test(ends, shutdown_idle);
	tcase_add_test(ends, shutdown_and_drop);
	tcase_add_loop_test(ends, shutdown_grace, 0, 2);
	tcase_add_test(ends, two_runners_on_one_base);
	tcase_add_loop_test(orders_, drop_order, 0, (int)T_COUNT(orders));
	tcase_add_test(orders_, base_freed_under_a_crowd);
	tcase_add_test(queues, queue);
	tcase_add_test(queues, queued_is_cancelled);
	tcase_add_loop_test(queues, queue_ends_with_the_runner, 0, 2);
	return t_main("lifetime", cases, T_COUNT(cases));
}
