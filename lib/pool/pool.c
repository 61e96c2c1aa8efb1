/* SPDX-License-Identifier: MIT */
/* A pool from its first reference to its last, and what callers see of it. */
#include "pool/private.h"

#include <string.h>

#include "json/json.h"

enum { ID_LEN = AD_POOL_ID_SIZE - 1 };

/* ---- its end */

static void detach(agentd_pool *pool)
{
	struct ad_pool_entry *entry;

	if (pool->detached)
		return;
	pool->detached = true;
	ad_list_remove(&pool->link);
	ad_defer_cancel(&pool->settle);
	ad_defer_cancel(&pool->tend);
	spares_free(&pool->spares);
	while ((entry = entry_next(pool, NULL)))
		entry_free(entry);
	maintain_free(pool);
	waiters_forget(&pool->on_pass);
	agentd_error_unref(AD_STEAL(pool->pass_error));
	pool->busy = 0;
	pthread_mutex_lock(&pool->lock);
	pool->host.loop = NULL;
	pthread_mutex_unlock(&pool->lock);
}

static void pool_free(agentd_pool *pool)
{
	detach(pool);
	pthread_mutex_destroy(&pool->lock);
	pool_config_free(&pool->config);
	free(pool->host.worker);
	free(pool);
}

/* Nobody has a reference any more. */
static void release(agentd_pool *pool)
{
	pool->released = true;
	if (pool->pins == 0)
		pool_free(pool);
}

/* ---- for the other parts */

void pool_say(const agentd_pool *pool, int32_t level, const char *message, const char *session,
	      const agentd_error *err)
{
	if (!pool->detached)
		pool->host.log(level, message, session, err ? agentd_error_message(err) : NULL,
			       pool->host.userdata);
}

void pool_begin_work(agentd_pool *pool)
{
	pool->busy++;
}

void pool_end_work(agentd_pool *pool, agentd_error *err)
{
	if (!pool->pass_error)
		pool->pass_error = AD_STEAL(err);
	agentd_error_unref(err);
	pool->busy--;
	ad_defer(&pool->settle);
}

void pool_enter(agentd_pool *pool)
{
	pool->pins++;
	pool->host.pin(pool->host.userdata);
}

void pool_leave(agentd_pool *pool)
{
	const struct ad_pool_host host = pool->host;

	if (--pool->pins == 0 && pool->released)
		pool_free(pool);
	host.unpin(host.userdata);
}

int pool_find_backend(const agentd_pool *pool, struct ad_backend **ret, agentd_error **reterr)
{
	int r = ad_registry_find(pool->host.registry, pool->config.backend, ret);

	if (r < 0)
		return ad_fail(reterr, r, NULL, "no backend is called \"%s\"",
			       pool->config.backend);
	if (!(*ret)->ops.session_start)
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, NULL,
			       "the backend \"%s\" has no sessions", (*ret)->name);
	if (pool->config.min_warm > 0 && !(*ret)->ops.session_adopt)
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, "/min_warm",
			       "vm_pool.min_warm is for backends whose sessions can be started "
			       "before they are asked for, which \"%s\" cannot",
			       (*ret)->name);
	return 0;
}

/* ---- spares */

/* Who waits for a session is not to wait for a spare. */
static bool is_starting(const agentd_pool *pool)
{
	const struct ad_pool_entry *entry = NULL;

	while ((entry = entry_next(pool, entry)))
		if (entry->state == ENTRY_STARTING || entry->state == ENTRY_PREPARING ||
		    (entry->state == ENTRY_STOPPED && lease_first(entry)))
			return true;
	return false;
}

static void tend(struct ad_defer *defer, void *userdata)
{
	agentd_pool *pool = userdata;
	const struct pool_config *config = &pool->config;
	struct ad_backend *backend;
	uint64_t room = config->max_vms - entry_count_alive(pool);

	(void)defer;
	pool_enter(pool);
	if (pool->closing)
		spares_tend(&pool->spares, NULL, 0, 0);
	else if (config->enabled && config->min_warm > 0 && !is_starting(pool) &&
		 pool_find_backend(pool, &backend, NULL) == 0)
		spares_tend(&pool->spares, backend, config->min_warm, room);
	pool_leave(pool);
}

static void spares_changed(void *userdata)
{
	agentd_pool *pool = userdata;

	entry_wake_waiting(pool);
	ad_defer(&pool->settle);
	ad_defer(&pool->tend);
}

/* A backend may come later: then its sessions are refused. */
static int check_spares(const agentd_pool *pool, agentd_error **reterr)
{
	ad_autoerror agentd_error *err = NULL;
	struct ad_backend *backend;
	int r = pool_find_backend(pool, &backend, &err);

	if (r == 0 || r == AGENTD_ERR_NOTFOUND)
		return 0;
	if (reterr)
		*reterr = AD_STEAL(err);
	return r;
}

