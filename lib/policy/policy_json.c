/* SPDX-License-Identifier: MIT */
#include "policy/policy.h"

#include <string.h>

#include "json/json.h"
#include "policy/private.h"

/* ---- words */

struct word {
	const char *name;
	int32_t value;
};

static const struct word isolations[] = {
	{ "none", AGENTD_ISOLATION_NONE },
	{ "sandbox", AGENTD_ISOLATION_SANDBOX },
	{ "vm", AGENTD_ISOLATION_VM },
};
static const struct word net_modes[] = {
	{ "none", AGENTD_NET_NONE },
	{ "allow", AGENTD_NET_ALLOWLIST },
	{ "full", AGENTD_NET_FULL },
};
static const struct word strictnesses[] = {
	{ "required", AGENTD_PROTECTION_REQUIRED },
	{ "degradable", AGENTD_PROTECTION_DEGRADABLE },
	{ "off", AGENTD_PROTECTION_OFF },
};
static const struct word accesses[] = {
	{ "read", AGENTD_ACCESS_READ },
	{ "write", AGENTD_ACCESS_WRITE },
	{ "exec", AGENTD_ACCESS_EXEC },
};
enum { WORD_COUNT = 3 }; /* in each of them */

static int read_word(const struct json_object *value, const char *pointer, const struct word *words,
		     int32_t *ret, agentd_error **reterr)
{
	const char *text;
	char what[128];
	int r;

	r = ad_json_get_string(value, pointer, &text, reterr);
	if (r < 0)
		return r;
	for (size_t i = 0; i < WORD_COUNT; i++) {
		if (strcmp(words[i].name, text) == 0) {
			*ret = words[i].value;
			return 0;
		}
	}
	ad_json_describe(value, what, sizeof(what));
	return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
		       "invalid value: %s, expected \"%s\", \"%s\" or \"%s\"", what, words[0].name,
		       words[1].name, words[2].name);
}

static const char *word_of(const struct word *words, int32_t value)
{
	size_t i = 0;

	while (i < WORD_COUNT - 1 && words[i].value != value)
		i++;
	return words[i].name;
}

/* ---- members by name */

typedef int (*read_fn)(agentd_policy *policy, const struct json_object *value, const char *pointer,
		       agentd_error **reterr);
struct member {
	const char *key;
	read_fn read; /* NULL: read before its siblings */
};
struct members {
	const struct member *table;
	size_t count;
	agentd_policy *policy;
};

static int read_member(const char *key, const struct json_object *value, const char *pointer,
		       void *userdata, agentd_error **reterr)
{
	const struct members *members = userdata;

	for (size_t i = 0; i < members->count; i++) {
		const struct member *member = &members->table[i];

		if (strcmp(member->key, key) != 0)
			continue;
		return member->read ? member->read(members->policy, value, pointer, reterr) : 0;
	}
	return ad_json_unknown_key(key, pointer, reterr);
}

static int read_members(const struct member *table, size_t count, agentd_policy *policy,
			const struct json_object *value, const char *pointer, agentd_error **reterr)
{
	struct members members = { .table = table, .count = count, .policy = policy };

	return ad_json_each_member(value, pointer, read_member, &members, reterr);
}

/* ---- paths */

struct path_list {
	agentd_policy *policy;
	uint32_t access;
};

static int read_path(const struct json_object *value, const char *pointer, void *userdata,
		     agentd_error **reterr)
{
	const struct path_list *list = userdata;
	const char *path, *denied;
	int r;

	r = ad_json_get_string(value, pointer, &path, reterr);
	if (r < 0)
		return r;
	r = list->access ? agentd_policy_allow_path(list->policy, path, list->access, reterr) :
			   agentd_policy_deny_path(list->policy, path, reterr);
	if (r < 0)
		return ad_error_at(r, pointer, reterr);
	if (ad_policy_note_pointer(list->policy, path, pointer) < 0)
		return ad_fail_nomem(reterr);
	if (!list->access)
		return 0;
	/* The denied ones were read first. */
	denied = ad_policy_path_denied(list->policy, path);
	if (denied)
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
			       "path is allowed, but \"%s\" is denied: \"%s\"", denied, path);
	return 0;
}

static int read_path_list(const char *key, const struct json_object *value, const char *pointer,
			  void *userdata, agentd_error **reterr)
{
	struct path_list list = { .policy = userdata };
	int32_t access = 0;

	if (strcmp(key, "deny") == 0)
		return 0; /* read before its siblings */
	for (size_t i = 0; i < WORD_COUNT; i++) {
		if (strcmp(accesses[i].name, key) == 0)
			access = accesses[i].value;
	}
	if (!access)
		return ad_json_unknown_key(key, pointer, reterr);
	list.access = (uint32_t)access;
	return ad_json_each_item(value, pointer, read_path, &list, reterr);
}

