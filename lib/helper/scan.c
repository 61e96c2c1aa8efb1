/* SPDX-License-Identifier: MIT */
/* The process table, as /proc shows it. */
#include "helper/helper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/sys.h"

ssize_t read_small(int dirfd, const char *path, char *buf, size_t cap)
{
	int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n;

	if (fd < 0)
		return -errno;
	do {
		n = read(fd, buf + len, cap - 1 - len);
		if (n > 0)
			len += (size_t)n;
	} while ((n > 0 && len < cap - 1) || (n < 0 && errno == EINTR));
	if (n < 0)
		n = -errno;
	close(fd);
	buf[len] = '\0';
	return n < 0 ? n : (ssize_t)len;
}

uint64_t value_of(const char *text, const char *prefix)
{
	size_t size = strlen(prefix);

	while (text && *text) {
		if (strncmp(text, prefix, size) == 0)
			return strtoull(text + size, NULL, 10);
		text = strchr(text, '\n');
		if (text)
			text++;
	}
	return 0;
}

/* "PID (comm) S PPID PGID SID ..."; comm may contain anything, also ") ". */
static bool parse_stat(const char *text, struct proc *ret)
{
	/* Fields from the state (3) on, by their numbers in proc(5). */
	enum { PPID = 4, PGID = 5, SID = 6, UTIME = 14, CSTIME = 17, THREADS = 20 };
	const char *at = strrchr(text, ')');
	uint64_t field[THREADS + 1] = { 0 };

	if (!at || at[1] != ' ' || at[2] == '\0')
		return false;
	ret->zombie = at[2] == 'Z' || at[2] == 'X';
	ret->stopped = at[2] == 'T' || at[2] == 't';
	at += 3;
	for (int i = PPID; i <= THREADS; i++) {
		char *end;

		field[i] = strtoull(at, &end, 10);
		if (end == at)
			return false;
		at = end;
	}
	ret->ppid = (pid_t)field[PPID];
	ret->pgid = (pid_t)field[PGID];
	ret->sid = (pid_t)field[SID];
	ret->threads = (uint32_t)field[THREADS];
	ret->cpu_ticks = 0;
	for (int i = UTIME; i <= CSTIME; i++)
		ret->cpu_ticks += field[i];
	return true;
}

static bool read_proc(pid_t pid, struct proc *ret)
{
	char path[32], text[1024];

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_small(AT_FDCWD, path, text, sizeof(text)) <= 0)
		return false;
	*ret = (struct proc){ .pid = pid };
	return parse_stat(text, ret);
}

bool proc_usable(void)
{
	struct proc self;
	pid_t parent;
	bool is;

	/* Who started the helper ends about now, and it gets another parent. */
	do {
		parent = getppid();
		is = read_proc(getpid(), &self) && self.ppid == parent;
	} while (parent != getppid());
	return is;
}

bool proc_gone(pid_t pid)
{
	struct proc proc;

	return (kill(pid, 0) < 0 && errno == ESRCH) || (read_proc(pid, &proc) && proc.zombie);
}

static bool append(struct proc_table *table, const struct proc *proc)
{
	if (table->count == table->cap) {
		size_t cap = table->cap ? table->cap * 2 : 256;
		struct proc *grown = reallocarray(table->procs, cap, sizeof(*grown));

		if (!grown)
			return false;
		table->procs = grown;
		table->cap = cap;
	}
	table->procs[table->count++] = *proc;
	return true;
}

static struct proc *find(const struct proc_table *table, pid_t pid)
{
	size_t low = 0, high = table->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (table->procs[middle].pid < pid)
			low = middle + 1;
		else
			high = middle;
	}
	return low < table->count && table->procs[low].pid == pid ? &table->procs[low] : NULL;
}

const struct proc *proc_find(const struct proc_table *table, pid_t pid)
{
	return find(table, pid);
}

/* Walk up to somebody whose place is known, then tell all on the way. The table is
 * no snapshot: a parent may be missing, or pids reused in a circle. */
static void resolve(const struct proc_table *table, struct proc *proc, pid_t base)
{
	struct proc *at = proc;
	pid_t top = 0;

	for (size_t steps = 0; at && steps <= table->count; steps++) {
		if (at->visited) {
			top = at->top;
			break;
		}
		if (at->ppid == base) {
			top = at->pid;
			break;
		}
		at = find(table, at->ppid);
	}
	for (at = proc; at && !at->visited; at = find(table, at->ppid)) {
		at->visited = true;
		at->top = top;
		if (at->pid == top)
			break;
	}
}

static int by_pid(const void *a, const void *b)
{
	const struct proc *left = a, *right = b;

	return (left->pid > right->pid) - (left->pid < right->pid);
}

