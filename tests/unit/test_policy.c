/* SPDX-License-Identifier: MIT */
#include "unit.h"

#include <errno.h>

#include "json/json.h"
#include "policy/policy.h"
#include "util/util.h"

static agentd_policy *from_json(const char *json)
{
	agentd_policy *policy = NULL;
	agentd_error *err = NULL;

	ck_assert_msg(agentd_policy_from_json(json, strlen(json), &policy, &err) == 0, "%s: %s",
		      json, agentd_error_message(err));
	ck_assert_ptr_null(err);
	return policy;
}

static agentd_policy *new_policy(void)
{
	agentd_policy *policy = NULL;

	ck_assert_int_eq(agentd_policy_new(&policy, NULL), 0);
	return policy;
}

static char *to_json(const agentd_policy *policy)
{
	char *text = NULL;
	size_t len = 0;

	ck_assert_int_eq(agentd_policy_to_json(policy, &text, &len, NULL), 0);
	ck_assert_uint_eq(len, strlen(text));
	return text;
}

/* ---- limits */

START_TEST(test_limits_init)
{
	struct {
		struct agentd_limits limits;
		uint32_t fence;
	} s;

	memset(&s, 0xee, sizeof(s));
	agentd_limits_init(&s.limits, sizeof(s.limits));
	ck_assert_uint_eq(s.limits.size, sizeof(s.limits));
	for (size_t i = 0; i < AD_LIMIT_COUNT; i++)
		ck_assert_uint_eq(ad_limit_get(&s.limits, &ad_limit_descs[i]), 0);
	ck_assert_uint_eq(s.fence, 0xeeeeeeee);
	memset(&s, 0xee, sizeof(s));
	agentd_limits_init(&s.limits, 8);
	ck_assert_uint_eq(s.limits.size, 8);
	ck_assert_uint_eq(s.limits.timeout_ms, UINT64_C(0xeeeeeeeeeeeeeeee));
	agentd_limits_init(&s.limits, 7);
	ck_assert_uint_eq(s.limits.size, 8);
	agentd_limits_init(NULL, 80);
}
END_TEST

START_TEST(test_limits_table)
{
	struct agentd_limits limits;
	size_t bytes = sizeof(limits.size);

	agentd_limits_init(&limits, sizeof(limits));
	for (int i = 0; i < AD_LIMIT_COUNT; i++) {
		const struct ad_limit_desc *desc = &ad_limit_descs[i];

		ck_assert_int_eq(ad_limit_index(desc->name), i);
		ad_limit_set(&limits, desc, (uint64_t)i + 1);
		bytes += desc->is64 ? 8 : 4;
	}
	ck_assert_uint_eq(bytes, sizeof(limits)); /* every member is in the table */
	for (int i = 0; i < AD_LIMIT_COUNT; i++)
		ck_assert_uint_eq(ad_limit_get(&limits, &ad_limit_descs[i]), (uint64_t)i + 1);
	ck_assert_uint_eq(limits.pids_max, 1);
	ck_assert_uint_eq(limits.mem_bytes, (uint64_t)ad_limit_index("mem_bytes") + 1);
	ck_assert_int_eq(ad_limit_index("memory_bytes"), -1);
	ad_limit_set(&limits, &ad_limit_descs[ad_limit_index("pids_max")], UINT64_MAX);
	ck_assert_uint_eq(limits.pids_max, UINT32_MAX);
	ck_assert(ad_limit_unlimited(&ad_limit_descs[ad_limit_index("pids_max")], UINT32_MAX));
	ck_assert(!ad_limit_unlimited(&ad_limit_descs[ad_limit_index("io_bytes")], UINT32_MAX));
	ck_assert(ad_limit_unlimited(&ad_limit_descs[ad_limit_index("io_bytes")], UINT64_MAX));
}
END_TEST

static struct agentd_limits limits_of(uint64_t mem, uint32_t pids, uint64_t timeout)
{
	struct agentd_limits limits;

	agentd_limits_init(&limits, sizeof(limits));
	limits.mem_bytes = mem;
	limits.pids_max = pids;
	limits.timeout_ms = timeout;
	return limits;
}

#define BIT(name) (UINT32_C(1) << ad_limit_index(name))

START_TEST(test_limits_merge)
{
	const struct agentd_limits runner = limits_of(1000, UINT32_MAX, 0),
				   policy = limits_of(2000, 0, UINT64_MAX),
				   context = limits_of(500, 0, 0), exec = limits_of(700, 9, 70);
	const struct agentd_limits *layers[] = { &runner, &policy, &context, NULL };
	struct agentd_limits merged;
	uint32_t requested = 0;

	ad_limits_merge(NULL, 0, 0, 1 << 30, &merged, &requested);
	ck_assert_uint_eq(requested, 0);
	ck_assert_uint_eq(merged.size, sizeof(merged));
	ck_assert_uint_eq(merged.pids_max, 512);
	ck_assert_uint_eq(merged.mem_bytes, 1 << 29);
	ck_assert_uint_eq(merged.output_bytes, 64 << 20);
	ck_assert_uint_eq(merged.timeout_ms, 0);
	ck_assert_uint_eq(merged.cpu_ms_per_100ms, 0);
	ck_assert_uint_eq(merged.open_files_max, 0);

	ad_limits_merge(layers, 4, 2, 1 << 30, &merged, &requested);
	ck_assert_uint_eq(merged.mem_bytes, 500); /* the least */
	ck_assert_uint_eq(merged.pids_max, 0);    /* unlimited, says a policy */
	ck_assert_uint_eq(merged.timeout_ms, 0);
	ck_assert_uint_eq(requested, BIT("mem_bytes") | BIT("pids_max") | BIT("timeout_ms"));

	layers[3] = &exec;
	ad_limits_merge(layers, 4, 2, 1 << 30, &merged, &requested);
	ck_assert_uint_eq(merged.mem_bytes, 500);
	ck_assert_uint_eq(merged.pids_max, 9); /* lowered */
	ck_assert_uint_eq(merged.timeout_ms, 70);
}
END_TEST

/* "Unlimited" from anybody but a policy changes nothing. */
START_TEST(test_limits_merge_unlimited)
{
	const struct agentd_limits wish = limits_of(UINT64_MAX, UINT32_MAX, UINT64_MAX),
				   policy = limits_of(4096, 0, 0);
	const struct agentd_limits *layers[] = { &policy, NULL, &wish };
	struct agentd_limits merged;
	uint32_t requested = 0;

	ad_limits_merge(layers, 3, 2, 1 << 30, &merged, &requested);
	ck_assert_uint_eq(merged.mem_bytes, 4096);
	ck_assert_uint_eq(merged.pids_max, 512);
	ck_assert_uint_eq(merged.timeout_ms, 0);
	ck_assert_uint_eq(requested, BIT("mem_bytes"));
}
END_TEST

static struct json_object *parse(const char *text)
{
	struct json_object *value = NULL;

	ck_assert_int_eq(ad_json_parse(text, strlen(text), &value, NULL), 0);
	return value;
}

START_TEST(test_limits_json)
{
	const char text[] = "{\"pids_max\":4294967294,\"timeout_ms\":18446744073709551614,"
			    "\"mem_bytes\":\"unlimited\",\"cpu_ms_per_100ms\":\"unlimited\"}";
	struct json_object *value = parse(text);
	struct agentd_limits limits;
	char *written = NULL;
	bool any = false;

	ck_assert_int_eq(ad_limits_from_json(value, "/limits", &limits, NULL), 0);
	ad_json_free(value);
	ck_assert_uint_eq(limits.pids_max, UINT32_MAX - 1);
	ck_assert_uint_eq(limits.timeout_ms, UINT64_MAX - 1);
	ck_assert_uint_eq(limits.mem_bytes, UINT64_MAX);
	ck_assert_uint_eq(limits.cpu_ms_per_100ms, UINT32_MAX);
	ck_assert_uint_eq(limits.io_bytes, 0);
	value = ad_limits_to_json(&limits, &any);
	ck_assert(any);
	ck_assert_int_eq(ad_json_to_text(value, true, &written, NULL, NULL), 0);
	ck_assert_str_eq(written, text);
	free(written);
	agentd_limits_init(&limits, sizeof(limits));
	ad_json_free(ad_limits_to_json(&limits, &any));
	ck_assert(!any);
}
END_TEST

