/* SPDX-License-Identifier: MIT */
#include "proto/guest_private.h"

/* What the agent may log for each SETUP and each task: without a bound nothing would keep
 * it from being the host's only occupation. */
enum { LOGS_PER_REQUEST = 256 };

enum ad_guest_role ad_guest_stream_sender(enum ad_guest_stream stream)
{
	return stream == AD_GUEST_STDIN || stream == AD_GUEST_FILES_IN ? AD_GUEST_HOST :
									 AD_GUEST_AGENT;
}

uint32_t ad_guest_window(uint16_t connection)
{
	return connection ? AD_GUEST_CONNECTION_WINDOW : AD_GUEST_WINDOW;
}

static struct ad_guest_task *place_of(struct ad_guest_order *order, uint32_t id)
{
	for (size_t i = 0; i < AD_GUEST_TASKS_MAX; i++)
		if (order->tasks[i].id == id)
			return &order->tasks[i];
	return NULL;
}

struct ad_guest_task *ad_guest_task_find(struct ad_guest_order *order, uint32_t id)
{
	struct ad_guest_task *task = id != 0 ? place_of(order, id) : NULL;

	return task && task->alive ? task : NULL;
}

/* NULL: it is not open. */
static struct ad_guest_connection *connection_of(struct ad_guest_order *order, uint32_t id,
						 uint16_t connection)
{
	struct ad_guest_connection *found = &order->connections[connection];

	return order->net == id && found->open ? found : NULL;
}

struct ad_guest_stream_state *ad_guest_flow(struct ad_guest_order *order,
					    const struct ad_guest_place *place)
{
	struct ad_guest_task *task = ad_guest_task_find(order, place->id);
	struct ad_guest_connection *connection;

	if (!task)
		return NULL;
	if (place->connection == 0)
		return task->streams[place->stream].exists ? &task->streams[place->stream] : NULL;
	connection = connection_of(order, place->id, place->connection);
	return connection ? &connection->streams[place->sender] : NULL;
}

bool ad_guest_order_deaf(const struct ad_guest_order *order, const struct ad_guest_msg *msg)
{
	return msg->connection && msg->type != AD_GUEST_OPEN && msg->type != AD_GUEST_HANGUP &&
	       order->connections[msg->connection].hung_up[order->role];
}

static bool any_alive(const struct ad_guest_order *order)
{
	for (size_t i = 0; i < AD_GUEST_TASKS_MAX; i++)
		if (order->tasks[i].alive)
			return true;
	return false;
}

bool ad_guest_order_crossed(struct ad_guest_order *order, const struct ad_guest_msg *msg)
{
	switch (msg->type) {
	case AD_GUEST_SIGNAL:
	case AD_GUEST_KILL:
	case AD_GUEST_DATA:
	case AD_GUEST_END:
	case AD_GUEST_CREDIT:
	case AD_GUEST_HANGUP:
		return msg->id <= order->last_id && !ad_guest_task_find(order, msg->id);
	default:
		return false;
	}
}

/* ---- what belongs to no task */

static const char *check_begin(struct ad_guest_order *order, const struct ad_guest_msg *msg)
{
	if (!order->ready)
		return "before READY";
	if (order->stopping)
		return "after STOP";
	if (msg->id <= order->last_id)
		return "its number was used before";
	if (!place_of(order, 0))
		return "too many tasks at once";
	if (msg->type == AD_GUEST_RUN && msg->u.run.flags & AD_GUEST_RUN_NET && order->net)
		return "another command has the network";
	return NULL;
}

static const char *check_setup(const struct ad_guest_order *order)
{
	if (order->setup_open)
		return "before READY of the last";
	if (order->stopping)
		return "after STOP";
	if (any_alive(order))
		return "while a task is alive";
	return NULL;
}

static const char *check_ping(const struct ad_guest_order *order, enum ad_guest_role from)
{
	if (from == AD_GUEST_AGENT && !order->setup)
		return "before SETUP";
	return order->pings[from].open ? "before PONG of the last" : NULL;
}

static const char *check_pong(const struct ad_guest_order *order, const struct ad_guest_msg *msg,
			      enum ad_guest_role to)
{
	if (!order->pings[to].open)
		return "without PING";
	if (order->pings[to].token != msg->u.ping.token)
		return "of another PING";
	return NULL;
}

