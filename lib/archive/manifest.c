/* SPDX-License-Identifier: MIT */
#include "archive/private.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/util.h"

static const uint64_t saved_form = 0x3174736566696e61; /* "anifest1" */

/* What is in the file before the arrays. */
struct saved {
	uint64_t form;
	uint32_t count, names_len;
};

void ad_manifest_free(struct ad_manifest *manifest)
{
	if (!manifest)
		return;
	free(manifest->entries);
	free(manifest->names);
	free(manifest->index);
	free(manifest);
}

/* ---- the index */

/* Like FNV-1a, but with a factor of this process only: a command chooses the names, and must not
 * be able to have them all in one place. */
static uint32_t hash(uint32_t parent, const char *name, size_t len)
{
	static uint64_t factor;
	uint64_t value = parent + UINT64_C(14695981039346656037);

	if (!factor) {
		if (getrandom(&factor, sizeof(factor), GRND_NONBLOCK) != sizeof(factor))
			factor = UINT64_C(1099511628211); /* FNV's own */
		factor |= 1;
	}
	value *= factor;
	for (size_t i = 0; i < len; i++)
		value = (value ^ (unsigned char)name[i]) * factor;
	return (uint32_t)(value >> 32);
}

const char *manifest_name(const struct ad_manifest *manifest, uint32_t i)
{
	return manifest->names + manifest->entries[i].name;
}

/* Where it is in the index, or would be. */
static uint32_t slot(const struct ad_manifest *manifest, uint32_t parent, const char *name,
		     size_t len)
{
	uint32_t at = hash(parent, name, len) & (manifest->index_size - 1);

	for (;; at = (at + 1) & (manifest->index_size - 1)) {
		uint32_t i = manifest->index[at];

		if (i == MANIFEST_NONE)
			return at;
		if (manifest->entries[i].parent == parent &&
		    strncmp(manifest_name(manifest, i), name, len) == 0 &&
		    manifest_name(manifest, i)[len] == '\0')
			return at;
	}
}

static bool reindex(struct ad_manifest *manifest, uint32_t size)
{
	uint32_t *index = reallocarray(manifest->index, size, sizeof(*index));

	if (!index)
		return false;
	manifest->index = index;
	manifest->index_size = size;
	memset(index, 0xff, size * sizeof(*index));
	for (uint32_t i = 1; i < manifest->count; i++) {
		const char *name = manifest_name(manifest, i);

		index[slot(manifest, manifest->entries[i].parent, name, strlen(name))] = i;
	}
	return true;
}

/* ---- entries */

static int64_t in_ns(const struct timespec *time)
{
	return (int64_t)time->tv_sec * 1000000000 + time->tv_nsec;
}

void entry_set(struct entry *entry, const struct stat *st)
{
	entry->ino = st->st_ino;
	entry->size = (uint64_t)st->st_size;
	entry->mtime_ns = in_ns(&st->st_mtim);
	entry->ctime_ns = in_ns(&st->st_ctim);
	entry->mode = st->st_mode;
}

struct timespec entry_mtime(const struct entry *entry)
{
	int64_t seconds = entry->mtime_ns / 1000000000, rest = entry->mtime_ns % 1000000000;

	if (rest < 0) {
		seconds--;
		rest += 1000000000;
	}
	return (struct timespec){ .tv_sec = seconds, .tv_nsec = rest };
}

struct ad_manifest *manifest_new(void)
{
	enum { INDEX_FIRST = 256 };
	struct ad_manifest *manifest = calloc(1, sizeof(*manifest));
	static const struct stat root = { .st_mode = S_IFDIR };

	if (manifest && reindex(manifest, INDEX_FIRST) &&
	    manifest_add(manifest, MANIFEST_NONE, "", &root) == MANIFEST_ROOT)
		return manifest;
	ad_manifest_free(manifest);
	return NULL;
}

static bool reserve(struct ad_manifest *manifest, uint32_t name_size)
{
	enum { ENTRIES_FIRST = 64, NAMES_FIRST = 1024 };

	if (manifest->count == manifest->cap) {
		uint32_t cap = manifest->cap ? manifest->cap * 2 : ENTRIES_FIRST;
		struct entry *entries = reallocarray(manifest->entries, cap, sizeof(*entries));

		if (!entries)
			return false;
		manifest->entries = entries;
		manifest->cap = cap;
	}
	if (name_size > manifest->names_cap - manifest->names_len) {
		uint32_t cap = manifest->names_cap ? manifest->names_cap * 2 : NAMES_FIRST;
		char *names = realloc(manifest->names, cap);

		if (!names)
			return false;
		manifest->names = names;
		manifest->names_cap = cap;
	}
	return manifest->count < manifest->index_size / 2 ||
	       reindex(manifest, manifest->index_size * 2);
}

