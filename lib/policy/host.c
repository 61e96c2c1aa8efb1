/* SPDX-License-Identifier: MIT */
/* Host patterns: one spelling for each, so that two readers of a policy cannot
 * take it differently. */
#include "policy/private.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { NAME_MAX_BYTES = 253, LABEL_MAX_BYTES = 63, V4_BITS = 32, V6_BITS = 128 };

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int fail(agentd_error **reterr, const char *why, const char *text)
{
	return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "host pattern %s: \"%s\"", why, text);
}

/* Decimal without sign, leading zeros or anything behind it. */
static bool read_number(const char *text, size_t len, unsigned int most, unsigned int *ret)
{
	unsigned int value = 0;

	if (len == 0 || len > 5 || (len > 1 && text[0] == '0'))
		return false;
	for (size_t i = 0; i < len; i++) {
		if (!is_digit(text[i]))
			return false;
		value = value * 10 + (unsigned int)(text[i] - '0');
	}
	*ret = value;
	return value <= most;
}

/* ---- addresses */

static bool bit(const uint8_t *addr, unsigned int i)
{
	return addr[i / 8] >> (7 - i % 8) & 1;
}

bool ad_host_same_bits(const uint8_t *a, const uint8_t *b, unsigned int count)
{
	for (unsigned int i = 0; i < count; i++) {
		if (bit(a, i) != bit(b, i))
			return false;
	}
	return true;
}

static bool is_mapped(const struct ad_host_pattern *pattern)
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };

	return pattern->family == AF_INET6 && pattern->prefix >= 96 &&
	       memcmp(pattern->addr, mapped, sizeof(mapped)) == 0;
}

/* An address or a block; text has been found to look like one. */
static int parse_address(const char *text, struct ad_host_pattern *ret, agentd_error **reterr)
{
	const char *slash = strchr(text, '/');
	size_t len = slash ? (size_t)(slash - text) : strlen(text);
	char addr[INET6_ADDRSTRLEN];
	unsigned int bits;

	if (len >= sizeof(addr))
		return fail(reterr, "is not an address", text);
	memcpy(addr, text, len);
	addr[len] = '\0';
	ret->family = strchr(addr, ':') ? AF_INET6 : AF_INET;
	bits = ret->family == AF_INET6 ? V6_BITS : V4_BITS;
	ret->prefix = bits;
	if (inet_pton(ret->family, addr, ret->addr) != 1)
		return fail(reterr,
			    ret->family == AF_INET6 ?
				    "is not an IPv6 address" :
				    "is not an IPv4 address of four decimal numbers",
			    text);
	if (slash && !read_number(slash + 1, strlen(slash + 1), bits, &ret->prefix))
		return fail(reterr, "has a wrong prefix length", text);
	if (is_mapped(ret))
		return fail(reterr, "is an IPv4 address mapped to IPv6, write it as IPv4", text);
	for (unsigned int i = ret->prefix; i < bits; i++) {
		if (bit(ret->addr, i))
			return fail(reterr, "has address bits behind its prefix", text);
	}
	inet_ntop(ret->family, ret->addr, ret->text, sizeof(ret->text));
	if (ret->prefix < bits) {
		len = strlen(ret->text);
		snprintf(ret->text + len, sizeof(ret->text) - len, "/%u", ret->prefix);
	}
	return 0;
}

/* ---- names */

/* What inet_aton() and browsers take for a number: such a name would be an IPv4
 * address to some of those who read it. */
static bool is_numeric_label(const char *label, size_t len)
{
	size_t digits = 0;

	if (len >= 2 && label[0] == '0' && label[1] == 'x')
		return strspn(label + 2, "0123456789abcdef") >= len - 2;
	while (digits < len && is_digit(label[digits]))
		digits++;
	return digits == len;
}

static const char *check_label(const char *label, size_t len)
{
	if (len == 0)
		return "has an empty label";
	if (len > LABEL_MAX_BYTES)
		return "has a label of more than 63 bytes";
	if (label[0] == '-' || label[len - 1] == '-')
		return "has a label that begins or ends with a hyphen";
	for (size_t i = 0; i < len; i++) {
		if (label[i] & 0x80)
			return "is not ASCII, write it in punycode (\"xn--...\")";
		if (!is_letter(label[i]) && !is_digit(label[i]) && label[i] != '-')
			return "has a character that no host name has";
	}
	return NULL;
}

