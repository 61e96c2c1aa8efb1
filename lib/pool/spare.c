/* SPDX-License-Identifier: MIT */
/* Sessions that are started as far as can be before anybody asks for them, so that one who
 * does waits for less. Nothing depends on there being any. */
#include "pool/private.h"

#include <string.h>

#include <agentd/log.h>

#include "sys/sys.h"

/* After one that failed or died, doubled until one was of use. */
#define RETRY_LEAST_NS (1000 * AD_NS_PER_MS)
#define RETRY_MOST_NS (64 * RETRY_LEAST_NS)

struct spare {
	struct ad_list link;
	struct spares *spares;
	struct agentd_task task;
	struct ad_spec_copy spec;
	struct ad_timer timer; /* its start, its end */
	struct ad_defer step;
	agentd_error *error;
	bool ready, ending, over, stuck;
};

static struct spare *spare_at(struct ad_list *node)
{
	return AD_CONTAINER_OF(node, struct spare, link);
}

static struct spare *of_task(agentd_task *task)
{
	return AD_CONTAINER_OF(task, struct spare, task);
}

/* Its session is over, or somebody else's. */
static void spare_free(struct spare *spare)
{
	ad_list_remove(&spare->link);
	ad_timer_stop(&spare->timer);
	ad_defer_cancel(&spare->step);
	ad_spec_copy_free(&spare->spec);
	agentd_error_unref(spare->error);
	free(spare);
}

/* ---- what the backend reports of it */

static void changed(struct spares *spares)
{
	spares->changed(spares->userdata);
}

static void started(agentd_task *task, int32_t pid)
{
	struct spare *spare = of_task(task);

	(void)pid;
	if (spare->ending)
		return;
	spare->ready = true;
	ad_timer_stop(&spare->timer);
	ad_defer(&spare->step);
}

static void closed(agentd_task *task)
{
	of_task(task)->over = true;
	ad_defer(&of_task(task)->step);
}

static void failed(agentd_task *task, agentd_error *err)
{
	of_task(task)->error = err;
	closed(task);
}

static void logged(agentd_task *task, int32_t level, const char *message)
{
	const struct ad_pool_host *host = of_task(task)->spares->host;

	host->log(level, message, NULL, NULL, host->userdata);
}

static const struct ad_task_listener listener = {
	.started = started,
	.closed = closed,
	.failed = failed,
	.log = logged,
};

/* ---- beginning and ending */

static void retry_later(struct spares *spares)
{
	spares->retry_ns = spares->retry_ns == 0 ? RETRY_LEAST_NS : 2 * spares->retry_ns;
	if (spares->retry_ns > RETRY_MOST_NS)
		spares->retry_ns = RETRY_MOST_NS;
	spares->not_before = ad_sys_now_ns() + spares->retry_ns;
	(void)ad_timer_start(&spares->timer, spares->retry_ns);
}

static void is_lost(struct spares *spares, const agentd_error *err)
{
	spares->host->log(spares->retry_ns == 0 ? AGENTD_LOG_WARN : AGENTD_LOG_DEBUG,
			  "A spare session could not be kept ready; sessions start without, and "
			  "another one is tried later",
			  NULL, agentd_error_message(err), spares->host->userdata);
	retry_later(spares);
}

static void step(struct ad_defer *defer, void *userdata)
{
	struct spare *spare = userdata;
	struct spares *spares = spare->spares;

	(void)defer;
	if (spare->over) {
		if (!spare->ending)
			is_lost(spares, spare->error);
		ad_task_release(&spare->task);
		spare_free(spare);
	}
	changed(spares);
}

static void end(struct spare *spare)
{
	spare->ending = true;
	(void)ad_timer_start(&spare->timer, spare->task.backend->ops.close_max_ms * AD_NS_PER_MS);
	(void)ad_session_stop(&spare->task, 0);
}

static void timeout(struct ad_timer *timer, void *userdata)
{
	struct spare *spare = userdata;
	ad_autoerror agentd_error *err = NULL;

	(void)timer;
	if (!spare->ending) {
		ad_fail(&err, AGENTD_ERR_TIMEOUT, NULL, "it did not start in time");
		is_lost(spare->spares, err);
		end(spare);
		return;
	}
	/* It keeps its place. */
	spare->stuck = true;
	changed(spare->spares);
}

static int start(struct spares *spares, struct ad_backend *backend, agentd_error **reterr)
{
	struct spare *spare = calloc(1, sizeof(*spare));
	int r;

	if (!spare)
		return ad_fail_nomem(reterr);
	spare->spares = spares;
	ad_timer_init(&spare->timer, spares->host->loop, timeout, spare);
	ad_defer_init(&spare->step, spares->host->loop, step, spare);
	ad_list_append(&spares->list, &spare->link);
	r = ad_spec_copy(&spare->spec, &spares->like.spec, reterr);
	if (r == 0 && ad_timer_start(&spare->timer, backend->ops.setup_max_ms * AD_NS_PER_MS) < 0)
		r = ad_fail_nomem(reterr);
	if (r == 0) {
		r = ad_session_start(&spare->task, backend, &listener, &spare->spec.spec, reterr);
		if (r < 0)
			ad_task_release(&spare->task);
	}
	if (r < 0)
		spare_free(spare);
	return r;
}

