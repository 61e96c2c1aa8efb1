/* SPDX-License-Identifier: MIT */
/* Started in QEMU's place: there is no machine, and what would be the agent in it follows
 * a script, which is the file that would be the root file system. A line is
 * "EVENT: WORD...": what to do when that happens. Words are done in order; one that
 * cannot go on yet waits for the host.
 *
 * Events: boot, setup, put, run, get, kill, signal, stop; of snapshots: warm, and on the
 * control channel control (the first command), save and restore. Each has a default, which
 * is that of a command that succeeds and changes nothing. A machine that goes on from a
 * snapshot begins with restore instead of boot.
 *
 * What the protocol does not allow to be said now is said nevertheless. */
#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "proto/guest_private.h"

enum { CHANNEL = 3, SCRIPT = 6, SCRIPT_MAX = 16 * 1024, WORDS_MAX = 256, PIECE = 32 * 1024 };

static struct {
	char script[SCRIPT_MAX];
	struct ad_guest_link *link;
	char *words[WORDS_MAX];
	size_t first, count;
	uint32_t id;        /* of what was last begun */
	struct ad_buf pipe; /* stdin that is not echoed yet */
	bool stdin_ended;
	struct ad_buf archive;
	uint64_t sent; /* of what the present word sends */
	bool bytewise, pinging;
	int control; /* or -1 */
	struct ad_buf orders;
	bool deaf;                                    /* to connections */
	uint64_t heard[AD_GUEST_CONNECTIONS_MAX + 1]; /* bytes, by number */
	bool hung_up[AD_GUEST_CONNECTIONS_MAX + 1];   /* the host has */
	const char *kernel;
} m = { .control = -1, .kernel = "0-fake" };

static void give_up(const char *why)
{
	printf("fake monitor: %s\n", why);
	fflush(stdout);
	exit(2);
}

/* ---- the channel */

