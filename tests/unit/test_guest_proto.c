/* SPDX-License-Identifier: MIT */
#include "unit.h"

#include <malloc.h>
#include <signal.h>

#include "proto/guest_private.h"

#define HOST AD_GUEST_HOST
#define AGENT AD_GUEST_AGENT

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint64_t random_next(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* ---- one end: what it is told is kept as the frames it came in */

struct end {
	struct ad_guest_link *link;
	struct ad_buf got;
	size_t count, writable;
	uint32_t writable_id;
	enum ad_guest_stream writable_stream;
	uint16_t writable_connection;
	bool keeps; /* does not say that data was taken */
};

static void end_message(const struct ad_guest_msg *msg, void *userdata)
{
	struct end *end = userdata;

	end->count++;
	ck_assert(ad_guest_encode(msg, &end->got));
	if (msg->type != AD_GUEST_DATA || end->keeps)
		return;
	if (msg->connection)
		ad_guest_link_connection_taken(end->link, msg->id, msg->connection,
					       msg->u.data.len);
	else
		ad_guest_link_taken(end->link, msg->id, msg->u.data.stream, msg->u.data.len);
}

static void end_writable(uint32_t id, enum ad_guest_stream stream, void *userdata)
{
	struct end *end = userdata;

	end->writable++;
	end->writable_id = id;
	end->writable_stream = stream;
}

static void end_connection_writable(uint32_t id, uint16_t connection, void *userdata)
{
	struct end *end = userdata;

	end->writable++;
	end->writable_id = id;
	end->writable_connection = connection;
}

static void end_init(struct end *end, enum ad_guest_role role)
{
	static const struct ad_guest_link_events events = {
		.message = end_message,
		.writable = end_writable,
		.connection_writable = end_connection_writable,
	};

	*end = (struct end){ 0 };
	end->link = ad_guest_link_new(role, &events, end);
	ck_assert_ptr_nonnull(end->link);
}

static void end_free(struct end *end)
{
	ad_guest_link_free(end->link);
	ad_buf_free(&end->got);
}

/* Everything it wants to send, into out (may be NULL); returns how much. */
static size_t end_drain(struct end *end, struct ad_buf *out)
{
	size_t total = 0, len;
	const uint8_t *bytes;

	while (bytes = ad_guest_link_peek(end->link, &len), len > 0) {
		if (out)
			ck_assert(ad_buf_append(out, bytes, len));
		total += len;
		ad_guest_link_sent(end->link, len);
	}
	return total;
}

static void end_broken(struct end *end, const char *says)
{
	const char *error = ad_guest_link_error(end->link);
	size_t len;

	ck_assert_msg(error, "accepted, not \"%s\"", says);
	ck_assert_msg(strstr(error, says), "\"%s\" does not say \"%s\"", error, says);
	/* For good: nothing is delivered, taken or sent any more. */
	ck_assert(!ad_guest_link_feed(end->link, (const uint8_t *)"x", 1));
	ck_assert(!ad_guest_link_send(end->link, &(struct ad_guest_msg){ .type = AD_GUEST_PING }));
	ck_assert_uint_eq(ad_guest_link_data(end->link, 1, AD_GUEST_STDIN, (void *)"x", 1), 0);
	ck_assert_ptr_null(ad_guest_link_peek(end->link, &len));
	ck_assert_uint_eq(len, 0);
	ck_assert_str_eq(ad_guest_link_error(end->link), error);
}

/* Bytes in a block of exactly their size, so that a sanitizer sees every step beyond. */
static bool feed_exact(struct end *end, const void *data, size_t len)
{
	uint8_t *copy = malloc(len ? len : 1);
	bool ok;

	ck_assert_ptr_nonnull(copy);
	memcpy(copy, data, len);
	ok = ad_guest_link_feed(end->link, copy, len);
	free(copy);
	return ok;
}

/* As the peer, who may send anything. */
static bool feed_msg(struct end *end, const struct ad_guest_msg *msg)
{
	ad_autobuf struct ad_buf frame = { 0 };

	ck_assert(ad_guest_encode(msg, &frame));
	return feed_exact(end, frame.data, frame.len);
}

/* ---- a conversation with everything in it */

static const char *const argv[] = { "sh", "-c", "echo \xff \"$A\"", "", NULL };
static const char *const env[] = { "A=b", "PATH=/usr/bin:/bin", NULL };
static const uint8_t bytes[] = "some bytes";

struct step {
	enum ad_guest_role from;
	struct ad_guest_msg msg;
};

/* Tasks: 1 command with input, 2 files in, 3 files out, 4 command with merged output,
 * 5 that fails. */
static const struct step steps[] = {
	{ AGENT,
	  { AD_GUEST_HELLO,
	    .u.hello = { AD_GUEST_VERSION, 0x1122334455667788u, 256ull << 20, "6.1.0-\u00e4" } } },
	{ HOST, { .type = AD_GUEST_WARM } },
	{ HOST,
	  { AD_GUEST_SETUP,
	    .u.setup = { { 1, 2, 3, [31] = 32 }, 0xfedcba9876543210u, "/vol/\xff", 1000, 1001 } } },
	{ AGENT, { AD_GUEST_READY, .u.ready = { 0, "" } } },
	{ HOST,
	  { AD_GUEST_RUN, 1,
	    .u.run = { AD_GUEST_RUN_STDIN,
		       1000,
		       1001,
		       { 1, UINT64_MAX, 3, 4, 5, 6, 7 },
		       "/tree/\xff",
		       argv,
		       env } } },
	{ HOST, { AD_GUEST_PUT, 2, .u.files = { "/work", UINT64_MAX, 1000, 1001 } } },
	{ HOST, { AD_GUEST_GET, 3, .u.files = { .path = "/", .max_bytes = 12 } } },
	{ HOST,
	  { AD_GUEST_RUN, 4,
	    .u.run = { AD_GUEST_RUN_MERGE_STDERR | AD_GUEST_RUN_NET,
		       0,
		       0,
		       { 0 },
		       "/",
		       argv + 3,
		       env + 2 } } },
	{ HOST, { AD_GUEST_RUN, 5, .u.run = { 0, 1, 1, { 0 }, "/", argv, env } } },
	{ AGENT, { AD_GUEST_STARTED, 1, .u.started = { 4194304 } } },
	{ AGENT, { AD_GUEST_STARTED, 4, .u.started = { 1 } } },
	{ AGENT, { AD_GUEST_FAILED, 5, .u.failed = { AD_GUEST_STAGE_EXEC, 2, "/bin/\u00db" } } },
	/* Connections of task 4: 1 in use, 2 and 3 that the host or the guest has hung up, 5
	 * where both have said all, 128 that is over. */
	{ AGENT, { .type = AD_GUEST_OPEN, .id = 4, .connection = 1 } },
	{ AGENT, { .type = AD_GUEST_OPEN, .id = 4, .connection = 2 } },
	{ AGENT, { .type = AD_GUEST_OPEN, .id = 4, .connection = 3 } },
	{ AGENT, { .type = AD_GUEST_OPEN, .id = 4, .connection = 5 } },
	{ AGENT, { .type = AD_GUEST_OPEN, .id = 4, .connection = 128 } },
	{ AGENT, { AD_GUEST_DATA, 4, 1, .u.data = { 0, bytes, 5 } } },
	{ HOST, { AD_GUEST_DATA, 4, 1, .u.data = { 0, bytes, 4 } } },
	{ HOST, { .type = AD_GUEST_HANGUP, .id = 4, .connection = 2 } },
	{ AGENT, { .type = AD_GUEST_HANGUP, .id = 4, .connection = 3 } },
	{ AGENT, { .type = AD_GUEST_END, .id = 4, .connection = 5 } },
	{ HOST, { .type = AD_GUEST_END, .id = 4, .connection = 5 } },
	{ AGENT, { .type = AD_GUEST_HANGUP, .id = 4, .connection = 128 } },
	{ HOST, { .type = AD_GUEST_HANGUP, .id = 4, .connection = 128 } },
	{ HOST, { AD_GUEST_SIGNAL, 1, .u.signal = { 64 } } },
	{ HOST, { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_STDIN, bytes, 1 } } },
	{ HOST, { AD_GUEST_END, 1, .u.end = { AD_GUEST_STDIN } } },
	{ AGENT, { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_STDOUT, bytes, 10 } } },
	{ AGENT, { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_STDERR, bytes, 9 } } },
	{ AGENT, { AD_GUEST_DATA, 4, .u.data = { AD_GUEST_STDOUT, bytes, 8 } } },
	{ AGENT, { AD_GUEST_LIMIT, 1, .u.limit = { AD_GUEST_LIMIT_PIDS, false } } },
	{ AGENT, { AD_GUEST_LIMIT, 1, .u.limit = { AD_GUEST_LIMIT_IO, true } } },
	{ AGENT, { AD_GUEST_LOG, .u.log = { AGENTD_LOG_WARN, "a line \u20ac" } } },
	{ HOST, { .type = AD_GUEST_KILL, .id = 1 } },
	{ AGENT, { AD_GUEST_EXITED, 1, .u.exited = { SIGKILL | 0x80, UINT64_MAX } } },
	{ AGENT, { AD_GUEST_END, 1, .u.end = { AD_GUEST_STDOUT } } },
	{ AGENT, { AD_GUEST_END, 1, .u.end = { AD_GUEST_STDERR } } },
	{ AGENT, { AD_GUEST_CLOSED, 1, .u.closed = { 1, UINT64_MAX - 1, 3 } } },
	{ HOST, { AD_GUEST_DATA, 2, .u.data = { AD_GUEST_FILES_IN, bytes, 7 } } },
	{ HOST, { AD_GUEST_END, 2, .u.end = { AD_GUEST_FILES_IN } } },
	{ AGENT, { AD_GUEST_DONE, 2, .u.done = { 0, 1, 2, "" } } },
	{ AGENT, { AD_GUEST_DATA, 3, .u.data = { AD_GUEST_FILES_OUT, bytes, 6 } } },
	{ AGENT, { AD_GUEST_END, 3, .u.end = { AD_GUEST_FILES_OUT } } },
	{ AGENT, { AD_GUEST_DONE, 3, .u.done = { 28, UINT64_MAX, UINT64_MAX - 5, "a name" } } },
	{ HOST, { AD_GUEST_STOP, .u.stop = { 5000 } } },
};

static bool same_strings(const char *const *a, const char *const *b)
{
	while (*a && *b && strcmp(*a, *b) == 0)
		a++, b++;
	return !*a && !*b;
}

