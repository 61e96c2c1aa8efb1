/* SPDX-License-Identifier: MIT */
/* Everything that happens to a session ends in advance(), which looks at the whole state
 * of it and decides what is next, so that the order of events does not matter. */
#include "pool/private.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <agentd/exec.h>
#include <agentd/log.h>

#include "json/json.h"
#include "sys/sys.h"

#define MAINTAIN_NS (60 * AD_NS_PER_S)
enum {
	STOP_GRACE_MS = 5000,
	LOOK_MS = 100, /* whether somebody else still has a volume */
	ID_BYTES = AD_POOL_ID_SIZE - 1,
	SAID_MAX = 1024,
	PREPARE_MAX_S = 600
};

enum state { STOPPED, STARTING, PREPARING, READY, STOPPING };

/* What is done once in a new volume. */
enum step { STEP_NIX, STEP_BOOTSTRAP, STEP_DONE };
enum { NO_NIX = 69 };

struct waiter {
	struct waiter *next;
	agentd_pool_fn done;
	void *userdata;
};

struct ad_pool_entry {
	struct ad_list link;
	agentd_pool *pool;
	char id[ID_BYTES + 1];
	struct volume volume;
	enum state state;
	struct agentd_task task; /* the session */
	struct ad_spec_copy spec;
	struct ad_list waiting; /* leases */
	struct ad_pool_lease *held;
	uint64_t last_used; /* CLOCK_MONOTONIC; of this process */
	bool stop_wanted, over, stuck;
	bool was_ready;      /* since it was started last */
	bool was_spare;      /* it is being started from one */
	bool spare_failed;   /* the next start is to go without */
	bool used_here;      /* then last_used is the truth */
	bool backup_failed;  /* said already */
	agentd_error *error; /* of the start or the last stop */
	struct waiter *on_stop;
	struct worker *worker;
	void (*worked)(struct ad_pool_entry *entry, agentd_error *err);
	agentd_error *worker_error;
	bool worker_over;
	struct ad_defer step;
	/* preparing */
	struct agentd_task command;
	agentd_spec command_spec;
	const char *nix_argv[6];
	enum step preparing;
	struct ad_io output;
	bool output_open;
	char said[SAID_MAX]; /* the end of what the command wrote */
	size_t said_len;
	int wait_status;
	bool command_over;
	agentd_error *elsewhere; /* it is not started yet: somebody else has its volume */
	struct ad_timer timer;
};

struct leftover {
	struct ad_list link;
	agentd_pool *pool;
	struct worker *worker;
	char *path;
	struct ad_defer step;
};

struct agentd_pool {
	ad_refcount refs;
	struct ad_list link;  /* of the runner's */
	pthread_mutex_t lock; /* guards host.loop against unrefs from other threads, and dropped */
	struct ad_pool_host host;
	struct pool_config config;
	struct ad_list entries;
	struct ad_list leftovers;
	struct spares spares;
	struct ad_timer timer;
	struct ad_defer settle, tend;
	struct waiter *on_pass; /* when nothing is going on any more */
	agentd_error *pass_error;
	uint32_t busy; /* stops and workers under way */
	uint32_t pins; /* calls of the loop that still use the pool */
	bool detached, closing, released;
	bool dropped; /* by somebody who left it to the loop, and is through with it */
	bool pass_wanted;
	uint32_t grace_ms;
	void (*closed)(void *userdata);
	void *closed_userdata;
};

static void advance(struct ad_pool_entry *entry);
static void close_output(struct ad_pool_entry *entry);
static void pool_free(agentd_pool *pool);
static void stop_session(struct ad_pool_entry *entry, uint32_t grace_ms);

static void say(const agentd_pool *pool, int32_t level, const char *message, const char *session,
		const agentd_error *err)
{
	if (!pool->detached)
		pool->host.log(level, message, session, err ? agentd_error_message(err) : NULL,
			       pool->host.userdata);
}

/* Between the two is whatever the loop calls here and may call somebody else, who may drop the
 * last references to the pool and the runner: they go at the end. */
static void enter(agentd_pool *pool)
{
	pool->pins++;
	pool->host.pin(pool->host.userdata);
}

static void leave(agentd_pool *pool)
{
	const struct ad_pool_host host = pool->host;

	if (--pool->pins == 0 && pool->released)
		pool_free(pool);
	host.unpin(host.userdata);
}

/* ---- waiting for the end of something */

static int wait_add(struct waiter **list, agentd_pool_fn done, void *userdata)
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

static void wait_over(agentd_pool *pool, struct waiter **list, const agentd_error *err)
{
	struct waiter *waiter = AD_STEAL(*list);

	while (waiter) {
		struct waiter *next = waiter->next;

		waiter->done(pool, err, waiter->userdata);
		free(waiter);
		waiter = next;
	}
}

static void wait_forget(struct waiter **list)
{
	while (*list) {
		struct waiter *waiter = *list;

		*list = waiter->next;
		free(waiter);
	}
}

static void begin_work(agentd_pool *pool)
{
	pool->busy++;
}

/* Takes err. */
static void end_work(agentd_pool *pool, agentd_error *err)
{
	if (!pool->pass_error)
		pool->pass_error = AD_STEAL(err);
	agentd_error_unref(err);
	pool->busy--;
	ad_defer(&pool->settle);
}

