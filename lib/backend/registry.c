/* SPDX-License-Identifier: MIT */
#include "backend/backend.h"

#include <string.h>

/* Up to here every backend must come, whatever it was compiled against. */
#define OPS_SIZE_0_1_REQUIRED ((uint32_t)offsetof(struct agentd_backend_ops, task_signal))

enum {
	NAME_MAX_BYTES = 32,
	/* What reports neither started nor failed for this long is given up; */
	SETUP_MAX_MS = 30000,
	/* so is what does not report closed for this long after a kill. */
	CLOSE_MAX_MS = 10000
};

char *ad_backend_normalize(const char *name)
{
	static const char blank[] = " \t\r\n\v\f";
	const char *start = name + strspn(name, blank);
	size_t len = strlen(start);
	char *ret;

	while (len > 0 && strchr(blank, start[len - 1]))
		len--;
	ret = malloc(len + 1);
	if (!ret)
		return NULL;
	for (size_t i = 0; i < len; i++) {
		char c = start[i];

		if (c >= 'A' && c <= 'Z')
			c = (char)(c - 'A' + 'a');
		ret[i] = c == '_' ? '-' : c;
	}
	ret[len] = '\0';
	return ret;
}

static bool name_valid(const char *name)
{
	size_t len = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-");

	return len > 0 && len <= NAME_MAX_BYTES && name[len] == '\0';
}

void ad_registry_init(struct ad_registry *registry,
		      void (*probed)(struct ad_backend *backend, void *userdata), void *userdata)
{
	ad_list_init(&registry->backends);
	registry->probed = probed;
	registry->userdata = userdata;
}

static bool answers_to(const struct ad_backend *backend, const char *normal)
{
	return strcmp(backend->name, normal) == 0 || ad_strlist_has(&backend->aliases, normal);
}

static struct ad_backend *find_normal(const struct ad_registry *registry, const char *normal)
{
	for (struct ad_list *node = registry->backends.next; node != &registry->backends;
	     node = node->next) {
		struct ad_backend *backend = AD_CONTAINER_OF(node, struct ad_backend, link);

		if (answers_to(backend, normal))
			return backend;
	}
	return NULL;
}

int ad_registry_find(const struct ad_registry *registry, const char *name, struct ad_backend **ret)
{
	ad_autofree char *normal = ad_backend_normalize(name);

	if (!normal)
		return AGENTD_ERR_NOMEM;
	*ret = find_normal(registry, normal);
	return *ret ? 0 : AGENTD_ERR_NOTFOUND;
}

static void backend_free(struct ad_backend *backend)
{
	for (size_t i = 0; i < backend->layer_count; i++) {
		free(backend->layers[i].layer);
		free(backend->layers[i].reason);
	}
	free(backend->layers);
	ad_strlist_free(&backend->aliases);
	agentd_error_unref(backend->probe_error);
	free(backend->name);
	free(backend);
}

/* Tasks that were given up may end, and be freed, after the registry was closed. */
static void close_if_unused(struct ad_backend *backend)
{
	if (backend->registry || backend->tasks > 0)
		return;
	backend->ops.close(backend->self);
	backend_free(backend);
}

static int check_free(const struct ad_registry *registry, const struct ad_backend *added,
		      const char *normal, agentd_error **reterr)
{
	const struct ad_backend *holder = find_normal(registry, normal);

	if (!holder && !added)
		return 0;
	if (!holder && !answers_to(added, normal))
		return 0;
	return ad_fail(reterr, AGENTD_ERR_STATE, NULL,
		       "the name \"%s\" belongs to the backend \"%s\"", normal,
		       holder ? holder->name : added->name);
}

static int add_names(struct ad_registry *registry, struct ad_backend *backend,
		     const struct agentd_backend_ops *ops, agentd_error **reterr)
{
	int r;

	if (!ops->name || !name_valid(ops->name))
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "backend name \"%s\": 1 to %d of a-z, 0-9 and '-' are wanted",
			       ops->name ? ops->name : "", NAME_MAX_BYTES);
	r = check_free(registry, NULL, ops->name, reterr);
	if (r < 0)
		return r;
	backend->name = strdup(ops->name);
	if (!backend->name)
		return ad_fail_nomem(reterr);
	for (const char *const *alias = ops->aliases; alias && *alias; alias++) {
		ad_autofree char *normal = ad_backend_normalize(*alias);

		if (!normal)
			return ad_fail_nomem(reterr);
		if (!name_valid(normal))
			return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
				       "alias \"%s\" of backend \"%s\": 1 to %d of a-z, 0-9 and "
				       "'-' are wanted",
				       *alias, ops->name, NAME_MAX_BYTES);
		r = check_free(registry, backend, normal, reterr);
		if (r == 0)
			r = ad_strlist_add(&backend->aliases, normal);
		if (r == AGENTD_ERR_NOMEM)
			return ad_fail_nomem(reterr);
		if (r < 0)
			return r;
	}
	return 0;
}

