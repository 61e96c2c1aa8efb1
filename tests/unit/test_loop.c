/* SPDX-License-Identifier: MIT */
#include "unit.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <event2/event.h>

#include "loop/loop.h"

enum { MS = 1000000 };

static struct event_base *base;
static struct ad_loop *loop;
static char calls[64]; /* who was called, a letter each */

static void called(char who)
{
	size_t len = strlen(calls);

	ck_assert_uint_lt(len, sizeof(calls) - 1);
	calls[len] = who;
}

static void log_nothing(int severity, const char *message)
{
	(void)severity;
	(void)message;
}

static void setup(void)
{
	agentd_error *err = NULL;

	event_set_log_callback(log_nothing);

	base = event_base_new();
	ck_assert_ptr_nonnull(base);
	ck_assert_int_eq(ad_loop_new(base, &loop, &err), 0);
	ck_assert_ptr_null(err);
	memset(calls, 0, sizeof(calls));
}

static void teardown(void)
{
	ad_loop_free(loop);
	if (base) {
		ck_assert_int_eq(event_base_get_num_events(base, EVENT_BASE_COUNT_ADDED), 0);
		event_base_free(base);
	}
}

/* Everything that is ready, and what it makes ready. */
static void turns(int count)
{
	for (int i = 0; i < count; i++)
		ck_assert_int_eq(event_base_loop(base, EVLOOP_ONCE | EVLOOP_NONBLOCK), 0);
}