/* Read member "deny" of value before its siblings. */
static int read_deny_first(const struct json_object *value, const char *pointer, ad_json_item_fn fn,
			   void *userdata, agentd_error **reterr)
{
	ad_autobuf struct ad_buf deny_pointer = { 0 };
	const struct json_object *deny;

	if (!ad_json_member(value, "deny", &deny))
		return 0;
	if (!ad_buf_printf(&deny_pointer, "%s/deny", pointer))
		return ad_fail_nomem(reterr);
	return ad_json_each_item(deny, deny_pointer.data, fn, userdata, reterr);
}

static int read_paths(agentd_policy *policy, const struct json_object *value, const char *pointer,
		      agentd_error **reterr)
{
	struct path_list denied = { .policy = policy };
	int r = read_deny_first(value, pointer, read_path, &denied, reterr);

	return r < 0 ? r : ad_json_each_member(value, pointer, read_path_list, policy, reterr);
}

/* ---- network */

static int read_net_mode(agentd_policy *policy, const struct json_object *value,
			 const char *pointer, agentd_error **reterr)
{
	return read_word(value, pointer, net_modes, &policy->net, reterr);
}

static int read_host(const struct json_object *value, const char *pointer, agentd_policy *policy,
		     bool deny, agentd_error **reterr)
{
	const struct ad_host_rule *denied;
	struct ad_host_pattern parsed;
	char host[AD_POLICY_HOST_SIZE + 4]; /* longer ones are no names, with a reason */
	uint16_t first, last;
	const char *text;
	int r;

	r = ad_json_get_string(value, pointer, &text, reterr);
	if (r < 0)
		return r;
	r = ad_host_split_ports(text, host, sizeof(host), &first, &last, reterr);
	if (r == 0)
		r = ad_host_parse(host, &parsed, reterr);
	if (r < 0)
		return ad_error_at(r, pointer, reterr);
	if (deny && first)
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
			       "a denied host is denied on every port: \"%s\"", text);
	if (deny)
		return ad_error_at(agentd_policy_deny_host(policy, host, reterr), pointer, reterr);
	denied = ad_policy_host_denied(policy, &parsed);
	if (denied)
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
			       "host is allowed, but \"%s\" is denied: \"%s\"",
			       denied->host.pattern, text);
	return ad_error_at(agentd_policy_allow_host(policy, host, first, last, reterr), pointer,
			   reterr);
}

static int read_denied_host(const struct json_object *value, const char *pointer, void *userdata,
			    agentd_error **reterr)
{
	return read_host(value, pointer, userdata, true, reterr);
}

static int read_allowed_host(const struct json_object *value, const char *pointer, void *userdata,
			     agentd_error **reterr)
{
	return read_host(value, pointer, userdata, false, reterr);
}

static int read_allowed_hosts(agentd_policy *policy, const struct json_object *value,
			      const char *pointer, agentd_error **reterr)
{
	return ad_json_each_item(value, pointer, read_allowed_host, policy, reterr);
}

static int read_net(agentd_policy *policy, const struct json_object *value, const char *pointer,
		    agentd_error **reterr)
{
	static const struct member members[] = {
		{ "mode", read_net_mode },
		{ "allow", read_allowed_hosts },
		{ "deny", NULL },
	};
	ad_autobuf struct ad_buf allow_pointer = { 0 };
	int r;

	r = read_deny_first(value, pointer, read_denied_host, policy, reterr);
	if (r == 0)
		r = read_members(members, AD_COUNT(members), policy, value, pointer, reterr);
	if (r < 0 || policy->net == AGENTD_NET_ALLOWLIST)
		return r;
	for (size_t i = 0; i < policy->host_count; i++) {
		if (policy->hosts[i]->host.deny)
			continue;
		if (!ad_buf_printf(&allow_pointer, "%s/allow", pointer))
			return ad_fail_nomem(reterr);
		return ad_fail(reterr, AGENTD_ERR_INVALID, allow_pointer.data,
			       "allowed hosts need the mode \"allow\", it is \"%s\"",
			       word_of(net_modes, policy->net));
	}
	return 0;
}

/* ---- the rest */

static int read_min_isolation(agentd_policy *policy, const struct json_object *value,
			      const char *pointer, agentd_error **reterr)
{
	return read_word(value, pointer, isolations, &policy->min_isolation, reterr);
}

