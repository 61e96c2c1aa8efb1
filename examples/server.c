/* SPDX-License-Identifier: MIT */
/* A host program with an event base of its own: a TCP server that runs each line
 * it gets as a command and sends back the output as it comes, then a line
 * "[status code]". Commands of all clients run at once on the one base, beside a
 * ticker that would notice if anything blocked it.
 *
 *     server [PORT]      (on 127.0.0.1; 0, the default: any free port)
 */
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <time.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>

#include <arpa/inet.h>

#include <agentd/agentd.h>

enum { TICK_MS = 10, SEND_HIGH = 256 << 10, SEND_LOW = 64 << 10, LINE_MAX_BYTES = 64 << 10 };

struct server {
	struct event_base *base;
	struct evconnlistener *listener;
	struct event *ticker, *interrupt, *terminate;
	agentd_runner *runner;
	agentd_context *ctx;
	LIST_HEAD(, client) clients;
	uint64_t last_tick_ns, worst_late_ns;
	unsigned ticks, commands, running, most_running;
};

struct client {
	LIST_ENTRY(client) link;
	struct server *server;
	struct bufferevent *bev; /* NULL: the client is gone, its command is ending */
	agentd_exec *exec;       /* NULL: idle */
	bool paused[3];          /* by stream number */
	bool eof;                /* no more commands will come */
};

/* err by its address: arguments have no order, and rc is what sets it. */
static void must(int rc, agentd_error **err)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "server: %s\n", err ? agentd_error_message(*err) : agentd_strerror(rc));
	exit(1);
}

static void client_next(struct client *client);

static void client_free(struct client *client)
{
	if (client->bev)
		bufferevent_free(client->bev);
	LIST_REMOVE(client, link);
	free(client);
}

static void client_gone(struct client *client)
{
	bufferevent_free(client->bev);
	client->bev = NULL;
	if (client->exec)
		agentd_exec_cancel(client->exec); /* on_finished() frees the client */
	else
		client_free(client);
}

/* ---- callbacks of a command */

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct client *client = userdata;

	(void)exec;
	if (!client->bev)
		return AGENTD_SINK_CONTINUE;
	if (bufferevent_write(client->bev, data, len) < 0)
		return AGENTD_ERR_NOMEM;
	if (evbuffer_get_length(bufferevent_get_output(client->bev)) < SEND_HIGH)
		return AGENTD_SINK_CONTINUE;
	client->paused[stream] = true; /* on_written() resumes it */
	return AGENTD_SINK_PAUSE;
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct client *client = userdata;

	client->server->running--;
	client->exec = NULL;
	agentd_exec_unref(exec);
	if (!client->bev) {
		client_free(client);
		return;
	}
	memset(client->paused, 0, sizeof(client->paused));
	evbuffer_add_printf(bufferevent_get_output(client->bev), "[%s %d]\n",
			    agentd_status_name(agentd_result_status(result)),
			    agentd_result_exit_code(result));
	client_next(client);
}

static void client_start(struct client *client, const char *line)
{
	static const struct agentd_sink_ops ops = { .size = sizeof(ops),
						    .output = on_output,
						    .finished = on_finished };
	struct server *server = client->server;
	agentd_params *params = NULL;
	agentd_sink *sink = NULL;
	agentd_error *err = NULL;

	if (agentd_params_new_shell(line, 0, &params, &err) < 0 ||
	    agentd_sink_new(&ops, client, &sink, &err) < 0 ||
	    agentd_exec_start(server->runner, server->ctx, params, sink, NULL, &client->exec,
			      &err) < 0) {
		evbuffer_add_printf(bufferevent_get_output(client->bev), "[refused: %s]\n",
				    agentd_error_message(err));
		agentd_error_unref(err);
	} else {
		server->commands++;
		if (++server->running > server->most_running)
			server->most_running = server->running;
	}
	agentd_sink_unref(sink);
	agentd_params_unref(params);
}

/* ---- callbacks of a connection */

static void client_next(struct client *client)
{
	struct evbuffer *input = bufferevent_get_input(client->bev);
	char *line;

	while (!client->exec && (line = evbuffer_readln(input, NULL, EVBUFFER_EOL_CRLF))) {
		client_start(client, line);
		free(line);
	}
	if (client->exec)
		return;
	if (evbuffer_get_length(input) >= LINE_MAX_BYTES)
		client_gone(client);
	else if (client->eof && evbuffer_get_length(bufferevent_get_output(client->bev)) == 0)
		client_free(client);
}

static void on_readable(struct bufferevent *bev, void *userdata)
{
	(void)bev;
	client_next(userdata);
}

static void on_written(struct bufferevent *bev, void *userdata)
{
	struct client *client = userdata;

	(void)bev;
	for (agentd_stream stream = AGENTD_STDOUT; client->exec && stream <= AGENTD_STDERR;
	     stream++) {
		if (client->paused[stream]) {
			client->paused[stream] = false;
			agentd_exec_resume(client->exec, stream);
		}
	}
	client_next(client);
}

/* A client that only ends its input still gets its output; one that cannot be
 * written to ends its command. */