/* ---- entries */

bool ad_pool_id_valid(const char *id)
{
	for (size_t i = 0; i < ID_BYTES; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? id[i] != '-' : !id[i] || !strchr("0123456789abcdef", id[i]))
			return false;
	}
	return id[ID_BYTES] == '\0';
}

bool ad_pool_id_fold(const char *id, char ret[static AD_POOL_ID_SIZE])
{
	if (strlen(id) != ID_BYTES)
		return false;
	for (size_t i = 0; i < AD_POOL_ID_SIZE; i++)
		ret[i] = id[i] >= 'A' && id[i] <= 'F' ? (char)(id[i] - 'A' + 'a') : id[i];
	return ad_pool_id_valid(ret);
}

static struct ad_pool_entry *find(const agentd_pool *pool, const char *id)
{
	for (struct ad_list *node = pool->entries.next; node != &pool->entries; node = node->next) {
		struct ad_pool_entry *entry = AD_CONTAINER_OF(node, struct ad_pool_entry, link);

		if (strcmp(entry->id, id) == 0)
			return entry;
	}
	return NULL;
}

static void step(struct ad_defer *defer, void *userdata)
{
	struct ad_pool_entry *entry = userdata;
	agentd_pool *pool = entry->pool;

	(void)defer;
	enter(pool);
	ad_defer(&pool->tend);
	advance(entry);
	leave(pool);
}

static void timeout(struct ad_timer *timer, void *userdata)
{
	struct ad_pool_entry *entry = userdata;
	agentd_pool *pool = entry->pool;

	(void)timer;
	enter(pool);
	if (entry->state == STARTING) {
		ad_fail(&entry->error, AGENTD_ERR_TIMEOUT, NULL,
			"the session did not start in time");
		stop_session(entry, 0);
	} else if (entry->state == PREPARING) {
		(void)ad_task_kill(&entry->command);
	} else if (entry->state == STOPPING && !entry->stuck) {
		/* It keeps its place and its volume: whatever is left of it may still write. */
		entry->stuck = true;
		say(pool, AGENTD_LOG_ERROR, "A session does not end although it was killed",
		    entry->id, NULL);
		end_work(pool, NULL);
	} else if (entry->state == STOPPED) {
		ad_defer(&entry->step);
	}
	leave(pool);
}

static void forget_elsewhere(struct ad_pool_entry *entry)
{
	agentd_error_unref(AD_STEAL(entry->elsewhere));
}

static struct ad_pool_entry *entry_new(agentd_pool *pool, const char *id)
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
	ad_defer_init(&entry->step, pool->host.loop, step, entry);
	ad_timer_init(&entry->timer, pool->host.loop, timeout, entry);
	ad_list_append(&pool->entries, &entry->link);
	return entry;
}

static void entry_free(struct ad_pool_entry *entry)
{
	ad_list_remove(&entry->link);
	ad_defer_cancel(&entry->step);
	ad_timer_stop(&entry->timer);
	forget_elsewhere(entry);
	worker_free(entry->worker);
	agentd_error_unref(entry->worker_error);
	agentd_error_unref(entry->error);
	close_output(entry);
	ad_spec_copy_free(&entry->spec);
	volume_free(&entry->volume);
	wait_forget(&entry->on_stop);
	free(entry);
}

static bool in_use(const struct ad_pool_entry *entry)
{
	return entry->held || !ad_list_empty(&entry->waiting);
}

static uint32_t alive(const agentd_pool *pool)
{
	uint32_t count = 0;

	for (struct ad_list *node = pool->entries.next; node != &pool->entries; node = node->next)
		count += AD_CONTAINER_OF(node, struct ad_pool_entry, link)->state != STOPPED;
	return count;
}

static bool is_full(const agentd_pool *pool)
{
	return alive(pool) + spares_count(&pool->spares) >= pool->config.max_vms;
}

static bool all_stopped(const agentd_pool *pool)
{
	if (!spares_over(&pool->spares))
		return false;
	for (struct ad_list *node = pool->entries.next; node != &pool->entries; node = node->next) {
		const struct ad_pool_entry *entry = AD_CONTAINER_OF(node, struct ad_pool_entry,
								    link);

		if (entry->state != STOPPED && !entry->stuck)
			return false;
	}
	return true;
}

/* ---- leases */

static void lease_out(struct ad_pool_lease *lease)
{
	ad_timer_stop(&lease->timer);
	ad_list_remove(&lease->link);
}

/* Takes err. */
static void refuse(struct ad_pool_lease *lease, agentd_error *err)
{
	lease_out(lease);
	lease->entry = NULL;
	lease->granted(lease, NULL, err);
}

static void refuse_all(struct ad_pool_entry *entry, const agentd_error *err)
{
	while (!ad_list_empty(&entry->waiting))
		refuse(AD_CONTAINER_OF(entry->waiting.next, struct ad_pool_lease, link),
		       agentd_error_ref((agentd_error *)(uintptr_t)err));
}

