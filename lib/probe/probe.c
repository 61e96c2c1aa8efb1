/* SPDX-License-Identifier: MIT */
#include "probe/private.h"

#include <limits.h>
#include <string.h>

#include "json/json.h"
#include "launch/launch.h"
#include "loop/loop.h"

static const char *const cap_names[CAP_COUNT] = {
	[AGENTD_CAP_SANDBOX - 1] = "sandbox",   [AGENTD_CAP_USER_NAMESPACE - 1] = "user-namespace",
	[AGENTD_CAP_LANDLOCK - 1] = "landlock", [AGENTD_CAP_SECCOMP - 1] = "seccomp",
	[AGENTD_CAP_CGROUP - 1] = "cgroup",     [AGENTD_CAP_IDMAP - 1] = "idmap",
};
/* From their -1 on. */
static const char *const act_words[] = { "unknown", "refused", "possible" };
static const char *const layer_words[] = { "absent", "degraded", "enforced" };

/* ---- the object */

agentd_probe *probe_new(void)
{
	agentd_probe *probe = calloc(1, sizeof(*probe));

	if (probe)
		atomic_init(&probe->refs, 1);
	return probe;
}

agentd_probe *agentd_probe_ref(agentd_probe *probe)
{
	if (probe)
		ad_ref(&probe->refs);
	return probe;
}

void agentd_probe_unref(agentd_probe *probe)
{
	if (!probe || !ad_unref(&probe->refs))
		return;
	for (size_t i = 0; i < CAP_COUNT; i++)
		free(probe->caps[i].reason);
	for (size_t i = 0; i < probe->act_count; i++) {
		free(probe->acts[i].name);
		free(probe->acts[i].how);
	}
	for (size_t i = 0; i < probe->layer_count; i++) {
		free(probe->layers[i].name);
		free(probe->layers[i].reason);
	}
	free(probe->acts);
	free(probe->layers);
	free(probe);
}

bool probe_set_cap(agentd_probe *probe, int32_t cap, int32_t level, const char *reason)
{
	struct probe_cap *to = &probe->caps[cap - 1];

	free(to->reason);
	to->level = level;
	to->reason = strdup(level > 0 ? "" : reason);
	return to->reason;
}

bool probe_add_act(agentd_probe *probe, const char *name, int32_t outside, int32_t inside,
		   const char *how)
{
	struct probe_act *grown = reallocarray(probe->acts, probe->act_count + 1,
					       sizeof(*probe->acts));
	struct probe_act *act;

	if (!grown)
		return false;
	probe->acts = grown;
	act = &grown[probe->act_count++];
	*act = (struct probe_act){ strdup(name), strdup(how), outside, inside };
	return act->name && act->how;
}

bool probe_add_layer(agentd_probe *probe, const char *name, int32_t state, const char *reason)
{
	struct probe_layer *grown = reallocarray(probe->layers, probe->layer_count + 1,
						 sizeof(*probe->layers));
	struct probe_layer *layer;

	if (!grown)
		return false;
	probe->layers = grown;
	layer = &grown[probe->layer_count++];
	*layer = (struct probe_layer){ strdup(name), strdup(reason), state };
	return layer->name && layer->reason;
}

/* ---- reading it */

const char *agentd_cap_name(int32_t cap)
{
	return cap >= 1 && cap <= CAP_COUNT ? cap_names[cap - 1] : "unknown";
}

int32_t agentd_probe_level(const agentd_probe *probe, int32_t cap)
{
	return probe && cap >= 1 && cap <= CAP_COUNT ? probe->caps[cap - 1].level : 0;
}

const char *agentd_probe_reason(const agentd_probe *probe, int32_t cap)
{
	if (!probe || cap < 1 || cap > CAP_COUNT)
		return "not known to this library";
	return probe->caps[cap - 1].reason;
}

int32_t agentd_probe_cached(const agentd_probe *probe)
{
	return probe && probe->cached;
}

size_t agentd_probe_act_count(const agentd_probe *probe)
{
	return probe ? probe->act_count : 0;
}