static const struct {
	const char *text, *pointer, *message;
} bad_limits[] = {
	{ "{\"memory_bytes\":-1}", "/l/memory_bytes", "unknown key \"memory_bytes\"" },
	{ "{\"mem_bytes\":-1}", "/l/mem_bytes", "invalid value: integer `-1`, expected u64" },
	{ "{\"mem_bytes\":18446744073709551616}", "/l/mem_bytes", "invalid type: floating point" },
	{ "{\"mem_bytes\":18446744073709551615}", "/l/mem_bytes",
	  "invalid value: integer `18446744073709551615`, expected 1 to 18446744073709551614" },
	{ "{\"pids_max\":0}", "/l/pids_max",
	  "invalid value: integer `0`, expected 1 to 4294967294" },
	{ "{\"pids_max\":4294967295}", "/l/pids_max", "invalid value: integer `4294967295`" },
	{ "{\"pids_max\":4294967296}", "/l/pids_max", "invalid value: integer `4294967296`" },
	{ "{\"pids_max\":\"none\"}", "/l/pids_max",
	  "invalid value: string \"none\", expected a number or \"unlimited\"" },
	{ "{\"pids_max\":\"unlimited\\u0000\"}", "/l/pids_max", "without NUL" },
	{ "{\"pids_max\":null}", "/l/pids_max", "invalid type: null, expected u64" },
	{ "{\"size\":80}", "/l/size", "unknown key \"size\"" },
	{ "[]", "/l", "invalid type: sequence, expected an object" },
};

START_TEST(test_bad_limits)
{
	struct json_object *value = parse(bad_limits[_i].text);
	struct agentd_limits limits = { .size = 1 };

	ck_refused(ad_limits_from_json(value, "/l", &limits, &refused), AGENTD_ERR_INVALID,
		   bad_limits[_i].pointer, bad_limits[_i].message);
	ck_assert_uint_eq(limits.size, 1);
	ad_json_free(value);
}
END_TEST

/* ---- the object */

START_TEST(test_defaults)
{
	agentd_policy *policy = new_policy();
	const agentd_policy *both[] = { policy, NULL };

	for (size_t i = 0; i < 2; i++) {
		const agentd_policy *p = both[i];

		ck_assert_int_eq(ad_policy_min_isolation(p), AGENTD_ISOLATION_SANDBOX);
		ck_assert_int_eq(ad_policy_net(p), AGENTD_NET_NONE);
		ck_assert(!ad_policy_require_kvm(p));
		ck_assert(!ad_policy_discard_unfinished(p));
		ck_assert_int_eq(ad_policy_protection(p, ad_policy_layer("landlock")),
				 AGENTD_PROTECTION_REQUIRED);
		ck_assert_int_eq(ad_policy_protection(p, ad_policy_layer("nonesuch")),
				 AGENTD_PROTECTION_REQUIRED);
		ck_assert(!ad_policy_env_allowed(p, "PATH"));
		ck_assert_uint_eq(ad_policy_path_count(p), 0);
		ck_assert_ptr_null(ad_policy_path_at(p, 0));
		ck_assert_uint_eq(ad_policy_host_count(p), 0);
		ck_assert_ptr_null(ad_policy_host_at(p, 0));
		ck_assert_uint_eq(ad_policy_limits(p)->size, sizeof(struct agentd_limits));
		ck_assert_uint_eq(ad_policy_limits(p)->pids_max, 0);
		ck_assert_str_eq(ad_policy_protected_at(p, 0), ".bash_aliases");
		for (size_t at = 1; at < 29; at++)
			ck_assert_str_lt(ad_policy_protected_at(p, at - 1),
					 ad_policy_protected_at(p, at));
		ck_assert_uint_eq(ad_policy_protected_count(p), 29);
		ck_assert_ptr_null(ad_policy_protected_at(p, 29));
	}
	ck_assert_ptr_eq(agentd_policy_ref(policy), policy);
	agentd_policy_unref(policy);
	agentd_policy_unref(policy);
	agentd_policy_unref(NULL);
	ck_assert_ptr_null(agentd_policy_ref(NULL));
}
END_TEST

START_TEST(test_setters)
{
	agentd_policy *policy = new_policy();
	struct agentd_limits limits;

	agentd_limits_init(&limits, sizeof(limits));
	limits.pids_max = 7;
	ck_assert_int_eq(agentd_policy_allow_path(policy, "/usr", AGENTD_ACCESS_READ, NULL), 0);
	ck_assert_int_eq(agentd_policy_allow_path(policy, "/usr", AGENTD_ACCESS_EXEC, NULL), 0);
	ck_assert_int_eq(agentd_policy_deny_path(policy, "/etc", NULL), 0);
	ck_assert_int_eq(agentd_policy_allow_path(policy, "/etc", AGENTD_ACCESS_READ, NULL), 0);
	ck_assert_uint_eq(ad_policy_path_count(policy), 2);
	ck_assert_uint_eq(ad_policy_path_at(policy, 0)->access,
			  AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC);
	ck_assert_uint_eq(ad_policy_path_at(policy, 1)->access, 0); /* denied for good */
	ck_assert_int_eq(agentd_policy_deny_path(policy, "/usr", NULL), 0);
	ck_assert_uint_eq(ad_policy_path_at(policy, 0)->access, 0);
	ck_assert_int_eq(agentd_policy_set_net(policy, AGENTD_NET_ALLOWLIST, NULL), 0);
	ck_assert_int_eq(agentd_policy_allow_host(policy, "Example.ORG.", 443, 443, NULL), 0);
	ck_assert_int_eq(agentd_policy_allow_host(policy, "example.org", 443, 443, NULL), 0);
	ck_assert_int_eq(agentd_policy_deny_host(policy, "*.evil.test", NULL), 0);
	ck_assert_uint_eq(ad_policy_host_count(policy), 2);
	ck_assert_str_eq(ad_policy_host_at(policy, 0)->pattern, "example.org");
	ck_assert_uint_eq(ad_policy_host_at(policy, 0)->port_first, 443);
	ck_assert(ad_policy_host_at(policy, 1)->deny);
	ck_assert_int_eq(agentd_policy_set_protection(policy, "idmap", AGENTD_PROTECTION_OFF, NULL),
			 0);
	ck_assert_int_eq(ad_policy_protection(policy, ad_policy_layer("idmap")),
			 AGENTD_PROTECTION_OFF);
	ck_assert_int_eq(agentd_policy_protect_name(policy, ".envrc", NULL), 0);
	ck_assert_int_eq(agentd_policy_protect_name(policy, ".envrc", NULL), 0);
	ck_assert_uint_eq(ad_policy_protected_count(policy), 30);
	ck_assert_str_eq(ad_policy_protected_at(policy, 29), ".envrc");
	ck_assert_int_eq(agentd_policy_require_kvm(policy, NULL), 0);
	ck_assert(ad_policy_require_kvm(policy));
	ck_assert_int_eq(agentd_policy_discard_unfinished(policy, NULL), 0);
	ck_assert(ad_policy_discard_unfinished(policy));
	ck_assert_int_eq(agentd_policy_set_limits(policy, &limits, NULL), 0);
	ck_assert_uint_eq(ad_policy_limits(policy)->pids_max, 7);
	ck_assert_int_eq(agentd_policy_set_min_isolation(policy, AGENTD_ISOLATION_VM, NULL), 0);
	ck_assert_int_eq(ad_policy_min_isolation(policy), AGENTD_ISOLATION_VM);
	agentd_policy_unref(policy);
}
END_TEST

