/* SPDX-License-Identifier: MIT */
/* The link to a virtual machine. The first byte says who is tried: a host or an agent
 * that is sent the rest of the input, or both of them, talking to each other in an order
 * that the input decides. */
#include "fuzz.h"

#include <string.h>

#include "proto/guest_private.h"

#define HOST AD_GUEST_HOST
#define AGENT AD_GUEST_AGENT

static const char *const argv[] = { "sh", "-c", "true", NULL };
static const char *const env[] = { "A=b", NULL };

/* ---- one end, which is sent anything */

struct victim {
	struct ad_guest_link *link;
	uint32_t next_id;
	uint64_t seen; /* a hash of all it was told */
	size_t sent;
};

static void hash(struct victim *victim, const void *data, size_t len)
{
	const uint8_t *at = data;

	for (size_t i = 0; i < len; i++)
		victim->seen = (victim->seen ^ at[i]) * 0x100000001b3u;
}

/* What it sends are whole, sound frames. */
static void drain(struct victim *victim)
{
	const uint8_t *at;
	size_t len;

	while (at = ad_guest_link_peek(victim->link, &len), len > 0) {
		hash(victim, at, len);
		victim->sent += len;
		for (size_t i = 0; i < len;) {
			struct ad_guest_header header;

			FUZZ_CHECK(len - i >= AD_GUEST_HEADER);
			ad_guest_header_decode(&header, at + i);
			FUZZ_CHECK(ad_guest_kind(header.type));
			i += AD_GUEST_HEADER + header.len;
			FUZZ_CHECK(i <= len);
		}
		ad_guest_link_sent(victim->link, len);
	}
}

static void send_stream(struct victim *victim, uint32_t id, enum ad_guest_stream stream)
{
	static const uint8_t data[100];

	ad_guest_link_data(victim->link, id, stream, data, sizeof(data));
}

static void send_connection(struct victim *victim, uint32_t id, uint16_t connection)
{
	static const uint8_t data[100];

	ad_guest_link_connection_data(victim->link, id, connection, data, sizeof(data));
}

static void begin(struct victim *victim, enum ad_guest_type type)
{
	struct ad_guest_msg msg = { .type = type, .id = victim->next_id };
	uint32_t net;

	if (type == AD_GUEST_RUN) {
		ad_guest_link_free_connection(victim->link, &net);
		msg.u.run.flags = victim->next_id % AD_GUEST_RUN_NET;
		msg.u.run.flags |= net ? 0 : AD_GUEST_RUN_NET;
		msg.u.run.workdir = "/";
		msg.u.run.argv = argv;
		msg.u.run.env = env;
	} else {
		msg.u.files.path = "/";
	}
	if (!ad_guest_link_send(victim->link, &msg))
		return;
	victim->next_id++;
	send_stream(victim, msg.id, AD_GUEST_STDIN);
	send_stream(victim, msg.id, AD_GUEST_FILES_IN);
}