int agentd_probe_act_at(const agentd_probe *probe, size_t i, const char **ret_act,
			int32_t *ret_outside, int32_t *ret_inside, const char **ret_how)
{
	if (!probe || i >= probe->act_count)
		return AGENTD_ERR_NOTFOUND;
	if (ret_act)
		*ret_act = probe->acts[i].name;
	if (ret_outside)
		*ret_outside = probe->acts[i].outside;
	if (ret_inside)
		*ret_inside = probe->acts[i].inside;
	if (ret_how)
		*ret_how = probe->acts[i].how;
	return 0;
}

size_t agentd_probe_layer_count(const agentd_probe *probe)
{
	return probe ? probe->layer_count : 0;
}

int agentd_probe_layer_at(const agentd_probe *probe, size_t i, const char **ret_layer,
			  int32_t *ret_state, const char **ret_reason)
{
	if (!probe || i >= probe->layer_count)
		return AGENTD_ERR_NOTFOUND;
	if (ret_layer)
		*ret_layer = probe->layers[i].name;
	if (ret_state)
		*ret_state = probe->layers[i].state;
	if (ret_reason)
		*ret_reason = probe->layers[i].reason;
	return 0;
}

/* ---- JSON: docs/probe.schema.json */

static const char *word_of(int32_t value, const char *const words[static 3])
{
	return value >= -1 && value <= 1 ? words[value + 1] : "unknown";
}

struct json_object *probe_write(const agentd_probe *probe, bool *ret_ok)
{
	struct json_object *object = ad_json_object(), *caps = ad_json_object();
	struct json_object *acts = ad_json_array(), *layers = ad_json_array();
	bool ok = ad_json_add_u64(object, "schema", 1);

	ok = ad_json_add_bool(object, "cached", probe->cached) && ok;
	for (size_t i = 0; i < CAP_COUNT; i++) {
		struct json_object *cap = ad_json_object();

		ok = ad_json_add_i64(cap, "level", probe->caps[i].level) && ok;
		ok = ad_json_add_string(cap, "reason", probe->caps[i].reason) && ok;
		ok = ad_json_add_value(caps, cap_names[i], cap) && ok;
	}
	for (size_t i = 0; i < probe->act_count; i++) {
		const struct probe_act *from = &probe->acts[i];
		struct json_object *act = ad_json_object();

		ok = ad_json_add_string(act, "act", from->name) && ok;
		ok = ad_json_add_string(act, "outside", word_of(from->outside, act_words)) && ok;
		ok = ad_json_add_string(act, "inside", word_of(from->inside, act_words)) && ok;
		ok = ad_json_add_string(act, "how", from->how) && ok;
		ok = ad_json_add_value(acts, NULL, act) && ok;
	}
	for (size_t i = 0; i < probe->layer_count; i++) {
		const struct probe_layer *from = &probe->layers[i];
		struct json_object *layer = ad_json_object();

		ok = ad_json_add_string(layer, "layer", from->name) && ok;
		ok = ad_json_add_string(layer, "state", word_of(from->state, layer_words)) && ok;
		ok = ad_json_add_string(layer, "reason", from->reason) && ok;
		ok = ad_json_add_value(layers, NULL, layer) && ok;
	}
	ok = ad_json_add_value(object, "capabilities", caps) && ok;
	ok = ad_json_add_value(object, "acts", acts) && ok;
	*ret_ok = ad_json_add_value(object, "layers", layers) && ok;
	return object;
}

int agentd_probe_to_json(const agentd_probe *probe, char **ret, size_t *ret_len,
			 agentd_error **reterr)
{
	AD_KEEP_ERRNO;
	struct json_object *object;
	bool ok;

	if (!probe || !ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "probe and ret must not be NULL");
	object = probe_write(probe, &ok);
	return ad_json_to_text(object, ok, ret, ret_len, reterr);
}

/* A member that must be there. */
static int member(const struct json_object *value, const char *key, const char *pointer,
		  const struct json_object **ret, agentd_error **reterr)
{
	if (ad_json_type_of(value) == AD_JSON_OBJECT && ad_json_member(value, key, ret))
		return 0;
	return ad_fail(reterr, AGENTD_ERR_INVALID, pointer, "no member \"%s\"", key);
}