/* Field by field: that encoding and decoding agree says not that they are right. */
static void check_fields(const struct ad_guest_msg *got, const struct ad_guest_msg *sent)
{
	ck_assert_int_eq(got->type, sent->type);
	ck_assert_uint_eq(got->id, sent->id);
	ck_assert_uint_eq(got->connection, sent->connection);
	switch (sent->type) {
	case AD_GUEST_SETUP:
		ck_assert_mem_eq(got->u.setup.seed, sent->u.setup.seed, AD_GUEST_SEED_SIZE);
		ck_assert_uint_eq(got->u.setup.realtime_ns, sent->u.setup.realtime_ns);
		ck_assert_str_eq(got->u.setup.volume, sent->u.setup.volume);
		ck_assert_uint_eq(got->u.setup.uid, sent->u.setup.uid);
		ck_assert_uint_eq(got->u.setup.gid, sent->u.setup.gid);
		break;
	case AD_GUEST_RUN:
		ck_assert_uint_eq(got->u.run.flags, sent->u.run.flags);
		ck_assert_uint_eq(got->u.run.uid, sent->u.run.uid);
		ck_assert_uint_eq(got->u.run.gid, sent->u.run.gid);
		ck_assert_mem_eq(&got->u.run.limits, &sent->u.run.limits,
				 sizeof(got->u.run.limits));
		ck_assert_str_eq(got->u.run.workdir, sent->u.run.workdir);
		ck_assert(same_strings(got->u.run.argv, sent->u.run.argv));
		ck_assert(same_strings(got->u.run.env, sent->u.run.env));
		break;
	case AD_GUEST_SIGNAL:
		ck_assert_int_eq(got->u.signal.signo, sent->u.signal.signo);
		break;
	case AD_GUEST_PUT:
	case AD_GUEST_GET:
		ck_assert_str_eq(got->u.files.path, sent->u.files.path);
		ck_assert_uint_eq(got->u.files.max_bytes, sent->u.files.max_bytes);
		ck_assert_uint_eq(got->u.files.uid, sent->u.files.uid);
		ck_assert_uint_eq(got->u.files.gid, sent->u.files.gid);
		break;
	case AD_GUEST_DATA:
		ck_assert_int_eq(got->u.data.stream, sent->u.data.stream);
		ck_assert_uint_eq(got->u.data.len, sent->u.data.len);
		ck_assert_mem_eq(got->u.data.data, sent->u.data.data, sent->u.data.len);
		break;
	case AD_GUEST_END:
		ck_assert_int_eq(got->u.end.stream, sent->u.end.stream);
		break;
	case AD_GUEST_CREDIT:
		ck_assert_int_eq(got->u.credit.stream, sent->u.credit.stream);
		ck_assert_uint_eq(got->u.credit.bytes, sent->u.credit.bytes);
		break;
	case AD_GUEST_PING:
	case AD_GUEST_PONG:
		ck_assert_uint_eq(got->u.ping.token, sent->u.ping.token);
		break;
	case AD_GUEST_HELLO:
		ck_assert_uint_eq(got->u.hello.version, sent->u.hello.version);
		ck_assert_uint_eq(got->u.hello.uptime_ns, sent->u.hello.uptime_ns);
		ck_assert_uint_eq(got->u.hello.memory_bytes, sent->u.hello.memory_bytes);
		ck_assert_str_eq(got->u.hello.kernel, sent->u.hello.kernel);
		break;
	case AD_GUEST_READY:
		ck_assert_int_eq(got->u.ready.os_errno, sent->u.ready.os_errno);
		ck_assert_str_eq(got->u.ready.text, sent->u.ready.text);
		break;
	case AD_GUEST_STARTED:
		ck_assert_int_eq(got->u.started.pid, sent->u.started.pid);
		break;
	case AD_GUEST_FAILED:
		ck_assert_int_eq(got->u.failed.stage, sent->u.failed.stage);
		ck_assert_int_eq(got->u.failed.os_errno, sent->u.failed.os_errno);
		ck_assert_str_eq(got->u.failed.text, sent->u.failed.text);
		break;
	case AD_GUEST_LIMIT:
		ck_assert_int_eq(got->u.limit.limit, sent->u.limit.limit);
		ck_assert(got->u.limit.fatal == sent->u.limit.fatal);
		break;
	case AD_GUEST_EXITED:
		ck_assert_int_eq(got->u.exited.wait_status, sent->u.exited.wait_status);
		ck_assert_uint_eq(got->u.exited.lived_ns, sent->u.exited.lived_ns);
		break;
	case AD_GUEST_CLOSED:
		ck_assert_uint_eq(got->u.closed.cpu_ns, sent->u.closed.cpu_ns);
		ck_assert_uint_eq(got->u.closed.memory_peak, sent->u.closed.memory_peak);
		ck_assert_uint_eq(got->u.closed.survivors, sent->u.closed.survivors);
		break;
	case AD_GUEST_DONE:
		ck_assert_int_eq(got->u.done.os_errno, sent->u.done.os_errno);
		ck_assert_uint_eq(got->u.done.entries, sent->u.done.entries);
		ck_assert_uint_eq(got->u.done.bytes, sent->u.done.bytes);
		ck_assert_str_eq(got->u.done.text, sent->u.done.text);
		break;
	case AD_GUEST_LOG:
		ck_assert_int_eq(got->u.log.level, sent->u.log.level);
		ck_assert_str_eq(got->u.log.text, sent->u.log.text);
		break;
	case AD_GUEST_STOP:
		ck_assert_uint_eq(got->u.stop.grace_ms, sent->u.stop.grace_ms);
		break;
	case AD_GUEST_KILL:
	case AD_GUEST_WARM:
	case AD_GUEST_OPEN:
	case AD_GUEST_HANGUP:
		break;
	}
}

START_TEST(messages_round_trip)
{
	static const struct ad_guest_msg others[] = {
		{ AD_GUEST_CREDIT, 1, .u.credit = { AD_GUEST_FILES_OUT, 0x89abcdef } },
		{ AD_GUEST_PING, .u.ping = { UINT64_MAX } },
		{ AD_GUEST_PONG, .u.ping = { 1 } },
	};
	bool seen[AD_GUEST_OPEN + 1] = { false };
	size_t types = 0;

	for (size_t i = 0; i < AD_COUNT(steps) + AD_COUNT(others); i++) {
		const struct ad_guest_msg *sent = i < AD_COUNT(steps) ?
							  &steps[i].msg :
							  &others[i - AD_COUNT(steps)];
		ad_autobuf struct ad_buf frame = { 0 };
		struct ad_guest_header header;
		struct ad_guest_msg got;
		const char **vectors;

		ck_assert(ad_guest_encode(sent, &frame));
		ad_guest_header_decode(&header, (const uint8_t *)frame.data);
		ck_assert_uint_eq(header.len, frame.len - AD_GUEST_HEADER);
		ck_assert_uint_eq(header.connection, sent->connection);
		ck_assert_ptr_null(ad_guest_decode(&got, &header,
						   (const uint8_t *)frame.data + AD_GUEST_HEADER,
						   &vectors));
		check_fields(&got, sent);
		free(vectors);
		seen[sent->type] = true;
	}
	for (unsigned int i = 0; i <= AD_GUEST_OPEN; i++) {
		ck_assert_msg(!ad_guest_kind(i) || seen[i], "type %u was not tried", i);
		types += ad_guest_kind(i) != NULL;
	}
	ck_assert_uint_eq(types, 24);
	ck_assert_ptr_null(ad_guest_kind(AD_GUEST_OPEN + 1));
	ck_assert_ptr_null(ad_guest_kind(UINT32_MAX));
}
END_TEST

/* The form is for good: an image may be as old as the library's first release. */
START_TEST(bytes_of_a_frame)
{
	static const uint8_t want[] = { 0x0c, 0, 0, 0, 69,   0, 0, 0, 0xf0, 0xe0, 0xd0, 0xc0,
					0,    3, 0, 0, 0x08, 7, 6, 5, 4,    3,    2,    1 };
	static const struct ad_guest_msg msg = { AD_GUEST_EXITED, 0xc0d0e0f0,
						 .u.exited = { 3 << 8, 0x0102030405060708 } };
	ad_autobuf struct ad_buf frame = { 0 };

	ck_assert(ad_guest_encode(&msg, &frame));
	ck_assert_uint_eq(frame.len, sizeof(want));
	ck_assert_mem_eq(frame.data, want, sizeof(want));
}
END_TEST

/* From one to the other, at most so many bytes at once (0: any number). */
static size_t carry(struct end *from, struct end *to, size_t most)
{
	size_t len;
	const uint8_t *at = ad_guest_link_peek(from->link, &len);

	if (len == 0)
		return 0;
	if (most == 0)
		len = 1 + random_next() % len;
	else if (len > most)
		len = most;
	ck_assert_msg(feed_exact(to, at, len), "%s", ad_guest_link_error(to->link));
	ad_guest_link_sent(from->link, len);
	return len;
}

static void carry_all(struct end *a, struct end *b, size_t most)
{
	while (carry(a, b, most) + carry(b, a, most) > 0)
		continue;
}

static bool send_step(struct end *end, const struct ad_guest_msg *msg)
{
	if (msg->type == AD_GUEST_DATA && msg->connection)
		return ad_guest_link_connection_data(end->link, msg->id, msg->connection,
						     msg->u.data.data,
						     msg->u.data.len) == msg->u.data.len;
	if (msg->type == AD_GUEST_DATA)
		return ad_guest_link_data(end->link, msg->id, msg->u.data.stream, msg->u.data.data,
					  msg->u.data.len) == msg->u.data.len;
	return ad_guest_link_send(end->link, msg);
}

/* Both ends, with every way of cutting what goes between them. */
START_TEST(a_conversation)
{
	static const size_t cuts[] = { SIZE_MAX, 1, 2, 11, 12, 13, 0, 0, 0 };
	struct ad_buf wanted[2] = { { 0 }, { 0 } };
	struct end ends[2];

	end_init(&ends[HOST], HOST);
	end_init(&ends[AGENT], AGENT);
	for (size_t i = 0; i < AD_COUNT(steps); i++) {
		const struct step *step = &steps[i];
		enum ad_guest_role to = ad_guest_peer(step->from);

		ck_assert_msg(send_step(&ends[step->from], &step->msg), "step %zu: %s", i,
			      ad_guest_kind(step->msg.type)->name);
		ck_assert(ad_guest_encode(&step->msg, &wanted[to]));
		carry_all(&ends[HOST], &ends[AGENT], cuts[_i]);
	}
	for (enum ad_guest_role i = 0; i < 2; i++) {
		ck_assert_uint_eq(ends[i].got.len, wanted[i].len);
		ck_assert_mem_eq(ends[i].got.data, wanted[i].data, wanted[i].len);
		ad_buf_free(&wanted[i]);
		end_free(&ends[i]);
	}
}
END_TEST

/* ---- what may come when */

/* How far steps have gone. */
enum stage { NEW, GREETED, SET_UP, READY, BEGUN, STARTED, EXITED, ENDED, OVER, STAGES };

static size_t steps_of(enum stage stage)
{
	static const struct {
		enum ad_guest_type type;
		uint32_t id;
	} last[STAGES] = {
		[GREETED] = { .type = AD_GUEST_HELLO, .id = 0 },
		[SET_UP] = { .type = AD_GUEST_SETUP, .id = 0 },
		[READY] = { .type = AD_GUEST_READY, .id = 0 },
		[BEGUN] = { .type = AD_GUEST_RUN, .id = 5 },
		[STARTED] = { .type = AD_GUEST_DATA, .id = 4 },
		[EXITED] = { .type = AD_GUEST_EXITED, .id = 1 },
		[ENDED] = { .type = AD_GUEST_END, .id = 1 },
		[OVER] = { .type = AD_GUEST_CLOSED, .id = 1 },
	};

	if (stage == NEW)
		return 0;
	for (size_t i = AD_COUNT(steps); i > 0; i--)
		if (steps[i - 1].msg.type == last[stage].type &&
		    steps[i - 1].msg.id == last[stage].id)
			return i;
	ck_abort_msg("no step ends stage %d", stage);
}

/* An end that has come so far; what it sent has left it. */
static void end_at(struct end *end, enum ad_guest_role role, enum stage stage)
{
	end_init(end, role);
	for (size_t i = 0; i < steps_of(stage); i++) {
		if (steps[i].from == role)
			ck_assert(send_step(end, &steps[i].msg));
		else
			ck_assert_msg(feed_msg(end, &steps[i].msg), "step %zu: %s", i,
				      ad_guest_link_error(end->link));
		end_drain(end, NULL);
	}
}

struct arrival {
	enum ad_guest_role at;
	enum stage stage;
	struct ad_guest_msg msg;
	const char *says; /* NULL: fine, and delivered; "": fine, and not */
};