static void send_all(const void *data, size_t len)
{
	const uint8_t *at = data;

	while (len > 0) {
		ssize_t n = write(CHANNEL, at, m.bytewise ? 1 : len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			exit(0); /* nobody is there any more */
		at += n;
		len -= (size_t)n;
		if (m.bytewise)
			usleep(100);
	}
}

static void flush_link(void)
{
	const uint8_t *data;
	size_t len;

	while ((data = ad_guest_link_peek(m.link, &len)), len > 0) {
		send_all(data, len);
		ad_guest_link_sent(m.link, len);
	}
}

static void say(const struct ad_guest_msg *msg)
{
	ad_autobuf struct ad_buf frame = { 0 };

	if (ad_guest_link_send(m.link, msg)) {
		flush_link();
		return;
	}
	flush_link();
	if (!ad_guest_encode(msg, &frame))
		give_up("this cannot be said at all");
	send_all(frame.data, frame.len);
}

/* True: all of it is under way. */
static bool send_stream(enum ad_guest_stream stream, const void *data, size_t len)
{
	size_t taken = ad_guest_link_data(m.link, m.id, stream, data, len);

	flush_link();
	m.sent += taken;
	return taken == len;
}

/* ---- words */

static uint64_t number(const char *arg)
{
	return strtoull(arg, NULL, 0);
}

static bool say_type(enum ad_guest_type type)
{
	struct ad_guest_msg msg = { .type = type };

	if (ad_guest_kind(type)->of_task)
		msg.id = m.id;
	switch (type) {
	case AD_GUEST_HELLO:
		msg.u.hello.version = AD_GUEST_VERSION;
		msg.u.hello.memory_bytes = UINT64_C(256) << 20;
		msg.u.hello.kernel = m.kernel;
		break;
	case AD_GUEST_READY:
		msg.u.ready.text = "";
		break;
	case AD_GUEST_STARTED:
		msg.u.started.pid = 2;
		break;
	case AD_GUEST_DONE:
		msg.u.done.text = "";
		break;
	default:
		break;
	}
	say(&msg);
	return true;
}

static bool do_hello(const char *arg)
{
	(void)arg;
	return say_type(AD_GUEST_HELLO);
}

static bool do_kernel(const char *arg)
{
	m.kernel = strdup(arg);
	return m.kernel;
}

static bool do_hello_of(const char *arg)
{
	const struct ad_guest_msg msg = { .type = AD_GUEST_HELLO,
					  .u.hello = { .version = (uint32_t)number(arg),
						       .kernel = "0-fake" } };

	say(&msg);
	return true;
}

static bool do_ready(const char *arg)
{
	(void)arg;
	return say_type(AD_GUEST_READY);
}

static bool do_unready(const char *arg)
{
	const struct ad_guest_msg msg = { .type = AD_GUEST_READY,
					  .u.ready = { .os_errno = ENODEV, .text = arg } };

	say(&msg);
	return true;
}

static bool do_started(const char *arg)
{
	(void)arg;
	return say_type(AD_GUEST_STARTED);
}

static bool do_started_as(const char *arg)
{
	const struct ad_guest_msg msg = { .type = AD_GUEST_STARTED,
					  .id = m.id,
					  .u.started.pid = (int32_t)strtol(arg, NULL, 0) };

	say(&msg);
	return true;
}

static bool do_failed(const char *arg)
{
	const struct ad_guest_msg msg = {
		.type = AD_GUEST_FAILED,
		.id = m.id,
		.u.failed = { .stage = AD_GUEST_STAGE_EXEC, .os_errno = ENOENT, .text = arg }
	};

	say(&msg);
	return true;
}

static bool do_out(const char *arg)
{
	return send_stream(AD_GUEST_STDOUT, arg, strlen(arg));
}

static bool do_err(const char *arg)
{
	return send_stream(AD_GUEST_STDERR, arg, strlen(arg));
}

static bool flood(enum ad_guest_stream stream, const char *arg)
{
	static const uint8_t piece[PIECE];
	uint64_t all = number(arg);

	while (m.sent < all) {
		uint64_t left = all - m.sent;

		if (!send_stream(stream, piece, left < PIECE ? left : PIECE))
			return false;
	}
	return true;
}

static bool do_flood(const char *arg)
{
	return flood(AD_GUEST_STDOUT, arg);
}

/* Whatever credit there is. */
static bool do_overdraw(const char *arg)
{
	static const uint8_t piece[PIECE];
	const struct ad_guest_msg msg = {
		.type = AD_GUEST_DATA,
		.id = m.id,
		.u.data = { .stream = AD_GUEST_STDOUT, .data = piece, .len = PIECE },
	};
	ad_autobuf struct ad_buf frame = { 0 };

	if (!ad_guest_encode(&msg, &frame))
		give_up("no frame");
	for (uint64_t i = 0; i < number(arg); i += PIECE)
		send_all(frame.data, frame.len);
	return true;
}

static bool end_stream(enum ad_guest_stream stream)
{
	const struct ad_guest_msg msg = { .type = AD_GUEST_END,
					  .id = m.id,
					  .u.end.stream = stream };

	say(&msg);
	return true;
}

static bool do_end(const char *arg)
{
	(void)arg;
	return end_stream(AD_GUEST_STDOUT) && end_stream(AD_GUEST_STDERR);
}

static bool do_exited(const char *arg)
{
	const struct ad_guest_msg msg = { .type = AD_GUEST_EXITED,
					  .id = m.id,
					  .u.exited.wait_status = (int32_t)number(arg) };

	say(&msg);
	return true;
}

static bool do_closed(const char *arg)
{
	(void)arg;
	return say_type(AD_GUEST_CLOSED);
}

static bool do_done(const char *arg)
{
	(void)arg;
	return say_type(AD_GUEST_DONE);
}

static bool do_undone(const char *arg)
{
	const struct ad_guest_msg msg = { .type = AD_GUEST_DONE,
					  .id = m.id,
					  .u.done = { .os_errno = (int32_t)number(arg),
						      .text = "the guest's disk" } };

	say(&msg);
	return true;
}

/* What comes on stdin, until it ends. */
static bool do_cat(const char *arg)
{
	size_t taken;

	(void)arg;
	taken = ad_guest_link_data(m.link, m.id, AD_GUEST_STDOUT, (const uint8_t *)m.pipe.data,
				   m.pipe.len);
	ad_guest_link_taken(m.link, m.id, AD_GUEST_STDIN, taken);
	flush_link();
	m.pipe.len -= taken;
	if (taken > 0)
		memmove(m.pipe.data, m.pipe.data + taken, m.pipe.len);
	return m.stdin_ended && m.pipe.len == 0;
}

static bool do_log(const char *arg)
{
	const struct ad_guest_msg msg = { .type = AD_GUEST_LOG,
					  .u.log = { .level = 2, .text = "a word of the agent" } };

	for (uint64_t i = 0; i < number(arg); i++)
		say(&msg);
	return true;
}

static bool do_limit(const char *arg)
{
	const struct ad_guest_msg msg = { .type = AD_GUEST_LIMIT,
					  .id = m.id,
					  .u.limit = { .limit = (enum ad_guest_limit)number(arg),
						       .fatal = true } };

	say(&msg);
	return true;
}

static bool do_ping(const char *arg)
{
	(void)arg;
	return m.pinging = true;
}

static bool do_id(const char *arg)
{
	m.id = (uint32_t)number(arg);
	return true;
}

static bool do_raw(const char *arg)
{
	for (; isxdigit((unsigned char)arg[0]) && isxdigit((unsigned char)arg[1]); arg += 2) {
		const char digits[] = { arg[0], arg[1], '\0' };
		uint8_t byte = (uint8_t)strtoul(digits, NULL, 16);

		send_all(&byte, 1);
	}
	return true;
}

static bool do_noise(const char *arg)
{
	static uint8_t piece[256];

	for (uint64_t i = 0; i < number(arg); i += sizeof(piece)) {
		if (getrandom(piece, sizeof(piece), 0) != sizeof(piece))
			give_up("no random bytes");
		send_all(piece, sizeof(piece));
	}
	return true;
}

static bool do_wait(const char *arg)
{
	return usleep((useconds_t)number(arg) * 1000) == 0;
}

static bool do_bytewise(const char *arg)
{
	(void)arg;
	return m.bytewise = true;
}

/* ---- the control channel */

static bool do_control(const char *arg)
{
	return dprintf(m.control, "%s\n", arg) > 0;
}

static bool do_return(const char *arg)
{
	(void)arg;
	return do_control("{\"return\": {}}");
}

static bool do_migrated(const char *arg)
{
	(void)arg;
	return do_control("{\"event\": \"MIGRATION\", \"data\": {\"status\": \"completed\"}}");
}

static bool do_refuse(const char *arg)
{
	(void)arg;
	return do_control("{\"error\": {\"class\": \"GenericError\", \"desc\": \"not today\"}}");
}

/* Until nobody listens. */
static bool do_events(const char *arg)
{
	(void)arg;
	while (do_control("{\"event\": \"RESUME\"}"))
		;
	return true;
}

static bool do_close_control(const char *arg)
{
	(void)arg;
	close(m.control);
	m.control = -1;
	return true;
}

/* ---- connections: words are of a number, and what follows it */

static const char *after_number(const char *arg, uint16_t *ret)
{
	char *end;

	*ret = (uint16_t)strtoul(arg, &end, 0);
	return *end == ':' ? end + 1 : end;
}

static bool say_of(enum ad_guest_type type, const char *arg)
{
	struct ad_guest_msg msg = { .type = type, .id = m.id };

	after_number(arg, &msg.connection);
	say(&msg);
	return true;
}

static bool do_open(const char *arg)
{
	return say_of(AD_GUEST_OPEN, arg);
}

/* All that there may be. */
static bool do_open_all(const char *arg)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_OPEN, .id = m.id };

	(void)arg;
	for (msg.connection = 1; msg.connection <= AD_GUEST_CONNECTIONS_MAX; msg.connection++)
		say(&msg);
	return true;
}

