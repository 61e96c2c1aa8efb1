/* SPDX-License-Identifier: MIT */
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
	HAS_FEATURE(address_sanitizer) || HAS_FEATURE(thread_sanitizer)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

uint64_t t_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

void t_sleep_ms(uint64_t ms)
{
	struct timespec ts = { .tv_sec = (time_t)(ms / 1000),
			       .tv_nsec = (long)(ms % 1000) * 1000000 };

	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

bool t_on_valgrind(void)
{
	const char *preload = getenv("LD_PRELOAD");

	return preload && strstr(preload, "vgpreload");
}

bool t_is_slow(void)
{
	return SANITIZED || t_on_valgrind();
}

bool t_is_small(void)
{
	return t_is_slow() || getenv("AGENTD_TEST_SMALL");
}

static unsigned int stretch; /* 0: not known yet */

void t_stretch(unsigned int factor)
{
	stretch = factor;
}

/* A machine that is slower as a whole says so in its environment. */
static unsigned int stretched(void)
{
	const char *factor = getenv("AGENTD_TEST_STRETCH");

	if (stretch == 0)
		stretch = factor ? (unsigned int)strtoul(factor, NULL, 10) : 1;
	return stretch;
}

uint64_t t_slack(uint64_t ms)
{
	return ms * stretched() * (t_on_valgrind() ? 20 : SANITIZED ? 4 : 1);
}

/* ---- the program */

static _Atomic unsigned int *skipped;

void t_skip(const char *fmt, ...)
{
	va_list args;

	fputs("SKIP-CANNOT: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	if (skipped)
		(*skipped)++;
}

TCase *t_case(const char *name, unsigned int seconds)
{
	TCase *tcase = tcase_create(name);

	tcase_set_timeout(tcase, (double)t_slack(seconds));
	return tcase;
}

int t_main(const char *name, TCase *const *cases, size_t count)
{
	Suite *suite = suite_create(name);
	SRunner *runner;
	int run, failed;

	/* Whoever runs us under nohup ignores it. */
	signal(SIGHUP, SIG_DFL);
	/* Tests run in children: what they skip must be seen here. */
	skipped = mmap(NULL, sizeof(*skipped), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	if (skipped == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	for (size_t i = 0; i < count; i++)
		suite_add_tcase(suite, cases[i]);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	run = srunner_ntests_run(runner);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	if (failed > 0 || run == 0)
		return 1;
	return *skipped >= (unsigned int)run ? 77 : 0;
}

/* ---- files */

char *t_format(const char *fmt, ...)
{
	va_list args;
	char *text;
	int len;

	va_start(args, fmt);
	len = vasprintf(&text, fmt, args);
	va_end(args);
	T_CHECK(len >= 0, "no memory");
	return text;
}

char *t_read_file(const char *path, size_t *ret_len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0, cap = 4096;
	char *text;

	if (fd < 0)
		return NULL;
	text = malloc(cap);
	T_CHECK(text, "text is NULL");
	for (;;) {
		ssize_t n = read(fd, text + len, cap - len - 1);

		if (n < 0) {
			free(text);
			close(fd);
			return NULL;
		}
		if (n == 0)
			break;
		len += (size_t)n;
		if (cap - len < 1024) {
			cap *= 2;
			text = realloc(text, cap);
			T_CHECK(text, "text is NULL");
		}
	}
	close(fd);
	text[len] = '\0';
	if (ret_len)
		*ret_len = len;
	return text;
}

void t_write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	size_t len = strlen(text);

	T_CHECK(fd >= 0, "%s: %s", path, strerror(errno));
	T_CHECK(write(fd, text, len) == (ssize_t)len, "%s: %s", path, strerror(errno));
	close(fd);
}

int t_listen(int *ret_port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = { htonl(0x7f000002) } };
	socklen_t len = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	T_CHECK(bind(listener, (struct sockaddr *)&address, len) == 0, "bind: %s", strerror(errno));
	T_CHECK(listen(listener, 16) == 0, "listen: %s", strerror(errno));
	T_CHECK(getsockname(listener, (struct sockaddr *)&address, &len) == 0, "getsockname: %s",
		strerror(errno));
	*ret_port = ntohs(address.sin_port);
	return listener;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	(void)remove(path);
	return 0;
}

void t_remove_tree(const char *path)
{
	nftw(path, remove_entry, 32, FTW_DEPTH | FTW_PHYS);
}

static uint64_t number_in(const char *path, const char *key, int base)
{
	char *text = t_read_file(path, NULL);
	uint64_t value = 0;
	bool found = false;
	size_t len = strlen(key);

	T_CHECK(text, "%s: %s", path, strerror(errno));
	for (char *line = text; line && *line; line = strchr(line, '\n')) {
		if (*line == '\n')
			line++;
		if (strncmp(line, key, len) == 0 && line[len] == ':') {
			value = strtoull(line + len + 1, NULL, base);
			found = true;
			break;
		}
	}
	free(text);
	T_CHECK(found, "no %s in %s", key, path);
	return value;
}

uint64_t t_status_number(const char *key, int base)
{
	return number_in("/proc/self/status", key, base);
}

uint64_t t_rss_bytes(void)
{
	return t_status_number("VmRSS", 10) * 1024;
}

uint64_t t_meminfo_bytes(const char *key)
{
	return number_in("/proc/meminfo", key, 10) * 1024;
}

/* ---- descriptors */

static int compare_ints(const void *a, const void *b)
{
	const int *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

void t_fds_take(struct t_fds *fds)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;
	size_t cap = 64;

	T_CHECK(dir, "/proc/self/fd: %s", strerror(errno));
	fds->count = 0;
	fds->fds = malloc(cap * sizeof(*fds->fds));
	T_CHECK(fds->fds, "fds->fds is NULL");
	while ((entry = readdir(dir))) {
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] == '.' || fd == dirfd(dir))
			continue;
		if (fds->count == cap) {
			cap *= 2;
			fds->fds = realloc(fds->fds, cap * sizeof(*fds->fds));
			T_CHECK(fds->fds, "fds->fds is NULL");
		}
		fds->fds[fds->count++] = fd;
	}
	closedir(dir);
	qsort(fds->fds, fds->count, sizeof(*fds->fds), compare_ints);
}

