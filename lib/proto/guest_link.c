/* SPDX-License-Identifier: MIT */
#include "proto/guest_private.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum {
	/* DATA is taken while no more than this waits: it may be old when it is sent. */
	DATA_QUEUE = 3 * AD_GUEST_DATA_MAX,
	/* What may be refused (LOG, SIGNAL, the beginning of a task) is while more than
	 * this would wait, and one RUN on the host's side. The rest is bounded by order. */
	CONTROL_QUEUE = 64 * 1024,
	/* A buffer that grew beyond is given back when it is empty. */
	KEEP = 256 * 1024,
	ERROR_MAX = 192
};

/* Whole frames; the first may have been sent in part. */
struct queue {
	struct ad_buf buf;
	size_t frame; /* where the first that is not sent whole begins */
	size_t sent;  /* where what is not sent begins */
};

struct ad_guest_link {
	struct ad_guest_link_events events;
	void *userdata;
	enum ad_guest_role role;
	struct ad_guest_order order;
	struct queue control, data;
	struct queue *peeked;
	struct ad_buf frame; /* the one that comes, while it is not whole */
	size_t next_writable;
	bool pong_due;
	bool broken, starved;
	char error[ERROR_MAX];
};

struct ad_guest_link *ad_guest_link_new(enum ad_guest_role role,
					const struct ad_guest_link_events *events, void *userdata)
{
	struct ad_guest_link *link = calloc(1, sizeof(*link));

	if (!link)
		return NULL;
	link->events = *events;
	link->userdata = userdata;
	link->role = link->order.role = role;
	return link;
}

void ad_guest_link_free(struct ad_guest_link *link)
{
	if (!link)
		return;
	ad_buf_free(&link->control.buf);
	ad_buf_free(&link->data.buf);
	ad_buf_free(&link->frame);
	free(link);
}

const char *ad_guest_link_error(const struct ad_guest_link *link)
{
	return link->broken ? link->error : NULL;
}

/* The first reason stays. */
AD_PRINTF(2, 3) static void break_link(struct ad_guest_link *link, const char *fmt, ...)
{
	va_list args;

	if (link->broken)
		return;
	link->broken = true;
	va_start(args, fmt);
	vsnprintf(link->error, sizeof(link->error), fmt, args);
	va_end(args);
}

static void break_nomem(struct ad_guest_link *link)
{
	link->starved |= !link->broken;
	break_link(link, "out of memory");
}

bool ad_guest_link_starved(const struct ad_guest_link *link)
{
	return link->starved;
}

static const char *name_of(enum ad_guest_role role)
{
	return role == AD_GUEST_HOST ? "host" : "guest";
}

/* ---- queues */

static size_t waiting(const struct queue *queue)
{
	return queue->buf.len - queue->sent;
}

/* Forget what was sent; each byte is moved once at most for each that was sent. */
static void queue_tidy(struct queue *queue)
{
	size_t left = queue->buf.len - queue->frame;

	if (left > queue->frame)
		return;
	if (left > 0)
		memmove(queue->buf.data, queue->buf.data + queue->frame, left);
	else if (queue->buf.cap > KEEP)
		ad_buf_free(&queue->buf);
	queue->buf.len = left;
	queue->sent -= queue->frame;
	queue->frame = 0;
}

static bool data_has_room(const struct ad_guest_link *link)
{
	return waiting(&link->data) <= DATA_QUEUE;
}

/* ---- one frame: what both directions demand of it */

static const char *check_header(const struct ad_guest_header *header, enum ad_guest_role from)
{
	const struct ad_guest_kind *kind = ad_guest_kind(header->type);

	if (!kind)
		return "no message has this type";
	if (!kind->from[from])
		return "goes the other way";
	if (header->len < kind->min || header->len > kind->max)
		return "cannot be this long";
	if (header->connection != 0 && !kind->of_connection && !kind->of_stream)
		return "belongs to no connection";
	if (header->connection == 0 && kind->of_connection)
		return "belongs to a connection";
	if (header->connection > AD_GUEST_CONNECTIONS_MAX)
		return "no such connection";
	if (header->stream >= (kind->of_stream && !header->connection ? AD_GUEST_STREAMS : 1))
		return "no such stream";
	if ((header->id != 0) != kind->of_task)
		return kind->of_task ? "belongs to no task" : "belongs to a task";
	return NULL;
}

