/* SPDX-License-Identifier: MIT */
/* The proxy of a network of allowed hosts: its throughput beside the least that a relay can
 * do, what tunnels cost, what timers of the host program's notice, and what a command pays
 * for having such a network.
 *
 *     bench_net [--quick]
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <event2/event.h>

#include <agentd/backend.h>

#include "bench.h"

enum { PIECE = 256 * 1024, TUNNELS = 500 };

/* ---- sockets */

static int listen_somewhere(int *ret_port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, len) < 0 || listen(fd, 1024) < 0 ||
	    getsockname(fd, (struct sockaddr *)&addr, &len) < 0)
		bench_fail("a listening socket", strerror(errno));
	*ret_port = ntohs(addr.sin_port);
	return fd;
}

static int connect_to(int port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_port = htons((uint16_t)port),
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		bench_fail("connect", strerror(errno));
	return fd;
}

/* Through the proxy there. */
static int tunnel_to(int proxy, int port)
{
	static const char established[] = "HTTP/1.1 200 Connection established\r\n\r\n";
	char text[128];
	int fd = connect_to(proxy), len;

	len = snprintf(text, sizeof(text), "CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n", port);
	if (send(fd, text, (size_t)len, 0) != len ||
	    recv(fd, text, sizeof(established) - 1, MSG_WAITALL) != sizeof(established) - 1 ||
	    memcmp(text, established, sizeof(established) - 1) != 0)
		bench_fail("CONNECT", "refused");
	return fd;
}

/* A process that ends with this one, or sooner. */
static int start(void (*fn)(const int *args), const int *args)
{
	int pid = fork();

	if (pid < 0)
		bench_fail("fork", strerror(errno));
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		fn(args);
		_exit(0);
	}
	return pid;
}

static void end(int pid)
{
	kill(pid, SIGKILL);
	bench_wait(pid);
}

/* ---- load: sinks and sources */

/* Takes what comes to a listening socket on any number of connections, and tells its
 * bytes whenever it is asked through a pipe. args: listener, asked, answers. */
static void sink(const int *args)
{
	static char piece[PIECE];
	struct epoll_event event = { .events = EPOLLIN, .data.fd = args[0] }, events[64];
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	uint64_t bytes = 0;

	epoll_ctl(epoll, EPOLL_CTL_ADD, args[0], &event);
	event.data.fd = args[1];
	epoll_ctl(epoll, EPOLL_CTL_ADD, args[1], &event);
	for (;;) {
		int count = epoll_wait(epoll, events, 64, -1);

		for (int i = 0; i < count; i++) {
			int fd = events[i].data.fd;
			ssize_t n;

			if (fd == args[0]) {
				event.data.fd = accept4(fd, NULL, NULL, SOCK_NONBLOCK);
				epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event);
				continue;
			}
			n = read(fd, piece, fd == args[1] ? 1 : sizeof(piece));
			if (fd == args[1]) {
				if (n <= 0 || write(args[2], &bytes, sizeof(bytes)) < 0)
					_exit(0);
			} else if (n > 0) {
				bytes += (uint64_t)n;
			} else if (n == 0) {
				close(fd);
			}
		}
	}
}

/* Sends for ever. args: proxy (0: none), port. */
static void source(const int *args)
{
	static char piece[PIECE];
	int fd = args[0] ? tunnel_to(args[0], args[1]) : connect_to(args[1]);

	while (send(fd, piece, sizeof(piece), MSG_NOSIGNAL) > 0)
		;
}

/* Tunnels; tells when they are there. args: proxy, port, told, busy. */
static void crowd(const int *args)
{
	static char piece[PIECE];
	static struct pollfd fds[TUNNELS];

	for (int i = 0; i < TUNNELS; i++) {
		fds[i].fd = tunnel_to(args[0], args[1]);
		fds[i].events = POLLOUT;
		fcntl(fds[i].fd, F_SETFL, O_NONBLOCK);
	}
	if (write(args[2], "", 1) != 1)
		_exit(1);
	while (args[3]) {
		poll(fds, TUNNELS, -1);
		for (int i = 0; i < TUNNELS; i++) {
			if (fds[i].revents)
				send(fds[i].fd, piece, 16384, MSG_NOSIGNAL);
		}
	}
	pause();
}