void t_fds_free(struct t_fds *fds)
{
	free(fds->fds);
	*fds = (struct t_fds){ 0 };
}

void t_fds_expect_same(const struct t_fds *before, const char *when)
{
	struct t_fds now;
	size_t i = 0, j = 0;

	t_fds_take(&now);
	while (i < before->count || j < now.count) {
		char path[64], target[256] = "";
		ssize_t n;
		int fd;

		if (i < before->count && j < now.count && before->fds[i] == now.fds[j]) {
			i++;
			j++;
			continue;
		}
		if (j == now.count || (i < before->count && before->fds[i] < now.fds[j]))
			ck_abort_msg("%s: descriptor %d was closed", when, before->fds[i]);
		fd = now.fds[j];
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, target, sizeof(target) - 1);
		target[n > 0 ? n : 0] = '\0';
		ck_abort_msg("%s: descriptor %d (%s) was left open", when, fd, target);
	}
	t_fds_free(&now);
}

/* ---- processes */

static bool contains(const char *data, size_t len, const char *text)
{
	return memmem(data, len, text, strlen(text)) != NULL;
}

static bool file_contains(const char *pid, const char *name, const char *text)
{
	char path[288];
	char *data;
	size_t len;
	bool found;

	snprintf(path, sizeof(path), "/proc/%s/%s", pid, name);
	data = t_read_file(path, &len);
	if (!data)
		return false;
	found = contains(data, len, text);
	free(data);
	return found;
}

/* What a process is called may be read of everybody's. */
static bool is_called(const char *pid, const char *name)
{
	char path[64];
	char *comm;
	bool same;

	snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
	comm = t_read_file(path, NULL);
	if (!comm)
		return false;
	comm[strcspn(comm, "\n")] = '\0';
	same = strcmp(comm, name) == 0;
	free(comm);
	return same;
}

char t_process_state(pid_t pid)
{
	char *path = t_format("/proc/%d/stat", (int)pid), *stat = t_read_file(path, NULL);
	const char *tail = stat ? strrchr(stat, ')') : NULL;
	char state = tail && tail[1] ? tail[2] : '\0';

	free(stat);
	free(path);
	return state;
}

static bool is_zombie(pid_t pid)
{
	char state = t_process_state(pid);

	return !state || state == 'Z' || state == 'X';
}

size_t t_count_processes(const char *tag, const char *name, pid_t *ret_pids, size_t max)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	size_t count = 0;

	T_CHECK(proc, "/proc: %s", strerror(errno));
	while ((entry = readdir(proc))) {
		pid_t pid = atoi(entry->d_name);

		if (pid <= 0 || pid == getpid())
			continue;
		if (!(tag && (file_contains(entry->d_name, "environ", tag) ||
			      file_contains(entry->d_name, "cmdline", tag))) &&
		    !(name && is_called(entry->d_name, name)))
			continue;
		/* Whose parent is not us is not ours to reap. */
		if (is_zombie(pid))
			continue;
		if (count < max)
			ret_pids[count] = pid;
		count++;
	}
	closedir(proc);
	return count;
}

size_t t_children(pid_t parent, pid_t *ret_pids, size_t max)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	size_t count = 0;

	T_CHECK(proc, "/proc: %s", strerror(errno));
	while ((entry = readdir(proc))) {
		char *path, *stat, *end;
		int its = 0;

		if (atoi(entry->d_name) <= 0)
			continue;
		path = t_format("/proc/%s/stat", entry->d_name);
		stat = t_read_file(path, NULL);
		end = stat ? strrchr(stat, ')') : NULL;
		if (end && sscanf(end, ") %*c %d", &its) == 1 && its == parent) {
			if (count < max)
				ret_pids[count] = atoi(entry->d_name);
			count++;
		}
		free(stat);
		free(path);
	}
	closedir(proc);
	return count;
}

/* ---- files */

static size_t files_seen;

static int count_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)path;
	(void)st;
	(void)type;
	(void)ftw;
	files_seen++;
	return 0;
}

size_t t_count_files(const char *dir)
{
	files_seen = 0;
	nftw(dir, count_file, 32, FTW_PHYS);
	return files_seen;
}

/* ---- control groups */

static const pid_t *cgroup_pids;
static size_t cgroup_pid_count;
static char *cgroup_found;
static size_t cgroup_count;

static int look_at_cgroup(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	int pid;

	(void)st;
	if (type != FTW_D || sscanf(path + ftw->base, "agentd-%d-", &pid) != 1)
		return 0;
	for (size_t i = 0; i < cgroup_pid_count; i++) {
		if (cgroup_pids[i] == pid) {
			if (cgroup_count++ == 0)
				cgroup_found = strdup(path);
			break;
		}
	}
	return 0;
}

size_t t_find_cgroups(const pid_t *pids, size_t count, char **ret)
{
	cgroup_pids = pids;
	cgroup_pid_count = count;
	cgroup_found = NULL;
	cgroup_count = 0;
	nftw("/sys/fs/cgroup", look_at_cgroup, 32, FTW_PHYS);
	*ret = cgroup_found;
	return cgroup_count;
}
