/* SPDX-License-Identifier: MIT */
/* The connections of one command: from what a client says, through the policy, a lookup and
 * a connect to a tunnel. */
#include "egress/private.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sys/sys.h"

/* A client that sends its request slowly, a host that does not answer, a tunnel that nobody
 * uses, and one who does not read what it is told. */
static const uint64_t request_ns = 20 * AD_NS_PER_S;
static const uint64_t connect_ns = 30 * AD_NS_PER_S; /* with the lookup, for all addresses */
static const uint64_t attempt_ns = 5 * AD_NS_PER_S;  /* for each but the last */
static const uint64_t idle_ns = 600 * AD_NS_PER_S;
static const uint64_t goodbye_ns = 2 * AD_NS_PER_S;
/* No descriptors left: others may give some back. */
static const uint64_t pause_ns = AD_NS_PER_S / 10;

enum { ACCEPTS_PER_WAKE = 16, FIRST_READ = 2048, REPLY_MAX = 2048 };

enum state { REQUEST, ASKED, LOOKUP, CONNECTING, TUNNEL, GOODBYE };

struct connection {
	struct ad_list link;
	struct ad_egress *egress;
	enum state state;
	int client, server;
	struct ad_timer timer;
	struct ad_io io; /* REQUEST and GOODBYE: of the client; CONNECTING: of the server */
	uint64_t until;
	uint8_t *input;
	size_t input_len, input_cap;
	struct ad_request request;
	uint32_t question;
	bool answered, answer; /* to it */
	struct ad_lookup *lookup;
	struct ad_net_host *addresses; /* those that may be reached */
	size_t address_count, next_address;
	struct ad_flow up, down;
};

struct ad_egress {
	struct ad_egress_opts opts;
	int listener; /* or -1 */
	struct ad_io acceptable;
	struct ad_timer pause;
	struct ad_list connections;
	size_t count, most;
	uint32_t last_question;
	struct ad_flows flows;
	struct ad_egress_counts counts;
	bool spent;
	struct ad_defer on_spent;
};

static void accept_on(struct ad_egress *egress)
{
	if (egress->listener >= 0 && egress->count < egress->most)
		ad_io_start(&egress->acceptable);
}

static void connection_free(struct connection *conn)
{
	struct ad_egress *egress = conn->egress;

	ad_flow_stop(&conn->up);
	ad_flow_stop(&conn->down);
	ad_io_stop(&conn->io);
	ad_timer_stop(&conn->timer);
	ad_lookup_cancel(conn->lookup);
	ad_util_closep(&conn->client);
	ad_util_closep(&conn->server);
	ad_buf_free(&conn->request.head);
	free(conn->input);
	free(conn->addresses);
	ad_list_remove(&conn->link);
	egress->count--;
	accept_on(egress);
	free(conn);
}

/* ---- what the client is told */

static void on_goodbye(struct ad_io *io, void *userdata)
{
	struct connection *conn = userdata;
	uint8_t rest[4096];
	ssize_t n;

	(void)io;
	/* To close a socket with something unread in it would take the answer back. */
	n = recv(conn->client, rest, sizeof(rest), MSG_DONTWAIT);
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		connection_free(conn);
}

/* Nothing more is said; the client is waited for, shortly. */
static void linger(struct connection *conn)
{
	ad_io_stop(&conn->io);
	conn->state = GOODBYE;
	ad_io_init(&conn->io, conn->egress->opts.loop, conn->client, AD_IO_READ, on_goodbye, conn);
	if (ad_io_start(&conn->io) < 0 || ad_timer_start(&conn->timer, goodbye_ns) < 0)
		connection_free(conn);
}

static void reply_over(struct ad_flow *flow, bool alive, void *userdata)
{
	if (!alive)
		connection_free(userdata);
	else if (flow->over)
		linger(userdata);
}

/* Its last words. Until they are out the client is not listened to: it may have ended, which
 * is no reason not to tell it. */
static void say_and_end(struct connection *conn, const void *data, size_t len)
{
	ad_io_stop(&conn->io);
	ad_flow_stop(&conn->up);
	ad_flow_stop(&conn->down);
	conn->state = GOODBYE;
	ad_flow_init(&conn->down, conn->egress->opts.loop, &conn->egress->flows, conn->client,
		     conn->client, reply_over, conn);
	conn->down.eof = true;
	if (ad_flow_put(&conn->down, data, len) < 0 || ad_flow_start(&conn->down) < 0 ||
	    ad_timer_start(&conn->timer, goodbye_ns) < 0)
		connection_free(conn);
}

