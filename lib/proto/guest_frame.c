/* SPDX-License-Identifier: MIT */
#include "proto/guest_private.h"

#include <limits.h>
#include <string.h>

#include "proto/wire.h"

enum {
	ERRNO_MAX = 4095,
	PID_MAX = 1 << 22, /* of Linux */
	SIGNAL_MAX = 64,
	LIMITS_SIZE = 7 * 8,
	RUN_FIXED = 3 * 4 + LIMITS_SIZE + 2 * 4,
	RUN_LEAST = RUN_FIXED + 3, /* "/" and one empty argument */
	SETUP_FIXED = AD_GUEST_SEED_SIZE + 8 + 2 * 4,
	FIXED_MAX = RUN_FIXED
};
_Static_assert(FIXED_MAX >= SETUP_FIXED, "SETUP does not fit");

#define HOST_SENDS .from = { [AD_GUEST_HOST] = true }
#define AGENT_SENDS .from = { [AD_GUEST_AGENT] = true }
#define BOTH_SEND .from = { [AD_GUEST_HOST] = true, [AD_GUEST_AGENT] = true }
#define EXACTLY(size) .min = (size), .max = (size)
#define AND_TEXT(size) .min = (size) + 1, .max = (size) + AD_GUEST_TEXT_MAX
#define AND_PATH(size) .min = (size) + 2, .max = (size) + PATH_MAX

static const struct ad_guest_kind kinds[] = {
	[AD_GUEST_SETUP] = { "SETUP", HOST_SENDS, .min = SETUP_FIXED + 1,
			     .max = SETUP_FIXED + PATH_MAX },
	[AD_GUEST_RUN] = { "RUN", HOST_SENDS, true, .min = RUN_LEAST, .max = AD_GUEST_RUN_MAX },
	[AD_GUEST_SIGNAL] = { "SIGNAL", HOST_SENDS, true, EXACTLY(4) },
	[AD_GUEST_KILL] = { "KILL", HOST_SENDS, true, EXACTLY(0) },
	[AD_GUEST_PUT] = { "PUT", HOST_SENDS, true, AND_PATH(8 + 4 + 4) },
	[AD_GUEST_GET] = { "GET", HOST_SENDS, true, AND_PATH(8) },
	[AD_GUEST_STOP] = { "STOP", HOST_SENDS, EXACTLY(4) },
	[AD_GUEST_WARM] = { "WARM", HOST_SENDS, EXACTLY(0) },
	[AD_GUEST_DATA] = { "DATA", BOTH_SEND, true, true, 1, AD_GUEST_DATA_MAX },
	[AD_GUEST_END] = { "END", BOTH_SEND, true, true, EXACTLY(0) },
	[AD_GUEST_CREDIT] = { "CREDIT", BOTH_SEND, true, true, EXACTLY(4) },
	[AD_GUEST_PING] = { "PING", BOTH_SEND, EXACTLY(8) },
	[AD_GUEST_PONG] = { "PONG", BOTH_SEND, EXACTLY(8) },
	[AD_GUEST_HANGUP] = { "HANGUP", BOTH_SEND, true, EXACTLY(0), .of_connection = true },
	/* What follows the version is another version's business. */
	[AD_GUEST_HELLO] = { "HELLO", AGENT_SENDS, .min = 4, .max = 4096 },
	[AD_GUEST_READY] = { "READY", AGENT_SENDS, AND_TEXT(4) },
	[AD_GUEST_STARTED] = { "STARTED", AGENT_SENDS, true, EXACTLY(4) },
	[AD_GUEST_FAILED] = { "FAILED", AGENT_SENDS, true, AND_TEXT(1 + 4) },
	[AD_GUEST_LIMIT] = { "LIMIT", AGENT_SENDS, true, EXACTLY(1 + 1) },
	[AD_GUEST_EXITED] = { "EXITED", AGENT_SENDS, true, EXACTLY(4 + 8) },
	[AD_GUEST_CLOSED] = { "CLOSED", AGENT_SENDS, true, EXACTLY(8 + 8 + 4) },
	[AD_GUEST_DONE] = { "DONE", AGENT_SENDS, true, AND_TEXT(4 + 8 + 8) },
	[AD_GUEST_LOG] = { "LOG", AGENT_SENDS, AND_TEXT(1) },
	[AD_GUEST_OPEN] = { "OPEN", AGENT_SENDS, true, EXACTLY(0), .of_connection = true },
};