static int read_env_item(const struct json_object *value, const char *pointer, void *userdata,
			 agentd_error **reterr)
{
	const char *text;
	int r = ad_json_get_string(value, pointer, &text, reterr);

	return r < 0 ? r :
		       ad_error_at(agentd_policy_allow_env(userdata, text, reterr), pointer,
				   reterr);
}

static int read_env(agentd_policy *policy, const struct json_object *value, const char *pointer,
		    agentd_error **reterr)
{
	return ad_json_each_item(value, pointer, read_env_item, policy, reterr);
}

static int read_limits(agentd_policy *policy, const struct json_object *value, const char *pointer,
		       agentd_error **reterr)
{
	return ad_limits_from_json(value, pointer, &policy->limits, reterr);
}

static int read_protection(const char *key, const struct json_object *value, const char *pointer,
			   void *userdata, agentd_error **reterr)
{
	int32_t strictness = 0;
	int r = read_word(value, pointer, strictnesses, &strictness, reterr);

	if (r < 0)
		return r;
	return ad_error_at(agentd_policy_set_protection(userdata, key, strictness, reterr), pointer,
			   reterr);
}

static int read_protections(agentd_policy *policy, const struct json_object *value,
			    const char *pointer, agentd_error **reterr)
{
	return ad_json_each_member(value, pointer, read_protection, policy, reterr);
}

static int read_protected_name(const struct json_object *value, const char *pointer, void *userdata,
			       agentd_error **reterr)
{
	const char *text;
	int r = ad_json_get_string(value, pointer, &text, reterr);

	return r < 0 ? r :
		       ad_error_at(agentd_policy_protect_name(userdata, text, reterr), pointer,
				   reterr);
}

static int read_protect_names(agentd_policy *policy, const struct json_object *value,
			      const char *pointer, agentd_error **reterr)
{
	ad_policy_clear_protected(policy);
	return ad_json_each_item(value, pointer, read_protected_name, policy, reterr);
}

static int read_discard_unfinished(agentd_policy *policy, const struct json_object *value,
				   const char *pointer, agentd_error **reterr)
{
	return ad_json_get_bool(value, pointer, &policy->discard_unfinished, reterr);
}

static int read_require_kvm(agentd_policy *policy, const struct json_object *value,
			    const char *pointer, agentd_error **reterr)
{
	return ad_json_get_bool(value, pointer, &policy->require_kvm, reterr);
}

int ad_policy_from_json_value(const struct json_object *value, const char *pointer,
			      agentd_policy **ret, agentd_error **reterr)
{
	static const struct member members[] = {
		{ "min_isolation", read_min_isolation },
		{ "paths", read_paths },
		{ "net", read_net },
		{ "env", read_env },
		{ "limits", read_limits },
		{ "protections", read_protections },
		{ "protect_names", read_protect_names },
		{ "require_kvm", read_require_kvm },
		{ "discard_unfinished", read_discard_unfinished },
	};
	agentd_policy *policy;
	int r;

	r = agentd_policy_new(&policy, reterr);
	if (r < 0)
		return r;
	r = read_members(members, AD_COUNT(members), policy, value, pointer, reterr);
	if (r < 0) {
		agentd_policy_unref(policy);
		return r;
	}
	*ret = policy;
	return 0;
}

int agentd_policy_from_json(const char *json, size_t len, agentd_policy **ret,
			    agentd_error **reterr)
{
	ad_autojson struct json_object *value = NULL;
	AD_KEEP_ERRNO;
	int r;

	if (!json || !ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s must not be NULL",
			       json ? "ret" : "json");
	r = ad_json_parse(json, len, &value, reterr);
	return r < 0 ? r : ad_policy_from_json_value(value, "", ret, reterr);
}

/* ---- writing: rules that can never match are left out, reading refuses them */

/* Add list to object if it has anything in it. */
static bool add_list(struct json_object *object, const char *key, struct json_object *list,
		     bool any)
{
	if (any)
		return ad_json_add_value(object, key, list);
	ad_json_free(list);
	return list != NULL;
}

static bool add_path_list(struct json_object *object, const char *key, const agentd_policy *policy,
			  uint32_t access)
{
	struct json_object *list = ad_json_array();
	bool ok = true, any = false;

	for (size_t i = 0; i < policy->path_count && ok; i++) {
		const struct ad_policy_path *rule = &policy->paths[i];

		if (access ? !(rule->access & access) || ad_policy_path_denied(policy, rule->path) :
			     rule->access != 0)
			continue;
		ok = ad_json_add_string(list, NULL, rule->path);
		any = true;
	}
	return add_list(object, key, list, any) && ok;
}

