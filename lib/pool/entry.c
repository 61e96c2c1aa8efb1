/* SPDX-License-Identifier: MIT */
/* Everything that happens to a session ends in advance(), which looks at the whole state
 * of it and decides what is next, so that the order of events does not matter. */
#include "pool/private.h"

#include <string.h>

#include <agentd/log.h>

#include "sys/sys.h"

enum { LOOK_MS = 100 }; /* whether somebody else still has a volume */

/* ---- the sessions of a pool */

struct ad_pool_entry *entry_next(const agentd_pool *pool, const struct ad_pool_entry *after)
{
	const struct ad_list *node = after ? &after->link : &pool->entries;

	return node->next == &pool->entries ?
		       NULL :
		       AD_CONTAINER_OF(node->next, struct ad_pool_entry, link);
}

struct ad_pool_entry *entry_find(const agentd_pool *pool, const char *id)
{
	struct ad_pool_entry *entry = NULL;

	while ((entry = entry_next(pool, entry)))
		if (strcmp(entry->id, id) == 0)
			break;
	return entry;
}

uint32_t entry_count_alive(const agentd_pool *pool)
{
	const struct ad_pool_entry *entry = NULL;
	uint32_t count = 0;

	while ((entry = entry_next(pool, entry)))
		count += entry->state != ENTRY_STOPPED;
	return count;
}

void entry_wake_waiting(agentd_pool *pool)
{
	struct ad_pool_entry *entry = NULL;

	while ((entry = entry_next(pool, entry)))
		if (lease_first(entry))
			ad_defer(&entry->step);
}

bool entry_in_use(const struct ad_pool_entry *entry)
{
	return entry->held || lease_first(entry);
}

static void forget_elsewhere(struct ad_pool_entry *entry)
{
	agentd_error_unref(AD_STEAL(entry->elsewhere));
}

/* ---- what the backend reports of it */

static struct ad_pool_entry *of_task(agentd_task *task)
{
	return AD_CONTAINER_OF(task, struct ad_pool_entry, task);
}

static void started(agentd_task *task, int32_t pid)
{
	struct ad_pool_entry *entry = of_task(task);

	(void)pid;
	/* It may be on its way out already. */
	if (entry->state != ENTRY_STARTING)
		return;
	entry->state = ENTRY_PREPARING;
	entry->was_spare = false; /* what goes wrong now is its own */
	ad_timer_stop(&entry->timer);
	ad_defer(&entry->step);
}

static void closed(agentd_task *task)
{
	of_task(task)->over = true;
	ad_defer(&of_task(task)->step);
}

static void failed(agentd_task *task, agentd_error *err)
{
	struct ad_pool_entry *entry = of_task(task);

	agentd_error_unref(entry->error);
	entry->error = err;
	closed(task);
}

static void logged(agentd_task *task, int32_t level, const char *message)
{
	const struct ad_pool_entry *entry = of_task(task);

	pool_say(entry->pool, level, message, entry->id, NULL);
}

static void denied(agentd_task *task, const char *kind, const char *target, const char *rule,
		   const char *remedy)
{
	(void)kind, (void)rule, (void)remedy;
	logged(task, AGENTD_LOG_WARN, target);
}

static const struct ad_task_listener listener = {
	.started = started,
	.denied = denied,
	.closed = closed,
	.failed = failed,
	.log = logged,
};

/* ---- starting */

/* From a spare, if there is one that is of use. NO_ROOM: not yet. */
enum { NO_ROOM = 1 };

static int start_task(struct ad_pool_entry *entry, struct ad_backend *backend,
		      agentd_error **reterr)
{
	agentd_pool *pool = entry->pool;
	int r;

	entry->was_spare = !entry->spare_failed;
	if (entry->was_spare &&
	    spares_take(&pool->spares, &entry->task, &listener, &entry->spec.spec))
		return 0;
	entry->was_spare = false;
	if (entry_count_alive(pool) + spares_count(&pool->spares) > pool->config.max_vms)
		return NO_ROOM;
	entry->spare_failed = false;
	r = ad_session_start(&entry->task, backend, &listener, &entry->spec.spec, reterr);
	if (r < 0)
		ad_task_release(&entry->task);
	return r;
}

