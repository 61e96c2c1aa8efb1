/* SPDX-License-Identifier: MIT */
/* What is marked [any thread], from other threads, and two loops in two threads. */
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

static pthread_t start_thread(void *(*fn)(void *), void *arg)
{
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, fn, arg), 0);
	return thread;
}

/* ---- stopping from elsewhere */

static void *cancel_elsewhere(void *arg)
{
	agentd_exec *exec = arg;

	ck_assert_int_eq(agentd_exec_cancel(exec), 0);
	ck_assert_int_eq(agentd_exec_cancel(exec), 0);
	agentd_exec_unref(exec);
	return NULL;
}

static void *kill_elsewhere(void *arg)
{
	agentd_exec *exec = arg;

	ck_assert_int_eq(agentd_exec_cancel(exec), 0);
	ck_assert_int_eq(agentd_exec_kill(exec), 0);
	agentd_exec_unref(exec);
	return NULL;
}

START_TEST(stop_from_a_thread)
{
	struct t_world *world = t_world_new(NULL);
	void *(*const ways[])(void *) = { cancel_elsewhere, kill_elsewhere };

	for (size_t i = 0; i < 2 * T_COUNT(ways); i++) {
		struct t_run run;
		pthread_t thread;

		t_run_init(&run, world);
		ck_assert_int_eq(t_run_start(&run, "exec sleep 20", 0), 0);
		if (i >= T_COUNT(ways)) /* else before it runs */
			ck_assert(t_world_loop(world, t_slack(5000), &run.started));
		thread = start_thread(ways[i % T_COUNT(ways)], agentd_exec_ref(run.exec));
		t_run_wait(&run);
		pthread_join(thread, NULL);
		t_expect_status(&run, AGENTD_STATUS_KILLED);
		t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
		t_run_free(&run);
	}
	t_world_free(world);
}
END_TEST

/* Cancels that race with the end. */
START_TEST(stop_while_it_ends)
{
	struct t_world *world = t_world_new(NULL);
	int rounds = t_is_slow() ? 20 : 100;

	for (int i = 0; i < rounds; i++) {
		struct t_run run;
		pthread_t thread;

		t_run_init(&run, world);
		ck_assert_int_eq(t_run_start(&run, "exit 0", 0), 0);
		if (i % 2)
			t_world_loop(world, 2, &run.started);
		thread = start_thread(i % 3 ? cancel_elsewhere : kill_elsewhere,
				      agentd_exec_ref(run.exec));
		t_run_wait(&run);
		pthread_join(thread, NULL);
		ck_assert_msg(agentd_result_cause(run.result) == AGENTD_CAUSE_CANCELED ||
				      agentd_result_cause(run.result) == AGENTD_CAUSE_EXITED,
			      "round %d: %s", i, t_run_story(&run));
		t_run_free(&run);
	}
	t_world_free(world);
}
END_TEST

/* ---- the last reference elsewhere */

struct everything {
	agentd_runner *runner;
	agentd_context *ctx;
	agentd_exec *exec;
	agentd_sink *sink;
	agentd_params *params;
	agentd_policy *policy;
	agentd_result *result;
	agentd_error *err;
};

static void *drop_elsewhere(void *arg)
{
	struct everything *all = arg;

	agentd_runner_unref(all->runner);
	agentd_exec_unref(all->exec);
	agentd_context_unref(all->ctx);
	agentd_sink_unref(all->sink);
	agentd_params_unref(all->params);
	agentd_policy_unref(all->policy);
	agentd_result_unref(all->result);
	agentd_error_unref(all->err);
	return NULL;
}

static void count_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	(void)exec;
	ck_assert_ptr_nonnull(result);
	atomic_fetch_add((_Atomic int *)userdata, 1);
}

static void count_destroyed(void *userdata)
{
	atomic_fetch_add((_Atomic int *)userdata + 1, 1);
}