static const struct arrival arrivals[] = {
	/* the beginning */
	{ HOST, NEW, { AD_GUEST_HELLO, .u.hello = { 2, 0, 0, NULL } }, NULL },
	{ HOST,
	  NEW,
	  { AD_GUEST_HELLO, .u.hello = { 1, 0, 0, NULL } },
	  "speaks version 1 of the protocol, not 2" },
	{ HOST,
	  NEW,
	  { AD_GUEST_HELLO, .u.hello = { 0, 0, 0, NULL } },
	  "speaks version 0 of the protocol, not 2" },
	{ HOST,
	  NEW,
	  { .type = AD_GUEST_READY },
	  "READY (task 0, stream 0, 5 bytes): before HELLO" },
	{ HOST, NEW, { .type = AD_GUEST_LOG }, "before HELLO" },
	{ HOST, NEW, { AD_GUEST_STARTED, 1, .u.started = { 1 } }, "before HELLO" },
	{ HOST, GREETED, { AD_GUEST_HELLO, .u.hello = { 2, 0, 0, NULL } }, "said before" },
	{ HOST, GREETED, { .type = AD_GUEST_READY }, "without SETUP" },
	{ HOST, GREETED, { .type = AD_GUEST_LOG }, NULL },
	{ HOST, GREETED, { .type = AD_GUEST_PING }, "before SETUP" },
	{ HOST, SET_UP, { .type = AD_GUEST_PING }, "" },
	{ HOST, SET_UP, { .type = AD_GUEST_READY }, NULL },
	{ HOST, READY, { .type = AD_GUEST_READY }, "without SETUP" },
	{ HOST, READY, { .type = AD_GUEST_PONG }, "without PING" },
	{ AGENT, NEW, { .type = AD_GUEST_SETUP }, "before HELLO" },
	{ AGENT, GREETED, { .type = AD_GUEST_SETUP }, NULL },
	{ AGENT, GREETED, { .type = AD_GUEST_STOP }, "before SETUP" },
	{ AGENT, GREETED, { .type = AD_GUEST_PING }, "" },
	{ AGENT, GREETED, { .type = AD_GUEST_WARM }, NULL },
	{ AGENT, NEW, { .type = AD_GUEST_WARM }, "before HELLO" },
	{ AGENT, SET_UP, { .type = AD_GUEST_WARM }, "after SETUP" },
	{ HOST, GREETED, { .type = AD_GUEST_WARM }, "goes the other way" },
	{ AGENT,
	  GREETED,
	  { AD_GUEST_RUN, 1, .u.run = { .workdir = "/", .argv = argv, .env = env } },
	  "before SETUP" },
	{ AGENT, SET_UP, { .type = AD_GUEST_SETUP }, "before READY of the last" },
	{ AGENT,
	  SET_UP,
	  { AD_GUEST_RUN, 1, .u.run = { .workdir = "/", .argv = argv, .env = env } },
	  "before READY" },
	{ AGENT, SET_UP, { .type = AD_GUEST_PING }, "" },
	{ AGENT, READY, { .type = AD_GUEST_SETUP }, NULL },
	{ AGENT, READY, { .type = AD_GUEST_STOP }, NULL },
	{ AGENT, BEGUN, { .type = AD_GUEST_SETUP }, "while a task is alive" },
	{ AGENT, OVER, { .type = AD_GUEST_SETUP }, "while a task is alive" },
	/* what goes the other way */
	{ AGENT, READY, { .type = AD_GUEST_READY }, "goes the other way" },
	{ AGENT, READY, { AD_GUEST_HELLO, .u.hello = { 2, 0, 0, NULL } }, "goes the other way" },
	{ HOST, READY, { .type = AD_GUEST_SETUP }, "goes the other way" },
	{ HOST, BEGUN, { .type = AD_GUEST_KILL, .id = 1 }, "goes the other way" },
	/* numbers of tasks */
	{ AGENT, READY, { AD_GUEST_GET, UINT32_MAX, .u.files = { .path = "/" } }, NULL },
	{ AGENT, READY, { AD_GUEST_GET, 0, .u.files = { .path = "/" } }, "belongs to no task" },
	{ AGENT, BEGUN, { AD_GUEST_GET, 6, .u.files = { .path = "/" } }, NULL },
	{ AGENT, BEGUN, { AD_GUEST_GET, 5, .u.files = { .path = "/" } }, "number was used before" },
	{ AGENT, OVER, { AD_GUEST_GET, 1, .u.files = { .path = "/" } }, "number was used before" },
	{ AGENT, BEGUN, { .type = AD_GUEST_KILL, .id = 6 }, "there was no such task" },
	{ AGENT, BEGUN, { .type = AD_GUEST_KILL, .id = 0 }, "belongs to no task" },
	{ HOST, BEGUN, { AD_GUEST_STARTED, 6, .u.started = { 1 } }, "there was no such task" },
	{ HOST, READY, { .type = AD_GUEST_LOG, .id = 1 }, "belongs to a task" },
	/* a command */
	{ HOST, BEGUN, { AD_GUEST_STARTED, 1, .u.started = { 1 } }, NULL },
	{ HOST, BEGUN, { AD_GUEST_STARTED, 2, .u.started = { 1 } }, "not a command" },
	{ HOST, BEGUN, { .type = AD_GUEST_FAILED, .id = 1 }, NULL },
	{ HOST,
	  BEGUN,
	  { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_STDOUT, bytes, 1 } },
	  "before STARTED" },
	{ HOST, BEGUN, { AD_GUEST_END, 1, .u.end = { AD_GUEST_STDOUT } }, "before STARTED" },
	{ HOST, BEGUN, { .type = AD_GUEST_LIMIT, .id = 1 }, "before STARTED" },
	{ HOST, BEGUN, { .type = AD_GUEST_EXITED, .id = 1 }, "before STARTED" },
	{ HOST, BEGUN, { .type = AD_GUEST_CLOSED, .id = 1 }, "before EXITED" },
	{ HOST, BEGUN, { .type = AD_GUEST_DONE, .id = 1 }, "the task is a command" },
	{ HOST, STARTED, { AD_GUEST_STARTED, 1, .u.started = { 1 } }, "after STARTED" },
	{ HOST, STARTED, { .type = AD_GUEST_FAILED, .id = 1 }, "after STARTED" },
	{ HOST, STARTED, { AD_GUEST_STARTED, 5, .u.started = { 1 } }, "the task is over" },
	{ HOST, STARTED, { .type = AD_GUEST_CLOSED, .id = 1 }, "before EXITED" },
	{ HOST, STARTED, { .type = AD_GUEST_EXITED, .id = 1 }, NULL },
	{ HOST, STARTED, { .type = AD_GUEST_EXITED, .id = 2 }, "not a command" },
	{ HOST, STARTED, { AD_GUEST_LIMIT, 1, .u.limit = { AD_GUEST_LIMIT_MEMORY, true } }, NULL },
	{ HOST,
	  EXITED,
	  { AD_GUEST_LIMIT, 1, .u.limit = { AD_GUEST_LIMIT_IO, true } },
	  "said before" },
	{ HOST, EXITED, { AD_GUEST_LIMIT, 1, .u.limit = { AD_GUEST_LIMIT_IO, false } }, NULL },
	{ HOST, EXITED, { .type = AD_GUEST_EXITED, .id = 1 }, "said before" },
	{ HOST, EXITED, { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_STDOUT, bytes, 1 } }, NULL },
	{ HOST, EXITED, { .type = AD_GUEST_CLOSED, .id = 1 }, "before END of its output" },
	{ HOST,
	  ENDED,
	  { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_STDOUT, bytes, 1 } },
	  "after END of the stream" },
	{ HOST,
	  ENDED,
	  { AD_GUEST_END, 1, .u.end = { AD_GUEST_STDERR } },
	  "after END of the stream" },
	{ HOST, ENDED, { .type = AD_GUEST_CLOSED, .id = 1 }, NULL },
	{ HOST, ENDED, { .type = AD_GUEST_CLOSED, .id = 4 }, "before EXITED" },
	{ HOST, OVER, { .type = AD_GUEST_CLOSED, .id = 1 }, "the task is over" },
	{ HOST,
	  OVER,
	  { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_STDOUT, bytes, 1 } },
	  "the task is over" },
	{ HOST,
	  OVER,
	  { AD_GUEST_CREDIT, 1, .u.credit = { AD_GUEST_STDIN, 1 } },
	  "the task is over" },
	{ HOST, OVER, { .type = AD_GUEST_LIMIT, .id = 1 }, "the task is over" },
	{ AGENT, BEGUN, { AD_GUEST_SIGNAL, 1, .u.signal = { 1 } }, NULL },
	{ AGENT, BEGUN, { AD_GUEST_SIGNAL, 2, .u.signal = { 1 } }, "not a command" },
	{ AGENT, STARTED, { .type = AD_GUEST_KILL, .id = 1 }, NULL },
	{ AGENT, STARTED, { .type = AD_GUEST_KILL, .id = 2 }, NULL },
	{ AGENT, EXITED, { .type = AD_GUEST_KILL, .id = 1 }, "said before" },
	/* what cannot be asked for */
	{ AGENT,
	  READY,
	  { AD_GUEST_PUT, 1, .u.files = { "/w", 0, UINT32_MAX - 1, UINT32_MAX - 1 } },
	  NULL },
	{ AGENT,
	  READY,
	  { AD_GUEST_PUT, 1, .u.files = { "/w", 0, UINT32_MAX, 0 } },
	  "a number out of range" },
	{ AGENT,
	  READY,
	  { AD_GUEST_PUT, 1, .u.files = { "/w", 0, 0, UINT32_MAX } },
	  "a number out of range" },
	{ AGENT,
	  READY,
	  { AD_GUEST_PUT, 1, .u.files = { "w/w", 0, 0, 0 } },
	  "a path that is not absolute and plain" },
	{ AGENT,
	  READY,
	  { AD_GUEST_PUT, 1, .u.files = { "/w/../x", 0, 0, 0 } },
	  "a path that is not absolute and plain" },
	{ AGENT,
	  READY,
	  { AD_GUEST_GET, 1, .u.files = { "/w/", 0, 0, 0 } },
	  "a path that is not absolute and plain" },
	{ AGENT, READY, { AD_GUEST_GET, 1, .u.files = { "", 0, 0, 0 } }, "cannot be this long" },
	{ AGENT,
	  READY,
	  { AD_GUEST_RUN, 1, .u.run = { 15, 1, 1, { 0 }, "/w", argv, env + 2 } },
	  NULL },
	{ AGENT,
	  READY,
	  { AD_GUEST_RUN, 1, .u.run = { 16, 1, 1, { 0 }, "/w", argv, env } },
	  "flags that do not exist" },
	{ AGENT,
	  READY,
	  { AD_GUEST_RUN, 1, .u.run = { 0, UINT32_MAX, 1, { 0 }, "/w", argv, env } },
	  "a user or group that cannot be" },
	{ AGENT,
	  READY,
	  { AD_GUEST_RUN, 1, .u.run = { 0, 1, UINT32_MAX, { 0 }, "/w", argv, env } },
	  "a user or group that cannot be" },
	{ AGENT,
	  READY,
	  { AD_GUEST_RUN, 1, .u.run = { 0, 1, 1, { 0 }, "w", argv, env } },
	  "a path that is not absolute and plain" },
	{ AGENT,
	  READY,
	  { AD_GUEST_RUN, 1, .u.run = { 0, 1, 1, { 0 }, "/w", argv + 4, env } },
	  "no arguments" },
	/* files */
	{ HOST, BEGUN, { .type = AD_GUEST_DONE, .id = 2 }, "before END of the files" },
	{ HOST, BEGUN, { AD_GUEST_DONE, 2, .u.done = { 28, 0, 0, "full" } }, NULL },
	{ HOST, BEGUN, { .type = AD_GUEST_DONE, .id = 3 }, "before END of the files" },
	{ HOST,
	  BEGUN,
	  { AD_GUEST_DONE, 3, .u.done = { 5, 0, 0, NULL } },
	  "before END of the files" },
	{ HOST, BEGUN, { AD_GUEST_DATA, 3, .u.data = { AD_GUEST_FILES_OUT, bytes, 1 } }, NULL },
	/* streams */
	{ HOST,
	  STARTED,
	  { AD_GUEST_DATA, 1, .u.data = { 99, bytes, 1 } },
	  "DATA (task 1, stream 99, 1 bytes): no such stream" },
	{ HOST, STARTED, { AD_GUEST_END, 1, .u.end = { AD_GUEST_STREAMS } }, "no such stream" },
	{ HOST, STARTED, { AD_GUEST_CREDIT, 1, .u.credit = { 255, 1 } }, "no such stream" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_STDIN, bytes, 1 } },
	  "the stream goes the other way" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_FILES_OUT, bytes, 1 } },
	  "the task has no such stream" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_DATA, 4, .u.data = { AD_GUEST_STDERR, bytes, 1 } },
	  "the task has no such stream" },
	{ HOST, STARTED, { AD_GUEST_DATA, 4, .u.data = { AD_GUEST_STDOUT, bytes, 1 } }, NULL },
	{ AGENT,
	  STARTED,
	  { AD_GUEST_DATA, 4, .u.data = { AD_GUEST_STDIN, bytes, 1 } },
	  "the task has no such stream" },
	{ AGENT,
	  STARTED,
	  { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_STDOUT, bytes, 1 } },
	  "the stream goes the other way" },
	{ AGENT,
	  STARTED,
	  { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_STDIN, bytes, 1 } },
	  "after END of the stream" },
	{ AGENT, STARTED, { AD_GUEST_DATA, 2, .u.data = { AD_GUEST_FILES_IN, bytes, 1 } }, NULL },
	/* credit */
	{ HOST, STARTED, { AD_GUEST_CREDIT, 1, .u.credit = { AD_GUEST_STDIN, 1 } }, "" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_CREDIT, 1, .u.credit = { AD_GUEST_STDIN, 2 } },
	  "for more than was sent" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_CREDIT, 1, .u.credit = { AD_GUEST_STDIN, 0 } },
	  "for more than was sent" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_CREDIT, 1, .u.credit = { AD_GUEST_STDIN, UINT32_MAX } },
	  "for more than was sent" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_CREDIT, 1, .u.credit = { AD_GUEST_STDOUT, 1 } },
	  "the stream goes the other way" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_CREDIT, 4, .u.credit = { AD_GUEST_STDIN, 1 } },
	  "the task has no such stream" },
	{ AGENT, STARTED, { AD_GUEST_CREDIT, 1, .u.credit = { AD_GUEST_STDERR, 9 } }, "" },
	{ AGENT,
	  STARTED,
	  { AD_GUEST_CREDIT, 1, .u.credit = { AD_GUEST_STDERR, 10 } },
	  "for more than was sent" },
	/* connections */
	{ HOST, BEGUN, { .type = AD_GUEST_OPEN, .id = 4, .connection = 1 }, "before STARTED" },
	{ HOST, STARTED, { .type = AD_GUEST_OPEN, .id = 4, .connection = 4 }, NULL },
	{ HOST, EXITED, { .type = AD_GUEST_OPEN, .id = 4, .connection = 4 }, NULL },
	{ HOST, STARTED, { .type = AD_GUEST_OPEN, .id = 4, .connection = 128 }, NULL },
	{ HOST,
	  STARTED,
	  { .type = AD_GUEST_OPEN, .id = 4, .connection = 129 },
	  "no such connection" },
	{ HOST,
	  STARTED,
	  { .type = AD_GUEST_OPEN, .id = 4, .connection = 1 },
	  "its number is in use" },
	{ HOST,
	  STARTED,
	  { .type = AD_GUEST_OPEN, .id = 4, .connection = 2 },
	  "its number is in use" },
	{ HOST,
	  STARTED,
	  { .type = AD_GUEST_OPEN, .id = 4, .connection = 3 },
	  "its number is in use" },
	{ HOST,
	  STARTED,
	  { .type = AD_GUEST_OPEN, .id = 1, .connection = 4 },
	  "the task has no network" },
	{ HOST,
	  STARTED,
	  { .type = AD_GUEST_OPEN, .id = 6, .connection = 4 },
	  "there was no such task" },
	{ AGENT,
	  STARTED,
	  { .type = AD_GUEST_OPEN, .id = 4, .connection = 4 },
	  "goes the other way" },
	{ HOST, STARTED, { AD_GUEST_DATA, 4, 1, .u.data = { 0, bytes, 1 } }, NULL },
	{ AGENT, STARTED, { AD_GUEST_DATA, 4, 1, .u.data = { 0, bytes, 1 } }, NULL },
	{ HOST, STARTED, { AD_GUEST_END, 4, 1, .u.end = { 1 } }, "no such stream" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_DATA, 4, 4, .u.data = { 0, bytes, 1 } },
	  "there is no such connection" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_DATA, 4, 128, .u.data = { 0, bytes, 1 } },
	  "there is no such connection" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_DATA, 1, 1, .u.data = { 0, bytes, 1 } },
	  "there is no such connection" },
	{ HOST, STARTED, { AD_GUEST_DATA, 4, 2, .u.data = { 0, bytes, 1 } }, "" },
	{ HOST, STARTED, { AD_GUEST_END, 4, 2, .u.end = { 0 } }, "" },
	{ HOST, STARTED, { .type = AD_GUEST_HANGUP, .id = 4, .connection = 2 }, NULL },
	{ AGENT, STARTED, { AD_GUEST_DATA, 4, 3, .u.data = { 0, bytes, 1 } }, "" },
	{ AGENT, STARTED, { .type = AD_GUEST_HANGUP, .id = 4, .connection = 3 }, NULL },
	{ AGENT, STARTED, { AD_GUEST_DATA, 4, 2, .u.data = { 0, bytes, 1 } }, "after HANGUP" },
	{ HOST, STARTED, { AD_GUEST_DATA, 4, 3, .u.data = { 0, bytes, 1 } }, "after HANGUP" },
	{ HOST, STARTED, { AD_GUEST_END, 4, 3, .u.end = { 0 } }, "after HANGUP" },
	{ HOST, STARTED, { .type = AD_GUEST_HANGUP, .id = 4, .connection = 3 }, "after HANGUP" },
	{ HOST, STARTED, { AD_GUEST_CREDIT, 4, 3, .u.credit = { 0, 1 } }, "after HANGUP" },
	{ HOST,
	  STARTED,
	  { .type = AD_GUEST_HANGUP, .id = 4, .connection = 4 },
	  "there is no such connection" },
	{ HOST, STARTED, { AD_GUEST_END, 4, 1, .u.end = { 0 } }, NULL },
	{ HOST,
	  STARTED,
	  { AD_GUEST_DATA, 4, 5, .u.data = { 0, bytes, 1 } },
	  "after END of the connection" },
	{ AGENT, STARTED, { AD_GUEST_END, 4, 5, .u.end = { 0 } }, "after END of the connection" },
	{ HOST, STARTED, { .type = AD_GUEST_HANGUP, .id = 4, .connection = 5 }, NULL },
	{ HOST, STARTED, { AD_GUEST_CREDIT, 4, 1, .u.credit = { 0, 4 } }, "" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_CREDIT, 4, 1, .u.credit = { 0, 5 } },
	  "for more than was sent" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_CREDIT, 4, 1, .u.credit = { 0, 0 } },
	  "for more than was sent" },
	{ HOST,
	  STARTED,
	  { AD_GUEST_CREDIT, 4, 4, .u.credit = { 0, 1 } },
	  "there is no such connection" },
	{ AGENT, STARTED, { AD_GUEST_CREDIT, 4, 1, .u.credit = { 0, 5 } }, "" },
	{ AGENT,
	  STARTED,
	  { AD_GUEST_RUN, 6, .u.run = { AD_GUEST_RUN_NET, 1, 1, { 0 }, "/", argv, env } },
	  "another command has the network" },
	/* what the host sent before it knew */
	{ AGENT, OVER, { .type = AD_GUEST_HANGUP, .id = 1, .connection = 1 }, "" },
	{ AGENT, OVER, { AD_GUEST_SIGNAL, 1, .u.signal = { 1 } }, "" },
	{ AGENT, OVER, { .type = AD_GUEST_KILL, .id = 1 }, "" },
	{ AGENT, OVER, { AD_GUEST_DATA, 1, .u.data = { AD_GUEST_STDIN, bytes, 1 } }, "" },
	{ AGENT, OVER, { AD_GUEST_END, 1, .u.end = { AD_GUEST_STDIN } }, "" },
	{ AGENT, OVER, { AD_GUEST_CREDIT, 1, .u.credit = { AD_GUEST_STDOUT, 1 } }, "" },
	{ AGENT, OVER, { AD_GUEST_DATA, 1, .u.data = { 99, bytes, 1 } }, "no such stream" },
};