/* ---- sending */

/* What would be refused when it arrives is refused here. */
static const char *check_frame(struct ad_guest_link *link, const uint8_t *frame)
{
	struct ad_guest_header header;
	struct ad_guest_msg msg;
	const char *why;

	ad_guest_header_decode(&header, frame);
	why = check_header(&header, link->role);
	if (!why)
		why = ad_guest_decode(&msg, &header, frame + AD_GUEST_HEADER, NULL);
	if (!why)
		why = ad_guest_order_check(&link->order, &msg, link->role);
	return why;
}

/* Behind the data of its stream, or of the connection that had its number before. */
static bool goes_with_data(enum ad_guest_type type)
{
	return type == AD_GUEST_DATA || type == AD_GUEST_END || type == AD_GUEST_CLOSED ||
	       type == AD_GUEST_DONE || type == AD_GUEST_OPEN || type == AD_GUEST_HANGUP;
}

static bool has_room(const struct ad_guest_link *link, enum ad_guest_type type)
{
	size_t most = CONTROL_QUEUE;

	switch (type) {
	case AD_GUEST_RUN:
	case AD_GUEST_SIGNAL:
	case AD_GUEST_PUT:
	case AD_GUEST_GET:
		most += AD_GUEST_HEADER + AD_GUEST_RUN_MAX;
		break;
	case AD_GUEST_LOG:
		break;
	default:
		return true;
	}
	return waiting(&link->control) <= most;
}

static bool emit(struct ad_guest_link *link, const struct ad_guest_msg *msg)
{
	struct queue *queue = goes_with_data(msg->type) ? &link->data : &link->control;
	size_t start;

	if (link->broken)
		return false;
	queue_tidy(queue);
	start = queue->buf.len;
	if (!ad_guest_encode(msg, &queue->buf) ||
	    check_frame(link, (const uint8_t *)queue->buf.data + start) ||
	    !has_room(link, msg->type)) {
		if (queue->buf.failed)
			break_nomem(link);
		queue->buf.len = start;
		return false;
	}
	ad_guest_order_apply(&link->order, msg, link->role);
	return true;
}

bool ad_guest_link_send(struct ad_guest_link *link, const struct ad_guest_msg *msg)
{
	switch (msg->type) {
	case AD_GUEST_DATA:
	case AD_GUEST_CREDIT:
	case AD_GUEST_PONG:
		return false;
	default:
		return emit(link, msg);
	}
}

/* NULL: nothing may be sent there now. */
static struct ad_guest_stream_state *outgoing(struct ad_guest_link *link,
					      const struct ad_guest_place *place)
{
	const struct ad_guest_msg end = { AD_GUEST_END, place->id, place->connection,
					  .u.end = { place->stream } };

	/* What may be ended may be sent. */
	if (place->stream >= AD_GUEST_STREAMS || place->connection > AD_GUEST_CONNECTIONS_MAX ||
	    ad_guest_order_check(&link->order, &end, link->role))
		return NULL;
	return ad_guest_flow(&link->order, place);
}

static size_t send_data(struct ad_guest_link *link, const struct ad_guest_place *place,
			const uint8_t *data, size_t len)
{
	struct ad_guest_stream_state *state = outgoing(link, place);
	size_t taken = 0;

	if (!state || link->broken)
		return 0;
	while (taken < len && state->room > 0 && data_has_room(link)) {
		size_t size = len - taken < state->room ? len - taken : state->room;
		struct ad_guest_msg msg = {
			.type = AD_GUEST_DATA,
			.id = place->id,
			.connection = place->connection,
			.u.data = { .stream = place->stream, .data = data + taken },
		};

		msg.u.data.len = size < AD_GUEST_DATA_MAX ? size : AD_GUEST_DATA_MAX;
		if (!emit(link, &msg))
			return taken;
		taken += msg.u.data.len;
	}
	state->blocked = taken < len;
	return taken;
}

size_t ad_guest_link_data(struct ad_guest_link *link, uint32_t id, enum ad_guest_stream stream,
			  const uint8_t *data, size_t len)
{
	const struct ad_guest_place place = { id, stream, 0, link->role };

	return send_data(link, &place, data, len);
}

