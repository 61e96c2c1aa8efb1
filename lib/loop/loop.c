/* SPDX-License-Identifier: MIT */
#include "loop/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <event2/event.h>

#include "loop/private.h"

/* What deferred calls defer is called in the same turn of the event base, this often: a start in a
 * session takes three, and a turn some 10 us. */
enum { ROUNDS = 4 };

struct ad_loop {
	struct event_base *base;
	/* Readable when there are posts, or deferred calls left for this turn. As
	 * long as the base lives it is added: the witness of ad_loop_alive(). */
	struct event wake;
	int wake_fd;
	struct event defer; /* activated by hand, never added */
	bool deferring;     /* a turn of deferred calls is on its way */
	struct ad_list defers;
	struct ad_list turn; /* those of this turn that still have to run */
	unsigned int depth;  /* callbacks of this loop on the stack */
	bool freed;          /* inside one of them */
	_Atomic pthread_t thread;

	pthread_mutex_t lock; /* of what follows, and of ad_post.queued */
	struct ad_post *posts, **posts_end;
	struct ad_post *post_turn;
};

struct event_base *ad_loop_base(struct ad_loop *loop)
{
	return loop->base;
}

/* Asking libevent (event_pending()) would read a base that may be gone. */
bool ad_loop_alive(const struct ad_loop *loop)
{
	return loop->wake.ev_evcallback.evcb_flags & EVLIST_INSERTED;
}

bool ad_loop_on_thread(const struct ad_loop *loop)
{
	return pthread_equal(atomic_load_explicit(&loop->thread, memory_order_relaxed),
			     pthread_self());
}

/* The counter cannot overflow: EAGAIN would mean that it is readable already. */
static bool wake(struct ad_loop *loop)
{
	uint64_t one = 1;
	int saved = errno;
	ssize_t written;
	bool awake;

	do
		written = write(loop->wake_fd, &one, sizeof(one));
	while (written < 0 && errno == EINTR);
	awake = written > 0 || errno == EAGAIN;
	errno = saved;
	return awake;
}

static void destroy(struct ad_loop *loop)
{
	/* A poster may still be on its way out of ad_loop_post(). */
	pthread_mutex_lock(&loop->lock);
	pthread_mutex_unlock(&loop->lock);
	pthread_mutex_destroy(&loop->lock);
	ad_util_closep(&loop->wake_fd);
	agentd_free(loop);
}

void ad_loop_enter(struct ad_loop *loop)
{
	atomic_store_explicit(&loop->thread, pthread_self(), memory_order_relaxed);
	loop->depth++;
}

void ad_loop_leave(struct ad_loop *loop)
{
	if (--loop->depth == 0 && loop->freed)
		destroy(loop);
}

/* ---- deferred calls */

void ad_defer_init(struct ad_defer *defer, struct ad_loop *loop, ad_defer_fn fn, void *userdata)
{
	ad_list_init(&defer->link);
	defer->loop = loop;
	defer->fn = fn;
	defer->userdata = userdata;
}

void ad_defer(struct ad_defer *defer)
{
	struct ad_loop *loop = defer->loop;

	if (!ad_list_empty(&defer->link))
		return;
	ad_list_append(&loop->defers, &defer->link);
	if (loop->deferring || !ad_loop_alive(loop))
		return;
	loop->deferring = true;
	event_active(&loop->defer, EV_TIMEOUT, 0);
}

void ad_defer_cancel(struct ad_defer *defer)
{
	if (defer->link.next)
		ad_list_remove(&defer->link);
}

static void detach_all(struct ad_list *list)
{
	while (!ad_list_empty(list))
		ad_list_remove(list->next);
}

static void run_round(struct ad_loop *loop)
{
	while (!ad_list_empty(&loop->defers)) {
		struct ad_list *link = loop->defers.next;

		ad_list_remove(link);
		ad_list_append(&loop->turn, link);
	}
	while (!ad_list_empty(&loop->turn)) {
		struct ad_defer *defer = AD_CONTAINER_OF(loop->turn.next, struct ad_defer, link);

		ad_list_remove(&defer->link);
		defer->fn(defer, defer->userdata);
	}
}

static void run_defers(struct ad_loop *loop)
{
	for (int round = 0; round < ROUNDS && !ad_list_empty(&loop->defers); round++)
		run_round(loop);
	loop->deferring = !ad_list_empty(&loop->defers);
	/* libevent runs what is activated now before it looks at descriptors again:
	 * a chain of deferred calls would starve them. Nor may this fail. */
	if (loop->deferring && !wake(loop))
		event_active(&loop->defer, EV_TIMEOUT, 0);
}

static void defer_ready(evutil_socket_t fd, short events, void *userdata)
{
	struct ad_loop *loop = userdata;

	(void)fd;
	(void)events;
	ad_loop_enter(loop);
	run_defers(loop);
	ad_loop_leave(loop);
}

/* ---- posts */

bool ad_loop_post(struct ad_loop *loop, struct ad_post *post)
{
	bool fresh;

	pthread_mutex_lock(&loop->lock);
	fresh = !post->queued;
	if (fresh) {
		post->queued = true;
		post->next = NULL;
		*loop->posts_end = post;
		loop->posts_end = &post->next;
		/* Not after the lock: what is posted may free the loop. */
		if (loop->posts == post)
			wake(loop);
	}
	pthread_mutex_unlock(&loop->lock);
	return fresh;
}

static void posts_take(struct ad_loop *loop)
{
	pthread_mutex_lock(&loop->lock);
	loop->post_turn = loop->posts;
	loop->posts = NULL;
	loop->posts_end = &loop->posts;
	pthread_mutex_unlock(&loop->lock);
}

