/* SPDX-License-Identifier: MIT */
#include "pool/private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json/json.h"

enum { MAX_VMS = 32, IDLE_S = 900, PRUNE_S = 3600, ACQUIRE_TIMEOUT_MS = 30000 };
enum { SECONDS_MAX = 1000000000, LIST_MAX = 1024 };

static int read_bool(const struct json_object *value, const char *pointer, bool *to,
		     agentd_error **reterr)
{
	return ad_json_get_bool(value, pointer, to, reterr);
}

/* null: not set, as the original writes it. */
static int read_text(const struct json_object *value, const char *pointer, char **to,
		     agentd_error **reterr)
{
	const char *text;
	int r;

	if (ad_json_type_of(value) == AD_JSON_NULL)
		return 0;
	r = ad_json_get_string(value, pointer, &text, reterr);
	if (r < 0)
		return r;
	if (!*text)
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer, "must not be empty");
	free(*to);
	*to = strdup(text);
	return *to ? 0 : ad_fail_nomem(reterr);
}

static int read_path(const struct json_object *value, const char *pointer, char **to,
		     agentd_error **reterr)
{
	int r = read_text(value, pointer, to, reterr);
	enum ad_path_verdict verdict;

	if (r < 0 || !*to)
		return r;
	verdict = ad_path_check(*to);
	return verdict == AD_PATH_OK ? 0 :
				       ad_fail(reterr, AGENTD_ERR_INVALID, pointer, "%s: \"%s\"",
					       ad_path_verdict_text(verdict), *to);
}

static int read_number(const struct json_object *value, const char *pointer, uint64_t most,
		       uint64_t *to, agentd_error **reterr)
{
	int r = ad_json_get_u64(value, pointer, to, reterr);

	if (r == 0 && *to > most)
		*to = most; /* longer than anybody waits */
	return r;
}

static int add_item(const struct json_object *value, const char *pointer, void *userdata,
		    agentd_error **reterr)
{
	struct ad_strlist *list = userdata;
	const char *text;
	int r = ad_json_get_string(value, pointer, &text, reterr);

	if (r == 0 && list->count >= LIST_MAX)
		return ad_fail(reterr, AGENTD_ERR_LIMIT, pointer, "more than %d", LIST_MAX);
	return r < 0 ? r : ad_strlist_add(list, text) < 0 ? ad_fail_nomem(reterr) : 0;
}

static int add_variable(const char *key, const struct json_object *value, const char *pointer,
			void *userdata, agentd_error **reterr)
{
	if (!*key || strchr(key, '='))
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
			       "a variable's name must neither be empty nor contain '='");
	if (ad_strlist_add(userdata, key) < 0)
		return ad_fail_nomem(reterr);
	return add_item(value, pointer, userdata, reterr);
}

/* The members are the backend's to check. */
static int read_options(const struct json_object *value, const char *pointer, char **to,
			agentd_error **reterr)
{
	if (ad_json_type_of(value) != AD_JSON_OBJECT)
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
			       "invalid type, expected an object");
	return ad_json_to_text(ad_json_ref(value), true, to, NULL, reterr);
}

struct reading {
	struct pool_config *config;
	char *shell;
	struct ad_strlist args;
	bool has_args;
	bool has_backup;
};

static int read_member(const char *key, const struct json_object *value, const char *pointer,
		       void *userdata, agentd_error **reterr)
{
	struct reading *in = userdata;
	struct pool_config *config = in->config;
	const struct {
		const char *key;
		uint64_t *to;
		uint64_t most;
	} numbers[] = {
		{ "max_vms", &config->max_vms, UINT32_MAX },
		{ "min_warm", &config->min_warm, UINT32_MAX },
		{ "idle_shutdown_seconds", &config->idle_s, SECONDS_MAX },
		{ "prune_after_seconds", &config->prune_s, SECONDS_MAX },
		{ "acquire_timeout_ms", &config->acquire_timeout_ms, UINT32_MAX },
	};
	const struct {
		const char *key;
		char **to;
		int (*read)(const struct json_object *value, const char *pointer, char **to,
			    agentd_error **reterr);
	} texts[] = {
		{ "volume_root", &config->volume_root, read_path },
		{ "backup_destination", &config->backup_destination, read_path },
		{ "bootstrap_command", &config->bootstrap_command, read_text },
		{ "nix_profile", &config->nix_profile, read_text },
		{ "backend", &config->backend, read_text },
		{ "shell", &in->shell, read_text },
		{ "vm", &config->options, read_options },
	};

	for (size_t i = 0; i < AD_COUNT(numbers); i++) {
		if (strcmp(numbers[i].key, key) == 0)
			return read_number(value, pointer, numbers[i].most, numbers[i].to, reterr);
	}
	for (size_t i = 0; i < AD_COUNT(texts); i++) {
		if (strcmp(texts[i].key, key) == 0)
			return texts[i].read(value, pointer, texts[i].to, reterr);
	}
	if (strcmp(key, "enabled") == 0)
		return read_bool(value, pointer, &config->enabled, reterr);
	if (strcmp(key, "fallback") == 0)
		return read_bool(value, pointer, &config->fallback, reterr);
	if (strcmp(key, "shell_args") == 0) {
		in->has_args = true;
		return ad_json_each_item(value, pointer, add_item, &in->args, reterr);
	}
	if (strcmp(key, "env") == 0)
		return ad_json_each_member(value, pointer, add_variable, &config->env, reterr);
	if (strcmp(key, "backup_after_seconds") == 0) {
		in->has_backup = ad_json_type_of(value) != AD_JSON_NULL;
		return in->has_backup ?
			       read_number(value, pointer, SECONDS_MAX, &config->backup_s, reterr) :
			       0;
	}
	return ad_json_unknown_key(key, pointer, reterr);
}