/* For the first who waits. */
static int start(struct ad_pool_entry *entry, agentd_error **reterr)
{
	agentd_pool *pool = entry->pool;
	struct ad_backend *backend;
	int r = pool_find_backend(pool, &backend, reterr);

	if (r == 0)
		r = volume_open(&entry->volume, pool->config.volume_root, reterr);
	if (r < 0)
		return r;
	volume_touch(&entry->volume);
	r = ad_spec_copy(&entry->spec, lease_first(entry)->spec, reterr);
	if (r == 0 && ad_timer_start(&entry->timer, backend->ops.setup_max_ms * AD_NS_PER_MS) < 0)
		r = ad_fail_nomem(reterr);
	if (r == 0) {
		entry->state = ENTRY_STARTING;
		entry->over = entry->stuck = entry->was_ready = false;
		entry->used_here = true;
		forget_elsewhere(entry);
		r = start_task(entry, backend, reterr);
	}
	if (r == 0 && pool->config.min_warm > 0)
		spares_make_like(&pool->spares, &entry->spec.spec);
	if (r != 0) {
		entry->state = ENTRY_STOPPED;
		ad_timer_stop(&entry->timer);
		ad_spec_copy_free(&entry->spec);
		volume_unlock(&entry->volume);
	}
	return r;
}

/* The one that has been idle for longest makes room: its files stay. True if one does, or
 * is about to. */
static bool make_room(agentd_pool *pool)
{
	struct ad_pool_entry *entry = NULL, *oldest = NULL;

	while ((entry = entry_next(pool, entry))) {
		if (entry->state == ENTRY_STOPPING && !entry->stuck)
			return true;
		if (entry->state == ENTRY_READY && !entry_in_use(entry) &&
		    (!oldest || entry->last_used < oldest->last_used))
			oldest = entry;
	}
	if (oldest)
		entry_stop(oldest, ENTRY_STOP_GRACE_MS);
	return oldest;
}

static bool has_room(const agentd_pool *pool)
{
	return entry_count_alive(pool) + spares_count(&pool->spares) < pool->config.max_vms;
}

static void try_start(struct ad_pool_entry *entry)
{
	agentd_pool *pool = entry->pool;
	ad_autoerror agentd_error *err = NULL;
	int r;

	/* A spare's place is the session's that takes it. */
	if (!has_room(pool) && (entry->spare_failed || spares_ready(&pool->spares) == 0)) {
		if (spares_make_room(&pool->spares) || make_room(pool))
			return; /* advance() comes again when it has stopped */
		ad_fail(&err, AGENTD_ERR_LIMIT, NULL, "VM pool is at capacity (%llu sessions)",
			(unsigned long long)pool->config.max_vms);
		lease_refuse_all(entry, err);
		return;
	}
	r = start(entry, &err);
	if (r == AGENTD_ERR_AGAIN && ad_timer_start(&entry->timer, LOOK_MS * AD_NS_PER_MS) == 0) {
		forget_elsewhere(entry);
		entry->elsewhere = AD_STEAL(err);
	} else if (r < 0) {
		lease_refuse_all(entry, err);
	}
}

/* ---- stopping */

void entry_stop(struct ad_pool_entry *entry, uint32_t grace_ms)
{
	const uint64_t close_max_ms = entry->task.backend->ops.close_max_ms;

	if (entry->state != ENTRY_STOPPING) {
		entry->state = ENTRY_STOPPING;
		pool_begin_work(entry->pool);
		(void)ad_timer_start(&entry->timer, (grace_ms + close_max_ms) * AD_NS_PER_MS);
	}
	(void)ad_session_stop(&entry->task, grace_ms);
}

/* The backend has nothing of it any more. */
static void session_is_over(struct ad_pool_entry *entry)
{
	bool worked = entry->state == ENTRY_STOPPING && !entry->stuck, was_ready = entry->was_ready;
	agentd_pool *pool = entry->pool;
	ad_autoerror agentd_error *err = AD_STEAL(entry->error);

	prepare_end(entry);
	lease_end_given_up(entry);
	ad_timer_stop(&entry->timer);
	ad_task_release(&entry->task);
	ad_spec_copy_free(&entry->spec);
	volume_touch(&entry->volume);
	volume_unlock(&entry->volume);
	entry->last_used = ad_sys_now_ns();
	entry->state = ENTRY_STOPPED;
	entry->over = entry->stop_wanted = entry->stuck = false;
	ad_defer(&pool->settle);
	if (err)
		pool_say(pool, AGENTD_LOG_WARN,
			 was_ready ? "A session died" : "A session could not be used", entry->id,
			 err);
	/* One that died in use, or idle, is started again; one that cannot start is not, unless
	 * that may be its spare's fault. */
	entry->spare_failed = err && !was_ready && entry->was_spare;
	if (err && !was_ready && !entry->was_spare)
		lease_refuse_all(entry, err);
	if (worked)
		pool_end_work(pool, agentd_error_ref(err));
	waiters_tell(&entry->on_stop, pool, err);
	entry_wake_waiting(pool); /* there is room for others now */
}