static const char *status_text(int status)
{
	switch (status) {
	case 403:
		return "Forbidden";
	case 405:
		return "Method Not Allowed";
	case 431:
		return "Request Header Fields Too Large";
	case 502:
		return "Bad Gateway";
	case 503:
		return "Service Unavailable";
	case 504:
		return "Gateway Timeout";
	case 505:
		return "HTTP Version Not Supported";
	default:
		return "Bad Request";
	}
}

/* RFC 1928, 6 */
static uint8_t socks_code(int status)
{
	switch (status) {
	case 403:
		return 2; /* not allowed by ruleset */
	case 405:
		return 7; /* command not supported */
	case 504:
		return 4; /* host unreachable */
	default:
		return 1;
	}
}

static void refuse(struct connection *conn, int status, const char *text)
{
	const uint8_t code[] = { 5, socks_code(status), 0, 1, 0, 0, 0, 0, 0, 0 };
	static const uint8_t no_method[] = { 5, 0xff };
	char reply[REPLY_MAX];
	int len;

	if (conn->request.kind == AD_REQUEST_SOCKS) {
		if (conn->request.greeted)
			say_and_end(conn, code, sizeof(code));
		else
			say_and_end(conn, no_method, sizeof(no_method));
		return;
	}
	len = snprintf(reply, sizeof(reply),
		       "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\n"
		       "Content-Length: %zu\r\nConnection: close\r\n\r\n%s\n",
		       status, status_text(status), strlen(text) + 1, text);
	say_and_end(conn, reply, (size_t)len);
}

static void write_target(const struct connection *conn, char *buf, size_t size)
{
	const struct ad_request *request = &conn->request;

	snprintf(buf, size, request->host.family == AF_INET6 ? "[%s]:%u" : "%s:%u",
		 request->host.text, request->port);
}

static void deny(struct connection *conn, const char *rule, const char *address)
{
	struct ad_egress *egress = conn->egress;
	char target[AD_NET_HOST_SIZE + 16], wanted[AD_NET_HOST_SIZE + 16], remedy[640], text[1536];

	write_target(conn, target, sizeof(target));
	snprintf(wanted, sizeof(wanted), "%s", target);
	/* A name was fine, what it leads to is not. */
	if (address)
		snprintf(wanted, sizeof(wanted), strchr(address, ':') ? "[%s]:%u" : "%s:%u",
			 address, conn->request.port);
	if (egress->spent)
		snprintf(remedy, sizeof(remedy),
			 "the command has used up its network; the operator can raise the limit "
			 "net_bytes, or agentd-run --net-bytes");
	else if (strncmp(rule, "deny ", 5) == 0)
		snprintf(remedy, sizeof(remedy),
			 "the operator's policy denies it: net.deny has \"%s\"", rule + 5);
	else
		snprintf(remedy, sizeof(remedy),
			 "the operator can allow it with \"%s\" in net.allow of the policy, or "
			 "agentd-run --allow-host '%s'",
			 wanted, wanted);
	snprintf(text, sizeof(text), "%s%s%s%s is not allowed (%s): %s.", target,
		 address ? " (" : "", address ? address : "", address ? ")" : "", rule, remedy);
	refuse(conn, 403, text);
	egress->opts.denied(target, rule, remedy, egress->opts.userdata);
}

static void fail(struct connection *conn, int status, const char *why)
{
	char target[AD_NET_HOST_SIZE + 16], text[512];

	write_target(conn, target, sizeof(target));
	snprintf(text, sizeof(text), "%s cannot be reached: %s.", target, why);
	refuse(conn, status, text);
}

/* ---- tunnels */

static void count(struct connection *conn)
{
	struct ad_egress *egress = conn->egress;

	egress->counts.sent += conn->up.moved;
	egress->counts.received += conn->down.moved;
	conn->up.moved = conn->down.moved = 0;
}

static void close_tunnels(struct ad_defer *defer, void *userdata)
{
	struct ad_egress *egress = userdata;

	(void)defer;
	for (struct ad_list *node = egress->connections.next, *next; node != &egress->connections;
	     node = next) {
		struct connection *conn = AD_CONTAINER_OF(node, struct connection, link);

		next = node->next;
		if (conn->state == TUNNEL)
			connection_free(conn);
	}
	egress->opts.spent(egress->opts.userdata);
}

