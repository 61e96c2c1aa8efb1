/* SPDX-License-Identifier: MIT */
#include "trees.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <check.h>

#include "util/util.h"

enum { PATHS_MAX = 512 };

/* ---- places */

void scratch_open(struct scratch *scratch)
{
	const char *base = getenv("TMPDIR");

	snprintf(scratch->path, sizeof(scratch->path), "%s/agentd-archive.XXXXXX",
		 base ? base : "/tmp");
	ck_assert_ptr_nonnull(mkdtemp(scratch->path));
	scratch->fd = open(scratch->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ck_assert_int_ge(scratch->fd, 0);
}

static void remove_path(char *path)
{
	char *paths[] = { path, NULL };
	/* By chdir(2): deeper than any path is long. */
	FTS *fts = fts_open(paths, FTS_PHYSICAL, NULL);
	FTSENT *entry;

	ck_assert_ptr_nonnull(fts);
	while ((entry = fts_read(fts))) {
		if (entry->fts_info == FTS_D)
			chmod(entry->fts_accpath, S_IRWXU);
		else if (entry->fts_info == FTS_DP)
			rmdir(entry->fts_accpath);
		else
			unlink(entry->fts_accpath);
	}
	fts_close(fts);
}

void scratch_close(struct scratch *scratch)
{
	close(scratch->fd);
	remove_path(scratch->path);
	ck_assert_int_lt(access(scratch->path, F_OK), 0);
}

int scratch_dir(const struct scratch *scratch, const char *name)
{
	int fd;

	ck_assert_int_eq(mkdirat(scratch->fd, name, 0755), 0);
	fd = openat(scratch->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	return fd;
}

void put_file(int dir_fd, const char *path, const void *data, size_t len, mode_t mode)
{
	int fd = openat(dir_fd, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	ck_assert_msg(fd >= 0, "%s: %s", path, strerror(errno));
	ck_assert_int_eq(write(fd, data, len), (ssize_t)len);
	ck_assert_int_eq(fchmod(fd, mode), 0);
	close(fd);
}

void put_text(int dir_fd, const char *path, const char *text)
{
	put_file(dir_fd, path, text, strlen(text), 0644);
}

char *get_text(int dir_fd, const char *path)
{
	int fd = openat(dir_fd, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	char buf[4096];
	ssize_t n;

	if (fd < 0)
		return NULL;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	ck_assert_int_ge(n, 0);
	buf[n] = '\0';
	return strdup(buf);
}

void remove_tree(int dir_fd, const char *path)
{
	char full[2 * PATH_MAX], base[PATH_MAX], link[64];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", dir_fd);
	n = readlink(link, base, sizeof(base) - 1);
	ck_assert_int_gt(n, 0);
	base[n] = '\0';
	snprintf(full, sizeof(full), "%s/%s", base, path);
	remove_path(full);
}

/* ---- at random */

uint32_t rng_below(struct rng *rng, uint32_t bound)
{
	rng->state = rng->state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(rng->state >> 33) % bound;
}

static void random_name(struct rng *rng, char name[static NAME_MAX + 1])
{
	size_t len = rng_below(rng, 12) == 0 ? NAME_MAX : 1 + rng_below(rng, 12);

	do {
		for (size_t i = 0; i < len; i++) {
			do
				name[i] = (char)(1 + rng_below(rng, 255));
			while (name[i] == '/');
		}
		name[len] = '\0';
	} while (strcmp(name, ".") == 0 || strcmp(name, "..") == 0);
}

/* All paths of a kind: S_IFMT of them, or 0 for all. */
struct paths {
	size_t count;
	char *items[PATHS_MAX];
};

static void free_paths(struct paths *paths)
{
	for (size_t i = 0; i < paths->count; i++)
		free(paths->items[i]);
	paths->count = 0;
}

static void collect(int dir_fd, const char *prefix, mode_t kind, struct paths *paths)
{
	DIR *dir = fdopendir(openat(dir_fd, *prefix ? prefix : ".", O_RDONLY | O_DIRECTORY));
	struct dirent *entry;

	ck_assert_ptr_nonnull(dir);
	while ((entry = readdir(dir))) {
		char path[PATH_MAX];
		struct stat st;

		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		snprintf(path, sizeof(path), "%s%s%s", prefix, *prefix ? "/" : "", entry->d_name);
		ck_assert_int_eq(fstatat(dir_fd, path, &st, AT_SYMLINK_NOFOLLOW), 0);
		if (paths->count < PATHS_MAX && (kind == 0 || (st.st_mode & S_IFMT) == kind))
			paths->items[paths->count++] = strdup(path);
		if (S_ISDIR(st.st_mode))
			collect(dir_fd, path, kind, paths);
	}
	closedir(dir);
}

/* NULL: there is none. To be freed. */
static char *random_path(int dir_fd, struct rng *rng, mode_t kind)
{
	struct paths *paths = calloc(1, sizeof(*paths));
	char *ret = NULL;

	ck_assert_ptr_nonnull(paths);
	collect(dir_fd, "", kind, paths);
	if (paths->count > 0) {
		size_t i = rng_below(rng, (uint32_t)paths->count);

		ret = AD_STEAL(paths->items[i]);
	}
	free_paths(paths);
	free(paths);
	return ret;
}

/* A name that is free, in the root or a directory of the tree, and no longer than that
 * all calls take it. */
static void random_place(int dir_fd, struct rng *rng, char path[static PATH_MAX])
{
	struct stat st;

	do {
		char *dir = rng_below(rng, 3) == 0 ? NULL : random_path(dir_fd, rng, S_IFDIR);
		char name[NAME_MAX + 1];

		random_name(rng, name);
		if (dir && strlen(dir) > PATH_MAX / 2)
			dir[0] = '\0';
		snprintf(path, PATH_MAX, "%s%s%s", dir ? dir : "", dir && *dir ? "/" : "", name);
		free(dir);
	} while (fstatat(dir_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0);
}

static void random_bytes(int fd, struct rng *rng, off_t at, size_t len)
{
	char *data = malloc(len + 1);

	ck_assert_ptr_nonnull(data);
	for (size_t i = 0; i < len; i++)
		data[i] = (char)rng_below(rng, 256);
	ck_assert_int_eq(pwrite(fd, data, len, at), (ssize_t)len);
	free(data);
}

static void random_time(int dir_fd, struct rng *rng, const char *path)
{
	/* From 1953 on. */
	const struct timespec times[2] = {
		{ .tv_nsec = UTIME_OMIT },
		{ .tv_sec = (time_t)rng_below(rng, INT32_MAX) - INT32_MAX / 4,
		  .tv_nsec = rng_below(rng, 1000000000) },
	};

	ck_assert_int_eq(utimensat(dir_fd, path, times, AT_SYMLINK_NOFOLLOW), 0);
}

static mode_t random_mode(struct rng *rng, bool dir)
{
	static const mode_t files[] = { 0644, 0755, 0400, 0444, 0777, 0, 0111, 0222 };
	static const mode_t dirs[] = { 0755, 0700, 0777, 01777, 0, 0555, 0111 };

	/* The others can be read by root only. */
	if (geteuid() != 0)
		return dir ? dirs[rng_below(rng, 4)] : files[rng_below(rng, 5)];
	return dir ? dirs[rng_below(rng, AD_COUNT(dirs))] : files[rng_below(rng, AD_COUNT(files))];
}

static void make_random_file(int dir_fd, struct rng *rng, const char *path)
{
	enum { HOLE = 1 << 20 };
	int fd = openat(dir_fd, path, O_WRONLY | O_CREAT | O_EXCL, 0600);

	ck_assert_int_ge(fd, 0);
	switch (rng_below(rng, 6)) {
	case 0:
		break;
	case 1:
		random_bytes(fd, rng, rng_below(rng, HOLE), 1 + rng_below(rng, 9000));
		random_bytes(fd, rng, HOLE + rng_below(rng, HOLE), 1 + rng_below(rng, 9000));
		ck_assert_int_eq(ftruncate(fd, 2 * HOLE + rng_below(rng, HOLE)), 0);
		break;
	case 2:
		ck_assert_int_eq(ftruncate(fd, 1 + rng_below(rng, HOLE)), 0);
		break;
	case 3:
		random_bytes(fd, rng, 0, 250000 + rng_below(rng, 300000));
		break;
	default:
		random_bytes(fd, rng, 0, rng_below(rng, 3000));
		break;
	}
	ck_assert_int_eq(fchmod(fd, random_mode(rng, false)), 0);
	close(fd);
}

static void make_random_link(int dir_fd, struct rng *rng, const char *path)
{
	char target[PATH_MAX];

	switch (rng_below(rng, 4)) {
	case 0:
		strcpy(target, "/nowhere/at all");
		break;
	case 1:
		memset(target, 'x', sizeof(target));
		target[sizeof(target) - 1 - rng_below(rng, 200)] = '\0';
		target[sizeof(target) - 1] = '\0';
		break;
	case 2:
		strcpy(target, "..");
		break;
	default:
		random_name(rng, target);
		break;
	}
	ck_assert_int_eq(symlinkat(target, dir_fd, path), 0);
}

static void make_random(int dir_fd, struct rng *rng)
{
	char path[PATH_MAX];
	char *other = NULL;

	random_place(dir_fd, rng, path);
	switch (rng_below(rng, 8)) {
	case 0:
	case 1:
		ck_assert_int_eq(mkdirat(dir_fd, path, 0700), 0);
		ck_assert_int_eq(fchmodat(dir_fd, path, random_mode(rng, true), 0), 0);
		break;
	case 2:
		make_random_link(dir_fd, rng, path);
		break;
	case 3:
		other = random_path(dir_fd, rng, S_IFREG);
		if (other && linkat(dir_fd, other, dir_fd, path, 0) == 0)
			break;
		/* fall through */
	default:
		make_random_file(dir_fd, rng, path);
		break;
	}
	free(other);
	random_time(dir_fd, rng, path);
}

void random_tree(int dir_fd, struct rng *rng, unsigned int entries)
{
	struct paths *dirs = calloc(1, sizeof(*dirs));

	ck_assert_ptr_nonnull(dirs);
	for (unsigned int i = 0; i < entries; i++)
		make_random(dir_fd, rng);
	collect(dir_fd, "", S_IFDIR, dirs);
	for (size_t i = 0; i < dirs->count; i++)
		random_time(dir_fd, rng, dirs->items[i]);
	free_paths(dirs);
	free(dirs);
}

static void change_random(int dir_fd, struct rng *rng)
{
	char *path = random_path(dir_fd, rng, 0);
	char place[PATH_MAX];
	struct stat st;
	int fd;

	if (!path || rng_below(rng, 4) == 0) {
		make_random(dir_fd, rng);
		free(path);
		return;
	}
	ck_assert_int_eq(fstatat(dir_fd, path, &st, AT_SYMLINK_NOFOLLOW), 0);
	switch (rng_below(rng, 7)) {
	case 0:
		fd = openat(dir_fd, path, O_WRONLY | O_APPEND | O_NOFOLLOW);
		if (fd >= 0) {
			random_bytes(fd, rng, 0, 1 + rng_below(rng, 100));
			close(fd);
		}
		break;
	case 1:
		if (!S_ISLNK(st.st_mode))
			ck_assert_int_eq(fchmodat(dir_fd, path,
						  random_mode(rng, S_ISDIR(st.st_mode)), 0),
					 0);
		break;
	case 2:
		remove_tree(dir_fd, path);
		break;
	case 3:
		/* A directory does not go into itself. */
		random_place(dir_fd, rng, place);
		if (renameat(dir_fd, path, dir_fd, place) < 0)
			ck_assert_int_eq(errno, EINVAL);
		break;
	case 4:
		remove_tree(dir_fd, path);
		make_random_file(dir_fd, rng, path);
		break;
	case 5:
		remove_tree(dir_fd, path);
		make_random_link(dir_fd, rng, path);
		break;
	default:
		remove_tree(dir_fd, path);
		ck_assert_int_eq(mkdirat(dir_fd, path, 0755), 0);
		make_random(dir_fd, rng);
		break;
	}
	free(path);
}

void random_changes(int dir_fd, struct rng *rng, unsigned int changes)
{
	for (unsigned int i = 0; i < changes; i++)
		change_random(dir_fd, rng);
}

/* ---- described */

struct described {
	char *path;
	struct stat st;
};

static int compare_described(const void *a, const void *b)
{
	return strcmp(((const struct described *)a)->path, ((const struct described *)b)->path);
}

static uint64_t hash_file(int dir_fd, const char *path)
{
	int fd = openat(dir_fd, path, O_RDONLY | O_NOFOLLOW);
	uint64_t hash = 14695981039346656037u;
	char buf[65536];
	ssize_t n;

	ck_assert_msg(fd >= 0, "%s: %s", path, strerror(errno));
	while ((n = read(fd, buf, sizeof(buf))) > 0)
		for (ssize_t i = 0; i < n; i++)
			hash = (hash ^ (unsigned char)buf[i]) * 1099511628211u;
	ck_assert_int_eq(n, 0);
	close(fd);
	return hash;
}

/* So that a name is one word. */
static void put_escaped(struct ad_buf *buf, const char *text)
{
	for (; *text; text++) {
		if (*text > ' ' && *text < 0x7f)
			ad_buf_append(buf, text, 1);
		else
			ad_buf_printf(buf, "%%%02x", (unsigned char)*text);
	}
}

static void describe_one(struct ad_buf *buf, int dir_fd, const struct described *all, size_t i,
			 bool dir_times)
{
	const struct stat *st = &all[i].st;
	char target[PATH_MAX];
	ssize_t n;

	put_escaped(buf, all[i].path);
	ad_buf_printf(buf, " %06o", st->st_mode);
	if (dir_times || !S_ISDIR(st->st_mode))
		ad_buf_printf(buf, " %" PRId64 ".%09ld", (int64_t)st->st_mtim.tv_sec,
			      st->st_mtim.tv_nsec);
	if (S_ISREG(st->st_mode)) {
		size_t first = 0;

		while (all[first].st.st_ino != st->st_ino)
			first++;
		ad_buf_printf(buf, " %" PRId64 " %016" PRIx64 " as ", (int64_t)st->st_size,
			      hash_file(dir_fd, all[i].path));
		put_escaped(buf, all[first].path);
	} else if (S_ISLNK(st->st_mode)) {
		n = readlinkat(dir_fd, all[i].path, target, sizeof(target) - 1);
		ck_assert_int_gt(n, 0);
		target[n] = '\0';
		ad_buf_puts(buf, " to ");
		put_escaped(buf, target);
	}
	ad_buf_puts(buf, "\n");
}

char *describe(int dir_fd, bool dir_times)
{
	struct paths *paths = calloc(1, sizeof(*paths));
	struct described *all;
	struct ad_buf buf = { 0 };

	ck_assert_ptr_nonnull(paths);
	collect(dir_fd, "", 0, paths);
	ck_assert_uint_lt(paths->count, PATHS_MAX);
	all = calloc(paths->count + 1, sizeof(*all));
	ck_assert_ptr_nonnull(all);
	for (size_t i = 0; i < paths->count; i++) {
		all[i].path = paths->items[i];
		ck_assert_int_eq(fstatat(dir_fd, all[i].path, &all[i].st, AT_SYMLINK_NOFOLLOW), 0);
	}
	qsort(all, paths->count, sizeof(*all), compare_described);
	for (size_t i = 0; i < paths->count; i++)
		describe_one(&buf, dir_fd, all, i, dir_times);
	ad_buf_puts(&buf, "");
	free(all);
	free_paths(paths);
	free(paths);
	return ad_buf_steal(&buf);
}

void check_same_tree(int a, int b, bool dir_times)
{
	char *one = describe(a, dir_times), *two = describe(b, dir_times);
	const char *x = one, *y = two;

	ck_assert_ptr_nonnull(one);
	ck_assert_ptr_nonnull(two);
	while (*x || *y) {
		size_t m = strcspn(x, "\n"), n = strcspn(y, "\n");

		ck_assert_msg(m == n && memcmp(x, y, n) == 0, "\"%.*s\" is not \"%.*s\"", (int)m, x,
			      (int)n, y);
		x += m + (x[m] == '\n');
		y += n + (y[n] == '\n');
	}
	free(one);
	free(two);
}

/* ---- jobs */

static void keep_note(const struct ad_carry_record *record, void *userdata)
{
	struct notes *notes = userdata;
	size_t i = notes->count++;

	if (i >= NOTES_KEPT)
		return;
	notes->kept[i] = *record;
	snprintf(notes->paths[i], sizeof(notes->paths[i]), "%s", record->path);
	notes->kept[i].path = notes->paths[i];
}

struct notes *notes_new(void)
{
	struct notes *notes = calloc(1, sizeof(*notes));

	ck_assert_ptr_nonnull(notes);
	return notes;
}

const struct ad_carry_record *notes_find(const struct notes *notes, const char *path)
{
	for (size_t i = 0; i < notes->count && i < NOTES_KEPT; i++)
		if (strcmp(notes->paths[i], path) == 0)
			return &notes->kept[i];
	return NULL;
}

struct ad_archive_job job_on(int dir_fd, int archive_fd, struct notes *notes)
{
	return (struct ad_archive_job){
		.dir_fd = dir_fd,
		.fd = archive_fd,
		.max_bytes = (uint64_t)1 << 40,
		.max_entries = AD_ARCHIVE_ENTRIES_MAX,
		.uid = (uid_t)-1,
		.gid = (gid_t)-1,
		.note = keep_note,
		.userdata = notes,
	};
}

int memory_file(void)
{
	int fd = memfd_create("archive", MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	return fd;
}
