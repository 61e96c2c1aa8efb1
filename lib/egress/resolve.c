/* SPDX-License-Identifier: MIT */
/* Names to addresses, without a thread and without waiting: the only user of c-ares. Each
 * lookup has a channel of its own, so that it sees the machine's configuration of now. */
#include "egress/private.h"

#include <ares.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include "sys/sys.h"

enum {
	TRY_MS = 2000, /* for the first try with each server; c-ares doubles it */
	TRIES = 2,
	SOCKETS_MAX = 16, /* at once: two queries, over UDP and over TCP, and then some */
	SERVER_MAX = 128
};

struct ad_resolver {
	struct ad_loop *loop;
	char server[SERVER_MAX]; /* or "" */
};

struct watched {
	struct ad_lookup *lookup;
	int fd; /* -1: free */
	struct ad_io readable, writable;
};

struct ad_lookup {
	struct ad_loop *loop;
	ares_channel channel;
	struct watched watched[SOCKETS_MAX];
	struct ad_timer timer;
	struct ad_defer answer; /* c-ares has called back, perhaps from inside of a call */
	struct ad_net_host addresses[AD_LOOKUP_ADDRESSES_MAX];
	size_t count;
	const char *error;
	ad_lookup_fn fn;
	void *userdata;
};

/* ---- resolvers */

int ad_resolver_new(struct ad_loop *loop, const char *server, struct ad_resolver **ret,
		    agentd_error **reterr)
{
	struct ad_resolver *resolver;
	ares_channel channel;
	int r;

	if (server && (strlen(server) >= SERVER_MAX || strchr(server, ',')))
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "name server must be one address, with a port if need be: \"%s\"",
			       server);
	if (server) {
		if (ares_init(&channel) != ARES_SUCCESS)
			return ad_fail_nomem(reterr);
		r = ares_set_servers_ports_csv(channel, server);
		ares_destroy(channel);
		if (r != ARES_SUCCESS || !*server)
			return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
				       "name server must be one address, with a port if need be: "
				       "\"%s\"",
				       server);
	}
	resolver = calloc(1, sizeof(*resolver));
	if (!resolver)
		return ad_fail_nomem(reterr);
	resolver->loop = loop;
	if (server)
		memcpy(resolver->server, server, strlen(server) + 1);
	*ret = resolver;
	return 0;
}

void ad_resolver_free(struct ad_resolver *resolver)
{
	free(resolver);
}

/* ---- sockets as a guest in the process has them: never 0, 1 or 2, no SIGPIPE */

static ares_socket_t make_socket(int family, int type, int protocol, void *userdata)
{
	int fd = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);

	(void)userdata;
	if (fd >= 0)
		fd = ad_sys_high_fd(fd);
	if (fd < 0 && fd != -1) {
		errno = -fd;
		fd = -1;
	}
	return fd;
}

static int close_socket(ares_socket_t fd, void *userdata)
{
	(void)userdata;
	return close(fd);
}

static int connect_socket(ares_socket_t fd, const struct sockaddr *addr, ares_socklen_t len,
			  void *userdata)
{
	(void)userdata;
	return connect(fd, addr, len);
}

static ares_ssize_t receive(ares_socket_t fd, void *data, size_t len, int flags,
			    struct sockaddr *from, ares_socklen_t *from_len, void *userdata)
{
	(void)userdata;
	return recvfrom(fd, data, len, flags, from, from_len);
}

static ares_ssize_t send_vector(ares_socket_t fd, const struct iovec *vector, int count,
				void *userdata)
{
	const struct msghdr message = { .msg_iov = (struct iovec *)(uintptr_t)vector,
					.msg_iovlen = (size_t)count };

	(void)userdata;
	return sendmsg(fd, &message, MSG_NOSIGNAL);
}

static const struct ares_socket_functions socket_functions = {
	.asocket = make_socket,
	.aclose = close_socket,
	.aconnect = connect_socket,
	.arecvfrom = receive,
	.asendv = send_vector,
};

/* ---- lookups */

static void arm(struct ad_lookup *lookup)
{
	struct timeval tv;

	if (ares_timeout(lookup->channel, NULL, &tv))
		ad_timer_start(&lookup->timer, (uint64_t)tv.tv_sec * AD_NS_PER_S +
						       (uint64_t)tv.tv_usec * AD_NS_PER_US);
	else
		ad_timer_stop(&lookup->timer);
}