static void free_base(void)
{
	event_base_free(base);
	base = NULL;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

static int open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;

	ck_assert_ptr_nonnull(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

/* ---- the loop */

START_TEST(test_loop_one_event)
{
	int before = open_fds();
	struct ad_loop *other;

	ck_assert_int_eq(event_base_get_num_events(base, EVENT_BASE_COUNT_ADDED), 1);
	ck_assert_ptr_eq(ad_loop_base(loop), base);
	ck_assert(ad_loop_alive(loop));
	ck_assert_int_eq(ad_loop_new(base, &other, NULL), 0);
	ck_assert_int_eq(open_fds(), before + 1);
	ck_assert_int_eq(event_base_get_num_events(base, EVENT_BASE_COUNT_ADDED), 2);
	ad_loop_free(other);
	ck_assert_int_eq(open_fds(), before);
	ck_assert_int_eq(event_base_get_num_events(base, EVENT_BASE_COUNT_ADDED), 1);
	ad_loop_free(NULL);
}
END_TEST

START_TEST(test_loop_leaves_standard_streams)
{
	struct ad_loop *other;
	int saved = fcntl(0, F_DUPFD_CLOEXEC, 10);

	close(0);
	ck_assert_int_eq(ad_loop_new(base, &other, NULL), 0);
	ck_assert_int_eq(fcntl(0, F_GETFD), -1);
	ad_loop_free(other);
	if (saved >= 0) {
		ck_assert_int_eq(dup2(saved, 0), 0);
		close(saved);
	}
}
END_TEST

static void count_post(struct ad_post *post, void *userdata)
{
	(void)post;
	++*(int *)userdata;
}

static void letter_defer(struct ad_defer *defer, void *userdata)
{
	(void)defer;
	called(*(const char *)userdata);
}

static void letter_io(struct ad_io *io, void *userdata)
{
	(void)io;
	called(*(const char *)userdata);
}

static void letter_timer(struct ad_timer *timer, void *userdata)
{
	(void)timer;
	called(*(const char *)userdata);
}

START_TEST(test_loop_base_freed)
{
	struct ad_io io, late_io;
	struct ad_timer timer, late_timer;
	struct ad_defer queued, late_defer;
	int posts = 0, p[2];
	struct ad_post post = { .fn = count_post, .userdata = &posts };
	char x = 'x';

	ck_assert_int_eq(pipe(p), 0);
	ad_io_init(&io, loop, p[1], AD_IO_WRITE, letter_io, &x);
	ck_assert_int_eq(ad_io_start(&io), 0);
	ad_timer_init(&timer, loop, letter_timer, &x);
	ck_assert_int_eq(ad_timer_start(&timer, 0), 0);
	ad_defer_init(&queued, loop, letter_defer, &x);
	ad_defer(&queued);
	free_base();

	ck_assert(!ad_loop_alive(loop));
	errno = 0;
	ck_assert_int_eq(ad_io_start(&io), AGENTD_ERR_SYSTEM);
	ck_assert_int_eq(errno, ESHUTDOWN);
	ck_assert_int_eq(ad_timer_start(&timer, 0), AGENTD_ERR_SYSTEM);
	ad_io_init(&late_io, loop, p[1], AD_IO_WRITE, letter_io, &x);
	ck_assert_int_eq(ad_io_fd(&late_io), p[1]);
	ck_assert_int_eq(ad_io_start(&late_io), AGENTD_ERR_SYSTEM);
	ad_timer_init(&late_timer, loop, letter_timer, &x);
	ck_assert_int_eq(ad_timer_start(&late_timer, 0), AGENTD_ERR_SYSTEM);
	ad_defer_init(&late_defer, loop, letter_defer, &x);
	ad_defer(&late_defer);
	ad_defer_cancel(&queued);
	ck_assert(ad_loop_post(loop, &post));
	ck_assert(!ad_loop_post(loop, &post));
	ad_io_stop(&io);
	ad_io_stop(&late_io);
	ad_timer_stop(&timer);
	ad_timer_stop(&late_timer);
	ad_loop_free(loop);
	loop = NULL;
	ad_defer_cancel(&late_defer);
	ck_assert(!post.queued);
	ck_assert_int_eq(posts, 0);
	ck_assert_str_eq(calls, "");
	close(p[0]);
	close(p[1]);
}
END_TEST

START_TEST(test_loop_refused_base)
{
	struct ad_loop *other = NULL;
	agentd_error *err = NULL;

	ck_assert_int_eq(ad_loop_new(NULL, &other, &err), AGENTD_ERR_SYSTEM);
	ck_assert_ptr_null(other);
	ck_assert_ptr_nonnull(err);
	agentd_error_unref(err);
}
END_TEST

/* ---- freed inside callbacks */

static void free_loop(void)
{
	ad_loop_free(loop);
	loop = NULL;
}

static void free_io(struct ad_io *io, void *userdata)
{
	(void)userdata;
	ad_io_stop(io);
	free(io);
	free_loop();
	called('f');
}

static void free_timer(struct ad_timer *timer, void *userdata)
{
	(void)userdata;
	free(timer);
	free_loop();
	called('f');
}

static void free_defer(struct ad_defer *defer, void *userdata)
{
	(void)userdata;
	free(defer);
	free_loop();
	called('f');
}

static void free_post(struct ad_post *post, void *userdata)
{
	(void)userdata;
	free(post);
	free_loop();
	called('f');
}

START_TEST(test_loop_free_in_io)
{
	struct ad_io *io = malloc(sizeof(*io));
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	ad_io_init(io, loop, p[1], AD_IO_WRITE, free_io, NULL);
	ck_assert_int_eq(ad_io_start(io), 0);
	ck_assert_int_eq(event_base_dispatch(base), 1); /* nothing is left */
	ck_assert_str_eq(calls, "f");
	close(p[0]);
	close(p[1]);
}
END_TEST

START_TEST(test_loop_free_in_timer)
{
	struct ad_timer *timer = malloc(sizeof(*timer));

	ad_timer_init(timer, loop, free_timer, NULL);
	ck_assert_int_eq(ad_timer_start(timer, 1), 0);
	ck_assert_int_eq(event_base_dispatch(base), 1);
	ck_assert_str_eq(calls, "f");
}
END_TEST

START_TEST(test_loop_free_in_defer)
{
	struct ad_defer *defer = malloc(sizeof(*defer)), after;
	char x = 'x';

	ad_defer_init(defer, loop, free_defer, NULL);
	ad_defer_init(&after, loop, letter_defer, &x);
	ad_defer(defer);
	ad_defer(&after);
	ck_assert_int_eq(event_base_dispatch(base), 1);
	ck_assert_str_eq(calls, "f");
	ad_defer_cancel(&after);
}
END_TEST

START_TEST(test_loop_free_in_post)
{
	struct ad_post *post = calloc(1, sizeof(*post));
	int posts = 0;
	struct ad_post after = { .fn = count_post, .userdata = &posts };
	struct ad_defer defer;
	char x = 'x';

	post->fn = free_post;
	ad_defer_init(&defer, loop, letter_defer, &x);
	ck_assert(ad_loop_post(loop, post));
	ck_assert(ad_loop_post(loop, &after));
	ck_assert_int_eq(event_base_dispatch(base), 1);
	ck_assert_str_eq(calls, "f");
	ck_assert_int_eq(posts, 0);
	ck_assert(!after.queued);
}
END_TEST

/* ---- threads */

static void *on_thread(void *userdata)
{
	*(bool *)userdata = ad_loop_on_thread(loop);
	return NULL;
}

static void *run_here(void *userdata)
{
	turns(1);
	return on_thread(userdata);
}

static bool in_thread(void *(*fn)(void *))
{
	pthread_t thread;
	bool ret = false;

	ck_assert_int_eq(pthread_create(&thread, NULL, fn, &ret), 0);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	return ret;
}

START_TEST(test_loop_on_thread)
{
	int posts = 0;
	struct ad_post post = { .fn = count_post, .userdata = &posts };

	ck_assert(ad_loop_on_thread(loop));
	ck_assert(!in_thread(on_thread));
	ck_assert(in_thread(run_here) == false); /* no callback of ours ran there */
	ck_assert(ad_loop_on_thread(loop));
	ad_loop_post(loop, &post);
	ck_assert(in_thread(run_here));
	ck_assert_int_eq(posts, 1);
	ck_assert(!ad_loop_on_thread(loop));
	ad_loop_post(loop, &post);
	turns(1);
	ck_assert(ad_loop_on_thread(loop));
}
END_TEST

enum { POSTERS = 4, POSTS = 2000 };

struct poster {
	pthread_t thread;
	struct ad_post post[POSTS];
	struct ad_post shared;
	int next, shared_seen, shared_sent;
};

static void in_order(struct ad_post *post, void *userdata)
{
	struct poster *poster = userdata;

	ck_assert_ptr_eq(post, &poster->post[poster->next]);
	poster->next++;
}

static void *post_all(void *userdata)
{
	struct poster *poster = userdata;

	for (int i = 0; i < POSTS; i++) {
		poster->post[i].fn = in_order;
		poster->post[i].userdata = poster;
		if (!ad_loop_post(loop, &poster->post[i]))
			return userdata;
		if (ad_loop_post(loop, &poster->shared))
			poster->shared_sent++;
	}
	return NULL;
}

START_TEST(test_loop_post_threads)
{
	struct poster *poster = calloc(POSTERS, sizeof(*poster));
	int left = POSTERS;

	ck_assert_ptr_nonnull(poster);
	for (int i = 0; i < POSTERS; i++) {
		poster[i].shared.fn = count_post;
		poster[i].shared.userdata = &poster[i].shared_seen;
		ck_assert_int_eq(pthread_create(&poster[i].thread, NULL, post_all, &poster[i]), 0);
	}
	while (left > 0) {
		ck_assert_int_eq(event_base_loop(base, EVLOOP_ONCE), 0);
		left = 0;
		for (int i = 0; i < POSTERS; i++)
			left += poster[i].next < POSTS;
	}
	for (int i = 0; i < POSTERS; i++) {
		void *failed;

		ck_assert_int_eq(pthread_join(poster[i].thread, &failed), 0);
		ck_assert_ptr_null(failed);
	}
	turns(1);
	for (int i = 0; i < POSTERS; i++) {
		ck_assert_int_eq(poster[i].next, POSTS);
		ck_assert_int_gt(poster[i].shared_seen, 0);
		ck_assert_int_eq(poster[i].shared_seen, poster[i].shared_sent);
	}
	free(poster);
}
END_TEST

static void *post_one(void *userdata)
{
	ad_loop_post(loop, userdata);
	return NULL;
}

static void post_frees_loop(struct ad_post *post, void *userdata)
{
	(void)post;
	(void)userdata;
	ad_loop_free(loop);
}

/* The poster may still be inside ad_loop_post() when its post frees the loop. */
START_TEST(test_loop_post_frees_under_poster)
{
	for (int i = 0; i < 300; i++) {
		struct ad_post post = { .fn = post_frees_loop };
		pthread_t thread;

		ck_assert_int_eq(pthread_create(&thread, NULL, post_one, &post), 0);
		ck_assert_int_eq(event_base_dispatch(base), 1);
		ck_assert_int_eq(pthread_join(thread, NULL), 0);
		ck_assert_int_eq(ad_loop_new(base, &loop, NULL), 0);
	}
}
END_TEST

static void repost(struct ad_post *post, void *userdata)
{
	int *left = userdata;

	if (--*left > 0)
		ck_assert(ad_loop_post(loop, post));
}

START_TEST(test_loop_post_again_from_inside)
{
	int left = 3;
	struct ad_post post = { .fn = repost, .userdata = &left };

	ck_assert(ad_loop_post(loop, &post));
	turns(1);
	ck_assert_int_eq(left, 2); /* one a turn */
	turns(2);
	ck_assert_int_eq(left, 0);
	ck_assert(!post.queued);
}
END_TEST

/* ---- deferred calls */

START_TEST(test_defer_order)
{
	struct ad_defer a, b, c;

	ad_defer_init(&a, loop, letter_defer, (char[]){ 'a' });
	ad_defer_init(&b, loop, letter_defer, (char[]){ 'b' });
	ad_defer_init(&c, loop, letter_defer, (char[]){ 'c' });
	ad_defer(&b);
	ad_defer(&a);
	ad_defer(&c);
	ad_defer(&b); /* already there: keeps its place */
	ck_assert_str_eq(calls, "");
	turns(1);
	ck_assert_str_eq(calls, "bac");
	turns(1);
	ck_assert_str_eq(calls, "bac");
	ad_defer(&b);
	turns(1);
	ck_assert_str_eq(calls, "bacb");
}
END_TEST

static void cancel_other(struct ad_defer *defer, void *userdata)
{
	(void)defer;
	called('C');
	ad_defer_cancel(userdata);
}

START_TEST(test_defer_cancel)
{
	struct ad_defer a, b, c, d, zero = { 0 };

	ad_defer_init(&b, loop, letter_defer, (char[]){ 'b' });
	ad_defer_init(&a, loop, cancel_other, &b);
	ad_defer_init(&c, loop, letter_defer, (char[]){ 'c' });
	ad_defer_init(&d, loop, letter_defer, (char[]){ 'd' });
	ad_defer_cancel(&zero);
	ad_defer_cancel(&d);
	ad_defer(&a);
	ad_defer(&b);
	ad_defer(&d);
	ad_defer(&c);
	ad_defer_cancel(&d);
	ad_defer_cancel(&d);
	turns(2);
	ck_assert_str_eq(calls, "Cc");
	ad_defer(&b);
	turns(1);
	ck_assert_str_eq(calls, "Ccb");
}
END_TEST

struct chain {
	struct ad_defer defer;
	int left, at_io;
};

static void next_link(struct ad_defer *defer, void *userdata)
{
	struct chain *chain = userdata;

	if (--chain->left > 0)
		ad_defer(defer);
}

static void note_chain(struct ad_io *io, void *userdata)
{
	struct chain *chain = userdata;

	chain->at_io = chain->left;
	ad_io_stop(io);
}

START_TEST(test_defer_chain_starves_nobody)
{
	struct chain chain = { .left = 1000, .at_io = -1 };
	struct ad_io io;
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	ad_io_init(&io, loop, p[1], AD_IO_WRITE, note_chain, &chain);
	ad_defer_init(&chain.defer, loop, next_link, &chain);
	ad_defer(&chain.defer);
	ck_assert_int_eq(ad_io_start(&io), 0);
	turns(1);
	ck_assert_int_ge(chain.left, 992);
	turns(5);
	ck_assert_int_ge(chain.at_io, 960);
	while (chain.left > 0)
		ck_assert_int_eq(event_base_loop(base, EVLOOP_ONCE), 0);
	close(p[0]);
	close(p[1]);
}
END_TEST

static void defer_another(struct ad_io *io, void *userdata)
{
	ad_io_stop(io);
	ad_defer(userdata);
	called('i');
}

/* What is left for the next turn and what comes meanwhile keep their order. */
START_TEST(test_defer_mixed_with_io)
{
	struct chain chain = { .left = 3 };
	struct ad_defer other;
	struct ad_io io;
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	ad_defer_init(&chain.defer, loop, next_link, &chain);
	ad_defer_init(&other, loop, letter_defer, (char[]){ 'o' });
	ad_io_init(&io, loop, p[1], AD_IO_WRITE, defer_another, &other);
	ck_assert_int_eq(ad_io_start(&io), 0);
	ad_defer(&chain.defer);
	for (int i = 0; i < 10 && (chain.left > 0 || strlen(calls) < 2); i++)
		turns(1);
	ck_assert_int_eq(chain.left, 0);
	ck_assert_str_eq(calls, "io");
	close(p[0]);
	close(p[1]);
}
END_TEST

/* ---- descriptors */

static void read_one(struct ad_io *io, void *userdata)
{
	char byte;

	(void)userdata;
	ck_assert_int_eq(read(ad_io_fd(io), &byte, 1), 1);
	called(byte);
}

START_TEST(test_io_level_triggered)
{
	struct ad_io io, zero = { 0 };
	int p[2];

	ad_io_stop(&zero);
	ck_assert_int_eq(pipe(p), 0);
	ad_io_init(&io, loop, p[0], AD_IO_READ, read_one, NULL);
	ck_assert_int_eq(ad_io_fd(&io), p[0]);
	ck_assert_int_eq(write(p[1], "abc", 3), 3);
	turns(1);
	ck_assert_str_eq(calls, "");
	ck_assert_int_eq(ad_io_start(&io), 0);
	ck_assert_int_eq(ad_io_start(&io), 0);
	turns(1);
	ck_assert_str_eq(calls, "a");
	turns(1);
	ck_assert_str_eq(calls, "ab");
	ad_io_stop(&io);
	ad_io_stop(&io);
	turns(1);
	ck_assert_str_eq(calls, "ab");
	ck_assert_int_eq(ad_io_start(&io), 0);
	turns(1);
	ck_assert_str_eq(calls, "abc");
	ad_io_stop(&io);
	close(p[0]);
	close(p[1]);
}
END_TEST

START_TEST(test_io_refused)
{
	FILE *file = tmpfile();
	struct ad_io io;
	int fd;

	ck_assert_ptr_nonnull(file);
	fd = fileno(file);
	ad_io_init(&io, loop, fd, AD_IO_WRITE, letter_io, NULL);
	errno = 0;
	ck_assert_int_eq(ad_io_start(&io), AGENTD_ERR_SYSTEM);
	ck_assert_int_eq(errno, EPERM);
	errno = EXDEV;
	ad_io_stop(&io);
	ck_assert_int_eq(errno, EXDEV);
	fclose(file);
	ck_assert_int_eq(ad_io_start(&io), AGENTD_ERR_SYSTEM);
	ck_assert_int_eq(errno, EBADF);
	fd = open("/dev/null", O_WRONLY | O_CLOEXEC); /* refused by epoll itself */
	ck_assert_int_ge(fd, 0);
	ad_io_init(&io, loop, fd, AD_IO_WRITE, letter_io, NULL);
	ck_assert_int_eq(ad_io_start(&io), AGENTD_ERR_SYSTEM);
	ck_assert_int_eq(errno, EPERM);
	ad_io_stop(&io);
	close(fd);
}
END_TEST

/* ---- timers */

static uint64_t fired_at;

static void note_time(struct ad_timer *timer, void *userdata)
{
	(void)timer;
	(void)userdata;
	fired_at = now_ns();
}

static void wait_fired(void)
{
	fired_at = 0;
	while (fired_at == 0)
		ck_assert_int_eq(event_base_loop(base, EVLOOP_ONCE), 0);
}

START_TEST(test_timer_never_early)
{
	static const uint64_t delays[] = { 0, 1, 999, 1000, 1001, MS / 2, MS, 3 * MS + 1, 7 * MS };
	struct ad_timer timer;

	ad_timer_init(&timer, loop, note_time, NULL);
	for (int round = 0; round < 5; round++) {
		for (size_t i = 0; i < AD_COUNT(delays); i++) {
			uint64_t start = now_ns();

			ck_assert_int_eq(ad_timer_start(&timer, delays[i]), 0);
			wait_fired();
			ck_assert_uint_ge(fired_at, start + delays[i]);
		}
	}
}
END_TEST

static void arm_late(struct ad_defer *defer, void *userdata)
{
	uint64_t *start = userdata;
	uint64_t until = now_ns() + 20 * MS;

	(void)defer;
	while (now_ns() < until)
		;
	*start = now_ns();
	called('d');
}

/* libevent still has the time at which the turn began. */
START_TEST(test_timer_never_early_when_busy)
{
	struct ad_timer timer;
	struct ad_defer busy;
	uint64_t start = 0, armed = now_ns();

	ad_timer_init(&timer, loop, note_time, NULL);
	ad_defer_init(&busy, loop, arm_late, &start);
	ad_defer(&busy);
	ck_assert_int_eq(ad_timer_start(&timer, 25 * MS), 0);
	wait_fired();
	ck_assert_str_eq(calls, "d");
	ck_assert_uint_ge(fired_at, armed + 25 * MS);
}
END_TEST

struct arming {
	struct ad_timer timer;
	uint64_t start;
};

static void arm_after_work(struct ad_defer *defer, void *userdata)
{
	struct arming *arming = userdata;

	arm_late(defer, &arming->start);
	ck_assert_int_eq(ad_timer_start(&arming->timer, 10 * MS), 0);
}

START_TEST(test_timer_armed_by_busy_callback)
{
	struct arming arming = { 0 };
	struct ad_defer busy;

	ad_timer_init(&arming.timer, loop, note_time, NULL);
	ad_defer_init(&busy, loop, arm_after_work, &arming);
	ad_defer(&busy);
	wait_fired();
	ck_assert_uint_ge(fired_at, arming.start + 10 * MS);
}
END_TEST

START_TEST(test_timer_stop_and_rearm)
{
	struct ad_timer timer, guard;
	uint64_t start = now_ns();

	ad_timer_init(&timer, loop, letter_timer, (char[]){ 't' });
	ad_timer_init(&guard, loop, note_time, NULL);
	ad_timer_stop(&timer);
	ck_assert_int_eq(ad_timer_start(&timer, MS), 0);
	ad_timer_stop(&timer);
	ad_timer_stop(&timer);
	ck_assert_int_eq(ad_timer_start(&guard, 10 * MS), 0);
	wait_fired();
	ck_assert_str_eq(calls, "");
	ck_assert_int_eq(ad_timer_start(&timer, UINT64_MAX), 0);
	turns(2);
	ck_assert_str_eq(calls, "");
	ck_assert_int_eq(ad_timer_start(&timer, 0), 0); /* sooner */
	ck_assert_int_eq(event_base_loop(base, EVLOOP_ONCE), 0);
	ck_assert_str_eq(calls, "t");
	ck_assert_int_eq(ad_timer_start(&timer, MS), 0);
	ck_assert_int_eq(ad_timer_start(&timer, 3600000ULL * MS), 0); /* later */
	ck_assert_int_eq(ad_timer_start(&guard, 10 * MS), 0);
	wait_fired();
	ck_assert_str_eq(calls, "t");
	ad_timer_stop(&timer);
	ck_assert_uint_lt(now_ns() - start, 60000ULL * MS);
}
END_TEST

/* ---- bases of our own */

static void turn_inside(struct ad_defer *defer, void *userdata)
{
	agentd_error *err = NULL;

	(void)defer;
	ck_assert_int_eq(ad_loop_base_turn(userdata, false, &err), AGENTD_ERR_REENTRANT);
	ck_assert_int_eq(agentd_error_code(err), AGENTD_ERR_REENTRANT);
	agentd_error_unref(err);
	called('r');
}

START_TEST(test_base_ignores_environment)
{
	struct event_base *own = NULL;
	struct ad_defer defer;
	struct ad_loop *on_own;

	setenv("EVENT_NOEPOLL", "1", 1);
	ck_assert_int_eq(ad_loop_base_new(&own, NULL), 0);
	ck_assert_str_eq(event_base_get_method(own), "epoll");
	ck_assert_int_eq(ad_loop_new(own, &on_own, NULL), 0);
	ad_defer_init(&defer, on_own, turn_inside, own);
	ad_defer(&defer);
	ck_assert_int_eq(ad_loop_base_turn(own, true, NULL), 0);
	ck_assert_str_eq(calls, "r");
	ck_assert_int_eq(ad_loop_base_turn(own, false, NULL), 0);
	ad_loop_free(on_own);
	ad_loop_base_free(own);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("loop");

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, test_loop_one_event);
	tcase_add_test(tc, test_loop_leaves_standard_streams);
	tcase_add_test(tc, test_loop_base_freed);
	tcase_add_test(tc, test_loop_refused_base);
	tcase_add_test(tc, test_loop_free_in_io);
	tcase_add_test(tc, test_loop_free_in_timer);
	tcase_add_test(tc, test_loop_free_in_defer);
	tcase_add_test(tc, test_loop_free_in_post);
	tcase_add_test(tc, test_loop_on_thread);
	tcase_add_test(tc, test_loop_post_threads);
	tcase_add_test(tc, test_loop_post_frees_under_poster);
	tcase_add_test(tc, test_loop_post_again_from_inside);
	tcase_add_test(tc, test_defer_order);
	tcase_add_test(tc, test_defer_cancel);
	tcase_add_test(tc, test_defer_chain_starves_nobody);
	tcase_add_test(tc, test_defer_mixed_with_io);
	tcase_add_test(tc, test_io_level_triggered);
	tcase_add_test(tc, test_io_refused);
	tcase_add_test(tc, test_timer_never_early);
	tcase_add_test(tc, test_timer_never_early_when_busy);
	tcase_add_test(tc, test_timer_armed_by_busy_callback);
	tcase_add_test(tc, test_timer_stop_and_rearm);
	tcase_add_test(tc, test_base_ignores_environment);
	return unit_run("loop", tc);
}
