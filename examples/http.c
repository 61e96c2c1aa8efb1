/* SPDX-License-Identifier: MIT */
/* A host program whose event base serves HTTP: POST /run has a command as its body, which runs
 * in a sandbox with this program's working directory and no network; the reply is its output as
 * it comes, and then a line "[status code]". A client that reads slowly slows its command down,
 * one that goes away ends it.
 *
 *     http [PORT]      (on 127.0.0.1; 0, the default: any free port)
 *     curl --data-binary 'id; ls /' http://127.0.0.1:PORT/run
 */
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>

#include <arpa/inet.h>

#include <agentd/agentd.h>

enum { TIMEOUT_MS = 10000, SEND_HIGH = 256 << 10, COMMAND_MAX_BYTES = 64 << 10 };

struct server {
	struct event_base *base;
	struct evhttp *http;
	agentd_runner *runner;
	agentd_context *ctx;
};

/* One request and its command. */
struct job {
	struct evhttp_request *request; /* without a connection when the client has gone */
	struct evbuffer *chunk;
	agentd_exec *exec;
	bool paused[3]; /* by stream number */
};

/* err by its address: arguments have no order, and rc is what sets it. */
static void must(int rc, agentd_error **err)
{
	if (rc >= 0)
		return;
	fprintf(stderr, "http: %s\n", err ? agentd_error_message(*err) : agentd_strerror(rc));
	exit(1);
}

static void job_free(struct job *job)
{
	agentd_exec_unref(job->exec);
	if (job->chunk)
		evbuffer_free(job->chunk);
	free(job);
}

/* ---- callbacks of a connection */

static void on_written(struct evhttp_connection *connection, void *userdata)
{
	struct job *job = userdata;

	(void)connection;
	for (agentd_stream stream = AGENTD_STDOUT; stream <= AGENTD_STDERR; stream++) {
		if (job->paused[stream]) {
			job->paused[stream] = false;
			agentd_exec_resume(job->exec, stream);
		}
	}
}

static void on_closed(struct evhttp_connection *connection, void *userdata)
{
	struct job *job = userdata;

	(void)connection;
	agentd_exec_cancel(job->exec); /* on_finished() frees the job */
}

/* ---- callbacks of a command */

static int32_t on_output(agentd_exec *exec, agentd_stream stream, const uint8_t *data, size_t len,
			 void *userdata)
{
	struct job *job = userdata;
	struct evhttp_connection *connection = evhttp_request_get_connection(job->request);

	(void)exec;
	if (!connection)
		return AGENTD_SINK_CONTINUE;
	if (evbuffer_add(job->chunk, data, len) < 0)
		return AGENTD_ERR_NOMEM;
	evhttp_send_reply_chunk_with_cb(job->request, job->chunk, on_written, job);
	if (evbuffer_get_length(bufferevent_get_output(
		    evhttp_connection_get_bufferevent(connection))) < SEND_HIGH)
		return AGENTD_SINK_CONTINUE;
	job->paused[stream] = true; /* on_written() resumes it */
	return AGENTD_SINK_PAUSE;
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	struct job *job = userdata;
	struct evhttp_connection *connection = evhttp_request_get_connection(job->request);
	const agentd_error *err = agentd_result_error(result);

	(void)exec;
	if (connection)
		evhttp_connection_set_closecb(connection, NULL, NULL);
	if (err)
		evbuffer_add_printf(job->chunk, "%s\n", agentd_error_message(err));
	evbuffer_add_printf(job->chunk, "[%s %d]\n",
			    agentd_status_name(agentd_result_status(result)),
			    agentd_result_exit_code(result));
	evhttp_send_reply_chunk(job->request, job->chunk);
	evhttp_send_reply_end(job->request);
	job_free(job);
}

/* ---- requests */

/* NULL: no memory, or a NUL byte, which no command can have. */
static char *body_text(struct evhttp_request *request)
{
	struct evbuffer *body = evhttp_request_get_input_buffer(request);
	size_t len = evbuffer_get_length(body);
	char *text = calloc(1, len + 1);

	if (text)
		evbuffer_remove(body, text, len);
	if (text && memchr(text, '\0', len)) {
		free(text);
		return NULL;
	}
	return text;
}