bool proc_scan(struct proc_table *table, pid_t base)
{
	DIR *dir = opendir("/proc");
	bool ok = dir != NULL, sorted = true;
	struct dirent *entry;

	table->count = 0;
	while (dir && (entry = readdir(dir))) {
		struct proc proc;
		char *end;
		long pid;

		if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
			continue;
		pid = strtol(entry->d_name, &end, 10);
		if (*end != '\0' || !read_proc((pid_t)pid, &proc))
			continue;
		if (table->count > 0 && table->procs[table->count - 1].pid > proc.pid)
			sorted = false;
		if (!append(table, &proc)) {
			ok = false;
			break;
		}
	}
	if (dir)
		closedir(dir);
	if (!sorted)
		qsort(table->procs, table->count, sizeof(*table->procs), by_pid);
	for (size_t i = 0; i < table->count; i++) {
		if (!table->procs[i].visited)
			resolve(table, &table->procs[i], base);
	}
	return ok;
}

void proc_table_free(struct proc_table *table)
{
	free(table->procs);
	*table = (struct proc_table){ 0 };
}

/* As many as there can be pids. */
enum { PIDS_MAX = 4 * 1024 * 1024, MANY = 16 };

static void signal_one(const struct proc *proc, int signo, pid_t *last_group)
{
	/* A group is signalled as one, so that none of it slips away by forking. Sessions
	 * other than ours are the commands' own, whole. The numbers were read just now,
	 * and go round before they are used again. */
	if (proc->pgid > 1 && proc->pgid != *last_group && proc->sid != getsid(0)) {
		kill(-proc->pgid, signo);
		*last_group = proc->pgid;
	}
	kill(proc->pid, signo);
}

/* Without a /proc to be had: who can be waited for is a child of ours, and whoever comes
 * to be one is so when its parent is dead. Of all numbers there can be, those that are given
 * to the next many processes, also where they go round after the usual 32768. */
static size_t signal_children(bool (*spared)(pid_t child), int signo)
{
	const pid_t span = 65536, begins[] = { 2, getpid() };
	size_t found = 0;

	for (size_t i = 0; i < AD_COUNT(begins); i++) {
		for (pid_t pid = begins[i]; pid < begins[i] + span; pid++) {
			siginfo_t info = { 0 };

			if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) <
				    0 ||
			    info.si_pid != 0 || (spared && spared(pid)))
				continue;
			kill(pid, signo);
			found++;
		}
	}
	return found;
}

/* Returns how many it met that were not yet dead, or for SIGSTOP not yet stopped. */
static size_t signal_tree(pid_t base, bool (*spared)(pid_t child), int signo)
{
	/* Which pids are in the tree: those of parents mostly come before. What is missed
	 * is found when its parent is dead, which makes it a child of ours. */
	static uint8_t in_tree[PIDS_MAX / 8];
	static pid_t highest;
	DIR *dir = opendir("/proc");
	struct dirent *entry;
	pid_t last_group = 0;
	bool complete = false;
	size_t found = 0;

	memset(in_tree, 0, (size_t)highest / 8 + 1);
	highest = 0;
	while (dir && (entry = readdir(dir))) {
		long pid = strtol(entry->d_name, NULL, 10);
		struct proc proc;

		complete |= pid == base;
		if (pid <= 1 || pid >= PIDS_MAX || !read_proc((pid_t)pid, &proc) ||
		    proc.ppid <= 0 || proc.ppid >= PIDS_MAX)
			continue;
		if (proc.ppid == base ? spared && spared(proc.pid) :
					!(in_tree[proc.ppid / 8] & (1u << proc.ppid % 8)))
			continue;
		in_tree[pid / 8] |= (uint8_t)(1u << pid % 8);
		if (proc.pid > highest)
			highest = proc.pid;
		if (proc.zombie || (proc.stopped && signo == SIGSTOP))
			continue;
		signal_one(&proc, signo, &last_group);
		found++;
	}
	if (dir)
		closedir(dir);
	return complete ? found : found + signal_children(spared, signo);
}

size_t proc_kill_tree(pid_t base, bool (*spared)(pid_t child), uint64_t patience_ns)
{
	uint64_t until = ad_sys_now_ns() + patience_ns;

	/* Many that fork are stopped first: the stopped take no time from us and keep
	 * their places in whatever limits their number, while the dying do the reverse. */
	while (signal_tree(base, spared, SIGSTOP) >= MANY && ad_sys_now_ns() < until)
		;
	return signal_tree(base, spared, SIGKILL);
}

uint64_t proc_io_written(pid_t pid)
{
	char path[32], text[512];

	snprintf(path, sizeof(path), "/proc/%d/io", pid);
	if (read_small(AT_FDCWD, path, text, sizeof(text)) <= 0)
		return 0;
	return value_of(text, "write_bytes:");
}

uint64_t proc_anon_bytes(pid_t pid)
{
	unsigned long long size, resident, shared;
	char path[32], text[256];

	snprintf(path, sizeof(path), "/proc/%d/statm", pid);
	if (read_small(AT_FDCWD, path, text, sizeof(text)) <= 0 ||
	    sscanf(text, "%llu %llu %llu", &size, &resident, &shared) != 3 || shared > resident)
		return 0;
	return (resident - shared) * (uint64_t)sysconf(_SC_PAGESIZE);
}

uid_t proc_uid(pid_t pid)
{
	char path[32];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d", pid);
	return stat(path, &st) == 0 ? st.st_uid : (uid_t)-1;
}