static void check_arrival(const struct arrival *arrival)
{
	struct end end;
	size_t before;
	bool ok;

	end_at(&end, arrival->at, arrival->stage);
	before = end.count;
	ok = feed_msg(&end, &arrival->msg);
	if (arrival->says && *arrival->says) {
		end_broken(&end, arrival->says);
		ck_assert_uint_eq(end.count, before);
	} else {
		ck_assert_msg(ok, "%s", ad_guest_link_error(end.link));
		ck_assert_uint_eq(end.count, before + !arrival->says);
	}
	end_free(&end);
}

START_TEST(order)
{
	for (size_t i = 0; i < AD_COUNT(arrivals); i++)
		check_arrival(&arrivals[i]);
}
END_TEST

/* What a peer would refuse is not sent: each of the above, from the other side. */
static void check_sending(const struct arrival *arrival)
{
	bool fine = !arrival->says || !*arrival->says;
	ad_autobuf struct ad_buf out = { 0 };
	struct end end;

	/* Not for a caller to send, or not the same seen from there. */
	if (arrival->msg.type == AD_GUEST_CREDIT || arrival->msg.type == AD_GUEST_PONG ||
	    (arrival->at == AGENT && arrival->stage == OVER))
		fine = false;
	end_at(&end, ad_guest_peer(arrival->at), arrival->stage);
	ck_assert_msg(send_step(&end, &arrival->msg) == fine,
		      "%s of task %u at stage %d was%s sent",
		      ad_guest_kind(arrival->msg.type)->name, arrival->msg.id, arrival->stage,
		      fine ? " not" : "");
	/* A refusal leaves nothing behind and breaks nothing. */
	ck_assert_ptr_null(ad_guest_link_error(end.link));
	ck_assert((end_drain(&end, &out) > 0) == fine);
	end_free(&end);
}

START_TEST(order_when_sending)
{
	for (size_t i = 0; i < AD_COUNT(arrivals); i++)
		check_sending(&arrivals[i]);
}
END_TEST