/* ---- what belongs to one */

static const char *check_stream(const struct ad_guest_task *task, enum ad_guest_stream stream,
				enum ad_guest_role from)
{
	const struct ad_guest_stream_state *state = &task->streams[stream];

	if (!state->exists)
		return "the task has no such stream";
	if (ad_guest_stream_sender(stream) != from)
		return "the stream goes the other way";
	if (state->ended)
		return "after END of the stream";
	if (from == AD_GUEST_AGENT && task->begun_by == AD_GUEST_RUN && !task->started)
		return "before STARTED";
	return NULL;
}

static const char *check_connection(struct ad_guest_order *order, const struct ad_guest_msg *msg,
				    enum ad_guest_role from)
{
	const struct ad_guest_connection *connection = connection_of(order, msg->id,
								     msg->connection);

	if (!connection)
		return "there is no such connection";
	if (connection->hung_up[from])
		return "after HANGUP";
	if ((msg->type == AD_GUEST_DATA || msg->type == AD_GUEST_END) &&
	    connection->streams[from].ended)
		return "after END of the connection";
	return NULL;
}

static const char *check_open(struct ad_guest_order *order, const struct ad_guest_task *task,
			      uint16_t connection)
{
	if (order->net != task->id)
		return "the task has no network";
	if (!task->started)
		return "before STARTED";
	return order->connections[connection].open ? "its number is in use" : NULL;
}

static const char *check_flow(struct ad_guest_order *order, const struct ad_guest_task *task,
			      const struct ad_guest_msg *msg, enum ad_guest_stream stream,
			      enum ad_guest_role from)
{
	return msg->connection ? check_connection(order, msg, from) :
				 check_stream(task, stream, from);
}

static struct ad_guest_stream_state *state_of(struct ad_guest_order *order,
					      const struct ad_guest_msg *msg,
					      enum ad_guest_stream stream,
					      enum ad_guest_role sender)
{
	const struct ad_guest_place place = { msg->id, stream, msg->connection, sender };

	return ad_guest_flow(order, &place);
}

static const char *check_credit(struct ad_guest_order *order, const struct ad_guest_msg *msg,
				enum ad_guest_role from)
{
	enum ad_guest_stream stream = msg->u.credit.stream;
	const struct ad_guest_stream_state *state = state_of(order, msg, stream,
							     ad_guest_peer(from));
	const char *why = msg->connection ? check_connection(order, msg, from) : NULL;

	if (why)
		return why;
	if (!state)
		return "the task has no such stream";
	if (!msg->connection && ad_guest_stream_sender(stream) == from)
		return "the stream goes the other way";
	if (msg->u.credit.bytes == 0 ||
	    msg->u.credit.bytes > ad_guest_window(msg->connection) - state->room)
		return "for more than was sent";
	return NULL;
}

_Static_assert(2 * AD_GUEST_LIMITS <= 8, "the limits do not fit");
static uint8_t limit_bit(const struct ad_guest_msg *msg)
{
	return (uint8_t)(1u << (2 * msg->u.limit.limit + msg->u.limit.fatal));
}

static const char *check_command(const struct ad_guest_task *task, const struct ad_guest_msg *msg)
{
	if (task->begun_by != AD_GUEST_RUN)
		return "the task is not a command";
	switch (msg->type) {
	case AD_GUEST_STARTED:
	case AD_GUEST_FAILED:
		return task->started ? "after STARTED" : NULL;
	case AD_GUEST_LIMIT:
		if (!task->started)
			return "before STARTED";
		return task->limits & limit_bit(msg) ? "said before" : NULL;
	case AD_GUEST_EXITED:
		if (!task->started)
			return "before STARTED";
		return task->exited ? "said before" : NULL;
	case AD_GUEST_CLOSED:
		if (!task->exited)
			return "before EXITED";
		for (enum ad_guest_stream i = 0; i < AD_GUEST_STREAMS; i++)
			if (task->streams[i].exists && !task->streams[i].ended &&
			    ad_guest_stream_sender(i) == AD_GUEST_AGENT)
				return "before END of its output";
		return NULL;
	default:
		return NULL;
	}
}

