/* SPDX-License-Identifier: MIT */
/* What of the network a command may reach: names before they are looked up, addresses
 * after. Two policies are asked, and both have to agree. */
#include "policy/policy.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "policy/private.h"

enum { V4_BYTES = 4, V6_BYTES = 16 };

/* ---- targets */

static void set_address(struct ad_net_host *host, int family, const void *addr)
{
	*host = (struct ad_net_host){ .family = family };
	memcpy(host->addr, addr, family == AF_INET ? V4_BYTES : V6_BYTES);
	inet_ntop(family, addr, host->text, sizeof(host->text));
}

void ad_net_host_from_in(struct ad_net_host *ret, const struct in_addr *addr)
{
	set_address(ret, AF_INET, addr);
}

void ad_net_host_from_in6(struct ad_net_host *ret, const struct in6_addr *addr)
{
	/* To the kernel they are the IPv4 address. */
	if (IN6_IS_ADDR_V4MAPPED(addr))
		set_address(ret, AF_INET, addr->s6_addr + V6_BYTES - V4_BYTES);
	else
		set_address(ret, AF_INET6, addr);
}

bool ad_net_host_parse(struct ad_net_host *ret, const char *text)
{
	struct ad_host_pattern pattern;
	struct in6_addr in6;
	struct in_addr in;

	if (strchr(text, ':')) {
		if (inet_pton(AF_INET6, text, &in6) != 1)
			return false;
		ad_net_host_from_in6(ret, &in6);
		return true;
	}
	/* inet_aton() would pass over what follows a blank. */
	if (text[strspn(text, "0123456789abcdefABCDEFxX.")] == '\0') {
		char number[64];
		size_t len = strlen(text);

		if (len > 0 && text[len - 1] == '.')
			len--;
		if (len < sizeof(number)) {
			memcpy(number, text, len);
			number[len] = '\0';
			if (inet_aton(number, &in)) {
				ad_net_host_from_in(ret, &in);
				return true;
			}
		}
	}
	if (strpbrk(text, "/*") || ad_host_parse(text, &pattern, NULL) < 0 || pattern.family)
		return false;
	*ret = (struct ad_net_host){ .family = 0 };
	memcpy(ret->text, pattern.text, sizeof(ret->text));
	return true;
}

/* ---- addresses that are nobody's on the Internet, or a door to the machine's inside */

struct block {
	int family;
	uint8_t addr[V6_BYTES], bits;
	const char *what;
};

#define V4(a, b, c, d, bits_, what_)                                                               \
	{                                                                                          \
		.family = AF_INET, .addr = { a, b, c, d }, .bits = (bits_), .what = (what_)        \
	}
#define V6(bits_, what_, ...)                                                                      \
	{                                                                                          \
		.family = AF_INET6, .addr = { __VA_ARGS__ }, .bits = (bits_), .what = (what_)      \
	}

/* The special-purpose registries of IANA (RFC 6890 and what came after), and the one
 * metadata service that has a public address. First match. */
static const struct block special[] = {
	V4(127, 0, 0, 0, 8, "loopback"),
	V4(10, 0, 0, 0, 8, "private"),
	V4(172, 16, 0, 0, 12, "private"),
	V4(192, 168, 0, 0, 16, "private"),
	V4(169, 254, 0, 0, 16, "link-local, metadata services among them"),
	V4(168, 63, 129, 16, 32, "a metadata service"),
	V4(100, 64, 0, 0, 10, "shared by a carrier's customers"),
	V4(0, 0, 0, 0, 8, "this network"),
	V4(192, 0, 0, 0, 24, "reserved"),
	V4(192, 0, 2, 0, 24, "for documentation"),
	V4(192, 88, 99, 0, 24, "reserved"),
	V4(198, 18, 0, 0, 15, "for benchmarks"),
	V4(198, 51, 100, 0, 24, "for documentation"),
	V4(203, 0, 113, 0, 24, "for documentation"),
	V4(224, 0, 0, 0, 4, "multicast"),
	V4(240, 0, 0, 0, 4, "reserved"),
	V6(128, "loopback", [15] = 1),
	V6(10, "link-local", 0xfe, 0x80),
	V6(7, "private", 0xfc),
	V6(8, "multicast", 0xff),
	V6(23, "reserved", 0x20, 0x01),
	V6(32, "for documentation", 0x20, 0x01, 0x0d, 0xb8),
	V6(16, "a tunnel to IPv4", 0x20, 0x02),
	V6(20, "for documentation", 0x3f, 0xff),
};
/* All of IPv6 that has been given out; the rest is reserved. */
static const struct block global6 = V6(3, NULL, 0x20);
/* IPv4 seen from networks that have IPv6 only (RFC 6052). */
static const struct block nat64 = V6(96, NULL, 0x00, 0x64, 0xff, 0x9b);