static int member_string(const struct json_object *value, const char *key, const char *pointer,
			 const char **ret, agentd_error **reterr)
{
	const struct json_object *found;
	int code = member(value, key, pointer, &found, reterr);

	return code < 0 ? code : ad_json_get_string(found, pointer, ret, reterr);
}

static int member_word(const struct json_object *value, const char *key, const char *pointer,
		       const char *const words[static 3], int32_t *ret, agentd_error **reterr)
{
	const char *text;
	int code = member_string(value, key, pointer, &text, reterr);

	for (int32_t i = 0; code == 0 && i < 3; i++) {
		if (strcmp(text, words[i]) == 0) {
			*ret = i - 1;
			return 0;
		}
	}
	return code < 0 ? code :
			  ad_fail(reterr, AGENTD_ERR_INVALID, pointer, "unknown word \"%s\"", text);
}

static int read_cap(agentd_probe *probe, const struct json_object *caps, int32_t cap,
		    agentd_error **reterr)
{
	const char *reason, *pointer = "/capabilities";
	const struct json_object *value, *level;
	uint64_t number;
	int code = member(caps, cap_names[cap - 1], pointer, &value, reterr);

	if (code == 0)
		code = member(value, "level", pointer, &level, reterr);
	if (code == 0)
		code = ad_json_get_u64(level, pointer, &number, reterr);
	if (code == 0)
		code = member_string(value, "reason", pointer, &reason, reterr);
	if (code < 0)
		return code;
	if (number > INT32_MAX)
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer, "the level is too high");
	return probe_set_cap(probe, cap, (int32_t)number, reason) ? 0 : ad_fail_nomem(reterr);
}

static int read_act(const struct json_object *value, const char *pointer, void *userdata,
		    agentd_error **reterr)
{
	int32_t outside, inside;
	const char *name, *how;
	int code = member_string(value, "act", pointer, &name, reterr);

	if (code == 0)
		code = member_word(value, "outside", pointer, act_words, &outside, reterr);
	if (code == 0)
		code = member_word(value, "inside", pointer, act_words, &inside, reterr);
	if (code == 0)
		code = member_string(value, "how", pointer, &how, reterr);
	if (code < 0)
		return code;
	return probe_add_act(userdata, name, outside, inside, how) ? 0 : ad_fail_nomem(reterr);
}

static int read_layer(const struct json_object *value, const char *pointer, void *userdata,
		      agentd_error **reterr)
{
	const char *name, *reason;
	int32_t state;
	int code = member_string(value, "layer", pointer, &name, reterr);

	if (code == 0)
		code = member_word(value, "state", pointer, layer_words, &state, reterr);
	if (code == 0)
		code = member_string(value, "reason", pointer, &reason, reterr);
	if (code < 0)
		return code;
	return probe_add_layer(userdata, name, state, reason) ? 0 : ad_fail_nomem(reterr);
}

int probe_read(const struct json_object *value, agentd_probe **ret, agentd_error **reterr)
{
	agentd_probe *probe = probe_new();
	const struct json_object *caps, *acts, *layers;
	int code;

	if (!probe)
		return ad_fail_nomem(reterr);
	code = member(value, "capabilities", "", &caps, reterr);
	if (code == 0)
		code = member(value, "acts", "", &acts, reterr);
	if (code == 0)
		code = member(value, "layers", "", &layers, reterr);
	for (int32_t cap = 1; code == 0 && cap <= CAP_COUNT; cap++)
		code = read_cap(probe, caps, cap, reterr);
	if (code == 0)
		code = ad_json_each_item(acts, "/acts", read_act, probe, reterr);
	if (code == 0)
		code = ad_json_each_item(layers, "/layers", read_layer, probe, reterr);
	if (code < 0)
		agentd_probe_unref(probe);
	else
		*ret = probe;
	return code;
}

/* ---- probing */

/* What a call has begun; ends in deliver(). */
struct probing {
	agentd_probe_fn fn;
	void *userdata;
	char *key, *cache_dir;
	agentd_loop *own_loop; /* the call blocks: it frees this, too */
	bool over;
	/* What was kept is delivered from the loop. */
	agentd_probe *kept;
	struct ad_loop *loop;
	struct ad_defer deliver;
};

