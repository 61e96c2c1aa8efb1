/* SPDX-License-Identifier: MIT */
#include "policy/policy.h"

#include <string.h>

#include "policy/private.h"

const char *const ad_policy_layers[AD_POLICY_LAYER_COUNT] = {
	"userns",   "mountns", "pidns",        "netns",   "ipcns",   "utsns",  "cgroupns",
	"landlock", "seccomp", "capabilities", "keyring", "rlimits", "cgroup", "idmap",
};

/* What a command must not change lest it run later outside of its sandbox. Of a repository
 * also what says that its configuration is somewhere else; and of submodules, whose names
 * often have two parts, and worktrees. */
#define OF_REPOSITORY(dir) dir "/commondir", dir "/config", dir "/config.worktree", dir "/hooks"
/* In order, so that nobody has to sort them for each command. */
static const char *const default_protected[] = {
	".bash_aliases",
	".bash_login",
	".bash_logout",
	".bash_profile",
	".bashrc",
	".config/git/config",
	OF_REPOSITORY(".git"),
	OF_REPOSITORY(".git/modules/*/*"),
	OF_REPOSITORY(".git/modules/*"),
	OF_REPOSITORY(".git/worktrees/*"),
	".gitconfig",
	".profile",
	".zlogin",
	".zlogout",
	".zprofile",
	".zshenv",
	".zshrc",
};

static const agentd_policy defaults = {
	.min_isolation = AGENTD_ISOLATION_SANDBOX,
	.limits.size = sizeof(struct agentd_limits),
};

/* ---- life */

int agentd_policy_new(agentd_policy **ret, agentd_error **reterr)
{
	AD_KEEP_ERRNO;
	agentd_policy *policy;

	if (!ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "ret must not be NULL");
	policy = calloc(1, sizeof(*policy));
	if (!policy)
		return ad_fail_nomem(reterr);
	atomic_init(&policy->refs, 1);
	atomic_init(&policy->frozen, false);
	policy->min_isolation = defaults.min_isolation;
	policy->limits = defaults.limits;
	for (size_t i = 0; i < AD_COUNT(default_protected); i++) {
		if (ad_strlist_add(&policy->protect, default_protected[i]) < 0) {
			agentd_policy_unref(policy);
			return ad_fail_nomem(reterr);
		}
	}
	*ret = policy;
	return 0;
}

agentd_policy *agentd_policy_ref(agentd_policy *policy)
{
	if (policy)
		ad_ref(&policy->refs);
	return policy;
}

void agentd_policy_unref(agentd_policy *policy)
{
	AD_KEEP_ERRNO;

	if (!policy || !ad_unref(&policy->refs))
		return;
	for (size_t i = 0; i < policy->path_count; i++) {
		free(policy->paths[i].path);
		free(policy->paths[i].pointer);
	}
	free(policy->paths);
	for (size_t i = 0; i < policy->host_count; i++)
		free(policy->hosts[i]);
	free(policy->hosts);
	ad_strlist_free(&policy->env);
	ad_strlist_free(&policy->protect);
	free(policy);
}

int agentd_policy_freeze(agentd_policy *policy)
{
	if (!policy)
		return AGENTD_ERR_INVALID;
	atomic_store(&policy->frozen, true);
	return 0;
}

/* ---- setters */

static int fail_null(agentd_error **reterr, const char *argument)
{
	return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s must not be NULL", argument);
}

static int check_writable(const agentd_policy *policy, agentd_error **reterr)
{
	if (!policy)
		return fail_null(reterr, "policy");
	if (atomic_load(&policy->frozen))
		return ad_fail(reterr, AGENTD_ERR_STATE, NULL, "the policy is frozen");
	return 0;
}

static int check_room(size_t count, const char *what, agentd_error **reterr)
{
	if (count < AD_POLICY_RULES_MAX)
		return 0;
	return ad_fail(reterr, AGENTD_ERR_LIMIT, NULL, "more than %d %s", AD_POLICY_RULES_MAX,
		       what);
}

/* Room for one more in an array that grows in powers of two. */
static bool grow(void *array_ptr, size_t count, size_t size)
{
	void **array = array_ptr, *grown;

	if (count != 0 && (count & (count - 1)) != 0)
		return true;
	grown = reallocarray(*array, count ? count * 2 : 1, size);
	if (!grown)
		return false;
	*array = grown;
	return true;
}

