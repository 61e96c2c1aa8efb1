/* SPDX-License-Identifier: MIT */
/* Pid 1 of a command's own pid namespace. It finishes the sandbox with what no two
 * commands may share, then does a supervisor's work. */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helper/mount.h"

/* A tmpfs needs about 1 KiB of kernel memory for a file: with one for every 4 KiB of
 * its size, empty files take no more than a quarter of it. */
enum { BYTES_PER_INODE = 4096, INODES_MIN = 1024 };

/* Somebody else's slot by now, or no helper, is not told of. */
static const uint64_t grant_look_ns = 100000000;

static bool mount_fault(struct fault *fault, const char *what)
{
	return fault_set(fault, AD_STAGE_VIEW, 0, errno, "%s", what);
}

/* ---- /run and /tmp */

/* Hold on to what is mounted beneath, before it is covered. */
static bool take_nested(const struct sandbox *sandbox, int *fds, struct fault *fault)
{
	for (size_t i = 0; i < sandbox->nested_count; i++) {
		fds[i] = mount_copy(AT_FDCWD, sandbox->nested[i], 0);
		if (fds[i] < 0) {
			errno = -fds[i];
			return mount_fault(fault, sandbox->nested[i]);
		}
	}
	return true;
}

static bool put_back_nested(const struct sandbox *sandbox, const int *fds, struct fault *fault)
{
	int root = sandbox->nested_count ? open("/", O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;

	if (sandbox->nested_count && root < 0)
		return mount_fault(fault, "/");
	for (size_t i = 0; i < sandbox->nested_count; i++) {
		struct stat st;
		int point, r;

		point = fstat(fds[i], &st) < 0 ?
				-errno :
				view_point(root, sandbox->nested[i], S_ISDIR(st.st_mode));
		r = point < 0 ? point : mount_attach(fds[i], point);
		if (point >= 0)
			close(point);
		close(fds[i]);
		if (r < 0) {
			errno = -r;
			return mount_fault(fault, sandbox->nested[i]);
		}
	}
	if (root >= 0)
		close(root);
	return true;
}

static bool private_files(const struct sandbox *sandbox, struct fault *fault)
{
	uint64_t size = sandbox->spec->profile.tmp_bytes, inodes = size / BYTES_PER_INODE;
	char options[96];

	snprintf(options, sizeof(options), "mode=755,size=%" PRIu64 ",nr_inodes=%" PRIu64, size,
		 inodes < INODES_MIN ? (uint64_t)INODES_MIN : inodes);
	if (mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, options) < 0)
		return mount_fault(fault, "/run");
	if (mkdir("/run/tmp", 0700) < 0 || chmod("/run/tmp", 01777) < 0 ||
	    mkdir("/run/shm", 0700) < 0 || chmod("/run/shm", 01777) < 0 ||
	    mkdir(SANDBOX_HOME, 0700) < 0 || mkdir(SANDBOX_TOKEN_DIR, 0700) < 0)
		return mount_fault(fault, "directories in /run");
	if (sandbox->own_tmp && mount("/run/tmp", "/tmp", NULL, MS_BIND, NULL) < 0)
		return mount_fault(fault, "/tmp");
	return true;
}

/* What is in there is memory. A cgroup would count it, a watchdog does not. */
static uint64_t limit_of_files(const struct supervise *job)
{
	uint64_t memory = job->enforcement.memory_rlimit,
		 most = job->sandbox->spec->profile.tmp_bytes;

	return memory && memory < most ? memory : most;
}

static bool limit_files(struct supervise *job, struct fault *fault)
{
	uint64_t limit = limit_of_files(job);
	char options[48];

	if (limit == job->files_limit)
		return true;
	snprintf(options, sizeof(options), "size=%" PRIu64, limit);
	if (mount(NULL, "/run", NULL, MS_REMOUNT | MS_NOSUID | MS_NODEV, options) < 0)
		return mount_fault(fault, "/run");
	job->files_limit = limit;
	return true;
}

static bool private_mounts(const struct sandbox *sandbox, struct fault *fault)
{
	int *nested = reallocarray(NULL, sandbox->nested_count + 1, sizeof(*nested));
	bool ok;

	if (!nested)
		return mount_fault(fault, "out of memory");
	ok = take_nested(sandbox, nested, fault) && private_files(sandbox, fault) &&
	     put_back_nested(sandbox, nested, fault);
	free(nested);
	if (!ok)
		return false;
	/* Refused where parts of the host's are covered, as container managers do. */
	if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		return fault_set(fault, AD_STAGE_LAYER, AD_LAYER_PIDNS, errno, "mounting /proc");
	/* Keys know no namespaces: those of the same user outside are listed there. */
	if (mount("/dev/null", "/proc/keys", NULL, MS_BIND, NULL) < 0 && errno != ENOENT)
		return mount_fault(fault, "/proc/keys");
	if (mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
		  "newinstance,ptmxmode=0666,mode=620") < 0)
		return mount_fault(fault, "/dev/pts");
	return true;
}

/* ---- the token */

static int copy_token(int memory)
{
	ssize_t size = ad_sys_memfd_size(memory);
	void *map;
	int fd, r = 0;

	if (size <= 0)
		return size < 0 ? (int)size : 0;
	map = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, memory, 0);
	if (map == MAP_FAILED)
		return -errno;
	fd = open(SANDBOX_TOKEN, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0400);
	if (fd < 0)
		r = -errno;
	else if (write(fd, map, (size_t)size) != size)
		r = -ENOSPC;
	if (fd >= 0)
		close(fd);
	munmap(map, (size_t)size);
	return r;
}