static int parse_name(const char *text, struct ad_host_pattern *ret, agentd_error **reterr)
{
	size_t len = strlen(text), label_len = 0;
	const char *name = text, *label;

	if (strncmp(text, "*.", 2) == 0) {
		ret->wildcard = true;
		name += 2;
		len -= 2;
	}
	if (len > 0 && name[len - 1] == '.')
		len--;
	if (len == 0)
		return fail(reterr, "matches everything", text);
	if (len > NAME_MAX_BYTES)
		return fail(reterr, "has a name of more than 253 bytes", text);
	memcpy(ret->text, text, (size_t)(name - text) + len);
	ret->text[(size_t)(name - text) + len] = '\0';
	for (char *c = ret->text; *c; c++) {
		if (*c >= 'A' && *c <= 'Z')
			*c = (char)(*c - 'A' + 'a');
	}
	label = ret->text + (name - text);
	for (;;) {
		const char *why;

		label_len = strcspn(label, ".");
		why = check_label(label, label_len);
		if (why)
			return fail(reterr, why, text);
		if (!label[label_len])
			break;
		label += label_len + 1;
	}
	if (is_numeric_label(label, label_len))
		return fail(reterr, "is not an IPv4 address of four decimal numbers", text);
	return 0;
}

/* What people write in the place of a host. */
static const char *check_form(const char *text)
{
	if (!*text)
		return "must not be empty";
	if (strstr(text, "://"))
		return "is a URL, write its host alone";
	if (strchr(text, '/') && !strchr(text, ':') && text[strspn(text, "0123456789.")] != '/')
		return "has a slash, which only a block of addresses has";
	return NULL;
}

int ad_host_parse(const char *text, struct ad_host_pattern *ret, agentd_error **reterr)
{
	struct ad_host_pattern parsed = { 0 };
	const char *why = check_form(text), *colon = strchr(text, ':');
	int r;

	if (why)
		return fail(reterr, why, text);
	if (colon && !strchr(colon + 1, ':'))
		return fail(reterr, "has a port, which is given beside it", text);
	if (strcmp(text, "*") == 0)
		return fail(reterr, "matches everything", text);
	/* No name has a colon or a slash, and no name is made of digits and dots. */
	if (strpbrk(text, ":/") || text[strspn(text, "0123456789.")] == '\0')
		r = parse_address(text, &parsed, reterr);
	else
		r = parse_name(text, &parsed, reterr);
	if (r == 0)
		*ret = parsed;
	return r;
}

static bool name_within(const char *name, const char *parent)
{
	size_t len = strlen(name), parent_len = strlen(parent);

	if (len < parent_len || strcmp(name + len - parent_len, parent) != 0)
		return false;
	return len == parent_len || name[len - parent_len - 1] == '.';
}

bool ad_host_covers(const struct ad_host_pattern *a, const struct ad_host_pattern *b)
{
	if (a->family != b->family)
		return false;
	if (a->family)
		return a->prefix <= b->prefix && ad_host_same_bits(a->addr, b->addr, a->prefix);
	if (a->wildcard)
		return name_within(b->wildcard ? b->text + 2 : b->text, a->text + 2);
	return !b->wildcard && strcmp(a->text, b->text) == 0;
}

/* ---- ports, as JSON has them */

static bool read_ports(const char *text, uint16_t *first, uint16_t *last)
{
	const char *dash = strchr(text, '-');
	size_t len = dash ? (size_t)(dash - text) : strlen(text);
	unsigned int from, to;

	if (!read_number(text, len, UINT16_MAX, &from))
		return false;
	to = from;
	if (dash && !read_number(dash + 1, strlen(dash + 1), UINT16_MAX, &to))
		return false;
	if (from == 0 || from > to)
		return false;
	*first = (uint16_t)from;
	*last = (uint16_t)to;
	return true;
}

int ad_host_split_ports(const char *text, char *host, size_t size, uint16_t *first, uint16_t *last,
			agentd_error **reterr)
{
	const char *begin = text, *end, *ports = NULL, *why = check_form(text);

	*first = *last = 0;
	if (why)
		return fail(reterr, why, text);
	if (*text == '[') {
		begin++;
		end = strchr(text, ']');
		if (!end || (end[1] != '\0' && end[1] != ':'))
			return fail(reterr, "has unpaired brackets", text);
		if (!memchr(begin, ':', (size_t)(end - begin)))
			return fail(reterr, "has brackets around what is not IPv6", text);
		if (end[1])
			ports = end + 2;
	} else {
		end = strchr(text, ':');
		/* More than one colon: an IPv6 address, which has ports only in brackets. */
		if (end && !strchr(end + 1, ':'))
			ports = end + 1;
		else
			end = text + strlen(text);
	}
	if (ports && !read_ports(ports, first, last))
		return fail(reterr, "has wrong ports, expected 1 to 65535 or first-last", text);
	if ((size_t)(end - begin) >= size)
		return fail(reterr, "is too long", text);
	memcpy(host, begin, (size_t)(end - begin));
	host[end - begin] = '\0';
	return 0;
}

bool ad_host_join_ports(struct ad_buf *buf, const struct ad_policy_host *host)
{
	bool bracket = host->port_first && strchr(host->pattern, ':');

	ad_buf_printf(buf, bracket ? "[%s]" : "%s", host->pattern);
	if (host->port_first)
		ad_buf_printf(buf, ":%u", host->port_first);
	if (host->port_first != host->port_last)
		ad_buf_printf(buf, "-%u", host->port_last);
	return !buf->failed;
}