START_TEST(drop_from_a_thread)
{
	static const struct agentd_sink_ops ops = { .size = sizeof(ops),
						    .finished = count_finished,
						    .destroy = count_destroyed };

	for (int running = 0; running < 3; running++) {
		struct t_world *world = t_world_new(NULL);
		struct everything all = { .runner = world->runner, .ctx = world->ctx };
		_Atomic int counts[2] = { 0, 0 };
		uint64_t deadline;
		pthread_t thread;

		ck_assert_int_eq(agentd_sink_new(&ops, (void *)counts, &all.sink, NULL), 0);
		ck_assert_int_eq(agentd_params_new_shell("exec sleep 20", 0, &all.params, NULL), 0);
		ck_assert_int_eq(agentd_policy_new(&all.policy, NULL), 0);
		ck_assert_int_lt(agentd_params_parse("{", 1, &(agentd_params *){ NULL }, &all.err),
				 0);
		if (running > 0)
			ck_assert_int_eq(agentd_exec_start(world->runner, world->ctx, all.params,
							   all.sink, NULL, &all.exec, NULL),
					 0);
		t_world_loop(world, running == 2 ? 200 : 0, NULL);
		world->runner = NULL;
		world->ctx = NULL;
		thread = start_thread(drop_elsewhere, &all);
		deadline = t_now() + T_MS(t_slack(5000));
		while ((atomic_load(&counts[0]) < (running > 0) || atomic_load(&counts[1]) < 1) &&
		       t_now() < deadline)
			t_world_loop(world, 10, NULL);
		pthread_join(thread, NULL);
		ck_assert_int_eq(atomic_load(&counts[0]), running > 0);
		ck_assert_int_eq(atomic_load(&counts[1]), 1);
		t_world_loop(world, 200, NULL);
		t_world_free(world);
	}
}
END_TEST

/* Where a thread waits in front of a lock, for what others do meanwhile. */
struct gate {
	sem_t reached, open;
};
static _Thread_local struct gate *gate; /* of this thread's next lock */

/* In place of libc's, for the library too. */
int pthread_mutex_lock(pthread_mutex_t *mutex)
{
	static int (*_Atomic next)(pthread_mutex_t *);
	int (*lock)(pthread_mutex_t *) = atomic_load(&next);
	struct gate *here = gate;

	if (!lock) {
		*(void **)&lock = dlsym(RTLD_NEXT, "pthread_mutex_lock");
		atomic_store(&next, lock);
	}
	gate = NULL;
	if (here) {
		sem_post(&here->reached);
		sem_wait(&here->open);
	}
	return lock(mutex);
}

struct drop {
	struct gate gate;
	agentd_runner *runner;
	agentd_pool *pool;
	agentd_exec *exec;
};

static void *drop_at_gate(void *arg)
{
	struct drop *drop = arg;

	if (drop->exec)
		ck_assert_int_eq(agentd_exec_cancel(drop->exec), 0);
	agentd_exec_unref(drop->exec);
	gate = &drop->gate;
	agentd_runner_unref(drop->runner);
	agentd_pool_unref(drop->pool);
	return NULL;
}

/* The last reference is given up, and the thread has not come further than that. */
static pthread_t begin_drop(struct drop *drop)
{
	pthread_t thread;

	sem_init(&drop->gate.reached, 0, 0);
	sem_init(&drop->gate.open, 0, 0);
	thread = start_thread(drop_at_gate, drop);
	sem_wait(&drop->gate.reached);
	return thread;
}

static void end_drop(struct drop *drop, pthread_t thread)
{
	sem_post(&drop->gate.open);
	pthread_join(thread, NULL);
	sem_destroy(&drop->gate.reached);
	sem_destroy(&drop->gate.open);
}