static bool do_net_end(const char *arg)
{
	return say_of(AD_GUEST_END, arg);
}

static bool do_hang_up(const char *arg)
{
	return say_of(AD_GUEST_HANGUP, arg);
}

/* N:HOST:PORT */
static bool do_connect(const char *arg)
{
	char request[256];
	uint16_t number;
	const char *target = after_number(arg, &number);
	int len = snprintf(request, sizeof(request), "CONNECT %s HTTP/1.1\r\n\r\n", target);

	ad_guest_link_connection_data(m.link, m.id, number, (const uint8_t *)request, (size_t)len);
	flush_link();
	return true;
}

/* N:BYTES, as there is credit. */
static bool do_net_flood(const char *arg)
{
	static const uint8_t piece[PIECE];
	uint16_t number;
	uint64_t all = strtoull(after_number(arg, &number), NULL, 0);
	size_t taken;

	do {
		size_t len = all - m.sent < PIECE ? (size_t)(all - m.sent) : PIECE;

		taken = ad_guest_link_connection_data(m.link, m.id, number, piece, len);
		flush_link();
		m.sent += taken;
	} while (taken > 0);
	return m.sent == all;
}

/* The same of all, as much as there is credit for. */
static bool do_flood_all(const char *arg)
{
	static const uint8_t piece[AD_GUEST_CONNECTION_WINDOW];

	(void)arg;
	for (uint16_t i = 1; i <= AD_GUEST_CONNECTIONS_MAX; i++) {
		ad_guest_link_connection_data(m.link, m.id, i, piece, sizeof(piece));
		flush_link();
	}
	return true;
}

