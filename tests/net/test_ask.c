/* SPDX-License-Identifier: MIT */
/* agentd_context_set_ask() and agentd_task_attach_net(), through the public interface: a
 * backend whose command is nothing but its network. Who is allowed gets as far as a name
 * server that nobody runs (502), who is not is told so (403). */
#include <arpa/inet.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <check.h>
#include <event2/event.h>

#include <agentd/agentd.h>
#include <agentd/backend.h>

static struct {
	struct event_base *base;
	agentd_runner *runner;
	agentd_context *ctx;
	agentd_params *params;
	agentd_sink *sink;
	agentd_exec *exec;
	agentd_task *task;
	int port, attached, second;
	bool one_by_one; /* the backend hands over connections, not a listening socket */
	int early;       /* what was said to one before the start */
	/* questions */
	int32_t answer; /* -1: not now, -2: never */
	agentd_ask *kept;
	int asked, destroyed;
	char host[64];
	int32_t asked_port;
	bool finished;
} t;

/* ---- the backend */

static int listen_somewhere(int *ret_port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, len), 0);
	ck_assert_int_eq(listen(fd, 16), 0);
	ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&addr, &len), 0);
	*ret_port = ntohs(addr.sin_port);
	return fd;
}

/* One end of a connection to the library; *ret is the client's. */
static int client_hand_over(int *ret)
{
	int ends[2], r;

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	*ret = ends[0];
	r = agentd_task_attach_net_client(t.task, ends[1]);
	/* Taken whatever comes of it; what serves it may have its number, or another. */
	ck_assert(r == 0 || fcntl(ends[1], F_GETFD) < 0);
	return r;
}

static int32_t net_open(void *userdata, struct event_base *base, void **ret_self)
{
	(void)base;
	*ret_self = userdata;
	return 0;
}

static void net_close(void *self)
{
	(void)self;
}

static int32_t net_probe(void *self, agentd_backend_report *report)
{
	(void)self;
	agentd_backend_report_done(report, NULL);
	return 0;
}

static int32_t net_start(void *self, agentd_task *task, const agentd_spec *spec, void **ret_state,
			 agentd_error **reterr)
{
	int other, fd;

	(void)self;
	(void)spec;
	(void)reterr;
	t.task = *ret_state = task;
	if (t.one_by_one) {
		t.early = client_hand_over(&fd);
		ck_assert_int_eq(recv(fd, &other, 1, 0), 0);
		close(fd);
		agentd_task_started(task, 0);
		return 0;
	}
	t.attached = agentd_task_attach_net(task, listen_somewhere(&t.port));
	/* Once, and taken whatever comes of it. */
	fd = listen_somewhere(&other);
	t.second = agentd_task_attach_net(task, fd);
	ck_assert_int_lt(fcntl(fd, F_GETFD), 0);
	agentd_task_started(task, 0);
	return 0;
}

static int32_t net_kill(void *state)
{
	agentd_task_exited(state, 0, 0);
	agentd_task_closed(state);
	return 0;
}

static void net_free(void *state)
{
	(void)state;
}

static const struct agentd_backend_ops ops = {
	.size = sizeof(ops),
	.abi = AGENTD_BACKEND_ABI,
	.name = "net",
	.isolation = AGENTD_ISOLATION_SANDBOX,
	.open = net_open,
	.close = net_close,
	.probe_start = net_probe,
	.task_start = net_start,
	.task_kill = net_kill,
	.task_free = net_free,
};

/* ---- around it */

static void on_ask(agentd_ask *ask, void *userdata)
{
	ck_assert_ptr_eq(userdata, &t);
	t.asked++;
	snprintf(t.host, sizeof(t.host), "%s", agentd_ask_host(ask));
	t.asked_port = agentd_ask_port(ask);
	ck_assert_ptr_eq(agentd_ask_exec(ask), t.exec);
	if (t.answer == -1)
		t.kept = agentd_ask_ref(ask);
	else if (t.answer != -2)
		ck_assert_int_eq(agentd_ask_answer(ask, t.answer, NULL), 0);
}

static void on_destroy(void *userdata)
{
	ck_assert_ptr_eq(userdata, &t);
	t.destroyed++;
}

