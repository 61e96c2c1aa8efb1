/* SPDX-License-Identifier: MIT */
/* The folder of a session. `lock` is locked by who works with it, its time of change is
 * when it was last used; `new` is there until what is done once has been done; `backup`,
 * if it is younger than `lock`, says that there is a backup of how it is now. */
#include "pool/private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DISCARDED ".pruned-"

static char *join(const char *dir, const char *name)
{
	struct ad_buf path = { 0 };

	ad_buf_printf(&path, "%s/%s", dir, name);
	return ad_buf_steal(&path);
}

static int open_in(const struct volume *volume, const char *name, int flags)
{
	ad_autofree char *path = join(volume->dir, name);

	if (!path) {
		errno = ENOMEM;
		return -1;
	}
	return open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
}

static int stat_in(const struct volume *volume, const char *name, struct stat *ret)
{
	ad_autofree char *path = join(volume->dir, name);

	return path ? lstat(path, ret) : -1;
}

static void remove_in(const struct volume *volume, const char *name)
{
	ad_autofree char *path = join(volume->dir, name);

	if (path)
		unlink(path);
}

int volume_init(struct volume *volume, const char *root, const char *id, agentd_error **reterr)
{
	volume->lock = -1;
	volume->dir = join(root, id);
	return volume->dir ? 0 : ad_fail_nomem(reterr);
}

void volume_free(struct volume *volume)
{
	volume_unlock(volume);
	free(AD_STEAL(volume->dir));
}

bool volume_exists(const struct volume *volume)
{
	struct stat st;

	return stat_in(volume, "volume", &st) == 0 && S_ISDIR(st.st_mode);
}

