/* SPDX-License-Identifier: MIT */
/* A helper that puts up nothing: it does what the first words of a command say, so that
 * tests see what the library makes of it, and what the library asked for. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/helper_msg.h"
#include "sys/sys.h"

enum { SOCKET = 3 };

static void say(const struct ad_msg *msg, const int *fds, size_t count)
{
	uint8_t buf[AD_MSG_FIXED_MAX];

	if (ad_sys_send(SOCKET, buf, ad_msg_encode(msg, buf), fds, count, 0) < 0)
		exit(1);
}

static struct ad_msg_receipt good_receipt(void)
{
	struct ad_msg_receipt receipt = { .memory = AD_MSG_MEANS_CGROUP2,
					  .pids = AD_MSG_MEANS_CGROUP2,
					  .tree_kill = AD_MSG_MEANS_PIDNS,
					  .landlock_abi = 5,
					  .uid = 65530,
					  .gid = 65531 };

	for (int i = 0; i < AD_LAYER_COUNT; i++)
		receipt.layers[i] = AD_MSG_LAYER_ENFORCED;
	receipt.layers[AD_LAYER_IDMAP] = AD_MSG_LAYER_NONE;
	return receipt;
}

/* STARTED, with text on the command's standard output. */
static void started(uint32_t job, uint32_t flags, bool network,
		    const struct ad_msg_receipt *receipt, const char *text, size_t len)
{
	struct ad_msg msg = { .type = AD_MSG_STARTED, .job = job };
	int out[2], err[2], fds[3];
	size_t count = flags & AD_SPAWN_MERGE_STDERR ? 1 : 2;

	if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
		exit(1);
	ad_sys_set_nonblock(out[0]);
	ad_sys_set_nonblock(err[0]);
	fcntl(out[1], F_SETPIPE_SZ, 1 << 20);
	if (len > 0 && write(out[1], text, len) != (ssize_t)len)
		exit(1);
	fds[0] = out[0];
	fds[1] = err[0];
	msg.u.started.pid = 2;
	msg.u.started.flags = flags & AD_SPAWN_MERGE_STDERR ? 0 : AD_STARTED_STDERR;
	msg.u.started.receipt = *receipt;
	if (network) {
		int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (sock < 0 || listen(sock, 1) < 0)
			exit(1);
		msg.u.started.flags |= AD_STARTED_NETWORK;
		fds[count++] = sock;
	}
	say(&msg, fds, count);
	if (network)
		close(fds[count - 1]);
	close(out[0]);
	close(out[1]);
	close(err[0]);
	close(err[1]);
}

static void ended(uint32_t job, int status)
{
	struct ad_msg msg = { .type = AD_MSG_ENDED, .job = job };

	msg.u.ended.wait_status = status;
	msg.u.ended.at_ns = ad_sys_now_ns();
	say(&msg, NULL, 0);
}

static void denied(uint32_t job, enum ad_msg_denied_kind kind, const char *target)
{
	struct ad_msg msg = { .type = AD_MSG_DENIED, .job = job };

	msg.u.denied.kind = kind;
	snprintf(msg.u.denied.target, sizeof(msg.u.denied.target), "%s", target);
	say(&msg, NULL, 0);
}

static void failed(uint32_t job, uint32_t stage, uint32_t index, int error, const char *text)
{
	struct ad_msg msg = { .type = AD_MSG_FAILED, .job = job };

	msg.u.failed.stage = stage;
	msg.u.failed.index = index;
	msg.u.failed.os_errno = error;
	snprintf(msg.u.failed.text, sizeof(msg.u.failed.text), "%s", text);
	say(&msg, NULL, 0);
}

/* ---- what was asked for, in lines */

static char *text;
static size_t text_len;

static void put(const char *fmt, ...) __attribute__((__format__(__printf__, 1, 2)));
static void put(const char *fmt, ...)
{
	va_list args;
	char *line = NULL, *grown;
	int len;

	va_start(args, fmt);
	len = vasprintf(&line, fmt, args);
	va_end(args);
	grown = len < 0 ? NULL : realloc(text, text_len + (size_t)len);
	if (!grown)
		exit(1);
	text = grown;
	memcpy(text + text_len, line, (size_t)len);
	text_len += (size_t)len;
	free(line);
}

static void put_fd(const char *what, int fd)
{
	char content[64] = "", link[64], name[128];
	ssize_t n = pread(fd, content, sizeof(content) - 1, 0);

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (n < 0) {
		n = readlink(link, name, sizeof(name) - 1);
		name[n < 0 ? 0 : n] = '\0';
		put("%s %.*s\n", what, (int)strcspn(name, "["), name);
	} else {
		put("%s %s%s\n", what, content, ad_sys_memfd_size(fd) < 0 ? " not sealed" : "");
	}
}