static struct ad_policy_path *find_path(const agentd_policy *policy, const char *path)
{
	for (size_t i = 0; i < policy->path_count; i++) {
		if (strcmp(policy->paths[i].path, path) == 0)
			return &policy->paths[i];
	}
	return NULL;
}

/* access 0 denies. */
static int add_path(agentd_policy *policy, const char *path, uint32_t access, agentd_error **reterr)
{
	enum ad_path_verdict verdict = ad_path_check(path);
	struct ad_policy_path *known;
	char *copy;
	int r;

	if (verdict != AD_PATH_OK)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "path %s: \"%s\"",
			       ad_path_verdict_text(verdict), path);
	known = find_path(policy, path);
	if (known) {
		known->access = access && known->access ? known->access | access : 0;
		return 0;
	}
	r = check_room(policy->path_count, "paths", reterr);
	if (r < 0)
		return r;
	copy = strdup(path);
	if (!copy || !grow(&policy->paths, policy->path_count, sizeof(*policy->paths))) {
		free(copy);
		return ad_fail_nomem(reterr);
	}
	policy->paths[policy->path_count++] = (struct ad_policy_path){ .path = copy,
								       .access = access };
	return 0;
}

int ad_policy_note_pointer(agentd_policy *policy, const char *path, const char *pointer)
{
	struct ad_policy_path *known = find_path(policy, path);

	if (!known || known->pointer)
		return 0;
	known->pointer = strdup(pointer);
	return known->pointer ? 0 : AGENTD_ERR_NOMEM;
}

int agentd_policy_allow_path(agentd_policy *policy, const char *path, uint32_t access,
			     agentd_error **reterr)
{
	const uint32_t all = AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE | AGENTD_ACCESS_EXEC;
	AD_KEEP_ERRNO;
	int r = check_writable(policy, reterr);

	if (r < 0)
		return r;
	if (!path)
		return fail_null(reterr, "path");
	if (access == 0 || (access & ~all) != 0)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "access 0x%x is not valid",
			       access);
	return add_path(policy, path, access, reterr);
}

int agentd_policy_deny_path(agentd_policy *policy, const char *path, agentd_error **reterr)
{
	AD_KEEP_ERRNO;
	int r = check_writable(policy, reterr);

	if (r < 0)
		return r;
	if (!path)
		return fail_null(reterr, "path");
	return add_path(policy, path, 0, reterr);
}

int agentd_policy_set_net(agentd_policy *policy, int32_t mode, agentd_error **reterr)
{
	int r = check_writable(policy, reterr);

	if (r < 0)
		return r;
	if (mode != AGENTD_NET_NONE && mode != AGENTD_NET_ALLOWLIST && mode != AGENTD_NET_FULL)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "network mode %d is not known",
			       mode);
	policy->net = mode;
	return 0;
}

static int add_host(agentd_policy *policy, const char *pattern, uint16_t first, uint16_t last,
		    bool deny, agentd_error **reterr)
{
	struct ad_host_pattern parsed;
	struct ad_host_rule *rule;
	int r;

	if (!pattern)
		return fail_null(reterr, "host_pattern");
	r = ad_host_parse(pattern, &parsed, reterr);
	if (r < 0)
		return r;
	for (size_t i = 0; i < policy->host_count; i++) {
		rule = policy->hosts[i];
		if (rule->host.deny == deny && rule->host.port_first == first &&
		    rule->host.port_last == last && strcmp(rule->parsed.text, parsed.text) == 0)
			return 0;
	}
	r = check_room(policy->host_count, "hosts", reterr);
	if (r < 0)
		return r;
	rule = malloc(sizeof(*rule));
	if (!rule || !grow(&policy->hosts, policy->host_count, sizeof(struct ad_host_rule *))) {
		free(rule);
		return ad_fail_nomem(reterr);
	}
	rule->parsed = parsed;
	rule->host = (struct ad_policy_host){
		.pattern = rule->parsed.text, .port_first = first, .port_last = last, .deny = deny
	};
	policy->hosts[policy->host_count++] = rule;
	return 0;
}