static bool add_paths(struct json_object *object, const agentd_policy *policy)
{
	struct json_object *paths = ad_json_object();
	bool ok = add_path_list(paths, "deny", policy, 0);

	for (size_t i = 0; i < WORD_COUNT; i++)
		ok = add_path_list(paths, accesses[i].name, policy, (uint32_t)accesses[i].value) &&
		     ok;
	return add_list(object, "paths", paths, policy->path_count > 0) && ok;
}

static bool add_host_list(struct json_object *object, const char *key, const agentd_policy *policy,
			  bool deny)
{
	struct json_object *list = ad_json_array();
	bool ok = true, any = false;

	for (size_t i = 0; i < policy->host_count && ok; i++) {
		const struct ad_host_rule *rule = policy->hosts[i];
		ad_autobuf struct ad_buf text = { 0 };

		if (rule->host.deny != deny ||
		    (!deny && (policy->net != AGENTD_NET_ALLOWLIST ||
			       ad_policy_host_denied(policy, &rule->parsed))))
			continue;
		ok = ad_host_join_ports(&text, &rule->host) &&
		     ad_json_add_string(list, NULL, text.data);
		any = true;
	}
	return add_list(object, key, list, any) && ok;
}

static bool add_net(struct json_object *object, const agentd_policy *policy)
{
	struct json_object *net = ad_json_object();
	bool ok = ad_json_add_string(net, "mode", word_of(net_modes, policy->net));

	ok = add_host_list(net, "allow", policy, false) && ok;
	ok = add_host_list(net, "deny", policy, true) && ok;
	return ad_json_add_value(object, "net", net) && ok;
}

static bool add_names(struct json_object *object, const char *key, const struct ad_strlist *names,
		      bool always)
{
	struct json_object *list = ad_json_array();
	bool ok = true;

	for (size_t i = 0; i < names->count && ok; i++)
		ok = ad_json_add_string(list, NULL, names->items[i]);
	return add_list(object, key, list, always || names->count > 0) && ok;
}

static bool add_limits(struct json_object *object, const agentd_policy *policy)
{
	bool any;
	struct json_object *limits = ad_limits_to_json(&policy->limits, &any);

	return add_list(object, "limits", limits, any);
}

static bool add_protections(struct json_object *object, const agentd_policy *policy)
{
	struct json_object *protections = ad_json_object();
	bool ok = true, any = false;

	for (size_t i = 0; i < AD_POLICY_LAYER_COUNT && ok; i++) {
		if (policy->protection[i] == AGENTD_PROTECTION_REQUIRED)
			continue;
		ok = ad_json_add_string(protections, ad_policy_layers[i],
					word_of(strictnesses, policy->protection[i]));
		any = true;
	}
	return add_list(object, "protections", protections, any) && ok;
}

/* JSON has no form for bytes that are no text, and half a path is another one. */
static int check_text(const agentd_policy *policy, agentd_error **reterr)
{
	for (size_t i = 0; i < policy->path_count; i++) {
		const char *path = policy->paths[i].path;

		if (!ad_utf8_valid(path, strlen(path)))
			return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
				       "path is not UTF-8, so it has no JSON form: \"%s\"", path);
	}
	for (size_t i = 0; i < policy->protect.count; i++) {
		const char *name = policy->protect.items[i];

		if (!ad_utf8_valid(name, strlen(name)))
			return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
				       "protected name is not UTF-8, so it has no JSON form: "
				       "\"%s\"",
				       name);
	}
	return 0;
}

int agentd_policy_to_json(const agentd_policy *policy, char **ret, size_t *ret_len,
			  agentd_error **reterr)
{
	struct json_object *object;
	AD_KEEP_ERRNO;
	bool ok;
	int r;

	if (!policy || !ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s must not be NULL",
			       policy ? "ret" : "policy");
	r = check_text(policy, reterr);
	if (r < 0)
		return r;
	object = ad_json_object();
	ok = ad_json_add_string(object, "min_isolation",
				word_of(isolations, policy->min_isolation)) &&
	     add_paths(object, policy) && add_net(object, policy) &&
	     add_names(object, "env", &policy->env, false) && add_limits(object, policy) &&
	     add_protections(object, policy) &&
	     add_names(object, "protect_names", &policy->protect, true) &&
	     (!policy->require_kvm || ad_json_add_bool(object, "require_kvm", true)) &&
	     (!policy->discard_unfinished || ad_json_add_bool(object, "discard_unfinished", true));
	return ad_json_to_text(object, ok, ret, ret_len, reterr);
}
