/* SPDX-License-Identifier: MIT */
/* The only folder that includes libevent. A struct ad_loop borrows a base for one
 * runner; sources embed their events, so that a source costs no allocation. */
#ifndef AD_LOOP_H
#define AD_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include <event2/event_struct.h>

#include <agentd/error.h>

#include "util/util.h"

struct event_base;
struct ad_loop;

/* Borrow base. Holds one event on it for as long as it lives: a wake-up
 * descriptor for other threads. Ref-counted: sources do not hold it. */
int ad_loop_new(struct event_base *base, struct ad_loop **ret, agentd_error **reterr);
/* Removes the event; sources must be gone. After the base was freed under us
 * nothing of libevent is touched. May be called from any callback. Posts that
 * did not get their turn are forgotten: whoever posts from other threads ends
 * that first. */
void ad_loop_free(struct ad_loop *loop);
struct event_base *ad_loop_base(struct ad_loop *loop);
/* event_base_free() removes every event: ours missing means the base is gone,
 * and then no source may be touched either (all functions below check it). */
bool ad_loop_alive(const struct ad_loop *loop);
/* Is this the thread that last ran the loop (or made it, before it ever ran)? */
bool ad_loop_on_thread(const struct ad_loop *loop);

/* ---- bases of our own, for agentd/loop.h; not configured by the environment */

int ad_loop_base_new(struct event_base **ret, agentd_error **reterr);
void ad_loop_base_free(struct event_base *base);
/* One turn: wait for events if block, run their callbacks. */
int ad_loop_base_turn(struct event_base *base, bool block, agentd_error **reterr);

/* ---- descriptors */

struct ad_io;
typedef void (*ad_io_fn)(struct ad_io *io, void *userdata);
struct ad_io {
	struct event event;
	struct ad_loop *loop;
	ad_io_fn fn;
	void *userdata;
};
enum ad_io_dir { AD_IO_READ, AD_IO_WRITE };
/* Prepare; not watched until ad_io_start(). Level-triggered, persistent. */
void ad_io_init(struct ad_io *io, struct ad_loop *loop, int fd, enum ad_io_dir dir, ad_io_fn fn,
		void *userdata);
int ad_io_start(struct ad_io *io); /* 0, AGENTD_ERR_NOMEM or AGENTD_ERR_SYSTEM */
void ad_io_stop(struct ad_io *io); /* idempotent, also on a zeroed io */
int ad_io_fd(const struct ad_io *io);

/* ---- one-shot timers, CLOCK_MONOTONIC */

struct ad_timer;
typedef void (*ad_timer_fn)(struct ad_timer *timer, void *userdata);
struct ad_timer {
	struct event event;
	struct ad_loop *loop;
	ad_timer_fn fn;
	void *userdata;
	uint64_t deadline_ns;
};
/* Never early by CLOCK_MONOTONIC: libevent reckons from the start of its turn,
 * on a coarse clock, so the clock is read again before fn is called. */
void ad_timer_init(struct ad_timer *timer, struct ad_loop *loop, ad_timer_fn fn, void *userdata);
int ad_timer_start(struct ad_timer *timer, uint64_t delay_ns); /* re-arms */
void ad_timer_stop(struct ad_timer *timer);                    /* idempotent */

/* ---- deferred calls: run once from the loop, in the order posted, never from
 * inside ad_defer(). */

struct ad_defer;
typedef void (*ad_defer_fn)(struct ad_defer *defer, void *userdata);
struct ad_defer {
	struct ad_list link;
	struct ad_loop *loop;
	ad_defer_fn fn;
	void *userdata;
};
void ad_defer_init(struct ad_defer *defer, struct ad_loop *loop, ad_defer_fn fn, void *userdata);
void ad_defer(struct ad_defer *defer);        /* loop thread; no-op if already posted */
void ad_defer_cancel(struct ad_defer *defer); /* idempotent */

/* ---- from other threads */

struct ad_post;
typedef void (*ad_post_fn)(struct ad_post *post, void *userdata);
struct ad_post {
	struct ad_post *next;
	ad_post_fn fn;
	void *userdata;
	bool queued;
};
/* Run post->fn on the loop thread. [any thread] No-op if already queued; false
 * then. The caller keeps *post alive until fn has been called. */
bool ad_loop_post(struct ad_loop *loop, struct ad_post *post);

#endif