START_TEST(test_env)
{
	agentd_policy *policy = new_policy();

	ck_assert_int_eq(agentd_policy_allow_env(policy, "TERM", NULL), 0);
	ck_assert_int_eq(agentd_policy_allow_env(policy, "LC_*", NULL), 0);
	ck_assert(ad_policy_env_allowed(policy, "TERM"));
	ck_assert(!ad_policy_env_allowed(policy, "TERMINFO"));
	ck_assert(!ad_policy_env_allowed(policy, "TER"));
	ck_assert(ad_policy_env_allowed(policy, "LC_ALL"));
	ck_assert(ad_policy_env_allowed(policy, "LC_"));
	ck_assert(!ad_policy_env_allowed(policy, "LC"));
	ck_assert(!ad_policy_env_allowed(policy, ""));
	ck_assert_int_eq(agentd_policy_allow_env(policy, "*", NULL), 0);
	ck_assert(ad_policy_env_allowed(policy, "ANY"));
	ck_assert(!ad_policy_env_allowed(policy, "BASH_FUNC_ls%%"));
	ck_assert(!ad_policy_env_allowed(policy, "A=B"));
	agentd_policy_unref(policy);
}
END_TEST

START_TEST(test_bad_setters)
{
	agentd_policy *policy = new_policy(), *out = NULL;
	struct agentd_limits limits;
	char *text = NULL;

	agentd_limits_init(&limits, sizeof(limits));
	limits.size = 12;
	errno = EDOM;
#define BAD(call, message) ck_refused(call, AGENTD_ERR_INVALID, "", message)
	BAD(agentd_policy_allow_path(policy, "../../etc", 1, &refused),
	    "path must be an absolute path: \"../../etc\"");
	BAD(agentd_policy_allow_path(policy, "/srv/../etc", 1, &refused), "\"/srv/../etc\"");
	BAD(agentd_policy_allow_path(policy, "", 1, &refused), "must not be empty");
	BAD(agentd_policy_allow_path(policy, "/usr", 0, &refused), "access 0x0 is not valid");
	BAD(agentd_policy_allow_path(policy, "/usr", 9, &refused), "access 0x9 is not valid");
	BAD(agentd_policy_deny_path(policy, "usr", &refused), "absolute");
	BAD(agentd_policy_set_net(policy, 3, &refused), "network mode 3");
	BAD(agentd_policy_set_net(policy, -1, &refused), "network mode -1");
	BAD(agentd_policy_allow_host(policy, "*", 0, 0, &refused), "matches everything");
	BAD(agentd_policy_allow_host(policy, "a.b", 80, 79, &refused), "ports 80-79");
	BAD(agentd_policy_allow_host(policy, "a.b", 0, 79, &refused), "ports 0-79");
	BAD(agentd_policy_deny_host(policy, "a.b:80", &refused), "\"a.b:80\"");
	BAD(agentd_policy_set_protection(policy, "firewall", 0, &refused), "\"firewall\"");
	BAD(agentd_policy_set_protection(policy, "netns", 3, &refused), "strictness 3");
	BAD(agentd_policy_set_protection(policy, "netns", -1, &refused), "strictness -1");
	BAD(agentd_policy_protect_name(policy, "/etc", &refused), "\"/etc\"");
	BAD(agentd_policy_protect_name(policy, "", &refused), "relative path");
	BAD(agentd_policy_protect_name(policy, "a/../b", &refused), "\"a/../b\"");
	BAD(agentd_policy_allow_env(policy, "", &refused), "environment pattern");
	BAD(agentd_policy_allow_env(policy, "A*B", &refused), "\"A*B\"");
	BAD(agentd_policy_allow_env(policy, "A=B", &refused), "\"A=B\"");
	BAD(agentd_policy_allow_env(policy, "**", &refused), "\"**\"");
	BAD(agentd_policy_set_min_isolation(policy, 100, &refused), "isolation 100");
	ck_refused(agentd_policy_set_limits(policy, &limits, &refused), AGENTD_ERR_ABI, "",
		   "struct agentd_limits: size is 12");

	BAD(agentd_policy_new(NULL, &refused), "ret must not be NULL");
	BAD(agentd_policy_from_json(NULL, 0, &out, &refused), "json must not be NULL");
	BAD(agentd_policy_from_json("{}", 2, NULL, &refused), "ret must not be NULL");
	BAD(agentd_policy_to_json(NULL, &text, NULL, &refused), "policy must not be NULL");
	BAD(agentd_policy_to_json(policy, NULL, NULL, &refused), "ret must not be NULL");
	BAD(agentd_policy_allow_path(NULL, "/", 1, &refused), "policy must not be NULL");
	BAD(agentd_policy_allow_path(policy, NULL, 1, &refused), "path must not be NULL");
	BAD(agentd_policy_deny_path(NULL, "/", &refused), "policy must not be NULL");
	BAD(agentd_policy_deny_path(policy, NULL, &refused), "path must not be NULL");
	BAD(agentd_policy_set_net(NULL, 0, &refused), "policy must not be NULL");
	BAD(agentd_policy_allow_host(NULL, "a", 0, 0, &refused), "policy must not be NULL");
	BAD(agentd_policy_allow_host(policy, NULL, 0, 0, &refused), "host_pattern must not be");
	BAD(agentd_policy_deny_host(NULL, "a", &refused), "policy must not be NULL");
	BAD(agentd_policy_deny_host(policy, NULL, &refused), "host_pattern must not be");
	BAD(agentd_policy_set_protection(NULL, "netns", 0, &refused), "policy must not be NULL");
	BAD(agentd_policy_set_protection(policy, NULL, 0, &refused), "layer must not be NULL");
	BAD(agentd_policy_protect_name(NULL, "a", &refused), "policy must not be NULL");
	BAD(agentd_policy_protect_name(policy, NULL, &refused), "relative_path must not be");
	BAD(agentd_policy_require_kvm(NULL, &refused), "policy must not be NULL");
	BAD(agentd_policy_discard_unfinished(NULL, &refused), "policy must not be NULL");
	BAD(agentd_policy_allow_env(NULL, "A", &refused), "policy must not be NULL");
	BAD(agentd_policy_allow_env(policy, NULL, &refused), "name_pattern must not be NULL");
	BAD(agentd_policy_set_limits(NULL, &limits, &refused), "policy must not be NULL");
	BAD(agentd_policy_set_limits(policy, NULL, &refused), "max must not be NULL");
	BAD(agentd_policy_set_min_isolation(NULL, 0, &refused), "policy must not be NULL");
#undef BAD
	ck_assert_int_eq(agentd_policy_freeze(NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(errno, EDOM);
	ck_assert_uint_eq(ad_policy_path_count(policy), 0);
	ck_assert_uint_eq(ad_policy_host_count(policy), 0);
	agentd_policy_unref(policy);
}
END_TEST

START_TEST(test_frozen)
{
	agentd_policy *policy = new_policy();
	struct agentd_limits limits;
	char *before, *after;

	agentd_limits_init(&limits, sizeof(limits));
	limits.pids_max = 1;
	ck_assert_int_eq(agentd_policy_freeze(policy), 0);
	ck_assert_int_eq(agentd_policy_freeze(policy), 0);
	before = to_json(policy);
#define FROZEN(call) ck_refused(call, AGENTD_ERR_STATE, "", "the policy is frozen")
	FROZEN(agentd_policy_allow_path(policy, "/", 1, &refused));
	FROZEN(agentd_policy_deny_path(policy, "/", &refused));
	FROZEN(agentd_policy_set_net(policy, 2, &refused));
	FROZEN(agentd_policy_allow_host(policy, "a", 0, 0, &refused));
	FROZEN(agentd_policy_deny_host(policy, "a", &refused));
	FROZEN(agentd_policy_set_protection(policy, "netns", 2, &refused));
	FROZEN(agentd_policy_protect_name(policy, "a", &refused));
	FROZEN(agentd_policy_require_kvm(policy, &refused));
	FROZEN(agentd_policy_discard_unfinished(policy, &refused));
	FROZEN(agentd_policy_allow_env(policy, "A", &refused));
	FROZEN(agentd_policy_set_limits(policy, &limits, &refused));
	FROZEN(agentd_policy_set_min_isolation(policy, 0, &refused));
#undef FROZEN
	after = to_json(policy);
	ck_assert_str_eq(before, after);
	agentd_free(before);
	agentd_free(after);
	agentd_policy_unref(policy);
}
END_TEST

START_TEST(test_too_many)
{
	agentd_policy *policy = new_policy();
	char text[32];

	for (int i = 0; i < 4096; i++) {
		snprintf(text, sizeof(text), "/p%d", i);
		ck_assert_int_eq(agentd_policy_allow_path(policy, text, 1, NULL), 0);
		snprintf(text, sizeof(text), "h%d.test", i);
		ck_assert_int_eq(agentd_policy_allow_host(policy, text, 0, 0, NULL), 0);
		snprintf(text, sizeof(text), "E%d", i);
		ck_assert_int_eq(agentd_policy_allow_env(policy, text, NULL), 0);
	}
	ck_refused(agentd_policy_allow_path(policy, "/x", 1, &refused), AGENTD_ERR_LIMIT, "",
		   "more than 4096 paths");
	ck_refused(agentd_policy_deny_host(policy, "x.test", &refused), AGENTD_ERR_LIMIT, "",
		   "more than 4096 hosts");
	ck_refused(agentd_policy_allow_env(policy, "X", &refused), AGENTD_ERR_LIMIT, "",
		   "more than 4096 environment patterns");
	ck_assert_int_eq(agentd_policy_allow_path(policy, "/p7", 2, NULL), 0); /* no new one */
	agentd_policy_unref(policy);
}
END_TEST

/* ---- hosts */

static const struct {
	const char *pattern, *normal;
} hosts[] = {
	{ "example.org", "example.org" },
	{ "EXAMPLE.Org.", "example.org" },
	{ "localhost", "localhost" },
	{ "*.Example.ORG", "*.example.org" },
	{ "*.example.org.", "*.example.org" },
	{ "xn--bcher-kva.example", "xn--bcher-kva.example" },
	{ "a-b.c0.d", "a-b.c0.d" },
	{ "1.2.3.4.example", "1.2.3.4.example" },
	{ "0x7f.example", "0x7f.example" },
	{ "3com.net", "3com.net" },
	{ "0xyz", "0xyz" },
	{ "127.0.0.1", "127.0.0.1" },
	{ "10.0.0.0/8", "10.0.0.0/8" },
	{ "10.0.0.1/32", "10.0.0.1" },
	{ "0.0.0.0/0", "0.0.0.0/0" },
	{ "2001:DB8:0:0::1", "2001:db8::1" },
	{ "2001:db8::/32", "2001:db8::/32" },
	{ "::1/128", "::1" },
	{ "::/0", "::/0" },
	{ "::", "::" },
	{ "64:ff9b::102:304", "64:ff9b::102:304" },
};

START_TEST(test_host)
{
	agentd_policy *policy = new_policy();

	ck_assert_int_eq(agentd_policy_allow_host(policy, hosts[_i].pattern, 0, 0, NULL), 0);
	ck_assert_str_eq(ad_policy_host_at(policy, 0)->pattern, hosts[_i].normal);
	agentd_policy_unref(policy);
}
END_TEST

static const struct {
	const char *pattern, *message;
} bad_hosts[] = {
	{ "", "must not be empty" },
	{ "*", "matches everything: \"*\"" },
	{ "*.", "matches everything: \"*.\"" },
	{ ".", "is not an IPv4 address" },
	{ "*..", "matches everything" },
	{ "*.*", "no host name has" },
	{ "*.*.example.org", "no host name has" },
	{ "a.*.org", "no host name has" },
	{ "*example.org", "no host name has" },
	{ ".example.org", "empty label" },
	{ "a..b", "empty label" },
	{ "example.org..", "empty label" },
	{ "-a.org", "hyphen" },
	{ "a-.org", "hyphen" },
	{ "a_b.org", "no host name has" },
	{ "a b", "no host name has" },
	{ "a\nb", "no host name has" },
	{ "user@host", "no host name has" },
	{ "b\xc3\xbc"
	  "cher.example",
	  "punycode" },
	{ "0x7f000001", "is not an IPv4 address of four decimal numbers: \"0x7f000001\"" },
	{ "0X7F.1", "is not an IPv4 address" },
	{ "0x", "is not an IPv4 address" },
	{ "2130706433", "is not an IPv4 address" },
	{ "127.1", "is not an IPv4 address" },
	{ "127.0.0.01", "is not an IPv4 address" },
	{ "0177.0.0.1", "is not an IPv4 address" },
	{ "127.0.0.1.", "is not an IPv4 address" },
	{ "127.0.0.256", "is not an IPv4 address" },
	{ "1.2.3.4.5", "is not an IPv4 address" },
	{ "example.1", "is not an IPv4 address" },
	{ "*.1", "is not an IPv4 address" },
	{ "10.0.0.0/33", "prefix length" },
	{ "10.0.0.0/", "prefix length" },
	{ "10.0.0.0/08", "prefix length" },
	{ "10.0.0.0/+8", "prefix length" },
	{ "10.0.0.0/8/8", "prefix length" },
	{ "10.0.0.1/8", "address bits behind its prefix: \"10.0.0.1/8\"" },
	{ "2001:db8::1/32", "address bits behind its prefix" },
	{ "2001:db8::/129", "prefix length" },
	{ "::ffff:127.0.0.1", "mapped to IPv6" },
	{ "::ffff:7f00:1", "mapped to IPv6" },
	{ "::ffff:0:0/96", "mapped to IPv6" },
	{ "fe80::1%eth0", "is not an IPv6 address" },
	{ "[::1]", "is not an IPv6 address" },
	{ ":::", "is not an IPv6 address" },
	{ "example.org/8", "has a slash, which only a block of addresses has" },
	{ "example.org:80", "has a port, which is given beside it: \"example.org:80\"" },
	{ "http://example.org", "is a URL, write its host alone: \"http://example.org\"" },
	{ "1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb", "is not an address" },
};

START_TEST(test_bad_host)
{
	agentd_policy *policy = new_policy();

	ck_refused(agentd_policy_allow_host(policy, bad_hosts[_i].pattern, 0, 0, &refused),
		   AGENTD_ERR_INVALID, "", bad_hosts[_i].message);
	ck_assert_uint_eq(ad_policy_host_count(policy), 0);
	agentd_policy_unref(policy);
}
END_TEST

START_TEST(test_host_lengths)
{
	agentd_policy *policy = new_policy();
	char name[300], label[65];

	memset(label, 'a', 64);
	label[64] = '\0';
	ck_refused(agentd_policy_allow_host(policy, label, 0, 0, &refused), AGENTD_ERR_INVALID, "",
		   "more than 63 bytes");
	label[63] = '\0';
	ck_assert_int_eq(agentd_policy_allow_host(policy, label, 0, 0, NULL), 0);
	snprintf(name, sizeof(name), "*.%s.%s.%s.%.61s", label, label, label, label);
	ck_assert_uint_eq(strlen(name), 255);
	ck_assert_int_eq(agentd_policy_allow_host(policy, name, 0, 0, NULL), 0);
	snprintf(name, sizeof(name), "*.%s.%s.%s.%.62s", label, label, label, label);
	ck_refused(agentd_policy_allow_host(policy, name, 0, 0, &refused), AGENTD_ERR_INVALID, "",
		   "more than 253 bytes");
	agentd_policy_unref(policy);
}
END_TEST

/* ---- JSON */

static const char whole[] =
	"{\"min_isolation\":\"vm\",\"paths\":{\"deny\":[\"/usr/private\"],\"read\":[\"/usr\","
	"\"/etc\"],\"write\":[\"/srv\"],\"exec\":[\"/usr\"]},\"net\":{\"mode\":\"allow\","
	"\"allow\":[\"example.org\",\"example.org:443\",\"*.test:8000-8100\",\"10.0.0.0/8\","
	"\"10.0.0.0/8:22\",\"[2001:db8::1]:443\",\"2001:db8::/32\"],\"deny\":[\"bad.example\","
	"\"::1\"]},\"env\":[\"LC_*\",\"TERM\"],\"limits\":{\"pids_max\":5,\"mem_bytes\":"
	"\"unlimited\"},\"protections\":{\"landlock\":\"degradable\",\"idmap\":\"off\"},"
	"\"protect_names\":[\".git/hooks\"],\"require_kvm\":true,\"discard_unfinished\":true}";

START_TEST(test_round_trip)
{
	agentd_policy *policy = from_json(whole);
	char *text = to_json(policy);

	ck_assert_str_eq(text, whole);
	agentd_free(text);
	ck_assert_int_eq(ad_policy_min_isolation(policy), AGENTD_ISOLATION_VM);
	ck_assert_uint_eq(ad_policy_path_count(policy), 4);
	ck_assert_uint_eq(ad_policy_host_count(policy), 9);
	ck_assert_uint_eq(ad_policy_protected_count(policy), 1);
	ck_assert_int_eq(agentd_policy_set_net(policy, 0, NULL), 0); /* not frozen */
	agentd_policy_unref(policy);
}
END_TEST

static const char *const good[] = {
	"{}",
	"{\"net\":{}}",
	"{\"net\":{\"deny\":[\"a.b\"]}}",
	"{\"net\":{\"mode\":\"full\",\"deny\":[\"a.b\"]}}",
	"{\"net\":{\"allow\":[\"a.b\"],\"mode\":\"allow\"}}",
	"{\"net\":{\"allow\":[\"*.b\"],\"deny\":[\"a.b\"],\"mode\":\"allow\"}}",
	"{\"net\":{\"mode\":\"none\",\"allow\":[]}}",
	"{\"paths\":{\"read\":[\"/a\",\"/a\"],\"write\":[\"/a\"]}}",
	"{\"paths\":{\"read\":[\"/a\"],\"deny\":[\"/a/b\",\"/a/b\"]}}",
	"{\"paths\":{},\"env\":[],\"limits\":{},\"protections\":{},\"protect_names\":[]}",
	"{\"require_kvm\":false,\"min_isolation\":\"none\"}",
};

START_TEST(test_good)
{
	agentd_policy *policy = from_json(good[_i]), *again;
	char *text = to_json(policy), *second;

	again = from_json(text);
	second = to_json(again);
	ck_assert_str_eq(text, second);
	agentd_free(text);
	agentd_free(second);
	agentd_policy_unref(policy);
	agentd_policy_unref(again);
}
END_TEST

static const struct {
	const char *json, *pointer, *message;
} bad[] = {
	{ "[]", "", "invalid type: sequence, expected an object" },
	{ "{\"x\":1}", "/x", "unknown key \"x\"" },
	{ "{\"__proto__\":{}}", "/__proto__", "unknown key \"__proto__\"" },
	{ "{\"env\":[],\"env\":[]}", "/env", "duplicate field `env`" },
	{ "{\"min_isolation\":\"host\"}", "/min_isolation",
	  "invalid value: string \"host\", expected \"none\", \"sandbox\" or \"vm\"" },
	{ "{\"min_isolation\":200}", "/min_isolation", "invalid type: integer `200`" },
	{ "{\"paths\":[]}", "/paths", "expected an object" },
	{ "{\"paths\":{\"x\":[]}}", "/paths/x", "unknown key \"x\"" },
	{ "{\"paths\":{\"read\":\"/a\"}}", "/paths/read", "expected an array" },
	{ "{\"paths\":{\"deny\":\"/a\"}}", "/paths/deny", "expected an array" },
	{ "{\"paths\":{\"read\":[\"/a\",5]}}", "/paths/read/1", "expected a string" },
	{ "{\"paths\":{\"read\":[\"/srv/../../etc\"]}}", "/paths/read/0", "\"/srv/../../etc\"" },
	{ "{\"paths\":{\"write\":[\"\"]}}", "/paths/write/0", "must not be empty" },
	{ "{\"paths\":{\"exec\":[\"bin\"]}}", "/paths/exec/0",
	  "must be an absolute path: \"bin\"" },
	{ "{\"paths\":{\"deny\":[\"/a/./b\"]}}", "/paths/deny/0", "\"/a/./b\"" },
	{ "{\"paths\":{\"read\":[\"/tmp\\u0000/../etc\"]}}", "/paths/read/0",
	  "invalid value: string \"/tmp\\0/../etc\", expected a string without NUL" },
	{ "{\"paths\":{\"read\":[\"/a\"],\"deny\":[\"/a\"]}}", "/paths/read/0",
	  "path is allowed, but \"/a\" is denied: \"/a\"" },
	{ "{\"paths\":{\"deny\":[\"/a\"],\"write\":[\"/x\",\"/a/b\"]}}", "/paths/write/1",
	  "path is allowed, but \"/a\" is denied: \"/a/b\"" },
	{ "{\"net\":\"none\"}", "/net", "expected an object" },
	{ "{\"net\":{\"mode\":\"allowlist\"}}", "/net/mode",
	  "invalid value: string \"allowlist\", expected \"none\", \"allow\" or \"full\"" },
	{ "{\"net\":{\"mode\":\"full\",\"hosts\":[]}}", "/net/hosts", "unknown key \"hosts\"" },
	{ "{\"net\":{\"allow\":[\"a.b\"]}}", "/net/allow",
	  "allowed hosts need the mode \"allow\", it is \"none\"" },
	{ "{\"net\":{\"mode\":\"full\",\"allow\":[\"a.b\"]}}", "/net/allow", "it is \"full\"" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":{}}}", "/net/allow", "expected an array" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"a.b\"],\"deny\":[\"a.b\"]}}", "/net/allow/0",
	  "host is allowed, but \"a.b\" is denied: \"a.b\"" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"1.2.3.4:5\"],\"deny\":[\"1.0.0.0/8\"]}}",
	  "/net/allow/0", "\"1.0.0.0/8\" is denied: \"1.2.3.4:5\"" },
	{ "{\"net\":{\"deny\":[\"a.b:80\"]}}", "/net/deny/0", "denied on every port: \"a.b:80\"" },
	{ "{\"net\":{\"deny\":[7]}}", "/net/deny/0", "expected a string" },
	{ "{\"env\":[\"A=B\"]}", "/env/0", "\"A=B\"" },
	{ "{\"env\":[\"A\\u0000\"]}", "/env/0", "without NUL" },
	{ "{\"env\":{}}", "/env", "expected an array" },
	{ "{\"limits\":{\"pids\":0}}", "/limits/pids", "unknown key \"pids\"" },
	{ "{\"limits\":{\"pids_max\":0}}", "/limits/pids_max", "integer `0`" },
	{ "{\"protections\":{\"landlock\":\"maybe\"}}", "/protections/landlock",
	  "expected \"required\", \"degradable\" or \"off\"" },
	{ "{\"protections\":{\"a/b\":\"off\"}}", "/protections/a~1b",
	  "there is no protection layer \"a/b\"" },
	{ "{\"protect_names\":[\"../x\"]}", "/protect_names/0", "\"../x\"" },
	{ "{\"protect_names\":[null]}", "/protect_names/0", "invalid type: null" },
	{ "{\"require_kvm\":1}", "/require_kvm", "expected a boolean" },
	{ "{\"discard_unfinished\":1}", "/discard_unfinished", "expected a boolean" },
};

START_TEST(test_bad)
{
	agentd_policy *policy = NULL;

	ck_refused(agentd_policy_from_json(bad[_i].json, strlen(bad[_i].json), &policy, &refused),
		   AGENTD_ERR_INVALID, bad[_i].pointer, bad[_i].message);
	ck_assert_int_eq(agentd_policy_from_json(bad[_i].json, strlen(bad[_i].json), &policy, NULL),
			 AGENTD_ERR_INVALID);
	ck_assert_ptr_null(policy);
}
END_TEST

static const struct {
	const char *text, *message;
} bad_json_hosts[] = {
	{ "example.com\\u0000.evil.test",
	  "invalid value: string \"example.com\\0.evil.test\", expected a string without NUL" },
	{ "0x7f000001", "\"0x7f000001\"" },
	{ "[::ffff:127.0.0.1]", "mapped to IPv6, write it as IPv4: \"::ffff:127.0.0.1\"" },
	{ "*.", "matches everything: \"*.\"" },
	{ "*", "matches everything: \"*\"" },
	{ "", "must not be empty" },
	{ "a.b:", "wrong ports" },
	{ "a.b:0", "wrong ports" },
	{ "a.b:65536", "wrong ports" },
	{ "a.b:080", "wrong ports" },
	{ "a.b:+80", "wrong ports" },
	{ "a.b:90-80", "wrong ports" },
	{ "a.b:80-", "wrong ports" },
	{ "a.b:-80", "wrong ports" },
	{ "a.b:80-90-100", "wrong ports" },
	{ "a.b:http", "wrong ports" },
	{ "https://a.b:80", "is a URL, write its host alone" },
	{ "a.b/c", "has a slash" },
	{ "[::1", "unpaired brackets" },
	{ "[::1]80", "unpaired brackets" },
	{ "[::1]:", "wrong ports" },
	{ "[1.2.3.4]:80", "brackets around what is not IPv6" },
	{ "[]", "brackets around what is not IPv6" },
	{ "::1]", "is not an IPv6 address" },
	{ ":80", "must not be empty" },
};

START_TEST(test_bad_json_host)
{
	ad_autobuf struct ad_buf json = { 0 };
	agentd_policy *policy = NULL;

	ad_buf_printf(&json, "{\"net\":{\"mode\":\"allow\",\"allow\":[\"ok.test\",\"%s\"]}}",
		      bad_json_hosts[_i].text);
	ck_refused(agentd_policy_from_json(json.data, json.len, &policy, &refused),
		   AGENTD_ERR_INVALID, "/net/allow/1", bad_json_hosts[_i].message);
}
END_TEST

START_TEST(test_long_json_host)
{
	char json[700];
	agentd_policy *policy = NULL;

	snprintf(json, sizeof(json), "{\"net\":{\"deny\":[\"%0600d\"]}}", 0);
	ck_refused(agentd_policy_from_json(json, strlen(json), &policy, &refused),
		   AGENTD_ERR_INVALID, "/net/deny/0", "is too long");
}
END_TEST

/* What setters made that reading would refuse is written as what it means. */
START_TEST(test_write_meaning)
{
	agentd_policy *policy = new_policy(), *again;
	char *text;

	agentd_policy_allow_path(policy, "/a/b", AGENTD_ACCESS_READ, NULL);
	agentd_policy_allow_path(policy, "/c", AGENTD_ACCESS_READ, NULL);
	agentd_policy_deny_path(policy, "/a", NULL);
	agentd_policy_allow_host(policy, "a.b", 0, 0, NULL); /* mode none */
	agentd_policy_deny_host(policy, "x.y", NULL);
	text = to_json(policy);
	ck_assert_ptr_nonnull(strstr(text, "\"paths\":{\"deny\":[\"/a\"],\"read\":[\"/c\"]},"
					   "\"net\":{\"mode\":\"none\",\"deny\":[\"x.y\"]}"));
	again = from_json(text);
	agentd_policy_unref(again);
	agentd_free(text);
	agentd_policy_set_net(policy, AGENTD_NET_ALLOWLIST, NULL);
	agentd_policy_allow_host(policy, "q.x.y", 0, 0, NULL);
	agentd_policy_deny_host(policy, "*.x.y", NULL);
	text = to_json(policy);
	ck_assert_ptr_nonnull(strstr(text, "\"allow\":[\"a.b\"]"));
	again = from_json(text);
	agentd_policy_unref(again);
	agentd_free(text);
	agentd_policy_unref(policy);
}
END_TEST

START_TEST(test_write_not_text)
{
	agentd_policy *policy = new_policy();
	char *text = NULL;

	agentd_policy_allow_path(policy, "/a\xff", AGENTD_ACCESS_READ, NULL);
	ck_refused(agentd_policy_to_json(policy, &text, NULL, &refused), AGENTD_ERR_INVALID, "",
		   "path is not UTF-8");
	agentd_policy_unref(policy);
	policy = new_policy();
	agentd_policy_protect_name(policy, "a\xff", NULL);
	ck_refused(agentd_policy_to_json(policy, &text, NULL, &refused), AGENTD_ERR_INVALID, "",
		   "protected name is not UTF-8");
	ck_assert_ptr_null(text);
	agentd_policy_unref(policy);
}
END_TEST

/* ---- the ceiling */

static const char ceiling_json[] =
	"{\"paths\":{\"read\":[\"/usr\",\"/srv\"],\"write\":[\"/srv\"],\"exec\":[\"/usr/bin\"],"
	"\"deny\":[\"/srv/secret\"]},\"net\":{\"mode\":\"allow\",\"allow\":[\"*.example.org:443\","
	"\"plain.test\",\"ports.test:100-200\",\"10.0.0.0/8\",\"2001:db8::/32\",\"all.test:1-65535\"],"
	"\"deny\":[\"bad.example.org\",\"10.9.0.0/16\"]}}";

static const struct {
	const char *json, *message; /* NULL: within */
} within[] = {
	{ "{}", NULL },
	{ "{\"paths\":{\"read\":[\"/usr\",\"/usr/lib\"],\"exec\":[\"/usr/bin\"]}}", NULL },
	{ "{\"paths\":{\"write\":[\"/srv\"],\"read\":[\"/srv/x\"]}}", NULL },
	{ "{\"paths\":{\"exec\":[\"/usr\"]}}", "allow to execute the path \"/usr\"" },
	{ "{\"paths\":{\"write\":[\"/usr/bin\"],\"exec\":[\"/usr/bin\"]}}",
	  "allow to write the path \"/usr/bin\"" },
	{ "{\"paths\":{\"read\":[\"/\"]}}", "allow to read the path \"/\"" },
	{ "{\"paths\":{\"read\":[\"/usrlocal\"]}}", "allow to read the path \"/usrlocal\"" },
	{ "{\"paths\":{\"read\":[\"/srv/secret/x\"]}}", "denies the path \"/srv/secret/x\"" },
	{ "{\"paths\":{\"deny\":[\"/home\"]}}", NULL },
	{ "{\"net\":{\"mode\":\"full\"}}", "allows network mode \"allow\", not \"full\"" },
	{ "{\"net\":{\"mode\":\"allow\"}}", NULL },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"a.example.org:443\"]}}", NULL },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"*.a.example.org:443\"]}}", NULL },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"example.org:443\"]}}", NULL },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"a.example.org\"]}}", "\"a.example.org\"" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"a.example.org:443-444\"]}}",
	  "\"a.example.org:443-444\"" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"myexample.org:443\"]}}", "myexample" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"*.org:443\"]}}", "*.org" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"bad.example.org:443\"]}}", "bad.example.org" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"plain.test:5\"]}}", NULL },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"*.plain.test\"]}}", "*.plain.test" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"ports.test:150-200\"]}}", NULL },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"ports.test:99-200\"]}}", "ports.test:99-200" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"all.test\"]}}", NULL },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"10.1.2.3\",\"10.1.0.0/16:80\"]}}", NULL },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"10.9.1.1\"]}}", "10.9.1.1" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"8.0.0.0/6\"]}}", "8.0.0.0/6" },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"[2001:db8:1::]:22\"]}}", NULL },
	{ "{\"net\":{\"mode\":\"allow\",\"allow\":[\"[2001:db9::]:22\"]}}", "[2001:db9::]:22" },
};