int agentd_policy_allow_host(agentd_policy *policy, const char *host_pattern, uint16_t port_first,
			     uint16_t port_last, agentd_error **reterr)
{
	AD_KEEP_ERRNO;
	int r = check_writable(policy, reterr);

	if (r < 0)
		return r;
	if (port_first > port_last || (port_first == 0) != (port_last == 0))
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "ports %u-%u are not valid",
			       port_first, port_last);
	return add_host(policy, host_pattern, port_first, port_last, false, reterr);
}

int agentd_policy_deny_host(agentd_policy *policy, const char *host_pattern, agentd_error **reterr)
{
	AD_KEEP_ERRNO;
	int r = check_writable(policy, reterr);

	return r < 0 ? r : add_host(policy, host_pattern, 0, 0, true, reterr);
}

int ad_policy_layer(const char *layer)
{
	for (int i = 0; i < AD_POLICY_LAYER_COUNT; i++) {
		if (strcmp(ad_policy_layers[i], layer) == 0)
			return i;
	}
	return -1;
}

int agentd_policy_set_protection(agentd_policy *policy, const char *layer, int32_t strictness,
				 agentd_error **reterr)
{
	int r = check_writable(policy, reterr), index;

	if (r < 0)
		return r;
	if (!layer)
		return fail_null(reterr, "layer");
	index = ad_policy_layer(layer);
	if (index < 0)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "there is no protection layer \"%s\"", layer);
	if (strictness < AGENTD_PROTECTION_REQUIRED || strictness > AGENTD_PROTECTION_OFF)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "strictness %d is not known",
			       strictness);
	policy->protection[index] = strictness;
	return 0;
}

static int add_name(struct ad_strlist *list, const char *name, const char *what,
		    agentd_error **reterr)
{
	int r;

	if (ad_strlist_has(list, name))
		return 0;
	r = check_room(list->count, what, reterr);
	if (r < 0)
		return r;
	return ad_strlist_add(list, name) < 0 ? ad_fail_nomem(reterr) : 0;
}

int agentd_policy_protect_name(agentd_policy *policy, const char *relative_path,
			       agentd_error **reterr)
{
	ad_autobuf struct ad_buf absolute = { 0 };
	AD_KEEP_ERRNO;
	int r = check_writable(policy, reterr);

	if (r < 0)
		return r;
	if (!relative_path)
		return fail_null(reterr, "relative_path");
	ad_buf_puts(&absolute, "/");
	if (!ad_buf_puts(&absolute, relative_path))
		return ad_fail_nomem(reterr);
	if (!*relative_path || ad_path_check(absolute.data) != AD_PATH_OK)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "protected name must be a relative path without empty, \".\" and "
			       "\"..\" components: \"%s\"",
			       relative_path);
	return add_name(&policy->protect, relative_path, "protected names", reterr);
}

void ad_policy_clear_protected(agentd_policy *policy)
{
	ad_strlist_free(&policy->protect);
}

int agentd_policy_require_kvm(agentd_policy *policy, agentd_error **reterr)
{
	int r = check_writable(policy, reterr);

	if (r < 0)
		return r;
	policy->require_kvm = true;
	return 0;
}

int agentd_policy_discard_unfinished(agentd_policy *policy, agentd_error **reterr)
{
	int r = check_writable(policy, reterr);

	if (r < 0)
		return r;
	policy->discard_unfinished = true;
	return 0;
}

/* Length of the leading part that variables' names are made of. */
static size_t env_name_len(const char *name)
{
	return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_");
}

int agentd_policy_allow_env(agentd_policy *policy, const char *name_pattern, agentd_error **reterr)
{
	AD_KEEP_ERRNO;
	int r = check_writable(policy, reterr);
	size_t len;

	if (r < 0)
		return r;
	if (!name_pattern)
		return fail_null(reterr, "name_pattern");
	len = env_name_len(name_pattern);
	if (name_pattern[len] == '*')
		len++;
	if (len == 0 || name_pattern[len])
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "environment pattern must be letters, digits and \"_\", with \"*\" "
			       "only at the end: \"%s\"",
			       name_pattern);
	return add_name(&policy->env, name_pattern, "environment patterns", reterr);
}

