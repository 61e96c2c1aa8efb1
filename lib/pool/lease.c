/* SPDX-License-Identifier: MIT */
/* Who has a session, and who waits for it: first come, first served. */
#include "pool/private.h"

#include "sys/sys.h"

static void take_out(struct ad_pool_lease *lease)
{
	ad_timer_stop(&lease->timer);
	ad_list_remove(&lease->link);
}

struct ad_pool_lease *lease_first(const struct ad_pool_entry *entry)
{
	return ad_list_empty(&entry->waiting) ?
		       NULL :
		       AD_CONTAINER_OF(entry->waiting.next, struct ad_pool_lease, link);
}

/* Takes err. */
static void refuse(struct ad_pool_lease *lease, agentd_error *err)
{
	take_out(lease);
	lease->entry = NULL;
	lease->granted(lease, NULL, err);
}

void lease_refuse_all(struct ad_pool_entry *entry, const agentd_error *err)
{
	struct ad_pool_lease *lease;

	while ((lease = lease_first(entry)))
		refuse(lease, agentd_error_ref((agentd_error *)(uintptr_t)err));
}

void lease_grant(struct ad_pool_entry *entry)
{
	struct ad_pool_lease *lease = lease_first(entry);

	take_out(lease);
	entry->held = lease;
	entry->used = true;
	ad_defer(&entry->step);
	lease->granted(lease, entry->task.state, NULL);
}

void lease_forget_all(struct ad_pool_entry *entry)
{
	struct ad_pool_lease *lease;

	while ((lease = lease_first(entry))) {
		take_out(lease);
		lease->entry = NULL;
	}
	if (entry->held)
		AD_STEAL(entry->held)->entry = NULL;
}

void lease_end_given_up(struct ad_pool_entry *entry)
{
	while (!ad_list_empty(&entry->given_up)) {
		struct ad_pool_lease *lease = AD_CONTAINER_OF(entry->given_up.next,
							      struct ad_pool_lease, link);

		take_out(lease);
		lease->entry = NULL;
		lease->gone(lease);
	}
}

static const char *kept_by(const struct ad_pool_entry *entry)
{
	static const char *const states[] = {
		[ENTRY_STOPPED] = "others have all places (max_vms)",
		[ENTRY_STARTING] = "it is being started",
		[ENTRY_PREPARING] = "it is being prepared (nix_profile, bootstrap_command)",
		[ENTRY_READY] = "it has just become free",
		[ENTRY_STOPPING] = "it is being stopped",
	};

	return entry->held          ? "another command has it" :
	       entry->elsewhere     ? agentd_error_message(entry->elsewhere) :
	       entry->backup.worker ? "it is being backed up" :
				      states[entry->state];
}

static void timeout(struct ad_timer *timer, void *userdata)
{
	struct ad_pool_lease *lease = userdata;
	agentd_pool *pool = lease->entry->pool;
	agentd_error *err = NULL;

	(void)timer;
	pool_enter(pool);
	ad_defer(&pool->tend);
	ad_fail(&err, AGENTD_ERR_TIMEOUT, NULL,
		"the session %s was not free within acquire_timeout_ms (%llu): %s",
		lease->entry->id, (unsigned long long)pool->config.acquire_timeout_ms,
		kept_by(lease->entry));
	refuse(lease, err);
	pool_leave(pool);
}

/* before: whose turn is after it. */
static int wait_for(struct ad_pool_entry *entry, struct ad_pool_lease *lease,
		    struct ad_list *before, agentd_error **reterr)
{
	uint64_t now = ad_sys_now_ns();

	if (ad_timer_start(&lease->timer, lease->until > now ? lease->until - now : 0) < 0)
		return ad_fail_nomem(reterr);
	lease->entry = entry;
	ad_list_append(before, &lease->link);
	ad_defer(&entry->step);
	return 0;
}

int ad_pool_acquire(agentd_pool *pool, struct ad_pool_lease *lease, const char *id,
		    agentd_error **reterr)
{
	struct ad_pool_entry *entry;

	lease->entry = NULL;
	ad_list_init(&lease->link);
	if (!pool->config.enabled)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL,
			       "VM pool is disabled; no persistent environments available");
	if (pool->detached || pool->closing)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL, "the pool is shutting down");
	entry = entry_find(pool, id);
	if (!entry)
		entry = entry_new(pool, id);
	if (!entry)
		return ad_fail_nomem(reterr);
	ad_timer_init(&lease->timer, pool->host.loop, timeout, lease);
	lease->until = ad_sys_now_ns() + pool->config.acquire_timeout_ms * AD_NS_PER_MS;
	return wait_for(entry, lease, &entry->waiting, reterr);
}

int ad_pool_acquire_again(struct ad_pool_lease *lease, agentd_error **reterr)
{
	struct ad_pool_entry *entry = lease->entry;

	ad_pool_release(lease, true);
	if (!entry || entry->pool->closing)
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL, "the pool is shutting down");
	return wait_for(entry, lease, entry->waiting.next, reterr);
}

void ad_pool_release(struct ad_pool_lease *lease, bool broken)
{
	struct ad_pool_entry *entry = lease->entry;

	if (!entry)
		return;
	lease->entry = NULL;
	take_out(lease);
	if (entry->held == lease) {
		entry->held = NULL;
		entry->used = true;
		if (broken && entry->state == ENTRY_READY)
			entry_stop(entry, 0);
	}
	entry->last_used = ad_sys_now_ns();
	ad_defer(&entry->step);
}

void ad_pool_give_up(struct ad_pool_lease *lease)
{
	struct ad_pool_entry *entry = lease->entry;

	ad_pool_release(lease, true);
	if (!entry)
		return;
	lease->entry = entry;
	ad_list_append(&entry->given_up, &lease->link);
}