/* All that there is credit for, and a piece for which there is none. */
static bool do_net_overdraw(const char *arg)
{
	static const uint8_t all[AD_GUEST_CONNECTION_WINDOW];
	struct ad_guest_msg msg = { .type = AD_GUEST_DATA, .id = m.id };
	ad_autobuf struct ad_buf frame = { 0 };

	after_number(arg, &msg.connection);
	ad_guest_link_connection_data(m.link, m.id, msg.connection, all, sizeof(all));
	flush_link();
	msg.u.data.data = all;
	msg.u.data.len = PIECE;
	if (!ad_guest_encode(&msg, &frame))
		give_up("no frame");
	send_all(frame.data, frame.len);
	return true;
}

static bool do_deaf(const char *arg)
{
	(void)arg;
	return m.deaf = true;
}

/* N:BYTES: until so many have come. */
static bool do_hear(const char *arg)
{
	uint16_t number;
	uint64_t bytes = strtoull(after_number(arg, &number), NULL, 0);

	return m.heard[number] >= bytes;
}

static bool do_hung_up(const char *arg)
{
	uint16_t number;

	after_number(arg, &number);
	return m.hung_up[number];
}

/* ---- archives */

/* TYPE:MODE:NAME:REST; REST is what is in a file, or where a link leads. */
static bool do_entry(const char *arg)
{
	struct {
		char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type;
		char target[100], magic[8], rest[247];
	} header;
	static const char zeros[512];
	char type = arg[0], mode[8], name[100], rest[100] = "";
	unsigned int sum = 0;
	size_t len;

	_Static_assert(sizeof(header) == 512, "a block");
	if (sscanf(arg + 1, ":%7[0-7]:%99[^:]:%99s", mode, name, rest) < 2)
		give_up("what entry?");
	len = type == '0' ? strlen(rest) : 0;
	memset(&header, 0, sizeof(header));
	memcpy(header.name, name, strlen(name));
	snprintf(header.mode, sizeof(header.mode), "%07lo", strtoul(mode, NULL, 8));
	snprintf(header.uid, sizeof(header.uid), "%07o", 0);
	snprintf(header.gid, sizeof(header.gid), "%07o", 0);
	snprintf(header.size, sizeof(header.size), "%011zo", len);
	snprintf(header.mtime, sizeof(header.mtime), "%011o", 1);
	header.type = type;
	if (type == '1' || type == '2')
		memcpy(header.target, rest, strlen(rest));
	memcpy(header.magic, "ustar\00000", sizeof(header.magic));
	memset(header.sum, ' ', sizeof(header.sum));
	for (size_t i = 0; i < sizeof(header); i++)
		sum += ((const unsigned char *)&header)[i];
	snprintf(header.sum, sizeof(header.sum), "%06o", sum);
	ad_buf_append(&m.archive, &header, sizeof(header));
	if (len > 0) {
		ad_buf_append(&m.archive, rest, len);
		ad_buf_append(&m.archive, zeros, sizeof(zeros) - len);
	}
	return true;
}