static void grant(struct ad_pool_entry *entry)
{
	struct ad_pool_lease *lease = AD_CONTAINER_OF(entry->waiting.next, struct ad_pool_lease,
						      link);

	lease_out(lease);
	entry->held = lease;
	volume_touch(&entry->volume);
	lease->granted(lease, entry->task.state, NULL);
}

static void acquire_timeout(struct ad_timer *timer, void *userdata)
{
	struct ad_pool_lease *lease = userdata;
	agentd_pool *pool = lease->entry->pool;
	agentd_error *err = NULL;

	(void)timer;
	enter(pool);
	ad_defer(&pool->tend);
	ad_fail(&err, AGENTD_ERR_TIMEOUT, NULL,
		"the session %s was not free within acquire_timeout_ms (%llu)%s%s",
		lease->entry->id, (unsigned long long)pool->config.acquire_timeout_ms,
		lease->entry->elsewhere ? ": " : "",
		lease->entry->elsewhere ? agentd_error_message(lease->entry->elsewhere) : "");
	refuse(lease, err);
	leave(pool);
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
	entry = find(pool, id);
	if (!entry)
		entry = entry_new(pool, id);
	if (!entry)
		return ad_fail_nomem(reterr);
	ad_timer_init(&lease->timer, pool->host.loop, acquire_timeout, lease);
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
	lease_out(lease);
	if (entry->held == lease) {
		entry->held = NULL;
		volume_touch(&entry->volume);
		if (broken && entry->state == READY)
			stop_session(entry, 0);
	}
	entry->last_used = ad_sys_now_ns();
	ad_defer(&entry->step);
}

/* ---- what the backend reports of a session */

static struct ad_pool_entry *of_task(agentd_task *task)
{
	return AD_CONTAINER_OF(task, struct ad_pool_entry, task);
}

static void session_started(agentd_task *task, int32_t pid)
{
	struct ad_pool_entry *entry = of_task(task);

	(void)pid;
	/* It may be on its way out already. */
	if (entry->state != STARTING)
		return;
	entry->state = PREPARING;
	entry->was_spare = false; /* what goes wrong now is its own */
	ad_timer_stop(&entry->timer);
	ad_defer(&entry->step);
}

static void session_closed(agentd_task *task)
{
	of_task(task)->over = true;
	ad_defer(&of_task(task)->step);
}

static void session_failed(agentd_task *task, agentd_error *err)
{
	struct ad_pool_entry *entry = of_task(task);

	agentd_error_unref(entry->error);
	entry->error = err;
	session_closed(task);
}

static void session_log(agentd_task *task, int32_t level, const char *message)
{
	struct ad_pool_entry *entry = of_task(task);

	say(entry->pool, level, message, entry->id, NULL);
}

static void denied(agentd_task *task, const char *kind, const char *target, const char *rule,
		   const char *remedy)
{
	(void)kind, (void)rule, (void)remedy;
	session_log(task, AGENTD_LOG_WARN, target);
}

static const struct ad_task_listener session_listener = {
	.started = session_started,
	.denied = denied,
	.closed = session_closed,
	.failed = session_failed,
	.log = session_log,
	.closed_late = session_closed,
};

/* ---- starting */

static int find_backend(const agentd_pool *pool, struct ad_backend **ret, agentd_error **reterr)
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

/* From a spare, if there is one that is of use. NO_ROOM: not yet. */
enum { NO_ROOM = 1 };

static int start_task(struct ad_pool_entry *entry, struct ad_backend *backend,
		      agentd_error **reterr)
{
	agentd_pool *pool = entry->pool;
	int r;

	entry->was_spare = !entry->spare_failed &&
			   spares_take(&pool->spares, &entry->task, &session_listener,
				       &entry->spec.spec);
	if (entry->was_spare)
		return 0;
	if (alive(pool) + spares_count(&pool->spares) > pool->config.max_vms)
		return NO_ROOM;
	entry->spare_failed = false;
	r = ad_session_start(&entry->task, backend, &session_listener, &entry->spec.spec, reterr);
	if (r < 0)
		ad_task_release(&entry->task);
	return r;
}