static void on_finished(agentd_exec *exec, agentd_result *result, void *userdata)
{
	uint64_t count;

	(void)exec;
	(void)userdata;
	ck_assert_int_eq(agentd_result_metric(result, AGENTD_METRIC_NET_CONNECTIONS, &count), 0);
	t.finished = true;
}

static void begin(uint32_t timeout_ms, int32_t fallback)
{
	static const struct agentd_sink_ops sink_ops = { .size = sizeof(sink_ops),
							 .finished = on_finished };
	static const char *const argv[] = { "x", NULL };
	struct agentd_ask_opts ask = { .size = sizeof(ask),
				       .timeout_ms = timeout_ms,
				       .fallback = fallback,
				       .ask = on_ask,
				       .userdata = &t,
				       .destroy = on_destroy };
	struct agentd_runner_opts opts = { .size = sizeof(opts), .net_resolver = "127.0.0.1:9" };
	static const char policy_json[] = "{\"net\":{\"mode\":\"allow\",\"deny\":[\"no.test\"]}}";
	agentd_policy *policy = NULL;

	memset(&t, 0, sizeof(t));
	t.base = event_base_new();
	ck_assert_int_eq(agentd_policy_from_json(policy_json, strlen(policy_json), &policy, NULL),
			 0);
	opts.event_base = t.base;
	opts.policy = policy;
	ck_assert_int_eq(agentd_runner_new(&opts, &t.runner, NULL), 0);
	ck_assert_int_eq(agentd_runner_add_backend(t.runner, &ops, NULL, NULL), 0);
	ck_assert_int_eq(agentd_context_new(&t.ctx, NULL), 0);
	ck_assert_int_eq(agentd_context_set_policy(t.ctx, policy, NULL), 0);
	ck_assert_int_eq(agentd_context_set_backend(t.ctx, "net", NULL), 0);
	ck_assert_int_eq(agentd_context_set_workdir(t.ctx, "/", NULL), 0);
	ck_assert_int_eq(agentd_context_set_ask(t.ctx, &ask, NULL), 0);
	ck_assert_int_eq(agentd_params_new_argv(argv, 60000, &t.params, NULL), 0);
	ck_assert_int_eq(agentd_sink_new(&sink_ops, NULL, &t.sink, NULL), 0);
	agentd_policy_unref(policy);
}

static void turn(void)
{
	event_base_loop(t.base, EVLOOP_NONBLOCK);
	usleep(1000);
}

static void start(void)
{
	t.task = NULL;
	t.finished = false;
	ck_assert_int_eq(agentd_exec_start(t.runner, t.ctx, t.params, t.sink, NULL, &t.exec, NULL),
			 0);
	while (!t.task)
		turn();
	ck_assert_int_eq(t.attached, 0);
	ck_assert_int_eq(t.one_by_one ? t.early : t.second,
			 t.one_by_one ? AGENTD_ERR_INVALID : AGENTD_ERR_STATE);
}

static void stop(void)
{
	agentd_exec_kill(t.exec);
	while (!t.finished)
		turn();
	agentd_exec_unref(t.exec);
}

static void set_true(agentd_runner *runner, void *userdata)
{
	(void)runner;
	*(bool *)userdata = true;
}

static void end(void)
{
	bool done = false;

	ck_assert_int_eq(agentd_runner_shutdown(t.runner, 0, set_true, &done), 0);
	while (!done)
		turn();
	agentd_runner_unref(t.runner);
	agentd_sink_unref(t.sink);
	agentd_params_unref(t.params);
	ck_assert_int_eq(t.destroyed, 0);
	agentd_context_unref(t.ctx);
	ck_assert_int_eq(t.destroyed, 1);
	event_base_free(t.base);
}

static void client_ask(int fd, const char *host)
{
	char text[128];

	snprintf(text, sizeof(text), "CONNECT %s:443 HTTP/1.1\r\n\r\n", host);
	ck_assert_int_eq(send(fd, text, strlen(text), 0), (ssize_t)strlen(text));
}

static int client_new(const char *host)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_port = htons((uint16_t)t.port),
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	ck_assert_int_eq(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	client_ask(fd, host);
	return fd;
}

/* The status of the answer; closes fd. */
static int status_of(int fd)
{
	char text[16] = "";
	ssize_t n = -1;

	for (int i = 0; i < 10000 && n < 0; i++) {
		turn();
		n = recv(fd, text, 12, MSG_DONTWAIT);
	}
	close(fd);
	ck_assert_int_eq(n, 12);
	return atoi(text + 9);
}