int reaper_put_token(int memory)
{
	int r;

	if (memory < 0)
		return 0;
	r = unlink(SANDBOX_TOKEN) < 0 && errno != ENOENT ? -errno : copy_token(memory);

	close(memory);
	return r;
}

/* ---- network */

/* On the loopback address, in the network we are in: a descriptor or -errno. Who has no
 * rights cannot take a port below 1024 that we give up. */
static int listen_on(uint16_t port)
{
	const struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

	if (sock < 0)
		return -errno;
	if (bind(sock, (const struct sockaddr *)&addr, sizeof(addr)) == 0 &&
	    listen(sock, SOMAXCONN) == 0)
		return sock;
	r = -errno;
	close(sock);
	return r;
}

/* What needs no request. */
static bool prepare(const struct reaper *reaper, int *ret_network, struct fault *fault)
{
	uint16_t port = reaper->sandbox->spec->profile.proxy_port;

	if (reaper->net >= 0 && setns(reaper->net, CLONE_NEWNET) < 0)
		return fault_set(fault, AD_STAGE_LAYER, AD_LAYER_NETNS, errno, "setns");
	if (port) {
		/* In a network that others are in it would be theirs as well. */
		*ret_network = reaper->net >= 0 ? listen_on(port) : -EINVAL;
		if (*ret_network < 0)
			return fault_set(fault, AD_STAGE_LAYER, AD_LAYER_NETNS, -*ret_network,
					 "listening");
	}
	return private_mounts(reaper->sandbox, fault);
}

static bool put_up_rules(struct supervise *job, bool apart, struct fault *fault)
{
	const struct sandbox *sandbox = job->sandbox;

	if (sandbox->landlock_abi == 0 || job->landlock >= 0)
		return true;
	job->landlock = landlock_make(sandbox, apart);
	return job->landlock >= 0 ? true :
				    fault_set(fault, AD_STAGE_LAYER, AD_LAYER_LANDLOCK,
					      -job->landlock, "landlock");
}

/* What is the command's own. apart: see landlock_make(). */
static bool confine(struct supervise *job, int token, bool apart, struct fault *fault)
{
	int r = reaper_put_token(token);

	if (r < 0)
		return fault_set(fault, AD_STAGE_VIEW, 0, -r, "%s", SANDBOX_TOKEN);
	return limit_files(job, fault) && protect_begin(job->protection, job->sandbox, fault) &&
	       put_up_rules(job, apart, fault);
}

static void confine_or_fail(struct supervise *job, int token)
{
	bool apart = !(job->spawn->flags & AD_SPAWN_SESSION);
	struct fault fault;

	if (!confine(job, token, apart, &fault))
		supervise_failed(job, fault.stage, fault.index, fault.error, fault.text);
}

/* ---- ahead of its command: all of this for what is there now, and what the last one was like */

static int check(struct supervise *job, const struct request_content *content)
{
	bool as_expected = content->token < 0 && limit_of_files(job) == job->files_limit &&
			   protect_holds(job->protection);

	return as_expected ? 0 : SUPERVISE_ASK;
}

/* What went wrong now may go well when there is a command, in another one. */
static const struct request_content *stand_by(const struct reaper *reaper, struct supervise *job,
					      int sock)
{
	static struct standby standby;
	struct fault fault;

	job->begin = check;
	job->begin_with_rights = confine_or_fail;
	return confine(job, -1, true, &fault) &&
			       supervise_stand_by(job, &standby, sock, reaper->shared) &&
			       request_ready(sock) ?
		       supervise_await(job, sock, reaper->shared) :
		       NULL;
}

/* False: the helper never heard of us, or is gone. */
static bool is_granted(const struct slot *slot, uint32_t attempt, int helper_pidfd)
{
	uint32_t granted;

	while ((granted = atomic_load(&slot->granted)) == 0) {
		struct pollfd helper = { .fd = helper_pidfd, .events = POLLIN };

		ad_sys_futex_wait(&slot->granted, 0, grant_look_ns);
		if (poll(&helper, 1, 0) > 0)
			return false;
	}
	return granted == attempt;
}

void reaper_run(const struct reaper *reaper)
{
	const struct request *request = reaper->request->data;
	struct fault fault = { 0 };
	struct protection protection = { 0 };
	struct request_content own;
	struct supervise job = {
		.spawn = &own.spawn,
		.slot = &reaper->shared->slots[request->slot],
		.leaf = request->has_leaf ? &request->leaf : NULL,
		.counted = request->leaf.counted,
		.entry = &own.entry,
		.enforcement = request->enforcement,
		.sandbox = reaper->sandbox,
		.protection = &protection,
		.helper_pidfd = reaper->shared->helper_pidfd,
		.files_limit = reaper->sandbox->spec->profile.tmp_bytes,
		.landlock = -1,
		.network = -1,
		.taken = -1,
	};
	bool prepared;

	if (!request_unpack(reaper->request, &own))
		_exit(SUPERVISOR_LOST);
	prepared = prepare(reaper, &job.network, &fault);
	if (own.ahead >= 0) {
		/* The helper is gone, or nobody needs us. */
		if (!prepared || !stand_by(reaper, &job, own.ahead))
			_exit(SUPERVISOR_LOST);
		close(own.ahead);
		supervise(&job);
	}
	if (!is_granted(job.slot, request->attempt, job.helper_pidfd))
		_exit(SUPERVISOR_LOST);
	if (!prepared)
		supervise_failed(&job, fault.stage, fault.index, fault.error, fault.text);
	confine_or_fail(&job, own.token);
	if (own.session < 0)
		supervise(&job);
	session_run(&job, request->slot, reaper->shared, own.session);
}