static int start_session(struct ad_pool_entry *entry, agentd_error **reterr)
{
	const struct ad_pool_lease *first = AD_CONTAINER_OF(entry->waiting.next,
							    struct ad_pool_lease, link);
	struct ad_backend *backend;
	int r = find_backend(entry->pool, &backend, reterr);

	if (r == 0)
		r = volume_open(&entry->volume, entry->pool->config.volume_root, reterr);
	if (r < 0)
		return r;
	volume_touch(&entry->volume);
	r = ad_spec_copy(&entry->spec, first->spec, reterr);
	if (r == 0)
		r = ad_timer_start(&entry->timer, backend->ops.setup_max_ms * AD_NS_PER_MS);
	if (r == 0) {
		entry->state = STARTING;
		entry->over = entry->stuck = entry->was_ready = false;
		entry->used_here = true;
		forget_elsewhere(entry);
		r = start_task(entry, backend, reterr);
	}
	if (r == 0 && entry->pool->config.min_warm > 0)
		spares_make_like(&entry->pool->spares, &entry->spec.spec);
	if (r != 0) {
		entry->state = STOPPED;
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
	struct ad_pool_entry *oldest = NULL;

	for (struct ad_list *node = pool->entries.next; node != &pool->entries; node = node->next) {
		struct ad_pool_entry *entry = AD_CONTAINER_OF(node, struct ad_pool_entry, link);

		if (entry->state == STOPPING && !entry->stuck)
			return true;
		if (entry->state == READY && !in_use(entry) &&
		    (!oldest || entry->last_used < oldest->last_used))
			oldest = entry;
	}
	if (oldest)
		stop_session(oldest, STOP_GRACE_MS);
	return oldest;
}

static void try_start(struct ad_pool_entry *entry)
{
	agentd_pool *pool = entry->pool;
	ad_autoerror agentd_error *err = NULL;
	int r;

	/* A spare's place is the session's that takes it. */
	if (is_full(pool) && (entry->spare_failed || spares_ready(&pool->spares) == 0)) {
		if (spares_make_room(&pool->spares) || make_room(pool))
			return; /* advance() comes again when it has stopped */
		ad_fail(&err, AGENTD_ERR_LIMIT, NULL, "VM pool is at capacity (%llu sessions)",
			(unsigned long long)pool->config.max_vms);
		refuse_all(entry, err);
		return;
	}
	r = start_session(entry, &err);
	if (r == AGENTD_ERR_AGAIN && ad_timer_start(&entry->timer, LOOK_MS * AD_NS_PER_MS) == 0) {
		forget_elsewhere(entry);
		entry->elsewhere = AD_STEAL(err);
	} else if (r < 0) {
		refuse_all(entry, err);
	}
}

/* ---- once in a new volume */

static struct ad_pool_entry *of_command(agentd_task *task)
{
	return AD_CONTAINER_OF(task, struct ad_pool_entry, command);
}

/* The end of it is kept. */
static void keep_said(struct ad_pool_entry *entry, const char *from, size_t len)
{
	size_t keep, most = sizeof(entry->said) - 1;

	if (len > most) {
		from += len - most;
		len = most;
	}
	keep = entry->said_len + len > most ? most - len : entry->said_len;
	memmove(entry->said, entry->said + entry->said_len - keep, keep);
	memcpy(entry->said + keep, from, len);
	entry->said_len = keep + len;
}

/* Everything is read, so that nobody waits for it. False: no more. */
static bool read_said(struct ad_pool_entry *entry)
{
	char buf[4096];
	ssize_t n = read(ad_io_fd(&entry->output), buf, sizeof(buf));

	if (n < 0)
		return errno == EINTR;
	keep_said(entry, buf, (size_t)n);
	return n > 0;
}

static int32_t command_output(agentd_task *task, agentd_stream stream, const uint8_t *data,
			      size_t len)
{
	(void)stream;
	keep_said(of_command(task), (const char *)data, len);
	return AGENTD_SINK_CONTINUE;
}

static void close_output(struct ad_pool_entry *entry)
{
	if (!entry->output_open)
		return;
	ad_io_stop(&entry->output);
	close(ad_io_fd(&entry->output));
	entry->output_open = false;
}

static void said(struct ad_io *io, void *userdata)
{
	(void)io;
	if (!read_said(userdata))
		ad_io_stop(io);
}

static int command_fd(agentd_task *task, agentd_stream stream, int fd)
{
	struct ad_pool_entry *entry = of_command(task);

	if (stream != AGENTD_STDOUT || entry->output_open) {
		close(fd);
		return 0;
	}
	entry->output_open = true;
	ad_io_init(&entry->output, entry->pool->host.loop, fd, AD_IO_READ, said, entry);
	return ad_io_start(&entry->output);
}

static void command_exited(agentd_task *task, int wait_status, uint64_t at_ns)
{
	(void)at_ns;
	of_command(task)->wait_status = wait_status;
	(void)ad_task_kill(task);
}

static void command_closed(agentd_task *task)
{
	of_command(task)->command_over = true;
	ad_defer(&of_command(task)->step);
}

static void command_failed(agentd_task *task, agentd_error *err)
{
	struct ad_pool_entry *entry = of_command(task);

	agentd_error_unref(entry->error);
	entry->error = err;
	entry->wait_status = W_EXITCODE(1, 0);
	command_closed(task);
}

static void command_started(agentd_task *task, int32_t pid)
{
	(void)task, (void)pid;
}

static void command_log(agentd_task *task, int32_t level, const char *message)
{
	say(of_command(task)->pool, level, message, of_command(task)->id, NULL);
}

static void command_denied(agentd_task *task, const char *kind, const char *target,
			   const char *rule, const char *remedy)
{
	(void)kind, (void)rule, (void)remedy;
	command_log(task, AGENTD_LOG_WARN, target);
}

static const struct ad_task_listener command_listener = {
	.started = command_started,
	.output = command_output,
	.attach_fd = command_fd,
	.denied = command_denied,
	.exited = command_exited,
	.closed = command_closed,
	.failed = command_failed,
	.log = command_log,
	.closed_late = command_closed,
};

/* False: there is nothing to do in this step. */
static bool fill_command(struct ad_pool_entry *entry)
{
	static const char nix[] = "command -v nix >/dev/null 2>&1 || exit 69\n"
				  "exec nix develop \"$1\" --command true >/dev/null\n";
	const struct pool_config *config = &entry->pool->config;
	const char *argv[] = { "/bin/sh", "-c", nix, "sh", config->nix_profile, NULL };

	entry->command_spec = entry->spec.spec;
	if (entry->preparing == STEP_NIX && config->nix_profile) {
		memcpy(entry->nix_argv, argv, sizeof(argv));
		entry->command_spec.argv = entry->nix_argv;
		return true;
	}
	entry->command_spec.argv = config->bootstrap_argv;
	return entry->preparing == STEP_BOOTSTRAP && config->bootstrap_command;
}

static void start_command(struct ad_pool_entry *entry)
{
	int r;

	entry->command_spec.session = entry->task.state;
	entry->command_spec.flags = AGENTD_EXEC_MERGE_STDERR;
	entry->command_over = false;
	entry->said_len = 0;
	r = ad_task_start(&entry->command, entry->task.backend, &command_listener,
			  &entry->command_spec, &entry->error);
	if (r == 0)
		r = ad_timer_start(&entry->timer, PREPARE_MAX_S * AD_NS_PER_S);
	if (r < 0 && !entry->command.running)
		ad_task_release(&entry->command);
	if (r < 0)
		stop_session(entry, 0);
}

/* What it wrote last, for the error, in a line. */
static void end_said(struct ad_pool_entry *entry)
{
	while (entry->output_open && read_said(entry))
		;
	close_output(entry);
	while (entry->said_len > 0 && entry->said[entry->said_len - 1] == '\n')
		entry->said_len--;
	entry->said[entry->said_len] = '\0';
	for (char *at = entry->said; *at; at++)
		if ((unsigned char)*at < ' ')
			*at = ' ';
}

static void command_is_over(struct ad_pool_entry *entry)
{
	bool ok = WIFEXITED(entry->wait_status) && WEXITSTATUS(entry->wait_status) == 0;

	ad_timer_stop(&entry->timer);
	ad_task_release(&entry->command);
	entry->command_over = false;
	end_said(entry);
	if (entry->preparing == STEP_NIX && WIFEXITED(entry->wait_status) &&
	    WEXITSTATUS(entry->wait_status) == NO_NIX) {
		say(entry->pool, AGENTD_LOG_WARN, "nix_profile is set and there is no nix",
		    entry->id, NULL);
		ok = true;
	}
	if (ok) {
		entry->preparing++;
		return;
	}
	if (!entry->error)
		ad_fail(&entry->error, AGENTD_ERR_BACKEND, NULL, "%s: %s",
			entry->preparing == STEP_NIX ? "nix develop failed" :
						       "Bootstrap command failed",
			*entry->said ? entry->said : "it wrote nothing");
	stop_session(entry, STOP_GRACE_MS);
}

static void prepare(struct ad_pool_entry *entry)
{
	if (entry->command.backend) {
		if (!entry->command_over)
			return;
		command_is_over(entry);
		if (entry->state != PREPARING)
			return;
	} else if (!volume_is_new(&entry->volume)) {
		entry->preparing = STEP_DONE;
	} else {
		entry->preparing = STEP_NIX;
	}
	while (entry->preparing != STEP_DONE && !fill_command(entry))
		entry->preparing++;
	if (entry->preparing != STEP_DONE) {
		start_command(entry);
		return;
	}
	volume_not_new(&entry->volume);
	entry->state = READY;
	entry->was_ready = true;
	entry->last_used = ad_sys_now_ns();
}

/* ---- stopping */

static void stop_session(struct ad_pool_entry *entry, uint32_t grace_ms)
{
	const uint64_t close_max_ms = entry->task.backend->ops.close_max_ms;

	if (entry->state != STOPPING) {
		entry->state = STOPPING;
		begin_work(entry->pool);
		(void)ad_timer_start(&entry->timer, (grace_ms + close_max_ms) * AD_NS_PER_MS);
	}
	(void)ad_session_stop(&entry->task, grace_ms);
}

/* There is room for others now. */
static void wake_waiting(agentd_pool *pool)
{
	for (struct ad_list *node = pool->entries.next; node != &pool->entries; node = node->next) {
		struct ad_pool_entry *other = AD_CONTAINER_OF(node, struct ad_pool_entry, link);

		if (!ad_list_empty(&other->waiting))
			ad_defer(&other->step);
	}
}

/* The backend has nothing of it any more. */
static void session_is_over(struct ad_pool_entry *entry)
{
	bool worked = entry->state == STOPPING && !entry->stuck, started = entry->was_ready;
	agentd_pool *pool = entry->pool;
	ad_autoerror agentd_error *err = AD_STEAL(entry->error);

	if (entry->command.backend) {
		ad_timer_stop(&entry->timer);
		ad_task_release(&entry->command);
		close_output(entry);
	}
	ad_timer_stop(&entry->timer);
	ad_task_release(&entry->task);
	ad_spec_copy_free(&entry->spec);
	volume_touch(&entry->volume);
	volume_unlock(&entry->volume);
	entry->last_used = ad_sys_now_ns();
	entry->state = STOPPED;
	entry->over = entry->stop_wanted = entry->stuck = false;
	ad_defer(&pool->settle);
	if (err)
		say(pool, AGENTD_LOG_WARN,
		    started ? "A session died" : "A session could not be used", entry->id, err);
	/* One that died in use, or idle, is started again; one that cannot start is not, unless
	 * that may be its spare's fault. */
	entry->spare_failed = err && !started && entry->was_spare;
	if (err && !started && !entry->was_spare)
		refuse_all(entry, err);
	if (worked)
		end_work(pool, agentd_error_ref(err));
	wait_over(pool, &entry->on_stop, err);
	wake_waiting(pool);
}

/* ---- slow work */

static void entry_worked(agentd_error *err, void *userdata)
{
	struct ad_pool_entry *entry = userdata;

	entry->worker_error = err;
	entry->worker_over = true;
	ad_defer(&entry->step);
}

static void work(struct ad_pool_entry *entry, const char *const *args,
		 void (*worked)(struct ad_pool_entry *entry, agentd_error *err))
{
	agentd_error *err = NULL;

	entry->worked = worked;
	begin_work(entry->pool);
	if (worker_start(&entry->pool->host, args, entry_worked, entry, &entry->worker, &err) < 0) {
		volume_unlock(&entry->volume);
		end_work(entry->pool, err);
	}
}

static void work_is_over(struct ad_pool_entry *entry)
{
	agentd_error *err = AD_STEAL(entry->worker_error);

	worker_free(AD_STEAL(entry->worker));
	entry->worker_over = false;
	entry->worked(entry, err);
	volume_unlock(&entry->volume);
	end_work(entry->pool, err);
}

static void backed_up(struct ad_pool_entry *entry, agentd_error *err)
{
	ad_autoerror agentd_error *own = NULL;

	if (!err && volume_set_backed_up(&entry->volume, &own) == 0) {
		entry->backup_failed = false;
		say(entry->pool, AGENTD_LOG_INFO, "Backed up a session", entry->id, NULL);
		return;
	}
	say(entry->pool, entry->backup_failed ? AGENTD_LOG_DEBUG : AGENTD_LOG_WARN,
	    "A session could not be backed up; it is tried again and not pruned before", entry->id,
	    err ? err : own);
	entry->backup_failed = true;
}

static void back_up(struct ad_pool_entry *entry)
{
	ad_autobuf struct ad_buf file = { 0 }, part = { 0 };
	const char *dest = entry->pool->config.backup_destination;
	const char *args[] = { "pack", entry->volume.dir, NULL, NULL, NULL };
	time_t now = time(NULL);
	struct tm tm;
	char stamp[32];

	gmtime_r(&now, &tm);
	strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &tm);
	ad_buf_printf(&part, "%s/.%s.part", dest, entry->id);
	ad_buf_printf(&file, "%s/%s-%s.tar.zst", dest, entry->id, stamp);
	if (part.failed || file.failed) {
		volume_unlock(&entry->volume);
		return;
	}
	args[2] = part.data;
	args[3] = file.data;
	work(entry, args, backed_up);
}