int agentd_policy_set_limits(agentd_policy *policy, const struct agentd_limits *max,
			     agentd_error **reterr)
{
	AD_KEEP_ERRNO;
	int r = check_writable(policy, reterr);

	if (r < 0)
		return r;
	if (!max)
		return fail_null(reterr, "max");
	return ad_limits_copy(&policy->limits, max, reterr);
}

int agentd_policy_set_min_isolation(agentd_policy *policy, int32_t isolation, agentd_error **reterr)
{
	int r = check_writable(policy, reterr);

	if (r < 0)
		return r;
	if (isolation != AGENTD_ISOLATION_NONE && isolation != AGENTD_ISOLATION_SANDBOX &&
	    isolation != AGENTD_ISOLATION_VM)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "isolation %d is not known",
			       isolation);
	policy->min_isolation = isolation;
	return 0;
}

/* ---- reading */

static const agentd_policy *or_defaults(const agentd_policy *policy)
{
	return policy ? policy : &defaults;
}

const struct agentd_limits *ad_policy_limits(const agentd_policy *policy)
{
	return &or_defaults(policy)->limits;
}

int32_t ad_policy_min_isolation(const agentd_policy *policy)
{
	return or_defaults(policy)->min_isolation;
}

int32_t ad_policy_net(const agentd_policy *policy)
{
	return or_defaults(policy)->net;
}

bool ad_policy_require_kvm(const agentd_policy *policy)
{
	return or_defaults(policy)->require_kvm;
}

bool ad_policy_discard_unfinished(const agentd_policy *policy)
{
	return or_defaults(policy)->discard_unfinished;
}

/* A layer that nobody can set is required. */
int32_t ad_policy_protection(const agentd_policy *policy, int layer)
{
	return layer < 0 ? AGENTD_PROTECTION_REQUIRED : or_defaults(policy)->protection[layer];
}

bool ad_policy_env_any(const agentd_policy *policy)
{
	return or_defaults(policy)->env.count > 0;
}

/* Names with other characters (a shell's exported functions) match nothing. */
bool ad_policy_env_allowed(const agentd_policy *policy, const char *name)
{
	const struct ad_strlist *env = &or_defaults(policy)->env;

	if (!*name || name[env_name_len(name)])
		return false;
	for (size_t i = 0; i < env->count; i++) {
		const char *pattern = env->items[i];
		size_t len = env_name_len(pattern);

		if (strncmp(name, pattern, len) == 0 && (pattern[len] == '*' || !name[len]))
			return true;
	}
	return false;
}

size_t ad_policy_path_count(const agentd_policy *policy)
{
	return or_defaults(policy)->path_count;
}

const struct ad_policy_path *ad_policy_path_at(const agentd_policy *policy, size_t i)
{
	return i < ad_policy_path_count(policy) ? &policy->paths[i] : NULL;
}

size_t ad_policy_host_count(const agentd_policy *policy)
{
	return or_defaults(policy)->host_count;
}

const struct ad_policy_host *ad_policy_host_at(const agentd_policy *policy, size_t i)
{
	return i < ad_policy_host_count(policy) ? &policy->hosts[i]->host : NULL;
}

size_t ad_policy_protected_count(const agentd_policy *policy)
{
	return policy ? policy->protect.count : AD_COUNT(default_protected);
}

const char *ad_policy_protected_at(const agentd_policy *policy, size_t i)
{
	if (i >= ad_policy_protected_count(policy))
		return NULL;
	return policy ? policy->protect.items[i] : default_protected[i];
}

/* ---- matching */

const char *ad_policy_path_denied(const agentd_policy *policy, const char *path)
{
	for (size_t i = 0; i < ad_policy_path_count(policy); i++) {
		const struct ad_policy_path *rule = &policy->paths[i];

		if (!rule->access && ad_path_beneath(path, rule->path))
			return rule->path;
	}
	return NULL;
}

const struct ad_host_rule *ad_policy_host_denied(const agentd_policy *policy,
						 const struct ad_host_pattern *pattern)
{
	for (size_t i = 0; i < ad_policy_host_count(policy); i++) {
		const struct ad_host_rule *rule = policy->hosts[i];

		if (rule->host.deny && ad_host_covers(&rule->parsed, pattern))
			return rule;
	}
	return NULL;
}

