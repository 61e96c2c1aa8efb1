/* SPDX-License-Identifier: MIT */
#include "helper/mount.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int mount_set_tree(int fd, uint64_t attributes)
{
	struct mount_attr attr = { .attr_set = attributes, .propagation = MS_PRIVATE };

	return mount_setattr(fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)) < 0 ?
		       -errno :
		       0;
}

int mount_copy(int dir, const char *path, uint64_t attributes)
{
	int fd = open_tree(dir, path ? path : "",
			   OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE |
				   (path ? 0u : AT_EMPTY_PATH)),
	    r;

	if (fd < 0)
		return -errno;
	r = mount_set_tree(fd, attributes);
	if (r < 0) {
		close(fd);
		return r;
	}
	return fd;
}

uint64_t mount_id(int dir, const char *path)
{
	struct statx st;

	return statx(dir, path, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_MNT_ID,
		     &st) == 0 &&
			       (st.stx_mask & STATX_MNT_ID) ?
		       st.stx_mnt_id :
		       0;
}

bool mount_is_root(const char *path)
{
	struct statx st;

	return statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, 0, &st) == 0 &&
	       (st.stx_attributes & STATX_ATTR_MOUNT_ROOT);
}

int mount_set(int fd, uint64_t attributes)
{
	struct mount_attr attr = { .attr_set = attributes };

	return mount_setattr(fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0 ? -errno : 0;
}

int mount_map_ids(int fd, int userns)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_IDMAP,
				   .userns_fd = (unsigned int)userns };

	return mount_setattr(fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof(attr)) < 0 ?
		       -errno :
		       0;
}

int mount_attach(int fd, int point)
{
	return move_mount(fd, "", point, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) <
			       0 ?
		       -errno :
		       0;
}

/* "key=value,..." */
static int configure(int fs, const char *options)
{
	char text[128], *at = text, *option;

	if ((size_t)snprintf(text, sizeof(text), "%s", options) >= sizeof(text))
		return -EINVAL;
	while ((option = strsep(&at, ","))) {
		char *value = strchr(option, '=');

		if (!value)
			return -EINVAL;
		*value++ = '\0';
		if (fsconfig(fs, FSCONFIG_SET_STRING, option, value, 0) < 0)
			return -errno;
	}
	return fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0 ? -errno : 0;
}

int mount_new_tmpfs(const char *options)
{
	int fs = fsopen("tmpfs", FSOPEN_CLOEXEC), fd, r;

	if (fs < 0)
		return -errno;
	r = configure(fs, options);
	fd = r < 0 ? r : fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	if (r == 0 && fd < 0)
		fd = -errno;
	close(fs);
	return fd;
}

int open_beneath(int dir, const char *path, uint64_t flags)
{
	struct open_how how = { .flags = flags | O_CLOEXEC,
				.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS };
	long fd = syscall(SYS_openat2, dir, path, &how, sizeof(how));

	return fd < 0 ? -errno : (int)fd;
}

int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), r = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		r = -errno;
	close(fd);
	return r;
}