/* A file as large as asked, whose content is to follow by files-flood. */
static bool do_large(const char *arg)
{
	char *header, size[12];
	unsigned int sum = 0;

	do_entry("0:644:large:");
	header = m.archive.data + m.archive.len - 512;
	snprintf(size, sizeof(size), "%011llo", (unsigned long long)number(arg));
	memcpy(header + 124, size, sizeof(size));
	memset(header + 148, ' ', 8);
	for (size_t i = 0; i < 512; i++)
		sum += (unsigned char)header[i];
	snprintf(header + 148, 8, "%06o", sum);
	return true;
}

static bool do_files(const char *arg)
{
	(void)arg;
	if (!send_stream(AD_GUEST_FILES_OUT, m.archive.data + m.sent,
			 m.archive.len - (size_t)m.sent))
		return false;
	m.archive.len = 0;
	return true;
}

static bool do_files_flood(const char *arg)
{
	return flood(AD_GUEST_FILES_OUT, arg);
}

/* What shows that nothing is missing. */
static bool do_whole(const char *arg)
{
	static const char zeros[1024];

	(void)arg;
	do_entry("5:755:.:");
	return ad_buf_append(&m.archive, zeros, sizeof(zeros));
}

static bool do_files_end(const char *arg)
{
	(void)arg;
	return end_stream(AD_GUEST_FILES_OUT);
}

/* ---- what a monitor does */

static bool do_die(const char *arg)
{
	fflush(stdout);
	exit((int)number(arg));
}

static bool do_crash(const char *arg)
{
	(void)arg;
	abort();
}

static bool do_stop(const char *arg)
{
	(void)arg;
	raise(SIGSTOP);
	return true;
}

static bool do_close(const char *arg)
{
	(void)arg;
	close(CHANNEL);
	pause();
	return true;
}

static bool do_print(const char *arg)
{
	printf("%s\n", arg);
	return true;
}

static bool do_prattle(const char *arg)
{
	static char text[PIECE];

	(void)arg;
	memset(text, 'x', sizeof(text));
	while (write(STDOUT_FILENO, text, sizeof(text)) > 0)
		;
	exit(1);
}

static const struct {
	const char *word;
	/* False: again, when the host was heard. */
	bool (*act)(const char *arg);
} vocabulary[] = {
	{ "hello", do_hello },
	{ "hello-of", do_hello_of },
	{ "kernel", do_kernel },
	{ "ready", do_ready },
	{ "unready", do_unready },
	{ "started", do_started },
	{ "started-as", do_started_as },
	{ "failed", do_failed },
	{ "out", do_out },
	{ "err", do_err },
	{ "flood", do_flood },
	{ "overdraw", do_overdraw },
	{ "end", do_end },
	{ "exited", do_exited },
	{ "closed", do_closed },
	{ "done", do_done },
	{ "undone", do_undone },
	{ "cat", do_cat },
	{ "log", do_log },
	{ "limit", do_limit },
	{ "ping", do_ping },
	{ "id", do_id },
	{ "raw", do_raw },
	{ "noise", do_noise },
	{ "wait", do_wait },
	{ "bytewise", do_bytewise },
	{ "open", do_open },
	{ "open-all", do_open_all },
	{ "net-end", do_net_end },
	{ "hang-up", do_hang_up },
	{ "connect", do_connect },
	{ "net-flood", do_net_flood },
	{ "flood-all", do_flood_all },
	{ "net-overdraw", do_net_overdraw },
	{ "deaf", do_deaf },
	{ "hear", do_hear },
	{ "hung-up", do_hung_up },
	{ "entry", do_entry },
	{ "large", do_large },
	{ "files", do_files },
	{ "files-flood", do_files_flood },
	{ "whole", do_whole },
	{ "files-end", do_files_end },
	{ "die", do_die },
	{ "crash", do_crash },
	{ "stop", do_stop },
	{ "close", do_close },
	{ "control", do_control },
	{ "return", do_return },
	{ "migrated", do_migrated },
	{ "refuse", do_refuse },
	{ "events", do_events },
	{ "close-control", do_close_control },
	{ "print", do_print },
	{ "prattle", do_prattle },
};