/* ---- for the pool */

static void retry(struct ad_timer *timer, void *userdata)
{
	(void)timer;
	changed(userdata);
}

int spares_init(struct spares *spares, const struct ad_pool_host *host, const char *options,
		void (*changed_fn)(void *userdata), void *userdata, agentd_error **reterr)
{
	static const char *const none[] = { NULL };
	const agentd_spec any = { .argv = none,
				  .options = options,
				  .limits.size = sizeof(any.limits),
				  .netns = -1,
				  .credentials_fd = -1 };

	*spares = (struct spares){ .host = host, .changed = changed_fn, .userdata = userdata };
	ad_list_init(&spares->list);
	ad_timer_init(&spares->timer, host->loop, retry, spares);
	return ad_spec_copy(&spares->like, &any, reterr);
}

void spares_free(struct spares *spares)
{
	while (!ad_list_empty(&spares->list)) {
		struct spare *spare = spare_at(spares->list.next);

		ad_task_abandon(&spare->task);
		spare_free(spare);
	}
	ad_timer_stop(&spares->timer);
	ad_spec_copy_free(&spares->like);
}

void spares_make_like(struct spares *spares, const agentd_spec *spec)
{
	agentd_spec like = *spec;
	struct ad_spec_copy copy;

	like.session_id = like.volume = like.workdir = NULL;
	like.mount_count = 0;
	like.netns = -1;
	if (ad_spec_copy(&copy, &like, NULL) < 0)
		return;
	ad_spec_copy_free(&spares->like);
	spares->like = copy;
}

uint32_t spares_count(const struct spares *spares)
{
	uint32_t count = 0;

	for (struct ad_list *node = spares->list.next; node != &spares->list; node = node->next)
		count++;
	return count;
}

static bool can_be_taken(const struct spare *spare)
{
	return spare->ready && !spare->ending && !spare->over;
}

uint32_t spares_ready(const struct spares *spares)
{
	uint32_t count = 0;

	for (struct ad_list *node = spares->list.next; node != &spares->list; node = node->next)
		count += can_be_taken(spare_at(node));
	return count;
}

bool spares_over(const struct spares *spares)
{
	for (struct ad_list *node = spares->list.next; node != &spares->list; node = node->next)
		if (!spare_at(node)->stuck)
			return false;
	return true;
}

void spares_tend(struct spares *spares, struct ad_backend *backend, uint64_t wanted, uint64_t room)
{
	ad_autoerror agentd_error *err = NULL;
	bool under_way = false;
	uint64_t count = 0, stuck = 0;

	for (struct ad_list *node = spares->list.next; node != &spares->list; node = node->next)
		stuck += spare_at(node)->stuck;
	room = room > stuck ? room - stuck : 0;
	if (wanted > room)
		wanted = room;
	for (struct ad_list *node = spares->list.next; node != &spares->list; node = node->next) {
		struct spare *spare = spare_at(node);

		if (!spare->ending && ++count > wanted)
			end(spare);
		under_way |= !spare->stuck && (spare->ending || spare->over || !spare->ready);
	}
	if (count >= wanted || under_way || ad_sys_now_ns() < spares->not_before)
		return;
	if (backend->probe == AD_PROBE_PENDING)
		retry_later(spares);
	else if (start(spares, backend, &err) < 0)
		is_lost(spares, err);
}

bool spares_make_room(struct spares *spares)
{
	struct spare *last = NULL;

	for (struct ad_list *node = spares->list.next; node != &spares->list; node = node->next) {
		struct spare *spare = spare_at(node);

		if ((spare->ending && !spare->stuck) || spare->over)
			return true;
		if (!spare->ending)
			last = spare;
	}
	if (last)
		end(last);
	return last;
}

bool spares_take(struct spares *spares, struct agentd_task *task,
		 const struct ad_task_listener *its, const agentd_spec *spec)
{
	for (struct ad_list *node = spares->list.next, *next; node != &spares->list; node = next) {
		struct spare *spare = spare_at(node);

		next = node->next;
		if (!can_be_taken(spare))
			continue;
		if (ad_session_adopt(task, &spare->task, its, spec, NULL) == 0) {
			spare_free(spare);
			spares->retry_ns = spares->not_before = 0;
			return true;
		}
		/* Of another kind, or about to die. */
		end(spare);
	}
	return false;
}
