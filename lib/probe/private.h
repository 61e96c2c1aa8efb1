/* SPDX-License-Identifier: MIT */
/* Private to probe:
 *   probe.c   what was found, read and written;
 *   trial.c   finding it: commands in and outside of a sandbox;
 *   cache.c   keeping it. */
#ifndef AD_PROBE_PRIVATE_H
#define AD_PROBE_PRIVATE_H

#include <stdbool.h>

#include <agentd/agentd.h>

#include "util/util.h"

struct json_object;

enum { CAP_COUNT = AGENTD_CAP_IDMAP };

struct probe_cap {
	int32_t level;
	char *reason; /* NULL: "" */
};

struct probe_act {
	char *name, *how;
	int32_t outside, inside; /* AGENTD_ACT_* */
};

struct probe_layer {
	char *name, *reason;
	int32_t state; /* AGENTD_LAYER_* */
};

struct agentd_probe {
	ad_refcount refs;
	bool cached;
	bool passing; /* for want of something that may be there in a moment: not to be kept */
	struct probe_cap caps[CAP_COUNT]; /* of AGENTD_CAP_* less 1 */
	struct probe_act *acts;
	size_t act_count;
	struct probe_layer *layers;
	size_t layer_count;
};

/* ---- probe.c */

agentd_probe *probe_new(void); /* or NULL */
/* Each copies its strings; false when out of memory. */
bool probe_set_cap(agentd_probe *probe, int32_t cap, int32_t level, const char *reason);
bool probe_add_act(agentd_probe *probe, const char *name, int32_t outside, int32_t inside,
		   const char *how);
bool probe_add_layer(agentd_probe *probe, const char *name, int32_t state, const char *reason);
/* As agentd_probe_to_json() has it; false: incomplete. */
struct json_object *probe_write(const agentd_probe *probe, bool *ret_ok);
int probe_read(const struct json_object *value, agentd_probe **ret, agentd_error **reterr);

/* ---- trial.c */

/* Begin to try; reports through opts' fn later, from the loop. */
struct trial_request {
	struct event_base *base;
	const char *helper_path;
	agentd_probe_fn fn;
	void *userdata;
};
int trial_start(const struct trial_request *request, agentd_error **reterr);

/* ---- cache.c */

/* What a probe stands on, as text: while it is the same, so is the probe's result.
 * malloc'ed, or NULL. */
char *cache_key(const char *helper_path);
/* The probe kept in dir (NULL: the default) under this key, or NULL. */
agentd_probe *cache_load(const char *dir, const char *key);
/* Keep it, if that can be done. */
void cache_store(const char *dir, const char *key, const agentd_probe *probe);

#endif