/* It does what leads deeper; what is not allowed is refused by its own link. */
static void react(struct victim *victim, const struct ad_guest_msg *got)
{
	struct ad_guest_msg msg = { .id = got->id };

	switch (got->type) {
	case AD_GUEST_HELLO:
		msg.type = AD_GUEST_SETUP;
		break;
	case AD_GUEST_READY:
		begin(victim, AD_GUEST_RUN);
		begin(victim, AD_GUEST_RUN);
		begin(victim, AD_GUEST_PUT);
		begin(victim, AD_GUEST_GET);
		msg.type = AD_GUEST_PING;
		break;
	case AD_GUEST_FAILED:
	case AD_GUEST_CLOSED:
	case AD_GUEST_DONE:
		begin(victim, AD_GUEST_RUN);
		return;
	case AD_GUEST_SETUP:
		msg.type = AD_GUEST_READY;
		break;
	case AD_GUEST_RUN:
		msg.type = AD_GUEST_STARTED;
		msg.u.started.pid = 2;
		ad_guest_link_send(victim->link, &msg);
		send_stream(victim, got->id, AD_GUEST_STDOUT);
		send_stream(victim, got->id, AD_GUEST_STDERR);
		msg = (struct ad_guest_msg){ .type = AD_GUEST_OPEN };
		msg.connection = ad_guest_link_free_connection(victim->link, &msg.id);
		if (msg.connection && ad_guest_link_send(victim->link, &msg))
			send_connection(victim, msg.id, msg.connection);
		return;
	case AD_GUEST_OPEN:
		send_connection(victim, got->id, got->connection);
		return;
	case AD_GUEST_END:
	case AD_GUEST_HANGUP:
		if (!got->connection)
			return;
		msg.type = got->type;
		msg.connection = got->connection;
		break;
	case AD_GUEST_GET:
		send_stream(victim, got->id, AD_GUEST_FILES_OUT);
		return;
	case AD_GUEST_SIGNAL:
		msg.type = AD_GUEST_EXITED;
		break;
	case AD_GUEST_KILL:
		for (enum ad_guest_stream i = 0; i < AD_GUEST_STREAMS; i++) {
			msg.type = AD_GUEST_END;
			msg.u.end.stream = i;
			ad_guest_link_send(victim->link, &msg);
		}
		msg.type = AD_GUEST_EXITED;
		memset(&msg.u, 0, sizeof(msg.u));
		ad_guest_link_send(victim->link, &msg);
		msg.type = AD_GUEST_CLOSED;
		ad_guest_link_send(victim->link, &msg);
		msg.type = AD_GUEST_DONE;
		break;
	case AD_GUEST_DATA:
		/* What begins with an odd byte is never taken: windows close. */
		if (got->u.data.data[0] % 2 == 0 && got->connection)
			ad_guest_link_connection_taken(victim->link, got->id, got->connection,
						       got->u.data.len);
		else if (got->u.data.data[0] % 2 == 0)
			ad_guest_link_taken(victim->link, got->id, got->u.data.stream,
					    got->u.data.len);
		return;
	default:
		return;
	}
	ad_guest_link_send(victim->link, &msg);
}

static void on_message(const struct ad_guest_msg *msg, void *userdata)
{
	struct victim *victim = userdata;
	ad_autobuf struct ad_buf frame = { 0 };

	/* It can be written again. */
	FUZZ_CHECK(ad_guest_encode(msg, &frame));
	hash(victim, frame.data, frame.len);
	react(victim, msg);
	drain(victim);
}

static void on_writable(uint32_t id, enum ad_guest_stream stream, void *userdata)
{
	struct victim *victim = userdata;

	hash(victim, &id, sizeof(id));
	send_stream(victim, id, stream);
}

static void on_connection_writable(uint32_t id, uint16_t connection, void *userdata)
{
	struct victim *victim = userdata;

	hash(victim, &id, sizeof(id));
	send_connection(victim, id, connection);
}

static void victim_init(struct victim *victim, enum ad_guest_role role)
{
	static const struct ad_guest_link_events events = {
		.message = on_message,
		.writable = on_writable,
		.connection_writable = on_connection_writable,
	};
	struct ad_guest_msg hello = { .type = AD_GUEST_HELLO };

	*victim = (struct victim){ .next_id = 1 };
	victim->link = ad_guest_link_new(role, &events, victim);
	FUZZ_CHECK(victim->link);
	hello.u.hello.version = AD_GUEST_VERSION;
	FUZZ_CHECK(ad_guest_link_send(victim->link, &hello) == (role == AGENT));
	drain(victim);
}

/* However the bytes are cut, the same comes of them. */
static void fuzz_one(enum ad_guest_role role, const uint8_t *data, size_t size)
{
	struct victim whole, cut;
	bool ok;

	victim_init(&whole, role);
	victim_init(&cut, role);
	ok = ad_guest_link_feed(whole.link, data, size);
	FUZZ_CHECK(ok == !ad_guest_link_error(whole.link));
	for (size_t i = 0, step; i < size; i += step) {
		step = 1 + data[i] % 16;
		if (step > size - i)
			step = size - i;
		ad_guest_link_feed(cut.link, data + i, step);
	}
	FUZZ_CHECK(whole.seen == cut.seen);
	if (ok) {
		FUZZ_CHECK(!ad_guest_link_error(cut.link));
		drain(&whole);
	} else {
		FUZZ_CHECK(strcmp(ad_guest_link_error(whole.link), ad_guest_link_error(cut.link)) ==
			   0);
		FUZZ_CHECK(!ad_guest_link_peek(whole.link, &(size_t){ 0 }));
	}
	ad_guest_link_free(whole.link);
	ad_guest_link_free(cut.link);
}

/* ---- both, who keep to the protocol: it never breaks, and nothing is lost */

enum { IDS = 24, WIRES = AD_GUEST_CONNECTIONS_MAX + 1 };