/* After the stages of the steps: what needs a few more. */
START_TEST(order_of_the_rest)
{
	struct end end;
	static const struct ad_guest_msg failed = { AD_GUEST_READY, .u.ready = { 5, "no" } };
	static const struct ad_guest_msg setup = { .type = AD_GUEST_SETUP },
					 stop = { .type = AD_GUEST_STOP },
					 kill = { .type = AD_GUEST_KILL, .id = 2 };
	const struct ad_guest_msg *begin = &steps[steps_of(READY)].msg;
	struct ad_guest_msg ping = { AD_GUEST_PING, .u.ping = { 7 } };

	/* A guest that could not be set up may be set up again, and runs nothing until then. */
	end_at(&end, HOST, SET_UP);
	ck_assert(feed_msg(&end, &failed));
	ck_assert(!ad_guest_link_send(end.link, begin));
	ck_assert(ad_guest_link_send(end.link, &setup));
	ck_assert(!ad_guest_link_send(end.link, &setup));
	ck_assert(feed_msg(&end, &(struct ad_guest_msg){ .type = AD_GUEST_READY }));
	ck_assert(ad_guest_link_send(end.link, begin));
	/* Nothing begins after STOP, but what is alive can be ended. */
	ck_assert(ad_guest_link_send(end.link, &stop));
	ck_assert(!ad_guest_link_send(end.link, &stop));
	ck_assert(!ad_guest_link_send(end.link, &steps[steps_of(READY) + 1].msg));
	ck_assert(ad_guest_link_send(end.link,
				     &(struct ad_guest_msg){ .type = AD_GUEST_KILL, .id = 1 }));
	end_free(&end);
	end_at(&end, AGENT, READY);
	ck_assert(feed_msg(&end, &stop));
	ck_assert(!feed_msg(&end, begin));
	end_broken(&end, "after STOP");
	end_free(&end);
	end_at(&end, AGENT, READY);
	ck_assert(feed_msg(&end, &stop));
	ck_assert(!feed_msg(&end, &setup));
	end_broken(&end, "after STOP");
	end_free(&end);
	end_at(&end, AGENT, STARTED);
	ck_assert(feed_msg(&end, &kill));
	ck_assert(!feed_msg(&end, &kill));
	end_broken(&end, "said before");
	end_free(&end);

	/* PONG answers the PING that is open. */
	end_at(&end, HOST, READY);
	ck_assert(ad_guest_link_send(end.link, &ping));
	ck_assert(!ad_guest_link_send(end.link, &ping));
	ping.type = AD_GUEST_PONG;
	ck_assert(feed_msg(&end, &ping));
	ck_assert(!feed_msg(&end, &ping));
	end_broken(&end, "without PING");
	end_free(&end);
	end_at(&end, HOST, READY);
	ping.type = AD_GUEST_PING;
	ck_assert(ad_guest_link_send(end.link, &ping));
	ping.type = AD_GUEST_PONG;
	ping.u.ping.token = 8;
	ck_assert(!feed_msg(&end, &ping));
	end_broken(&end, "of another PING");
	end_free(&end);
	end_at(&end, AGENT, READY);
	ping.type = AD_GUEST_PING;
	ck_assert(feed_msg(&end, &ping));
	ck_assert(!feed_msg(&end, &ping));
	end_broken(&end, "before PONG of the last");
	end_free(&end);
}
END_TEST

START_TEST(pings_are_answered)
{
	struct end ends[2];

	for (enum ad_guest_role i = 0; i < 2; i++)
		end_at(&ends[i], i, STARTED);
	for (uint64_t token = 1; token <= 3; token++) {
		for (enum ad_guest_role i = 0; i < 2; i++) {
			struct ad_guest_msg ping = { AD_GUEST_PING, .u.ping = { token << 40 } };
			ad_autobuf struct ad_buf pong = { 0 };

			ends[i].got.len = 0;
			ck_assert(ad_guest_link_send(ends[i].link, &ping));
			carry_all(&ends[HOST], &ends[AGENT], SIZE_MAX);
			ping.type = AD_GUEST_PONG;
			ck_assert(ad_guest_encode(&ping, &pong));
			ck_assert_uint_eq(ends[i].got.len, pong.len);
			ck_assert_mem_eq(ends[i].got.data, pong.data, pong.len);
		}
	}
	for (enum ad_guest_role i = 0; i < 2; i++)
		end_free(&ends[i]);
}
END_TEST

/* ---- form */

/* The header alone is enough to refuse it: what it announces is not waited for. */
START_TEST(lengths)
{
	for (unsigned int type = 0; type <= AD_GUEST_OPEN + 1; type++) {
		const struct ad_guest_kind *kind = ad_guest_kind(type);
		uint8_t header[AD_GUEST_HEADER] = { [4] = (uint8_t)type };
		const uint64_t announced[] = {
			kind ? kind->min : 0,
			kind ? kind->max : 0,
			0,
			kind ? kind->min - 1ull : 1,
			UINT32_MAX,
			kind ? kind->max + 1ull : 2,
			0x80000000u,
			0x7fffffff,
		};

		for (size_t i = 0; i < AD_COUNT(announced); i++) {
			bool fine = kind && announced[i] >= kind->min && announced[i] <= kind->max;
			struct end end;

			for (int j = 0; j < 4; j++)
				header[j] = (uint8_t)(announced[i] >> (8 * j));
			header[6] = kind && kind->of_connection;
			header[8] = kind && kind->of_task;
			end_at(&end, kind && kind->from[AGENT] ? HOST : AGENT, BEGUN);
			feed_exact(&end, header, sizeof(header));
			if (!kind)
				end_broken(&end, "no message has this type");
			else if (!fine)
				end_broken(&end, "cannot be this long");
			else if (announced[i] > 0)
				ck_assert_ptr_null(ad_guest_link_error(end.link));
			end_free(&end);
		}
	}
}
END_TEST

static size_t step_of(enum ad_guest_type type, uint32_t id)
{
	for (size_t i = 0; i < AD_COUNT(steps); i++)
		if (steps[i].msg.type == type && steps[i].msg.id == id)
			return i;
	ck_abort_msg("no step of type %d", type);
}

/* The frame of a step as it would come after the steps before it, with one byte changed;
 * without the change it is accepted. */
static void refuse_with(enum ad_guest_type type, uint32_t id, size_t at, uint8_t value,
			const char *says)
{
	size_t index = step_of(type, id);
	enum ad_guest_role role = ad_guest_peer(steps[index].from);
	ad_autobuf struct ad_buf frame = { 0 };

	ck_assert(ad_guest_encode(&steps[index].msg, &frame));
	ck_assert_uint_lt(at, frame.len);
	for (int changed = 0; changed < 2; changed++) {
		struct end end;

		end_init(&end, role);
		for (size_t i = 0; i < index; i++) {
			if (steps[i].from == role)
				ck_assert(send_step(&end, &steps[i].msg));
			else
				ck_assert(feed_msg(&end, &steps[i].msg));
			end_drain(&end, NULL);
		}
		if (changed)
			frame.data[at] = (char)value;
		ck_assert_int_eq(feed_exact(&end, frame.data, frame.len), !changed);
		if (changed)
			end_broken(&end, says);
		end_free(&end);
	}
}

START_TEST(values)
{
	static const char number[] = "a number out of range",
			  path[] = "a path that is not absolute and plain",
			  status[] = "a wait status of no process that ended",
			  line[] = "a text that is not a line of UTF-8",
			  end[] = "a text that does not end where it should",
			  fill[] = "strings that do not fill it";
	enum { AT = AD_GUEST_HEADER, STRINGS = AT + 76 };

	for (size_t i = 0; i < AD_COUNT(steps); i++) {
		const struct ad_guest_msg *msg = &steps[i].msg;

		if (step_of(msg->type, msg->id) != i)
			continue;
		refuse_with(msg->type, msg->id, 3, 0xff, "cannot be this long");
		refuse_with(msg->type, msg->id, 4, 0, "no message has this type");
		refuse_with(msg->type, msg->id, 4, 200, "no message has this type");
		refuse_with(msg->type, msg->id, 5, AD_GUEST_STREAMS, "no such stream");
		for (size_t at = 6; at < 8; at++)
			refuse_with(msg->type, msg->id, at, 129,
				    ad_guest_kind(msg->type)->of_stream ||
						    ad_guest_kind(msg->type)->of_connection ?
					    "no such connection" :
					    "belongs to no connection");
		if (msg->id == 0)
			refuse_with(msg->type, 0, 9, 1, "belongs to a task");
	}
	refuse_with(AD_GUEST_SIGNAL, 1, AT, 65, number);
	refuse_with(AD_GUEST_SIGNAL, 1, AT, 0, number);
	refuse_with(AD_GUEST_SIGNAL, 1, AT + 3, 0x80, number);
	refuse_with(AD_GUEST_STARTED, 1, AT, 1, number); /* one more than can be */
	refuse_with(AD_GUEST_STARTED, 4, AT, 0, number);
	refuse_with(AD_GUEST_STARTED, 4, AT + 3, 0x80, number);
	refuse_with(AD_GUEST_FAILED, 5, AT, AD_GUEST_STAGES, number);
	refuse_with(AD_GUEST_FAILED, 5, AT + 2, 0x10, number); /* an errno of 4098 */
	refuse_with(AD_GUEST_FAILED, 5, AT + 4, 0x80, number);
	refuse_with(AD_GUEST_LIMIT, 1, AT, AD_GUEST_LIMITS, number);
	refuse_with(AD_GUEST_LIMIT, 1, AT + 1, 2, number);
	refuse_with(AD_GUEST_DONE, 3, AT + 1, 0x10, number);
	refuse_with(AD_GUEST_LOG, 0, AT, AGENTD_LOG_DEBUG + 1, number);
	refuse_with(AD_GUEST_READY, 0, AT + 3, 0x80, number);

	refuse_with(AD_GUEST_EXITED, 1, AT, 0x7f, status); /* stopped */
	refuse_with(AD_GUEST_EXITED, 1, AT, 65, status);
	refuse_with(AD_GUEST_EXITED, 1, AT, 0x80, status);     /* a core, but no signal */
	refuse_with(AD_GUEST_EXITED, 1, AT + 1, 1, status);    /* a signal and a code */
	refuse_with(AD_GUEST_EXITED, 1, AT + 2, 1, status);    /* a code above 255 */
	refuse_with(AD_GUEST_EXITED, 1, AT + 3, 0x80, status); /* below 0 */

	refuse_with(AD_GUEST_HELLO, 0, AT + 20, 0, end);
	refuse_with(AD_GUEST_HELLO, 0, AT + 20, '\n', line);
	refuse_with(AD_GUEST_HELLO, 0, AT + 20, 0x7f, line);
	refuse_with(AD_GUEST_HELLO, 0, AT + 20, 0x80, line);
	refuse_with(AD_GUEST_HELLO, 0, AT + 26, 0xc0, line); /* overlong */
	refuse_with(AD_GUEST_HELLO, 0, AT + 27, 'x', line);
	refuse_with(AD_GUEST_HELLO, 0, AT + 28, 'x', end);
	refuse_with(AD_GUEST_READY, 0, AT + 4, 'x', end);
	refuse_with(AD_GUEST_FAILED, 5, AT + 10, 0xc2, line); /* U+009B: a terminal's command */
	refuse_with(AD_GUEST_DONE, 3, AT + 20, 0x1b, line);
	refuse_with(AD_GUEST_LOG, 0, AT + 1, '\r', line);

	refuse_with(AD_GUEST_GET, 3, AT + 9, 'x', path);
	refuse_with(AD_GUEST_PUT, 2, AT + 16, 'x', path);
	refuse_with(AD_GUEST_PUT, 2, AT + 18, 0, path);
	refuse_with(AD_GUEST_RUN, 1, AT, 16, "flags that do not exist");
	refuse_with(AD_GUEST_OPEN, 4, 6, 0, "belongs to a connection");
	/* SETUP: user and group follow the seed and the time; then the volume. */
	refuse_with(AD_GUEST_SETUP, 0, AT + AD_GUEST_SEED_SIZE + 16, 'x', path);
	refuse_with(AD_GUEST_SETUP, 0, AT + AD_GUEST_SEED_SIZE + 18, 0, path);
	refuse_with(AD_GUEST_RUN, 1, AT + 68, 0, "no arguments");
	refuse_with(AD_GUEST_RUN, 1, AT + 68, 3, fill);
	refuse_with(AD_GUEST_RUN, 1, AT + 68, 5, fill);
	refuse_with(AD_GUEST_RUN, 1, AT + 71, 0xff, "too many strings");
	refuse_with(AD_GUEST_RUN, 1, AT + 72, 1, fill);
	refuse_with(AD_GUEST_RUN, 1, AT + 75, 0xff, "too many strings");
	refuse_with(AD_GUEST_RUN, 1, STRINGS, 'x', path);
	refuse_with(AD_GUEST_RUN, 1, STRINGS + 7, 'x', fill);
	refuse_with(AD_GUEST_RUN, 1, STRINGS + 9, 0, fill);
}
END_TEST

