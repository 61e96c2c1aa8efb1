/* SPDX-License-Identifier: MIT */
/* Control groups, version 2: the agent has one, the tasks have one, and beneath that each
 * has its own. What all tasks together may have leaves the agent its share. */
#include "guest/guest.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define TOP "/sys/fs/cgroup"

enum {
	AGENT_MIN = 8 * 1024 * 1024,
	/* Left of all processes that the machine can have. */
	PIDS_RESERVE = 64,
	PERIOD_US = 100000
};

static int tasks_dir = -1;

static int put(int dir, const char *file, const char *fmt, ...) AD_PRINTF(3, 4);

static int put(int dir, const char *file, const char *fmt, ...)
{
	char text[128];
	va_list args;
	int fd, len, r = 0;

	va_start(args, fmt);
	len = vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	fd = openat(dir, file, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, text, (size_t)len) < 0)
		r = -errno;
	close(fd);
	return r;
}

/* The text of a file, cut to what fits. */
static void get(int dir, const char *file, char *text, size_t size)
{
	int fd = openat(dir, file, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	text[n < 0 ? 0 : n] = '\0';
}

static int make(int above, const char *name)
{
	int fd;

	if (mkdirat(above, name, 0755) < 0)
		return -errno;
	fd = openat(above, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int cgroup_boot(uint64_t memory_bytes)
{
	char threads[32];
	int top, own, r;

	/* Ours can be written to, the one that commands see cannot. */
	if (mount("cgroup2", TOP, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0 ||
	    mount(TOP, "/mnt/root" TOP, NULL, MS_BIND, NULL) < 0 ||
	    mount(NULL, "/mnt/root" TOP, NULL,
		  MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		return -errno;
	top = open(TOP, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (top < 0)
		return -errno;
	own = make(top, "agent");
	tasks_dir = own < 0 ? own : make(top, "tasks");
	if (tasks_dir < 0)
		return tasks_dir;
	get(AT_FDCWD, "/proc/sys/kernel/threads-max", threads, sizeof(threads));
	r = put(own, "cgroup.procs", "0");
	if (r == 0)
		r = put(top, "cgroup.subtree_control", "+cpu +memory +pids +io");
	if (r == 0)
		r = put(tasks_dir, "cgroup.subtree_control", "+cpu +memory +pids +io");
	if (r == 0)
		r = put(own, "cpu.weight", "10000");
	if (r == 0)
		r = put(own, "memory.min", "%d", AGENT_MIN);
	if (r == 0)
		r = put(tasks_dir, "memory.max", "%" PRIu64, memory_bytes);
	if (r == 0)
		r = put(tasks_dir, "pids.max", "%llu", strtoull(threads, NULL, 10) - PIDS_RESERVE);
	close(own);
	close(top);
	return r;
}

int cgroup_limit(int dir, const struct ad_guest_limits *limits)
{
	int r = 0;

	if (limits->memory)
		r = put(dir, "memory.max", "%" PRIu64, limits->memory);
	if (r == 0 && limits->pids)
		r = put(dir, "pids.max", "%" PRIu64, limits->pids);
	if (r == 0 && limits->cpu_ms_per_100ms)
		r = put(dir, "cpu.max", "%" PRIu64 " %d", limits->cpu_ms_per_100ms * 1000,
			PERIOD_US);
	return r;
}

static void name_of(const struct group *group, char name[static 16])
{
	snprintf(name, 16, "%" PRIu32, group->number);
}

int cgroup_new(struct group *ret)
{
	static uint32_t last;
	struct group group = { .number = ++last };
	char name[16];
	int r;

	name_of(&group, name);
	group.dir = make(tasks_dir, name);
	if (group.dir < 0)
		return group.dir;
	/* Half a tree is of no use to anybody: memory ends all of it. */
	r = put(group.dir, "memory.oom.group", "1");
	if (r < 0) {
		cgroup_remove(&group);
		return r;
	}
	*ret = group;
	return 0;
}

void cgroup_remove(struct group *group)
{
	char name[16];

	name_of(group, name);
	close(group->dir);
	unlinkat(tasks_dir, name, AT_REMOVEDIR);
	*group = (struct group){ .dir = -1 };
}

void cgroup_kill(int dir)
{
	put(dir, "cgroup.kill", "1");
}

/* The number after a word that begins a line or follows a blank, and ends with `end`. */
static const char *after(const char *text, const char *word, char end)
{
	size_t len = strlen(word);
	const char *at = text;

	while ((at = strstr(at, word))) {
		if ((at == text || isspace((unsigned char)at[-1])) && at[len] == end)
			return at + len + 1;
		at += len;
	}
	return NULL;
}

uint64_t cgroup_number(int dir, const char *file, const char *word)
{
	char text[4096];
	const char *at = text;

	get(dir, file, text, sizeof(text));
	if (word)
		at = after(text, word, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

uint64_t cgroup_written(int dir)
{
	uint64_t sum = cgroup_number(dir, "memory.stat", "shmem");
	char text[4096];
	const char *at = text;

	/* A line for each disk. */
	get(dir, "io.stat", text, sizeof(text));
	while ((at = after(at, "wbytes", '=')))
		sum += strtoull(at, NULL, 10);
	return sum;
}

uint32_t cgroup_count(int dir)
{
	char text[4096];
	uint32_t count = 0;

	get(dir, "cgroup.procs", text, sizeof(text));
	for (const char *at = text; (at = strchr(at, '\n')); at++)
		count++;
	return count;
}

int cgroup_events(int dir)
{
	int fd = openat(dir, "cgroup.events", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int cgroup_tasks(void)
{
	return tasks_dir;
}

int cgroup_largest(uint32_t *ret_number)
{
	DIR *names = fdopendir(openat(tasks_dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	int largest = -ENOENT;
	uint64_t most = 0;
	struct dirent *name;

	while (names && (name = readdir(names))) {
		int fd = isdigit((unsigned char)name->d_name[0]) ?
				 openat(tasks_dir, name->d_name,
					O_RDONLY | O_DIRECTORY | O_CLOEXEC) :
				 -1;
		uint64_t bytes = fd < 0 ? 0 : cgroup_number(fd, "memory.current", NULL);

		if (bytes > most) {
			int smaller = largest;

			most = bytes;
			largest = fd;
			*ret_number = (uint32_t)strtoul(name->d_name, NULL, 10);
			fd = smaller;
		}
		if (fd >= 0)
			close(fd);
	}
	if (names)
		closedir(names);
	return largest;
}