START_TEST(test_within)
{
	agentd_policy *ceiling = from_json(ceiling_json), *policy = from_json(within[_i].json);

	if (within[_i].message)
		ck_refused(ad_policy_within(policy, ceiling, &refused), AGENTD_ERR_DENIED, "",
			   within[_i].message);
	else
		ck_assert_int_eq(ad_policy_within(policy, ceiling, NULL), 0);
	ck_assert_int_eq(ad_policy_within(NULL, ceiling, NULL), 0);
	ck_assert_int_eq(ad_policy_within(policy, policy, NULL), 0);
	agentd_policy_unref(ceiling);
	agentd_policy_unref(policy);
}
END_TEST

START_TEST(test_within_nothing)
{
	agentd_policy *policy = from_json("{\"paths\":{\"read\":[\"/usr\"]}}"),
		      *net = from_json("{\"net\":{\"mode\":\"allow\",\"allow\":[\"a.b\"]}}"),
		      *full = from_json("{\"net\":{\"mode\":\"full\",\"deny\":[\"c.d\"]}}"),
		      *bad_net = from_json("{\"net\":{\"mode\":\"allow\",\"allow\":[\"c.d:1\"]}}");

	ck_assert_int_eq(ad_policy_within(NULL, NULL, NULL), 0);
	ck_refused(ad_policy_within(policy, NULL, &refused), AGENTD_ERR_DENIED, "", "\"/usr\"");
	ck_refused(ad_policy_within(net, NULL, &refused), AGENTD_ERR_DENIED, "",
		   "network mode \"none\", not \"allow\"");
	ck_assert_int_eq(ad_policy_within(net, full, NULL), 0);
	ck_assert_int_eq(ad_policy_within(full, full, NULL), 0);
	ck_refused(ad_policy_within(bad_net, full, &refused), AGENTD_ERR_DENIED, "", "\"c.d:1\"");
	agentd_policy_unref(policy);
	agentd_policy_unref(net);
	agentd_policy_unref(full);
	agentd_policy_unref(bad_net);
}
END_TEST