static void moved(struct ad_flow *flow, bool alive, void *userdata)
{
	struct connection *conn = userdata;

	count(conn);
	if (conn->egress->flows.left == 0 && !conn->egress->spent) {
		conn->egress->spent = true;
		ad_defer(&conn->egress->on_spent);
	}
	conn->until = ad_sys_now_ns() + idle_ns;
	/* A server that hears no more may have answered before, such as that it is too much. */
	if (flow == &conn->up && flow->unwanted && !conn->down.over) {
		ad_flow_stop(flow);
		return;
	}
	/* Who has ended may still be answered; a request that was answered is done with. */
	if (!alive || (conn->up.over && conn->down.over)) {
		connection_free(conn);
	} else if (conn->down.over &&
		   (conn->request.kind == AD_REQUEST_FORWARD || conn->up.unwanted)) {
		ad_flow_stop(&conn->up);
		ad_flow_stop(&conn->down);
		linger(conn);
	}
}

/* What a tunnel begins with; answers of our own in the place of one are not the command's. */
static void spend(struct ad_flows *flows, size_t len)
{
	if (flows->left != UINT64_MAX)
		flows->left -= len < flows->left ? len : flows->left;
}

static void open_tunnel(struct connection *conn)
{
	static const char connected[] = "HTTP/1.1 200 Connection established\r\n\r\n";
	static const uint8_t granted[] = { 5, 0, 0, 1, 0, 0, 0, 0, 0, 0 };
	struct ad_egress *egress = conn->egress;
	struct ad_request *request = &conn->request;
	size_t extra = conn->input_len;
	int r = 0;

	ad_io_stop(&conn->io);
	conn->state = TUNNEL;
	egress->counts.connections++;
	ad_flow_init(&conn->up, egress->opts.loop, &egress->flows, conn->client, conn->server,
		     moved, conn);
	ad_flow_init(&conn->down, egress->opts.loop, &egress->flows, conn->server, conn->client,
		     moved, conn);
	if (request->kind == AD_REQUEST_FORWARD)
		r = ad_flow_put(&conn->up, request->head.data, request->head.len);
	else if (request->kind == AD_REQUEST_CONNECT)
		r = ad_flow_put(&conn->down, connected, sizeof(connected) - 1);
	else
		r = ad_flow_put(&conn->down, granted, sizeof(granted));
	if (extra > request->body)
		extra = (size_t)request->body;
	if (r == 0)
		r = ad_flow_put(&conn->up, conn->input, extra);
	spend(&egress->flows, conn->up.pending_len + conn->down.pending_len);
	conn->up.left = request->body == UINT64_MAX ? UINT64_MAX : request->body - extra;
	free(AD_STEAL(conn->input));
	free(AD_STEAL(conn->addresses));
	ad_buf_free(&request->head);
	conn->until = ad_sys_now_ns() + idle_ns;
	if (r < 0 || ad_flow_start(&conn->up) < 0 || ad_flow_start(&conn->down) < 0 ||
	    ad_timer_start(&conn->timer, idle_ns) < 0)
		connection_free(conn);
}

/* ---- connecting */

static socklen_t address_of(const struct connection *conn, const struct ad_net_host *host,
			    struct sockaddr_storage *ret)
{
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6,
				    .sin6_port = htons(conn->request.port) };
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(conn->request.port) };

	memset(ret, 0, sizeof(*ret));
	if (host->family == AF_INET) {
		memcpy(&in.sin_addr, host->addr, sizeof(in.sin_addr));
		memcpy(ret, &in, sizeof(in));
		return sizeof(in);
	}
	memcpy(&in6.sin6_addr, host->addr, sizeof(in6.sin6_addr));
	memcpy(ret, &in6, sizeof(in6));
	return sizeof(in6);
}

static void connect_next(struct connection *conn, int error);

