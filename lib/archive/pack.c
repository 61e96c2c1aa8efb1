/* SPDX-License-Identifier: MIT */
#include "archive/private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "util/util.h"

enum { CHUNK = 256 * 1024 };

/* A name of a file that has others. */
struct name {
	uint64_t dev, ino;
	uint32_t entry;
};

struct pack {
	struct ad_archive_job *job;
	struct ad_manifest *manifest, *since; /* since: NULL for all of the tree */
	struct tree tree;
	struct name *names;
	size_t name_count, name_cap;
	struct extents extents; /* of the present file */
	struct writer writer;
	char path[AD_CARRY_PATH_MAX];
	char chunk[CHUNK];
};

static int fail_errno(struct pack *pack, int os_errno)
{
	return ad_archive_fail_errno(pack->job, os_errno, pack->path);
}

static void skip(struct pack *pack, enum ad_carry_reason reason)
{
	ad_archive_note(pack->job, AD_CARRY_SKIPPED, reason, 0, pack->path);
}

/* Another process has removed or replaced it. */
static bool is_gone(int error)
{
	return error == ENOENT || error == ENOTDIR || error == ELOOP || error == ESTALE;
}

static bool is_closed(int error)
{
	return error == EACCES || error == EPERM;
}

/* ---- what is there */

static struct entry *since_twin(struct pack *pack, uint32_t i)
{
	uint32_t twin = pack->manifest->entries[i].twin;

	return twin == MANIFEST_NONE ? NULL : &pack->since->entries[twin];
}

/* What the older manifest has of that name in that directory. */
static uint32_t find_twin(struct pack *pack, uint32_t parent, const char *name)
{
	uint32_t above = pack->manifest->entries[parent].twin, i;

	if (above == MANIFEST_NONE)
		return MANIFEST_NONE;
	i = manifest_child(pack->since, above, name, strlen(name));
	if (i == MANIFEST_NONE || pack->since->entries[i].flags & ENTRY_ABSENT)
		return MANIFEST_NONE;
	return i;
}

static bool add_name(struct pack *pack, const struct stat *st, uint32_t i)
{
	enum { NAMES_FIRST = 64 };

	if (pack->name_count == pack->name_cap) {
		size_t cap = pack->name_cap ? pack->name_cap * 2 : NAMES_FIRST;
		struct name *names = reallocarray(pack->names, cap, sizeof(*names));

		if (!names)
			return false;
		pack->names = names;
		pack->name_cap = cap;
	}
	pack->names[pack->name_count++] =
		(struct name){ .dev = st->st_dev, .ino = st->st_ino, .entry = i };
	return true;
}

/* pack->path is that of the directory, and then of what is in it. */
static int add_child(struct pack *pack, uint32_t parent, int dir_fd, const char *name)
{
	size_t len = strlen(pack->path), size = strlen(name) + 1;
	uint32_t twin = find_twin(pack, parent, name), i;
	struct stat st;
	int r = 0;

	if (len + 1 + size > sizeof(pack->path)) {
		skip(pack, AD_CARRY_LONG);
		return 0;
	}
	if (len > 0)
		pack->path[len] = '/';
	memcpy(pack->path + len + (len > 0), name, size);
	if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		if (is_closed(errno)) {
			skip(pack, AD_CARRY_UNREADABLE);
			if (twin != MANIFEST_NONE)
				pack->since->entries[twin].flags |= ENTRY_SEEN;
		} else if (!is_gone(errno)) {
			r = fail_errno(pack, errno);
		}
		goto out;
	}
	if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode) && !S_ISLNK(st.st_mode)) {
		skip(pack, AD_CARRY_SPECIAL);
		goto out;
	}
	/* The root is not one of them. */
	if (pack->manifest->count > pack->job->max_entries) {
		r = ad_archive_fail(pack->job, AD_CARRY_ENTRIES, pack->path);
		goto out;
	}
	i = manifest_add(pack->manifest, parent, name, &st);
	if (i == MANIFEST_NONE ||
	    (S_ISREG(st.st_mode) && st.st_nlink > 1 && !add_name(pack, &st, i))) {
		r = fail_errno(pack, ENOMEM);
		goto out;
	}
	if (twin != MANIFEST_NONE &&
	    S_ISDIR(pack->since->entries[twin].mode) == S_ISDIR(st.st_mode)) {
		pack->manifest->entries[i].twin = twin;
		pack->since->entries[twin].flags |= ENTRY_SEEN;
	}
out:
	pack->path[len] = '\0';
	return r;
}