/* What a policy itself denies asks for nothing. */
START_TEST(test_within_denied)
{
	agentd_policy *policy = new_policy(), *ceiling = new_policy();

	agentd_policy_allow_path(policy, "/a/b", 1, NULL);
	agentd_policy_deny_path(policy, "/a", NULL);
	agentd_policy_set_net(policy, AGENTD_NET_ALLOWLIST, NULL);
	agentd_policy_set_net(ceiling, AGENTD_NET_ALLOWLIST, NULL);
	agentd_policy_allow_host(policy, "a.b", 0, 0, NULL);
	agentd_policy_deny_host(policy, "*.b", NULL);
	ck_assert_int_eq(ad_policy_within(policy, ceiling, NULL), 0);
	agentd_policy_unref(policy);
	agentd_policy_unref(ceiling);
}
END_TEST

/* ---- what a client writes, and what it may reach */

static const struct {
	const char *text, *normal; /* NULL: no host */
} targets[] = {
	{ "Example.ORG.", "example.org" },
	{ "XN--BCHER-KVA.example", "xn--bcher-kva.example" },
	{ "127.0.0.1", "127.0.0.1" },
	{ "127.1", "127.0.0.1" },
	{ "0x7f.1", "127.0.0.1" },
	{ "0x7F000001", "127.0.0.1" },
	{ "2130706433", "127.0.0.1" },
	{ "017700000001", "127.0.0.1" },
	{ "0177.0.0.01.", "127.0.0.1" },
	{ "::FFFF:127.0.0.1", "127.0.0.1" },
	{ "::ffff:7f00:1", "127.0.0.1" },
	{ "0:0:0:0:0:0:0:1", "::1" },
	{ "2001:DB8::1", "2001:db8::1" },
	{ "dead.beef", "dead.beef" },
	{ "", NULL },
	{ ".", NULL },
	{ "1.2.3.4.5", NULL },
	{ "256.1.1.1", NULL },
	{ "4294967296", NULL },
	{ "0x", NULL },
	{ "a.0x7f", NULL },
	{ "*", NULL },
	{ "*.example.org", NULL },
	{ "10.0.0.0/8", NULL },
	{ "a..b", NULL },
	{ "a b", NULL },
	{ "127.0.0.1 x", NULL },
	{ "b\xc3\xbc"
	  "cher.example",
	  NULL },
	{ "fe80::1%eth0", NULL },
	{ "[::1]", NULL },
	{ "::1::", NULL },
};