struct flow {
	size_t sent, got, held;
	bool ended;
};

struct job {
	enum ad_guest_type kind;
	bool over;            /* its host was told so */
	bool started, exited; /* at the agent */
	bool closed;          /* said so by the agent */
	struct flow flows[AD_GUEST_STREAMS];
};

struct wire {
	bool hung_up[2];      /* by role, who has said so */
	struct flow flows[2]; /* by the role that sends */
};

struct pair;

struct peer {
	struct pair *pair;
	enum ad_guest_role role;
	struct ad_guest_link *link;
};

struct pair {
	struct peer peers[2];
	struct job jobs[IDS + 1]; /* by number; 0 is nobody's */
	struct wire wires[WIRES]; /* the connections of `net`, by number */
	uint32_t net;             /* the task that has or had the network */
	uint32_t last_id;
	bool up;
	const uint8_t *in;
	size_t left;
};

static uint8_t choice(struct pair *pair)
{
	if (pair->left == 0)
		return 0;
	pair->left--;
	return *pair->in++;
}

/* What a stream carries from an offset on, at least a whole frame of it. */
static const uint8_t *content(uint32_t id, enum ad_guest_stream stream, size_t at)
{
	enum { PERIOD = 65521 };
	static uint8_t bytes[PERIOD + AD_GUEST_DATA_MAX];

	if (!bytes[1])
		for (size_t i = 0; i < sizeof(bytes); i++)
			bytes[i] = (uint8_t)(i % PERIOD * 2654435761u >> 11);
	return bytes + (at + 31 * id + 7 * stream) % PERIOD;
}

static void pair_connection_message(struct peer *peer, const struct ad_guest_msg *msg)
{
	struct wire *wire = &peer->pair->wires[msg->connection];
	struct flow *flow = &wire->flows[ad_guest_peer(peer->role)];

	FUZZ_CHECK(msg->id == peer->pair->net);
	FUZZ_CHECK(!wire->hung_up[peer->role] || msg->type == AD_GUEST_HANGUP);
	if (msg->type == AD_GUEST_DATA) {
		FUZZ_CHECK(memcmp(msg->u.data.data, content(msg->connection, 0, flow->got),
				  msg->u.data.len) == 0);
		flow->got += msg->u.data.len;
		flow->held += msg->u.data.len;
		FUZZ_CHECK(flow->got <= flow->sent && flow->held <= AD_GUEST_CONNECTION_WINDOW);
	} else if (msg->type == AD_GUEST_END) {
		FUZZ_CHECK(flow->ended && flow->got == flow->sent);
	} else if (msg->type == AD_GUEST_HANGUP) {
		FUZZ_CHECK(wire->hung_up[ad_guest_peer(peer->role)]);
		FUZZ_CHECK(wire->hung_up[peer->role] || flow->got == flow->sent);
	} else {
		FUZZ_CHECK(msg->type == AD_GUEST_OPEN && flow->got == 0);
	}
}

static void pair_message(const struct ad_guest_msg *msg, void *userdata)
{
	struct peer *peer = userdata;
	struct pair *pair = peer->pair;
	struct ad_guest_msg answer = { .id = 0 };
	struct job *job = &pair->jobs[msg->id];
	struct flow *flow;

	FUZZ_CHECK(msg->id <= pair->last_id && (msg->id == 0 || !job->over));
	if (msg->connection) {
		pair_connection_message(peer, msg);
		return;
	}
	switch (msg->type) {
	case AD_GUEST_HELLO:
		answer.type = AD_GUEST_SETUP;
		FUZZ_CHECK(ad_guest_link_send(peer->link, &answer));
		break;
	case AD_GUEST_SETUP:
		answer.type = AD_GUEST_READY;
		FUZZ_CHECK(ad_guest_link_send(peer->link, &answer));
		break;
	case AD_GUEST_READY:
		pair->up = true;
		break;
	case AD_GUEST_DATA:
		flow = &job->flows[msg->u.data.stream];
		FUZZ_CHECK(memcmp(msg->u.data.data, content(msg->id, msg->u.data.stream, flow->got),
				  msg->u.data.len) == 0);
		flow->got += msg->u.data.len;
		flow->held += msg->u.data.len;
		FUZZ_CHECK(flow->got <= flow->sent && flow->held <= AD_GUEST_WINDOW);
		break;
	case AD_GUEST_END:
		flow = &job->flows[msg->u.end.stream];
		FUZZ_CHECK(flow->ended && flow->got == flow->sent);
		break;
	case AD_GUEST_FAILED:
	case AD_GUEST_CLOSED:
	case AD_GUEST_DONE:
		FUZZ_CHECK(job->closed);
		job->over = true;
		for (enum ad_guest_stream i = 0; i < AD_GUEST_STREAMS; i++)
			if (ad_guest_stream_sender(i) == AGENT)
				FUZZ_CHECK(job->flows[i].got == job->flows[i].sent);
		for (size_t i = 0; i < WIRES && msg->id == pair->net; i++)
			FUZZ_CHECK(pair->wires[i].hung_up[HOST] ||
				   pair->wires[i].flows[AGENT].got ==
					   pair->wires[i].flows[AGENT].sent);
		break;
	default:
		break;
	}
}