static bool within(const struct ad_net_host *host, const struct block *block)
{
	return host->family == block->family &&
	       ad_host_same_bits(host->addr, block->addr, block->bits);
}

static bool is_nat64(const struct ad_net_host *host, struct ad_net_host *ret)
{
	if (!within(host, &nat64))
		return false;
	set_address(ret, AF_INET, host->addr + V6_BYTES - V4_BYTES);
	return true;
}

const char *ad_net_special(const struct ad_net_host *address)
{
	struct ad_net_host v4;

	if (is_nat64(address, &v4))
		return ad_net_special(&v4);
	for (size_t i = 0; i < AD_COUNT(special); i++) {
		if (within(address, &special[i]))
			return special[i].what;
	}
	return address->family == AF_INET6 && !within(address, &global6) ? "reserved" : NULL;
}

/* ---- verdicts */

static void as_pattern(const struct ad_net_host *host, struct ad_host_pattern *ret)
{
	*ret = (struct ad_host_pattern){
		.family = host->family,
		.prefix = host->family == AF_INET ? V4_BYTES * 8 : V6_BYTES * 8,
	};
	memcpy(ret->text, host->text, sizeof(ret->text));
	memcpy(ret->addr, host->addr, sizeof(ret->addr));
}

/* The rule that denies it, also as the IPv4 address that is in it. */
static const struct ad_host_rule *denied_by(const agentd_policy *policy,
					    const struct ad_net_host *host)
{
	const struct ad_host_rule *rule;
	struct ad_host_pattern target;
	struct ad_net_host v4;

	as_pattern(host, &target);
	rule = ad_policy_host_denied(policy, &target);
	return rule || !is_nat64(host, &v4) ? rule : denied_by(policy, &v4);
}

static const struct ad_host_rule *allowed_by(const agentd_policy *policy,
					     const struct ad_host_pattern *target, uint16_t port)
{
	for (size_t i = 0; i < ad_policy_host_count(policy); i++) {
		const struct ad_host_rule *rule = policy->hosts[i];

		if (!rule->host.deny &&
		    (rule->host.port_first == 0 ||
		     (port >= rule->host.port_first && port <= rule->host.port_last)) &&
		    ad_host_covers(&rule->parsed, target))
			return rule;
	}
	return NULL;
}

static void answer(struct ad_net_answer *ret, enum ad_net_verdict verdict, const char *reason,
		   const char *pattern)
{
	ret->verdict = verdict;
	if (pattern)
		snprintf(ret->rule, sizeof(ret->rule), "%s %s", reason, pattern);
	else
		snprintf(ret->rule, sizeof(ret->rule), "%s", reason);
}

/* What one policy says: nothing of it is decided by the order of its rules. */
static void ask_one(const agentd_policy *policy, const struct ad_net_host *host, uint16_t port,
		    struct ad_net_answer *ret)
{
	const struct ad_host_rule *rule = denied_by(policy, host);
	const char *what = host->family ? ad_net_special(host) : NULL;
	struct ad_host_pattern target;

	as_pattern(host, &target);
	if (rule) {
		answer(ret, AD_NET_DENIED, "deny", rule->host.pattern);
		return;
	}
	if (ad_policy_net(policy) == AGENTD_NET_FULL) {
		answer(ret, AD_NET_ALLOWED, "network full", NULL);
		return;
	}
	rule = ad_policy_net(policy) == AGENTD_NET_ALLOWLIST ? allowed_by(policy, &target, port) :
							       NULL;
	if (rule)
		answer(ret, AD_NET_ALLOWED, "allow", rule->host.pattern);
	else if (what)
		answer(ret, AD_NET_DENIED, "address not named by the policy:", what);
	else
		answer(ret, AD_NET_UNDECIDED, "not in the allow-list", NULL);
}

void ad_net_check(const agentd_policy *ceiling, const agentd_policy *policy,
		  const struct ad_net_host *host, uint16_t port, struct ad_net_answer *ret)
{
	struct ad_net_answer most;

	ask_one(policy, host, port, ret);
	if (ret->verdict == AD_NET_DENIED || ceiling == policy)
		return;
	ask_one(ceiling, host, port, &most);
	if (most.verdict == AD_NET_ALLOWED)
		return;
	/* What the ceiling does not allow nobody can: there is nothing left to ask. */
	*ret = most;
	ret->verdict = AD_NET_DENIED;
}

bool ad_net_check_resolved(const agentd_policy *ceiling, const agentd_policy *policy,
			   const struct ad_net_host *address, uint16_t port,
			   struct ad_net_answer *ret)
{
	ad_net_check(ceiling, policy, address, port, ret);
	/* The name was allowed: an address of the Internet needs no rule of its own. */
	if (ret->verdict != AD_NET_ALLOWED && !ad_net_special(address) &&
	    !denied_by(ceiling, address) && !denied_by(policy, address))
		ret->verdict = AD_NET_ALLOWED;
	return ret->verdict == AD_NET_ALLOWED;
}
