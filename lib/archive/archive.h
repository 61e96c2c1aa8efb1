/* SPDX-License-Identifier: MIT */
/* A directory tree as an archive, and back. For simple processes: everything blocks,
 * and SIGPIPE and SIGXFSZ are to be ignored, so that they are errors.
 *
 * Archives are tar streams in the pax format. Names are bytes. The last entry is a
 * directory ".": an archive without it is incomplete. What was deleted is a character
 * device 0:0 of that name, as in overlayfs. Kept are types, permissions, times of last
 * change, hard links between files of the tree, and holes; not owners, extended
 * attributes and the directory itself. Other file systems mounted in the tree are part
 * of it.
 *
 * No step follows a symbolic link: each directory is opened from the one above it. Who
 * may write in the tree meanwhile can confuse what is read and written, but not lead it
 * out of the tree. */
#ifndef AD_ARCHIVE_H
#define AD_ARCHIVE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/carry.h"

enum { AD_ARCHIVE_ENTRIES_MAX = 1000000 };

/* What a tree looked like. */
struct ad_manifest;

void ad_manifest_free(struct ad_manifest *manifest);
/* To and from a file, for another process of the same program. */
int ad_manifest_save(const struct ad_manifest *manifest, int fd);
int ad_manifest_load(int fd, struct ad_manifest **ret);

struct ad_archive_job {
	int dir_fd;           /* of the tree */
	int fd;               /* the archive: written by pack, read to its end by unpack */
	uint64_t max_bytes;   /* of the contents of files; holes do not count */
	uint32_t max_entries; /* at most AD_ARCHIVE_ENTRIES_MAX */
	uid_t uid;            /* unpack: whose the files become; -1: the caller's */
	gid_t gid;
	/* Of SKIPPED, DENIED, CONFLICT and ERROR. May be NULL. */
	void (*note)(const struct ad_carry_record *record, void *userdata);
	void *userdata;

	/* How it went. A job that failed has told no archive of ours from its beginning
	 * to its end; failed.type is FAILED then, and failed.path is `path`. */
	uint64_t entries, bytes;
	bool empty; /* unpack: there was nothing to read, which is no archive either */
	struct ad_carry_record failed;
	char path[AD_CARRY_PATH_MAX];
};

/* Each returns 0, or -1 with failed set. */

/* What the tree looks like now. Returns only when a change from then on would show in
 * the times of the files. */
int ad_archive_scan(struct ad_archive_job *job, struct ad_manifest **ret);
/* All of the tree; *ret is what of it is in the archive. */
int ad_archive_pack(struct ad_archive_job *job, struct ad_manifest **ret);
/* What is not as in the manifest. */
int ad_archive_pack_changes(struct ad_archive_job *job, struct ad_manifest *since);
/* With a manifest, what has changed since is left alone and reported, and deletions are
 * carried out. Without one, what is there is replaced, and nothing is deleted. */
int ad_archive_unpack(struct ad_archive_job *job, struct ad_manifest *since);

/* `PROGRAM carry DIR --max-bytes N`: packs DIR to stdout, closes it, and applies the
 * archive on stdin; proto/carry.h is what it says on stderr. Returns an exit status. */
int ad_archive_carry(int argc, char **argv);

#endif