START_TEST(test_target)
{
	struct ad_net_host host;
	bool ok = ad_net_host_parse(&host, targets[_i].text);

	ck_assert_msg(ok == (targets[_i].normal != NULL), "\"%s\"", targets[_i].text);
	if (ok)
		ck_assert_str_eq(host.text, targets[_i].normal);
}
END_TEST

static const struct {
	const char *address;
	bool special;
} addresses[] = {
	{ "127.0.0.2", true },         { "10.1.2.3", true },    { "172.16.0.1", true },
	{ "172.31.255.255", true },    { "172.32.0.1", false }, { "192.168.7.7", true },
	{ "169.254.169.254", true },   { "100.64.0.1", true },  { "100.128.0.1", false },
	{ "0.0.0.0", true },           { "224.0.0.1", true },   { "255.255.255.255", true },
	{ "168.63.129.16", true },     { "8.8.8.8", false },    { "192.0.2.1", true },
	{ "198.18.0.1", true },        { "::1", true },         { "::", true },
	{ "fe80::1", true },           { "fc00::1", true },     { "fd00:ec2::254", true },
	{ "ff02::1", true },           { "2001:db8::1", true }, { "2606:4700::1111", false },
	{ "2002:7f00:1::", true },     { "2001::1", true },     { "64:ff9b::7f00:1", true },
	{ "64:ff9b::808:808", false }, { "4000::1", true },     { "::ffff:10.0.0.1", true },
};