/* ---- tests */

START_TEST(deny)
{
	begin(0, AGENTD_ASK_ONCE);
	start();
	t.answer = AGENTD_ASK_DENY;
	ck_assert_int_eq(status_of(client_new("Ask.Test.")), 403);
	ck_assert_int_eq(t.asked, 1);
	ck_assert_str_eq(t.host, "ask.test");
	ck_assert_int_eq(t.asked_port, 443);
	/* What a rule denies, and what only a rule can allow. */
	ck_assert_int_eq(status_of(client_new("no.test")), 403);
	ck_assert_int_eq(status_of(client_new("127.0.0.1")), 403);
	ck_assert_int_eq(t.asked, 1);
	stop();
	end();
}
END_TEST

START_TEST(once)
{
	begin(0, AGENTD_ASK_DENY);
	start();
	t.answer = AGENTD_ASK_ONCE;
	for (int i = 1; i < 4; i++) {
		ck_assert_int_eq(status_of(client_new("ask.test")), 502);
		ck_assert_int_eq(t.asked, i);
	}
	stop();
	end();
}
END_TEST

START_TEST(for_this_context)
{
	begin(0, AGENTD_ASK_DENY);
	start();
	t.answer = AGENTD_ASK_CONTEXT;
	ck_assert_int_eq(status_of(client_new("ask.test")), 502);
	t.answer = AGENTD_ASK_DENY;
	ck_assert_int_eq(status_of(client_new("ask.test")), 502);
	ck_assert_int_eq(status_of(client_new("other.test")), 403);
	stop();
	/* The next command as well, also when the context was changed in between. */
	ck_assert_int_eq(agentd_context_set_trace_id(t.ctx, "x", NULL), 0);
	start();
	ck_assert_int_eq(status_of(client_new("ask.test")), 502);
	ck_assert_int_eq(t.asked, 2);
	stop();
	end();
}
END_TEST