/* Texts come from everywhere in the guest: what is not fit is made so by who sends it. */
START_TEST(texts_are_made_fit)
{
	static const struct {
		const char *given, *sent;
	} texts[] = {
		{ "", "" },
		{ "plain \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80",
		  "plain \xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80" },
		{ "a\nb\tc\x1b[2Jd\x7f", "a?b?c?[2Jd?" },
		{ "\x80 \xff \xc3 \xc0\x80 \xed\xa0\x80 \xc2\x9b \xf0\x9f\x98",
		  "? ? ? ?? ??? ?? ???" },
	};
	char longer[AD_GUEST_TEXT_MAX + 10], *cut;

	for (size_t i = 0; i < AD_COUNT(texts); i++) {
		struct ad_guest_msg log = { AD_GUEST_LOG, .u.log = { 1, texts[i].given } };
		ad_autobuf struct ad_buf out = { 0 };
		struct end end;

		end_at(&end, AGENT, GREETED);
		ck_assert(ad_guest_link_send(end.link, &log));
		end_drain(&end, &out);
		ck_assert_str_eq(out.data + AD_GUEST_HEADER + 1, texts[i].sent);
		end_free(&end);
		end_at(&end, HOST, GREETED);
		ck_assert(feed_exact(&end, out.data, out.len));
		end_free(&end);
	}
	/* Cut to the bound, and not within a character. */
	memset(longer, 'x', sizeof(longer));
	memcpy(longer + AD_GUEST_TEXT_MAX - 3, "\xe2\x82\xac", 4);
	for (enum ad_guest_role i = 0; i < 2; i++) {
		struct ad_guest_msg log = { AD_GUEST_LOG, .u.log = { 1, longer + i } };
		ad_autobuf struct ad_buf out = { 0 };
		struct end end;

		end_at(&end, AGENT, GREETED);
		ck_assert(ad_guest_link_send(end.link, &log));
		end_drain(&end, &out);
		cut = out.data + AD_GUEST_HEADER + 1;
		ck_assert_uint_eq(strlen(cut), i ? AD_GUEST_TEXT_MAX - 1 : AD_GUEST_TEXT_MAX - 3);
		ck_assert_int_eq(memcmp(cut, longer + i, strlen(cut)), 0);
		end_free(&end);
	}
}
END_TEST

/* A command line as large as it may be, and one byte and one string more. */
START_TEST(large_runs)
{
	enum { ROOM = AD_GUEST_RUN_MAX - 76 - 2 - 3 * sizeof(char *) };
	char *argument = malloc(ROOM + 1);
	const char *strings[] = { argument, NULL, NULL };
	struct ad_guest_msg run = { AD_GUEST_RUN, 1,
				    .u.run = { 0, 1, 1, { 0 }, "/", strings, env + 2 } };
	struct end ends[2];

	ck_assert_ptr_nonnull(argument);
	memset(argument, 'x', ROOM);
	argument[ROOM] = '\0';
	end_at(&ends[HOST], HOST, READY);
	end_at(&ends[AGENT], AGENT, READY);
	ck_assert(!ad_guest_link_send(ends[HOST].link, &run));
	argument[ROOM - 1] = '\0';
	strings[1] = "";
	ck_assert(!ad_guest_link_send(ends[HOST].link, &run));
	strings[1] = NULL;
	ck_assert(ad_guest_link_send(ends[HOST].link, &run));
	/* The next waits for room in the queue, orders do not. */
	run.id = 2;
	ck_assert(!ad_guest_link_send(ends[HOST].link, &run));
	ck_assert(ad_guest_link_send(ends[HOST].link,
				     &(struct ad_guest_msg){ .type = AD_GUEST_KILL, .id = 1 }));
	ends[AGENT].got.len = 0;
	carry_all(&ends[HOST], &ends[AGENT], 100000);
	ck_assert_uint_eq(ends[AGENT].got.len, 76 + 2 + ROOM + 2 * AD_GUEST_HEADER);
	ck_assert_int_eq(memcmp(ends[AGENT].got.data + AD_GUEST_HEADER + 76 + 2, argument, ROOM),
			 0);
	ck_assert(ad_guest_link_send(ends[HOST].link, &run));
	for (enum ad_guest_role i = 0; i < 2; i++)
		end_free(&ends[i]);
	free(argument);
}
END_TEST

/* ---- streams */

static void fill_pattern(uint8_t *data, size_t len, size_t from)
{
	for (size_t i = 0; i < len; i++)
		data[i] = (uint8_t)((from + i) * 2654435761u >> 13);
}

/* In both directions at once, several times the window; what comes is what was sent. */
START_TEST(streams_carry_everything)
{
	static const size_t cuts[] = { SIZE_MAX, 1000, 0 };
	static const struct {
		enum ad_guest_role from;
		uint32_t id;
		enum ad_guest_stream stream;
	} streams[] = { { HOST, 2, AD_GUEST_FILES_IN },
			{ AGENT, 3, AD_GUEST_FILES_OUT },
			{ AGENT, 1, AD_GUEST_STDOUT },
			{ AGENT, 1, AD_GUEST_STDERR } };
	enum { COUNT = AD_COUNT(streams), TOTAL = 5 * AD_GUEST_WINDOW + 12345 };
	size_t sent[COUNT] = { 0 }, got[COUNT] = { 0 };
	uint8_t *data = malloc(TOTAL);
	struct end ends[2];
	bool moved = true;

	ck_assert_ptr_nonnull(data);
	fill_pattern(data, TOTAL, 0);
	for (enum ad_guest_role i = 0; i < 2; i++) {
		end_at(&ends[i], i, STARTED);
		ends[i].got.len = 0;
	}
	while (moved) {
		moved = false;
		for (size_t i = 0; i < COUNT; i++)
			sent[i] += ad_guest_link_data(ends[streams[i].from].link, streams[i].id,
						      streams[i].stream, data + sent[i],
						      TOTAL - sent[i]);
		for (int i = 0; i < 50; i++)
			moved |= carry(&ends[HOST], &ends[AGENT], cuts[_i]) +
					 carry(&ends[AGENT], &ends[HOST], cuts[_i]) >
				 0;
		for (enum ad_guest_role i = 0; i < 2; i++) {
			const uint8_t *at = (const uint8_t *)ends[i].got.data;
			const uint8_t *stop = at + ends[i].got.len;

			while (at < stop) {
				struct ad_guest_header header;
				size_t j = 0;

				ad_guest_header_decode(&header, at);
				while (streams[j].id != header.id ||
				       streams[j].stream != header.stream)
					j++;
				ck_assert_int_eq(memcmp(at + AD_GUEST_HEADER, data + got[j],
							header.len),
						 0);
				got[j] += header.len;
				at += AD_GUEST_HEADER + header.len;
			}
			ends[i].got.len = 0;
		}
	}
	for (size_t i = 0; i < COUNT; i++) {
		ck_assert_uint_eq(sent[i], TOTAL);
		ck_assert_uint_eq(got[i], TOTAL);
	}
	for (enum ad_guest_role i = 0; i < 2; i++)
		end_free(&ends[i]);
	free(data);
}
END_TEST

/* A receiver that takes nothing gets the window and no more; credit comes when half of it
 * was taken, and with it the sender is told to go on. */
START_TEST(windows)
{
	uint8_t *data = calloc(1, 2 * AD_GUEST_WINDOW);
	struct end host, agent;
	size_t sent = 0, some;

	ck_assert_ptr_nonnull(data);
	end_at(&host, HOST, STARTED);
	end_at(&agent, AGENT, STARTED);
	host.keeps = true;
	/* The steps sent 8 bytes, too few for credit. */
	do {
		some = ad_guest_link_data(agent.link, 4, AD_GUEST_STDOUT, data,
					  2 * AD_GUEST_WINDOW);
		sent += some;
		carry_all(&host, &agent, SIZE_MAX);
	} while (some > 0);
	ck_assert_uint_eq(sent, AD_GUEST_WINDOW - 8);
	ck_assert_uint_eq(agent.writable, 2); /* room in the queue, not credit */
	agent.writable = 0;
	ad_guest_link_taken(host.link, 4, AD_GUEST_STDOUT, AD_GUEST_WINDOW / 2 - 9);
	carry_all(&host, &agent, SIZE_MAX);
	ck_assert_uint_eq(agent.writable, 0);
	ck_assert_uint_eq(ad_guest_link_data(agent.link, 4, AD_GUEST_STDOUT, data, 1), 0);
	ad_guest_link_taken(host.link, 4, AD_GUEST_STDOUT, 1);
	carry_all(&host, &agent, SIZE_MAX);
	ck_assert_uint_eq(agent.writable, 1);
	ck_assert_uint_eq(agent.writable_id, 4);
	ck_assert_int_eq(agent.writable_stream, AD_GUEST_STDOUT);
	sent = 0;
	do {
		some = ad_guest_link_data(agent.link, 4, AD_GUEST_STDOUT, data, AD_GUEST_WINDOW);
		sent += some;
		carry_all(&host, &agent, SIZE_MAX);
	} while (some > 0);
	ck_assert_uint_eq(sent, AD_GUEST_WINDOW / 2);
	/* Of a stream that is over nothing is granted, and nothing taken. */
	ck_assert(ad_guest_link_send(agent.link,
				     &(struct ad_guest_msg){ AD_GUEST_END, 4,
							     .u.end = { AD_GUEST_STDOUT } }));
	carry_all(&host, &agent, SIZE_MAX);
	ad_guest_link_taken(host.link, 4, AD_GUEST_STDOUT, AD_GUEST_WINDOW);
	ck_assert_uint_eq(end_drain(&host, NULL), 0);
	ck_assert_uint_eq(ad_guest_link_data(agent.link, 4, AD_GUEST_STDOUT, data, 1), 0);
	end_free(&host);
	end_free(&agent);
	free(data);
}
END_TEST

/* A guest that sends more than it was allowed to. */
START_TEST(flood)
{
	static uint8_t data[AD_GUEST_DATA_MAX];
	struct ad_guest_msg msg = { AD_GUEST_DATA, 4,
				    .u.data = { AD_GUEST_STDOUT, data, AD_GUEST_DATA_MAX } };
	struct end host;
	size_t frames = 0;

	end_at(&host, HOST, READY);
	for (size_t i = steps_of(READY); i < steps_of(STARTED) - 1; i++)
		ck_assert(steps[i].from == HOST ? send_step(&host, &steps[i].msg) :
						  feed_msg(&host, &steps[i].msg));
	host.keeps = true;
	while (feed_msg(&host, &msg))
		frames++;
	ck_assert_uint_eq(frames, AD_GUEST_WINDOW / AD_GUEST_DATA_MAX);
	end_broken(&host, "DATA (task 4, stream 1, 32768 bytes): more than there was credit for");
	end_free(&host);
}
END_TEST

/* ---- what is sent first */

static enum ad_guest_type next_type(struct end *end, uint32_t *ret_id, uint8_t *ret_stream)
{
	struct ad_guest_header header;
	size_t len;
	const uint8_t *at = ad_guest_link_peek(end->link, &len);

	ck_assert_uint_ge(len, AD_GUEST_HEADER);
	ad_guest_header_decode(&header, at);
	ck_assert_uint_ge(len, AD_GUEST_HEADER + header.len);
	ad_guest_link_sent(end->link, AD_GUEST_HEADER + header.len);
	if (ret_id)
		*ret_id = header.id;
	if (ret_stream)
		*ret_stream = header.stream;
	return header.type;
}