/* Parents too; what is there is left as it is. */
static int make_dirs(const char *path)
{
	ad_autofree char *copy = strdup(path);

	if (!copy)
		return -ENOMEM;
	for (char *at = copy + 1; (at = strchr(at, '/')); at++) {
		*at = '\0';
		if (mkdir(copy, 0755) < 0 && errno != EEXIST)
			return -errno;
		*at = '/';
	}
	return mkdir(copy, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

static int fail_removed(const struct volume *volume, agentd_error **reterr)
{
	return ad_fail(reterr, AGENTD_ERR_AGAIN, NULL,
		       "the volume \"%s\" is being removed by another process", volume->dir);
}

static int take_lock(struct volume *volume, int flags, agentd_error **reterr)
{
	ad_autoclose int fd = open_in(volume, "lock", O_RDWR | flags);
	struct stat held, named;
	bool there;

	if (fd < 0)
		return errno == ENOENT ? fail_removed(volume, reterr) :
					 ad_fail_errno(reterr, errno,
						       "the lock of the volume \"%s\" cannot be "
						       "opened",
						       volume->dir);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ?
			       ad_fail(reterr, AGENTD_ERR_AGAIN, NULL,
				       "the session is open elsewhere, by who has locked "
				       "\"%s/lock\"",
				       volume->dir) :
			       ad_fail_errno(reterr, errno, "\"%s/lock\" cannot be locked",
					     volume->dir);
	/* It may have been moved away and removed between the two. */
	there = fstat(fd, &held) == 0 && stat_in(volume, "lock", &named) == 0;
	if (!there && errno != ENOENT)
		return ad_fail_errno(reterr, errno,
				     "the lock of the volume \"%s\" cannot be looked at",
				     volume->dir);
	if (!there || held.st_ino != named.st_ino || held.st_dev != named.st_dev)
		return fail_removed(volume, reterr);
	volume->lock = ad_steal_fd(&fd);
	return 0;
}

static int fail_create(const struct volume *volume, int error, agentd_error **reterr)
{
	return ad_fail_errno(reterr, error, "Failed to create VM volume %s/volume", volume->dir);
}

/* The order is such that whoever is killed meanwhile leaves a volume that is still new. */
int volume_open(struct volume *volume, const char *root, agentd_error **reterr)
{
	ad_autofree char *path = join(volume->dir, "volume");
	ad_autoclose int fd = -1;
	struct stat st;
	int r;

	if (!path)
		return ad_fail_nomem(reterr);
	r = make_dirs(root);
	if (r == 0 && mkdir(volume->dir, 0700) < 0 && errno != EEXIST)
		r = -errno;
	if (r < 0)
		return fail_create(volume, -r, reterr);
	r = take_lock(volume, O_CREAT, reterr);
	if (r < 0)
		return r;
	if (stat_in(volume, "volume", &st) == 0) {
		if (S_ISDIR(st.st_mode))
			return 0;
		r = -ENOTDIR;
	} else {
		fd = open_in(volume, "new", O_CREAT | O_WRONLY);
		r = fd < 0 || mkdir(path, 0700) < 0 ? -errno : 0;
	}
	if (r < 0) {
		volume_unlock(volume);
		return fail_create(volume, -r, reterr);
	}
	return 0;
}

int volume_lock(struct volume *volume, agentd_error **reterr)
{
	/* A volume from elsewhere may lack one. */
	return take_lock(volume, O_CREAT, reterr);
}

void volume_unlock(struct volume *volume)
{
	if (volume->lock >= 0)
		close(ad_steal_fd(&volume->lock));
}

void volume_touch(const struct volume *volume)
{
	if (volume->lock < 0)
		return;
	(void)futimens(volume->lock, NULL);
	/* By a clock that was set back it would stay younger than the lock. */
	remove_in(volume, "backup");
}

uint64_t volume_unused_s(const struct volume *volume)
{
	struct timespec now;
	struct stat st;

	if (stat_in(volume, "lock", &st) < 0 && stat_in(volume, "volume", &st) < 0)
		return 0;
	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec > st.st_mtim.tv_sec ? (uint64_t)(now.tv_sec - st.st_mtim.tv_sec) : 0;
}

bool volume_is_new(const struct volume *volume)
{
	struct stat st;

	return stat_in(volume, "new", &st) == 0;
}

void volume_not_new(const struct volume *volume)
{
	remove_in(volume, "new");
}

bool volume_backed_up(const struct volume *volume)
{
	struct stat used, backup;

	if (stat_in(volume, "lock", &used) < 0 || stat_in(volume, "backup", &backup) < 0)
		return false;
	return backup.st_mtim.tv_sec > used.st_mtim.tv_sec ||
	       (backup.st_mtim.tv_sec == used.st_mtim.tv_sec &&
		backup.st_mtim.tv_nsec > used.st_mtim.tv_nsec);
}

int volume_set_backed_up(const struct volume *volume, agentd_error **reterr)
{
	ad_autoclose int fd = open_in(volume, "backup", O_CREAT | O_WRONLY);

	if (fd < 0 || futimens(fd, NULL) < 0)
		return ad_fail_errno(reterr, errno, "\"%s/backup\" cannot be written", volume->dir);
	return 0;
}

char *volume_discard(struct volume *volume, const char *root, const char *id, agentd_error **reterr)
{
	struct ad_buf to = { 0 };
	struct timespec now;
	char *path;

	clock_gettime(CLOCK_REALTIME, &now);
	ad_buf_printf(&to, "%s/" DISCARDED "%s-%lld%09ld", root, id, (long long)now.tv_sec,
		      now.tv_nsec);
	path = ad_buf_steal(&to);
	if (!path) {
		ad_fail_nomem(reterr);
		return NULL;
	}
	if (rename(volume->dir, path) == 0)
		return path;
	ad_fail_errno(reterr, errno, "Failed to prune VM directory %s", volume->dir);
	free(path);
	return NULL;
}

int volume_scan(const char *root, void (*found)(const char *id, void *userdata),
		void (*leftover)(const char *path, void *userdata), void *userdata,
		agentd_error **reterr)
{
	DIR *dir = opendir(root);
	struct dirent *entry;

	if (!dir)
		return errno == ENOENT ?
			       0 :
			       ad_fail_errno(reterr, errno, "the volumes in \"%s\" cannot be read",
					     root);
	while ((entry = readdir(dir))) {
		struct volume volume;

		if (strncmp(entry->d_name, DISCARDED, sizeof(DISCARDED) - 1) == 0) {
			ad_autofree char *path = join(root, entry->d_name);

			if (path)
				leftover(path, userdata);
			continue;
		}
		if (!ad_pool_id_valid(entry->d_name) ||
		    volume_init(&volume, root, entry->d_name, NULL) < 0)
			continue;
		if (volume_exists(&volume))
			found(entry->d_name, userdata);
		volume_free(&volume);
	}
	closedir(dir);
	return 0;
}
