/* SPDX-License-Identifier: MIT */
/* The parts of a pool, private to it, from the bottom to the top:
 *   config.c    what the host has asked for;
 *   volume.c    the files of a session, and who may use them;
 *   spare.c     sessions that nobody has asked for yet;
 *   worker.c    slow work, in other processes;
 *   waiter.c    who is told when something has ended;
 *   prepare.c   what is done once in a new volume;
 *   lease.c     who has a session, and who waits for it;
 *   entry.c     one session: when it starts and stops, and what is next;
 *   maintain.c  what becomes of sessions that nobody uses;
 *   pool.c      all of them, for the runner and the public. */
#ifndef AD_POOL_PRIVATE_H
#define AD_POOL_PRIVATE_H

#include <pthread.h>

#include "pool/pool.h"

/* ---- config.c */

struct pool_config {
	bool enabled, fallback;
	char *volume_root, *backup_destination, *bootstrap_command, *nix_profile, *backend;
	char *options;           /* of the backend: JSON */
	struct ad_strlist shell; /* with its arguments */
	struct ad_strlist env;   /* name, value, ... */
	const char **shell_argv; /* the same with NULL at the end */
	const char **bootstrap_argv;
	const char **env_vector;
	uint64_t max_vms, min_warm, idle_s, prune_s, backup_s; /* backup_s 0: never */
	uint64_t acquire_timeout_ms;
};

int pool_config_read(struct pool_config *ret, const char *json, size_t len, agentd_error **reterr);
void pool_config_free(struct pool_config *config);

/* ---- volume.c: ROOT/UUID/{lock,new,backup,volume/}. Times are of the wall clock, in
 * seconds, for they are compared by later processes too. */

struct volume {
	char *dir;
	int lock; /* held while somebody works with it, or -1 */
};

/* Nothing is touched. */
int volume_init(struct volume *volume, const char *root, const char *id, agentd_error **reterr);
void volume_free(struct volume *volume);
bool volume_exists(const struct volume *volume);
/* Make what is missing and lock it. AGENTD_ERR_AGAIN: somebody else has it. */
int volume_open(struct volume *volume, const char *root, agentd_error **reterr);
/* Lock one that exists. */
int volume_lock(struct volume *volume, agentd_error **reterr);
void volume_unlock(struct volume *volume);
/* It is in use now: no backup is of how it is. */
void volume_touch(const struct volume *volume);
/* How long ago that was; 0 if the clock says the future. */
uint64_t volume_unused_s(const struct volume *volume);
/* What is to be done once in a new one is still to be done. */
bool volume_is_new(const struct volume *volume);
void volume_not_new(const struct volume *volume);
/* There is a backup of how it is now. */
bool volume_backed_up(const struct volume *volume);
int volume_set_backed_up(const struct volume *volume, agentd_error **reterr);
/* Out of the way, to be removed: malloc'ed path, or NULL and *reterr. */
char *volume_discard(struct volume *volume, const char *root, const char *id,
		     agentd_error **reterr);
/* Each id below root that has a volume, and each discarded folder that was left. */
int volume_scan(const char *root, void (*found)(const char *id, void *userdata),
		void (*leftover)(const char *path, void *userdata), void *userdata,
		agentd_error **reterr);

/* ---- spare.c: sessions without a volume, that nobody has asked for yet */

struct spares {
	const struct ad_pool_host *host;
	/* From the loop: one is ready or gone, or may be tried again. */
	void (*changed)(void *userdata);
	void *userdata;
	struct ad_list list;
	struct ad_spec_copy like; /* what the next one is for */
	struct ad_timer timer;
	uint64_t retry_ns, not_before;
};

/* Of the kind that options of the backend ask for, until spares_make_like(). */
int spares_init(struct spares *spares, const struct ad_pool_host *host, const char *options,
		void (*changed)(void *userdata), void *userdata, agentd_error **reterr);
void spares_free(struct spares *spares);
/* The next ones are for sessions like this one. */
void spares_make_like(struct spares *spares, const agentd_spec *spec);
/* Have so many, or as many as there is room for with those that do not end: one more is begun,
 * unless one is under way or it is too early after a failure; those who are too many end.
 * backend: unless wanted is 0. */