static int list(struct pack *pack, uint32_t i)
{
	struct entry *twin;
	int dir_fd, fd, r = 0;
	DIR *dir;

	if (i == MANIFEST_ROOT)
		pack->path[0] = '\0';
	else if (manifest_path(pack->manifest, i, pack->path) == 0)
		return fail_errno(pack, ENAMETOOLONG);
	dir_fd = tree_dir(&pack->tree, pack->path, strlen(pack->path));
	fd = dir_fd < 0 ? dir_fd : openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		int error = dir_fd < 0 ? -dir_fd : errno;

		if (i != MANIFEST_ROOT && is_closed(error)) {
			skip(pack, AD_CARRY_UNREADABLE);
			return 0;
		}
		if (i == MANIFEST_ROOT || !is_gone(error))
			return fail_errno(pack, error);
		pack->manifest->entries[i].flags |= ENTRY_ABSENT;
		return 0;
	}
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return fail_errno(pack, ENOMEM);
	}
	while (r == 0) {
		const struct dirent *child;

		errno = 0;
		child = readdir(dir);
		if (!child) {
			if (errno)
				r = fail_errno(pack, errno);
			break;
		}
		if (strcmp(child->d_name, ".") != 0 && strcmp(child->d_name, "..") != 0)
			r = add_child(pack, i, fd, child->d_name);
	}
	closedir(dir);
	twin = since_twin(pack, i);
	if (twin)
		twin->flags |= ENTRY_LISTED;
	return r;
}

static int compare_names(const void *a, const void *b)
{
	const struct name *x = a, *y = b;

	if (x->dev != y->dev)
		return x->dev < y->dev ? -1 : 1;
	if (x->ino != y->ino)
		return x->ino < y->ino ? -1 : 1;
	return x->entry < y->entry ? -1 : x->entry > y->entry;
}

static void group_names(struct pack *pack)
{
	if (pack->name_count == 0)
		return;
	qsort(pack->names, pack->name_count, sizeof(*pack->names), compare_names);
	for (size_t i = 1; i < pack->name_count; i++) {
		const struct name *before = &pack->names[i - 1], *name = &pack->names[i];

		if (before->dev == name->dev && before->ino == name->ino)
			pack->manifest->entries[name->entry].first =
				pack->manifest->entries[before->entry].first;
	}
}

/* A file system tells times apart no better than by this clock. */
static void await_tick(const struct ad_manifest *manifest)
{
	enum { SLEEP_NS = 500000, TRIES = 100 };
	const struct timespec step = { .tv_nsec = SLEEP_NS };
	int64_t newest = 0;

	for (uint32_t i = 1; i < manifest->count; i++)
		if (manifest->entries[i].ctime_ns > newest)
			newest = manifest->entries[i].ctime_ns;
	/* Another machine's clock may be ahead for long. */
	for (int i = 0; i < TRIES; i++) {
		struct timespec now;

		if (clock_gettime(CLOCK_REALTIME_COARSE, &now) < 0 ||
		    (int64_t)now.tv_sec * 1000000000 + now.tv_nsec > newest)
			return;
		nanosleep(&step, NULL);
	}
}

static int scan(struct pack *pack)
{
	pack->manifest = manifest_new();
	if (!pack->manifest)
		return fail_errno(pack, ENOMEM);
	if (pack->since)
		pack->manifest->entries[MANIFEST_ROOT].twin = MANIFEST_ROOT;
	for (uint32_t i = 0; i < pack->manifest->count; i++)
		if (S_ISDIR(pack->manifest->entries[i].mode) && list(pack, i) < 0)
			return -1;
	group_names(pack);
	return 0;
}

/* ---- the archive */

static int check(struct pack *pack, int r)
{
	return r < 0 ? fail_errno(pack, -r) : 0;
}

/* One without data. */
static int put_entry(struct pack *pack, const struct written *entry)
{
	pack->job->entries++;
	return check(pack, writer_entry(&pack->writer, entry));
}

static bool add_extent(struct extents *extents, off_t from, off_t len)
{
	enum { EXTENTS_FIRST = 64 };

	if (extents->count == extents->cap) {
		size_t cap = extents->cap ? extents->cap * 2 : EXTENTS_FIRST;
		struct extent *items = reallocarray(extents->items, cap, sizeof(*items));

		if (!items)
			return false;
		extents->items = items;
		extents->cap = cap;
	}
	extents->items[extents->count++] = (struct extent){ .from = from, .len = len };
	extents->sum += len;
	return true;
}