START_TEST(control_before_data)
{
	static uint8_t data[2 * AD_GUEST_DATA_MAX];
	const struct ad_guest_msg exited = { .type = AD_GUEST_EXITED, .id = 1 };
	const struct ad_guest_msg ends[] = { { AD_GUEST_END, 1, .u.end = { AD_GUEST_STDOUT } },
					     { AD_GUEST_END, 1, .u.end = { AD_GUEST_STDERR } },
					     { .type = AD_GUEST_CLOSED, .id = 1 } };
	struct end agent;
	size_t len;

	end_at(&agent, AGENT, STARTED);
	ck_assert_uint_eq(ad_guest_link_data(agent.link, 1, AD_GUEST_STDOUT, data, sizeof(data)),
			  sizeof(data));
	/* A frame that has begun is finished, and only that. */
	ad_guest_link_peek(agent.link, &len);
	ck_assert_uint_eq(len, AD_GUEST_HEADER + AD_GUEST_DATA_MAX);
	ad_guest_link_sent(agent.link, 5);
	ck_assert(ad_guest_link_send(agent.link, &exited));
	for (size_t i = 0; i < AD_COUNT(ends); i++)
		ck_assert(ad_guest_link_send(agent.link, &ends[i]));
	ck_assert(feed_msg(&agent, &(struct ad_guest_msg){ .type = AD_GUEST_PING }));
	ad_guest_link_peek(agent.link, &len);
	ck_assert_uint_eq(len, AD_GUEST_HEADER + AD_GUEST_DATA_MAX - 5);
	ad_guest_link_sent(agent.link, len);
	ck_assert_int_eq(next_type(&agent, NULL, NULL), AD_GUEST_EXITED);
	ck_assert_int_eq(next_type(&agent, NULL, NULL), AD_GUEST_PONG);
	ck_assert_int_eq(next_type(&agent, NULL, NULL), AD_GUEST_DATA);
	ck_assert_int_eq(next_type(&agent, NULL, NULL), AD_GUEST_END);
	ck_assert_int_eq(next_type(&agent, NULL, NULL), AD_GUEST_END);
	ck_assert_int_eq(next_type(&agent, NULL, NULL), AD_GUEST_CLOSED);
	ck_assert_uint_eq(end_drain(&agent, NULL), 0);
	end_free(&agent);
}
END_TEST

/* What has left in part has not left. */
START_TEST(held_until_sent_whole)
{
	const struct ad_guest_msg run = { AD_GUEST_RUN, 1,
					  .u.run = { 0, 1, 1, { 0 }, "/", argv, env } };
	const struct ad_guest_msg kill = { .type = AD_GUEST_KILL, .id = 1 };
	struct end host;
	size_t len, both;

	end_at(&host, HOST, READY);
	ck_assert(!ad_guest_link_holds(host.link, AD_GUEST_RUN, 1));
	ck_assert(ad_guest_link_send(host.link, &run));
	ad_guest_link_peek(host.link, &len);
	ck_assert(ad_guest_link_send(host.link, &kill));
	ad_guest_link_peek(host.link, &both);
	ck_assert_uint_eq(both, len + AD_GUEST_HEADER);
	ad_guest_link_sent(host.link, len - 1);
	ck_assert(ad_guest_link_holds(host.link, AD_GUEST_RUN, 1));
	ck_assert(!ad_guest_link_holds(host.link, AD_GUEST_RUN, 2));
	ad_guest_link_peek(host.link, &len);
	ad_guest_link_sent(host.link, 1);
	ck_assert(!ad_guest_link_holds(host.link, AD_GUEST_RUN, 1));
	ck_assert(ad_guest_link_holds(host.link, AD_GUEST_KILL, 1));
	end_free(&host);
}
END_TEST

/* Output before STARTED is none, also when the queue is full: nobody waits for room. */
START_TEST(no_output_before_started)
{
	static uint8_t data[AD_GUEST_WINDOW];
	struct end agent;

	end_at(&agent, AGENT, BEGUN);
	ck_assert_uint_gt(ad_guest_link_data(agent.link, 3, AD_GUEST_FILES_OUT, data,
					     AD_GUEST_WINDOW),
			  0);
	ck_assert_uint_eq(ad_guest_link_data(agent.link, 1, AD_GUEST_STDOUT, data, 1), 0);
	end_drain(&agent, NULL);
	ck_assert_uint_eq(agent.writable, 1);
	ck_assert_int_eq(agent.writable_stream, AD_GUEST_FILES_OUT);
	end_free(&agent);
}
END_TEST

/* Those who wait for room in the queue get it in turn. */
static void greedy_writable(uint32_t id, enum ad_guest_stream stream, void *userdata)
{
	static uint8_t data[AD_GUEST_WINDOW];
	struct end *end = userdata;

	end->writable++;
	ad_guest_link_data(end->link, id, stream, data, sizeof(data));
}

START_TEST(streams_take_turns)
{
	static const struct ad_guest_link_events events = { .message = end_message,
							    .writable = greedy_writable };
	static uint8_t data[AD_GUEST_WINDOW];
	size_t sent[2] = { 0 };
	uint32_t id;
	uint8_t stream;
	struct end agent = { 0 };

	agent.link = ad_guest_link_new(AGENT, &events, &agent);
	ck_assert_ptr_nonnull(agent.link);
	for (size_t i = 0; i < steps_of(STARTED) - 3; i++) {
		ck_assert(steps[i].from == AGENT ? send_step(&agent, &steps[i].msg) :
						   feed_msg(&agent, &steps[i].msg));
		end_drain(&agent, NULL);
	}
	ck_assert_uint_gt(ad_guest_link_data(agent.link, 1, AD_GUEST_STDOUT, data, sizeof(data)),
			  0);
	ck_assert_uint_eq(ad_guest_link_data(agent.link, 1, AD_GUEST_STDERR, data, sizeof(data)),
			  0);
	for (int i = 0; i < 10; i++) {
		ck_assert_int_eq(next_type(&agent, &id, &stream), AD_GUEST_DATA);
		sent[stream == AD_GUEST_STDERR]++;
	}
	ck_assert_msg(sent[1] >= 3 && sent[1] <= 5, "%zu of stdout, %zu of stderr", sent[0],
		      sent[1]);
	end_free(&agent);
}
END_TEST

/* ---- bounds */

/* What the heap has in use; 0 where it is not glibc's. */
static size_t heap_used(void)
{
	return unit_instrumented() ? 0 : mallinfo2().uordblks + mallinfo2().hblkhd;
}

START_TEST(random_bytes)
{
	enum { SIZE = 1 << 20 };
	uint8_t *data = malloc(SIZE);

	ck_assert_ptr_nonnull(data);
	for (unsigned int round = 0; round < 2 * STAGES; round++) {
		struct end end;
		size_t before, count;

		for (size_t i = 0; i < SIZE; i++)
			data[i] = (uint8_t)(random_next() >> 32);
		before = heap_used();
		end_at(&end, round % 2 ? HOST : AGENT, round / 2);
		count = end.count;
		ck_assert(!ad_guest_link_feed(end.link, data, SIZE));
		ck_assert_ptr_nonnull(ad_guest_link_error(end.link));
		ck_assert_uint_eq(end.count, count);
		ck_assert_uint_le(heap_used(), before + 100000);
		end_free(&end);
	}
	free(data);
}
END_TEST

/* What was said to come takes no memory, only what came. */
START_TEST(announced_is_not_allocated)
{
	uint8_t header[AD_GUEST_HEADER] = { 0, 0, 0x40, 0, AD_GUEST_RUN, [8] = 1 };
	struct end end;
	size_t before;

	end_at(&end, AGENT, READY);
	before = heap_used();
	ck_assert(feed_exact(&end, header, sizeof(header)));
	ck_assert(feed_exact(&end, bytes, sizeof(bytes)));
	ck_assert_uint_le(heap_used(), before + 1024);
	end_free(&end);
}
END_TEST

static void begin_get(struct end *host, struct end *agent, uint32_t id)
{
	struct ad_guest_msg get = { AD_GUEST_GET, id, .u.files = { .path = "/" } };

	ck_assert(host ? ad_guest_link_send(host->link, &get) : feed_msg(agent, &get));
}

static void end_get(struct end *agent, uint32_t id)
{
	struct ad_guest_msg end_of = { AD_GUEST_END, id, .u.end = { AD_GUEST_FILES_OUT } };
	struct ad_guest_msg done = { AD_GUEST_DONE, id, .u.done = { 1, 0, 0, "no" } };

	ck_assert(ad_guest_link_send(agent->link, &end_of));
	ck_assert(ad_guest_link_send(agent->link, &done));
}

START_TEST(tasks_at_once)
{
	const uint32_t max = AD_GUEST_TASKS_MAX;
	struct ad_guest_msg more = { AD_GUEST_GET, 3 * max, .u.files = { .path = "/" } };
	struct end host, agent;

	end_at(&host, HOST, READY);
	end_at(&agent, AGENT, READY);
	for (uint32_t id = 1; id <= max; id++)
		begin_get(&host, &agent, id);
	ck_assert(!ad_guest_link_send(host.link, &more));
	carry_all(&host, &agent, SIZE_MAX);
	ck_assert(!ad_guest_link_send(host.link, &more));
	end_get(&agent, max / 2);
	carry_all(&host, &agent, SIZE_MAX);
	ck_assert(ad_guest_link_send(host.link, &more));
	end_free(&host);
	end_free(&agent);

	/* Answers that the host does not read keep their places, so that they cannot
	 * pile up; once they have left, there is room. */
	end_at(&agent, AGENT, READY);
	for (uint32_t id = 1; id <= 2 * max; id++) {
		begin_get(NULL, &agent, id);
		end_get(&agent, id);
		if (id == max)
			ck_assert_uint_eq(end_drain(&agent, NULL),
					  max * (2 * AD_GUEST_HEADER + 20 + sizeof("no")));
	}
	ck_assert(!feed_msg(&agent, &more));
	end_broken(&agent, "too many tasks at once");
	end_free(&agent);
}
END_TEST

/* ---- connections */

static const struct ad_guest_msg net_run = {
	AD_GUEST_RUN, 1, .u.run = { AD_GUEST_RUN_NET, 1, 1, { 0 }, "/", argv, env }
};

/* A host and an agent with a command that has the network. */
static void net_begin(struct end *host, struct end *agent, uint32_t id)
{
	struct ad_guest_msg run = net_run;
	struct ad_guest_msg started = { AD_GUEST_STARTED, id, .u.started = { 2 } };

	run.id = id;
	ck_assert(ad_guest_link_send(host->link, &run));
	carry_all(host, agent, SIZE_MAX);
	ck_assert(ad_guest_link_send(agent->link, &started));
	carry_all(host, agent, SIZE_MAX);
}

static bool net_say(struct end *end, enum ad_guest_type type, uint32_t id, uint16_t connection)
{
	const struct ad_guest_msg msg = { .type = type, .id = id, .connection = connection };

	return ad_guest_link_send(end->link, &msg);
}

static void net_over(struct end *agent, uint32_t id)
{
	for (enum ad_guest_stream i = AD_GUEST_STDOUT; i <= AD_GUEST_STDERR; i++)
		ck_assert(
			ad_guest_link_send(agent->link, &(struct ad_guest_msg){ AD_GUEST_END, id,
										.u.end = { i } }));
	ck_assert(net_say(agent, AD_GUEST_EXITED, id, 0));
	ck_assert(net_say(agent, AD_GUEST_CLOSED, id, 0));
}

START_TEST(connections_at_once)
{
	struct end host, agent;
	uint32_t id;

	end_at(&host, HOST, READY);
	end_at(&agent, AGENT, READY);
	ck_assert_uint_eq(ad_guest_link_free_connection(agent.link, &id), 0);
	net_begin(&host, &agent, 1);
	for (uint16_t i = 1; i <= AD_GUEST_CONNECTIONS_MAX; i++) {
		ck_assert_uint_eq(ad_guest_link_free_connection(agent.link, &id), i);
		ck_assert_uint_eq(id, 1);
		ck_assert(net_say(&agent, AD_GUEST_OPEN, id, i));
	}
	ck_assert_uint_eq(ad_guest_link_free_connection(agent.link, &id), 0);
	carry_all(&host, &agent, SIZE_MAX);
	/* A number is free when both have hung up, and that has left. */
	ck_assert(net_say(&host, AD_GUEST_HANGUP, 1, 7));
	carry_all(&host, &agent, SIZE_MAX);
	ck_assert_uint_eq(ad_guest_link_free_connection(agent.link, &id), 0);
	ck_assert(net_say(&agent, AD_GUEST_HANGUP, 1, 7));
	ck_assert_uint_eq(ad_guest_link_free_connection(agent.link, &id), 0);
	carry_all(&host, &agent, SIZE_MAX);
	ck_assert_uint_eq(ad_guest_link_free_connection(agent.link, &id), 7);
	ck_assert(net_say(&agent, AD_GUEST_OPEN, 1, 7));
	carry_all(&host, &agent, SIZE_MAX);
	end_free(&host);
	end_free(&agent);
}
END_TEST