static void pair_writable(uint32_t id, enum ad_guest_stream stream, void *userdata)
{
	struct peer *peer = userdata;
	struct job *job = &peer->pair->jobs[id];
	const uint8_t *next = content(id, stream, job->flows[stream].sent);

	FUZZ_CHECK(!job->flows[stream].ended);
	FUZZ_CHECK(ad_guest_link_data(peer->link, id, stream, next, 1) == 1);
	job->flows[stream].sent++;
}

static void pair_connection_writable(uint32_t id, uint16_t connection, void *userdata)
{
	struct peer *peer = userdata;
	struct flow *flow = &peer->pair->wires[connection].flows[peer->role];

	FUZZ_CHECK(!flow->ended && id == peer->pair->net);
	FUZZ_CHECK(ad_guest_link_connection_room(peer->link, id, connection) > 0);
	FUZZ_CHECK(ad_guest_link_connection_data(peer->link, id, connection,
						 content(connection, 0, flow->sent), 1) == 1);
	flow->sent++;
}

static size_t carry(struct pair *pair, enum ad_guest_role from, size_t most)
{
	struct ad_guest_link *to = pair->peers[ad_guest_peer(from)].link;
	struct ad_guest_link *link = pair->peers[from].link;
	size_t len;
	const uint8_t *at = ad_guest_link_peek(link, &len);

	if (len > most)
		len = most;
	if (len > 0) {
		uint8_t *copy = malloc(len);

		FUZZ_CHECK(copy);
		memcpy(copy, at, len);
		ad_guest_link_sent(link, len);
		FUZZ_CHECK(ad_guest_link_feed(to, copy, len));
		free(copy);
	}
	return len;
}

static void pair_begin(struct pair *pair)
{
	static const enum ad_guest_type types[] = { AD_GUEST_RUN, AD_GUEST_PUT, AD_GUEST_GET };
	struct ad_guest_msg msg = { .type = types[choice(pair) % 3], .id = pair->last_id + 1 };
	bool taken = pair->net && !pair->jobs[pair->net].over, may = pair->up;

	if (msg.id > IDS)
		return;
	if (msg.type == AD_GUEST_RUN) {
		msg.u.run.flags = choice(pair) & AD_GUEST_RUN_FLAGS;
		msg.u.run.workdir = "/w";
		msg.u.run.argv = argv;
		msg.u.run.env = env;
		may &= !taken || !(msg.u.run.flags & AD_GUEST_RUN_NET);
	} else {
		msg.u.files.path = "/w";
	}
	/* There can be no more than IDS of them. */
	FUZZ_CHECK(ad_guest_link_send(pair->peers[HOST].link, &msg) == may);
	if (!may)
		return;
	if (msg.type == AD_GUEST_RUN && msg.u.run.flags & AD_GUEST_RUN_NET) {
		pair->net = msg.id;
		memset(pair->wires, 0, sizeof(pair->wires));
	}
	pair->last_id = msg.id;
	pair->jobs[msg.id].kind = msg.type;
}

/* Some of a stream, which may not exist: then none is taken. */
static void pair_data(struct pair *pair, uint32_t id)
{
	enum ad_guest_stream stream = choice(pair) % AD_GUEST_STREAMS;
	size_t len = 1 + (size_t)choice(pair) * 128;
	struct flow *flow = &pair->jobs[id].flows[stream];

	len = ad_guest_link_data(pair->peers[ad_guest_stream_sender(stream)].link, id, stream,
				 content(id, stream, flow->sent), len);
	FUZZ_CHECK(len == 0 || !flow->ended);
	flow->sent += len;
}

