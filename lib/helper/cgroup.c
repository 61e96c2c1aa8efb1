/* SPDX-License-Identifier: MIT */
/* Leaves "agentd-<helper>-<number>" under the helper's own cgroups, version 1, 2 or
 * both, kept for reuse. The helper makes, fills in and removes them; a supervisor,
 * forked with the helper's view of its leaf, opens what it needs. */
#include "helper/helper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "sys/sys.h"

enum {
	POOL_MAX = 32,
	PERIOD_USEC = 100000,
	/* Page cache that stays charged to a leaf would count against the next. */
	REUSE_MEMORY_MAX = 4 * 1024 * 1024
};

struct hierarchy {
	int dir; /* our cgroup in it */
	bool v2;
};

static struct {
	struct hierarchy hierarchies[CG_COUNT + 1];
	size_t count;
	int where[CG_COUNT]; /* index of a hierarchy, or -1 */
	bool swap;           /* memory and swap are limited together */
	struct ad_list pool;
	size_t pooled;
	uint32_t next_number;
	pid_t owner;
	uint64_t pidns; /* in which that is its number; 0: not known */
} cg;

static const char *const v1_names[CG_COUNT] = { "memory", "pids", "cpu", NULL };
static const char *const v2_files[CG_COUNT] = { "memory.max", "pids.max", "cpu.max",
						"cgroup.kill" };

static void leaf_path(const struct leaf *leaf, const char *file, char *ret, size_t size)
{
	snprintf(ret, size, "agentd-%d-%" PRIu32 "-%" PRIu64 "%s%s", cg.owner, leaf->number,
		 cg.pidns, *file ? "/" : "", file);
}