static uint32_t path_access(const agentd_policy *policy, const char *path)
{
	uint32_t access = 0;

	for (size_t i = 0; i < ad_policy_path_count(policy); i++) {
		if (ad_path_beneath(path, policy->paths[i].path))
			access |= policy->paths[i].access;
	}
	return access;
}

bool ad_policy_path_access(const agentd_policy *policy, const char *path, uint32_t *ret)
{
	uint32_t access = path_access(policy, path);
	bool denied = ad_policy_path_denied(policy, path) != NULL;

	*ret = denied ? 0 : access;
	return denied || access;
}

int ad_policy_check_path(const agentd_policy *policy, const char *whose, const char *path,
			 uint32_t access, const char *pointer, agentd_error **reterr)
{
	uint32_t missing = access & ~path_access(policy, path);

	if (ad_policy_path_denied(policy, path))
		return ad_fail(reterr, AGENTD_ERR_DENIED, pointer,
			       "the %s policy denies the path \"%s\"", whose, path);
	if (missing)
		return ad_fail(reterr, AGENTD_ERR_DENIED, pointer,
			       "the %s policy does not allow to%s%s%s the path \"%s\"", whose,
			       missing & AGENTD_ACCESS_READ ? " read" : "",
			       missing & AGENTD_ACCESS_WRITE ? " write" : "",
			       missing & AGENTD_ACCESS_EXEC ? " execute" : "", path);
	return 0;
}

/* What the ceiling denies beneath an allowed path needs no mention in the policy:
 * the denials of both hold. */
static int check_paths(const agentd_policy *policy, const agentd_policy *ceiling,
		       agentd_error **reterr)
{
	for (size_t i = 0; i < ad_policy_path_count(policy); i++) {
		const struct ad_policy_path *rule = &policy->paths[i];
		int r;

		if (!rule->access || ad_policy_path_denied(policy, rule->path))
			continue;
		r = ad_policy_check_path(ceiling, "runner's", rule->path, rule->access, NULL,
					 reterr);
		if (r < 0)
			return r;
	}
	return 0;
}

static bool ports_cover(const struct ad_policy_host *a, const struct ad_policy_host *b)
{
	if (a->port_first == 0)
		return true;
	if (b->port_first == 0)
		return a->port_first == 1 && a->port_last == UINT16_MAX;
	return a->port_first <= b->port_first && a->port_last >= b->port_last;
}

static bool host_allowed(const agentd_policy *policy, const struct ad_host_rule *wanted)
{
	if (ad_policy_host_denied(policy, &wanted->parsed))
		return false;
	if (ad_policy_net(policy) == AGENTD_NET_FULL)
		return true;
	for (size_t i = 0; i < ad_policy_host_count(policy); i++) {
		const struct ad_host_rule *rule = policy->hosts[i];

		if (!rule->host.deny && ad_host_covers(&rule->parsed, &wanted->parsed) &&
		    ports_cover(&rule->host, &wanted->host))
			return true;
	}
	return false;
}

static int check_net(const agentd_policy *policy, const agentd_policy *ceiling,
		     agentd_error **reterr)
{
	static const char *const names[] = { "none", "allow", "full" };
	int32_t net = ad_policy_net(policy), most = ad_policy_net(ceiling);

	if (net > most)
		return ad_fail(reterr, AGENTD_ERR_DENIED, NULL,
			       "the runner's policy allows network mode \"%s\", not \"%s\"",
			       names[most], names[net]);
	if (net != AGENTD_NET_ALLOWLIST)
		return 0;
	for (size_t i = 0; i < policy->host_count; i++) {
		const struct ad_host_rule *rule = policy->hosts[i];
		ad_autobuf struct ad_buf text = { 0 };

		if (rule->host.deny || ad_policy_host_denied(policy, &rule->parsed) ||
		    host_allowed(ceiling, rule))
			continue;
		if (!ad_host_join_ports(&text, &rule->host))
			return ad_fail_nomem(reterr);
		return ad_fail(reterr, AGENTD_ERR_DENIED, NULL,
			       "the runner's policy does not allow the host \"%s\"", text.data);
	}
	return 0;
}

int ad_policy_within(const agentd_policy *policy, const agentd_policy *ceiling,
		     agentd_error **reterr)
{
	int r = policy == ceiling ? 0 : check_paths(policy, ceiling, reterr);

	return r < 0 ? r : check_net(policy, ceiling, reterr);
}