uint32_t manifest_add(struct ad_manifest *manifest, uint32_t parent, const char *name,
		      const struct stat *st)
{
	size_t len = strlen(name);
	uint32_t i = manifest->count;
	struct entry *entry;

	if (i > MANIFEST_MAX || len > NAME_MAX || !reserve(manifest, (uint32_t)len + 1))
		return MANIFEST_NONE;
	entry = &manifest->entries[i];
	*entry = (struct entry){
		.parent = parent, .name = manifest->names_len, .first = i, .twin = MANIFEST_NONE
	};
	entry_set(entry, st);
	memcpy(manifest->names + manifest->names_len, name, len + 1);
	manifest->names_len += (uint32_t)len + 1;
	manifest->index[slot(manifest, parent, name, len)] = i;
	manifest->count++;
	return i;
}

uint32_t manifest_child(const struct ad_manifest *manifest, uint32_t parent, const char *name,
			size_t len)
{
	return manifest->index[slot(manifest, parent, name, len)];
}

uint32_t manifest_find(const struct ad_manifest *manifest, const char *path)
{
	uint32_t i = MANIFEST_ROOT;

	while (i != MANIFEST_NONE && *path) {
		size_t len = strcspn(path, "/");

		i = manifest_child(manifest, i, path, len);
		path += len + (path[len] == '/');
	}
	return i;
}

uint32_t manifest_put(struct ad_manifest *manifest, const char *path, const struct stat *st)
{
	static const struct stat nothing = { 0 };
	uint32_t i = MANIFEST_ROOT;

	while (*path) {
		char name[NAME_MAX + 1];
		size_t len = strcspn(path, "/");
		uint32_t child;

		if (len > NAME_MAX)
			return MANIFEST_NONE;
		memcpy(name, path, len);
		name[len] = '\0';
		child = manifest_child(manifest, i, name, len);
		if (child == MANIFEST_NONE)
			child = manifest_add(manifest, i, name, &nothing);
		if (child == MANIFEST_NONE)
			return MANIFEST_NONE;
		i = child;
		path += len + (path[len] == '/');
	}
	entry_set(&manifest->entries[i], st);
	return i;
}

size_t manifest_path(const struct ad_manifest *manifest, uint32_t i,
		     char path[static AD_CARRY_PATH_MAX])
{
	size_t len = 0, at;

	for (uint32_t j = i; j != MANIFEST_ROOT; j = manifest->entries[j].parent)
		len += strlen(manifest_name(manifest, j)) + 1;
	if (len == 0 || len > AD_CARRY_PATH_MAX)
		return 0;
	at = len;
	for (uint32_t j = i; j != MANIFEST_ROOT; j = manifest->entries[j].parent) {
		const char *name = manifest_name(manifest, j);
		size_t size = strlen(name);

		path[--at] = j == i ? '\0' : '/';
		at -= size;
		memcpy(path + at, name, size);
	}
	return len - 1;
}

bool manifest_same(const struct ad_manifest *manifest, uint32_t i, const struct entry *now)
{
	const struct entry *entry = &manifest->entries[i];

	if (now->mode != entry->mode)
		return false;
	if (S_ISDIR(now->mode))
		return true;
	return now->ino == entry->ino && now->size == entry->size &&
	       now->mtime_ns == entry->mtime_ns &&
	       now->ctime_ns == manifest->entries[entry->first].ctime_ns;
}

/* ---- in a file */

static bool write_all(int fd, const void *data, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		data = (const char *)data + n;
		len -= (size_t)n;
	}
	return true;
}

static bool read_all(int fd, void *data, size_t len)
{
	while (len > 0) {
		ssize_t n = read(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0)
			errno = ENODATA;
		if (n <= 0)
			return false;
		data = (char *)data + n;
		len -= (size_t)n;
	}
	return true;
}

int ad_manifest_save(const struct ad_manifest *manifest, int fd)
{
	const struct saved head = { .form = saved_form,
				    .count = manifest->count,
				    .names_len = manifest->names_len };

	if (!write_all(fd, &head, sizeof(head)) ||
	    !write_all(fd, manifest->entries, head.count * sizeof(*manifest->entries)) ||
	    !write_all(fd, manifest->names, head.names_len))
		return -errno;
	return 0;
}

int ad_manifest_load(int fd, struct ad_manifest **ret)
{
	struct ad_manifest *manifest = calloc(1, sizeof(*manifest));
	uint32_t index_size = 1;
	struct saved head;
	int r = -ENOMEM;

	if (!manifest)
		return r;
	if (!read_all(fd, &head, sizeof(head))) {
		r = -errno;
		goto fail;
	}
	r = -EINVAL;
	if (head.form != saved_form || head.count == 0 || head.count > MANIFEST_MAX)
		goto fail;
	r = -ENOMEM;
	manifest->entries = reallocarray(NULL, head.count, sizeof(*manifest->entries));
	manifest->names = malloc(head.names_len);
	if (!manifest->entries || !manifest->names)
		goto fail;
	manifest->count = manifest->cap = head.count;
	manifest->names_len = manifest->names_cap = head.names_len;
	if (!read_all(fd, manifest->entries, head.count * sizeof(*manifest->entries)) ||
	    !read_all(fd, manifest->names, head.names_len)) {
		r = -errno;
		goto fail;
	}
	while (index_size / 2 <= head.count)
		index_size *= 2;
	if (!reindex(manifest, index_size))
		goto fail;
	*ret = manifest;
	return 0;
fail:
	ad_manifest_free(manifest);
	return r;
}