/* The least there is between two sockets. args: listener, port. */
static void splice_relay(const int *args)
{
	for (;;) {
		int from = accept4(args[0], NULL, NULL, SOCK_CLOEXEC), to = connect_to(args[1]);
		int pipes[2];
		ssize_t n;

		if (pipe2(pipes, O_CLOEXEC) < 0)
			_exit(1);
		while ((n = splice(from, NULL, pipes[1], NULL, 65536, SPLICE_F_MOVE)) > 0) {
			while (n > 0) {
				ssize_t out = splice(pipes[0], NULL, to, NULL, (size_t)n,
						     SPLICE_F_MOVE);

				if (out <= 0)
					_exit(1);
				n -= out;
			}
		}
		close(from);
		close(to);
		close(pipes[0]);
		close(pipes[1]);
	}
}

/* ---- a backend whose command is nothing but its network: what anybody could write */

static agentd_task *net_task;
static int net_listener;

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
	(void)self;
	(void)spec;
	(void)reterr;
	net_task = task;
	*ret_state = task;
	if (agentd_task_attach_net(task, net_listener) < 0)
		bench_fail("agentd_task_attach_net", "failed");
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

static const struct agentd_backend_ops net_ops = {
	.size = sizeof(net_ops),
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

struct proxy {
	struct event_base *base;
	agentd_runner *runner;
	agentd_exec *exec;
	int port;
};

static void proxy_open(struct proxy *proxy)
{
	struct agentd_runner_opts opts = { .size = sizeof(opts) };
	struct event_config *config = event_config_new();
	agentd_context *ctx = NULL;
	agentd_params *params = NULL;
	agentd_policy *policy = NULL;
	agentd_sink *sink_ = NULL;
	agentd_error *err = NULL;

	event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
	proxy->base = event_base_new_with_config(config);
	event_config_free(config);
	bench_must(agentd_policy_new(&policy, &err), "policy", &err);
	bench_must(agentd_policy_set_net(policy, AGENTD_NET_ALLOWLIST, &err), "net", &err);
	bench_must(agentd_policy_allow_host(policy, "127.0.0.1", 0, 0, &err), "host", &err);
	opts.event_base = proxy->base;
	opts.policy = policy;
	bench_must(agentd_runner_new(&opts, &proxy->runner, &err), "runner", &err);
	bench_must(agentd_runner_add_backend(proxy->runner, &net_ops, NULL, &err), "backend", &err);
	bench_must(agentd_context_new(&ctx, &err), "context", &err);
	bench_must(agentd_context_set_policy(ctx, policy, &err), "policy", &err);
	bench_must(agentd_context_set_backend(ctx, "net", &err), "backend", &err);
	bench_must(agentd_context_set_workdir(ctx, "/", &err), "workdir", &err);
	bench_must(agentd_params_new_shell(":", 3600000, &params, &err), "params", &err);
	bench_must(agentd_sink_new_buffer(16, 16, &sink_, &err), "sink", &err);
	net_listener = listen_somewhere(&proxy->port);
	bench_must(agentd_exec_start(proxy->runner, ctx, params, sink_, NULL, &proxy->exec, &err),
		   "start", &err);
	while (!net_task)
		event_base_loop(proxy->base, EVLOOP_ONCE);
	agentd_sink_unref(sink_);
	agentd_params_unref(params);
	agentd_context_unref(ctx);
	agentd_policy_unref(policy);
}

static void shut_down(agentd_runner *runner, void *userdata)
{
	(void)runner;
	*(bool *)userdata = true;
}

static void proxy_close(struct proxy *proxy)
{
	bool done = false;

	agentd_exec_kill(proxy->exec);
	agentd_runner_shutdown(proxy->runner, 0, shut_down, &done);
	while (!done)
		event_base_loop(proxy->base, EVLOOP_ONCE);
	agentd_exec_unref(proxy->exec);
	agentd_runner_unref(proxy->runner);
	event_base_free(proxy->base);
}

static void turn_for(struct event_base *base, unsigned int ms)
{
	const struct timeval wait = { .tv_sec = ms / 1000, .tv_usec = (long)(ms % 1000) * 1000 };

	event_base_loopexit(base, &wait);
	event_base_loop(base, 0);
}

/* ---- throughput */

struct receiver {
	int pid, port, asked, answers;
};

static void receiver_open(struct receiver *receiver)
{
	int asked[2], answers[2], listener = listen_somewhere(&receiver->port);

	if (pipe2(asked, O_CLOEXEC) < 0 || pipe2(answers, O_CLOEXEC) < 0)
		bench_fail("pipe2", strerror(errno));
	receiver->pid = start(sink, (int[]){ listener, asked[0], answers[1] });
	close(listener);
	close(asked[0]);
	close(answers[1]);
	receiver->asked = asked[1];
	receiver->answers = answers[0];
}

static uint64_t received(const struct receiver *receiver)
{
	uint64_t bytes = 0;

	if (write(receiver->asked, "", 1) != 1 ||
	    read(receiver->answers, &bytes, sizeof(bytes)) != sizeof(bytes))
		bench_fail("a sink", "ended");
	return bytes;
}

static void receiver_close(struct receiver *receiver)
{
	close(receiver->asked);
	close(receiver->answers);
	end(receiver->pid);
}

/* Both are measured with the same source and sink. base NULL: the relay is a process. */
static void throughput(struct event_base *base, const int *source_args,
		       const struct receiver *receiver, unsigned int ms,
		       struct bench_samples *samples)
{
	int pid = start(source, source_args);
	uint64_t bytes = 0, begin = 0;

	for (int i = 0; i < 2; i++) {
		unsigned int wait = i == 0 ? 100 : ms; /* the first is for it to get going */

		bytes = received(receiver);
		begin = bench_now_ns();
		if (base)
			turn_for(base, wait);
		else
			bench_sleep_ms(wait);
	}
	bench_sample(samples,
		     (double)(received(receiver) - bytes) / (double)(bench_now_ns() - begin));
	end(pid);
	if (base)
		turn_for(base, 20);
}

static void bench_throughput(struct proxy *proxy, const struct receiver *receiver,
			     unsigned int slices, unsigned int ms)
{
	const char *const subjects[] = { "splice relay", "agentd, CONNECT" };
	struct bench_samples samples[2] = { 0 };
	int relay_port, listener = listen_somewhere(&relay_port);
	int relay = start(splice_relay, (int[]){ listener, receiver->port });

	close(listener);
	for (unsigned int i = 0; i < slices; i++) {
		throughput(NULL, (int[]){ 0, relay_port }, receiver, ms, &samples[0]);
		throughput(proxy->base, (int[]){ proxy->port, receiver->port }, receiver, ms,
			   &samples[1]);
	}
	end(relay);
	for (size_t i = 0; i < BENCH_COUNT(subjects); i++)
		bench_print(&(struct bench_row){ .bench = "net",
						 .where = "one connection",
						 .subject = subjects[i],
						 .metric = "throughput",
						 .unit = "GB/s",
						 .more_is_better = true },
			    &samples[i]);
}

/* ---- many tunnels */

static uint64_t own_memory(void)
{
	static const char *const names[] = { "Anonymous:", NULL };

	/* What was freed earlier would be taken first. */
	malloc_trim(0);
	return bench_proc_kb("/proc/self/smaps_rollup", names);
}

static void on_told(evutil_socket_t fd, short what, void *userdata)
{
	char c;

	(void)what;
	if (read(fd, &c, 1) != 1)
		bench_fail("500 tunnels", "were not opened");
	event_base_loopbreak(userdata);
}

/* A crowd and its tunnels; the process. */
static int crowd_open(struct proxy *proxy, int port, bool busy)
{
	struct event *event;
	int told[2], pid;

	if (pipe2(told, O_CLOEXEC) < 0)
		bench_fail("pipe2", strerror(errno));
	pid = start(crowd, (int[]){ proxy->port, port, told[1], busy });
	close(told[1]);
	event = event_new(proxy->base, told[0], EV_READ, on_told, proxy->base);
	event_add(event, NULL);
	event_base_loop(proxy->base, 0);
	event_free(event);
	close(told[0]);
	return pid;
}

static void bench_crowd(struct proxy *proxy, const struct receiver *receiver, unsigned int ms)
{
	struct bench_samples memory = { 0 }, stuck = { 0 }, lateness = { 0 };
	struct bench_ticker ticker;
	int deaf_port, deaf = listen_somewhere(&deaf_port), pid;
	uint64_t before = own_memory();

	pid = crowd_open(proxy, receiver->port, false);
	bench_sample(&memory, (double)(own_memory() - before) / TUNNELS / 1024);
	end(pid);
	turn_for(proxy->base, 200);
	/* Nobody takes what they send. */
	pid = crowd_open(proxy, deaf_port, true);
	turn_for(proxy->base, ms);
	bench_sample(&stuck, (double)(own_memory() - before) / TUNNELS / 1024);
	end(pid);
	close(deaf);
	turn_for(proxy->base, 200);
	pid = crowd_open(proxy, receiver->port, true);
	turn_for(proxy->base, 100);
	bench_ticker_start(&ticker, proxy->base, &lateness);
	turn_for(proxy->base, ms);
	bench_ticker_stop(&ticker);
	end(pid);
	turn_for(proxy->base, 200);
	bench_print(&(struct bench_row){ .bench = "net",
					 .where = "500 tunnels",
					 .subject = "agentd, CONNECT",
					 .metric = "memory of the host program, each, idle",
					 .unit = "KiB" },
		    &memory);
	bench_print(&(struct bench_row){ .bench = "net",
					 .where = "500 tunnels",
					 .subject = "agentd, CONNECT",
					 .metric = "memory of the host program, each, stuck",
					 .unit = "KiB" },
		    &stuck);
	bench_print(&(struct bench_row){ .bench = "net",
					 .where = "500 tunnels",
					 .subject = "agentd, CONNECT",
					 .metric = "lateness of a timer, all busy",
					 .unit = "us" },
		    &lateness);
}

/* ---- what a command pays */

static void bench_start(unsigned int runs)
{
	static const char *const subjects[] = { "agentd, sandbox",
						"agentd, sandbox, allowed hosts" };
	const char *const argv[] = { BENCH_STATIC_TRUE, NULL };
	struct bench_runner runners[2];
	struct bench_samples samples[2] = { 0 };

	for (size_t i = 0; i < 2; i++) {
		bench_runner_open_net(&runners[i], i == 0 ? AGENTD_NET_NONE : AGENTD_NET_ALLOWLIST);
		bench_runner_set_argv(&runners[i], argv);
		bench_runner_run(&runners[i]);
	}
	for (unsigned int run = 0; run < runs; run++) {
		for (size_t i = 0; i < 2; i++) {
			uint64_t begin = bench_now_ns();

			bench_runner_run(&runners[i]);
			bench_sample_since(&samples[i], begin);
		}
	}
	for (size_t i = 0; i < 2; i++) {
		bench_print(&(struct bench_row){ .bench = "net",
						 .where = "static true",
						 .subject = subjects[i],
						 .metric = "start to finish",
						 .unit = "us" },
			    &samples[i]);
		bench_runner_close(&runners[i]);
	}
}

int main(int argc, char **argv)
{
	bool quick = bench_init(argc, argv);
	struct receiver receiver;
	struct proxy proxy;

	receiver_open(&receiver);
	proxy_open(&proxy);
	bench_throughput(&proxy, &receiver, quick ? 1 : 7, quick ? 100 : 700);
	bench_crowd(&proxy, &receiver, quick ? 200 : 3000);
	proxy_close(&proxy);
	receiver_close(&receiver);
	bench_start(quick ? 10 : 400);
	bench_exit();
	return 0;
}
