/* SPDX-License-Identifier: MIT */
/* Sessions that nobody uses are stopped, their files backed up and at last removed: looked at
 * in a pass over all of them, each minute or when asked for. */
#include "pool/private.h"

#include <string.h>
#include <time.h>

#include <agentd/log.h>

#include "sys/sys.h"

#define PASS_EVERY_NS (60 * AD_NS_PER_S)

/* ---- the removal of a folder */

struct removal {
	struct ad_list link;
	agentd_pool *pool;
	struct worker *worker;
	char *path;
	struct ad_defer step;
};

static struct removal *removal_next(const agentd_pool *pool, const struct removal *after)
{
	const struct ad_list *node = after ? &after->link : &pool->removals;

	return node->next == &pool->removals ? NULL :
					       AD_CONTAINER_OF(node->next, struct removal, link);
}

static void removal_free(struct removal *removal)
{
	ad_list_remove(&removal->link);
	ad_defer_cancel(&removal->step);
	worker_free(removal->worker);
	free(removal->path);
	free(removal);
}

static void removal_over(struct ad_defer *defer, void *userdata)
{
	struct removal *removal = userdata;
	agentd_pool *pool = removal->pool;

	(void)defer;
	removal_free(removal);
	pool_end_work(pool, NULL);
}

/* Takes err. */
static void not_removed(agentd_pool *pool, agentd_error *err)
{
	pool_say(pool, AGENTD_LOG_WARN, "Failed to prune VM directory", NULL, err);
	if (!pool->pass_error)
		pool->pass_error = AD_STEAL(err);
	agentd_error_unref(err);
	ad_defer(&pool->settle);
}

static void removed(agentd_error *err, void *userdata)
{
	struct removal *removal = userdata;

	if (err)
		not_removed(removal->pool, err);
	ad_defer(&removal->step);
}

/* In the background; what is left of it is found by the next pass. */
static void remove_tree(agentd_pool *pool, const char *path)
{
	const char *args[] = { "remove", path, NULL };
	struct removal *removal = NULL;
	agentd_error *err = NULL;

	while ((removal = removal_next(pool, removal)))
		if (strcmp(removal->path, path) == 0)
			return;
	removal = calloc(1, sizeof(*removal));
	if (!removal) {
		ad_fail_nomem(&err);
		not_removed(pool, err);
		return;
	}
	removal->pool = pool;
	removal->path = strdup(path);
	ad_list_init(&removal->link);
	ad_defer_init(&removal->step, pool->host.loop, removal_over, removal);
	if (!removal->path)
		ad_fail_nomem(&err);
	else
		(void)worker_start(&pool->host, args, removed, removal, &removal->worker, &err);
	if (err) {
		removal_free(removal);
		not_removed(pool, err);
		return;
	}
	ad_list_append(&pool->removals, &removal->link);
	pool_begin_work(pool);
}

/* ---- backups */

static void packed(agentd_error *err, void *userdata)
{
	struct ad_pool_entry *entry = userdata;

	entry->backup.error = err;
	entry->backup.over = true;
	ad_defer(&entry->step);
}

/* Of the volume, which is locked, to err, which is owned. */
static void back_up_over(struct ad_pool_entry *entry, agentd_error *err)
{
	ad_autoerror agentd_error *own = NULL;

	if (!err && volume_set_backed_up(&entry->volume, &own) == 0) {
		entry->backup.failed = false;
		pool_say(entry->pool, AGENTD_LOG_INFO, "Backed up a session", entry->id, NULL);
	} else {
		pool_say(entry->pool, entry->backup.failed ? AGENTD_LOG_DEBUG : AGENTD_LOG_WARN,
			 "A session could not be backed up; it is tried again and not pruned "
			 "before",
			 entry->id, err ? err : own);
		entry->backup.failed = true;
	}
	volume_unlock(&entry->volume);
	pool_end_work(entry->pool, err);
}

static void back_up(struct ad_pool_entry *entry)
{
	ad_autobuf struct ad_buf file = { 0 }, part = { 0 };
	agentd_pool *pool = entry->pool;
	const char *dest = pool->config.backup_destination;
	const char *args[] = { "pack", entry->volume.dir, NULL, NULL, NULL };
	agentd_error *err = NULL;
	time_t now = time(NULL);
	struct tm tm;
	char stamp[32];

	gmtime_r(&now, &tm);
	strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &tm);
	ad_buf_printf(&part, "%s/.%s.part", dest, entry->id);
	ad_buf_printf(&file, "%s/%s-%s.tar.zst", dest, entry->id, stamp);
	args[2] = part.data;
	args[3] = file.data;
	pool_begin_work(pool);
	if (part.failed || file.failed)
		ad_fail_nomem(&err);
	else
		(void)worker_start(&pool->host, args, packed, entry, &entry->backup.worker, &err);
	if (err)
		back_up_over(entry, err);
}