static void pair_taken(struct pair *pair, uint32_t id, enum ad_guest_stream stream, size_t len)
{
	struct flow *flow = &pair->jobs[id].flows[stream];
	enum ad_guest_role to = ad_guest_peer(ad_guest_stream_sender(stream));

	if (len > flow->held)
		len = flow->held;
	flow->held -= len;
	ad_guest_link_taken(pair->peers[to].link, id, stream, len);
}

static void pair_end(struct pair *pair, uint32_t id, enum ad_guest_stream stream)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_END, .id = id };

	msg.u.end.stream = stream;
	if (ad_guest_link_send(pair->peers[ad_guest_stream_sender(stream)].link, &msg)) {
		FUZZ_CHECK(!pair->jobs[id].flows[stream].ended);
		pair->jobs[id].flows[stream].ended = true;
	}
}

/* The agent says something of the task; what it must not say is refused. */
static void pair_say(struct pair *pair, uint32_t id, enum ad_guest_type type)
{
	struct job *job = &pair->jobs[id];
	struct ad_guest_msg msg = { .type = type, .id = type == AD_GUEST_LOG ? 0 : id };
	bool ok;

	if (type == AD_GUEST_STARTED)
		msg.u.started.pid = 7;
	else if (type == AD_GUEST_DONE && id % 2)
		msg.u.done.os_errno = 5;
	ok = ad_guest_link_send(pair->peers[AGENT].link, &msg);
	if (!ok)
		return;
	FUZZ_CHECK(!job->closed || type == AD_GUEST_LOG);
	FUZZ_CHECK(type != AD_GUEST_EXITED || (job->started && !job->exited));
	FUZZ_CHECK(type != AD_GUEST_CLOSED || job->exited);
	job->started |= type == AD_GUEST_STARTED;
	job->exited |= type == AD_GUEST_EXITED;
	job->closed |= type == AD_GUEST_FAILED || type == AD_GUEST_CLOSED || type == AD_GUEST_DONE;
}

static void pair_open(struct pair *pair)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_OPEN };

	msg.connection = ad_guest_link_free_connection(pair->peers[AGENT].link, &msg.id);
	if (msg.connection && ad_guest_link_send(pair->peers[AGENT].link, &msg))
		pair->wires[msg.connection] = (struct wire){ 0 };
}

static void pair_wire_taken(struct pair *pair, uint16_t connection, enum ad_guest_role to,
			    size_t len)
{
	struct flow *flow = &pair->wires[connection].flows[ad_guest_peer(to)];

	if (len > flow->held)
		len = flow->held;
	flow->held -= len;
	ad_guest_link_connection_taken(pair->peers[to].link, pair->net, connection, len);
}

/* Something of a connection, which may not be there: then it is refused. */
static void pair_wire(struct pair *pair, uint8_t what)
{
	enum ad_guest_role role = what >> 3 & 1;
	struct ad_guest_link *link = pair->peers[role].link;
	struct ad_guest_msg msg = { .id = pair->net,
				    .connection = (uint16_t)(1 + choice(pair) % 4) };
	struct wire *wire = &pair->wires[msg.connection];
	struct flow *flow = &wire->flows[role];
	size_t len = (size_t)choice(pair) * 128;

	switch (what % 8) {
	case 0:
	case 1:
		pair_open(pair);
		break;
	case 2:
		msg.type = AD_GUEST_END;
		flow->ended |= ad_guest_link_send(link, &msg);
		break;
	case 3:
		msg.type = AD_GUEST_HANGUP;
		wire->hung_up[role] |= ad_guest_link_send(link, &msg);
		break;
	case 4:
		pair_wire_taken(pair, msg.connection, role, len);
		break;
	default:
		len = ad_guest_link_connection_data(link, pair->net, msg.connection,
						    content(msg.connection, 0, flow->sent), len);
		FUZZ_CHECK(len == 0 || (!flow->ended && !wire->hung_up[role]));
		flow->sent += len;
		break;
	}
}

