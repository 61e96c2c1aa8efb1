/* SPDX-License-Identifier: MIT */
/* agentd-helper: starts a supervisor per command, passes orders on, watches limits
 * that no cgroup enforces, and cleans up after whoever dies. It ends when the host
 * is gone and nothing is left. docs/helper.md has the whole picture. */
#include "helper/job.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <agentd/version.h>

#include "helper/acts.h"
#include "sys/sys.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define VERSION_TEXT                                                                               \
	TEXT(AGENTD_VERSION_MAJOR) "." TEXT(AGENTD_VERSION_MINOR) "." TEXT(AGENTD_VERSION_PATCH)

enum { FIXED_FDS = 5 }; /* that are polled, besides those of templates */

struct helper helper;

static pid_t host;
static int signal_fd, host_pidfd;
static uint8_t message[AD_MSG_INLINE_MAX + 4096];

void close_ours(void)
{
	close(signal_fd);
	if (host_pidfd >= 0)
		close(host_pidfd);
	sessions_close_ours();
	warm_close_ours();
}

void own_pages(void)
{
	own_page(message);
	own_page(&errno); /* and what the kernel keeps beside it */
	jobs_own_pages();
	request_own_pages();
}

/* ---- messages in */

static void host_is_lost(void)
{
	if (helper.host_lost)
		return;
	helper.host_lost = true;
	report_flush();
	warm_end();
	for (struct job *job = job_next(NULL), *next; job; job = next) {
		next = job_next(job);
		job_kill(job);
	}
}

static void handle(struct ad_sys_msg *in)
{
	struct ad_msg_spawn spawn;
	struct ad_msg msg;
	struct job *job;

	if (ad_msg_peek(in->data, in->len) == AD_MSG_SPAWN) {
		if (ad_msg_spawn_decode(&spawn, in->data, in->len) && !job_by_id(spawn.job))
			start_job(&spawn, in, false);
		else
			host_is_lost();
		return;
	}
	/* Whoever sends what the library does not is not served any further. */
	if (!ad_msg_decode(&msg, in->data, in->len)) {
		host_is_lost();
		return;
	}
	job = job_by_id(msg.job);
	switch (msg.type) {
	case AD_MSG_SPAWN_FD:
		start_from_fd(in, msg.job);
		break;
	case AD_MSG_KILL:
		if (job)
			job_kill(job);
		break;
	case AD_MSG_SIGNAL:
		if (job)
			job_signal(job, msg.u.signal.signo);
		break;
	default:
		host_is_lost();
		break;
	}
}

static void read_socket(void)
{
	/* Bounded, so that a flood of starts delays neither the dead nor the timers. */
	for (int i = 0; i < 16 && !helper.host_lost; i++) {
		struct ad_sys_msg in = { .data = message, .cap = sizeof(message) };
		int r = ad_sys_recv(HELPER_SOCKET, &in, MSG_DONTWAIT);

		if (r == -EAGAIN)
			return;
		if (r <= 0) {
			host_is_lost();
			return;
		}
		/* A child that the host forked has the socket too, but no say. */
		if (in.has_creds && in.pid == host)
			handle(&in);
		ad_sys_msg_close(&in);
	}
}

/* ---- life */

static int timeout_ms(uint64_t now)
{
	uint64_t due[] = { jobs_check(now), template_next(), warm_next(), watch_next(),
			   bury_next() };
	uint64_t next = UINT64_MAX, left;

	for (size_t i = 0; i < AD_COUNT(due); i++) {
		if (due[i] < next)
			next = due[i];
	}
	if (next == UINT64_MAX)
		return -1;
	left = next > now ? next - now : 0;
	return (int)((left + AD_NS_PER_MS - 1) / AD_NS_PER_MS);
}

