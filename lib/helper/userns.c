/* SPDX-License-Identifier: MIT */
/* User namespaces with one user and one group in them. */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "helper/mount.h"

static int write_one(pid_t pid, const char *file, const char *text)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	return write_file(path, text);
}

int userns_write_maps(pid_t pid, const struct id_map *map)
{
	char uids[48], gids[48];
	int r;

	snprintf(uids, sizeof(uids), "%u %u 1\n", map->uid_inside, map->uid_outside);
	snprintf(gids, sizeof(gids), "%u %u 1\n", map->gid_inside, map->gid_outside);
	/* Before the group may be mapped without privilege (user_namespaces(7)). */
	r = write_one(pid, "setgroups", "deny");
	if (r == 0)
		r = write_one(pid, "gid_map", gids);
	return r == 0 ? write_one(pid, "uid_map", uids) : r;
}

/* In a process of its own: its errno, then it stays until it is killed, or whoever would
 * have killed it is gone: a zygote can be killed at any time. */
static _Noreturn void hold_userns(int sock)
{
	int error = unshare(CLONE_NEWUSER) < 0 ? errno : 0;

	if (ad_sys_send(sock, &error, sizeof(error), NULL, 0, 0) == 0) {
		while (read(sock, &error, sizeof(error)) < 0 && errno == EINTR)
			;
	}
	_exit(0);
}

static int open_userns(pid_t pid, int sock, const struct id_map *map)
{
	int error = EIO, r, fd;
	char path[64];

	if (read(sock, &error, sizeof(error)) != sizeof(error) || error)
		return -error;
	r = userns_write_maps(pid, map);
	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "/proc/%d/ns/user", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int userns_new(const struct id_map *map)
{
	int pair[2], r = ad_sys_pair(pair);
	pid_t pid;

	if (r < 0)
		return r;
	pid = fork();
	if (pid == 0) {
		close(pair[0]);
		hold_userns(pair[1]);
	}
	r = pid < 0 ? -errno : 0;
	close(pair[1]);
	if (pid > 0) {
		r = open_userns(pid, pair[0], map);
		kill(pid, SIGKILL);
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	close(pair[0]);
	return r;
}