const struct ad_guest_kind *ad_guest_kind(unsigned int type)
{
	return type < AD_COUNT(kinds) && kinds[type].name ? &kinds[type] : NULL;
}

void ad_guest_header_decode(struct ad_guest_header *ret, const uint8_t *at)
{
	struct reader in = { .at = at, .left = AD_GUEST_HEADER };

	ret->len = get_u32(&in);
	ret->type = (uint8_t)get(&in, 1);
	ret->stream = (uint8_t)get(&in, 1);
	ret->connection = (uint16_t)get(&in, 2);
	ret->id = get_u32(&in);
}

/* ---- texts: one line of UTF-8, fit for a log and a terminal */

/* Length of the character that text begins with; 0 for a control character, what is not
 * UTF-8, and the end. */
static size_t character(const char *text)
{
	const unsigned char *at = (const unsigned char *)text;

	if (at[0] < 0x20 || at[0] == 0x7f || (at[0] == 0xc2 && at[1] < 0xa0))
		return 0;
	for (size_t size = 1; size <= 4 && at[size - 1]; size++)
		if (ad_utf8_valid(at, size))
			return size;
	return 0;
}

static void put_text(struct ad_buf *out, const char *text)
{
	char line[AD_GUEST_TEXT_MAX];
	size_t len = 0;

	for (const char *at = text ? text : ""; *at;) {
		size_t size = character(at), step = size ? size : 1;

		if (len + step >= sizeof(line))
			break;
		memcpy(line + len, size ? at : "?", step);
		len += step;
		at += step;
	}
	line[len++] = '\0';
	ad_buf_append(out, line, len);
}

/* The rest of the body, up to its only NUL; NULL if it is not that. */
static const char *get_rest(struct reader *in, size_t max)
{
	const char *text = (const char *)in->at;

	if (in->bad || in->left == 0 || in->left > max ||
	    memchr(in->at, '\0', in->left) != in->at + in->left - 1)
		return NULL;
	in->at += in->left;
	in->left = 0;
	return text;
}

static const char *get_text(struct reader *in, const char **ret)
{
	size_t size;

	*ret = get_rest(in, AD_GUEST_TEXT_MAX);
	if (!*ret)
		return "a text that does not end where it should";
	for (const char *at = *ret; *at; at += size) {
		size = character(at);
		if (size == 0)
			return "a text that is not a line of UTF-8";
	}
	return NULL;
}

static const char *get_path(struct reader *in, const char **ret)
{
	*ret = get_rest(in, PATH_MAX);
	if (!*ret || ad_path_check(*ret) != AD_PATH_OK)
		return "a path that is not absolute and plain";
	return NULL;
}

/* ---- RUN */

static uint8_t *put_limits(uint8_t *at, const struct ad_guest_limits *limits)
{
	at = put(at, limits->memory, 8);
	at = put(at, limits->pids, 8);
	at = put(at, limits->cpu_time_ms, 8);
	at = put(at, limits->io, 8);
	at = put(at, limits->file, 8);
	at = put(at, limits->open_files, 8);
	return put(at, limits->cpu_ms_per_100ms, 8);
}

static void get_limits(struct reader *in, struct ad_guest_limits *ret)
{
	ret->memory = get(in, 8);
	ret->pids = get(in, 8);
	ret->cpu_time_ms = get(in, 8);
	ret->io = get(in, 8);
	ret->file = get(in, 8);
	ret->open_files = get(in, 8);
	ret->cpu_ms_per_100ms = get(in, 8);
}

/* What the vectors take in memory counts like what they are in the frame. */
static size_t vectors_size(uint64_t argc, uint64_t envc)
{
	return (argc + 1 + envc + 1) * sizeof(char *);
}

static bool put_strings(struct ad_buf *out, const char *const *strv, size_t most)
{
	for (; *strv; strv++)
		if (!ad_buf_append(out, *strv, strlen(*strv) + 1) || out->len > most)
			return false;
	return true;
}

