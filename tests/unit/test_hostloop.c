/* SPDX-License-Identifier: MIT */
/* agentd/loop.h with an execution of the test's own: it defines the three
 * functions of agentd/exec.h that hostloop.c calls. */
#include "unit.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <event2/event.h>

#include <agentd/exec.h>
#include <agentd/loop.h>

#include "loop/loop.h"

enum { MS = 1000000 };

struct agentd_exec {
	int32_t state;
	int refs;
	int asked;
};

int32_t agentd_exec_state(const agentd_exec *exec)
{
	((agentd_exec *)(uintptr_t)exec)->asked++;
	return exec->state;
}

agentd_exec *agentd_exec_ref(agentd_exec *exec)
{
	if (exec)
		exec->refs++;
	return exec;
}

void agentd_exec_unref(agentd_exec *exec)
{
	if (exec)
		exec->refs--;
}

static agentd_loop *host;
static struct ad_loop *loop; /* as a runner's */
static int ran;

static void log_nothing(int severity, const char *message)
{
	(void)severity;
	(void)message;
}

static void setup(void)
{
	event_set_log_callback(log_nothing);
	ck_assert_int_eq(agentd_loop_new(&host, NULL), 0);
	ck_assert_int_eq(ad_loop_new(agentd_loop_event_base(host), &loop, NULL), 0);
	ran = 0;
}

static void teardown(void)
{
	ad_loop_free(loop);
	agentd_loop_unref(host);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

static void count_timer(struct ad_timer *timer, void *userdata)
{
	(void)timer;
	(void)userdata;
	ran++;
}

static void count_defer(struct ad_defer *defer, void *userdata)
{
	(void)defer;
	(void)userdata;
	ran++;
}

START_TEST(test_run_times_out)
{
	uint64_t start = now_ns();
	struct ad_timer timer;

	errno = EXDEV;
	ck_assert_int_eq(agentd_loop_run(host, 0, NULL), 0);
	ck_assert_uint_lt(now_ns() - start, 5000ULL * MS);
	start = now_ns();
	ad_timer_init(&timer, loop, count_timer, NULL);
	ck_assert_int_eq(ad_timer_start(&timer, MS), 0);
	/* A callback, or a base with nothing to do, does not end it. */
	ck_assert_int_eq(agentd_loop_run(host, 50, NULL), 0);
	ck_assert_uint_ge(now_ns() - start, 50ULL * MS);
	ck_assert_int_eq(ran, 1);
	ck_assert_int_eq(errno, EXDEV);
}
END_TEST

START_TEST(test_run_wakeup_before)
{
	struct ad_defer defer;
	uint64_t start = now_ns();

	ad_defer_init(&defer, loop, count_defer, NULL);
	ck_assert_int_eq(agentd_loop_wakeup(host), 0);
	ck_assert_int_eq(agentd_loop_wakeup(host), 0);
	ad_defer(&defer);
	ck_assert_int_eq(agentd_loop_run(host, -1, NULL), 1);
	ck_assert_int_eq(ran, 1);
	ck_assert_uint_lt(now_ns() - start, 5000ULL * MS);
	/* Once only. */
	ck_assert_int_eq(agentd_loop_run(host, 1, NULL), 0);
	ck_assert_int_eq(agentd_loop_wakeup(host), 0);
	ck_assert_int_eq(agentd_loop_run(host, 0, NULL), 1);
	ck_assert_int_eq(agentd_loop_run(host, 0, NULL), 0);
}
END_TEST

static void *wake_soon(void *userdata)
{
	struct timespec pause = { .tv_nsec = 20 * MS };

	(void)userdata;
	nanosleep(&pause, NULL);
	agentd_loop_wakeup(host);
	return NULL;
}

START_TEST(test_run_wakeup_other_thread)
{
	pthread_t thread;

	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(pthread_create(&thread, NULL, wake_soon, NULL), 0);
		ck_assert_int_eq(agentd_loop_run(host, i == 1 ? 60000 : -1, NULL), 1);
		ck_assert_int_eq(pthread_join(thread, NULL), 0);
	}
}
END_TEST

/* A run that was woken leaves no timer behind which would end the next. */
START_TEST(test_run_stale_timer)
{
	uint64_t start;

	ck_assert_int_eq(agentd_loop_wakeup(host), 0);
	ck_assert_int_eq(agentd_loop_run(host, 20, NULL), 1);
	start = now_ns();
	ck_assert_int_eq(agentd_loop_run(host, 100, NULL), 0);
	ck_assert_uint_ge(now_ns() - start, 100ULL * MS);
}
END_TEST

static void run_inside(struct ad_defer *defer, void *userdata)
{
	agentd_exec *exec = userdata;
	agentd_error *err = NULL;

	(void)defer;
	ran++;
	ck_assert_int_eq(agentd_loop_run(host, 10, NULL), AGENTD_ERR_REENTRANT);
	ck_assert_int_eq(agentd_loop_run_until(host, exec, 10, &err), AGENTD_ERR_REENTRANT);
	ck_assert_ptr_nonnull(err);
	agentd_error_unref(err);
	agentd_loop_wakeup(host);
}

