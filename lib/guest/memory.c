/* SPDX-License-Identifier: MIT */
/* A group that is at its limit and has nothing left to give but the pages that its programs
 * are made of: the kernel takes those, they are read from the disk again, and because there
 * always is one to take it ends nobody, for minutes. Its figure for that, PSI, stays low (3 %
 * of the time, Linux 6.1): pages that never were called active do not count. */
#include "guest/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
	LOOK_MS = 1000,
	/* As often it has to be found thrashing, in a row. */
	LOOKS = 5,
	/* Of the limit: less than that of files is what programs cannot run in. A program that
	 * thrashed had 0.05 % left. */
	FILES_SHARE = 64,
	/* As often as this all that is left of files was read again between two looks: 90 times
	 * by that program. */
	TURNS = 4,
	PAGE = 4096
};

static void look_later(struct pressure *pressure)
{
	pressure->look_at = ad_sys_now_ns() + (uint64_t)LOOK_MS * 1000000;
	pressure->read_again = cgroup_number(pressure->dir, "memory.stat",
					     "workingset_refault_file");
	pressure->waited = cgroup_number(pressure->dir, "memory.stat", "pgmajfault");
}

static void at_limit(struct watch *watch, uint32_t events)
{
	struct pressure *pressure = AD_CONTAINER_OF(watch, struct pressure, limit);

	(void)events;
	watch_for(watch, 0);
	pressure->times = 0;
	pressure->looking = true;
	look_later(pressure);
}

int pressure_open(struct pressure *pressure, int dir)
{
	int fd = openat(dir, "memory.events", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	*pressure = (struct pressure){ .limit = { .ready = at_limit, .fd = fd }, .dir = dir };
	watch_for(&pressure->limit, EPOLLPRI);
	return 0;
}

void pressure_close(struct pressure *pressure)
{
	watch_close(&pressure->limit);
	pressure->looking = false;
}

static bool thrashes(const struct pressure *pressure)
{
	int dir = pressure->dir;
	uint64_t pages = (cgroup_number(dir, "memory.stat", "active_file") +
			  cgroup_number(dir, "memory.stat", "inactive_file")) /
			 PAGE;
	uint64_t read_again = cgroup_number(dir, "memory.stat", "workingset_refault_file");

	/* Who reads a large file twice reads as much again, but has room for its program. */
	return pages * PAGE < cgroup_number(dir, "memory.max", NULL) / FILES_SHARE &&
	       cgroup_number(dir, "memory.stat", "pgmajfault") > pressure->waited &&
	       read_again - pressure->read_again > pages * TURNS;
}

bool pressure_hopeless(struct pressure *pressure)
{
	char text[512];

	if (!pressure->looking || ad_sys_now_ns() < pressure->look_at)
		return false;
	if (thrashes(pressure)) {
		look_later(pressure);
		if (++pressure->times < LOOKS)
			return false;
		pressure->times = 0;
		return true;
	}
	pressure->looking = false;
	/* Else it would be reported again. */
	if (pread(pressure->limit.fd, text, sizeof(text), 0) >= 0)
		watch_for(&pressure->limit, EPOLLPRI);
	return false;
}
