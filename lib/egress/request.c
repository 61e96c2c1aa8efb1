/* SPDX-License-Identifier: MIT */
/* Requests of HTTP/1 proxies (RFC 9110, 9112) and of SOCKS5 (RFC 1928). What could be read in
 * two ways is refused. */
#include "egress/private.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { AUTHORITY_MAX = AD_NET_HOST_SIZE + 16, SOCKS_VERSION = 5, HTTP_PORT = 80 };

struct text {
	const char *at;
	size_t len;
};

static enum ad_request_verdict bad(struct ad_request *request, int status, const char *why)
{
	request->status = status;
	request->why = why;
	return AD_REQUEST_BAD;
}

static bool is(struct text text, const char *word)
{
	return text.len == strlen(word) && strncasecmp(text.at, word, text.len) == 0;
}

/* RFC 9110, 5.6.2 */
static bool is_token(struct text text)
{
	static const char others[] = "!#$%&'*+-.^_`|~";

	for (size_t i = 0; i < text.len; i++) {
		char c = text.at[i];

		if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
		      (c && strchr(others, c))))
			return false;
	}
	return text.len > 0;
}

/* Up to the first of `end`, which is skipped; false: it is not there. */
static bool cut(struct text *rest, char end, struct text *ret)
{
	const char *found = rest->len ? memchr(rest->at, end, rest->len) : NULL;

	if (!found)
		return false;
	*ret = (struct text){ rest->at, (size_t)(found - rest->at) };
	rest->at = found + 1;
	rest->len -= ret->len + 1;
	return true;
}

static bool read_u64(struct text text, uint64_t most, uint64_t *ret)
{
	*ret = 0;
	if (text.len == 0 || text.len > 18)
		return false;
	for (size_t i = 0; i < text.len; i++) {
		if (text.at[i] < '0' || text.at[i] > '9')
			return false;
		*ret = *ret * 10 + (uint64_t)(text.at[i] - '0');
	}
	return *ret <= most;
}

/* "host:port", "[v6]:port"; without a port only if there is a default. */
static const char *read_authority(struct ad_request *request, struct text text, uint16_t port)
{
	char host[AUTHORITY_MAX];
	struct text name = text, rest = { 0 };
	uint64_t number = port;

	if (text.len == 0 || text.len >= sizeof(host))
		return "the host is missing or too long";
	if (memchr(text.at, '@', text.len))
		return "credentials do not belong in an address";
	if (text.at[0] == '[') {
		const char *close = memchr(text.at, ']', text.len);

		if (!close)
			return "unpaired brackets in the address";
		name = (struct text){ text.at + 1, (size_t)(close - text.at - 1) };
		rest = (struct text){ close + 1, text.len - name.len - 2 };
		if (!memchr(name.at, ':', name.len))
			return "brackets around what is not IPv6";
	} else {
		const char *colon = memchr(text.at, ':', text.len);

		if (colon) {
			name.len = (size_t)(colon - text.at);
			rest = (struct text){ colon, text.len - name.len };
		}
	}
	if (rest.len > 0 ?
		    rest.at[0] != ':' || !read_u64((struct text){ rest.at + 1, rest.len - 1 },
						   UINT16_MAX, &number) :
		    port == 0)
		return "the port is missing or wrong";
	if (number == 0)
		return "the port is missing or wrong";
	memcpy(host, name.at, name.len);
	host[name.len] = '\0';
	if (strlen(host) != name.len || !ad_net_host_parse(&request->host, host))
		return "this is neither a host name nor an address";
	request->port = (uint16_t)number;
	return NULL;
}

/* ---- header fields */

struct headers {
	/* Of Connection. Every field's name is compared with each, so there are few. */
	struct text options[16];
	size_t option_count;
	bool has_length, chunked;
	uint64_t length;
};

static struct text trim(struct text text)
{
	while (text.len && (text.at[0] == ' ' || text.at[0] == '\t')) {
		text.at++;
		text.len--;
	}
	while (text.len && (text.at[text.len - 1] == ' ' || text.at[text.len - 1] == '\t'))
		text.len--;
	return text;
}

/* Name and value of the next line; false: it is none. */
static bool next_field(struct text *rest, struct text *name, struct text *value)
{
	struct text line;

	if (!cut(rest, '\n', &line) || line.len == 0 || line.at[line.len - 1] != '\r')
		return false;
	line.len--;
	if (!cut(&line, ':', name) || !is_token(*name))
		return false;
	*value = trim(line);
	for (size_t i = 0; i < value->len; i++) {
		unsigned char c = (unsigned char)value->at[i];

		if ((c < ' ' && c != '\t') || c == 0x7f)
			return false;
	}
	return true;
}