size_t ad_guest_link_connection_data(struct ad_guest_link *link, uint32_t id, uint16_t connection,
				     const uint8_t *data, size_t len)
{
	const struct ad_guest_place place = { id, 0, connection, link->role };

	return send_data(link, &place, data, len);
}

size_t ad_guest_link_connection_room(struct ad_guest_link *link, uint32_t id, uint16_t connection)
{
	const struct ad_guest_place place = { id, 0, connection, link->role };
	struct ad_guest_stream_state *state = outgoing(link, &place);

	if (!state || link->broken)
		return 0;
	state->blocked = state->room == 0 || !data_has_room(link);
	if (state->blocked)
		return 0;
	return state->room < AD_GUEST_DATA_MAX ? state->room : AD_GUEST_DATA_MAX;
}

uint16_t ad_guest_link_free_connection(const struct ad_guest_link *link, uint32_t *ret_id)
{
	*ret_id = link->order.net;
	for (uint16_t i = 1; *ret_id && i <= AD_GUEST_CONNECTIONS_MAX; i++)
		if (!link->order.connections[i].open)
			return i;
	return 0;
}

static void take(struct ad_guest_link *link, const struct ad_guest_place *place, size_t len)
{
	struct ad_guest_stream_state *state = ad_guest_flow(&link->order, place);

	if (!state)
		return;
	assert(len <= state->held);
	state->held -= (uint32_t)len;
	state->owed += (uint32_t)len;
}

void ad_guest_link_taken(struct ad_guest_link *link, uint32_t id, enum ad_guest_stream stream,
			 size_t len)
{
	const struct ad_guest_place place = { id, stream, 0, ad_guest_peer(link->role) };

	take(link, &place, len);
}

void ad_guest_link_connection_taken(struct ad_guest_link *link, uint32_t id, uint16_t connection,
				    size_t len)
{
	const struct ad_guest_place place = { id, 0, connection, ad_guest_peer(link->role) };

	take(link, &place, len);
}

/* All places where something can flow, in a row: the streams of tasks, then the connections. */
enum {
	STREAM_PLACES = AD_GUEST_TASKS_MAX * AD_GUEST_STREAMS,
	PLACES = STREAM_PLACES + AD_GUEST_CONNECTIONS_MAX
};

/* NULL: nothing can there, from sender. */
static struct ad_guest_stream_state *place_at(struct ad_guest_link *link, size_t at,
					      enum ad_guest_role sender, struct ad_guest_place *ret)
{
	struct ad_guest_order *order = &link->order;
	struct ad_guest_connection *connection;
	struct ad_guest_task *task;

	*ret = (struct ad_guest_place){ .sender = sender };
	if (at < STREAM_PLACES) {
		task = &order->tasks[at / AD_GUEST_STREAMS];
		ret->id = task->id;
		ret->stream = at % AD_GUEST_STREAMS;
		return task->alive && task->streams[ret->stream].exists &&
				       ad_guest_stream_sender(ret->stream) == sender ?
			       &task->streams[ret->stream] :
			       NULL;
	}
	ret->id = order->net;
	ret->connection = (uint16_t)(at - STREAM_PLACES + 1);
	connection = &order->connections[ret->connection];
	return connection->open && !connection->hung_up[order->role] ?
		       &connection->streams[sender] :
		       NULL;
}

static void send_credit(struct ad_guest_link *link, const struct ad_guest_place *place,
			struct ad_guest_stream_state *state)
{
	struct ad_guest_msg msg = { AD_GUEST_CREDIT, place->id, place->connection,
				    .u.credit = { place->stream, state->owed } };

	if (!state->ended && state->owed >= ad_guest_window(place->connection) / 2 &&
	    emit(link, &msg))
		state->owed = 0;
}

/* PONG and CREDIT are not queued before they can be sent next, so that a peer that does
 * not read cannot make them pile up. */