static void probing_free(struct probing *probing)
{
	if (probing->loop)
		ad_loop_free(probing->loop);
	agentd_loop_unref(probing->own_loop);
	agentd_probe_unref(probing->kept);
	free(probing->cache_dir);
	free(probing->key);
	free(probing);
}

static void deliver(struct probing *probing, agentd_probe *probe, const agentd_error *err)
{
	probing->fn(probe, err, probing->userdata);
	probing->over = true;
	if (probing->own_loop)
		agentd_loop_wakeup(probing->own_loop);
	else
		probing_free(probing);
}

static void on_tried(agentd_probe *probe, const agentd_error *err, void *userdata)
{
	struct probing *probing = userdata;

	if (probe && !probe->passing && probing->key)
		cache_store(probing->cache_dir, probing->key, probe);
	deliver(probing, probe, err);
}

static void on_kept(struct ad_defer *defer, void *userdata)
{
	struct probing *probing = userdata;

	(void)defer;
	deliver(probing, probing->kept, NULL);
}

static int deliver_later(struct probing *probing, struct event_base *base, agentd_error **reterr)
{
	int code = ad_loop_new(base, &probing->loop, reterr);

	if (code < 0)
		return code;
	ad_defer_init(&probing->deliver, probing->loop, on_kept, probing);
	ad_defer(&probing->deliver);
	return 0;
}

static int begin(struct probing *probing, const struct agentd_probe_opts *opts,
		 agentd_error **reterr)
{
	struct trial_request request = { .base = opts->event_base,
					 .fn = on_tried,
					 .userdata = probing };
	ad_autofree char *helper = opts->helper_path ? strdup(opts->helper_path) :
						       ad_launch_default_path();
	int code;

	if (!helper)
		return ad_fail_nomem(reterr);
	if (opts->cache_dir && !(probing->cache_dir = strdup(opts->cache_dir)))
		return ad_fail_nomem(reterr);
	if (!opts->event_base) {
		code = agentd_loop_new(&probing->own_loop, reterr);
		if (code < 0)
			return code;
		request.base = agentd_loop_event_base(probing->own_loop);
	}
	probing->key = cache_key(helper);
	if (probing->key && !(opts->flags & AGENTD_PROBE_NO_CACHE))
		probing->kept = cache_load(probing->cache_dir, probing->key);
	if (probing->kept)
		return deliver_later(probing, request.base, reterr);
	request.helper_path = helper;
	return trial_start(&request, reterr);
}

static int start(const struct agentd_probe_opts *opts, agentd_probe_fn fn, void *userdata,
		 agentd_error **reterr)
{
	struct probing *probing = calloc(1, sizeof(*probing));
	int code;

	if (!probing)
		return ad_fail_nomem(reterr);
	probing->fn = fn;
	probing->userdata = userdata;
	code = begin(probing, opts, reterr);
	while (code >= 0 && probing->own_loop && !probing->over)
		code = agentd_loop_run(probing->own_loop, -1, reterr);
	if (code < 0 || opts->event_base == NULL)
		probing_free(probing);
	return code < 0 ? code : 0;
}

int agentd_probe_start(const struct agentd_probe_opts *opts, agentd_probe_fn fn, void *userdata,
		       agentd_error **reterr)
{
	AD_KEEP_ERRNO;
	struct agentd_probe_opts own = { .size = sizeof(own) };
	int code = 0;

	if (!fn)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "fn must not be NULL");
	if (opts)
		code = ad_sized_copy(&own, sizeof(own), opts, sizeof(own),
				     "struct agentd_probe_opts", reterr);
	if (code < 0)
		return code;
	if (own.flags & ~(uint32_t)AGENTD_PROBE_NO_CACHE)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "agentd_probe_opts.flags has unknown bits: 0x%x", own.flags);
	if (own.cache_dir && ad_path_check(own.cache_dir) != AD_PATH_OK)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "agentd_probe_opts.cache_dir %s: \"%s\"",
			       ad_path_verdict_text(ad_path_check(own.cache_dir)), own.cache_dir);
	return start(&own, fn, userdata, reterr);
}