static bool do_word(const char *word)
{
	size_t len = strcspn(word, ":");

	for (size_t i = 0; i < AD_COUNT(vocabulary); i++) {
		if (strlen(vocabulary[i].word) == len && memcmp(vocabulary[i].word, word, len) == 0)
			return vocabulary[i].act(word + len + (word[len] == ':'));
	}
	give_up(word);
	return false;
}

static void do_words(void)
{
	while (m.first < m.count && do_word(m.words[m.first])) {
		free(m.words[m.first++]);
		m.sent = 0;
	}
}

/* ---- events */

static const struct {
	const char *event, *words;
} defaults[] = {
	{ "boot", "hello" },
	{ "setup", "ready" },
	{ "put", "done" },
	{ "run", "started end exited:0 closed" },
	{ "get", "whole files files-end done" },
	{ "kill", "end exited:9 closed" },
	{ "signal", "" },
	{ "stop", "die:0" },
	{ "warm", "" },
	{ "control", "return" },
	{ "save", "return migrated" },
	{ "restore", "return migrated" },
};

static void happens(const char *event)
{
	const char *line = m.script;
	char *words = NULL, *rest = NULL;
	size_t len = strlen(event);

	while (line && (strncmp(line, event, len) != 0 || line[len] != ':')) {
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	for (size_t i = 0; i < AD_COUNT(defaults) && !line; i++) {
		if (strcmp(defaults[i].event, event) == 0)
			words = strdup(defaults[i].words);
	}
	if (line)
		words = strndup(line + len + 1, strcspn(line + len + 1, "\n"));
	for (char *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
		if (m.count == WORDS_MAX)
			give_up("too much to do");
		m.words[m.count++] = strdup(word);
	}
	free(words);
}

/* A new event ends what is waiting. */
static void drop_words(void)
{
	while (m.first < m.count)
		free(m.words[m.first++]);
	m.sent = 0;
}

static void on_connection(const struct ad_guest_msg *msg)
{
	if (msg->type == AD_GUEST_HANGUP)
		m.hung_up[msg->connection] = true;
	if (msg->type != AD_GUEST_DATA)
		return;
	m.heard[msg->connection] += msg->u.data.len;
	if (!m.deaf)
		ad_guest_link_connection_taken(m.link, msg->id, msg->connection, msg->u.data.len);
}

static void on_message(const struct ad_guest_msg *msg, void *userdata)
{
	(void)userdata;
	if (msg->connection) {
		on_connection(msg);
		return;
	}
	switch (msg->type) {
	case AD_GUEST_SETUP:
		happens("setup");
		break;
	case AD_GUEST_PUT:
	case AD_GUEST_RUN:
	case AD_GUEST_GET:
		m.id = msg->id;
		m.stdin_ended = false;
		m.pipe.len = 0;
		if (msg->type != AD_GUEST_PUT)
			happens(msg->type == AD_GUEST_RUN ? "run" : "get");
		break;
	case AD_GUEST_DATA:
		if (msg->u.data.stream == AD_GUEST_STDIN)
			ad_buf_append(&m.pipe, msg->u.data.data, msg->u.data.len);
		else
			ad_guest_link_taken(m.link, msg->id, msg->u.data.stream, msg->u.data.len);
		break;
	case AD_GUEST_END:
		if (msg->u.end.stream == AD_GUEST_STDIN)
			m.stdin_ended = true;
		else
			happens("put");
		break;
	case AD_GUEST_KILL:
		drop_words();
		happens("kill");
		break;
	case AD_GUEST_SIGNAL:
		happens("signal");
		break;
	case AD_GUEST_STOP:
		happens("stop");
		break;
	case AD_GUEST_WARM:
		happens("warm");
		break;
	default:
		break;
	}
}

static void on_writable(uint32_t id, enum ad_guest_stream stream, void *userdata)
{
	(void)id;
	(void)stream;
	(void)userdata; /* what waits is tried again anyway */
}

static void on_connection_writable(uint32_t id, uint16_t connection, void *userdata)
{
	(void)id;
	(void)connection;
	(void)userdata; /* the same */
}

static void ping(void)
{
	static uint64_t token;
	const struct ad_guest_msg msg = { .type = AD_GUEST_PING, .u.ping.token = ++token };

	/* Refused before the last one was answered. */
	if (ad_guest_link_send(m.link, &msg))
		flush_link();
}

/* Whether the channel is still there. */
static bool hear_host(void)
{
	static uint8_t data[64 * 1024];
	ssize_t n = read(CHANNEL, data, sizeof(data));

	if (n > 0 && !ad_guest_link_feed(m.link, data, (size_t)n))
		give_up(ad_guest_link_error(m.link));
	return n > 0;
}

static void on_order(const char *line)
{
	if (strstr(line, "\"qmp_capabilities\""))
		happens("control");
	else if (strstr(line, "\"migrate\""))
		happens("save");
	else if (strstr(line, "\"migrate-incoming\""))
		happens("restore");
	else
		do_return("");
}

/* One order at a time: the next comes when this one was answered. A descriptor that comes
 * with it is lost. */
static void hear_control(void)
{
	char data[4096];
	ssize_t n = read(m.control, data, sizeof(data));

	if (n <= 0) {
		do_close_control("");
		return;
	}
	if (!ad_buf_append(&m.orders, data, (size_t)n))
		give_up("no memory");
	if (memchr(data, '\n', (size_t)n)) {
		on_order(m.orders.data);
		m.orders.len = 0;
	}
}

/* Whether it goes on from a snapshot. */
static bool read_arguments(char **argv)
{
	unsigned long long memory = 0, backend = 0;
	bool clone = false;

	for (; *argv; argv++) {
		sscanf(*argv, "socket,id=control,fd=%d", &m.control);
		sscanf(*argv, "memory-backend-file,id=memory,size=%llu", &backend);
		if (strcmp(*argv, "-m") == 0)
			memory = strtoull(argv[1], NULL, 10) << 20;
		clone |= strcmp(*argv, "-incoming") == 0;
	}
	if (backend && backend != memory)
		give_up("Machine memory size does not match the size of the memory backend");
	return clone;
}

/* It was said before the snapshot was taken. */
static void have_said_hello(void)
{
	const struct ad_guest_msg hello = { .type = AD_GUEST_HELLO,
					    .u.hello = { .version = AD_GUEST_VERSION,
							 .kernel = "0-fake" } };
	size_t len;

	ad_guest_link_send(m.link, &hello);
	ad_guest_link_peek(m.link, &len);
	ad_guest_link_sent(m.link, len);
}

int main(int argc, char **argv)
{
	static const struct ad_guest_link_events events = {
		.message = on_message,
		.writable = on_writable,
		.connection_writable = on_connection_writable,
	};
	bool clone = read_arguments(argv);

	(void)argc;
	signal(SIGPIPE, SIG_IGN);
	if (pread(SCRIPT, m.script, sizeof(m.script) - 1, 0) < 0)
		give_up("no script");
	m.link = ad_guest_link_new(AD_GUEST_AGENT, &events, NULL);
	if (!m.link)
		give_up("no memory");
	if (m.control >= 0)
		do_control("{\"QMP\": {}}");
	if (clone)
		have_said_hello();
	else
		happens("boot");
	for (;;) {
		struct pollfd fds[] = { { .fd = CHANNEL, .events = POLLIN },
					{ .fd = m.control, .events = POLLIN } };

		do_words();
		flush_link();
		if (m.pinging)
			ping();
		fds[1].fd = m.control;
		if (poll(fds, AD_COUNT(fds), m.pinging ? 10 : -1) <= 0)
			continue;
		if (fds[1].revents)
			hear_control();
		if (fds[0].revents && !hear_host())
			return 0;
	}
}