/* The loop sees that the runner is nobody's any more before that was posted to it. */
START_TEST(drop_under_a_cancel)
{
	struct t_world *world = t_world_new(NULL);
	struct drop drop = { .runner = world->runner };
	struct t_run run;
	pthread_t thread;

	t_run_init(&run, world);
	ck_assert_int_eq(t_run_start(&run, "exec sleep 20", 0), 0);
	ck_assert(t_world_loop(world, t_slack(5000), &run.started));
	drop.exec = agentd_exec_ref(run.exec);
	world->runner = NULL;
	thread = begin_drop(&drop);
	t_run_wait(&run);
	t_expect_cause(&run, AGENTD_CAUSE_CANCELED);
	t_run_free(&run);
	end_drop(&drop, thread);
	t_world_loop(world, 50, NULL);
	t_world_free(world);
}
END_TEST

static agentd_pool *new_pool(struct t_world *world)
{
	static const char json[] = "{\"enabled\": false}";
	agentd_pool *pool = NULL;

	ck_assert_int_eq(agentd_pool_new(world->runner, json, strlen(json), &pool, NULL), 0);
	return pool;
}

static void drop_runner(struct t_world *world)
{
	agentd_runner_unref(world->runner);
	world->runner = NULL;
}

/* The runner goes before the pool's thread could say anything, and after. */
START_TEST(drop_pool_and_runner)
{
	for (int after = 0; after < 2; after++) {
		struct t_world *world = t_world_new(NULL);
		struct drop drop = { .pool = new_pool(world) };
		pthread_t thread = begin_drop(&drop);

		if (after)
			end_drop(&drop, thread);
		drop_runner(world);
		if (!after)
			end_drop(&drop, thread);
		t_world_free(world);
	}
}
END_TEST

static void count_done(agentd_pool *pool, const agentd_error *err, void *userdata)
{
	ck_assert_ptr_nonnull(pool);
	ck_assert_ptr_null(err);
	++*(int *)userdata;
}

/* The pool has something to do when its last reference is given up elsewhere. */
START_TEST(drop_busy_pool)
{
	for (int after = 0; after < 2; after++) {
		struct t_world *world = t_world_new(NULL);
		struct drop drop = { .pool = new_pool(world) };
		int done = 0;
		pthread_t thread;

		ck_assert_int_eq(agentd_pool_maintain(drop.pool, count_done, &done), 0);
		thread = begin_drop(&drop);
		if (after)
			end_drop(&drop, thread);
		t_world_loop(world, 20, NULL);
		ck_assert_int_le(done, 1);
		if (!after)
			end_drop(&drop, thread);
		t_world_free(world);
	}
}
END_TEST

static void *drop_result(void *arg)
{
	agentd_result *result = arg;
	char *json = NULL;

	ck_assert_int_eq(agentd_result_status(result), AGENTD_STATUS_OK);
	ck_assert_int_eq(agentd_result_to_json(result, &json, NULL, NULL), 0);
	agentd_free(json);
	agentd_result_unref(result);
	return NULL;
}

/* Results are read and dropped elsewhere while new ones are made. */
START_TEST(results_in_threads)
{
	enum { COUNT = 20 };
	struct t_world *world = t_world_new(NULL);
	pthread_t threads[COUNT];

	for (int i = 0; i < COUNT; i++) {
		struct t_run run;

		t_run(&run, world, "echo a", 0);
		threads[i] = start_thread(drop_result, agentd_result_ref(run.result));
		t_run_free(&run);
	}
	for (int i = 0; i < COUNT; i++)
		pthread_join(threads[i], NULL);
	t_world_free(world);
}
END_TEST

/* ---- shared, immutable things */

struct shared {
	agentd_policy *policy;
	agentd_params *params;
	_Atomic int failures;
};

