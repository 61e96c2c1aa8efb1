/* SPDX-License-Identifier: MIT */
#ifndef AD_ARCHIVE_PRIVATE_H
#define AD_ARCHIVE_PRIVATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <time.h>

#include "archive/archive.h"
#include "util/util.h"

/* ---- the end of a job */

/* Both return -1. */
int ad_archive_fail(struct ad_archive_job *job, enum ad_carry_reason reason, const char *path);
int ad_archive_fail_errno(struct ad_archive_job *job, int os_errno, const char *path);
void ad_archive_note(struct ad_archive_job *job, enum ad_carry_type type,
		     enum ad_carry_reason reason, int os_errno, const char *path);

/* ---- directories beneath one, by path, without following links */

enum { TREE_OPEN_MAX = 16 };

/* The way to the directory last asked for, of which the end is open. Neighbours share
 * most of it, however deep they are. */
struct tree {
	int root;
	size_t open;
	int fds[TREE_OPEN_MAX];
	size_t lens[TREE_OPEN_MAX]; /* of their paths */
	char path[AD_CARRY_PATH_MAX];
};

void tree_init(struct tree *tree, int root);
void tree_close(struct tree *tree);
/* The directory of that path ("": the root), O_PATH; the tree's until the next call. Or
 * a negative errno. */
int tree_dir(struct tree *tree, const char *path, size_t len);
/* The directory that holds path; *ret_name is the last part of it. */
int tree_parent(struct tree *tree, const char *path, const char **ret_name);

/* ---- writing a tar stream */

/* A part of a file that is no hole. */
struct extent {
	off_t from, len;
};

struct extents {
	struct extent *items;
	size_t count, cap;
	off_t sum;
};

enum written_type {
	WRITTEN_FILE = '0',
	WRITTEN_HARD_LINK = '1',
	WRITTEN_LINK = '2',
	WRITTEN_DEVICE = '3',
	WRITTEN_DIR = '5'
};

struct written {
	enum written_type type;
	mode_t mode;
	const char *path, *link;
	const struct timespec *mtime; /* NULL: does not matter */
	off_t size;                   /* of a file, with its holes */
	const struct extents *extents;
};

struct writer {
	int fd;
	uint64_t padding; /* after the data of the entry */
	size_t len;
	char buf[64 * 1024];
};

/* Failures are negative errnos; then the stream is of no more use. */
void writer_init(struct writer *writer, int fd);
/* A file's data follows, all of its extents. */
int writer_entry(struct writer *writer, const struct written *entry);
int writer_data(struct writer *writer, const void *data, size_t len); /* NULL: zeros */
int writer_end_entry(struct writer *writer);
int writer_end(struct writer *writer);

/* ---- manifests */

#define MANIFEST_NONE UINT32_MAX
/* With the directories that manifest_put() adds. */
enum { MANIFEST_ROOT = 0, MANIFEST_MAX = 4 * AD_ARCHIVE_ENTRIES_MAX };

enum {
	ENTRY_ABSENT = 1,  /* is not part of the tree, after all */
	ENTRY_LISTED = 2,  /* a directory that was read */
	ENTRY_SEEN = 4,    /* of an older manifest: has a counterpart in the newer one */
	ENTRY_DELETED = 8, /* of an older manifest */
	ENTRY_PACKED = 16
};

struct entry {
	uint64_t ino, size;
	int64_t mtime_ns, ctime_ns;
	uint32_t mode;
	uint32_t parent;
	uint32_t name;  /* in names */
	uint32_t first; /* of the hard links to this file; itself if there are no others */
	uint32_t twin;  /* in the older manifest */
	uint32_t flags;
};

/* Each directory before what is in it; 0 is the root. */
struct ad_manifest {
	struct entry *entries;
	uint32_t count, cap;
	char *names;
	uint32_t names_len, names_cap;
	uint32_t *index; /* a hash table of entries, by parent and name */
	uint32_t index_size;
};

/* With a root. NULL: no memory. */
struct ad_manifest *manifest_new(void);
/* MANIFEST_NONE: no memory, or too many. */
uint32_t manifest_add(struct ad_manifest *manifest, uint32_t parent, const char *name,
		      const struct stat *st);
/* The same by its path; directories above that are missing are added with no mode. What
 * is there already is changed. */
uint32_t manifest_put(struct ad_manifest *manifest, const char *path, const struct stat *st);
/* In a directory, also what is ABSENT; MANIFEST_NONE: no such name. */
uint32_t manifest_child(const struct ad_manifest *manifest, uint32_t parent, const char *name,
			size_t len);
uint32_t manifest_find(const struct ad_manifest *manifest, const char *path);
const char *manifest_name(const struct ad_manifest *manifest, uint32_t i);
/* Returns the length, or 0 if it does not fit. */
size_t manifest_path(const struct ad_manifest *manifest, uint32_t i,
		     char path[static AD_CARRY_PATH_MAX]);
void entry_set(struct entry *entry, const struct stat *st);
struct timespec entry_mtime(const struct entry *entry);
/* Whether that is what the manifest has there. Of directories, which change with what
 * is in them, the permissions count. */
bool manifest_same(const struct ad_manifest *manifest, uint32_t i, const struct entry *now);

#endif