static int check_ops(const struct agentd_backend_ops *ops, agentd_error **reterr)
{
	if (ops->abi != AGENTD_BACKEND_ABI)
		return ad_fail(reterr, AGENTD_ERR_ABI, NULL,
			       "backend abi %u is not one this library knows (%d)", ops->abi,
			       AGENTD_BACKEND_ABI);
	if (ops->reserved0 != 0)
		return ad_fail(reterr, AGENTD_ERR_ABI, NULL,
			       "agentd_backend_ops.reserved0 is not 0");
	if (!ops->open || !ops->close || !ops->probe_start || !ops->task_start || !ops->task_kill ||
	    !ops->task_free)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "backend \"%s\" lacks a required member (open, close, probe_start, "
			       "task_start, task_kill, task_free)",
			       ops->name ? ops->name : "");
	if (!ops->session_start != !ops->session_stop || !ops->session_start != !ops->session_free)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "backend \"%s\" has some of session_start, session_stop and "
			       "session_free: all three are wanted, or none",
			       ops->name ? ops->name : "");
	if (ops->session_adopt && !ops->session_start)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "backend \"%s\" has session_adopt, and no sessions",
			       ops->name ? ops->name : "");
	return 0;
}

int ad_registry_add(struct ad_registry *registry, const struct agentd_backend_ops *ops,
		    void *userdata, struct event_base *base, agentd_error **reterr)
{
	struct ad_backend *backend = calloc(1, sizeof(*backend));
	int r;

	if (!backend)
		return ad_fail_nomem(reterr);
	backend->registry = registry;
	backend->report.backend = backend;
	r = ad_sized_copy(&backend->ops, sizeof(backend->ops), ops, OPS_SIZE_0_1_REQUIRED,
			  "struct agentd_backend_ops", reterr);
	if (r == 0)
		r = check_ops(&backend->ops, reterr);
	if (r == 0)
		r = add_names(registry, backend, &backend->ops, reterr);
	if (r < 0) {
		backend_free(backend);
		return r;
	}
	/* The caller's strings may go away now. */
	backend->ops.name = backend->name;
	backend->ops.aliases = NULL;
	if (!backend->ops.setup_max_ms)
		backend->ops.setup_max_ms = SETUP_MAX_MS;
	if (!backend->ops.close_max_ms)
		backend->ops.close_max_ms = CLOSE_MAX_MS;
	r = backend->ops.open(userdata, base, &backend->self);
	if (r < 0) {
		ad_fail(reterr, r, NULL, "backend \"%s\" could not be opened: %s", backend->name,
			agentd_strerror(r));
		backend_free(backend);
		return r;
	}
	ad_list_append(&registry->backends, &backend->link);
	r = backend->ops.probe_start(backend->self, &backend->report);
	if (r < 0)
		agentd_backend_report_done(&backend->report,
					   agentd_error_create(r, 0, "the probe could not start"));
	return 0;
}

void ad_registry_close(struct ad_registry *registry)
{
	while (!ad_list_empty(&registry->backends)) {
		struct ad_backend *backend = AD_CONTAINER_OF(registry->backends.next,
							     struct ad_backend, link);

		ad_list_remove(&backend->link);
		/* A probe answered from inside close() must not reach the runner. */
		backend->registry = NULL;
		close_if_unused(backend);
	}
}

void ad_backend_ref(struct ad_backend *backend)
{
	backend->tasks++;
}

void ad_backend_unref(struct ad_backend *backend)
{
	backend->tasks--;
	close_if_unused(backend);
}

void agentd_backend_report_layer(agentd_backend_report *report, const char *layer, int32_t state,
				 const char *reason)
{
	struct ad_backend *backend;
	struct ad_backend_layer *grown;

	if (!report || !layer || report->backend->probe != AD_PROBE_PENDING)
		return;
	backend = report->backend;
	grown = reallocarray(backend->layers, backend->layer_count + 1, sizeof(*grown));
	if (!grown)
		return;
	backend->layers = grown;
	grown += backend->layer_count;
	grown->layer = strdup(layer);
	grown->reason = strdup(reason ? reason : "");
	grown->state = state;
	if (grown->layer && grown->reason) {
		backend->layer_count++;
		return;
	}
	free(grown->layer);
	free(grown->reason);
}

void agentd_backend_report_done(agentd_backend_report *report, agentd_error *err)
{
	struct ad_backend *backend;

	if (!report || report->backend->probe != AD_PROBE_PENDING) {
		agentd_error_unref(err);
		return;
	}
	backend = report->backend;
	backend->probe = err ? AD_PROBE_UNUSABLE : AD_PROBE_USABLE;
	backend->probe_error = err;
	if (backend->registry)
		backend->registry->probed(backend, backend->registry->userdata);
}