static int open_file(const struct leaf *leaf, size_t hierarchy, const char *file, int flags)
{
	char path[128];
	int fd;

	leaf_path(leaf, file, path, sizeof(path));
	fd = openat(cg.hierarchies[hierarchy].dir, path, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int write_text(const struct leaf *leaf, size_t hierarchy, const char *file, const char *text)
{
	int fd = open_file(leaf, hierarchy, file, O_WRONLY), r = 0;

	if (fd < 0)
		return fd;
	if (write(fd, text, strlen(text)) < 0)
		r = -errno;
	close(fd);
	return r;
}

static int write_number(const struct leaf *leaf, size_t hierarchy, const char *file, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "%" PRIu64, value);
	return write_text(leaf, hierarchy, file, text);
}

static ssize_t read_text(const struct leaf *leaf, size_t hierarchy, const char *file, char *buf,
			 size_t cap)
{
	char path[128];

	leaf_path(leaf, file, path, sizeof(path));
	return read_small(cg.hierarchies[hierarchy].dir, path, buf, cap);
}

static bool has_file(const struct leaf *leaf, size_t hierarchy, const char *file)
{
	char path[128];

	leaf_path(leaf, file, path, sizeof(path));
	return faccessat(cg.hierarchies[hierarchy].dir, path, F_OK, 0) == 0;
}

static bool uses(enum cgroup_controller controller)
{
	return cg.where[controller] >= 0;
}

static size_t where(enum cgroup_controller controller)
{
	return (size_t)cg.where[controller];
}

static bool is_v2(enum cgroup_controller controller)
{
	return cg.hierarchies[where(controller)].v2;
}

enum ad_msg_means cgroup_means(enum cgroup_controller controller)
{
	if (!uses(controller))
		return AD_MSG_MEANS_NONE;
	return is_v2(controller) ? AD_MSG_MEANS_CGROUP2 : AD_MSG_MEANS_CGROUP1;
}

/* ---- leaves */

static bool make_dir(struct leaf *leaf, size_t hierarchy)
{
	char path[128];

	if (leaf->made & (1u << hierarchy))
		return true;
	leaf_path(leaf, "", path, sizeof(path));
	if (mkdirat(cg.hierarchies[hierarchy].dir, path, 0755) < 0)
		return false;
	leaf->made = (uint8_t)(leaf->made | (1u << hierarchy));
	return true;
}

static void leaf_remove(struct leaf *leaf)
{
	char path[128];

	leaf_path(leaf, "", path, sizeof(path));
	for (size_t i = 0; i < cg.count; i++) {
		/* What still lives in one keeps it: the next helper removes it. */
		if (leaf->made & (1u << i))
			unlinkat(cg.hierarchies[i].dir, path, AT_REMOVEDIR);
	}
	free(leaf);
}

static struct leaf *leaf_new(void)
{
	struct leaf *leaf = calloc(1, sizeof(*leaf));

	if (leaf) {
		ad_list_init(&leaf->link);
		leaf->number = cg.next_number++;
	}
	return leaf;
}

static int set_memory(const struct leaf *leaf, uint64_t bytes)
{
	size_t at = where(CG_MEMORY);
	int r;

	if (is_v2(CG_MEMORY)) {
		r = write_number(leaf, at, "memory.max", bytes);
		if (r == 0 && cg.swap)
			r = write_text(leaf, at, "memory.swap.max", "0");
		return r;
	}
	/* In this order: the limit on both together may never be below that on memory. */
	r = write_number(leaf, at, "memory.limit_in_bytes", bytes);
	if (r == 0 && cg.swap)
		r = write_number(leaf, at, "memory.memsw.limit_in_bytes", bytes);
	return r;
}

static int set_cpu(const struct leaf *leaf, uint64_t ms_per_100ms)
{
	size_t at = where(CG_CPU);
	char text[64];
	int r;

	if (is_v2(CG_CPU)) {
		snprintf(text, sizeof(text), "%" PRIu64 " %d", ms_per_100ms * 1000, PERIOD_USEC);
		return write_text(leaf, at, "cpu.max", text);
	}
	r = write_number(leaf, at, "cpu.cfs_period_us", PERIOD_USEC);
	return r < 0 ? r : write_number(leaf, at, "cpu.cfs_quota_us", ms_per_100ms * 1000);
}

static int set_limit(struct leaf *leaf, enum cgroup_controller controller)
{
	uint64_t value = leaf->limit[controller];

	if (!make_dir(leaf, where(controller)))
		return -errno;
	if (controller == CG_MEMORY)
		return set_memory(leaf, value);
	if (controller == CG_PIDS)
		return write_number(leaf, where(CG_PIDS), "pids.max", value);
	return controller == CG_CPU ? set_cpu(leaf, value) : 0;
}

static bool wanted(const struct leaf *leaf, enum cgroup_controller controller)
{
	return uses(controller) && leaf->limit[controller];
}

static struct leaf *leaf_fill(const uint64_t limit[static CG_COUNT])
{
	struct leaf *leaf = leaf_new();

	if (!leaf)
		return NULL;
	memcpy(leaf->limit, limit, sizeof(leaf->limit));
	for (int i = 0; i < CG_COUNT; i++) {
		enum cgroup_controller controller = (enum cgroup_controller)i;

		if (wanted(leaf, controller)) {
			if (set_limit(leaf, controller) == 0)
				leaf->means[i] = cgroup_means(controller);
			else
				leaf->broken = true;
		}
	}
	return leaf;
}

static bool still_there(const struct leaf *leaf)
{
	for (size_t i = 0; i < cg.count; i++) {
		if ((leaf->made & (1u << i)) && !has_file(leaf, i, ""))
			return false;
	}
	return true;
}

/* One that was made for the same limits: nothing is to be written. */
static struct leaf *pool_get(const uint64_t limit[static CG_COUNT])
{
	for (struct ad_list *node = cg.pool.next; node != &cg.pool; node = node->next) {
		struct leaf *leaf = AD_CONTAINER_OF(node, struct leaf, link);

		if (memcmp(leaf->limit, limit, sizeof(leaf->limit)) != 0)
			continue;
		ad_list_remove(&leaf->link);
		cg.pooled--;
		if (still_there(leaf))
			return leaf;
		leaf_remove(leaf);
		return NULL;
	}
	return NULL;
}

/* False: nothing of that can be had from a leaf. What has cgroup.kill also knows of the time of
 * those that nobody waits for, their parent having ignored SIGCHLD. */
static bool wishes(const struct ad_msg_limits *limits, bool pidns, uint64_t ret[static CG_COUNT])
{
	bool useful = false;

	ret[CG_MEMORY] = limits->memory;
	ret[CG_PIDS] = limits->pids;
	ret[CG_CPU] = limits->cpu_ms_per_100ms;
	ret[CG_KILL] = !pidns || limits->cpu_time_ms;
	for (int i = 0; i < CG_COUNT; i++)
		useful |= ret[i] && cg.where[i] >= 0;
	return useful;
}

bool cgroup_fits(const struct leaf *leaf, const struct ad_msg_limits *limits, bool pidns,
		 bool asked_for)
{
	uint64_t limit[CG_COUNT];

	if (!wishes(limits, pidns, limit) || !asked_for)
		return leaf == NULL;
	return leaf && memcmp(leaf->limit, limit, sizeof(limit)) == 0;
}

struct leaf *cgroup_take(const struct ad_msg_limits *limits, bool pidns)
{
	uint64_t limit[CG_COUNT];
	struct leaf *leaf;

	if (!wishes(limits, pidns, limit))
		return NULL;
	leaf = pool_get(limit);
	if (!leaf)
		return leaf_fill(limit);
	/* That of version 2 cannot be reset: such a leaf is not used again. */
	if (leaf->means[CG_MEMORY])
		write_text(leaf, where(CG_MEMORY), "memory.max_usage_in_bytes", "0");
	return leaf;
}

/* Whether what the last command left charged is little enough. */
static bool clean_enough(const struct leaf *leaf)
{
	char text[32];

	if (!leaf->means[CG_MEMORY])
		return true;
	if (is_v2(CG_MEMORY))
		return false;
	return read_text(leaf, where(CG_MEMORY), "memory.usage_in_bytes", text, sizeof(text)) > 0 &&
	       strtoull(text, NULL, 10) <= REUSE_MEMORY_MAX;
}

static void pool_trim(size_t most)
{
	while (cg.pooled > most) {
		struct leaf *leaf = AD_CONTAINER_OF(cg.pool.next, struct leaf, link);

		ad_list_remove(&leaf->link);
		cg.pooled--;
		leaf_remove(leaf);
	}
}

void cgroup_release(struct leaf *leaf, bool reusable)
{
	if (!reusable || leaf->broken || !clean_enough(leaf)) {
		leaf_remove(leaf);
		return;
	}
	ad_list_append(&cg.pool, &leaf->link);
	cg.pooled++;
	pool_trim(POOL_MAX);
}

void cgroup_cleanup(void)
{
	pool_trim(0);
}

/* ---- what they tell */

/* NULL: nothing, in this leaf. */
static const char *gauge_file(const struct leaf *leaf, enum cgroup_gauge gauge,
			      enum cgroup_controller *ret)
{
	static const struct {
		enum cgroup_controller controller;
		const char *v1, *v2;
	} files[GAUGE_COUNT] = {
		[GAUGE_OOM_KILLS] = { CG_MEMORY, "memory.oom_control", "memory.events" },
		[GAUGE_PIDS_HITS] = { CG_PIDS, "pids.events", "pids.events" },
		[GAUGE_CPU] = { CG_KILL, "cpu.stat", "cpu.stat" },
		[GAUGE_MEMORY_PEAK] = { CG_MEMORY, "memory.max_usage_in_bytes", "memory.peak" },
	};

	*ret = files[gauge].controller;
	if (!leaf->means[*ret])
		return NULL;
	return is_v2(*ret) ? files[gauge].v2 : files[gauge].v1;
}

void cgroup_open_gauges(const struct leaf *leaf, struct cgroup_gauges *ret)
{
	for (int i = 0; i < GAUGE_COUNT; i++) {
		enum cgroup_controller controller;
		const char *file = leaf ? gauge_file(leaf, (enum cgroup_gauge)i, &controller) :
					  NULL;

		ret->fds[i] = file ? open_file(leaf, where(controller), file, O_RDONLY) : -1;
	}
}

static bool read_gauge(const struct leaf *leaf, const struct cgroup_gauges *gauges,
		       enum cgroup_gauge gauge, char *text, size_t size)
{
	enum cgroup_controller controller;
	const char *file = gauge_file(leaf, gauge, &controller);
	ssize_t n;

	if (!file)
		return false;
	if (!gauges || gauges->fds[gauge] < 0)
		return read_text(leaf, where(controller), file, text, size) > 0;
	n = pread(gauges->fds[gauge], text, size - 1, 0);
	text[n < 0 ? 0 : n] = '\0';
	return n > 0;
}

static bool read_cpu(const struct leaf *leaf, const struct cgroup_gauges *gauges, uint64_t *ret)
{
	char text[512];

	if (!read_gauge(leaf, gauges, GAUGE_CPU, text, sizeof(text)))
		return false;
	*ret = value_of(text, "usage_usec ");
	return true;
}

bool cgroup_cpu_usec(const struct leaf *leaf, uint64_t *ret)
{
	return read_cpu(leaf, NULL, ret);
}

void cgroup_count(const struct leaf *leaf, const struct cgroup_gauges *gauges,
		  struct cgroup_counters *ret)
{
	char text[1024];

	*ret = leaf->counted;
	if (read_gauge(leaf, gauges, GAUGE_OOM_KILLS, text, sizeof(text)))
		ret->oom_kills = value_of(text, "oom_kill ");
	if (read_gauge(leaf, gauges, GAUGE_PIDS_HITS, text, sizeof(text)))
		ret->pids_hits = value_of(text, "max ");
	read_cpu(leaf, gauges, &ret->cpu_usec);
}

uint64_t cgroup_memory_peak(const struct leaf *leaf, const struct cgroup_gauges *gauges)
{
	char text[32];

	return read_gauge(leaf, gauges, GAUGE_MEMORY_PEAK, text, sizeof(text)) ?
		       strtoull(text, NULL, 10) :
		       0;
}

void cgroup_kill(const struct leaf *leaf)
{
	if (leaf->means[CG_KILL])
		write_text(leaf, where(CG_KILL), "cgroup.kill", "1");
}

/* ---- entering */

int cgroup_open_entry(const struct leaf *leaf, struct cgroup_entry *ret)
{
	unsigned int done = 0;

	*ret = (struct cgroup_entry){ .v2_dir = -1, .v2_procs = -1 };
	for (int i = 0; i < CG_COUNT; i++) {
		size_t at;
		int fd;

		if (leaf->means[i] == AD_MSG_MEANS_NONE)
			continue;
		at = (size_t)cg.where[i];
		if (done & (1u << at))
			continue;
		done |= 1u << at;
		if (cg.hierarchies[at].v2) {
			ret->v2_dir = open_file(leaf, at, "", O_RDONLY | O_DIRECTORY);
			ret->v2_procs = open_file(leaf, at, "cgroup.procs", O_WRONLY);
			if (ret->v2_dir < 0 || ret->v2_procs < 0)
				return ret->v2_dir < 0 ? ret->v2_dir : ret->v2_procs;
			continue;
		}
		fd = open_file(leaf, at, "tasks", O_WRONLY);
		if (fd < 0)
			return fd;
		ret->tasks[ret->count++] = fd;
	}
	return 0;
}

void cgroup_close_entry(struct cgroup_entry *entry)
{
	for (size_t i = 0; i < entry->count; i++)
		close(entry->tasks[i]);
	if (entry->v2_dir >= 0)
		close(entry->v2_dir);
	if (entry->v2_procs >= 0)
		close(entry->v2_procs);
}

/* ---- finding them */

static bool list_has(const char *list, const char *word)
{
	size_t size = strlen(word);

	for (const char *at = list; at; at = strchr(at, ',')) {
		if (*at == ',')
			at++;
		if (strncmp(at, word, size) == 0 && (at[size] == ',' || at[size] == '\0'))
			return true;
	}
	return false;
}

/* Our path in the hierarchy with that controller (NULL: version 2), from
 * "id:controllers:path" lines. */
static bool own_path(const char *lines, const char *controller, char *ret, size_t size)
{
	for (const char *line = lines; line && *line; line = strchr(line, '\n')) {
		char names[256], path[4096];
		bool hit;

		if (*line == '\n')
			line++;
		if (sscanf(line, "%*d:%255[^:\n]:%4095[^\n]", names, path) == 2)
			hit = controller && list_has(names, controller);
		else if (sscanf(line, "0::%4095[^\n]", path) == 1)
			hit = controller == NULL;
		else
			continue;
		if (hit) {
			snprintf(ret, size, "%s", path);
			return true;
		}
	}
	return false;
}

/* Spaces and the like are written \040 in mountinfo. */
static void unescape(char *text)
{
	char *out = text;

	while (*text) {
		if (text[0] == '\\' && text[1] && text[2] && text[3]) {
			*out++ = (char)((text[1] - '0') * 64 + (text[2] - '0') * 8 + text[3] - '0');
			text += 4;
		} else {
			*out++ = *text++;
		}
	}
	*out = '\0';
}

/* The directory of our cgroup: where path lies beneath a mount that shows root. */
static int open_own(const char *mount, const char *root, const char *path)
{
	size_t size = strcmp(root, "/") == 0 ? 0 : strlen(root);
	char full[8192];
	int fd;

	if (strncmp(path, root, size) != 0 || (path[size] != '/' && path[size] != '\0') ||
	    strstr(path, "/.."))
		return -ENOENT;
	if ((size_t)snprintf(full, sizeof(full), "%s%s", mount, path + size) >= sizeof(full))
		return -ENAMETOOLONG;
	fd = open(full, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Leaves of helpers that are gone. Those of another pid namespace are not ours to judge:
 * their numbers mean something else here. */
static void remove_stale(int dir_fd)
{
	DIR *dir = fdopendir(fcntl(dir_fd, F_DUPFD_CLOEXEC, 3));
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		uint32_t number;
		uint64_t pidns;
		int pid, end = 0;

		if (sscanf(entry->d_name, "agentd-%d-%" SCNu32 "-%" SCNu64 "%n", &pid, &number,
			   &pidns, &end) != 3 ||
		    entry->d_name[end] != '\0' || pidns != cg.pidns || pidns == 0 || pid <= 0 ||
		    !proc_gone(pid))
			continue;
		unlinkat(dir_fd, entry->d_name, AT_REMOVEDIR);
	}
	if (dir)
		closedir(dir);
}

/* Does a leaf in this hierarchy have what the controller needs? */
static bool works(const struct leaf *leaf, size_t hierarchy, enum cgroup_controller controller)
{
	static const char *const v1_files[CG_COUNT] = { "memory.limit_in_bytes", "pids.max",
							"cpu.cfs_quota_us", NULL };
	const char *file = cg.hierarchies[hierarchy].v2 ? v2_files[controller] :
							  v1_files[controller];
	int fd = open_file(leaf, hierarchy, file, O_WRONLY);

	if (fd < 0)
		return false;
	close(fd);
	return true;
}

/* Takes dir. Returns the index of the hierarchy, or -1. */
static int add_hierarchy(struct leaf *leaf, int dir, bool v2)
{
	size_t at = cg.count;

	cg.hierarchies[at] = (struct hierarchy){ .dir = dir, .v2 = v2 };
	cg.count++;
	remove_stale(dir);
	if (make_dir(leaf, at))
		return (int)at;
	cg.count--;
	close(dir);
	return -1;
}

static void drop_hierarchy(struct leaf *leaf)
{
	size_t at = cg.count - 1;
	char path[128];

	leaf_path(leaf, "", path, sizeof(path));
	unlinkat(cg.hierarchies[at].dir, path, AT_REMOVEDIR);
	leaf->made = (uint8_t)(leaf->made & ~(1u << at));
	close(cg.hierarchies[at].dir);
	cg.count--;
}

static void find_v1(struct leaf *leaf, const char *mount, const char *root, const char *options,
		    const char *own)
{
	int at = -1;

	/* Nothing can enter a new cpuset before it is filled in. */
	if (list_has(options, "cpuset"))
		return;
	for (int i = 0; i < CG_KILL; i++) {
		char path[4096];
		int dir;

		if (cg.where[i] >= 0 || !list_has(options, v1_names[i]))
			continue;
		if (at < 0) {
			if (!own_path(own, v1_names[i], path, sizeof(path)))
				return;
			dir = open_own(mount, root, path);
			if (dir < 0)
				return;
			at = add_hierarchy(leaf, dir, false);
			if (at < 0)
				return;
		}
		if (works(leaf, (size_t)at, (enum cgroup_controller)i))
			cg.where[i] = at;
	}
}

static bool delegated(int dir)
{
	char value[8];

	return (fgetxattr(dir, "user.delegate", value, sizeof(value)) == 1 ||
		fgetxattr(dir, "trusted.delegate", value, sizeof(value)) == 1) &&
	       value[0] == '1';
}

static void enable_controllers(int dir)
{
	static const char *const names[] = { "+memory", "+pids", "+cpu" };
	int fd = openat(dir, "cgroup.subtree_control", O_WRONLY | O_CLOEXEC);

	for (size_t i = 0; fd >= 0 && i < AD_COUNT(names); i++) {
		/* What cannot be had is missing in the leaf, which is what counts. */
		if (write(fd, names[i], strlen(names[i])) < 0)
			continue;
	}
	if (fd >= 0)
		close(fd);
}

/* How many controllers a leaf beneath path would have. */
static unsigned int try_v2(struct leaf *leaf, const char *mount, const char *root, const char *path,
			   bool enable)
{
	int dir = open_own(mount, root, path), at;
	unsigned int ret = 0;

	if (dir < 0)
		return 0;
	if (enable)
		enable_controllers(dir);
	at = add_hierarchy(leaf, dir, true);
	if (at < 0)
		return 0;
	for (int i = 0; i < CG_COUNT; i++)
		ret += works(leaf, (size_t)at, (enum cgroup_controller)i);
	drop_hierarchy(leaf);
	return ret;
}

/* Our own cgroup has us and the host in it, so that a version 2 leaf beneath it gets
 * no controllers (only cgroup.kill), unless it is the root. An ancestor may do
 * better, up to the one that was delegated to our user; beyond it they belong to
 * others, and we would slip out of limits that are meant for us. */
static void find_v2(struct leaf *leaf, const char *mount, const char *root, const char *own)
{
	char path[4096], boundary[4096], best_path[4096];
	bool have_boundary = false;
	unsigned int best = 0;
	int dir, at;

	if (!own_path(own, NULL, path, sizeof(path)))
		return;
	snprintf(boundary, sizeof(boundary), "%s", path);
	for (;;) {
		char *slash;

		dir = open_own(mount, root, boundary);
		if (dir >= 0) {
			have_boundary = delegated(dir);
			close(dir);
		}
		slash = strrchr(boundary, '/');
		if (have_boundary || !slash || slash == boundary)
			break;
		*slash = '\0';
	}
	snprintf(best_path, sizeof(best_path), "%s", path);
	for (bool own_one = true;; own_one = false) {
		unsigned int now = try_v2(leaf, mount, root, path, !own_one);
		char *slash = strrchr(path, '/');

		if (now > best) {
			best = now;
			snprintf(best_path, sizeof(best_path), "%s", path);
		}
		if (!have_boundary || strcmp(path, boundary) == 0 || !slash || slash == path)
			break;
		*slash = '\0';
	}
	dir = best ? open_own(mount, root, best_path) : -1;
	at = dir < 0 ? -1 : add_hierarchy(leaf, dir, true);
	for (int i = 0; at >= 0 && i < CG_COUNT; i++) {
		if (cg.where[i] < 0 && works(leaf, (size_t)at, (enum cgroup_controller)i))
			cg.where[i] = at;
	}
}

/* Version 1 controllers first: one that is mounted there is not in version 2. */
static void find_all(struct leaf *leaf, FILE *mounts, const char *own, bool v2)
{
	char *line = NULL;
	size_t cap = 0;

	while (getline(&line, &cap, mounts) > 0 && cg.count < CG_COUNT) {
		char root[1024], mount[1024], type[32], options[256];
		char *tail = strstr(line, " - ");

		if (!tail || sscanf(line, "%*d %*d %*s %1023s %1023s", root, mount) != 2 ||
		    sscanf(tail, " - %31s %*s %255s", type, options) != 2)
			continue;
		unescape(root);
		unescape(mount);
		if (!v2 && strcmp(type, "cgroup") == 0)
			find_v1(leaf, mount, root, options, own);
		else if (v2 && strcmp(type, "cgroup2") == 0 && !uses(CG_KILL))
			find_v2(leaf, mount, root, own);
	}
	free(line);
}

void cgroup_init(void)
{
	char own[16384];
	struct leaf *leaf;
	struct stat ns;
	FILE *mounts;

	cg.owner = getpid();
	if (stat("/proc/self/ns/pid", &ns) == 0)
		cg.pidns = ns.st_ino;
	ad_list_init(&cg.pool);
	for (int i = 0; i < CG_COUNT; i++)
		cg.where[i] = -1;
	leaf = leaf_new();
	if (!leaf || read_small(AT_FDCWD, "/proc/self/cgroup", own, sizeof(own)) <= 0) {
		free(leaf);
		return;
	}
	for (int v2 = 0; v2 < 2; v2++) {
		mounts = fopen("/proc/self/mountinfo", "re");
		if (!mounts)
			break;
		find_all(leaf, mounts, own, v2 == 1);
		fclose(mounts);
	}
	if (uses(CG_MEMORY))
		cg.swap = has_file(leaf, where(CG_MEMORY),
				   is_v2(CG_MEMORY) ? "memory.swap.max" :
						      "memory.memsw.limit_in_bytes");
	leaf_remove(leaf);
}