static void answer(struct ad_guest_link *link)
{
	enum ad_guest_role peer = ad_guest_peer(link->role);
	struct ad_guest_msg msg;

	if (link->pong_due) {
		link->pong_due = false;
		msg = (struct ad_guest_msg){ .type = AD_GUEST_PONG };
		msg.u.ping.token = link->order.pings[peer].token;
		emit(link, &msg);
	}
	for (size_t i = 0; i < (link->order.net ? PLACES : STREAM_PLACES); i++) {
		struct ad_guest_place place;
		struct ad_guest_stream_state *state = place_at(link, i, peer, &place);

		if (state)
			send_credit(link, &place, state);
	}
}

static size_t frame_size(const struct queue *queue)
{
	struct ad_guest_header header;

	ad_guest_header_decode(&header, (const uint8_t *)queue->buf.data + queue->frame);
	return AD_GUEST_HEADER + header.len;
}

const uint8_t *ad_guest_link_peek(struct ad_guest_link *link, size_t *ret_len)
{
	struct queue *queue = &link->control;
	size_t end;

	*ret_len = 0;
	link->peeked = NULL;
	if (link->broken)
		return NULL;
	if (link->data.sent > link->data.frame) {
		queue = &link->data; /* has begun */
	} else {
		if (waiting(&link->control) == 0)
			answer(link);
		if (waiting(&link->control) == 0)
			queue = &link->data;
	}
	if (link->broken || waiting(queue) == 0)
		return NULL;
	/* No more than one, so that control comes between. */
	end = queue == &link->data ? queue->frame + frame_size(queue) : queue->buf.len;
	*ret_len = end - queue->sent;
	link->peeked = queue;
	return (const uint8_t *)queue->buf.data + queue->sent;
}

static bool queue_holds(const struct queue *queue, enum ad_guest_type type, uint32_t id)
{
	struct ad_guest_header header;

	for (size_t at = queue->frame; at < queue->buf.len; at += AD_GUEST_HEADER + header.len) {
		ad_guest_header_decode(&header, (const uint8_t *)queue->buf.data + at);
		if (header.type == type && header.id == id)
			return true;
	}
	return false;
}

bool ad_guest_link_holds(const struct ad_guest_link *link, enum ad_guest_type type, uint32_t id)
{
	return queue_holds(&link->control, type, id) || queue_holds(&link->data, type, id);
}

static void tell_writable(struct ad_guest_link *link, const struct ad_guest_place *place,
			  struct ad_guest_stream_state *state)
{
	state->blocked = false;
	if (place->connection)
		link->events.connection_writable(place->id, place->connection, link->userdata);
	else
		link->events.writable(place->id, place->stream, link->userdata);
}

/* Ask those who had to wait, in turn. */
static void offer_room(struct ad_guest_link *link)
{
	size_t first = link->next_writable;

	for (size_t i = 0; i < PLACES && data_has_room(link) && !link->broken; i++) {
		size_t at = (first + i) % PLACES;
		struct ad_guest_place place;
		struct ad_guest_stream_state *state = place_at(link, at, link->role, &place);

		if (!state || state->ended || !state->blocked || state->room == 0)
			continue;
		link->next_writable = (at + 1) % PLACES;
		tell_writable(link, &place, state);
	}
}

void ad_guest_link_sent(struct ad_guest_link *link, size_t len)
{
	struct queue *queue = link->peeked;

	if (len == 0 || link->broken)
		return;
	assert(queue && len <= waiting(queue));
	queue->sent += len;
	while (queue->frame < queue->sent && queue->frame + frame_size(queue) <= queue->sent) {
		struct ad_guest_header header;

		ad_guest_header_decode(&header, (const uint8_t *)queue->buf.data + queue->frame);
		ad_guest_order_left(&link->order, &header);
		queue->frame += AD_GUEST_HEADER + header.len;
	}
	queue_tidy(queue);
	if (queue == &link->data)
		offer_room(link);
}

/* ---- receiving */

static void break_by(struct ad_guest_link *link, const struct ad_guest_header *header,
		     const char *why)
{
	const struct ad_guest_kind *kind = ad_guest_kind(header->type);
	const char *peer = name_of(ad_guest_peer(link->role));

	if (!kind)
		break_link(link, "the %s sent a message of type %u: %s", peer, header->type, why);
	else
		break_link(link, "the %s sent %s (task %u, stream %u, %u bytes): %s", peer,
			   kind->name, header->id, header->stream, header->len, why);
}

