/* SPDX-License-Identifier: MIT */
/* Directory trees for the tests of lib/archive: made, changed, described, removed. */
#ifndef TESTS_ARCHIVE_TREES_H
#define TESTS_ARCHIVE_TREES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "archive/archive.h"

/* A directory of its own, in $TMPDIR. */
struct scratch {
	char path[256];
	int fd;
};

void scratch_open(struct scratch *scratch);
void scratch_close(struct scratch *scratch); /* with all that is in it */
/* Makes it, and opens it. */
int scratch_dir(const struct scratch *scratch, const char *name);

void put_file(int dir_fd, const char *path, const void *data, size_t len, mode_t mode);
void put_text(int dir_fd, const char *path, const char *text);
/* To be freed; NULL if it is not there. */
char *get_text(int dir_fd, const char *path);
/* Relative to the directory, with what is in it. */
void remove_tree(int dir_fd, const char *path);

/* Reproducible. */
struct rng {
	uint64_t state;
};
uint32_t rng_below(struct rng *rng, uint32_t bound);

/* Files of all sizes, with holes or without, directories, links of both kinds, in names
 * of any bytes. What only root can read is in it if the caller is root. */
void random_tree(int dir_fd, struct rng *rng, unsigned int entries);
/* Some of it written, renamed, removed, replaced, and new things added. */
void random_changes(int dir_fd, struct rng *rng, unsigned int changes);

/* Path, type, mode, size, time, target, contents and hard links of all that is there, in
 * order; to be freed. */
char *describe(int dir_fd, bool dir_times);
/* Stops the test at the first line that differs. */
void check_same_tree(int a, int b, bool dir_times);

/* ---- jobs on them */

enum { NOTES_KEPT = 64 };

struct notes {
	size_t count;
	struct ad_carry_record kept[NOTES_KEPT];
	char paths[NOTES_KEPT][AD_CARRY_PATH_MAX];
};

struct notes *notes_new(void);
/* One of that path, whatever its type and reason; NULL: none. */
const struct ad_carry_record *notes_find(const struct notes *notes, const char *path);

/* Without limits that matter, on an archive in memory. */
struct ad_archive_job job_on(int dir_fd, int archive_fd, struct notes *notes);
int memory_file(void);

#endif