START_TEST(test_special)
{
	struct ad_net_host host;

	ck_assert(ad_net_host_parse(&host, addresses[_i].address));
	ck_assert_msg((ad_net_special(&host) != NULL) == addresses[_i].special, "%s: %s",
		      addresses[_i].address, ad_net_special(&host));
}
END_TEST

static agentd_policy *policy_of(const char *json)
{
	agentd_policy *policy = NULL;

	ck_assert_int_eq(agentd_policy_from_json(json, strlen(json), &policy, NULL), 0);
	return policy;
}

#define RULES                                                                                      \
	"{\"net\":{\"mode\":\"allow\",\"allow\":[\"example.org:443\",\"*.pkg.test:8000-8010\","    \
	"\"10.1.0.0/16:80\",\"2606:4700::/32\",\"9.9.9.9\"],"                                      \
	"\"deny\":[\"bad.pkg.test\",\"10.1.9.0/24\",\"1.1.1.0/24\"]}}"

static const struct {
	const char *host;
	uint16_t port;
	enum ad_net_verdict verdict, open; /* under a ceiling of the same rules, and a full one */
	const char *rule;
} verdicts[] = {
	{ "example.org", 443, AD_NET_ALLOWED, AD_NET_ALLOWED, "allow example.org" },
	{ "EXAMPLE.org.", 443, AD_NET_ALLOWED, AD_NET_ALLOWED, "allow example.org" },
	{ "example.org", 444, AD_NET_UNDECIDED, AD_NET_UNDECIDED, "not in the allow-list" },
	{ "www.example.org", 443, AD_NET_UNDECIDED, AD_NET_UNDECIDED, "not in the allow-list" },
	{ "example.org.evil.test", 443, AD_NET_UNDECIDED, AD_NET_UNDECIDED, "not in" },
	{ "pkg.test", 8000, AD_NET_ALLOWED, AD_NET_ALLOWED, "allow *.pkg.test" },
	{ "a.b.pkg.test", 8010, AD_NET_ALLOWED, AD_NET_ALLOWED, "allow *.pkg.test" },
	{ "a.pkg.test", 8011, AD_NET_UNDECIDED, AD_NET_UNDECIDED, "not in" },
	{ "xpkg.test", 8000, AD_NET_UNDECIDED, AD_NET_UNDECIDED, "not in" },
	{ "bad.pkg.test", 8000, AD_NET_DENIED, AD_NET_DENIED, "deny bad.pkg.test" },
	{ "10.1.2.3", 80, AD_NET_ALLOWED, AD_NET_ALLOWED, "allow 10.1.0.0/16" },
	{ "10.1.2.3", 81, AD_NET_DENIED, AD_NET_DENIED, "not named by the policy: private" },
	{ "0xa.0x1.0x203", 80, AD_NET_ALLOWED, AD_NET_ALLOWED, "allow 10.1.0.0/16" },
	{ "10.1.9.1", 80, AD_NET_DENIED, AD_NET_DENIED, "deny 10.1.9.0/24" },
	{ "64:ff9b::0101:0101", 80, AD_NET_DENIED, AD_NET_DENIED, "deny 1.1.1.0/24" },
	{ "9.9.9.9", 1, AD_NET_ALLOWED, AD_NET_ALLOWED, "allow 9.9.9.9" },
	{ "::ffff:9.9.9.9", 1, AD_NET_ALLOWED, AD_NET_ALLOWED, "allow 9.9.9.9" },
	{ "9.9.9.10", 1, AD_NET_UNDECIDED, AD_NET_UNDECIDED, "not in the allow-list" },
	{ "2606:4700::1", 1, AD_NET_ALLOWED, AD_NET_ALLOWED, "allow 2606:4700::/32" },
	{ "127.0.0.1", 911, AD_NET_DENIED, AD_NET_DENIED, "loopback" },
};