static void run(void)
{
	while (!helper.host_lost || !ad_list_empty(&helper.jobs) || bury_next() != UINT64_MAX ||
	       warm_any()) {
		struct pollfd fds[FIXED_FDS + TEMPLATES_MAX] = {
			{ .fd = signal_fd, .events = POLLIN },
			{ .fd = helper.host_lost ? -1 : HELPER_SOCKET,
			  .events = (short)(report_waits() ? POLLIN | POLLOUT : POLLIN) },
			{ .fd = helper.host_lost ? -1 : host_pidfd, .events = POLLIN },
			{ .fd = helper.hello_fd, .events = POLLIN },
			{ .fd = helper.ended_fd, .events = POLLIN },
		};
		int templates[TEMPLATES_MAX];
		size_t count = template_poll_fds(templates);
		uint64_t now;

		for (size_t i = 0; i < count; i++)
			fds[FIXED_FDS + i] = (struct pollfd){ .fd = templates[i],
							      .events = POLLIN };
		if (poll(fds, FIXED_FDS + count, timeout_ms(ad_sys_now_ns())) < 0)
			continue;
		if (fds[4].revents)
			sessions_read_ended();
		if (fds[3].revents)
			sessions_read_hello();
		if (fds[0].revents)
			bury(signal_fd);
		if (fds[2].revents)
			host_is_lost();
		if (fds[1].revents & POLLOUT)
			report_flush();
		if (fds[1].revents & ~POLLOUT)
			read_socket();
		now = ad_sys_now_ns();
		if (template_step(now))
			start_all_waiting();
		warm_step(now);
		bury_step(now);
		watch_step(now);
	}
}

static void hello(void)
{
	struct ad_msg msg = { .type = AD_MSG_HELLO };

	msg.u.hello.pid = helper.shared.helper;
	strcpy(msg.u.hello.version, VERSION_TEXT);
	plan_best(&msg.u.hello.best);
	report(&msg);
}

/* 0 to 2 on /dev/null, whatever they were; everything we open is then above. */
static bool plain_stdio(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	} while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd < 0)
		return false;
	for (int i = 0; i <= STDERR_FILENO; i++) {
		if (dup2(fd, i) < 0)
			return false;
	}
	close(fd);
	return true;
}

static bool find_host(void)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);
	int type = 0;
	socklen_t type_len = sizeof(type);

	if (getsockopt(HELPER_SOCKET, SOL_SOCKET, SO_TYPE, &type, &type_len) < 0 ||
	    type != SOCK_SEQPACKET ||
	    getsockopt(HELPER_SOCKET, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 ||
	    ad_sys_pass_creds(HELPER_SOCKET) < 0)
		return false;
	host = peer.pid;
	fcntl(HELPER_SOCKET, F_SETFD, FD_CLOEXEC);
	/* The host gave one of itself, if the kernel can. */
	host_pidfd = fcntl(HELPER_HOST_PIDFD, F_SETFD, FD_CLOEXEC) == 0 ? HELPER_HOST_PIDFD : -1;
	return true;
}

static bool init(void)
{
	uint64_t old;
	sigset_t chld;
	uid_t ruid, euid, suid;
	gid_t rgid, egid, sgid;

	ad_sys_block_signals(&old);
	ad_sys_default_signals();
	if (!plain_stdio() || chdir("/") < 0 || !find_host())
		return false;
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 ||
	    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 || getresuid(&ruid, &euid, &suid) < 0 ||
	    getresgid(&rgid, &egid, &sgid) < 0)
		return false;
	helper.shared.helper = getpid();
	helper.uid = ruid;
	helper.gid = rgid;
	helper.ids_plain = ruid == euid && ruid == suid && rgid == egid && rgid == sgid;
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	signal_fd = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signal_fd < 0 || !jobs_init() || !sessions_init())
		return false;
	helper.shared.helper_pidfd = ad_sys_pidfd(helper.shared.helper);
	template_init(&helper.shared, helper.uid);
	warm_init(&helper.shared);
	helper.proc_usable = proc_usable();
	cgroup_init();
	return true;
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "try") == 0)
		acts_run(argc - 2, argv + 2);
	if (!init())
		return 1;
	hello();
	run();
	template_close_all();
	cgroup_cleanup();
	return 0;
}
