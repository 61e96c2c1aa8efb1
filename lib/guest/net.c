/* SPDX-License-Identifier: MIT */
/* The network of the command that has one: a socket that listens on the loopback, and whoever
 * connects to it is carried to the library, which is the proxy. */
#include "guest/guest.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 1024, PIECE = AD_GUEST_DATA_MAX - AD_GUEST_HEADER };

struct client {
	struct watch watch;
	uint16_t number;
	struct ad_buf data; /* for it: at most a window */
	bool full;          /* the library takes no more now */
	bool last;          /* no more data comes for it */
	/* Each direction is over. */
	bool heard_all, told_all;
};

static struct {
	struct watch listener;
	uint32_t id; /* the task's */
	bool accepting;
	struct client *clients[AD_GUEST_CONNECTIONS_MAX + 1]; /* by number */
} net = { .listener = { .fd = -1 } };

static void client_free(struct client *client)
{
	net.clients[client->number] = NULL;
	watch_close(&client->watch);
	ad_buf_free(&client->data);
	free(client);
}

static void say(enum ad_guest_type type, uint16_t number)
{
	const struct ad_guest_msg msg = { .type = type, .id = net.id, .connection = number };

	agent_send(&msg);
}

static void hang_up(struct client *client)
{
	say(AD_GUEST_HANGUP, client->number);
	client_free(client);
}

/* What it waits for now; or it is over. */
static void settle(struct client *client)
{
	if (client->last && client->data.len == 0 && !client->told_all) {
		client->told_all = true;
		shutdown(client->watch.fd, SHUT_WR);
	}
	if (client->heard_all && client->told_all) {
		hang_up(client);
		return;
	}
	watch_for(&client->watch, (client->heard_all || client->full ? 0 : EPOLLIN) |
					  (client->data.len > 0 ? EPOLLOUT : 0));
}

/* False: it is gone. */
static bool hear(struct client *client)
{
	static uint8_t data[PIECE];
	size_t room = ad_guest_link_connection_room(agent_link(), net.id, client->number);
	ssize_t n;

	client->full = room == 0;
	if (client->full)
		return true;
	n = read(client->watch.fd, data, room < sizeof(data) ? room : sizeof(data));
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (n > 0) {
		ad_guest_link_connection_data(agent_link(), net.id, client->number, data,
					      (size_t)n);
		return true;
	}
	client->heard_all = true;
	say(AD_GUEST_END, client->number);
	return true;
}

/* Returns how much of it went out, or a negative errno. */
static ssize_t tell(struct client *client, const void *data, size_t len)
{
	ssize_t n = send(client->watch.fd, data, len, MSG_NOSIGNAL);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	ad_guest_link_connection_taken(agent_link(), net.id, client->number, (size_t)n);
	return n;
}

static bool tell_kept(struct client *client)
{
	struct ad_buf *data = &client->data;
	ssize_t n = tell(client, data->data, data->len);

	if (n < 0)
		return false;
	data->len -= (size_t)n;
	memmove(data->data, data->data + n, data->len);
	return true;
}

static void client_ready(struct watch *watch, uint32_t events)
{
	struct client *client = AD_CONTAINER_OF(watch, struct client, watch);

	(void)events;
	if ((client->data.len > 0 && !tell_kept(client)) ||
	    (!client->heard_all && !client->full && !hear(client)))
		hang_up(client);
	else
		settle(client);
}

static bool put(struct client *client, const uint8_t *data, size_t len)
{
	ssize_t n = client->data.len == 0 ? tell(client, data, len) : 0;

	return n >= 0 && ad_buf_append(&client->data, data + n, len - (size_t)n);
}

void net_message(const struct ad_guest_msg *msg)
{
	struct client *client = msg->id == net.id ? net.clients[msg->connection] : NULL;

	if (!client)
		return;
	if (msg->type == AD_GUEST_DATA && !put(client, msg->u.data.data, msg->u.data.len)) {
		hang_up(client);
		return;
	}
	if (msg->type == AD_GUEST_HANGUP)
		client->heard_all = true;
	if (msg->type == AD_GUEST_END || msg->type == AD_GUEST_HANGUP)
		client->last = true;
	settle(client);
}

void net_writable(uint32_t id, uint16_t connection)
{
	struct client *client = id == net.id ? net.clients[connection] : NULL;

	if (!client)
		return;
	client->full = false;
	settle(client);
}

/* ---- who connects */

static void listener_ready(struct watch *watch, uint32_t events)
{
	const int on = 1;
	struct client *client;
	uint32_t id;
	uint16_t number = ad_guest_link_free_connection(agent_link(), &id);
	int fd = number ? accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC) : -1;

	(void)events;
	if (fd < 0) {
		watch_for(watch, 0);
		return;
	}
	client = calloc(1, sizeof(*client));
	if (!client) {
		close(fd);
		return;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	client->watch = (struct watch){ .ready = client_ready, .fd = fd };
	client->number = number;
	net.clients[number] = client;
	say(AD_GUEST_OPEN, number);
	settle(client);
}

void net_resume(void)
{
	uint32_t id;

	if (net.accepting && net.listener.events == 0 &&
	    ad_guest_link_free_connection(agent_link(), &id))
		watch_for(&net.listener, EPOLLIN);
}

int net_open(uint32_t id)
{
	const struct sockaddr_in address = { .sin_family = AF_INET,
					     .sin_port = htons(AD_GUEST_PROXY_PORT),
					     .sin_addr = { htonl(INADDR_LOOPBACK) } };
	const int on = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	/* Connections of the command before may not be forgotten yet. */
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
	    bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
	    listen(fd, BACKLOG) < 0) {
		int error = errno;

		close(fd);
		return -error;
	}
	net.listener = (struct watch){ .ready = listener_ready, .fd = fd };
	net.id = id;
	return 0;
}

void net_start(uint32_t id)
{
	net.accepting = net.listener.fd >= 0 && net.id == id;
}

void net_close(uint32_t id)
{
	if (net.listener.fd < 0 || net.id != id)
		return;
	net.accepting = false;
	watch_close(&net.listener);
	for (size_t i = 1; i < AD_COUNT(net.clients); i++) {
		if (net.clients[i])
			client_free(net.clients[i]);
	}
}