static void on_connected(struct ad_io *io, void *userdata)
{
	struct connection *conn = userdata;
	socklen_t len = sizeof(int);
	int error = 0;

	(void)io;
	if (getsockopt(conn->server, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		error = errno;
	if (error)
		connect_next(conn, error);
	else if (conn->egress->spent)
		deny(conn, "net_bytes", NULL);
	else
		open_tunnel(conn);
}

static int try_connect(struct connection *conn, const struct ad_net_host *host)
{
	struct sockaddr_storage addr;
	socklen_t len = address_of(conn, host, &addr);
	int fd = socket(host->family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd >= 0)
		fd = ad_sys_high_fd(fd);
	else
		fd = -errno;
	if (fd < 0)
		return fd;
	conn->server = fd;
	ad_io_init(&conn->io, conn->egress->opts.loop, fd, AD_IO_WRITE, on_connected, conn);
	if (connect(fd, (const struct sockaddr *)&addr, len) < 0 && errno != EINPROGRESS)
		return -errno;
	return ad_io_start(&conn->io) < 0 ? -ENOMEM : 0;
}

/* The address after the one that gave error. */
static void connect_next(struct connection *conn, int error)
{
	uint64_t now = ad_sys_now_ns(), left = conn->until > now ? conn->until - now : 0;

	while (conn->next_address < conn->address_count && left > 0) {
		bool last = conn->next_address + 1 == conn->address_count;
		uint64_t wait = last || left < attempt_ns ? left : attempt_ns;

		ad_io_stop(&conn->io);
		ad_util_closep(&conn->server);
		conn->server = -1;
		error = -try_connect(conn, &conn->addresses[conn->next_address++]);
		if (error == 0 && ad_timer_start(&conn->timer, wait) == 0)
			return;
	}
	fail(conn,
	     error == ETIMEDOUT                 ? 504 :
	     error == EMFILE || error == ENFILE ? 503 :
						  502,
	     strerrordesc_np(error) ? strerrordesc_np(error) : "unknown error");
}

/* Those of the addresses that the policy allows; the first refusal otherwise. */
static void take_addresses(struct connection *conn, const struct ad_net_host *addresses,
			   size_t count)
{
	const struct ad_egress_opts *opts = &conn->egress->opts;
	struct ad_net_answer answer = { 0 }, refusal = { 0 };
	const char *refused = NULL;

	conn->addresses = reallocarray(NULL, count, sizeof(*addresses));
	if (!conn->addresses) {
		fail(conn, 503, "out of memory");
		return;
	}
	for (size_t i = 0; i < count; i++) {
		if (ad_net_check_resolved(opts->ceiling, opts->policy, &addresses[i],
					  conn->request.port, &answer)) {
			conn->addresses[conn->address_count++] = addresses[i];
		} else if (!refused) {
			refused = addresses[i].text;
			refusal = answer;
		}
	}
	if (conn->address_count == 0) {
		deny(conn, refusal.rule, refused);
		return;
	}
	conn->state = CONNECTING;
	connect_next(conn, 0);
}

static void on_resolved(const struct ad_net_host *addresses, size_t count, const char *error,
			void *userdata)
{
	struct connection *conn = userdata;
	struct ad_lookup *lookup = AD_STEAL(conn->lookup);

	if (count > 0)
		take_addresses(conn, addresses, count);
	else
		fail(conn, 502, error);
	ad_lookup_cancel(lookup);
}

static void reach(struct connection *conn)
{
	const struct ad_net_host *host = &conn->request.host;

	conn->until = ad_sys_now_ns() + connect_ns;
	if (host->family) {
		conn->addresses = malloc(sizeof(*host));
		if (!conn->addresses) {
			fail(conn, 503, "out of memory");
			return;
		}
		conn->addresses[0] = *host;
		conn->address_count = 1;
		conn->state = CONNECTING;
		connect_next(conn, 0);
		return;
	}
	conn->state = LOOKUP;
	if (ad_timer_start(&conn->timer, connect_ns) < 0 ||
	    ad_lookup_start(conn->egress->opts.resolver, host->text, on_resolved, conn,
			    &conn->lookup) < 0)
		fail(conn, 503, "out of memory");
}

/* ---- questions */

static struct connection *asked_alike(struct connection *conn)
{
	struct ad_list *head = &conn->egress->connections;

	for (struct ad_list *node = head->next; node != head; node = node->next) {
		struct connection *other = AD_CONTAINER_OF(node, struct connection, link);

		if (other != conn && other->state == ASKED &&
		    other->request.port == conn->request.port &&
		    strcmp(other->request.host.text, conn->request.host.text) == 0)
			return other;
	}
	return NULL;
}

static void decided(struct connection *conn, bool allow)
{
	if (allow)
		reach(conn);
	else
		deny(conn, "not in the allow-list", NULL);
}

static void ask(struct connection *conn)
{
	struct ad_egress *egress = conn->egress;
	const struct connection *other = asked_alike(conn);
	struct ad_net_host host = conn->request.host;
	uint64_t now = ad_sys_now_ns();

	/* An answer that is on its way does not come again. */
	if (other && other->answered) {
		decided(conn, other->answer);
		return;
	}
	conn->until = other ? other->until : now + egress->opts.ask_ns;
	conn->question = other ? other->question : ++egress->last_question;
	conn->state = ASKED;
	if (ad_timer_start(&conn->timer, conn->until > now ? conn->until - now : 0) < 0) {
		fail(conn, 503, "out of memory");
		return;
	}
	if (!other)
		egress->opts.ask(conn->question, host.text, conn->request.port,
				 egress->opts.userdata);
}

void ad_egress_answer(struct ad_egress *egress, uint32_t question, bool allow)
{
	struct ad_list *node = egress->connections.next;

	while (node != &egress->connections) {
		struct connection *conn = AD_CONTAINER_OF(node, struct connection, link);

		node = node->next;
		if (conn->state != ASKED || conn->question != question)
			continue;
		/* Not from inside the caller's call: the timer goes off at once. */
		conn->answered = true;
		conn->answer = allow;
		ad_timer_start(&conn->timer, 0);
	}
}

/* ---- requests */

static void decide(struct connection *conn)
{
	const struct ad_egress_opts *opts = &conn->egress->opts;
	struct ad_net_answer answer;

	if (conn->egress->spent) {
		deny(conn, "net_bytes", NULL);
		return;
	}
	ad_net_check(opts->ceiling, opts->policy, &conn->request.host, conn->request.port, &answer);
	if (answer.verdict == AD_NET_ALLOWED)
		reach(conn);
	else if (answer.verdict == AD_NET_UNDECIDED && opts->ask)
		ask(conn);
	else
		deny(conn, answer.rule, NULL);
}

static void drop_input(struct connection *conn, size_t len)
{
	memmove(conn->input, conn->input + len, conn->input_len - len);
	conn->input_len -= len;
}

static bool read_more(struct connection *conn)
{
	ssize_t n;

	if (conn->input_len == conn->input_cap) {
		size_t cap = conn->input_cap ? conn->input_cap * 2 : FIRST_READ;
		uint8_t *grown = cap <= AD_REQUEST_MAX ? realloc(conn->input, cap) : NULL;

		if (!grown)
			return false;
		conn->input = grown;
		conn->input_cap = cap;
	}
	n = recv(conn->client, conn->input + conn->input_len, conn->input_cap - conn->input_len,
		 MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	conn->input_len += (size_t)n;
	return n > 0;
}

static void on_request(struct ad_io *io, void *userdata)
{
	static const uint8_t no_authentication[] = { 5, 0 };
	struct connection *conn = userdata;
	struct ad_request *request = &conn->request;

	if (!read_more(conn)) {
		connection_free(conn);
		return;
	}
	for (;;) {
		switch (ad_request_parse(request, conn->input, conn->input_len)) {
		case AD_REQUEST_MORE:
			return;
		case AD_REQUEST_GREETING:
			drop_input(conn, request->used);
			/* The socket's buffer is empty: two bytes always fit. */
			if (send(conn->client, no_authentication, sizeof(no_authentication),
				 MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof(no_authentication))
				continue;
			connection_free(conn);
			return;
		case AD_REQUEST_DONE:
			ad_io_stop(io);
			drop_input(conn, request->used);
			decide(conn);
			return;
		default:
			refuse(conn, request->status, request->why);
			return;
		}
	}
}

static void on_timer(struct ad_timer *timer, void *userdata)
{
	struct connection *conn = userdata;
	uint64_t now;

	switch (conn->state) {
	case ASKED:
		decided(conn, conn->answered ? conn->answer : conn->egress->opts.ask_default);
		return;
	case CONNECTING:
		connect_next(conn, ETIMEDOUT);
		return;
	case LOOKUP:
		ad_lookup_cancel(AD_STEAL(conn->lookup));
		fail(conn, 504, "no name server has answered");
		return;
	case TUNNEL:
		now = ad_sys_now_ns();
		/* Set anew only here, not for each byte that passes. */
		if (now < conn->until && ad_timer_start(timer, conn->until - now) == 0)
			return;
		break;
	default:
		break;
	}
	connection_free(conn);
}

/* ---- accepting */

static int connection_new(struct ad_egress *egress, int fd)
{
	struct connection *conn = calloc(1, sizeof(*conn));

	if (!conn) {
		close(fd);
		return AGENTD_ERR_NOMEM;
	}
	conn->egress = egress;
	conn->client = fd;
	conn->server = -1;
	ad_list_init(&conn->link);
	ad_list_append(&egress->connections, &conn->link);
	egress->count++;
	ad_timer_init(&conn->timer, egress->opts.loop, on_timer, conn);
	ad_io_init(&conn->io, egress->opts.loop, fd, AD_IO_READ, on_request, conn);
	if (ad_timer_start(&conn->timer, request_ns) < 0 || ad_io_start(&conn->io) < 0) {
		connection_free(conn);
		return AGENTD_ERR_NOMEM;
	}
	return 0;
}

static void on_acceptable(struct ad_io *io, void *userdata)
{
	struct ad_egress *egress = userdata;

	for (int i = 0; i < ACCEPTS_PER_WAKE && egress->count < egress->most; i++) {
		int fd = accept4(egress->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0)
			fd = ad_sys_high_fd(fd);
		else
			fd = -errno;
		if (fd == -EAGAIN)
			return;
		if (fd == -ECONNABORTED || fd == -EINTR)
			continue;
		if (fd == -EINVAL) { /* shut down: the command is over */
			ad_io_stop(io);
			return;
		}
		if (fd < 0 || connection_new(egress, fd) < 0) {
			ad_io_stop(io);
			ad_timer_start(&egress->pause, pause_ns);
			return;
		}
	}
	if (egress->count >= egress->most)
		ad_io_stop(io);
}

static void on_pause_over(struct ad_timer *timer, void *userdata)
{
	(void)timer;
	accept_on(userdata);
}

int ad_egress_listen(struct ad_egress *egress, int fd, agentd_error **reterr)
{
	int r = egress->listener < 0 ? ad_sys_set_nonblock(fd) : -EBUSY;

	if (r < 0) {
		close(fd);
		return ad_fail_errno(reterr, -r, "the network's listening socket");
	}
	egress->listener = fd;
	ad_io_init(&egress->acceptable, egress->opts.loop, fd, AD_IO_READ, on_acceptable, egress);
	r = ad_io_start(&egress->acceptable);
	return r < 0 ? ad_fail(reterr, r, NULL,
			       "the network's listening socket cannot be watched") :
		       0;
}

int ad_egress_serve(struct ad_egress *egress, int fd)
{
	int high;

	if (egress->count >= egress->most || ad_sys_set_nonblock(fd) < 0) {
		close(fd);
		return AGENTD_ERR_LIMIT;
	}
	high = ad_sys_high_fd(fd);
	return high < 0 ? AGENTD_ERR_LIMIT : connection_new(egress, high);
}

/* ---- life */

/* Two descriptors each, and no more than half of what the process may have. */
static size_t most_connections(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY ||
	    limit.rlim_cur / 4 >= AD_EGRESS_CONNECTIONS_MAX)
		return AD_EGRESS_CONNECTIONS_MAX;
	return limit.rlim_cur >= 8 ? (size_t)limit.rlim_cur / 4 : 2;
}

int ad_egress_new(const struct ad_egress_opts *opts, struct ad_egress **ret, agentd_error **reterr)
{
	struct ad_egress *egress = calloc(1, sizeof(*egress));

	if (!egress)
		return ad_fail_nomem(reterr);
	egress->opts = *opts;
	egress->listener = -1;
	egress->most = most_connections();
	ad_list_init(&egress->connections);
	ad_timer_init(&egress->pause, opts->loop, on_pause_over, egress);
	ad_flows_init(&egress->flows, opts->loop, opts->bytes_max ? opts->bytes_max : UINT64_MAX);
	ad_defer_init(&egress->on_spent, opts->loop, close_tunnels, egress);
	*ret = egress;
	return 0;
}

const struct ad_egress_counts *ad_egress_counts(const struct ad_egress *egress)
{
	return &egress->counts;
}

void ad_egress_free(struct ad_egress *egress)
{
	if (!egress)
		return;
	if (egress->listener >= 0)
		ad_io_stop(&egress->acceptable);
	ad_util_closep(&egress->listener);
	egress->listener = -1;
	ad_timer_stop(&egress->pause);
	ad_defer_cancel(&egress->on_spent);
	while (!ad_list_empty(&egress->connections))
		connection_free(AD_CONTAINER_OF(egress->connections.next, struct connection, link));
	ad_flows_free(&egress->flows);
	free(egress);
}