static const char *check_done(const struct ad_guest_task *task, const struct ad_guest_msg *msg)
{
	if (task->begun_by == AD_GUEST_RUN)
		return "the task is a command";
	if (task->begun_by == AD_GUEST_GET)
		return task->streams[AD_GUEST_FILES_OUT].ended ? NULL : "before END of the files";
	if (msg->u.done.os_errno == 0 && !task->streams[AD_GUEST_FILES_IN].ended)
		return "before END of the files";
	return NULL;
}

static const char *check_of_task(struct ad_guest_order *order, const struct ad_guest_msg *msg,
				 enum ad_guest_role from)
{
	const struct ad_guest_task *task = ad_guest_task_find(order, msg->id);
	const char *why;

	if (!task)
		return msg->id <= order->last_id ? "the task is over" : "there was no such task";
	switch (msg->type) {
	case AD_GUEST_KILL:
		return task->killed ? "said before" : NULL;
	case AD_GUEST_DATA:
		why = check_flow(order, task, msg, msg->u.data.stream, from);
		if (!why && msg->u.data.len > state_of(order, msg, msg->u.data.stream, from)->room)
			why = "more than there was credit for";
		return why;
	case AD_GUEST_END:
		return check_flow(order, task, msg, msg->u.end.stream, from);
	case AD_GUEST_CREDIT:
		return check_credit(order, msg, from);
	case AD_GUEST_OPEN:
		return check_open(order, task, msg->connection);
	case AD_GUEST_HANGUP:
		return check_connection(order, msg, from);
	case AD_GUEST_DONE:
		return check_done(task, msg);
	default:
		return check_command(task, msg);
	}
}

const char *ad_guest_order_check(struct ad_guest_order *order, const struct ad_guest_msg *msg,
				 enum ad_guest_role from)
{
	if (msg->type == AD_GUEST_HELLO)
		return order->hello ? "said before" : NULL;
	if (!order->hello)
		return "before HELLO";
	if (from == AD_GUEST_HOST && !order->setup && msg->type != AD_GUEST_SETUP &&
	    msg->type != AD_GUEST_PING && msg->type != AD_GUEST_WARM)
		return "before SETUP";
	switch (msg->type) {
	case AD_GUEST_WARM:
		return order->setup ? "after SETUP" : NULL;
	case AD_GUEST_SETUP:
		return check_setup(order);
	case AD_GUEST_READY:
		return order->setup_open ? NULL : "without SETUP";
	case AD_GUEST_RUN:
	case AD_GUEST_PUT:
	case AD_GUEST_GET:
		return check_begin(order, msg);
	case AD_GUEST_STOP:
		return order->stopping ? "said before" : NULL;
	case AD_GUEST_PING:
		return check_ping(order, from);
	case AD_GUEST_PONG:
		return check_pong(order, msg, ad_guest_peer(from));
	case AD_GUEST_LOG:
		return order->logs > 0 ? NULL : "too many";
	default:
		return check_of_task(order, msg, from);
	}
}

/* ---- what it changes */

static void open_connection(struct ad_guest_connection *connection)
{
	*connection = (struct ad_guest_connection){ .open = true };
	for (size_t i = 0; i < AD_COUNT(connection->streams); i++)
		connection->streams[i] = (struct ad_guest_stream_state){
			.exists = true, .room = AD_GUEST_CONNECTION_WINDOW
		};
}

/* Only then the number may be another's: our HANGUP is on its way. Else a peer that does not
 * read could make them pile up. */
static void leave_if_hung_up(struct ad_guest_connection *connection)
{
	if (connection->hung_up[0] && connection->hung_up[1] && connection->queued == 0)
		connection->open = false;
}

static void close_network(struct ad_guest_order *order)
{
	order->net = 0;
	for (size_t i = 0; i < AD_COUNT(order->connections); i++)
		order->connections[i].open = false;
}

static void open_stream(struct ad_guest_task *task, enum ad_guest_stream stream)
{
	task->streams[stream] = (struct ad_guest_stream_state){ .exists = true,
								.room = AD_GUEST_WINDOW };
}