static void on_run(struct evhttp_request *request, void *userdata)
{
	static const struct agentd_sink_ops ops = { .size = sizeof(ops),
						    .output = on_output,
						    .finished = on_finished };
	struct server *server = userdata;
	struct job *job = calloc(1, sizeof(*job));
	agentd_params *params = NULL;
	agentd_sink *sink = NULL;
	agentd_error *err = NULL;
	char *command = body_text(request);

	if (job)
		job->chunk = evbuffer_new();
	if (!job || !job->chunk || !command) {
		evhttp_send_error(request, HTTP_BADREQUEST, NULL);
	} else if (agentd_params_new_shell(command, TIMEOUT_MS, &params, &err) < 0 ||
		   agentd_sink_new(&ops, job, &sink, &err) < 0 ||
		   agentd_exec_start(server->runner, server->ctx, params, sink, NULL, &job->exec,
				     &err) < 0) {
		evhttp_send_error(request,
				  agentd_error_code(err) == AGENTD_ERR_INVALID ? HTTP_BADREQUEST :
										 HTTP_SERVUNAVAIL,
				  agentd_error_message(err));
	} else {
		job->request = request;
		evhttp_add_header(evhttp_request_get_output_headers(request), "Content-Type",
				  "application/octet-stream");
		/* From here on libevent sees when the client goes away. */
		evhttp_send_reply_start(request, HTTP_OK, "OK");
		evhttp_connection_set_closecb(evhttp_request_get_connection(request), on_closed,
					      job);
		job = NULL; /* on_finished() frees it */
	}
	if (job)
		job_free(job);
	agentd_error_unref(err);
	agentd_sink_unref(sink);
	agentd_params_unref(params);
	free(command);
}

/* ---- the server itself */

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
	if (agentd_runner_shutdown(server->runner, 1000, on_gone, server) < 0)
		fputs("http: already stopping\n", stderr);
}

static void server_listen(struct server *server, uint16_t port)
{
	struct sockaddr_in addr;
	socklen_t len = sizeof(addr);
	struct evhttp_bound_socket *bound;

	server->http = evhttp_new(server->base);
	bound = server->http ? evhttp_bind_socket_with_handle(server->http, "127.0.0.1", port) :
			       NULL;
	if (!bound ||
	    getsockname(evhttp_bound_socket_get_fd(bound), (struct sockaddr *)&addr, &len) < 0) {
		perror("http: listen");
		exit(1);
	}
	evhttp_set_allowed_methods(server->http, EVHTTP_REQ_POST);
	evhttp_set_max_body_size(server->http, COMMAND_MAX_BYTES);
	evhttp_set_cb(server->http, "/run", on_run, server);
	printf("listening on 127.0.0.1:%u\n", ntohs(addr.sin_port));
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct agentd_runner_opts opts = { .size = sizeof(opts), .max_running = 64 };
	struct server server = { .base = event_base_new() };
	struct event *interrupt, *terminate;
	agentd_policy *policy = NULL;
	agentd_error *err = NULL;
	char *cwd = getcwd(NULL, 0);

	if (!server.base || !cwd)
		return 1;
	signal(SIGPIPE, SIG_IGN);

	must(agentd_policy_new(&policy, &err), &err); /* asks for a sandbox, without a network */
	must(agentd_policy_allow_path(policy, "/usr", AGENTD_ACCESS_READ | AGENTD_ACCESS_EXEC,
				      &err),
	     &err);
	opts.event_base = server.base;
	opts.policy = policy;
	must(agentd_runner_new(&opts, &server.runner, &err), &err);
	must(agentd_context_new(&server.ctx, &err), &err);
	must(agentd_context_set_policy(server.ctx, policy, &err), &err);
	must(agentd_context_set_workdir(server.ctx, cwd, &err), &err);

	server_listen(&server, (uint16_t)(argc > 1 ? strtoul(argv[1], NULL, 10) : 0));
	interrupt = evsignal_new(server.base, SIGINT, on_stop, &server);
	terminate = evsignal_new(server.base, SIGTERM, on_stop, &server);
	if (!interrupt || !terminate)
		return 1;
	event_add(interrupt, NULL);
	event_add(terminate, NULL);
	event_base_dispatch(server.base);

	agentd_context_unref(server.ctx);
	agentd_runner_unref(server.runner);
	agentd_policy_unref(policy);
	evhttp_free(server.http);
	event_free(interrupt);
	event_free(terminate);
	event_base_free(server.base);
	free(cwd);
	return 0;
}