START_TEST(test_run_inside_callback)
{
	struct agentd_exec exec = { .state = AGENTD_STATE_FINISHED, .refs = 1 };
	struct ad_defer defer;

	ad_defer_init(&defer, loop, run_inside, &exec);
	ad_defer(&defer);
	ck_assert_int_eq(agentd_loop_run(host, 60000, NULL), 1);
	ck_assert_int_eq(ran, 1);
	ck_assert_int_eq(exec.refs, 1);
	/* Also when it is the host that runs the base. */
	ad_defer(&defer);
	ck_assert_int_eq(ad_loop_base_turn(agentd_loop_event_base(host), false, NULL), 0);
	ck_assert_int_eq(ran, 2);
}
END_TEST

static void finish(struct ad_timer *timer, void *userdata)
{
	agentd_exec *exec = userdata;

	(void)timer;
	exec->state = AGENTD_STATE_FINISHED;
}

START_TEST(test_run_until)
{
	struct agentd_exec exec = { .state = AGENTD_STATE_RUNNING, .refs = 1 };
	struct ad_timer timer;
	uint64_t start = now_ns();

	ck_assert_int_eq(agentd_loop_run_until(host, &exec, 0, NULL), 0);
	ck_assert_int_eq(agentd_loop_run_until(host, &exec, 20, NULL), 0);
	ck_assert_uint_ge(now_ns() - start, 20ULL * MS);
	/* A wake-up is for agentd_loop_run(). */
	ck_assert_int_eq(agentd_loop_wakeup(host), 0);
	ck_assert_int_eq(agentd_loop_run_until(host, &exec, 20, NULL), 0);
	ad_timer_init(&timer, loop, finish, &exec);
	ck_assert_int_eq(ad_timer_start(&timer, 5 * MS), 0);
	ck_assert_int_eq(agentd_loop_run_until(host, &exec, -1, NULL), 1);
	ck_assert_int_eq(agentd_loop_run_until(host, &exec, -1, NULL), 1);
	ck_assert_int_eq(agentd_loop_run_until(host, &exec, 0, NULL), 1);
	ck_assert_int_eq(agentd_loop_run(host, -1, NULL), 1);
	ck_assert_int_eq(exec.refs, 1);
	ck_assert_uint_lt(now_ns() - start, 30000ULL * MS);
}
END_TEST

static void unref_host(struct ad_defer *defer, void *userdata)
{
	(void)defer;
	(void)userdata;
	ad_loop_free(loop);
	loop = NULL;
	agentd_loop_wakeup(host);
	agentd_loop_unref(host);
	host = NULL;
}

START_TEST(test_unref_inside_run)
{
	struct ad_defer defer;

	ad_defer_init(&defer, loop, unref_host, NULL);
	ad_defer(&defer);
	ck_assert_int_eq(agentd_loop_run(host, 60000, NULL), 1);
}
END_TEST

START_TEST(test_arguments)
{
	struct agentd_exec exec = { .state = AGENTD_STATE_RUNNING, .refs = 1 };
	agentd_error *err = NULL;

	ck_refused(agentd_loop_new(NULL, &refused), AGENTD_ERR_INVALID, "", "ret");
	ck_refused(agentd_loop_run(NULL, 0, &refused), AGENTD_ERR_INVALID, "", "loop");
	ck_refused(agentd_loop_run(host, -2, &refused), AGENTD_ERR_INVALID, "", "timeout_ms");
	ck_refused(agentd_loop_run_until(NULL, &exec, 0, &refused), AGENTD_ERR_INVALID, "", "loop");
	ck_refused(agentd_loop_run_until(host, NULL, 0, &refused), AGENTD_ERR_INVALID, "", "exec");
	ck_refused(agentd_loop_run_until(host, &exec, -7, &refused), AGENTD_ERR_INVALID, "",
		   "timeout_ms");
	ck_assert_int_eq(agentd_loop_wakeup(NULL), AGENTD_ERR_INVALID);
	ck_assert_ptr_null(agentd_loop_event_base(NULL));
	ck_assert_ptr_null(agentd_loop_ref(NULL));
	agentd_loop_unref(NULL);
	ck_assert_ptr_eq(agentd_loop_ref(host), host);
	agentd_loop_unref(host);
	/* The longest there is does not overflow into none. */
	ck_assert_int_eq(agentd_loop_wakeup(host), 0);
	ck_assert_int_eq(agentd_loop_run(host, INT64_MAX, &err), 1);
	ck_assert_ptr_null(err);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("hostloop");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, test_run_times_out);
	tcase_add_test(tc, test_run_wakeup_before);
	tcase_add_test(tc, test_run_wakeup_other_thread);
	tcase_add_test(tc, test_run_stale_timer);
	tcase_add_test(tc, test_run_inside_callback);
	tcase_add_test(tc, test_run_until);
	tcase_add_test(tc, test_unref_inside_run);
	tcase_add_test(tc, test_arguments);
	return unit_run("hostloop", tc);
}