START_TEST(later)
{
	int first, second;

	begin(0, AGENTD_ASK_DENY);
	start();
	t.answer = -1;
	first = client_new("ask.test");
	second = client_new("ask.test");
	for (int i = 0; i < 50; i++)
		turn();
	ck_assert_int_eq(t.asked, 1);
	ck_assert_int_eq(agentd_ask_answer(t.kept, 3, NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_ask_answer(t.kept, AGENTD_ASK_ONCE, NULL), 0);
	ck_assert_ptr_null(agentd_ask_exec(t.kept));
	ck_assert_int_eq(agentd_ask_answer(t.kept, AGENTD_ASK_ONCE, NULL), AGENTD_ERR_STATE);
	ck_assert_int_eq(status_of(first), 502);
	ck_assert_int_eq(status_of(second), 502);
	agentd_ask_unref(t.kept);
	/* Over with its command. */
	first = client_new("ask.test");
	while (t.asked < 2)
		turn();
	stop();
	ck_assert_int_eq(agentd_ask_answer(t.kept, AGENTD_ASK_ONCE, NULL), AGENTD_ERR_STATE);
	ck_assert_str_eq(agentd_ask_host(t.kept), "ask.test");
	agentd_ask_unref(t.kept);
	close(first);
	end();
}
END_TEST

START_TEST(no_answer)
{
	begin(50, _i == 0 ? AGENTD_ASK_DENY : AGENTD_ASK_ONCE);
	start();
	t.answer = -1;
	ck_assert_int_eq(status_of(client_new("ask.test")), _i == 0 ? 403 : 502);
	ck_assert_int_eq(t.asked, 1);
	stop();
	agentd_ask_unref(t.kept);
	end();
}
END_TEST

/* A command may ask without end: what nobody can answer any more is not kept. */
START_TEST(questions_without_end)
{
	enum { QUESTIONS = 200, EACH_MAX = 50 };
	char host[64];
	size_t before = 0;

	begin(1, AGENTD_ASK_DENY);
	start();
	t.answer = -2;
	for (int i = 0; i < 2 * QUESTIONS; i++) {
		if (i == QUESTIONS)
			before = mallinfo2().uordblks;
		snprintf(host, sizeof(host), "%d.ask.test", i);
		ck_assert_int_eq(status_of(client_new(host)), 403);
	}
	ck_assert_uint_lt(mallinfo2().uordblks, before + (size_t)QUESTIONS * EACH_MAX);
	ck_assert_int_eq(t.asked, 2 * QUESTIONS);
	stop();
	end();
}
END_TEST

START_TEST(bad_arguments)
{
	struct agentd_ask_opts opts = { .size = sizeof(opts), .destroy = on_destroy };
	agentd_context *ctx = NULL;

	memset(&t, 0, sizeof(t));
	ck_assert_int_eq(agentd_context_new(&ctx, NULL), 0);
	ck_assert_int_eq(agentd_context_set_ask(NULL, &opts, NULL), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_context_set_ask(ctx, &opts, NULL), AGENTD_ERR_INVALID);
	opts.ask = on_ask;
	opts.fallback = AGENTD_ASK_CONTEXT;
	ck_assert_int_eq(agentd_context_set_ask(ctx, &opts, NULL), AGENTD_ERR_INVALID);
	opts.fallback = AGENTD_ASK_DENY;
	opts.reserved0 = 1;
	ck_assert_int_eq(agentd_context_set_ask(ctx, &opts, NULL), AGENTD_ERR_ABI);
	opts.reserved0 = 0;
	opts.size = 8;
	ck_assert_int_eq(agentd_context_set_ask(ctx, &opts, NULL), AGENTD_ERR_ABI);
	ck_assert_int_eq(agentd_context_set_ask(ctx, NULL, NULL), 0);
	ck_assert_int_eq(t.destroyed, 0);
	agentd_context_unref(ctx);
	ck_assert_int_eq(agentd_ask_answer(NULL, 0, NULL), AGENTD_ERR_INVALID);
	ck_assert_str_eq(agentd_ask_host(NULL), "");
	ck_assert_int_eq(agentd_ask_port(NULL), 0);
	ck_assert_ptr_null(agentd_ask_exec(NULL));
	ck_assert_ptr_null(agentd_ask_ref(NULL));
	agentd_ask_unref(NULL);
	ck_assert_int_eq(agentd_task_attach_net(NULL, -1), AGENTD_ERR_INVALID);
	ck_assert_int_eq(agentd_task_attach_net_client(NULL, -1), AGENTD_ERR_INVALID);
}
END_TEST

/* A backend whose commands are in another machine: not before the start, each served like
 * one that was accepted, and no more than there may be. */
START_TEST(one_by_one)
{
	enum { DESCRIPTORS = 64, MOST = DESCRIPTORS / 4 };
	struct rlimit old, few;
	int clients[MOST + 1];
	char byte;

	begin(0, AGENTD_ASK_DENY);
	t.one_by_one = true;
	t.answer = AGENTD_ASK_ONCE;
	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &old), 0);
	few = old;
	few.rlim_cur = DESCRIPTORS;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	start();
	ck_assert_int_eq(client_hand_over(&clients[0]), 0);
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &old), 0);
	client_ask(clients[0], "ask.test");
	ck_assert_int_eq(status_of(clients[0]), 502);
	ck_assert_int_eq(t.asked, 1);
	ck_assert_int_eq(client_hand_over(&clients[0]), 0);
	client_ask(clients[0], "no.test");
	ck_assert_int_eq(status_of(clients[0]), 403);
	/* Those are not over before the proxy has seen their end. */
	for (int i = 0; i < 10; i++)
		turn();
	for (int i = 0; i < MOST; i++)
		ck_assert_int_eq(client_hand_over(&clients[i]), 0);
	ck_assert_int_eq(client_hand_over(&clients[MOST]), AGENTD_ERR_LIMIT);
	ck_assert_int_eq(recv(clients[MOST], &byte, 1, 0), 0);
	stop();
	for (int i = 0; i <= MOST; i++) {
		ck_assert_int_eq(recv(clients[i], &byte, 1, 0), 0);
		close(clients[i]);
	}
	end();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("ask");
	TCase *tc = tcase_create("ask");
	SRunner *runner;
	int failed;

	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, deny);
	tcase_add_test(tc, once);
	tcase_add_test(tc, for_this_context);
	tcase_add_test(tc, later);
	tcase_add_loop_test(tc, no_answer, 0, 2);
	tcase_add_test(tc, questions_without_end);
	tcase_add_test(tc, bad_arguments);
	tcase_add_test(tc, one_by_one);
	suite_add_tcase(suite, tc);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