/* ---- when nothing is under way */

static bool all_stopped(const agentd_pool *pool)
{
	const struct ad_pool_entry *entry = NULL;

	while ((entry = entry_next(pool, entry)))
		if (entry->state != ENTRY_STOPPED && !entry->stuck)
			return false;
	return spares_over(&pool->spares);
}

static void at_rest(agentd_pool *pool)
{
	ad_autoerror agentd_error *err = AD_STEAL(pool->pass_error);

	waiters_tell(&pool->on_pass, pool, err);
	if (pool->closing && pool->closed && all_stopped(pool) && pool->busy == 0) {
		void (*closed)(void *userdata) = pool->closed;

		pool->closed = NULL;
		closed(pool->closed_userdata);
	}
}

static void settle(struct ad_defer *defer, void *userdata)
{
	agentd_pool *pool = userdata;

	(void)defer;
	pool_enter(pool);
	if (pool->pass_wanted)
		maintain_pass(pool);
	if (pool->busy == 0)
		at_rest(pool);
	pool_leave(pool);
}

/* ---- for the runner */

int ad_pool_new(const struct ad_pool_host *host, struct ad_list *pools, const char *config,
		size_t len, agentd_pool **ret, agentd_error **reterr)
{
	agentd_pool *pool = calloc(1, sizeof(*pool));
	int r = pool ? pool_config_read(&pool->config, config, len, reterr) : ad_fail_nomem(reterr);

	if (r < 0) {
		free(host->worker);
		free(pool);
		return r;
	}
	pool->refs = 1;
	pool->host = *host;
	pthread_mutex_init(&pool->lock, NULL);
	ad_list_append(pools, &pool->link);
	ad_list_init(&pool->entries);
	maintain_init(pool);
	ad_defer_init(&pool->settle, host->loop, settle, pool);
	ad_defer_init(&pool->tend, host->loop, tend, pool);
	r = spares_init(&pool->spares, &pool->host, pool->config.options, spares_changed, pool,
			reterr);
	if (r == 0 && pool->config.enabled && pool->config.min_warm > 0)
		r = check_spares(pool, reterr);
	if (r == 0 && pool->config.enabled)
		r = maintain_scan(pool, reterr);
	if (r < 0) {
		agentd_pool_unref(pool);
		return r;
	}
	maintain_later(pool);
	ad_defer(&pool->tend);
	*ret = pool;
	return 0;
}

void ad_pool_detach_all(struct ad_list *pools)
{
	while (!ad_list_empty(pools)) {
		agentd_pool *pool = AD_CONTAINER_OF(pools->next, agentd_pool, link);

		detach(pool);
		/* The wake-up for it would not find it any more. */
		if (pool->dropped)
			pool_free(pool);
	}
}

void ad_pool_free_dropped(struct ad_list *pools)
{
	for (struct ad_list *node = pools->next, *next; node != pools; node = next) {
		agentd_pool *pool = AD_CONTAINER_OF(node, agentd_pool, link);
		bool dropped;

		next = node->next;
		pthread_mutex_lock(&pool->lock);
		dropped = pool->dropped;
		pthread_mutex_unlock(&pool->lock);
		if (dropped)
			pool_free(pool);
	}
}

bool ad_pool_shutdown_all(struct ad_list *pools, uint32_t grace_ms, void (*done)(void *userdata),
			  void *userdata)
{
	bool any = false;

	for (struct ad_list *node = pools->next; node != pools; node = node->next) {
		agentd_pool *pool = AD_CONTAINER_OF(node, agentd_pool, link);
		struct ad_pool_entry *entry = NULL;

		if (pool->closing && !pool->closed)
			continue; /* is over */
		any = true;
		if (pool->closing)
			continue;
		pool->closing = true;
		pool->grace_ms = grace_ms;
		pool->closed = done;
		pool->closed_userdata = userdata;
		maintain_stop(pool);
		while ((entry = entry_next(pool, entry)))
			ad_defer(&entry->step);
		ad_defer(&pool->settle);
		ad_defer(&pool->tend);
	}
	return any;
}

bool ad_pool_is_of(const agentd_pool *pool, const void *userdata)
{
	return !pool->detached && pool->host.userdata == userdata;
}

bool ad_pool_enabled(const agentd_pool *pool)
{
	return pool->config.enabled;
}

bool ad_pool_fallback(const agentd_pool *pool)
{
	return pool->config.fallback;
}

const char *ad_pool_backend(const agentd_pool *pool)
{
	return pool->config.backend;
}

const char *const *ad_pool_shell(const agentd_pool *pool)
{
	return pool->config.shell_argv;
}

const char *const *ad_pool_env(const agentd_pool *pool)
{
	return pool->config.env_vector;
}

const char *ad_pool_options(const agentd_pool *pool)
{
	return pool->config.options;
}