static struct ad_post *post_next(struct ad_loop *loop)
{
	struct ad_post *post;

	pthread_mutex_lock(&loop->lock);
	post = loop->post_turn;
	if (post) {
		loop->post_turn = post->next;
		post->queued = false;
	}
	pthread_mutex_unlock(&loop->lock);
	return post;
}

static void run_posts(struct ad_loop *loop)
{
	struct ad_post *post;

	posts_take(loop);
	while ((post = post_next(loop)))
		post->fn(post, post->userdata);
}

static void forget_posts(struct ad_loop *loop)
{
	while (post_next(loop))
		;
	posts_take(loop);
	while (post_next(loop))
		;
}

static void wake_ready(evutil_socket_t fd, short events, void *userdata)
{
	struct ad_loop *loop = userdata;
	uint64_t count;
	ssize_t got;

	(void)events;
	ad_loop_enter(loop);
	/* Before the queues are looked at, else a wake-up could get lost. */
	got = read(fd, &count, sizeof(count));
	(void)got;
	run_posts(loop);
	if (loop->deferring)
		run_defers(loop);
	ad_loop_leave(loop);
}

/* ---- the loop */

/* Not one of the standard streams, which the host may have closed and will
 * treat as its own. */
static int wake_fd_new(void)
{
	ad_autoclose int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	if (fd < 0 || fd > STDERR_FILENO)
		return ad_steal_fd(&fd);
	return fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
}

int ad_loop_new(struct event_base *base, struct ad_loop **ret, agentd_error **reterr)
{
	ad_autoclose int fd = wake_fd_new();
	ad_autofree struct ad_loop *loop = NULL;

	if (fd < 0)
		return ad_fail_errno(reterr, errno, "eventfd");
	loop = calloc(1, sizeof(*loop));
	if (!loop)
		return ad_fail_nomem(reterr);
	loop->base = base;
	ad_list_init(&loop->defers);
	ad_list_init(&loop->turn);
	loop->posts_end = &loop->posts;
	atomic_init(&loop->thread, pthread_self());
	event_assign(&loop->wake, base, fd, EV_READ | EV_PERSIST, wake_ready, loop);
	event_assign(&loop->defer, base, -1, 0, defer_ready, loop);
	errno = 0;
	if (event_add(&loop->wake, NULL) != 0)
		return ad_fail_errno(reterr, errno ? errno : EINVAL, "event base");
	pthread_mutex_init(&loop->lock, NULL);
	loop->wake_fd = ad_steal_fd(&fd);
	*ret = AD_STEAL(loop);
	return 0;
}

void ad_loop_free(struct ad_loop *loop)
{
	if (!loop)
		return;
	if (ad_loop_alive(loop)) {
		event_del(&loop->defer);
		event_del(&loop->wake);
	}
	detach_all(&loop->turn);
	detach_all(&loop->defers);
	forget_posts(loop);
	if (loop->depth > 0)
		loop->freed = true;
	else
		destroy(loop);
}

int ad_loop_event_add(struct ad_loop *loop, struct event *event, const struct timeval *timeout)
{
	int saved = errno;

	if (!ad_loop_alive(loop)) {
		errno = ESHUTDOWN;
		return AGENTD_ERR_SYSTEM;
	}
	errno = 0;
	if (event_add(event, timeout) == 0) {
		errno = saved;
		return 0;
	}
	/* libevent's own refusals (too many events, mixed with EV_ET) set none. */
	if (errno == 0)
		errno = EBUSY;
	return errno == ENOMEM ? AGENTD_ERR_NOMEM : AGENTD_ERR_SYSTEM;
}

/* ---- bases of our own */

/* What libevent opens for one: epoll's descriptor, a pair for signals, which no setting does
 * without, and two to wake it by where it has no eventfd. */
enum { BASE_FDS = 5 };

/* Where libevent gets no descriptor it prints, and exits. 0 or an errno; another thread may
 * still take them before libevent does. */
static int base_fds_missing(void)
{
	int fds[BASE_FDS], count = 0, missing = 0;

	while (count < BASE_FDS && (fds[count] = eventfd(0, EFD_CLOEXEC)) >= 0)
		count++;
	if (count < BASE_FDS)
		missing = errno;
	while (count > 0)
		close(fds[--count]);
	return missing;
}

int ad_loop_base_new(struct event_base **ret, agentd_error **reterr)
{
	int missing = base_fds_missing();
	struct event_config *config;
	struct event_base *base = NULL;

	if (missing)
		return ad_fail_errno(reterr, missing, "event base");
	config = event_config_new();
	if (!config)
		return ad_fail_nomem(reterr);
	errno = 0;
	if (event_config_set_flag(config, EVENT_BASE_FLAG_IGNORE_ENV) == 0)
		base = event_base_new_with_config(config);
	event_config_free(config);
	if (!base)
		return ad_fail_errno(reterr, errno ? errno : ENOMEM, "event base");
	*ret = base;
	return 0;
}

void ad_loop_base_free(struct event_base *base)
{
	event_base_free(base);
}

int ad_loop_base_turn(struct event_base *base, bool block, agentd_error **reterr)
{
	int flags = block ? EVLOOP_ONCE : EVLOOP_ONCE | EVLOOP_NONBLOCK;

	errno = 0;
	if (event_base_loop(base, flags) >= 0)
		return 0;
	if (errno == 0)
		return ad_fail(reterr, AGENTD_ERR_REENTRANT, NULL,
			       "the event base is already being run");
	return ad_fail_errno(reterr, errno, "event base");
}