static void show(const struct ad_msg_spawn *spawn, const char **env, const int *fds, size_t count,
		 bool large)
{
	struct ad_profile profile;
	struct ad_profile_path *paths;
	const char **names;
	size_t next = large ? 1 : 0;

	text_len = 0;
	put("pid %d\nlarge %d\nfds %zu\n", getpid(), large, count);
	put("file_bytes %llu\n", (unsigned long long)spawn->limits.file);
	for (size_t i = 0; env[i]; i++)
		put("env %s\n", env[i]);
	if ((spawn->flags & AD_SPAWN_CREDENTIALS) && next < count)
		put_fd("token", fds[next++]);
	if ((spawn->flags & AD_SPAWN_NETNS) && next < count)
		put_fd("netns", fds[next++]);
	if (!spawn->profile)
		return;
	ad_profile_decode(&profile, spawn->profile, spawn->profile_len);
	paths = calloc(profile.path_count + 1, sizeof(*paths));
	names = calloc(profile.name_count + 1, sizeof(*names));
	if (!paths || !names)
		exit(1);
	ad_profile_fill(&profile, paths, names);
	put("uid %u gid %u prewarm %u tmp %llu\n", profile.uid, profile.gid, profile.prewarm,
	    (unsigned long long)profile.tmp_bytes);
	put("host_net %d workdir %u\nproxy_port %u\nstrict ", profile.host_net,
	    profile.workdir_access, profile.proxy_port);
	for (int i = 0; i < AD_LAYER_COUNT; i++)
		put("%u", profile.strict[i]);
	put("\n");
	for (size_t i = 0; i < profile.path_count; i++)
		put("path %u %s %s\n", paths[i].access, paths[i].source, paths[i].target);
	for (size_t i = 0; i < profile.name_count; i++)
		put("name %s\n", names[i]);
	free(paths);
	free(names);
}

static bool is_networked(const struct ad_msg_spawn *spawn)
{
	struct ad_profile profile;

	return spawn->profile && ad_profile_decode(&profile, spawn->profile, spawn->profile_len) &&
	       profile.proxy_port != 0;
}

static uint32_t number(const char *arg)
{
	return arg ? (uint32_t)strtoul(arg, NULL, 10) : 0;
}

static void act(const struct ad_msg_spawn *spawn, const char **argv, const char **env,
		const int *fds, size_t count, bool large)
{
	struct ad_msg_receipt receipt = good_receipt();
	uint32_t job = spawn->job, flags = spawn->flags;
	bool network = is_networked(spawn);
	const char *what = argv[0];

	if (flags & AD_SPAWN_SESSION) {
		denied(job, AD_MSG_DENIED_PATH, ".git/hooks");
		failed(job, AD_STAGE_REQUEST, 0, ECANCELED, "");
	} else if (strcmp(what, "show") == 0) {
		show(spawn, env, fds, count, large);
		started(job, flags, network, &receipt, text, text_len);
		ended(job, 0);
	} else if (strcmp(what, "fail") == 0) {
		failed(job, number(argv[1]), number(argv[2]), (int)number(argv[3]), argv[4]);
	} else if (strcmp(what, "layer") == 0) {
		uint32_t layer = number(argv[1]);

		receipt.layers[layer] = (uint8_t)number(argv[2]);
		receipt.layer_errno[layer] = (uint16_t)number(argv[3]);
		started(job, flags, network, &receipt, "", 0);
		ended(job, 0);
	} else if (strcmp(what, "denied") == 0) {
		struct ad_msg msg = { .type = AD_MSG_LIMIT, .job = job };

		started(job, flags, network, &receipt, "", 0);
		denied(job, AD_MSG_DENIED_PATH, ".git/hooks");
		denied(job, AD_MSG_DENIED_SYSCALL, "mount");
		msg.u.limit.limit = AD_MSG_LIMIT_SYSCALL;
		msg.u.limit.fatal = true;
		say(&msg, NULL, 0);
		ended(job, SIGSYS);
	} else if (strcmp(what, "denied-early") == 0) {
		denied(job, AD_MSG_DENIED_SYSCALL, "mount");
	}
}

static void take(const struct ad_sys_msg *in)
{
	struct ad_msg_spawn spawn;
	bool large = ad_msg_peek(in->data, in->len) == AD_MSG_SPAWN_FD;
	const uint8_t *data = in->data;
	size_t len = in->len;
	const char **argv, **env;

	if (large) {
		len = (size_t)ad_sys_memfd_size(in->fds[0]);
		data = mmap(NULL, len, PROT_READ, MAP_PRIVATE, in->fds[0], 0);
	}
	if (!ad_msg_spawn_decode(&spawn, data, len))
		return; /* KILL and the like: what is running has ended */
	argv = calloc(spawn.argc + 1, sizeof(*argv));
	env = calloc(spawn.envc + 1, sizeof(*env));
	if (!argv || !env)
		exit(1);
	ad_msg_spawn_vectors(&spawn, argv, env);
	act(&spawn, argv, env, in->fds, in->fd_count, large);
	free(argv);
	free(env);
	if (large)
		munmap((void *)(uintptr_t)data, len);
}

int main(void)
{
	static uint8_t buf[AD_MSG_INLINE_MAX];
	struct ad_msg hello = { .type = AD_MSG_HELLO };

	hello.u.hello.pid = getpid();
	hello.u.hello.best = good_receipt();
	strcpy(hello.u.hello.version, "fake");
	say(&hello, NULL, 0);
	for (;;) {
		struct ad_sys_msg in = { .data = buf, .cap = sizeof(buf) };

		if (ad_sys_recv(SOCKET, &in, 0) <= 0)
			return 0;
		take(&in);
		ad_sys_msg_close(&in);
	}
}