/* ---- what is next */

static void advance(struct ad_pool_entry *entry)
{
	agentd_pool *pool = entry->pool;

	if (entry->used) {
		entry->used = false;
		volume_touch(&entry->volume);
	}
	if (entry->backup.over)
		maintain_backup_over(entry);
	if (entry->over && !entry->held)
		session_is_over(entry);
	else if (entry->over)
		return; /* its command hears of it first */
	if (entry->state == ENTRY_PREPARING && prepare_advance(entry)) {
		entry->state = ENTRY_READY;
		entry->was_ready = true;
		entry->last_used = ad_sys_now_ns();
	}
	if (entry->state == ENTRY_STOPPING || entry->held)
		return;
	if (entry->stop_wanted || pool->closing) {
		/* One that starts is not waited for when nobody wants it any more. */
		if (entry->state == ENTRY_READY ||
		    (entry->state != ENTRY_STOPPED && (pool->closing || !lease_first(entry))))
			entry_stop(entry, pool->closing ? pool->grace_ms : ENTRY_STOP_GRACE_MS);
		if (entry->state == ENTRY_STOPPED && entry->stop_wanted) {
			entry->stop_wanted = false;
			waiters_tell(&entry->on_stop, pool, NULL);
		}
		return;
	}
	if (!lease_first(entry))
		return;
	if (entry->state == ENTRY_READY)
		lease_grant(entry);
	else if (entry->state == ENTRY_STOPPED && !entry->backup.worker)
		try_start(entry);
}

static void step(struct ad_defer *defer, void *userdata)
{
	struct ad_pool_entry *entry = userdata;
	agentd_pool *pool = entry->pool;

	(void)defer;
	pool_enter(pool);
	ad_defer(&pool->tend);
	advance(entry);
	pool_leave(pool);
}

static void timeout(struct ad_timer *timer, void *userdata)
{
	struct ad_pool_entry *entry = userdata;
	agentd_pool *pool = entry->pool;

	(void)timer;
	pool_enter(pool);
	if (entry->state == ENTRY_STARTING) {
		if (!entry->error)
			ad_fail(&entry->error, AGENTD_ERR_TIMEOUT, NULL,
				"the session did not start in time");
		entry_stop(entry, 0);
	} else if (entry->state == ENTRY_PREPARING) {
		prepare_timed_out(entry);
	} else if (entry->state == ENTRY_STOPPING && !entry->stuck) {
		/* It keeps its place and its volume: whatever is left of it may still write. */
		entry->stuck = true;
		pool_say(pool, AGENTD_LOG_ERROR, "A session does not end although it was killed",
			 entry->id, NULL);
		pool_end_work(pool, NULL);
		entry_wake_waiting(pool); /* another one may make room */
	} else if (entry->state == ENTRY_STOPPED) {
		ad_defer(&entry->step);
	}
	pool_leave(pool);
}

/* ---- its life */

struct ad_pool_entry *entry_new(agentd_pool *pool, const char *id)
{
	struct ad_pool_entry *entry = calloc(1, sizeof(*entry));

	if (!entry || volume_init(&entry->volume, pool->config.volume_root, id, NULL) < 0) {
		free(entry);
		return NULL;
	}
	memcpy(entry->id, id, sizeof(entry->id));
	entry->pool = pool;
	entry->last_used = ad_sys_now_ns();
	ad_list_init(&entry->waiting);
	ad_list_init(&entry->given_up);
	ad_defer_init(&entry->step, pool->host.loop, step, entry);
	ad_timer_init(&entry->timer, pool->host.loop, timeout, entry);
	ad_list_append(&pool->entries, &entry->link);
	return entry;
}

void entry_free(struct ad_pool_entry *entry)
{
	lease_forget_all(entry);
	prepare_free(entry);
	lease_end_given_up(entry);
	ad_task_abandon(&entry->task);
	ad_list_remove(&entry->link);
	ad_defer_cancel(&entry->step);
	ad_timer_stop(&entry->timer);
	forget_elsewhere(entry);
	worker_free(entry->backup.worker);
	agentd_error_unref(entry->backup.error);
	agentd_error_unref(entry->error);
	ad_spec_copy_free(&entry->spec);
	volume_free(&entry->volume);
	waiters_forget(&entry->on_stop);
	free(entry);
}
