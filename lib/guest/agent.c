/* SPDX-License-Identifier: MIT */
#include "guest/guest.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	TICK_MS = 50,
	/* The other side is there already, but the machine hears of it only after the port. */
	CONNECT_MS = 10000,
	READ_SIZE = 64 * 1024
};

static struct {
	int epoll;
	struct watch port, signals;
	struct ad_guest_link *link;
	struct fault fault; /* why nothing can run here */
} agent;

struct ad_guest_link *agent_link(void)
{
	return agent.link;
}

/* ---- descriptors */

void watch_for(struct watch *watch, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = watch };
	/* Hang-ups would be reported to who waits for nothing. */
	int op = events == 0 ? EPOLL_CTL_DEL : watch->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;

	if (watch->events == events)
		return;
	if (epoll_ctl(agent.epoll, op, watch->fd, &event) < 0)
		give_up("epoll_ctl: %s", strerror(errno));
	watch->events = events;
}

void watch_close(struct watch *watch)
{
	if (watch->fd < 0)
		return;
	watch_for(watch, 0);
	close(watch->fd);
	watch->fd = -1;
}

/* ---- the link */

static void broken(void)
{
	give_up("%s", ad_guest_link_error(agent.link));
}

/* Send what can be sent now. */
static void flush(void)
{
	const uint8_t *data;
	size_t len;

	while ((data = ad_guest_link_peek(agent.link, &len))) {
		ssize_t n = write(agent.port.fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		ad_guest_link_sent(agent.link, (size_t)n);
	}
	if (ad_guest_link_error(agent.link))
		broken();
	watch_for(&agent.port, data ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* What is refused belongs to a task that is over, or to a link that is. */
void agent_send(const struct ad_guest_msg *msg)
{
	ad_guest_link_send(agent.link, msg);
}

static void port_ready(struct watch *watch, uint32_t events)
{
	static uint8_t data[READ_SIZE];
	ssize_t n;

	if (events & (EPOLLHUP | EPOLLERR))
		power_off();
	if (!(events & EPOLLIN))
		return;
	n = read(watch->fd, data, sizeof(data));
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		power_off();
	if (!ad_guest_link_feed(agent.link, data, (size_t)n))
		broken();
}

static void say_hello(void)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_HELLO };
	struct utsname name;
	struct sysinfo info;
	struct timespec up;

	uname(&name);
	sysinfo(&info);
	clock_gettime(CLOCK_BOOTTIME, &up);
	msg.u.hello.version = AD_GUEST_VERSION;
	msg.u.hello.uptime_ns = (uint64_t)up.tv_sec * 1000000000 + (uint64_t)up.tv_nsec;
	msg.u.hello.memory_bytes = (uint64_t)info.totalram * info.mem_unit;
	msg.u.hello.kernel = name.release;
	agent_send(&msg);
}

static void set_up(const struct ad_guest_msg *setup)
{
	struct ad_guest_msg msg = { .type = AD_GUEST_READY };

	if (!agent.fault.error)
		boot_seed(setup->u.setup.seed, setup->u.setup.realtime_ns, &agent.fault);
	if (!agent.fault.error && *setup->u.setup.volume)
		boot_volume(setup->u.setup.volume, setup->u.setup.uid, setup->u.setup.gid,
			    &agent.fault);
	msg.u.ready.os_errno = agent.fault.error;
	msg.u.ready.text = agent.fault.text;
	agent_send(&msg);
}

static void message(const struct ad_guest_msg *msg, void *userdata)
{
	(void)userdata;
	switch (msg->type) {
	case AD_GUEST_SETUP:
		set_up(msg);
		break;
	case AD_GUEST_WARM:
		if (agent.fault.error)
			break;
		standby_drop();
		boot_warm();
		standby_make();
		break;
	case AD_GUEST_STOP:
		stop_machine(msg->u.stop.grace_ms);
	case AD_GUEST_RUN:
	case AD_GUEST_PUT:
	case AD_GUEST_GET:
		task_begin(msg);
		break;
	case AD_GUEST_PONG:
		break;
	default:
		if (msg->connection)
			net_message(msg);
		else
			task_message(msg);
		break;
	}
}

static void writable(uint32_t id, enum ad_guest_stream stream, void *userdata)
{
	(void)userdata;
	task_writable(id, stream);
}

static void connection_writable(uint32_t id, uint16_t connection, void *userdata)
{
	(void)userdata;
	net_writable(id, connection);
}

/* ---- children, our own and those whose parents are gone */

static void signals_ready(struct watch *watch, uint32_t events)
{
	struct signalfd_siginfo infos[16];
	pid_t pid;
	int status;

	(void)events;
	while (read(watch->fd, infos, sizeof(infos)) > 0)
		;
	while ((pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0)
		task_reap(pid, status);
}

/* ---- life */

static void wait_for_library(void)
{
	struct pollfd port = { .fd = agent.port.fd, .events = POLLOUT };
	const struct timespec pause = { .tv_nsec = 500 * 1000 };
	uint64_t end = ad_sys_now_ns() + (uint64_t)CONNECT_MS * 1000000;

	while (poll(&port, 1, 0) < 0 || !(port.revents & POLLOUT)) {
		if (ad_sys_now_ns() > end)
			give_up("nobody is at the other side of the port");
		nanosleep(&pause, NULL);
	}
}

/* Who writes is not interrupted for each write: the agent takes its turn when the pipe is
 * full or the writer waits, at the next tick at the latest. Commands inherit it. */
static void be_patient(void)
{
	const struct sched_param none = { 0 };

	if (sched_setscheduler(0, SCHED_BATCH, &none) < 0)
		give_up("sched_setscheduler: %s", strerror(errno));
}

static void prepare(int port)
{
	static const struct ad_guest_link_events events = {
		.message = message,
		.writable = writable,
		.connection_writable = connection_writable,
	};
	uint64_t old;
	sigset_t children;

	ad_sys_block_signals(&old);
	process_raise_files();
	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	agent.port = (struct watch){ .ready = port_ready, .fd = port };
	agent.signals = (struct watch){ .ready = signals_ready,
					.fd = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK) };
	agent.epoll = epoll_create1(EPOLL_CLOEXEC);
	agent.link = ad_guest_link_new(AD_GUEST_AGENT, &events, NULL);
	if (agent.signals.fd < 0 || agent.epoll < 0 || !agent.link)
		give_up("cannot begin: %s", strerror(errno));
	watch_for(&agent.signals, EPOLLIN);
	be_patient();
}

_Noreturn void agent_run(int port)
{
	bool ticking = false;
	uint64_t next_tick = 0;

	prepare(port);
	wait_for_library();
	say_hello();
	flush();
	boot_root(&agent.fault);
	for (;;) {
		struct epoll_event event;
		int n;

		net_resume();
		/* One by one: what is done for one may take another's descriptor away. */
		n = epoll_wait(agent.epoll, &event, 1, ticking ? TICK_MS : -1);
		if (n > 0) {
			struct watch *watch = event.data.ptr;

			watch->ready(watch, event.events);
		}
		if (!ticking || ad_sys_now_ns() >= next_tick) {
			ticking = task_tick();
			next_tick = ad_sys_now_ns() + (uint64_t)TICK_MS * 1000000;
		}
		flush();
	}
}