static void begin(struct ad_guest_order *order, const struct ad_guest_msg *msg)
{
	struct ad_guest_task *task = place_of(order, 0);

	*task = (struct ad_guest_task){
		.id = msg->id,
		.begun_by = msg->type,
		.alive = true,
		.queued = order->role == AD_GUEST_HOST,
	};
	order->last_id = msg->id;
	order->logs += LOGS_PER_REQUEST;
	if (msg->type == AD_GUEST_PUT) {
		open_stream(task, AD_GUEST_FILES_IN);
	} else if (msg->type == AD_GUEST_GET) {
		open_stream(task, AD_GUEST_FILES_OUT);
	} else {
		if (msg->u.run.flags & AD_GUEST_RUN_STDIN)
			open_stream(task, AD_GUEST_STDIN);
		open_stream(task, AD_GUEST_STDOUT);
		if (!(msg->u.run.flags & AD_GUEST_RUN_MERGE_STDERR))
			open_stream(task, AD_GUEST_STDERR);
		if (msg->u.run.flags & AD_GUEST_RUN_NET)
			order->net = msg->id;
	}
}

static void leave_if_over(struct ad_guest_task *task)
{
	if (!task->alive && task->queued == 0)
		task->id = 0;
}

static void apply_to_task(struct ad_guest_order *order, const struct ad_guest_msg *msg,
			  enum ad_guest_role from)
{
	struct ad_guest_task *task = ad_guest_task_find(order, msg->id);
	struct ad_guest_connection *connection = &order->connections[msg->connection];

	task->queued += from == order->role;
	if (msg->type == AD_GUEST_OPEN)
		open_connection(connection);
	if (msg->connection)
		connection->queued += from == order->role;
	switch (msg->type) {
	case AD_GUEST_KILL:
		task->killed = true;
		break;
	case AD_GUEST_DATA:
		state_of(order, msg, msg->u.data.stream, from)->room -= (uint32_t)msg->u.data.len;
		break;
	case AD_GUEST_END:
		state_of(order, msg, msg->u.end.stream, from)->ended = true;
		break;
	case AD_GUEST_CREDIT:
		state_of(order, msg, msg->u.credit.stream, ad_guest_peer(from))->room +=
			msg->u.credit.bytes;
		break;
	case AD_GUEST_HANGUP:
		connection->hung_up[from] = true;
		leave_if_hung_up(connection);
		break;
	case AD_GUEST_STARTED:
		task->started = true;
		break;
	case AD_GUEST_LIMIT:
		task->limits |= limit_bit(msg);
		break;
	case AD_GUEST_EXITED:
		task->exited = true;
		break;
	case AD_GUEST_FAILED:
	case AD_GUEST_CLOSED:
	case AD_GUEST_DONE:
		task->alive = false;
		if (order->net == task->id)
			close_network(order);
		leave_if_over(task);
		break;
	default:
		break;
	}
}

void ad_guest_order_apply(struct ad_guest_order *order, const struct ad_guest_msg *msg,
			  enum ad_guest_role from)
{
	switch (msg->type) {
	case AD_GUEST_HELLO:
		order->hello = true;
		order->logs = LOGS_PER_REQUEST;
		break;
	case AD_GUEST_SETUP:
		order->setup = order->setup_open = true;
		order->ready = false;
		order->logs += LOGS_PER_REQUEST;
		break;
	case AD_GUEST_READY:
		order->setup_open = false;
		order->ready = msg->u.ready.os_errno == 0;
		break;
	case AD_GUEST_RUN:
	case AD_GUEST_PUT:
	case AD_GUEST_GET:
		begin(order, msg);
		break;
	case AD_GUEST_STOP:
		order->stopping = true;
		break;
	case AD_GUEST_WARM:
		break;
	case AD_GUEST_PING:
		order->pings[from].open = true;
		order->pings[from].token = msg->u.ping.token;
		break;
	case AD_GUEST_PONG:
		order->pings[ad_guest_peer(from)].open = false;
		break;
	case AD_GUEST_LOG:
		order->logs--;
		break;
	default:
		apply_to_task(order, msg, from);
		break;
	}
}

void ad_guest_order_left(struct ad_guest_order *order, const struct ad_guest_header *header)
{
	struct ad_guest_task *task;

	if (header->id == 0)
		return;
	/* Its connections are gone with the task. */
	if (header->connection && order->net == header->id) {
		order->connections[header->connection].queued--;
		leave_if_hung_up(&order->connections[header->connection]);
	}
	task = place_of(order, header->id);
	task->queued--;
	leave_if_over(task);
}