static const char *get_run(struct reader *in, struct ad_guest_msg *ret, const char ***ret_vectors)
{
	uint32_t argc, envc;
	const char *at;
	const char **argv, **env;

	ret->u.run.flags = get_u32(in);
	ret->u.run.uid = get_u32(in);
	ret->u.run.gid = get_u32(in);
	get_limits(in, &ret->u.run.limits);
	argc = get_u32(in);
	envc = get_u32(in);
	if (ret->u.run.flags & ~(uint32_t)AD_GUEST_RUN_FLAGS)
		return "flags that do not exist";
	if (ret->u.run.uid == UINT32_MAX || ret->u.run.gid == UINT32_MAX)
		return "a user or group that cannot be";
	if (argc == 0)
		return "no arguments";
	if (vectors_size(argc, envc) > AD_GUEST_RUN_MAX - RUN_FIXED - in->left)
		return "too many strings";
	at = (const char *)in->at;
	if (!ad_wire_strings_check(at, in->left, 1 + (uint64_t)argc + envc))
		return "strings that do not fill it";
	if (ad_path_check(at) != AD_PATH_OK)
		return "a path that is not absolute and plain";
	ret->u.run.workdir = at;
	at += strlen(at) + 1;
	argv = ret_vectors ? malloc(vectors_size(argc, envc)) : NULL;
	if (!argv)
		return NULL;
	*ret_vectors = argv;
	env = argv + argc + 1;
	ad_wire_strings_fill(ad_wire_strings_fill(at, argv, argc), env, envc);
	ret->u.run.argv = argv;
	ret->u.run.env = env;
	return NULL;
}

/* ---- all */

static bool real_wait_status(int32_t status)
{
	int32_t signo = status & ~0x80; /* a core was dumped */

	return (status & ~0xff00) == 0 || (signo > 0 && signo <= SIGNAL_MAX);
}

/* The fixed fields, at most FIXED_MAX bytes; returns their end. */
static uint8_t *put_fixed(uint8_t *at, const struct ad_guest_msg *msg)
{
	switch (msg->type) {
	case AD_GUEST_SETUP:
		memcpy(at, msg->u.setup.seed, AD_GUEST_SEED_SIZE);
		at = put(at + AD_GUEST_SEED_SIZE, msg->u.setup.realtime_ns, 8);
		at = put(at, msg->u.setup.uid, 4);
		return put(at, msg->u.setup.gid, 4);
	case AD_GUEST_STOP:
		return put(at, msg->u.stop.grace_ms, 4);
	case AD_GUEST_RUN:
		at = put(at, msg->u.run.flags, 4);
		at = put(at, msg->u.run.uid, 4);
		at = put(at, msg->u.run.gid, 4);
		at = put_limits(at, &msg->u.run.limits);
		at = put(at, ad_strv_len(msg->u.run.argv), 4);
		return put(at, ad_strv_len(msg->u.run.env), 4);
	case AD_GUEST_SIGNAL:
		return put(at, (uint32_t)msg->u.signal.signo, 4);
	case AD_GUEST_PUT:
		at = put(at, msg->u.files.max_bytes, 8);
		at = put(at, msg->u.files.uid, 4);
		return put(at, msg->u.files.gid, 4);
	case AD_GUEST_GET:
		return put(at, msg->u.files.max_bytes, 8);
	case AD_GUEST_CREDIT:
		return put(at, msg->u.credit.bytes, 4);
	case AD_GUEST_PING:
	case AD_GUEST_PONG:
		return put(at, msg->u.ping.token, 8);
	case AD_GUEST_HELLO:
		at = put(at, msg->u.hello.version, 4);
		at = put(at, msg->u.hello.uptime_ns, 8);
		return put(at, msg->u.hello.memory_bytes, 8);
	case AD_GUEST_READY:
		return put(at, (uint32_t)msg->u.ready.os_errno, 4);
	case AD_GUEST_STARTED:
		return put(at, (uint32_t)msg->u.started.pid, 4);
	case AD_GUEST_FAILED:
		at = put(at, msg->u.failed.stage, 1);
		return put(at, (uint32_t)msg->u.failed.os_errno, 4);
	case AD_GUEST_LIMIT:
		at = put(at, msg->u.limit.limit, 1);
		return put(at, msg->u.limit.fatal, 1);
	case AD_GUEST_EXITED:
		at = put(at, (uint32_t)msg->u.exited.wait_status, 4);
		return put(at, msg->u.exited.lived_ns, 8);
	case AD_GUEST_CLOSED:
		at = put(at, msg->u.closed.cpu_ns, 8);
		at = put(at, msg->u.closed.memory_peak, 8);
		return put(at, msg->u.closed.survivors, 4);
	case AD_GUEST_DONE:
		at = put(at, (uint32_t)msg->u.done.os_errno, 4);
		at = put(at, msg->u.done.entries, 8);
		return put(at, msg->u.done.bytes, 8);
	case AD_GUEST_LOG:
		return put(at, (uint32_t)msg->u.log.level, 1);
	case AD_GUEST_KILL:
	case AD_GUEST_WARM:
	case AD_GUEST_DATA:
	case AD_GUEST_END:
	case AD_GUEST_OPEN:
	case AD_GUEST_HANGUP:
		break;
	}
	return at;
}