static void on_timer(struct ad_timer *timer, void *userdata)
{
	struct ad_lookup *lookup = userdata;

	(void)timer;
	ares_process_fd(lookup->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
	arm(lookup);
}

static void on_ready(struct ad_io *io, void *userdata)
{
	struct watched *watched = userdata;
	struct ad_lookup *lookup = watched->lookup;
	bool reads = io == &watched->readable;

	ares_process_fd(lookup->channel, reads ? watched->fd : ARES_SOCKET_BAD,
			reads ? ARES_SOCKET_BAD : watched->fd);
	arm(lookup);
}

static struct watched *find(struct ad_lookup *lookup, int fd)
{
	for (size_t i = 0; i < SOCKETS_MAX; i++) {
		if (lookup->watched[i].fd == fd)
			return &lookup->watched[i];
	}
	return NULL;
}

static void socket_state(void *userdata, ares_socket_t fd, int readable, int writable)
{
	struct ad_lookup *lookup = userdata;
	struct watched *watched = find(lookup, fd);

	if (!watched && (readable || writable)) {
		watched = find(lookup, -1);
		/* Not heard: c-ares takes the server for one that does not answer. */
		if (!watched)
			return;
		watched->fd = fd;
		ad_io_init(&watched->readable, lookup->loop, fd, AD_IO_READ, on_ready, watched);
		ad_io_init(&watched->writable, lookup->loop, fd, AD_IO_WRITE, on_ready, watched);
	}
	if (!watched)
		return;
	ad_io_stop(&watched->readable);
	ad_io_stop(&watched->writable);
	if (readable)
		ad_io_start(&watched->readable);
	if (writable)
		ad_io_start(&watched->writable);
	if (!readable && !writable)
		watched->fd = -1;
}

static void keep(struct ad_lookup *lookup, const struct sockaddr *addr)
{
	struct ad_net_host *host = &lookup->addresses[lookup->count];
	struct sockaddr_in6 in6;
	struct sockaddr_in in;

	if (lookup->count == AD_LOOKUP_ADDRESSES_MAX)
		return;
	if (addr->sa_family == AF_INET) {
		memcpy(&in, addr, sizeof(in));
		ad_net_host_from_in(host, &in.sin_addr);
	} else if (addr->sa_family == AF_INET6) {
		memcpy(&in6, addr, sizeof(in6));
		ad_net_host_from_in6(host, &in6.sin6_addr);
	} else {
		return;
	}
	lookup->count++;
}

static void answered(void *userdata, int status, int timeouts, struct ares_addrinfo *result)
{
	struct ad_lookup *lookup = userdata;

	(void)timeouts;
	for (const struct ares_addrinfo_node *node = result ? result->nodes : NULL; node;
	     node = node->ai_next)
		keep(lookup, node->ai_addr);
	if (result)
		ares_freeaddrinfo(result);
	lookup->error = status == ARES_SUCCESS ? "it has no address" : ares_strerror(status);
	if (status != ARES_EDESTRUCTION)
		ad_defer(&lookup->answer);
}

static void tell(struct ad_defer *defer, void *userdata)
{
	struct ad_lookup *lookup = userdata;

	(void)defer;
	lookup->fn(lookup->addresses, lookup->count, lookup->error, lookup->userdata);
}

static int open_channel(struct ad_lookup *lookup, const struct ad_resolver *resolver)
{
	char files_first[] = "fb", dns_only[] = "b"; /* which c-ares copies */
	struct ares_options options = {
		/* Another name than the one that was checked is not to be looked up. */
		.flags = ARES_FLAG_NOSEARCH | ARES_FLAG_NOALIASES,
		.timeout = TRY_MS,
		.tries = TRIES,
		.lookups = resolver->server[0] ? dns_only : files_first,
		.sock_state_cb = socket_state,
		.sock_state_cb_data = lookup,
	};

	if (ares_init_options(&lookup->channel, &options,
			      ARES_OPT_FLAGS | ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES |
				      ARES_OPT_LOOKUPS | ARES_OPT_SOCK_STATE_CB) != ARES_SUCCESS)
		return AGENTD_ERR_NOMEM;
	ares_set_socket_functions(lookup->channel, &socket_functions, NULL);
	if (resolver->server[0] &&
	    ares_set_servers_ports_csv(lookup->channel, resolver->server) != ARES_SUCCESS) {
		ares_destroy(lookup->channel);
		return AGENTD_ERR_NOMEM;
	}
	return 0;
}

int ad_lookup_start(struct ad_resolver *resolver, const char *name, ad_lookup_fn fn, void *userdata,
		    struct ad_lookup **ret)
{
	const struct ares_addrinfo_hints hints = { .ai_family = AF_UNSPEC,
						   .ai_socktype = SOCK_STREAM };
	struct ad_lookup *lookup = calloc(1, sizeof(*lookup));

	if (!lookup)
		return AGENTD_ERR_NOMEM;
	lookup->loop = resolver->loop;
	lookup->fn = fn;
	lookup->userdata = userdata;
	for (size_t i = 0; i < SOCKETS_MAX; i++)
		lookup->watched[i] = (struct watched){ .lookup = lookup, .fd = -1 };
	ad_timer_init(&lookup->timer, lookup->loop, on_timer, lookup);
	ad_defer_init(&lookup->answer, lookup->loop, tell, lookup);
	if (open_channel(lookup, resolver) < 0) {
		free(lookup);
		return AGENTD_ERR_NOMEM;
	}
	*ret = lookup;
	ares_getaddrinfo(lookup->channel, name, NULL, &hints, answered, lookup);
	arm(lookup);
	return 0;
}

void ad_lookup_cancel(struct ad_lookup *lookup)
{
	if (!lookup)
		return;
	ares_destroy(lookup->channel);
	ad_timer_stop(&lookup->timer);
	ad_defer_cancel(&lookup->answer);
	free(lookup);
}