static void granted(struct ad_guest_link *link, const struct ad_guest_msg *msg)
{
	const struct ad_guest_place place = { msg->id, msg->u.credit.stream, msg->connection,
					      link->role };
	struct ad_guest_stream_state *state = ad_guest_flow(&link->order, &place);

	if (state->blocked && !state->ended && data_has_room(link))
		tell_writable(link, &place, state);
}

static void came(struct ad_guest_link *link, const struct ad_guest_msg *msg)
{
	const struct ad_guest_place place = { msg->id, msg->u.data.stream, msg->connection,
					      ad_guest_peer(link->role) };

	ad_guest_flow(&link->order, &place)->held += (uint32_t)msg->u.data.len;
}

static void deliver(struct ad_guest_link *link, const struct ad_guest_msg *msg)
{
	if (ad_guest_order_deaf(&link->order, msg))
		return;
	switch (msg->type) {
	case AD_GUEST_CREDIT:
		granted(link, msg);
		return;
	case AD_GUEST_PING:
		link->pong_due = true;
		return;
	case AD_GUEST_DATA:
		came(link, msg);
		break;
	default:
		break;
	}
	link->events.message(msg, link->userdata);
}

static void receive(struct ad_guest_link *link, const struct ad_guest_header *header,
		    const uint8_t *body)
{
	enum ad_guest_role peer = ad_guest_peer(link->role);
	const char **vectors;
	struct ad_guest_msg msg;
	const char *why = ad_guest_decode(&msg, header, body, &vectors);

	if (msg.type == AD_GUEST_RUN && !why && !vectors) {
		break_nomem(link);
	} else if (why && msg.type == AD_GUEST_HELLO && msg.u.hello.version != AD_GUEST_VERSION) {
		break_link(link, "the guest speaks version %u of the protocol, not %u",
			   msg.u.hello.version, AD_GUEST_VERSION);
	} else if (link->role == AD_GUEST_AGENT && !why &&
		   ad_guest_order_crossed(&link->order, &msg)) {
		return;
	} else {
		if (!why)
			why = ad_guest_order_check(&link->order, &msg, peer);
		if (why) {
			break_by(link, header, why);
		} else {
			ad_guest_order_apply(&link->order, &msg, peer);
			deliver(link, &msg);
		}
	}
	free(vectors);
}

static bool get_header(struct ad_guest_link *link, const uint8_t *at,
		       struct ad_guest_header *header)
{
	const char *why;

	ad_guest_header_decode(header, at);
	why = check_header(header, ad_guest_peer(link->role));
	if (why)
		break_by(link, header, why);
	return !why;
}

/* Take the next frame, or what is there of it; returns how many bytes that were. */
static size_t feed_some(struct ad_guest_link *link, const uint8_t *data, size_t len)
{
	struct ad_buf *frame = &link->frame;
	struct ad_guest_header header = { 0 };
	size_t size = AD_GUEST_HEADER, step;

	if (frame->len == 0 && len >= AD_GUEST_HEADER) {
		if (!get_header(link, data, &header))
			return 0;
		if (len - AD_GUEST_HEADER >= header.len) {
			receive(link, &header, data + AD_GUEST_HEADER);
			return AD_GUEST_HEADER + header.len;
		}
	}
	if (frame->len >= AD_GUEST_HEADER) {
		ad_guest_header_decode(&header, (const uint8_t *)frame->data);
		size += header.len;
	}
	step = len < size - frame->len ? len : size - frame->len;
	if (!ad_buf_append(frame, data, step)) {
		break_nomem(link);
		return 0;
	}
	if (frame->len < size)
		return step;
	if (size == AD_GUEST_HEADER && !get_header(link, (const uint8_t *)frame->data, &header))
		return 0;
	if (frame->len == AD_GUEST_HEADER + header.len) {
		receive(link, &header, (const uint8_t *)frame->data + AD_GUEST_HEADER);
		frame->len = 0;
		if (frame->cap > KEEP)
			ad_buf_free(frame);
	}
	return step;
}

bool ad_guest_link_feed(struct ad_guest_link *link, const uint8_t *data, size_t len)
{
	while (len > 0 && !link->broken) {
		size_t step = feed_some(link, data, len);

		data += step;
		len -= step;
	}
	return !link->broken;
}