static void leftover_step(struct ad_defer *defer, void *userdata)
{
	struct leftover *left = userdata;
	agentd_pool *pool = left->pool;

	(void)defer;
	ad_list_remove(&left->link);
	worker_free(left->worker);
	free(left->path);
	free(left);
	end_work(pool, NULL);
}

static void leftover_worked(agentd_error *err, void *userdata)
{
	struct leftover *left = userdata;

	if (err)
		say(left->pool, AGENTD_LOG_WARN, "Failed to prune VM directory", NULL, err);
	if (err && !left->pool->pass_error)
		left->pool->pass_error = agentd_error_ref(err);
	agentd_error_unref(err);
	ad_defer(&left->step);
}

/* Removed in the background; what is left of it is found by the next pass. */
static void remove_tree(agentd_pool *pool, const char *path)
{
	struct leftover *left;
	const char *args[] = { "remove", path, NULL };

	for (struct ad_list *node = pool->leftovers.next; node != &pool->leftovers;
	     node = node->next)
		if (strcmp(AD_CONTAINER_OF(node, struct leftover, link)->path, path) == 0)
			return;
	left = calloc(1, sizeof(*left));
	if (!left)
		return;
	left->pool = pool;
	left->path = strdup(path);
	ad_defer_init(&left->step, pool->host.loop, leftover_step, left);
	if (!left->path ||
	    worker_start(&pool->host, args, leftover_worked, left, &left->worker, NULL) < 0) {
		free(left->path);
		free(left);
		return;
	}
	ad_list_append(&pool->leftovers, &left->link);
	begin_work(pool);
}