/* The original's words. */
static int check(const struct reading *in, agentd_error **reterr)
{
	const struct pool_config *config = in->config;
	const struct {
		const char *key;
		bool zero;
	} numbers[] = {
		{ "max_vms", config->max_vms == 0 },
		{ "idle_shutdown_seconds", config->idle_s == 0 },
		{ "prune_after_seconds", config->prune_s == 0 },
		{ "backup_after_seconds", in->has_backup && config->backup_s == 0 },
		{ "acquire_timeout_ms", config->acquire_timeout_ms == 0 },
	};

	for (size_t i = 0; i < AD_COUNT(numbers); i++) {
		char pointer[64];

		if (!numbers[i].zero)
			continue;
		snprintf(pointer, sizeof(pointer), "/%s", numbers[i].key);
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
			       "vm_pool.%s must be greater than zero when the pool is enabled",
			       numbers[i].key);
	}
	if (config->min_warm > config->max_vms)
		return ad_fail(reterr, AGENTD_ERR_INVALID, "/min_warm",
			       "vm_pool.min_warm must not be greater than max_vms (%llu)",
			       (unsigned long long)config->max_vms);
	if (in->has_backup && !config->backup_destination)
		return ad_fail(reterr, AGENTD_ERR_INVALID, "/backup_destination",
			       "vm_pool.backup_destination must be set when backup_after_seconds "
			       "is provided");
	if (!config->volume_root)
		return ad_fail(reterr, AGENTD_ERR_INVALID, "/volume_root",
			       "vm_pool.volume_root must be set when the pool is enabled");
	return 0;
}

/* To what it leads, as far as that is there already: no sandbox shows a path through a link. */
static bool resolve(char **path)
{
	ad_autofree char *copy = strdup(*path), *real = NULL;
	struct ad_buf resolved = { 0 };
	char *end = copy ? copy + strlen(copy) : NULL;

	while (end && end > copy && !(real = realpath(copy, NULL)) && errno == ENOENT) {
		while (*--end != '/')
			;
		*end = '\0';
	}
	if (!copy || (!real && errno == ENOMEM))
		return false;
	/* What else is wrong is told when it is used. */
	if (!real && end > copy)
		return true;
	ad_buf_printf(&resolved, "%s%s", real && real[1] ? real : "", *path + (end - copy));
	if (resolved.failed)
		return false;
	free(*path);
	*path = ad_buf_steal(&resolved);
	return true;
}

static bool finish(struct reading *in)
{
	struct pool_config *config = in->config;
	bool ok = ad_strlist_add(&config->shell, in->shell ? in->shell : "/bin/bash") == 0;

	if (!in->has_args)
		ok = ok && ad_strlist_add(&config->shell, "-lc") == 0;
	for (size_t i = 0; i < in->args.count && ok; i++)
		ok = ad_strlist_add(&config->shell, in->args.items[i]) == 0;
	config->shell_argv = calloc(config->shell.count + 1, sizeof(char *));
	config->bootstrap_argv = calloc(config->shell.count + 2, sizeof(char *));
	config->env_vector = calloc(config->env.count + 1, sizeof(char *));
	if (!ok || !config->shell_argv || !config->bootstrap_argv || !config->env_vector)
		return false;
	for (size_t i = 0; i < config->shell.count; i++)
		config->shell_argv[i] = config->bootstrap_argv[i] = config->shell.items[i];
	config->bootstrap_argv[config->shell.count] = config->bootstrap_command;
	for (size_t i = 0; i < config->env.count; i++)
		config->env_vector[i] = config->env.items[i];
	if (!config->backend)
		config->backend = strdup("microvm");
	return config->backend && (!config->volume_root || resolve(&config->volume_root));
}

int pool_config_read(struct pool_config *ret, const char *json, size_t len, agentd_error **reterr)
{
	ad_autojson struct json_object *value = NULL;
	struct reading in = { .config = ret };
	int r;

	*ret = (struct pool_config){ .fallback = true,
				     .max_vms = MAX_VMS,
				     .idle_s = IDLE_S,
				     .prune_s = PRUNE_S,
				     .acquire_timeout_ms = ACQUIRE_TIMEOUT_MS };
	r = ad_json_parse(json, len, &value, reterr);
	if (r == 0)
		r = ad_json_each_member(value, "", read_member, &in, reterr);
	if (r == 0 && ret->enabled)
		r = check(&in, reterr);
	if (r == 0 && !finish(&in))
		r = ad_fail_nomem(reterr);
	free(in.shell);
	ad_strlist_free(&in.args);
	if (r < 0)
		pool_config_free(ret);
	return r;
}

void pool_config_free(struct pool_config *config)
{
	free(config->volume_root);
	free(config->backup_destination);
	free(config->bootstrap_command);
	free(config->nix_profile);
	free(config->backend);
	free(config->options);
	free(config->shell_argv);
	free(config->bootstrap_argv);
	free(config->env_vector);
	ad_strlist_free(&config->shell);
	ad_strlist_free(&config->env);
	*config = (struct pool_config){ 0 };
}
