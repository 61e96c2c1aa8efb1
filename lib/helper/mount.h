/* SPDX-License-Identifier: MIT */
/* Mounts by descriptor, on the calls of Linux 5.2 (open_tree, move_mount) and 5.12
 * (mount_setattr). Failure is a negative errno. */
#ifndef AD_HELPER_MOUNT_H
#define AD_HELPER_MOUNT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A detached, private copy of the tree at dir/path (path NULL: dir itself), with these
 * MOUNT_ATTR_* set on all of it. A descriptor. */
int mount_copy(int dir, const char *path, uint64_t attributes);
/* Of the mount that path, which is not followed if it is a link, is in; path "": dir itself. 0 with
 * errno if there is nothing, or the kernel (before 5.8) does not tell. */
uint64_t mount_id(int dir, const char *path);
/* Whether something is mounted at path itself (Linux 5.8). */
bool mount_is_root(const char *path);
/* Set attributes on what fd is the root of; on the tree of that, which becomes private. */
int mount_set(int fd, uint64_t attributes);
int mount_set_tree(int fd, uint64_t attributes);
/* Show what fd is the root of with the ids of a user namespace. */
int mount_map_ids(int fd, int userns);
/* Put a detached tree in its place. */
int mount_attach(int fd, int point);
/* A detached, empty tmpfs; options as "mode=755,size=1m". */
int mount_new_tmpfs(const char *options);
/* Open path, relative and without leaving dir or following any symbolic link. */
int open_beneath(int dir, const char *path, uint64_t flags);
int write_file(const char *path, const char *text);

#endif