START_TEST(test_verdict)
{
	agentd_policy *policy = policy_of(RULES),
		      *full = policy_of("{\"net\":{\"mode\":\"full\",\"deny\":[\"no.test\"]}}"),
		      *none = policy_of("{}"),
		      *some = policy_of("{\"net\":{\"mode\":\"allow\","
					"\"allow\":[\"*.test\"]}}");
	struct ad_net_answer answer;
	struct ad_net_host host;

	ck_assert(ad_net_host_parse(&host, verdicts[_i].host));
	ad_net_check(policy, policy, &host, verdicts[_i].port, &answer);
	ck_assert_int_eq(answer.verdict, verdicts[_i].verdict);
	ck_assert_msg(strstr(answer.rule, verdicts[_i].rule) != NULL, "%s", answer.rule);
	ad_net_check(full, policy, &host, verdicts[_i].port, &answer);
	ck_assert_int_eq(answer.verdict, verdicts[_i].open);
	/* A ceiling that does not allow leaves nothing to be asked. */
	ad_net_check(none, policy, &host, verdicts[_i].port, &answer);
	ck_assert_int_eq(answer.verdict, AD_NET_DENIED);
	ad_net_check(some, policy, &host, verdicts[_i].port, &answer);
	ck_assert_int_eq(answer.verdict == AD_NET_ALLOWED,
			 verdicts[_i].verdict == AD_NET_ALLOWED && strstr(host.text, ".test"));
	if (!strstr(host.text, ".test"))
		ck_assert_int_eq(answer.verdict, AD_NET_DENIED);
	agentd_policy_unref(policy);
	agentd_policy_unref(full);
	agentd_policy_unref(none);
	agentd_policy_unref(some);
}
END_TEST

/* A name that is allowed leads anywhere on the Internet, and to what else is named. */
START_TEST(test_resolved)
{
	static const struct {
		const char *address;
		uint16_t port;
		bool allowed;
	} cases[] = {
		{ "8.8.8.8", 443, true },
		{ "2606:4700::1", 443, true },
		{ "2a00:1450::1", 443, true },
		{ "127.0.0.1", 443, false },
		{ "::1", 443, false },
		{ "169.254.169.254", 80, false },
		{ "10.1.2.3", 80, true },
		{ "10.1.2.3", 443, false },
		{ "10.2.0.1", 80, false },
		{ "10.1.9.9", 80, false },
		{ "1.1.1.1", 443, false },
		{ "64:ff9b::101:101", 443, false },
		{ "64:ff9b::a00:1", 443, false },
		{ "64:ff9b::808:808", 443, true },
		{ "::ffff:127.0.0.1", 443, false },
	};
	agentd_policy *policy = policy_of(RULES),
		      *full = policy_of("{\"net\":{\"mode\":\"full\",\"deny\":[\"8.8.0.0/16\"]}}");
	struct ad_net_answer answer;
	struct ad_net_host host;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		ck_assert(ad_net_host_parse(&host, cases[i].address));
		ck_assert_msg(ad_net_check_resolved(policy, policy, &host, cases[i].port,
						    &answer) == cases[i].allowed,
			      "%s: %s", cases[i].address, answer.rule);
		ck_assert_int_eq(answer.verdict == AD_NET_ALLOWED, cases[i].allowed);
	}
	ck_assert(ad_net_host_parse(&host, "8.8.8.8"));
	ck_assert(!ad_net_check_resolved(full, policy, &host, 443, &answer));
	ck_assert_str_eq(answer.rule, "deny 8.8.0.0/16");
	agentd_policy_unref(policy);
	agentd_policy_unref(full);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("policy");

	tcase_add_loop_test(tc, test_target, 0, (int)(sizeof(targets) / sizeof(targets[0])));
	tcase_add_loop_test(tc, test_special, 0, (int)(sizeof(addresses) / sizeof(addresses[0])));
	tcase_add_loop_test(tc, test_verdict, 0, (int)(sizeof(verdicts) / sizeof(verdicts[0])));
	tcase_add_test(tc, test_resolved);
	tcase_add_test(tc, test_limits_init);
	tcase_add_test(tc, test_limits_table);
	tcase_add_test(tc, test_limits_merge);
	tcase_add_test(tc, test_limits_merge_unlimited);
	tcase_add_test(tc, test_limits_json);
	tcase_add_loop_test(tc, test_bad_limits, 0, (int)AD_COUNT(bad_limits));
	tcase_add_test(tc, test_defaults);
	tcase_add_test(tc, test_setters);
	tcase_add_test(tc, test_env);
	tcase_add_test(tc, test_bad_setters);
	tcase_add_test(tc, test_frozen);
	tcase_add_test(tc, test_too_many);
	tcase_add_loop_test(tc, test_host, 0, (int)AD_COUNT(hosts));
	tcase_add_loop_test(tc, test_bad_host, 0, (int)AD_COUNT(bad_hosts));
	tcase_add_test(tc, test_host_lengths);
	tcase_add_test(tc, test_round_trip);
	tcase_add_loop_test(tc, test_good, 0, (int)AD_COUNT(good));
	tcase_add_loop_test(tc, test_bad, 0, (int)AD_COUNT(bad));
	tcase_add_loop_test(tc, test_bad_json_host, 0, (int)AD_COUNT(bad_json_hosts));
	tcase_add_test(tc, test_long_json_host);
	tcase_add_test(tc, test_write_meaning);
	tcase_add_test(tc, test_write_not_text);
	tcase_add_loop_test(tc, test_within, 0, (int)AD_COUNT(within));
	tcase_add_test(tc, test_within_nothing);
	tcase_add_test(tc, test_within_denied);
	return unit_run("policy", tc);
}