static void *use_shared(void *arg)
{
	static const char json[] = "{\"command\":\"echo a\",\"timeout_ms\":5}";
	struct shared *shared = arg;

	for (int i = 0; i < 200; i++) {
		agentd_params *params = NULL;
		agentd_policy *policy = NULL;
		agentd_error *err = NULL;
		char *text = NULL, *again = NULL;
		size_t len = 0;

		if (agentd_params_parse(json, sizeof(json) - 1, &params, NULL) < 0)
			shared->failures++;
		if (agentd_params_to_json(shared->params, &text, &len, NULL) < 0)
			shared->failures++;
		if (agentd_policy_to_json(shared->policy, &again, &len, NULL) < 0)
			shared->failures++;
		else if (agentd_policy_from_json(again, len, &policy, NULL) < 0)
			shared->failures++;
		agentd_policy_unref(agentd_policy_ref(shared->policy));
		agentd_params_unref(agentd_params_ref(shared->params));
		if (agentd_params_parse("[", 1, &params, &err) != AGENTD_ERR_INVALID)
			shared->failures++;
		if (!agentd_error_message(err)[0] || !agentd_strerror(-3)[0])
			shared->failures++;
		agentd_policy_freeze(shared->policy);
		agentd_error_unref(err);
		agentd_params_unref(params);
		agentd_policy_unref(policy);
		agentd_free(text);
		agentd_free(again);
	}
	return NULL;
}

START_TEST(shared_values)
{
	struct shared shared = { .failures = 0 };
	pthread_t threads[4];

	shared.policy = t_policy_none();
	ck_assert_int_eq(agentd_policy_allow_path(shared.policy, "/usr", AGENTD_ACCESS_READ, NULL),
			 0);
	ck_assert_int_eq(agentd_policy_freeze(shared.policy), 0);
	ck_assert_int_eq(agentd_params_new_shell("a", 0, &shared.params, NULL), 0);
	for (size_t i = 0; i < T_COUNT(threads); i++)
		threads[i] = start_thread(use_shared, &shared);
	for (size_t i = 0; i < T_COUNT(threads); i++)
		pthread_join(threads[i], NULL);
	ck_assert_int_eq(shared.failures, 0);
	agentd_policy_unref(shared.policy);
	agentd_params_unref(shared.params);
}
END_TEST

/* ---- loops */

struct own_loop {
	agentd_policy *policy; /* shared by both */
	const char *helper, *workdir;
	int number, good;
};

static void *run_own_loop(void *arg)
{
	static const char *const sh[] = { "sh", "-c", NULL };
	struct own_loop *own = arg;
	struct agentd_runner_opts opts = { .size = sizeof(opts),
					   .policy = own->policy,
					   .helper_path = own->helper };
	agentd_context *ctx = NULL;
	agentd_runner *runner = NULL;
	agentd_loop *loop = NULL;

	if (agentd_loop_new(&loop, NULL) < 0)
		return NULL;
	opts.event_base = agentd_loop_event_base(loop);
	if (agentd_runner_new(&opts, &runner, NULL) < 0 || agentd_context_new(&ctx, NULL) < 0)
		return NULL;
	agentd_context_set_policy(ctx, own->policy, NULL);
	agentd_context_set_workdir(ctx, own->workdir, NULL);
	agentd_context_set_backend(ctx, "host", NULL);
	agentd_context_set_shell(ctx, sh, NULL);
	for (int i = 0; i < 25; i++) {
		agentd_params *params = NULL;
		agentd_exec *exec = NULL;
		agentd_sink *sink = NULL;
		const uint8_t *data;
		char command[64], want[32];
		size_t len;

		snprintf(command, sizeof(command), "echo loop %d run %d; exit %d", own->number, i,
			 i);
		snprintf(want, sizeof(want), "loop %d run %d\n", own->number, i);
		if (agentd_params_new_shell(command, 0, &params, NULL) == 0 &&
		    agentd_sink_new_buffer(100, 100, &sink, NULL) == 0 &&
		    agentd_exec_start(runner, ctx, params, sink, NULL, &exec, NULL) == 0 &&
		    agentd_loop_run_until(loop, exec, -1, NULL) == 1 &&
		    agentd_result_exit_code(agentd_exec_result(exec)) == i &&
		    agentd_sink_buffer_get(sink, AGENTD_STDOUT, &data, &len, NULL) == 0 &&
		    len == strlen(want) && memcmp(data, want, len) == 0)
			own->good++;
		agentd_exec_unref(exec);
		agentd_params_unref(params);
		agentd_sink_unref(sink);
	}
	agentd_context_unref(ctx);
	agentd_runner_unref(runner);
	agentd_loop_unref(loop);
	return NULL;
}

