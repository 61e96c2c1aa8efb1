/* SPDX-License-Identifier: MIT */
#include <agentd/loop.h>

#include <errno.h>

#include <agentd/exec.h>

#include "loop/loop.h"
#include "util/util.h"

struct agentd_loop {
	ad_refcount refs;
	struct event_base *base;
	struct ad_loop *loop;
	struct ad_post wakeup;
	bool running;
	bool woken; /* since agentd_loop_run() last returned 1 */
};

static void on_wakeup(struct ad_post *post, void *userdata)
{
	agentd_loop *loop = userdata;

	(void)post;
	loop->woken = true;
}

static int loop_new(agentd_loop **ret, agentd_error **reterr)
{
	ad_autofree agentd_loop *loop = calloc(1, sizeof(*loop));
	int code;

	if (!loop)
		return ad_fail_nomem(reterr);
	code = ad_loop_base_new(&loop->base, reterr);
	if (code < 0)
		return code;
	code = ad_loop_new(loop->base, &loop->loop, reterr);
	if (code < 0) {
		ad_loop_base_free(loop->base);
		return code;
	}
	atomic_init(&loop->refs, 1);
	loop->wakeup.fn = on_wakeup;
	loop->wakeup.userdata = loop;
	*ret = AD_STEAL(loop);
	return 0;
}

int agentd_loop_new(agentd_loop **ret, agentd_error **reterr)
{
	int saved = errno, code;

	if (!ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "ret must not be NULL");
	code = loop_new(ret, reterr);
	errno = saved;
	return code;
}

agentd_loop *agentd_loop_ref(agentd_loop *loop)
{
	if (loop)
		ad_ref(&loop->refs);
	return loop;
}

void agentd_loop_unref(agentd_loop *loop)
{
	int saved = errno;

	if (!loop || !ad_unref(&loop->refs))
		return;
	ad_loop_free(loop->loop);
	ad_loop_base_free(loop->base);
	agentd_free(loop);
	errno = saved;
}

struct event_base *agentd_loop_event_base(agentd_loop *loop)
{
	return loop ? loop->base : NULL;
}

static void on_timeout(struct ad_timer *timer, void *userdata)
{
	bool *expired = userdata;

	(void)timer;
	*expired = true;
}

/* Waits for exec if there is one, else for a wake-up. */
static bool reached(const agentd_loop *loop, const agentd_exec *exec)
{
	return exec ? agentd_exec_state(exec) == AGENTD_STATE_FINISHED : loop->woken;
}

static int turn_until(agentd_loop *loop, const agentd_exec *exec, const bool *expired,
		      agentd_error **reterr)
{
	int code;

	/* A wake-up from before still lets through what is ready, so that somebody
	 * who wakes all the time cannot keep the callbacks from running. */
	do {
		code = ad_loop_base_turn(loop->base, !*expired && !reached(loop, exec), reterr);
	} while (code == 0 && !*expired && !reached(loop, exec));
	return code < 0 ? code : reached(loop, exec);
}

/* The timer lives on this stack only and is gone before it returns: what is left
 * of one run cannot end the next. */
static int run_timed(agentd_loop *loop, const agentd_exec *exec, int64_t timeout_ms,
		     agentd_error **reterr)
{
	bool expired = timeout_ms == 0;
	struct ad_timer timer;
	uint64_t ns;
	int code;

	if (timeout_ms <= 0)
		return turn_until(loop, exec, &expired, reterr);
	if (__builtin_mul_overflow((uint64_t)timeout_ms, AD_NS_PER_MS, &ns))
		ns = UINT64_MAX;
	ad_timer_init(&timer, loop->loop, on_timeout, &expired);
	if (ad_timer_start(&timer, ns) < 0)
		return ad_fail_errno(reterr, errno, "time-out");
	code = turn_until(loop, exec, &expired, reterr);
	ad_timer_stop(&timer);
	return code;
}

static int run(agentd_loop *loop, agentd_exec *exec, int64_t timeout_ms, agentd_error **reterr)
{
	int saved = errno, code;

	if (timeout_ms < -1)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "timeout_ms must be -1 or more");
	if (loop->running)
		return ad_fail(reterr, AGENTD_ERR_REENTRANT, NULL, "the loop is already being run");
	agentd_loop_ref(loop);
	agentd_exec_ref(exec);
	loop->running = true;
	code = run_timed(loop, exec, timeout_ms, reterr);
	loop->running = false;
	if (!exec && code > 0)
		loop->woken = false;
	agentd_exec_unref(exec);
	agentd_loop_unref(loop);
	errno = saved;
	return code;
}

int agentd_loop_run(agentd_loop *loop, int64_t timeout_ms, agentd_error **reterr)
{
	if (!loop)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "loop must not be NULL");
	return run(loop, NULL, timeout_ms, reterr);
}

int agentd_loop_run_until(agentd_loop *loop, agentd_exec *exec, int64_t timeout_ms,
			  agentd_error **reterr)
{
	if (!loop || !exec)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s must not be NULL",
			       loop ? "exec" : "loop");
	return run(loop, exec, timeout_ms, reterr);
}

int agentd_loop_wakeup(agentd_loop *loop)
{
	if (!loop)
		return AGENTD_ERR_INVALID;
	ad_loop_post(loop->loop, &loop->wakeup);
	return 0;
}
