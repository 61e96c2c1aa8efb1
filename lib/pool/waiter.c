/* SPDX-License-Identifier: MIT */
#include "pool/private.h"

struct waiter {
	struct waiter *next;
	agentd_pool_fn done;
	void *userdata;
};

int waiters_add(struct waiter **list, agentd_pool_fn done, void *userdata)
{
	struct waiter *waiter;

	if (!done)
		return 0;
	waiter = malloc(sizeof(*waiter));
	if (!waiter)
		return AGENTD_ERR_NOMEM;
	*waiter = (struct waiter){ NULL, done, userdata };
	while (*list)
		list = &(*list)->next;
	*list = waiter;
	return 0;
}

void waiters_tell(struct waiter **list, agentd_pool *pool, const agentd_error *err)
{
	struct waiter *waiter = AD_STEAL(*list);

	while (waiter) {
		struct waiter *next = waiter->next;

		waiter->done(pool, err, waiter->userdata);
		free(waiter);
		waiter = next;
	}
}

void waiters_forget(struct waiter **list)
{
	while (*list) {
		struct waiter *waiter = *list;

		*list = waiter->next;
		free(waiter);
	}
}