START_TEST(two_loops)
{
	struct t_world *world = t_world_new_bare(NULL);
	struct own_loop own[2];
	pthread_t threads[2];
	agentd_policy *policy = t_policy_none();

	for (int i = 0; i < 2; i++) {
		own[i] = (struct own_loop){ .policy = policy,
					    .helper = world->helper,
					    .workdir = world->workdir,
					    .number = i };
		threads[i] = start_thread(run_own_loop, &own[i]);
	}
	for (int i = 0; i < 2; i++) {
		pthread_join(threads[i], NULL);
		ck_assert_int_eq(own[i].good, 25);
	}
	agentd_policy_unref(policy);
	t_world_free(world);
}
END_TEST

static void *wake_later(void *arg)
{
	t_sleep_ms(100);
	ck_assert_int_eq(agentd_loop_wakeup(arg), 0);
	ck_assert_int_eq(agentd_loop_wakeup(arg), 0);
	return NULL;
}

START_TEST(wake_from_a_thread)
{
	agentd_loop *loop = NULL;
	pthread_t thread;
	uint64_t at = t_now();

	ck_assert_int_eq(agentd_loop_new(&loop, NULL), 0);
	thread = start_thread(wake_later, loop);
	ck_assert_int_eq(agentd_loop_run(loop, 20000, NULL), 1);
	ck_assert_uint_ge(t_now() - at, T_MS(90));
	ck_assert_uint_lt(t_now() - at, T_MS(t_slack(5000)));
	pthread_join(thread, NULL);
	agentd_loop_unref(loop);
}
END_TEST

/* A runner made in one thread and run in another: it belongs to the latter. */
struct handed {
	struct t_world *world;
	int ok;
};

static void *run_elsewhere(void *arg)
{
	struct handed *handed = arg;
	struct t_run run;

	t_run(&run, handed->world, "echo there", 0);
	handed->ok = agentd_result_status(run.result) == AGENTD_STATUS_OK;
	t_run_free(&run);
	return NULL;
}

START_TEST(handed_over)
{
	struct t_world *world = t_world_new(NULL);
	struct handed handed = { .world = world };
	struct t_run run;

	pthread_join(start_thread(run_elsewhere, &handed), NULL);
	ck_assert_int_eq(handed.ok, 1);
	/* and back; the thread that started it is gone, and nothing died with it */
	t_run(&run, world, "echo here", 0);
	t_expect_status(&run, AGENTD_STATUS_OK);
	t_run_free(&run);
	t_world_free(world);
}
END_TEST

int main(void)
{
	TCase *stops = t_case("stops", 60), *values = t_case("values", 60);
	TCase *loops = t_case("loops", 60);
	TCase *const cases[] = { stops, values, loops };

	tcase_add_test(stops, stop_from_a_thread);
	tcase_add_test(stops, stop_while_it_ends);
	tcase_add_test(stops, drop_from_a_thread);
	tcase_add_test(stops, drop_under_a_cancel);
	tcase_add_test(stops, drop_pool_and_runner);
	tcase_add_test(stops, drop_busy_pool);
	tcase_add_test(values, results_in_threads);
	tcase_add_test(values, shared_values);
	tcase_add_test(loops, two_loops);
	tcase_add_test(loops, wake_from_a_thread);
	tcase_add_test(loops, handed_over);
	return t_main("threads", cases, T_COUNT(cases));
}
