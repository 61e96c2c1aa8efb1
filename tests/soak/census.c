/* SPDX-License-Identifier: MIT */
/* What there is when nothing runs: of the host program, its helpers, the machine. */
#include "soak.h"

#include <dirent.h>
#include <ftw.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	HEAP_GROWTH_MAX = 256 << 10,
	RSS_GROWTH_MAX = 4 << 20,
	HELPER_GROWTH_MAX = 1 << 20,
	/* Zygotes, and what waits to become a command. */
	OTHERS_MAX = 16,
	OTHERS_GROWTH_MAX = 8 << 20,
	/* Networks and leaves that the helper keeps for the next commands. */
	HELPER_FDS_MAX = 128,
	CGROUPS_MAX = 4 * 32,
};

static uint64_t entries(const char *path)
{
	DIR *dir = opendir(path);
	uint64_t count = 0;

	while (dir && readdir(dir))
		count++;
	if (dir)
		closedir(dir);
	return count > 2 ? count - 2 : 0;
}

/* Of our places: others mount too. */
static uint64_t mounts_of(const char *dir)
{
	char *text = t_read_file("/proc/self/mountinfo", NULL);
	uint64_t count = 0;

	for (const char *at = text; at && (at = strstr(at, dir)); at++)
		count++;
	free(text);
	return count;
}

static uint64_t resident(pid_t pid)
{
	char *path = t_format("/proc/%d/statm", (int)pid), *statm = t_read_file(path, NULL);
	const char *second = statm ? strchr(statm, ' ') : NULL;
	uint64_t pages = second ? strtoull(second, NULL, 10) : 0;

	free(statm);
	free(path);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static const struct soak *whose;
static uint64_t cgroups_of_first, cgroups_of_gone;

static int look_at_cgroup(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	int pid;

	(void)st;
	if (type != FTW_D || sscanf(path + ftw->base, "agentd-%d-", &pid) != 1)
		return 0;
	cgroups_of_first += whose->rigs[0] && whose->rigs[0]->helper == pid;
	for (size_t i = 0; i < whose->gone_count; i++)
		cgroups_of_gone += whose->gone[i] == pid;
	return 0;
}

/* Processes called as helpers of ours are, and not of a rig that is. */
static uint64_t strangers(const struct soak *soak)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char prefix[16];
	uint64_t count = 0;

	snprintf(prefix, sizeof(prefix), "ak%x-", (unsigned int)getpid() & 0xffffffU);
	while (proc && (entry = readdir(proc))) {
		char *path, *comm;
		bool known = false;

		if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
			continue;
		path = t_format("/proc/%s/comm", entry->d_name);
		comm = t_read_file(path, NULL);
		free(path);
		if (comm)
			comm[strcspn(comm, "\n")] = '\0';
		for (size_t i = 0; comm && i < RIGS; i++)
			known |= soak->rigs[i] && strcmp(soak->rigs[i]->name, comm) == 0;
		count += comm && !known && strncmp(comm, prefix, strlen(prefix)) == 0;
		free(comm);
	}
	if (proc)
		closedir(proc);
	return count;
}

void census_take(const struct soak *soak, struct census *ret)
{
	const struct rig *rig = soak->rigs[0];
	struct mallinfo2 info;

	*ret = (struct census){ .fds = entries("/proc/self/fd"),
				.threads = entries("/proc/self/task"),
				.mounts = mounts_of(soak->dir),
				.files = t_count_files(soak->dir),
				.strangers = strangers(soak),
				.commands = t_count_processes(soak->tag, NULL, NULL, 0) };
	whose = soak;
	cgroups_of_first = cgroups_of_gone = 0;
	nftw("/sys/fs/cgroup", look_at_cgroup, 32, FTW_PHYS);
	ret->cgroups = cgroups_of_first;
	ret->cgroups_left = cgroups_of_gone;
	if (rig) {
		char *path = t_format("/proc/%d/fd", (int)rig->helper);
		pid_t pids[64];
		size_t count = t_count_processes(NULL, rig->name, pids, T_COUNT(pids));

		ret->helper_rss = resident(rig->helper);
		/* It is not dumpable: root alone may look. */
		ret->helper_fds = entries(path);
		free(path);
		ret->others = count - 1;
		for (size_t i = 0; i < count && i < T_COUNT(pids); i++)
			ret->others_rss += pids[i] == rig->helper ? 0 : resident(pids[i]);
	}
	malloc_trim(0);
	info = mallinfo2();
	ret->heap = info.uordblks + info.hblkhd;
	ret->rss = t_rss_bytes();
}

static unsigned int bounded(const char *what, uint64_t value, uint64_t most)
{
	if (value <= most)
		return 0;
	fprintf(stderr, "soak: %s: %" PRIu64 ", at most %" PRIu64 " wanted\n", what, value, most);
	return 1;
}

static unsigned int same(const char *what, uint64_t value, uint64_t want)
{
	if (value == want)
		return 0;
	fprintf(stderr, "soak: %s: %" PRIu64 ", not %" PRIu64 "\n", what, value, want);
	return 1;
}

static unsigned int none_left(const struct census *now)
{
	return same("mounts", now->mounts, 0) + same("processes of commands", now->commands, 0) +
	       same("processes of helpers that are gone", now->strangers, 0) +
	       same("control groups of helpers that are gone", now->cgroups_left, 0);
}

unsigned int census_compare(const struct soak *soak, const struct census *now)
{
	const struct census *first = &soak->first;
	unsigned int bad = none_left(now);

	bad += same("descriptors", now->fds, first->fds);
	bad += same("threads", now->threads, first->threads);
	bad += same("files", now->files, first->files);
	bad += bounded("descriptors of a helper", now->helper_fds, HELPER_FDS_MAX);
	bad += bounded("zygotes and sandboxes kept", now->others, OTHERS_MAX);
	bad += bounded("control groups kept", now->cgroups, CGROUPS_MAX);
	if (t_is_slow())
		return bad; /* the sanitizers' own memory would be judged */
	bad += bounded("heap", now->heap, first->heap + HEAP_GROWTH_MAX);
	bad += bounded("RSS", now->rss, first->rss + RSS_GROWTH_MAX);
	bad += bounded("RSS of a helper", now->helper_rss, first->helper_rss + HELPER_GROWTH_MAX);
	bad += bounded("RSS of its zygotes", now->others_rss,
		       first->others_rss + OTHERS_GROWTH_MAX);
	return bad;
}

unsigned int census_left(const struct soak *soak, const struct census *now)
{
	const struct census *outside = &soak->outside;
	unsigned int bad = none_left(now);

	bad += same("descriptors", now->fds, outside->fds);
	bad += same("files", now->files, outside->files);
	/* The thread sanitizer starts one of its own with our first. */
	return t_is_slow() ? bad : bad + same("threads", now->threads, outside->threads);
}