void spares_tend(struct spares *spares, struct ad_backend *backend, uint64_t wanted, uint64_t room);
/* All that take a place. */
uint32_t spares_count(const struct spares *spares);
uint32_t spares_ready(const struct spares *spares);
/* None will end any more. */
bool spares_over(const struct spares *spares);
/* One ends for another session: changed() follows. False: there is none to end. */
bool spares_make_room(struct spares *spares);
/* task becomes the session of one that is ready, on its way to started. False: none was of use. */
bool spares_take(struct spares *spares, struct agentd_task *task,
		 const struct ad_task_listener *listener, const agentd_spec *spec);

/* ---- worker.c: slow work, in a process of its own that the helper starts */

struct worker;
typedef void (*worker_fn)(agentd_error *err, void *userdata); /* owns err; from the loop */
/* argv without the program. */
int worker_start(const struct ad_pool_host *host, const char *const *args, worker_fn fn,
		 void *userdata, struct worker **ret, agentd_error **reterr);
/* After fn was called, or to forget it: it is killed then. */
void worker_free(struct worker *worker);

/* ---- waiter.c: those who are told when something has ended, in the order in which they asked */

struct waiter;
/* done: NULL for nobody. AGENTD_ERR_NOMEM. */
int waiters_add(struct waiter **list, agentd_pool_fn done, void *userdata);
/* Each is called, and the list empty before. */
void waiters_tell(struct waiter **list, agentd_pool *pool, const agentd_error *err);
void waiters_forget(struct waiter **list);

/* ---- prepare.c: what is done once in a new volume, by commands of its session */

enum { PREPARE_SAID_MAX = 1024 };

enum prepare_step { PREPARE_NIX, PREPARE_BOOTSTRAP, PREPARE_DONE };

struct preparation {
	enum prepare_step step;
	struct agentd_task command;
	agentd_spec spec; /* its; borrows of the session's */
	const char *nix_argv[6];
	struct ad_io output;
	bool output_open;
	bool over;                   /* the command is */
	bool timed_out;              /* and is being killed */
	int wait_status;             /* its */
	char said[PREPARE_SAID_MAX]; /* the end of what it wrote */
	size_t said_len;
};

/* The session is there: do what is next. True: all has been done, and is not done again. When a
 * command cannot be started or has failed entry->error says so, and the session is stopped. */
bool prepare_advance(struct ad_pool_entry *entry);
/* The command has had its time: it is killed, and after that the session stopped. */
void prepare_timed_out(struct ad_pool_entry *entry);
/* The session is over, and a command with it. */
void prepare_end(struct ad_pool_entry *entry);
/* Before its session goes, whatever state it is in. */
void prepare_free(struct ad_pool_entry *entry);

/* ---- lease.c, with ad_pool_acquire() and ad_pool_release() */

/* Whose turn is next; NULL: nobody waits. */
struct ad_pool_lease *lease_first(const struct ad_pool_entry *entry);
/* It gets the session, which is ready and not held. */
void lease_grant(struct ad_pool_entry *entry);
/* All who wait for it get this error. */
void lease_refuse_all(struct ad_pool_entry *entry, const agentd_error *err);
/* Who has it or waits for it never hears of it again. */
void lease_forget_all(struct ad_pool_entry *entry);
/* Before its session goes: commands in it that were given up. */
void lease_end_given_up(struct ad_pool_entry *entry);

/* ---- entry.c: one session, running or not. The other parts note what has happened to it, and
 * have its step called, which decides what is next. */

enum { ENTRY_STOP_GRACE_MS = 5000 };

enum entry_state { ENTRY_STOPPED, ENTRY_STARTING, ENTRY_PREPARING, ENTRY_READY, ENTRY_STOPPING };