static bool find_extents(struct pack *pack, int fd, const struct stat *st)
{
	enum { STAT_BLOCK = 512 };
	struct extents *extents = &pack->extents;
	off_t at = 0;

	extents->count = 0;
	extents->sum = 0;
	if (st->st_blocks >= (st->st_size + STAT_BLOCK - 1) / STAT_BLOCK)
		return add_extent(extents, 0, st->st_size);
	while (at < st->st_size) {
		off_t from = lseek(fd, at, SEEK_DATA), to;

		/* A file system may know nothing of holes. */
		if (from < 0 && errno != ENXIO)
			from = at;
		if (from < 0 || from >= st->st_size)
			break;
		to = lseek(fd, from, SEEK_HOLE);
		if (to < 0 || to > st->st_size)
			to = st->st_size;
		if (!add_extent(extents, from, to - from))
			return false;
		at = to;
	}
	/* Where all is hole it is one of nothing. */
	return extents->count > 0 || add_extent(extents, st->st_size, 0);
}

/* What the file lacks by now is zeros. *ret_short is set then. */
static int put_extent(struct pack *pack, int fd, const struct extent *extent, bool *ret_short)
{
	for (off_t done = 0; done < extent->len;) {
		off_t left = extent->len - done;
		size_t part = left < CHUNK ? (size_t)left : CHUNK;
		ssize_t n = pread(fd, pack->chunk, part, extent->from + done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fail_errno(pack, errno);
		if (n == 0) {
			*ret_short = true;
			return check(pack, writer_data(&pack->writer, NULL, (size_t)left));
		}
		if (check(pack, writer_data(&pack->writer, pack->chunk, (size_t)n)) < 0)
			return -1;
		done += n;
	}
	return 0;
}

static int put_content(struct pack *pack, int fd, const struct stat *st)
{
	struct entry before, now;
	bool shorter = false;
	struct stat after;

	for (size_t i = 0; i < pack->extents.count; i++)
		if (put_extent(pack, fd, &pack->extents.items[i], &shorter) < 0)
			return -1;
	if (check(pack, writer_end_entry(&pack->writer)) < 0)
		return -1;
	if (fstat(fd, &after) < 0)
		return fail_errno(pack, errno);
	entry_set(&before, st);
	entry_set(&now, &after);
	if (shorter || now.mtime_ns != before.mtime_ns || now.ctime_ns != before.ctime_ns)
		skip(pack, AD_CARRY_UNSTABLE);
	return 0;
}

static int put_file(struct pack *pack, int fd, struct entry *entry, const struct stat *st)
{
	struct ad_archive_job *job = pack->job;
	const struct written written = {
		.type = WRITTEN_FILE,
		.mode = st->st_mode,
		.path = pack->path,
		.mtime = &st->st_mtim,
		.size = st->st_size,
		.extents = &pack->extents,
	};

	if (!find_extents(pack, fd, st))
		return fail_errno(pack, ENOMEM);
	if ((uint64_t)pack->extents.sum > job->max_bytes - job->bytes)
		return ad_archive_fail(job, AD_CARRY_BYTES, pack->path);
	entry_set(entry, st);
	if (put_entry(pack, &written) < 0 || put_content(pack, fd, st) < 0)
		return -1;
	job->bytes += (uint64_t)pack->extents.sum;
	entry->flags |= ENTRY_PACKED;
	return 0;
}

static int pack_file(struct pack *pack, struct entry *entry, int dir_fd, const char *name)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	struct stat st;
	int r = 0;

	if (fd < 0) {
		if (!is_gone(errno) && !is_closed(errno) && errno != ENXIO)
			return fail_errno(pack, errno);
		if (is_closed(errno))
			skip(pack, AD_CARRY_UNREADABLE);
		entry->flags |= ENTRY_ABSENT;
		return 0;
	}
	if (fstat(fd, &st) < 0) {
		r = fail_errno(pack, errno);
	} else if (!S_ISREG(st.st_mode)) {
		entry->flags |= ENTRY_ABSENT;
	} else {
		r = put_file(pack, fd, entry, &st);
	}
	close(fd);
	return r;
}

static int pack_link(struct pack *pack, struct entry *entry, int dir_fd, const char *name)
{
	char target[AD_CARRY_PATH_MAX];
	ssize_t len = readlinkat(dir_fd, name, target, sizeof(target) - 1);
	const struct timespec mtime = entry_mtime(entry);
	const struct written written = {
		.type = WRITTEN_LINK, .path = pack->path, .link = target, .mtime = &mtime
	};

	if (len <= 0) {
		if (len < 0 && !is_gone(errno) && errno != EINVAL)
			return fail_errno(pack, errno);
		entry->flags |= ENTRY_ABSENT;
		return 0;
	}
	target[len] = '\0';
	return put_entry(pack, &written);
}

static int pack_hard_link(struct pack *pack, const struct entry *entry)
{
	char target[AD_CARRY_PATH_MAX];
	const struct written written = { .type = WRITTEN_HARD_LINK,
					 .path = pack->path,
					 .link = target };

	manifest_path(pack->manifest, entry->first, target);
	return put_entry(pack, &written);
}

