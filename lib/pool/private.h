/* SPDX-License-Identifier: MIT */
#ifndef AD_POOL_PRIVATE_H
#define AD_POOL_PRIVATE_H

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
/* Make what is missing and lock it. AGENTD_ERR_STATE: another process has it. */
int volume_open(struct volume *volume, const char *root, agentd_error **reterr);
/* Lock one that exists. */
int volume_lock(struct volume *volume, agentd_error **reterr);
void volume_unlock(struct volume *volume);
/* It is in use now. */
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
/* Have so many: one more is begun, unless one is under way or it is too early after a failure;
 * those who are too many end. backend: unless wanted is 0. */
void spares_tend(struct spares *spares, struct ad_backend *backend, uint32_t wanted);
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

#endif