/* The entry is gone afterwards. */
static void prune(struct ad_pool_entry *entry)
{
	agentd_pool *pool = entry->pool;
	ad_autoerror agentd_error *err = NULL;
	ad_autofree char *path = volume_discard(&entry->volume, pool->config.volume_root, entry->id,
						&err);

	if (!path) {
		say(pool, AGENTD_LOG_WARN, "A session could not be pruned", entry->id, err);
		volume_unlock(&entry->volume);
		return;
	}
	say(pool, AGENTD_LOG_INFO, "Pruned a session", entry->id, NULL);
	entry_free(entry);
	remove_tree(pool, path);
}

/* ---- maintenance */

static void maintain_stopped(struct ad_pool_entry *entry)
{
	const struct pool_config *config = &entry->pool->config;
	uint64_t unused = volume_unused_s(&entry->volume);
	uint64_t here = (ad_sys_now_ns() - entry->last_used) / AD_NS_PER_S;
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
	if (entry->used_here && here < config->prune_s)
		due = false;
	if (!due && !(wants && config->backup_s && unused >= config->backup_s))
		return;
	if (volume_lock(&entry->volume, &err) < 0) {
		/* Whoever uses it looks after it. */
		if (agentd_error_code(err) != AGENTD_ERR_AGAIN)
			say(entry->pool, AGENTD_LOG_WARN, "A session could not be looked after",
			    entry->id, err);
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

static void maintain(struct ad_pool_entry *entry)
{
	uint64_t idle = (ad_sys_now_ns() - entry->last_used) / AD_NS_PER_S;

	if (in_use(entry) || entry->worker)
		return;
	if (entry->state == READY && idle >= entry->pool->config.idle_s)
		stop_session(entry, STOP_GRACE_MS);
	else if (entry->state == STOPPED)
		maintain_stopped(entry);
}

static void adopt(const char *id, void *userdata)
{
	agentd_pool *pool = userdata;

	if (!find(pool, id))
		(void)entry_new(pool, id);
}

static void found_leftover(const char *path, void *userdata)
{
	remove_tree(userdata, path);
}

static void rearm(agentd_pool *pool)
{
	if (pool->config.enabled)
		(void)ad_timer_start(&pool->timer, MAINTAIN_NS);
}

static void pass(agentd_pool *pool)
{
	ad_autoerror agentd_error *err = NULL;

	pool->pass_wanted = false;
	if (!pool->config.enabled)
		return;
	if (volume_scan(pool->config.volume_root, adopt, found_leftover, pool, &err) < 0)
		say(pool, AGENTD_LOG_WARN, "Volumes could not be looked for", NULL, err);
	for (struct ad_list *node = pool->entries.next, *next; node != &pool->entries;
	     node = next) {
		next = node->next;
		maintain(AD_CONTAINER_OF(node, struct ad_pool_entry, link));
	}
	rearm(pool);
}

/* It frees entries: not where one of them may be in use, as in a callback. */
static void want_pass(agentd_pool *pool)
{
	pool->pass_wanted = true;
	ad_defer(&pool->settle);
}

static void timer_fired(struct ad_timer *timer, void *userdata)
{
	(void)timer;
	want_pass(userdata);
}

/* Nothing is under way. */
static void at_rest(agentd_pool *pool)
{
	ad_autoerror agentd_error *err = AD_STEAL(pool->pass_error);

	wait_over(pool, &pool->on_pass, err);
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
	enter(pool);
	if (pool->pass_wanted)
		pass(pool);
	if (pool->busy == 0)
		at_rest(pool);
	leave(pool);
}

/* ---- spares */

/* Who waits for a session is not to wait for a spare. */
static bool is_starting(const agentd_pool *pool)
{
	for (struct ad_list *node = pool->entries.next; node != &pool->entries; node = node->next) {
		const struct ad_pool_entry *entry = AD_CONTAINER_OF(node, struct ad_pool_entry,
								    link);

		if (entry->state == STARTING || entry->state == PREPARING ||
		    (entry->state == STOPPED && !ad_list_empty(&entry->waiting)))
			return true;
	}
	return false;
}

static void tend(struct ad_defer *defer, void *userdata)
{
	agentd_pool *pool = userdata;
	const struct pool_config *config = &pool->config;
	struct ad_backend *backend;
	uint64_t room = config->max_vms - alive(pool);

	(void)defer;
	enter(pool);
	if (pool->closing)
		spares_tend(&pool->spares, NULL, 0);
	else if (config->enabled && config->min_warm > 0 && !is_starting(pool) &&
		 find_backend(pool, &backend, NULL) == 0)
		spares_tend(&pool->spares, backend,
			    (uint32_t)(config->min_warm < room ? config->min_warm : room));
	leave(pool);
}

static void spares_changed(void *userdata)
{
	agentd_pool *pool = userdata;

	wake_waiting(pool);
	ad_defer(&pool->settle);
	ad_defer(&pool->tend);
}

/* ---- what is next */

static void advance(struct ad_pool_entry *entry)
{
	agentd_pool *pool = entry->pool;

	if (entry->worker_over)
		work_is_over(entry);
	if (entry->over && !entry->held)
		session_is_over(entry);
	else if (entry->over)
		return; /* its command hears of it first */
	if (entry->state == PREPARING)
		prepare(entry);
	if (entry->state == STOPPING || entry->held)
		return;
	if (entry->stop_wanted || pool->closing) {
		/* One that starts is not waited for when nobody wants it any more. */
		if (entry->state == READY ||
		    (entry->state != STOPPED && (pool->closing || ad_list_empty(&entry->waiting))))
			stop_session(entry, pool->closing ? pool->grace_ms : STOP_GRACE_MS);
		if (entry->state == STOPPED && entry->stop_wanted) {
			entry->stop_wanted = false;
			wait_over(pool, &entry->on_stop, NULL);
		}
		return;
	}
	if (ad_list_empty(&entry->waiting))
		return;
	if (entry->state == READY)
		grant(entry);
	else if (entry->state == STOPPED && !entry->worker)
		try_start(entry);
}

/* ---- for the runner */

/* A backend may come later: then its sessions are refused. */
static int check_spares(const agentd_pool *pool, agentd_error **reterr)
{
	ad_autoerror agentd_error *err = NULL;
	struct ad_backend *backend;
	int r = find_backend(pool, &backend, &err);

	if (r == 0 || r == AGENTD_ERR_NOTFOUND)
		return 0;
	if (reterr)
		*reterr = AD_STEAL(err);
	return r;
}

/* Nobody has a reference any more. */
static void release(agentd_pool *pool)
{
	pool->released = true;
	if (pool->pins == 0)
		pool_free(pool);
}

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
	ad_list_init(&pool->leftovers);
	ad_timer_init(&pool->timer, host->loop, timer_fired, pool);
	ad_defer_init(&pool->settle, host->loop, settle, pool);
	ad_defer_init(&pool->tend, host->loop, tend, pool);
	r = spares_init(&pool->spares, &pool->host, pool->config.options, spares_changed, pool,
			reterr);
	if (r == 0 && pool->config.enabled && pool->config.min_warm > 0)
		r = check_spares(pool, reterr);
	if (r == 0 && pool->config.enabled)
		r = volume_scan(pool->config.volume_root, adopt, found_leftover, pool, reterr);
	if (r < 0) {
		agentd_pool_unref(pool);
		return r;
	}
	rearm(pool);
	ad_defer(&pool->tend);
	*ret = pool;
	return 0;
}

static void detach(agentd_pool *pool)
{
	if (pool->detached)
		return;
	pool->detached = true;
	ad_list_remove(&pool->link);
	ad_timer_stop(&pool->timer);
	ad_defer_cancel(&pool->settle);
	ad_defer_cancel(&pool->tend);
	spares_free(&pool->spares);
	while (!ad_list_empty(&pool->entries)) {
		struct ad_pool_entry *entry = AD_CONTAINER_OF(pool->entries.next,
							      struct ad_pool_entry, link);

		while (!ad_list_empty(&entry->waiting)) {
			struct ad_pool_lease *lease = AD_CONTAINER_OF(entry->waiting.next,
								      struct ad_pool_lease, link);

			lease_out(lease);
			lease->entry = NULL;
		}
		if (entry->held)
			AD_STEAL(entry->held)->entry = NULL;
		ad_task_abandon(&entry->command);
		ad_task_abandon(&entry->task);
		entry_free(entry);
	}
	while (!ad_list_empty(&pool->leftovers)) {
		struct leftover *left = AD_CONTAINER_OF(pool->leftovers.next, struct leftover,
							link);

		ad_list_remove(&left->link);
		ad_defer_cancel(&left->step);
		worker_free(left->worker);
		free(left->path);
		free(left);
	}
	wait_forget(&pool->on_pass);
	agentd_error_unref(AD_STEAL(pool->pass_error));
	pool->busy = 0;
	pthread_mutex_lock(&pool->lock);
	pool->host.loop = NULL;
	pthread_mutex_unlock(&pool->lock);
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

		if (pool->closing && !pool->closed)
			continue; /* is over */
		any = true;
		if (pool->closing)
			continue;
		pool->closing = true;
		pool->pass_wanted = false;
		pool->grace_ms = grace_ms;
		pool->closed = done;
		pool->closed_userdata = userdata;
		ad_timer_stop(&pool->timer);
		for (struct ad_list *at = pool->entries.next; at != &pool->entries; at = at->next)
			ad_defer(&AD_CONTAINER_OF(at, struct ad_pool_entry, link)->step);
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

/* ---- public */

agentd_pool *agentd_pool_ref(agentd_pool *pool)
{
	if (pool)
		ad_ref(&pool->refs);
	return pool;
}

static void pool_free(agentd_pool *pool)
{
	detach(pool);
	pthread_mutex_destroy(&pool->lock);
	pool_config_free(&pool->config);
	free(pool->host.worker);
	free(pool);
}

static const char *state_name(const struct ad_pool_entry *entry)
{
	static const char *const names[] = { "stopped", "starting", "preparing", "idle",
					     "stopping" };

	if (entry->state == STOPPED && entry->worker)
		return "in maintenance";
	return entry->held ? "busy" : names[entry->state];
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
	if (wait_add(&pool->on_pass, done, userdata) < 0)
		return AGENTD_ERR_NOMEM;
	want_pass(pool);
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
	entry = pool->config.enabled && ad_pool_id_fold(session_id, id) ? find(pool, id) : NULL;
	if (!entry)
		return AGENTD_ERR_NOTFOUND;
	if (wait_add(&entry->on_stop, done, userdata) < 0)
		return AGENTD_ERR_NOMEM;
	entry->stop_wanted = true;
	ad_defer(&entry->step);
	return 0;
}

int agentd_pool_to_json(const agentd_pool *pool, char **ret, size_t *ret_len, agentd_error **reterr)
{
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
	for (struct ad_list *node = pool->entries.next; node != &pool->entries; node = node->next) {
		const struct ad_pool_entry *entry = AD_CONTAINER_OF(node, struct ad_pool_entry,
								    link);
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
