/* SPDX-License-Identifier: MIT */
/* The connections of a command in a machine: each is one end of a socket pair whose other end
 * the library's proxy serves, as if the client had come there itself. */
#include "backend/microvm/private.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	/* What the kernel keeps of a connection on the way to the proxy, instead of 200 KiB. */
	SOCKET_BYTES = 32 * 1024
};

struct client {
	struct net *net;
	uint16_t number;
	int fd;
	struct ad_io readable, writable;
	struct ad_buf data; /* from the guest: at most a window */
	bool last;          /* no more of it comes */
	/* Each direction is over. */
	bool sent_all, taken_all;
};

struct net {
	struct ad_loop *loop;
	agentd_task *task;
	struct machine *machine;
	uint32_t id;                                          /* of the command */
	struct client *clients[AD_GUEST_CONNECTIONS_MAX + 1]; /* by number */
};

static void client_free(struct client *client)
{
	client->net->clients[client->number] = NULL;
	ad_io_stop(&client->readable);
	ad_io_stop(&client->writable);
	close(client->fd);
	ad_buf_free(&client->data);
	free(client);
}

static void say(struct net *net, enum ad_guest_type type, uint16_t number)
{
	const struct ad_guest_msg msg = { .type = type, .id = net->id, .connection = number };

	(void)machine_send(net->machine, &msg);
}

static void hang_up(struct client *client)
{
	say(client->net, AD_GUEST_HANGUP, client->number);
	client_free(client);
}

/* How much the proxy takes now, or a negative errno. */
static ssize_t pass(struct client *client, const void *data, size_t len)
{
	ssize_t n = send(client->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	machine_connection_taken(client->net->machine, client->net->id, client->number, (size_t)n);
	return n;
}

/* False: it cannot go on. */
static bool pass_kept(struct client *client)
{
	struct ad_buf *data = &client->data;
	ssize_t n = pass(client, data->data, data->len);

	if (n < 0)
		return false;
	data->len -= (size_t)n;
	memmove(data->data, data->data + n, data->len);
	if (data->len == 0)
		ad_io_stop(&client->writable);
	return true;
}

static bool put(struct client *client, const uint8_t *data, size_t len)
{
	ssize_t n = client->data.len == 0 ? pass(client, data, len) : 0;

	if (n < 0 || !ad_buf_append(&client->data, data + n, len - (size_t)n))
		return false;
	return client->data.len == 0 || ad_io_start(&client->writable) == 0;
}

static void settle(struct client *client)
{
	if (client->last && client->data.len == 0 && !client->taken_all) {
		client->taken_all = true;
		shutdown(client->fd, SHUT_WR);
	}
	if (client->sent_all && client->taken_all)
		hang_up(client);
}

static void on_writable(struct ad_io *io, void *userdata)
{
	struct client *client = userdata;

	(void)io;
	if (pass_kept(client))
		settle(client);
	else
		hang_up(client);
}

/* From the proxy, as much as the guest takes. */
static void on_readable(struct ad_io *io, void *userdata)
{
	struct client *client = userdata;
	struct net *net = client->net;
	uint8_t data[AD_GUEST_DATA_MAX];
	size_t room = machine_connection_room(net->machine, net->id, client->number);
	ssize_t n;

	if (room == 0) {
		ad_io_stop(io);
		return;
	}
	n = recv(client->fd, data, room, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0) {
		hang_up(client);
	} else if (n > 0) {
		machine_connection_data(net->machine, net->id, client->number, data, (size_t)n);
	} else {
		ad_io_stop(io);
		client->sent_all = true;
		say(net, AD_GUEST_END, client->number);
		settle(client);
	}
}

/* NULL: the client in the guest is hung up on. */
static struct client *client_new(struct net *net, uint16_t number)
{
	const int bytes = SOCKET_BYTES;
	struct client *client = calloc(1, sizeof(*client));
	int ends[2];

	if (!client ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) < 0) {
		free(client);
		return NULL;
	}
	for (size_t i = 0; i < AD_COUNT(ends); i++)
		(void)setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	client->net = net;
	client->number = number;
	client->fd = ad_sys_high_fd(ends[0]);
	ad_io_init(&client->readable, net->loop, client->fd, AD_IO_READ, on_readable, client);
	ad_io_init(&client->writable, net->loop, client->fd, AD_IO_WRITE, on_writable, client);
	net->clients[number] = client;
	if (agentd_task_attach_net_client(net->task, ends[1]) < 0 || client->fd < 0 ||
	    ad_io_start(&client->readable) < 0) {
		client_free(client);
		return NULL;
	}
	return client;
}

void net_message(struct net *net, const struct ad_guest_msg *msg)
{
	struct client *client = net->clients[msg->connection];

	if (msg->type == AD_GUEST_OPEN) {
		if (!client_new(net, msg->connection))
			say(net, AD_GUEST_HANGUP, msg->connection);
		return;
	}
	if (!client)
		return;
	if (msg->type == AD_GUEST_DATA && !put(client, msg->u.data.data, msg->u.data.len)) {
		hang_up(client);
		return;
	}
	if (msg->type == AD_GUEST_HANGUP) {
		ad_io_stop(&client->readable);
		client->sent_all = true;
	}
	if (msg->type == AD_GUEST_END || msg->type == AD_GUEST_HANGUP)
		client->last = true;
	settle(client);
}

void net_writable(struct net *net, uint16_t connection)
{
	struct client *client = net->clients[connection];

	if (client && !client->sent_all && ad_io_start(&client->readable) < 0)
		hang_up(client);
}

struct net *net_new(struct ad_loop *loop, agentd_task *task, struct machine *machine, uint32_t id)
{
	struct net *net = calloc(1, sizeof(*net));

	if (!net)
		return NULL;
	net->loop = loop;
	net->task = task;
	net->machine = machine;
	net->id = id;
	return net;
}

void net_free(struct net *net)
{
	if (!net)
		return;
	for (size_t i = 1; i < AD_COUNT(net->clients); i++) {
		if (net->clients[i])
			client_free(net->clients[i]);
	}
	free(net);
}