static bool put_volume(struct ad_buf *out, const char *volume)
{
	return ad_buf_append(out, volume ? volume : "", volume ? strlen(volume) + 1 : 1);
}

/* What follows them. */
static bool put_rest(struct ad_buf *out, const struct ad_guest_msg *msg, size_t most)
{
	switch (msg->type) {
	case AD_GUEST_SETUP:
		return put_volume(out, msg->u.setup.volume);
	case AD_GUEST_RUN:
		return ad_buf_append(out, msg->u.run.workdir, strlen(msg->u.run.workdir) + 1) &&
		       put_strings(out, msg->u.run.argv, most) &&
		       put_strings(out, msg->u.run.env, most);
	case AD_GUEST_PUT:
	case AD_GUEST_GET:
		return ad_buf_append(out, msg->u.files.path, strlen(msg->u.files.path) + 1);
	case AD_GUEST_DATA:
		return ad_buf_append(out, msg->u.data.data, msg->u.data.len);
	case AD_GUEST_HELLO:
		put_text(out, msg->u.hello.kernel);
		break;
	case AD_GUEST_READY:
		put_text(out, msg->u.ready.text);
		break;
	case AD_GUEST_FAILED:
		put_text(out, msg->u.failed.text);
		break;
	case AD_GUEST_DONE:
		put_text(out, msg->u.done.text);
		break;
	case AD_GUEST_LOG:
		put_text(out, msg->u.log.text);
		break;
	default:
		break;
	}
	return true;
}

static enum ad_guest_stream stream_of(const struct ad_guest_msg *msg)
{
	switch (msg->type) {
	case AD_GUEST_DATA:
		return msg->u.data.stream;
	case AD_GUEST_END:
		return msg->u.end.stream;
	case AD_GUEST_CREDIT:
		return msg->u.credit.stream;
	default:
		return 0;
	}
}

bool ad_guest_encode(const struct ad_guest_msg *msg, struct ad_buf *out)
{
	const struct ad_guest_kind *kind = ad_guest_kind(msg->type);
	uint8_t fixed[AD_GUEST_HEADER + FIXED_MAX] = { 0 }, *end;
	size_t start = out->len, len;

	end = put_fixed(fixed + AD_GUEST_HEADER, msg);
	if (!kind || !ad_buf_append(out, fixed, (size_t)(end - fixed)) ||
	    !put_rest(out, msg, start + AD_GUEST_HEADER + kind->max) || out->failed)
		return false;
	len = out->len - start - AD_GUEST_HEADER;
	end = put((uint8_t *)out->data + start, len, 4);
	end = put(end, msg->type, 1);
	end = put(end, stream_of(msg), 1);
	end = put(end, msg->connection, 2);
	put(end, msg->id, 4);
	return len <= kind->max;
}

