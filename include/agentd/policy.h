/* SPDX-License-Identifier: MIT */
/** @file
 * What is allowed. A policy comes from the operator, never from a model.
 *
 * A new policy denies everything and asks for a sandbox. It is writable until
 * frozen, which the first use does; from then on it is immutable and safe to
 * share between threads and runners. Setters on a frozen policy return
 * AGENTD_ERR_STATE. Strings and structs are copied.
 *
 * A runner has a policy of its own, the ceiling: a context's policy can only
 * narrow it. Which backend enforces what is in the receipt of every result;
 * the host backend confines nothing, so it enforces neither path nor network
 * rules and runs only where both policies accept AGENTD_ISOLATION_NONE.
 */
#ifndef AGENTD_POLICY_H
#define AGENTD_POLICY_H

#include <agentd/base.h>
#include <agentd/limits.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Access to a path, or'ed together. */
enum { AGENTD_ACCESS_READ = 1, AGENTD_ACCESS_WRITE = 2, AGENTD_ACCESS_EXEC = 4 };

/** Network of a command: none, that of allowed hosts only, the host's. */
enum { AGENTD_NET_NONE = 0, AGENTD_NET_ALLOWLIST = 1, AGENTD_NET_FULL = 2 };

/** Strength order; a policy states the least it accepts. Gaps are deliberate. */
enum {
	AGENTD_ISOLATION_NONE = 0,
	AGENTD_ISOLATION_SANDBOX = 200, /**< namespaces + Landlock + seccomp + limits */
	AGENTD_ISOLATION_VM = 300
};

/** How strictly one layer of protection is meant. */
enum {
	AGENTD_PROTECTION_REQUIRED = 0,   /**< default: without it nothing runs */
	AGENTD_PROTECTION_DEGRADABLE = 1, /**< run without it, say so in the receipt */
	AGENTD_PROTECTION_OFF = 2         /**< not wanted */
};

/** A policy that denies everything. [any thread] */
AGENTD_API int agentd_policy_new(agentd_policy **ret, agentd_error **reterr) AGENTD_NODISCARD;
/** From JSON, UTF-8 bytes with a length (no NUL needed); agentd_policy(5) has
 *  the format. Unknown and duplicate keys are AGENTD_ERR_INVALID with a JSON
 *  pointer. [any thread] */
AGENTD_API int agentd_policy_from_json(const char *json, size_t len, agentd_policy **ret,
				       agentd_error **reterr) AGENTD_NODISCARD;
/** Take another reference; returns policy. [any thread] */
AGENTD_API agentd_policy *agentd_policy_ref(agentd_policy *policy);
/** Drop a reference; the last one frees it. [any thread] */
AGENTD_API void agentd_policy_unref(agentd_policy *policy);
/** Make it immutable. Idempotent. [any thread] */
AGENTD_API int agentd_policy_freeze(agentd_policy *policy);
/** Allow access (AGENTD_ACCESS_*, at least one) to an absolute path and what is
 *  beneath it. The path must be free of "." and ".." components. */
AGENTD_API int agentd_policy_allow_path(agentd_policy *policy, const char *path, uint32_t access,
					agentd_error **reterr);
/** Hide an absolute path and what is beneath it, also where a mount of the context shows
 *  it under another name. Wins over every allow. */
AGENTD_API int agentd_policy_deny_path(agentd_policy *policy, const char *path,
				       agentd_error **reterr);
/** AGENTD_NET_*. */
AGENTD_API int agentd_policy_set_net(agentd_policy *policy, int32_t mode, agentd_error **reterr);
/** Allow connections to a host in mode ALLOWLIST. Pattern: a name
 *  ("example.org"), a name with all below it ("*.example.org"), an address or a
 *  CIDR block (IPv4 or IPv6). A bare "*" is refused. Names are compared without
 *  case and trailing dot. An address that is not of the Internet (loopback, private,
 *  link-local, multicast) is reached only where it or its block is allowed, also by a name.
 *  Ports first..last inclusive; 0, 0 means every port. */
AGENTD_API int agentd_policy_allow_host(agentd_policy *policy, const char *host_pattern,
					uint16_t port_first, uint16_t port_last,
					agentd_error **reterr);
/** The same patterns, refused. Wins over every allow. */
AGENTD_API int agentd_policy_deny_host(agentd_policy *policy, const char *host_pattern,
				       agentd_error **reterr);
/** Strictness (AGENTD_PROTECTION_*) of one layer by name: "userns", "mountns",
 *  "pidns", "netns", "ipcns", "utsns", "cgroupns", "landlock", "seccomp",
 *  "capabilities", "keyring", "rlimits", "cgroup", "idmap". Unknown names are
 *  AGENTD_ERR_INVALID. The sandbox takes the first three as required whatever is
 *  set: all others stand on them. */
AGENTD_API int agentd_policy_set_protection(agentd_policy *policy, const char *layer,
					    int32_t strictness, agentd_error **reterr);
/** A name relative to a writable directory, such as ".git/hooks", that commands
 *  may not change. A component "*" stands for all that is there. */
AGENTD_API int agentd_policy_protect_name(agentd_policy *policy, const char *relative_path,
					  agentd_error **reterr);
/** Refuse a VM that is only emulated. */
AGENTD_API int agentd_policy_require_kvm(agentd_policy *policy, agentd_error **reterr);
/** A command that was stopped (timeout, cancellation, a limit, SIGTERM) leaves the working
 *  directory as it was. Only a backend that works on a copy of it can do that
 *  ("microvm"); others refuse. */
AGENTD_API int agentd_policy_discard_unfinished(agentd_policy *policy, agentd_error **reterr);
/** Let variables of the host program's environment through by name; a trailing
 *  "*" matches the rest ("LC_*"). */
AGENTD_API int agentd_policy_allow_env(agentd_policy *policy, const char *name_pattern,
				       agentd_error **reterr);
/** Ceilings; see struct agentd_limits. */
AGENTD_API int agentd_policy_set_limits(agentd_policy *policy, const struct agentd_limits *max,
					agentd_error **reterr);
/** The least isolation accepted, AGENTD_ISOLATION_*; default SANDBOX. */
AGENTD_API int agentd_policy_set_min_isolation(agentd_policy *policy, int32_t isolation,
					       agentd_error **reterr);
/** The policy as JSON, in the form agentd_policy_from_json() takes. Free *ret
 *  with agentd_free(); ret_len may be NULL. */
AGENTD_API int agentd_policy_to_json(const agentd_policy *policy, char **ret, size_t *ret_len,
				     agentd_error **reterr);

#ifdef __cplusplus
}
#endif

#endif