static void pair_step(struct pair *pair)
{
	static const enum ad_guest_type says[] = { AD_GUEST_STARTED, AD_GUEST_FAILED,
						   AD_GUEST_LIMIT,   AD_GUEST_EXITED,
						   AD_GUEST_CLOSED,  AD_GUEST_DONE,
						   AD_GUEST_LOG };
	uint8_t what = choice(pair);
	uint32_t id = pair->last_id ? 1 + choice(pair) % pair->last_id : 0;
	struct ad_guest_msg msg = { .id = id };

	if (what >= 192 && pair->net) {
		pair_wire(pair, what);
	} else if (what % 16 == 0) {
		pair_begin(pair);
	} else if (what % 16 < 4) {
		carry(pair, what & 16 ? HOST : AGENT, 1 + (size_t)choice(pair) * 131);
	} else if (what % 16 == 4) {
		msg.id = 0;
		msg.type = AD_GUEST_PING;
		ad_guest_link_send(pair->peers[what >> 4 & 1].link, &msg);
	} else if (id == 0) {
		return;
	} else if (what % 16 < 8) {
		pair_data(pair, id);
	} else if (what % 16 < 10) {
		pair_taken(pair, id, choice(pair) % AD_GUEST_STREAMS, (size_t)choice(pair) << 10);
	} else if (what % 16 == 10) {
		pair_end(pair, id, choice(pair) % AD_GUEST_STREAMS);
	} else if (what % 16 == 11) {
		msg.type = what & 16 ? AD_GUEST_KILL : AD_GUEST_SIGNAL;
		msg.u.signal.signo = msg.type == AD_GUEST_SIGNAL ? 15 : 0;
		ad_guest_link_send(pair->peers[HOST].link, &msg);
	} else {
		pair_say(pair, id, says[choice(pair) % AD_COUNT(says)]);
	}
}

/* Everything is taken, ended and read: all tasks come to their end. */
static void pair_finish(struct pair *pair)
{
	bool moved;

	do {
		moved = carry(pair, HOST, SIZE_MAX) + carry(pair, AGENT, SIZE_MAX) > 0;
		for (uint32_t id = 1; id <= pair->last_id; id++)
			for (enum ad_guest_stream i = 0; i < AD_GUEST_STREAMS; i++)
				pair_taken(pair, id, i, SIZE_MAX);
		for (uint16_t i = 1; i < WIRES; i++)
			for (enum ad_guest_role to = 0; to < 2; to++)
				pair_wire_taken(pair, i, to, SIZE_MAX);
	} while (moved);
	for (uint32_t id = 1; id <= pair->last_id; id++) {
		for (enum ad_guest_stream i = 0; i < AD_GUEST_STREAMS; i++)
			if (ad_guest_stream_sender(i) == HOST)
				pair_end(pair, id, i);
		while (carry(pair, HOST, SIZE_MAX) + carry(pair, AGENT, SIZE_MAX) > 0)
			continue;
		pair_say(pair, id, AD_GUEST_STARTED);
		pair_say(pair, id, AD_GUEST_EXITED);
		for (enum ad_guest_stream i = 0; i < AD_GUEST_STREAMS; i++)
			pair_end(pair, id, i);
		pair_say(pair, id, AD_GUEST_CLOSED);
		pair_say(pair, id, AD_GUEST_DONE);
	}
	while (carry(pair, HOST, SIZE_MAX) + carry(pair, AGENT, SIZE_MAX) > 0)
		continue;
	for (uint32_t id = 1; id <= pair->last_id; id++)
		FUZZ_CHECK(pair->jobs[id].over);
}

static void fuzz_pair(const uint8_t *data, size_t size)
{
	static const struct ad_guest_link_events events = {
		.message = pair_message,
		.writable = pair_writable,
		.connection_writable = pair_connection_writable,
	};
	struct ad_guest_msg hello = { .type = AD_GUEST_HELLO };
	struct pair *pair = calloc(1, sizeof(*pair));

	FUZZ_CHECK(pair);
	pair->in = data;
	pair->left = size;
	for (enum ad_guest_role i = 0; i < 2; i++) {
		pair->peers[i] = (struct peer){ pair, i,
						ad_guest_link_new(i, &events, &pair->peers[i]) };
		FUZZ_CHECK(pair->peers[i].link);
	}
	hello.u.hello.version = AD_GUEST_VERSION;
	FUZZ_CHECK(ad_guest_link_send(pair->peers[AGENT].link, &hello));
	while (pair->left > 0)
		pair_step(pair);
	pair_finish(pair);
	for (enum ad_guest_role i = 0; i < 2; i++)
		ad_guest_link_free(pair->peers[i].link);
	free(pair);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	if (data[0] % 3 == 2)
		fuzz_pair(data + 1, size - 1);
	else
		fuzz_one(data[0] % 3, data + 1, size - 1);
	return 0;
}