static void on_event(struct bufferevent *bev, short what, void *userdata)
{
	struct client *client = userdata;

	(void)bev;
	if (what & BEV_EVENT_ERROR) {
		client_gone(client);
	} else if (what & BEV_EVENT_EOF) {
		client->eof = true;
		client_next(client);
	}
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *addr,
		      int len, void *userdata)
{
	struct server *server = userdata;
	struct client *client = calloc(1, sizeof(*client));

	(void)listener;
	(void)addr;
	(void)len;
	if (!client) {
		evutil_closesocket(fd);
		return;
	}
	client->server = server;
	client->bev = bufferevent_socket_new(server->base, fd, BEV_OPT_CLOSE_ON_FREE);
	if (!client->bev) {
		evutil_closesocket(fd);
		free(client);
		return;
	}
	LIST_INSERT_HEAD(&server->clients, client, link);
	bufferevent_setcb(client->bev, on_readable, on_written, on_event, client);
	bufferevent_setwatermark(client->bev, EV_READ, 0, LINE_MAX_BYTES);
	bufferevent_setwatermark(client->bev, EV_WRITE, SEND_LOW, 0);
	bufferevent_enable(client->bev, EV_READ | EV_WRITE);
}

/* ---- the server itself */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

static void on_tick(evutil_socket_t fd, short what, void *userdata)
{
	struct server *server = userdata;
	uint64_t now = now_ns(), due = server->last_tick_ns + TICK_MS * 1000000U;

	(void)fd;
	(void)what;
	if (server->ticks++ > 0 && now > due && now - due > server->worst_late_ns)
		server->worst_late_ns = now - due;
	server->last_tick_ns = now;
}

static void on_gone(agentd_runner *runner, void *userdata)
{
	struct server *server = userdata;

	(void)runner;
	event_base_loopbreak(server->base);
}

/* The signals are the host's business; the library has no handler of its own. */
static void on_stop(evutil_socket_t signo, short what, void *userdata)
{
	struct server *server = userdata;

	(void)signo;
	(void)what;
	evconnlistener_disable(server->listener);
	if (agentd_runner_shutdown(server->runner, 1000, on_gone, server) < 0)
		fputs("server: already stopping\n", stderr);
}

static void server_listen(struct server *server, uint16_t port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_port = htons(port) };
	socklen_t len = sizeof(addr);

	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	server->listener = evconnlistener_new_bind(server->base, on_accept, server,
						   LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE |
							   LEV_OPT_CLOSE_ON_EXEC,
						   -1, (const struct sockaddr *)&addr,
						   sizeof(addr));
	if (!server->listener || getsockname(evconnlistener_get_fd(server->listener),
					     (struct sockaddr *)&addr, &len) < 0) {
		perror("server: listen");
		exit(1);
	}
	printf("listening on 127.0.0.1:%u\n", ntohs(addr.sin_port));
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static const struct timeval tick = { .tv_usec = TICK_MS * 1000 };
	struct agentd_runner_opts opts = { .size = sizeof(opts),
					   .max_running = 256,
					   .max_queued = 1024 };
	struct server server = { .base = event_base_new() };
	agentd_policy *policy = NULL;
	agentd_error *err = NULL;

	if (!server.base)
		return 1;
	signal(SIGPIPE, SIG_IGN);

	must(agentd_policy_new(&policy, &err), &err);
	must(agentd_policy_set_min_isolation(policy, AGENTD_ISOLATION_NONE, &err), &err);
	opts.event_base = server.base;
	opts.policy = policy;
	must(agentd_runner_new(&opts, &server.runner, &err), &err);
	must(agentd_context_new(&server.ctx, &err), &err);
	must(agentd_context_set_policy(server.ctx, policy, &err), &err);
	must(agentd_context_set_backend(server.ctx, "host", &err), &err);
	must(agentd_context_set_workdir(server.ctx, "/tmp", &err), &err);

	server_listen(&server, (uint16_t)(argc > 1 ? strtoul(argv[1], NULL, 10) : 0));
	server.ticker = event_new(server.base, -1, EV_PERSIST, on_tick, &server);
	server.interrupt = evsignal_new(server.base, SIGINT, on_stop, &server);
	server.terminate = evsignal_new(server.base, SIGTERM, on_stop, &server);
	if (!server.ticker || !server.interrupt || !server.terminate)
		return 1;
	event_add(server.ticker, &tick);
	event_add(server.interrupt, NULL);
	event_add(server.terminate, NULL);

	event_base_dispatch(server.base);

	printf("%u commands, up to %u at once; %u ticks, worst %.1f ms late\n", server.commands,
	       server.most_running, server.ticks, (double)server.worst_late_ns / 1e6);
	while (!LIST_EMPTY(&server.clients))
		client_free(LIST_FIRST(&server.clients));
	agentd_runner_unref(server.runner);
	agentd_context_unref(server.ctx);
	agentd_policy_unref(policy);
	evconnlistener_free(server.listener);
	event_free(server.ticker);
	event_free(server.interrupt);
	event_free(server.terminate);
	event_base_free(server.base);
	return 0;
}