struct ad_pool_entry {
	struct ad_list link;
	agentd_pool *pool;
	char id[AD_POOL_ID_SIZE];
	struct volume volume;
	enum entry_state state;
	struct agentd_task task; /* the session */
	struct ad_spec_copy spec;
	struct ad_list waiting; /* leases */
	struct ad_list given_up;
	struct ad_pool_lease *held;
	uint64_t last_used; /* CLOCK_MONOTONIC; of this process */
	bool stop_wanted, over, stuck;
	bool was_ready;          /* since it was started last */
	bool was_spare;          /* it is being started from one */
	bool spare_failed;       /* the next start is to go without */
	bool used_here;          /* then last_used is the truth */
	bool used;               /* its volume says so once nobody waits for that */
	agentd_error *error;     /* of the start or the last stop */
	agentd_error *elsewhere; /* it is not started yet: somebody else has its volume */
	struct waiter *on_stop;
	struct ad_defer step;
	struct ad_timer timer; /* of its state */
	struct preparation preparation;
	struct {
		struct worker *worker; /* NULL: none is being made */
		agentd_error *error;
		bool over;
		bool failed; /* said already */
	} backup;
};

/* In the order in which they came. after: NULL for the first; NULL after the last. */
struct ad_pool_entry *entry_next(const agentd_pool *pool, const struct ad_pool_entry *after);
/* NULL: there is none. */
struct ad_pool_entry *entry_find(const agentd_pool *pool, const char *id);
/* Stopped, nothing of it made or looked at; NULL: out of memory. */
struct ad_pool_entry *entry_new(agentd_pool *pool, const char *id);
/* If it runs it is killed, and nobody hears of it. */
void entry_free(struct ad_pool_entry *entry);
/* By a command, or somebody waits to. */
bool entry_in_use(const struct ad_pool_entry *entry);
/* One that is not stopped ends within grace_ms, or is killed; may come again with less. */
void entry_stop(struct ad_pool_entry *entry, uint32_t grace_ms);
/* All that are not stopped: each has a place of max_vms. */
uint32_t entry_count_alive(const agentd_pool *pool);
/* There may be a place now for those whom somebody waits for. */
void entry_wake_waiting(agentd_pool *pool);

/* ---- maintain.c: the pass over all sessions. It frees entries: not where one of them may be in
 * use, as in a callback. */

void maintain_init(agentd_pool *pool);
/* Neither passes nor removals any more; init() was called. */
void maintain_free(agentd_pool *pool);
/* Each volume has its entry afterwards; what an earlier removal has left is removed. */
int maintain_scan(agentd_pool *pool, agentd_error **reterr);
/* A pass, from the loop. */
void maintain_soon(agentd_pool *pool);
/* The next regular pass is a minute from now. */
void maintain_later(agentd_pool *pool);
/* No pass, neither asked for nor regular. */
void maintain_stop(agentd_pool *pool);
/* The pass that is wanted, now. */
void maintain_pass(agentd_pool *pool);
/* A backup was made or has failed: entry->backup.over. */
void maintain_backup_over(struct ad_pool_entry *entry);

/* ---- pool.c */

struct agentd_pool {
	ad_refcount refs;
	struct ad_list link;  /* of the runner's */
	pthread_mutex_t lock; /* guards host.loop against unrefs from other threads, and dropped */
	struct ad_pool_host host;
	struct pool_config config;
	struct ad_list entries;
	struct ad_list removals; /* of folders, under way */
	struct spares spares;
	struct ad_timer pass_timer;
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

/* To the runner's log. session, err: NULL if it is about none. */
void pool_say(const agentd_pool *pool, int32_t level, const char *message, const char *session,
	      const agentd_error *err);
/* Between the two is whatever the loop calls here and may call somebody else, who may drop the
 * last references to the pool and the runner: they go at the end. */
void pool_enter(agentd_pool *pool);
void pool_leave(agentd_pool *pool);
/* Between the two is what a pass, and the end of the pool, wait for. err: taken; NULL if it went
 * well. */
void pool_begin_work(agentd_pool *pool);
void pool_end_work(agentd_pool *pool, agentd_error *err);
/* The one of the configuration, which can do what that asks for. AGENTD_ERR_NOTFOUND,
 * AGENTD_ERR_UNSUPPORTED. */
int pool_find_backend(const agentd_pool *pool, struct ad_backend **ret, agentd_error **reterr);

#endif