const char *ad_guest_decode(struct ad_guest_msg *ret, const struct ad_guest_header *header,
			    const uint8_t *body, const char ***ret_vectors)
{
	struct reader in = { .at = body, .left = header->len };
	enum ad_guest_stream stream = header->stream;
	const char *why = NULL;

	*ret = (struct ad_guest_msg){ .type = header->type,
				      .id = header->id,
				      .connection = header->connection };
	if (ret_vectors)
		*ret_vectors = NULL;
	switch (ret->type) {
	case AD_GUEST_SETUP:
		memcpy(ret->u.setup.seed, body, AD_GUEST_SEED_SIZE);
		in.at += AD_GUEST_SEED_SIZE;
		in.left -= AD_GUEST_SEED_SIZE;
		ret->u.setup.realtime_ns = get(&in, 8);
		ret->u.setup.uid = (uint32_t)get_below(&in, 4, UINT32_MAX);
		ret->u.setup.gid = (uint32_t)get_below(&in, 4, UINT32_MAX);
		if (in.left == 1 && *in.at == '\0')
			ret->u.setup.volume = "";
		else
			why = get_path(&in, &ret->u.setup.volume);
		break;
	case AD_GUEST_RUN:
		why = get_run(&in, ret, ret_vectors);
		break;
	case AD_GUEST_SIGNAL:
		ret->u.signal.signo = (int32_t)get_below(&in, 4, SIGNAL_MAX + 1);
		if (ret->u.signal.signo == 0)
			in.bad = true;
		break;
	case AD_GUEST_PUT:
	case AD_GUEST_GET:
		ret->u.files.max_bytes = get(&in, 8);
		if (ret->type == AD_GUEST_PUT) {
			ret->u.files.uid = (uint32_t)get_below(&in, 4, UINT32_MAX);
			ret->u.files.gid = (uint32_t)get_below(&in, 4, UINT32_MAX);
		}
		why = get_path(&in, &ret->u.files.path);
		break;
	case AD_GUEST_DATA:
		ret->u.data.stream = stream;
		ret->u.data.data = body;
		ret->u.data.len = header->len;
		in.left = 0;
		break;
	case AD_GUEST_END:
		ret->u.end.stream = stream;
		break;
	case AD_GUEST_CREDIT:
		ret->u.credit.stream = stream;
		ret->u.credit.bytes = get_u32(&in);
		break;
	case AD_GUEST_PING:
	case AD_GUEST_PONG:
		ret->u.ping.token = get(&in, 8);
		break;
	case AD_GUEST_HELLO:
		ret->u.hello.version = get_u32(&in);
		if (ret->u.hello.version != AD_GUEST_VERSION)
			return "another version of the protocol";
		ret->u.hello.uptime_ns = get(&in, 8);
		ret->u.hello.memory_bytes = get(&in, 8);
		why = get_text(&in, &ret->u.hello.kernel);
		break;
	case AD_GUEST_READY:
		ret->u.ready.os_errno = (int32_t)get_below(&in, 4, ERRNO_MAX + 1);
		why = get_text(&in, &ret->u.ready.text);
		break;
	case AD_GUEST_STARTED:
		ret->u.started.pid = (int32_t)get_below(&in, 4, PID_MAX + 1);
		if (ret->u.started.pid == 0)
			in.bad = true;
		break;
	case AD_GUEST_FAILED:
		ret->u.failed.stage = get_u8_below(&in, AD_GUEST_STAGES);
		ret->u.failed.os_errno = (int32_t)get_below(&in, 4, ERRNO_MAX + 1);
		why = get_text(&in, &ret->u.failed.text);
		break;
	case AD_GUEST_LIMIT:
		ret->u.limit.limit = get_u8_below(&in, AD_GUEST_LIMITS);
		ret->u.limit.fatal = get_u8_below(&in, 2) == 1;
		break;
	case AD_GUEST_EXITED:
		ret->u.exited.wait_status = get_s32(&in);
		ret->u.exited.lived_ns = get(&in, 8);
		if (!real_wait_status(ret->u.exited.wait_status))
			why = "a wait status of no process that ended";
		break;
	case AD_GUEST_CLOSED:
		ret->u.closed.cpu_ns = get(&in, 8);
		ret->u.closed.memory_peak = get(&in, 8);
		ret->u.closed.survivors = get_u32(&in);
		break;
	case AD_GUEST_DONE:
		ret->u.done.os_errno = (int32_t)get_below(&in, 4, ERRNO_MAX + 1);
		ret->u.done.entries = get(&in, 8);
		ret->u.done.bytes = get(&in, 8);
		why = get_text(&in, &ret->u.done.text);
		break;
	case AD_GUEST_LOG:
		ret->u.log.level = get_u8_below(&in, AGENTD_LOG_DEBUG + 1);
		why = get_text(&in, &ret->u.log.text);
		break;
	case AD_GUEST_STOP:
		ret->u.stop.grace_ms = get_u32(&in);
		break;
	case AD_GUEST_KILL:
	case AD_GUEST_WARM:
	case AD_GUEST_OPEN:
	case AD_GUEST_HANGUP:
		break;
	}
	if (in.bad)
		return "a number out of range";
	return why;
}