/* A guest that does not read cannot make answers pile up. */
START_TEST(hangups_do_not_pile_up)
{
	struct end host, agent;

	end_at(&host, HOST, READY);
	end_at(&agent, AGENT, READY);
	net_begin(&host, &agent, 1);
	for (int i = 0; i < 2; i++) {
		ck_assert(feed_msg(&host, &(struct ad_guest_msg){ .type = AD_GUEST_OPEN,
								  .id = 1,
								  .connection = 1 }));
		ck_assert(feed_msg(&host, &(struct ad_guest_msg){ .type = AD_GUEST_HANGUP,
								  .id = 1,
								  .connection = 1 }));
		ck_assert(net_say(&host, AD_GUEST_HANGUP, 1, 1));
		if (i == 0)
			ck_assert_uint_eq(end_drain(&host, NULL), AD_GUEST_HEADER);
	}
	ck_assert(!feed_msg(&host, &(struct ad_guest_msg){
					   .type = AD_GUEST_OPEN, .id = 1, .connection = 1 }));
	end_broken(&host, "OPEN (task 1, stream 0, 0 bytes): its number is in use");
	end_free(&host);
	end_free(&agent);
}
END_TEST

START_TEST(connection_windows)
{
	static uint8_t data[AD_GUEST_DATA_MAX];
	const struct ad_guest_msg more = { AD_GUEST_DATA, 1, 1,
					   .u.data = { 0, data, AD_GUEST_DATA_MAX } };
	struct end ends[2];
	enum ad_guest_role from = _i ? HOST : AGENT;
	struct end *sender = &ends[from], *receiver = &ends[ad_guest_peer(from)];
	size_t sent = 0, room;

	end_at(&ends[HOST], HOST, READY);
	end_at(&ends[AGENT], AGENT, READY);
	net_begin(&ends[HOST], &ends[AGENT], 1);
	ck_assert_uint_eq(ad_guest_link_connection_room(sender->link, 1, 1), 0);
	ck_assert(net_say(&ends[AGENT], AD_GUEST_OPEN, 1, 1));
	ck_assert(net_say(&ends[AGENT], AD_GUEST_OPEN, 1, 2));
	carry_all(&ends[HOST], &ends[AGENT], SIZE_MAX);
	receiver->keeps = true;
	while ((room = ad_guest_link_connection_room(sender->link, 1, 1)) > 0) {
		ck_assert_uint_eq(ad_guest_link_connection_data(sender->link, 1, 1, data, room),
				  room);
		sent += room;
		carry_all(&ends[HOST], &ends[AGENT], SIZE_MAX);
	}
	ck_assert_uint_eq(sent, AD_GUEST_CONNECTION_WINDOW);
	/* The others have their own. */
	ck_assert_uint_eq(ad_guest_link_connection_room(sender->link, 1, 2), AD_GUEST_DATA_MAX);
	ck_assert_uint_eq(sender->writable, 0);
	ad_guest_link_connection_taken(receiver->link, 1, 1, AD_GUEST_CONNECTION_WINDOW / 2 - 1);
	carry_all(&ends[HOST], &ends[AGENT], SIZE_MAX);
	ck_assert_uint_eq(sender->writable, 0);
	ad_guest_link_connection_taken(receiver->link, 1, 1, 1);
	carry_all(&ends[HOST], &ends[AGENT], SIZE_MAX);
	ck_assert_uint_eq(sender->writable, 1);
	ck_assert_uint_eq(sender->writable_id, 1);
	ck_assert_uint_eq(sender->writable_connection, 1);
	ck_assert_uint_eq(ad_guest_link_connection_room(sender->link, 1, 1), AD_GUEST_DATA_MAX);
	/* Whoever sends more than that is no peer. */
	ck_assert(feed_msg(receiver, &more));
	ck_assert(!feed_msg(receiver, &more));
	end_broken(receiver, "more than there was credit for");
	end_free(&ends[HOST]);
	end_free(&ends[AGENT]);
}
END_TEST

/* To whom has hung up nothing comes, and what comes needs no credit. */
START_TEST(after_a_hangup)
{
	static const uint8_t data[100];
	struct end host, agent;
	size_t before;

	end_at(&host, HOST, READY);
	end_at(&agent, AGENT, READY);
	net_begin(&host, &agent, 1);
	ck_assert(net_say(&agent, AD_GUEST_OPEN, 1, 1));
	carry_all(&host, &agent, SIZE_MAX);
	ck_assert(net_say(&agent, AD_GUEST_HANGUP, 1, 1));
	ck_assert_uint_eq(ad_guest_link_connection_room(agent.link, 1, 1), 0);
	ck_assert_uint_eq(ad_guest_link_connection_data(agent.link, 1, 1, data, 1), 0);
	/* It crosses with that. */
	before = agent.count;
	ck_assert_uint_eq(ad_guest_link_connection_data(host.link, 1, 1, data, 100), 100);
	ck_assert(net_say(&host, AD_GUEST_END, 1, 1));
	carry_all(&host, &agent, SIZE_MAX);
	ck_assert_uint_eq(agent.count, before);
	ck_assert(net_say(&host, AD_GUEST_HANGUP, 1, 1));
	carry_all(&host, &agent, SIZE_MAX);
	ck_assert_uint_eq(agent.count, before + 1);
	end_free(&host);
	end_free(&agent);
}
END_TEST

/* With the command its connections end, and the next one has a network of its own. */
START_TEST(a_network_ends_with_its_command)
{
	static const uint8_t data[100];
	struct end host, agent;
	size_t before;
	uint32_t id;

	end_at(&host, HOST, READY);
	end_at(&agent, AGENT, READY);
	net_begin(&host, &agent, 1);
	ck_assert(net_say(&agent, AD_GUEST_OPEN, 1, 1));
	carry_all(&host, &agent, SIZE_MAX);
	net_over(&agent, 1);
	ck_assert_uint_eq(ad_guest_link_free_connection(agent.link, &id), 0);
	ck_assert_uint_eq(ad_guest_link_connection_room(agent.link, 1, 1), 0);
	ck_assert(!net_say(&agent, AD_GUEST_HANGUP, 1, 1));
	/* The host does not know yet. */
	before = agent.count;
	ck_assert_uint_eq(ad_guest_link_connection_data(host.link, 1, 1, data, 100), 100);
	ck_assert(net_say(&host, AD_GUEST_HANGUP, 1, 1));
	carry_all(&host, &agent, SIZE_MAX);
	ck_assert_uint_eq(agent.count, before);
	ck_assert_uint_eq(ad_guest_link_connection_room(host.link, 1, 1), 0);
	net_begin(&host, &agent, 2);
	ck_assert_uint_eq(ad_guest_link_free_connection(agent.link, &id), 1);
	ck_assert_uint_eq(id, 2);
	ck_assert(net_say(&agent, AD_GUEST_OPEN, 2, 1));
	carry_all(&host, &agent, SIZE_MAX);
	ck_assert_uint_eq(ad_guest_link_connection_room(host.link, 2, 1), AD_GUEST_DATA_MAX);
	ck_assert(!feed_msg(&host, &(struct ad_guest_msg){
					   .type = AD_GUEST_OPEN, .id = 1, .connection = 2 }));
	end_broken(&host, "the task is over");
	end_free(&host);
	end_free(&agent);
}
END_TEST

/* What has no bound of its own: the queue has one, and orders pass it. */
START_TEST(control_queue_is_bounded)
{
	const struct ad_guest_msg hup = { AD_GUEST_SIGNAL, 1, .u.signal = { SIGHUP } };
	const struct ad_guest_msg kill = { .type = AD_GUEST_KILL, .id = 1 };
	struct end host;
	size_t count = 0, out;

	end_at(&host, HOST, STARTED);
	while (ad_guest_link_send(host.link, &hup) && count < 10 << 20)
		count++;
	ck_assert(ad_guest_link_send(host.link, &kill));
	out = end_drain(&host, NULL);
	ck_assert_uint_le(out, AD_GUEST_RUN_MAX + 66000);
	ck_assert_uint_eq(out, count * (AD_GUEST_HEADER + 4) + AD_GUEST_HEADER);
	ck_assert(ad_guest_link_send(host.link, &hup));
	end_free(&host);
}
END_TEST

/* For each SETUP and task the guest may log so much; the host does not take more. */
START_TEST(logs_are_counted)
{
	enum { PER_REQUEST = 256 };
	static const struct ad_guest_msg log = { AD_GUEST_LOG, .u.log = { 0, "x" } };
	struct end host, agent;

	for (enum stage stage = GREETED; stage <= BEGUN; stage++) {
		size_t requests = stage == GREETED ? 1 : stage < BEGUN ? 2 : 7, sent = 0, got = 0;

		end_at(&agent, AGENT, stage);
		while (ad_guest_link_send(agent.link, &log)) {
			sent++;
			end_drain(&agent, NULL);
		}
		ck_assert_uint_eq(sent, PER_REQUEST * requests);
		end_at(&host, HOST, stage);
		while (feed_msg(&host, &log))
			got++;
		ck_assert_uint_eq(got, sent);
		end_broken(&host, "LOG (task 0, stream 0, 3 bytes): too many");
		end_free(&host);
		end_free(&agent);
	}
	/* Nor does the guest keep them all for a host that does not read. */
	end_at(&agent, AGENT, OVER);
	for (size_t i = 0; i < 7 * PER_REQUEST; i++) {
		char line[AD_GUEST_TEXT_MAX];
		struct ad_guest_msg longest = { AD_GUEST_LOG, .u.log = { 0, line } };

		memset(line, 'x', sizeof(line) - 1);
		line[sizeof(line) - 1] = '\0';
		if (!ad_guest_link_send(agent.link, &longest)) {
			ck_assert_uint_lt(i, 64);
			break;
		}
	}
	ck_assert_uint_le(end_drain(&agent, NULL), 65536);
	end_free(&agent);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("guest_proto");

	tcase_add_test(tc, messages_round_trip);
	tcase_add_test(tc, bytes_of_a_frame);
	tcase_add_loop_test(tc, a_conversation, 0, 9);
	tcase_add_test(tc, order);
	tcase_add_test(tc, order_when_sending);
	tcase_add_test(tc, order_of_the_rest);
	tcase_add_test(tc, pings_are_answered);
	tcase_add_test(tc, lengths);
	tcase_add_test(tc, values);
	tcase_add_test(tc, texts_are_made_fit);
	tcase_add_test(tc, large_runs);
	tcase_add_loop_test(tc, streams_carry_everything, 0, 3);
	tcase_add_test(tc, windows);
	tcase_add_test(tc, flood);
	tcase_add_test(tc, control_before_data);
	tcase_add_test(tc, held_until_sent_whole);
	tcase_add_test(tc, no_output_before_started);
	tcase_add_test(tc, streams_take_turns);
	tcase_add_test(tc, random_bytes);
	tcase_add_test(tc, announced_is_not_allocated);
	tcase_add_test(tc, tasks_at_once);
	tcase_add_test(tc, connections_at_once);
	tcase_add_test(tc, hangups_do_not_pile_up);
	tcase_add_loop_test(tc, connection_windows, 0, 2);
	tcase_add_test(tc, after_a_hangup);
	tcase_add_test(tc, a_network_ends_with_its_command);
	tcase_add_test(tc, control_queue_is_bounded);
	tcase_add_test(tc, logs_are_counted);
	return unit_run("guest_proto", tc);
}