static const char *note_options(struct headers *headers, struct text value)
{
	while (value.len) {
		struct text option;

		if (!cut(&value, ',', &option)) {
			option = value;
			value.len = 0;
		}
		option = trim(option);
		if (!option.len)
			continue;
		if (headers->option_count == AD_COUNT(headers->options))
			return "too many options in Connection";
		headers->options[headers->option_count++] = option;
	}
	return NULL;
}

static const char *note_field(struct headers *headers, struct text name, struct text value)
{
	uint64_t length;

	if (is(name, "connection")) {
		return note_options(headers, value);
	} else if (is(name, "content-length")) {
		if (headers->has_length || !read_u64(value, UINT64_MAX - 1, &length))
			return "wrong Content-Length";
		headers->has_length = true;
		headers->length = length;
	} else if (is(name, "transfer-encoding")) {
		if (headers->chunked || !is(value, "chunked"))
			return "the only Transfer-Encoding is chunked";
		headers->chunked = true;
	}
	return headers->has_length && headers->chunked ?
		       "Content-Length and Transfer-Encoding at once" :
		       NULL;
}

/* Fields that are about this connection and not the next one. */
static bool is_hop(const struct headers *headers, struct text name)
{
	static const char *const hops[] = { "host",
					    "connection",
					    "keep-alive",
					    "te",
					    "trailer",
					    "upgrade",
					    "proxy-connection",
					    "proxy-authenticate",
					    "proxy-authorization" };

	for (size_t i = 0; i < AD_COUNT(hops); i++) {
		if (is(name, hops[i]))
			return true;
	}
	/* Naming these would take the frame of the body away. */
	if (is(name, "content-length") || is(name, "transfer-encoding"))
		return false;
	for (size_t i = 0; i < headers->option_count; i++) {
		struct text option = headers->options[i];

		if (option.len == name.len && strncasecmp(option.at, name.at, name.len) == 0)
			return true;
	}
	return false;
}

/* ---- HTTP */

static bool put_authority(struct ad_buf *head, const struct ad_request *request)
{
	ad_buf_printf(head, request->host.family == AF_INET6 ? "[%s]" : "%s", request->host.text);
	return request->port == HTTP_PORT || ad_buf_printf(head, ":%u", request->port);
}

static enum ad_request_verdict forward(struct ad_request *request, struct text method,
				       struct text path, struct text version, struct text fields)
{
	struct headers headers = { .length = 0 };
	struct text rest = fields, name, value;
	struct ad_buf *head = &request->head;

	while (rest.len) {
		const char *why = next_field(&rest, &name, &value) ?
					  note_field(&headers, name, value) :
					  "malformed header field";

		if (why)
			return bad(request, 400, why);
	}
	/* Some servers would look for the end of the body elsewhere (RFC 9112, 6.1). */
	if (headers.chunked && is(version, "HTTP/1.0"))
		return bad(request, 400, "HTTP/1.0 has no Transfer-Encoding");
	ad_buf_append(head, method.at, method.len);
	ad_buf_puts(head, path.len == 0 || path.at[0] != '/' ? " /" : " ");
	ad_buf_append(head, path.at, path.len);
	ad_buf_puts(head, " ");
	ad_buf_append(head, version.at, version.len);
	ad_buf_puts(head, "\r\nHost: ");
	put_authority(head, request);
	ad_buf_puts(head, "\r\n");
	for (rest = fields; rest.len && next_field(&rest, &name, &value);) {
		if (is_hop(&headers, name))
			continue;
		ad_buf_append(head, name.at, name.len);
		ad_buf_puts(head, ": ");
		ad_buf_append(head, value.at, value.len);
		ad_buf_puts(head, "\r\n");
	}
	/* One request per connection: the next one may be for another host. */
	ad_buf_puts(head, "Connection: close\r\n\r\n");
	if (head->failed)
		return bad(request, 503, "out of memory");
	request->kind = AD_REQUEST_FORWARD;
	request->body = headers.chunked ? UINT64_MAX : headers.length;
	return AD_REQUEST_DONE;
}

static enum ad_request_verdict parse_head(struct ad_request *request, struct text head)
{
	static const char scheme[] = "http://";
	struct text line, method, target, authority, path, name, value;
	const char *why;