static int pack_dir(struct pack *pack, const struct entry *entry)
{
	const struct timespec mtime = entry_mtime(entry);
	const struct written written = {
		.type = WRITTEN_DIR, .mode = entry->mode, .path = pack->path, .mtime = &mtime
	};

	return put_entry(pack, &written);
}

static int pack_entry(struct pack *pack, uint32_t i)
{
	struct entry *entry = &pack->manifest->entries[i];
	const struct entry *first = &pack->manifest->entries[entry->first];
	const char *name;
	int dir_fd;

	if (entry->flags & ENTRY_ABSENT)
		return 0;
	if (pack->since && entry->twin != MANIFEST_NONE &&
	    manifest_same(pack->since, entry->twin, entry))
		return 0;
	manifest_path(pack->manifest, i, pack->path);
	if (S_ISDIR(entry->mode))
		return pack_dir(pack, entry);
	if (first != entry && first->flags & ENTRY_PACKED)
		return pack_hard_link(pack, entry);
	dir_fd = tree_parent(&pack->tree, pack->path, &name);
	if (dir_fd < 0) {
		if (!is_gone(-dir_fd) && !is_closed(-dir_fd))
			return fail_errno(pack, -dir_fd);
		entry->flags |= ENTRY_ABSENT;
		return 0;
	}
	return S_ISLNK(entry->mode) ? pack_link(pack, entry, dir_fd, name) :
				      pack_file(pack, entry, dir_fd, name);
}

/* What is no longer there: where its directory was read, and it was not in it. What is
 * in a directory goes first. */
static int pack_deletions(struct pack *pack)
{
	const struct written written = { .type = WRITTEN_DEVICE, .path = pack->path };
	struct ad_manifest *since = pack->since;

	for (uint32_t i = 1; i < since->count; i++) {
		struct entry *entry = &since->entries[i];
		unsigned int above = since->entries[entry->parent].flags;

		if (!(entry->flags & (ENTRY_SEEN | ENTRY_ABSENT)) &&
		    above & (ENTRY_LISTED | ENTRY_DELETED))
			entry->flags |= ENTRY_DELETED;
	}
	for (uint32_t i = since->count - 1; i > 0; i--) {
		if (!(since->entries[i].flags & ENTRY_DELETED))
			continue;
		manifest_path(since, i, pack->path);
		if (put_entry(pack, &written) < 0)
			return -1;
	}
	return 0;
}

static int pack_tree(struct pack *pack)
{
	const struct written end = { .type = WRITTEN_DIR, .mode = S_IRWXU, .path = "." };

	writer_init(&pack->writer, pack->job->fd);
	if (scan(pack) < 0)
		return -1;
	if (pack->since && pack_deletions(pack) < 0)
		return -1;
	for (uint32_t i = 1; i < pack->manifest->count; i++)
		if (pack_entry(pack, i) < 0)
			return -1;
	strcpy(pack->path, ".");
	if (check(pack, writer_entry(&pack->writer, &end)) < 0)
		return -1;
	return check(pack, writer_end(&pack->writer));
}

/* ---- from outside */

static struct pack *begin(struct ad_archive_job *job, struct ad_manifest *since)
{
	struct pack *pack = calloc(1, sizeof(*pack));

	job->entries = job->bytes = 0;
	if (!pack) {
		ad_archive_fail_errno(job, ENOMEM, "");
		return NULL;
	}
	pack->job = job;
	pack->since = since;
	if (since)
		for (uint32_t i = 0; i < since->count; i++)
			since->entries[i].flags &= ENTRY_ABSENT;
	tree_init(&pack->tree, job->dir_fd);
	return pack;
}

static int end(struct pack *pack, int r, struct ad_manifest **ret)
{
	if (r == 0 && ret) {
		await_tick(pack->manifest);
		*ret = AD_STEAL(pack->manifest);
	}
	tree_close(&pack->tree);
	ad_manifest_free(pack->manifest);
	free(pack->names);
	free(pack->extents.items);
	free(pack);
	return r;
}

int ad_archive_scan(struct ad_archive_job *job, struct ad_manifest **ret)
{
	struct pack *pack = begin(job, NULL);

	return pack ? end(pack, scan(pack), ret) : -1;
}

int ad_archive_pack(struct ad_archive_job *job, struct ad_manifest **ret)
{
	struct pack *pack = begin(job, NULL);

	return pack ? end(pack, pack_tree(pack), ret) : -1;
}

int ad_archive_pack_changes(struct ad_archive_job *job, struct ad_manifest *since)
{
	struct pack *pack = begin(job, since);

	return pack ? end(pack, pack_tree(pack), NULL) : -1;
}