void maintain_backup_over(struct ad_pool_entry *entry)
{
	worker_free(AD_STEAL(entry->backup.worker));
	entry->backup.over = false;
	back_up_over(entry, AD_STEAL(entry->backup.error));
}

/* ---- the pass */

/* The entry is gone afterwards. */
static void prune(struct ad_pool_entry *entry)
{
	agentd_pool *pool = entry->pool;
	ad_autoerror agentd_error *err = NULL;
	ad_autofree char *path = volume_discard(&entry->volume, pool->config.volume_root, entry->id,
						&err);

	if (!path) {
		pool_say(pool, AGENTD_LOG_WARN, "A session could not be pruned", entry->id, err);
		volume_unlock(&entry->volume);
		return;
	}
	pool_say(pool, AGENTD_LOG_INFO, "Pruned a session", entry->id, NULL);
	entry_free(entry);
	remove_tree(pool, path);
}

static uint64_t unused_here_s(const struct ad_pool_entry *entry)
{
	return (ad_sys_now_ns() - entry->last_used) / AD_NS_PER_S;
}

static void maintain_stopped(struct ad_pool_entry *entry)
{
	const struct pool_config *config = &entry->pool->config;
	uint64_t unused = volume_unused_s(&entry->volume);
	bool wants = config->backup_destination && !volume_backed_up(&entry->volume);
	bool due = unused >= config->prune_s;
	ad_autoerror agentd_error *err = NULL;

	if (entry->on_stop)
		return;
	if (!volume_exists(&entry->volume)) {
		entry_free(entry); /* it never began, or somebody else has removed it */
		return;
	}
	/* A clock that was set forward must not prune what was just used here. */
	if (entry->used_here && unused_here_s(entry) < config->prune_s)
		due = false;
	if (!due && !(wants && config->backup_s && unused >= config->backup_s))
		return;
	if (volume_lock(&entry->volume, &err) < 0) {
		/* Whoever uses it looks after it. */
		if (agentd_error_code(err) != AGENTD_ERR_AGAIN)
			pool_say(entry->pool, AGENTD_LOG_WARN,
				 "A session could not be looked after", entry->id, err);
		return;
	}
	/* Somebody may have used it between. */
	if (volume_unused_s(&entry->volume) < unused)
		volume_unlock(&entry->volume);
	else if (wants)
		back_up(entry);
	else if (due)
		prune(entry);
	else
		volume_unlock(&entry->volume);
}

/* The entry may be gone afterwards. */
static void maintain(struct ad_pool_entry *entry)
{
	/* Who comes after a host that was killed knows only that. */
	if (entry->held)
		volume_touch(&entry->volume);
	if (entry_in_use(entry) || entry->backup.worker)
		return;
	if (entry->state == ENTRY_READY && unused_here_s(entry) >= entry->pool->config.idle_s)
		entry_stop(entry, ENTRY_STOP_GRACE_MS);
	else if (entry->state == ENTRY_STOPPED)
		maintain_stopped(entry);
}

static void adopt(const char *id, void *userdata)
{
	agentd_pool *pool = userdata;

	if (!entry_find(pool, id))
		(void)entry_new(pool, id);
}

static void found_leftover(const char *path, void *userdata)
{
	remove_tree(userdata, path);
}

int maintain_scan(agentd_pool *pool, agentd_error **reterr)
{
	return volume_scan(pool->config.volume_root, adopt, found_leftover, pool, reterr);
}

void maintain_pass(agentd_pool *pool)
{
	ad_autoerror agentd_error *err = NULL;

	pool->pass_wanted = false;
	if (!pool->config.enabled)
		return;
	if (maintain_scan(pool, &err) < 0)
		pool_say(pool, AGENTD_LOG_WARN, "Volumes could not be looked for", NULL, err);
	for (struct ad_pool_entry *entry = entry_next(pool, NULL), *next; entry; entry = next) {
		next = entry_next(pool, entry);
		maintain(entry);
	}
	maintain_later(pool);
}

/* ---- when */

static void is_time(struct ad_timer *timer, void *userdata)
{
	(void)timer;
	maintain_soon(userdata);
}

void maintain_init(agentd_pool *pool)
{
	ad_list_init(&pool->removals);
	ad_timer_init(&pool->pass_timer, pool->host.loop, is_time, pool);
}

void maintain_later(agentd_pool *pool)
{
	if (pool->config.enabled)
		(void)ad_timer_start(&pool->pass_timer, PASS_EVERY_NS);
}

void maintain_soon(agentd_pool *pool)
{
	pool->pass_wanted = true;
	ad_defer(&pool->settle);
}

void maintain_stop(agentd_pool *pool)
{
	pool->pass_wanted = false;
	ad_timer_stop(&pool->pass_timer);
}

void maintain_free(agentd_pool *pool)
{
	struct removal *removal;

	ad_timer_stop(&pool->pass_timer);
	while ((removal = removal_next(pool, NULL)))
		removal_free(removal);
}