	if (!cut(&head, '\n', &line) || line.len == 0 || line.at[line.len - 1] != '\r')
		return bad(request, 400, "malformed request line");
	line.len--;
	if (!cut(&line, ' ', &method) || !cut(&line, ' ', &target) || !is_token(method) ||
	    target.len == 0)
		return bad(request, 400, "malformed request line");
	if (!is(line, "HTTP/1.1") && !is(line, "HTTP/1.0"))
		return bad(request, 505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
	for (size_t i = 0; i < target.len; i++) {
		if ((unsigned char)target.at[i] <= ' ' || target.at[i] == 0x7f)
			return bad(request, 400, "malformed request line");
	}
	if (is(method, "CONNECT")) {
		while (head.len) {
			if (!next_field(&head, &name, &value))
				return bad(request, 400, "malformed header field");
		}
		why = read_authority(request, target, 0);
		request->kind = AD_REQUEST_CONNECT;
		request->body = UINT64_MAX;
		return why ? bad(request, 400, why) : AD_REQUEST_DONE;
	}
	if (target.len < sizeof(scheme) || strncasecmp(target.at, scheme, sizeof(scheme) - 1) != 0)
		return bad(request, 400,
			   "this is a proxy: it takes CONNECT, and URLs that begin with http://");
	authority = (struct text){ target.at + sizeof(scheme) - 1,
				   target.len - (sizeof(scheme) - 1) };
	path = (struct text){ authority.at + authority.len, 0 };
	for (size_t i = 0; i < authority.len; i++) {
		if (strchr("/?#", authority.at[i])) {
			path = (struct text){ authority.at + i, authority.len - i };
			authority.len = i;
			break;
		}
	}
	why = read_authority(request, authority, HTTP_PORT);
	return why ? bad(request, 400, why) : forward(request, method, path, line, head);
}

static enum ad_request_verdict parse_http(struct ad_request *request, const uint8_t *data,
					  size_t len)
{
	static const char end[] = "\r\n\r\n";
	const uint8_t *found = memmem(data, len, end, 4);

	if (memchr(data, '\0', found ? (size_t)(found - data) : len))
		return bad(request, 400, "a byte 0 in the request");
	if (!found)
		return len >= AD_REQUEST_MAX ? bad(request, 431, "the request's head is too long") :
					       AD_REQUEST_MORE;
	request->used = (size_t)(found - data) + 4;
	/* With the end of its last line, without the empty one. */
	return parse_head(request, (struct text){ (const char *)data, request->used - 2 });
}

/* ---- SOCKS5 */

static enum ad_request_verdict parse_greeting(struct ad_request *request, const uint8_t *data,
					      size_t len)
{
	if (len < 2 || len < 2u + data[1])
		return AD_REQUEST_MORE;
	if (!memchr(data + 2, 0, data[1]))
		return bad(request, 400, "no authentication is offered");
	request->used = 2u + data[1];
	request->greeted = true;
	return AD_REQUEST_GREETING;
}

static enum ad_request_verdict parse_socks(struct ad_request *request, const uint8_t *data,
					   size_t len)
{
	enum { VERSION, COMMAND, RESERVED, TYPE, ADDRESS };
	enum { CONNECT = 1, IPV4 = 1, NAME = 3, IPV6 = 4 };
	char name[256];
	size_t size;

	if (len <= ADDRESS)
		return AD_REQUEST_MORE;
	if (data[VERSION] != SOCKS_VERSION || data[COMMAND] != CONNECT || data[RESERVED] != 0)
		return bad(request, 405, "of SOCKS5 only CONNECT is spoken here");
	switch (data[TYPE]) {
	case IPV4:
		size = 4;
		break;
	case IPV6:
		size = 16;
		break;
	case NAME:
		size = 1u + data[ADDRESS];
		break;
	default:
		return bad(request, 400, "an unknown kind of address");
	}
	if (len < ADDRESS + size + 2)
		return AD_REQUEST_MORE;
	if (data[TYPE] == NAME) {
		memcpy(name, data + ADDRESS + 1, size - 1);
		name[size - 1] = '\0';
		if (strlen(name) != size - 1 || !ad_net_host_parse(&request->host, name))
			return bad(request, 400, "this is neither a host name nor an address");
	} else if (data[TYPE] == IPV4) {
		struct in_addr in;

		memcpy(&in, data + ADDRESS, sizeof(in));
		ad_net_host_from_in(&request->host, &in);
	} else {
		struct in6_addr in6;

		memcpy(&in6, data + ADDRESS, sizeof(in6));
		ad_net_host_from_in6(&request->host, &in6);
	}
	request->port = (uint16_t)(data[ADDRESS + size] << 8 | data[ADDRESS + size + 1]);
	request->used = ADDRESS + size + 2;
	request->kind = AD_REQUEST_SOCKS;
	request->body = UINT64_MAX;
	return request->port ? AD_REQUEST_DONE : bad(request, 400, "port 0");
}

enum ad_request_verdict ad_request_parse(struct ad_request *request, const uint8_t *data,
					 size_t len)
{
	if (request->greeted)
		return parse_socks(request, data, len);
	if (len == 0)
		return AD_REQUEST_MORE;
	if (data[0] == SOCKS_VERSION) {
		request->kind = AD_REQUEST_SOCKS;
		return parse_greeting(request, data, len);
	}
	return parse_http(request, data, len);
}