char *ad_pool_volume(const agentd_pool *pool, const char *id)
{
	struct ad_buf path = { 0 };

	ad_buf_printf(&path, "%s/%s/volume", pool->config.volume_root, id);
	return ad_buf_steal(&path);
}

bool ad_pool_id_valid(const char *id)
{
	for (size_t i = 0; i < ID_LEN; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? id[i] != '-' : !id[i] || !strchr("0123456789abcdef", id[i]))
			return false;
	}
	return id[ID_LEN] == '\0';
}

bool ad_pool_id_fold(const char *id, char ret[static AD_POOL_ID_SIZE])
{
	if (strlen(id) != ID_LEN)
		return false;
	for (size_t i = 0; i < AD_POOL_ID_SIZE; i++)
		ret[i] = id[i] >= 'A' && id[i] <= 'F' ? (char)(id[i] - 'A' + 'a') : id[i];
	return ad_pool_id_valid(ret);
}

/* ---- public */

agentd_pool *agentd_pool_ref(agentd_pool *pool)
{
	if (pool)
		ad_ref(&pool->refs);
	return pool;
}

void agentd_pool_unref(agentd_pool *pool)
{
	bool elsewhere;
	AD_KEEP_ERRNO;

	if (!pool || !ad_unref(&pool->refs))
		return;
	pthread_mutex_lock(&pool->lock);
	elsewhere = pool->host.loop && !pool->host.on_loop(pool->host.userdata);
	if (elsewhere) {
		pool->dropped = true;
		pool->host.wake(pool->host.userdata);
	}
	pthread_mutex_unlock(&pool->lock);
	if (!elsewhere)
		release(pool);
}

int agentd_pool_maintain(agentd_pool *pool, agentd_pool_fn done, void *userdata)
{
	AD_KEEP_ERRNO;

	if (!pool)
		return AGENTD_ERR_INVALID;
	if (pool->detached || pool->closing)
		return AGENTD_ERR_STATE;
	if (waiters_add(&pool->on_pass, done, userdata) < 0)
		return AGENTD_ERR_NOMEM;
	maintain_soon(pool);
	return 0;
}

int agentd_pool_stop(agentd_pool *pool, const char *session_id, agentd_pool_fn done, void *userdata)
{
	struct ad_pool_entry *entry;
	char id[AD_POOL_ID_SIZE];
	AD_KEEP_ERRNO;

	if (!pool || !session_id)
		return AGENTD_ERR_INVALID;
	if (pool->detached || pool->closing)
		return AGENTD_ERR_STATE;
	entry = pool->config.enabled && ad_pool_id_fold(session_id, id) ? entry_find(pool, id) :
									  NULL;
	if (!entry)
		return AGENTD_ERR_NOTFOUND;
	if (waiters_add(&entry->on_stop, done, userdata) < 0)
		return AGENTD_ERR_NOMEM;
	entry->stop_wanted = true;
	ad_defer(&entry->step);
	return 0;
}

static const char *state_name(const struct ad_pool_entry *entry)
{
	static const char *const names[] = { [ENTRY_STOPPED] = "stopped",
					     [ENTRY_STARTING] = "starting",
					     [ENTRY_PREPARING] = "preparing",
					     [ENTRY_READY] = "idle",
					     [ENTRY_STOPPING] = "stopping" };

	if (entry->state == ENTRY_STOPPED && entry->backup.worker)
		return "in maintenance";
	return entry->held ? "busy" : names[entry->state];
}

int agentd_pool_to_json(const agentd_pool *pool, char **ret, size_t *ret_len, agentd_error **reterr)
{
	const struct ad_pool_entry *entry = NULL;
	struct json_object *json, *list;
	bool ok = true;
	AD_KEEP_ERRNO;

	if (!pool || !ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s is NULL",
			       pool ? "ret" : "pool");
	json = ad_json_object();
	list = ad_json_array();
	ok &= ad_json_add_bool(json, "enabled", pool->config.enabled);
	ok &= ad_json_add_string(json, "backend", pool->config.backend);
	ok &= ad_json_add_u64(json, "max_vms", pool->config.max_vms);
	ok &= ad_json_add_u64(json, "min_warm", pool->config.min_warm);
	ok &= ad_json_add_u64(json, "warm", spares_ready(&pool->spares));
	while ((entry = entry_next(pool, entry))) {
		struct json_object *item = ad_json_object();

		ok &= ad_json_add_string(item, "id", entry->id);
		ok &= ad_json_add_string(item, "state", state_name(entry));
		ok &= ad_json_add_u64(item, "unused_seconds",
				      entry->held ? 0 : volume_unused_s(&entry->volume));
		ok &= ad_json_add_bool(item, "backed_up", volume_backed_up(&entry->volume));
		ok &= ad_json_add_value(list, NULL, item);
	}
	ok &= ad_json_add_value(json, "sessions", list);
	return ad_json_to_text(json, ok, ret, ret_len, reterr);
}
