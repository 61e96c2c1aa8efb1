/* SPDX-License-Identifier: MIT */
/* Rules and limits: pure, no I/O. Implements agentd/policy.h and agentd/limits.h. */
#ifndef AD_POLICY_H
#define AD_POLICY_H

#include <stdbool.h>

#include <agentd/limits.h>
#include <agentd/policy.h>

struct json_object;

/* ---- limits */

/* The members of struct agentd_limits by name, so that nothing lists them twice. */
struct ad_limit_desc {
	const char *name;
	uint16_t offset;
	bool is64;
	uint64_t builtin; /* when nobody set it: 0 none, else the default; see below */
};
enum { AD_LIMIT_COUNT = 11 };
extern const struct ad_limit_desc ad_limit_descs[AD_LIMIT_COUNT];
uint64_t ad_limit_get(const struct agentd_limits *limits, const struct ad_limit_desc *desc);
void ad_limit_set(struct agentd_limits *limits, const struct ad_limit_desc *desc, uint64_t value);
/* Whether value is the type's maximum: explicitly unlimited. */
bool ad_limit_unlimited(const struct ad_limit_desc *desc, uint64_t value);
/* Index of a limit by name, or -1. */
int ad_limit_index(const char *name);

/* Take a caller's limits, whatever their size; AGENTD_ERR_ABI as ad_sized_copy(). */
int ad_limits_copy(struct agentd_limits *ret, const struct agentd_limits *limits,
		   agentd_error **reterr);

int ad_limits_from_json(const struct json_object *value, const char *pointer,
			struct agentd_limits *ret, agentd_error **reterr);
/* Object of the members that are set ("unlimited" for the maximum), or NULL on
 * NOMEM; *any says whether there was one. */
struct json_object *ad_limits_to_json(const struct agentd_limits *limits, bool *any);

/* Effective limits from several layers (entries may be NULL), weakest trust last:
 * the least of what is set; "unlimited" holds only if a *policy* layer (the first
 * n_policy) says it and none lowers it; what nobody set gets the built-in default,
 * where mem_bytes is half of machine_memory. Result: 0 = none. requested gets a
 * bit per limit (index) that some layer set. */
void ad_limits_merge(const struct agentd_limits *const *layers, size_t count, size_t n_policy,
		     uint64_t machine_memory, struct agentd_limits *ret, uint32_t *requested);

/* ---- layers of protection by name, in the order of enum ad_layer */

enum { AD_POLICY_LAYER_COUNT = 14 };
extern const char *const ad_policy_layers[AD_POLICY_LAYER_COUNT];
int ad_policy_layer(const char *layer); /* its index, or -1 */

/* ---- policy: read access for core; frozen policies only. NULL is a policy of
 * nothing but defaults. */

struct ad_policy_path {
	char *path;
	uint32_t access; /* AGENTD_ACCESS_*; 0: denied */
	char *pointer;   /* where its JSON first names it, or NULL */
};

struct ad_policy_host {
	char *pattern;                  /* normalised */
	uint16_t port_first, port_last; /* 0, 0: every port */
	bool deny;
};

const struct agentd_limits *ad_policy_limits(const agentd_policy *policy);
int32_t ad_policy_min_isolation(const agentd_policy *policy);
int32_t ad_policy_net(const agentd_policy *policy);
bool ad_policy_require_kvm(const agentd_policy *policy);
bool ad_policy_discard_unfinished(const agentd_policy *policy);
int32_t ad_policy_protection(const agentd_policy *policy, int layer); /* -1: required */
bool ad_policy_env_any(const agentd_policy *policy); /* whether it lets any name through */
bool ad_policy_env_allowed(const agentd_policy *policy, const char *name);
size_t ad_policy_path_count(const agentd_policy *policy);
const struct ad_policy_path *ad_policy_path_at(const agentd_policy *policy, size_t i);
/* The access that rules on path and what it lies beneath give together, 0 where it is
 * denied. False: there is no rule. */
bool ad_policy_path_access(const agentd_policy *policy, const char *path, uint32_t *ret);
/* Does it allow so much? Else AGENTD_ERR_DENIED, saying whose policy it is. */
int ad_policy_check_path(const agentd_policy *policy, const char *whose, const char *path,
			 uint32_t access, const char *pointer, agentd_error **reterr);
size_t ad_policy_host_count(const agentd_policy *policy);
const struct ad_policy_host *ad_policy_host_at(const agentd_policy *policy, size_t i);
size_t ad_policy_protected_count(const agentd_policy *policy);
const char *ad_policy_protected_at(const agentd_policy *policy, size_t i);

/* ---- hosts that a command wants to reach */

struct in_addr;
struct in6_addr;

enum { AD_NET_HOST_SIZE = 256 }; /* a normalised name or address and its NUL */

struct ad_net_host {
	char text[AD_NET_HOST_SIZE];
	int family;       /* AF_INET, AF_INET6, or 0 for a name */
	uint8_t addr[16]; /* network byte order */
};

/* From what a client wrote (no port, no brackets), with the same spelling as in rules:
 * lower case, no trailing dot, IPv4 in whatever notation inet_aton(3) takes as four
 * decimal numbers, IPv4 mapped to IPv6 as IPv4. False: it is no host. */
bool ad_net_host_parse(struct ad_net_host *ret, const char *text);
void ad_net_host_from_in(struct ad_net_host *ret, const struct in_addr *addr);
void ad_net_host_from_in6(struct ad_net_host *ret, const struct in6_addr *addr);
/* What is special about an address, or NULL: loopback, link-local, private, ... Such ones
 * must be named by an address or block in the policy. */
const char *ad_net_special(const struct ad_net_host *address);

enum ad_net_verdict { AD_NET_ALLOWED, AD_NET_DENIED, AD_NET_UNDECIDED };

struct ad_net_answer {
	enum ad_net_verdict verdict;
	char rule[AD_NET_HOST_SIZE + 64]; /* which, in words */
};

/* May this be reached under policy, within ceiling (which may be the same)? UNDECIDED: no
 * rule is about it, and ceiling has nothing against it. */
void ad_net_check(const agentd_policy *ceiling, const agentd_policy *policy,
		  const struct ad_net_host *host, uint16_t port, struct ad_net_answer *ret);
/* The same for what a name that is allowed led to: then only what is special needs to be
 * named, and what is denied stays so. */
bool ad_net_check_resolved(const agentd_policy *ceiling, const agentd_policy *policy,
			   const struct ad_net_host *address, uint16_t port,
			   struct ad_net_answer *ret);

/* Does `policy` ask for no more than `ceiling` allows? Else AGENTD_ERR_DENIED
 * naming the rule: a path not covered, a network mode wider, an allowed host the
 * ceiling does not allow. (Limits, isolation, environment and protections are
 * merged by taking the stricter, so they need no check.) */
int ad_policy_within(const agentd_policy *policy, const agentd_policy *ceiling,
		     agentd_error **reterr);

/* From a parsed object at pointer, for context JSON. */
int ad_policy_from_json_value(const struct json_object *value, const char *pointer,
			      agentd_policy **ret, agentd_error **reterr);

#endif
