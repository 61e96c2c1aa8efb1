/* SPDX-License-Identifier: MIT */
#include "archive/private.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "util/util.h"

enum { BLOCK = 64 * 1024, TEMP_MAX = 40, DIR_MODE = 0700, FILE_MODE = 0600 };

struct unpack {
	struct ad_archive_job *job;
	struct ad_manifest *since; /* NULL: what is there is replaced */
	struct ad_manifest *made;  /* what was made here */
	struct tree tree, targets; /* of hard links */
	struct archive *archive;
	struct archive_entry *entry; /* the present one */
	int read_errno;
	uint64_t seen;     /* entries, of whatever kind */
	uint32_t found;    /* in since */
	int dir_fd;        /* the tree's, of the present entry's directory */
	const char *name;  /* in it */
	struct stat there; /* what has that name now */
	bool is_there;
	char temp[TEMP_MAX]; /* another name in it, for the time of making */
	char path[AD_CARRY_PATH_MAX];
	char block[BLOCK];
};

/* What is done about an entry. */
enum verdict { OK, REFUSED, FATAL };

static enum verdict fatal(struct unpack *unpack, int os_errno)
{
	ad_archive_fail_errno(unpack->job, os_errno, unpack->path);
	return FATAL;
}

static enum verdict refuse(struct unpack *unpack, enum ad_carry_type type,
			   enum ad_carry_reason reason)
{
	ad_archive_note(unpack->job, type, reason, 0, unpack->path);
	return REFUSED;
}

/* Where the next file would meet the same, it ends here. */
static enum verdict refuse_errno(struct unpack *unpack, int os_errno)
{
	switch (os_errno) {
	case ENOSPC:
	case EDQUOT:
	case EIO:
	case ENOMEM:
	case EMFILE:
	case ENFILE:
		return fatal(unpack, os_errno);
	default:
		ad_archive_note(unpack->job, AD_CARRY_ERROR, AD_CARRY_SYSTEM, os_errno,
				unpack->path);
		return REFUSED;
	}
}

/* ---- names */

/* Parts that are names, with single slashes between them; directories may end with one. */
static enum verdict take_path(struct unpack *unpack)
{
	const char *path = archive_entry_pathname(unpack->entry);
	size_t len = path ? strlen(path) : 0;
	const char *part;

	unpack->path[0] = '\0';
	if (len > 1 && path[len - 1] == '/' && archive_entry_filetype(unpack->entry) == AE_IFDIR)
		len--;
	snprintf(unpack->path, sizeof(unpack->path), "%.*s",
		 (int)(len < sizeof(unpack->path) ? len : sizeof(unpack->path) - 1),
		 path ? path : "");
	if (len >= sizeof(unpack->path))
		return refuse(unpack, AD_CARRY_DENIED, AD_CARRY_LONG);
	for (part = unpack->path;; part++) {
		size_t size = strcspn(part, "/");

		if (size == 0 || (size == 1 && part[0] == '.') ||
		    (size == 2 && part[0] == '.' && part[1] == '.'))
			return refuse(unpack, AD_CARRY_DENIED, AD_CARRY_NAME);
		part += size;
		if (*part == '\0')
			return OK;
	}
}

static bool is_end(struct archive_entry *entry)
{
	const char *path = archive_entry_pathname(entry);

	return path && archive_entry_filetype(entry) == AE_IFDIR &&
	       (strcmp(path, ".") == 0 || strcmp(path, "./") == 0);
}

static bool is_deletion(struct unpack *unpack)
{
	return unpack->since && archive_entry_filetype(unpack->entry) == AE_IFCHR &&
	       archive_entry_rdev(unpack->entry) == makedev(0, 0);
}

static void choose_temp(struct unpack *unpack)
{
	uint64_t random = 0;

	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) < 0)
		random = (uint64_t)getpid() << 32 ^ unpack->seen;
	snprintf(unpack->temp, sizeof(unpack->temp), ".agentd-carry-%016" PRIx64, random);
}

/* ---- what is there already */

static enum verdict find_place(struct unpack *unpack)
{
	unpack->dir_fd = tree_parent(&unpack->tree, unpack->path, &unpack->name);
	if (unpack->dir_fd < 0) {
		/* Gone is gone, whoever did it. */
		if (unpack->dir_fd == -ENOENT && is_deletion(unpack))
			return REFUSED;
		if (unpack->dir_fd == -ENOENT || unpack->dir_fd == -ENOTDIR ||
		    unpack->dir_fd == -ELOOP)
			return refuse(unpack, AD_CARRY_DENIED, AD_CARRY_PARENT);
		return refuse_errno(unpack, -unpack->dir_fd);
	}
	unpack->is_there = fstatat(unpack->dir_fd, unpack->name, &unpack->there,
				   AT_SYMLINK_NOFOLLOW) == 0;
	if (!unpack->is_there && errno != ENOENT)
		return refuse_errno(unpack, errno);
	return OK;
}

/* Whether it is still as in the manifest. Two directories are one. */
static enum verdict compare(struct unpack *unpack, bool make_dir)
{
	struct entry there;

	if (!unpack->since)
		return OK;
	unpack->found = manifest_find(unpack->since, unpack->path);
	if (unpack->found != MANIFEST_NONE &&
	    unpack->since->entries[unpack->found].flags & ENTRY_ABSENT)
		unpack->found = MANIFEST_NONE;
	if (!unpack->is_there)
		return unpack->found == MANIFEST_NONE ?
			       OK :
			       refuse(unpack, AD_CARRY_CONFLICT, AD_CARRY_GONE);
	if (unpack->found == MANIFEST_NONE)
		return make_dir && S_ISDIR(unpack->there.st_mode) ?
			       OK :
			       refuse(unpack, AD_CARRY_CONFLICT, AD_CARRY_APPEARED);
	entry_set(&there, &unpack->there);
	if (!manifest_same(unpack->since, unpack->found, &there))
		return refuse(unpack, AD_CARRY_CONFLICT, AD_CARRY_CHANGED);
	return OK;
}

/* The directory may forbid what a command has done in it: its owner may take the permission, as
 * the command has, which the archive says nothing of where it was given back or the directory
 * is gone. Where it cannot be had, what is to be done fails and says so. */
static enum verdict open_parent(struct unpack *unpack)
{
	struct ad_manifest *since = unpack->since, *made = unpack->made;
	size_t len = (size_t)(unpack->name - unpack->path);
	uint32_t found, end;
	struct stat st;

	if (!since || len == 0 || fstat(unpack->dir_fd, &st) < 0 || st.st_mode & S_IWUSR ||
	    st.st_uid != geteuid())
		return OK;
	unpack->path[len - 1] = '\0';
	found = manifest_find(since, unpack->path);
	end = manifest_find(made, unpack->path);
	if (found != MANIFEST_NONE && since->entries[found].mode == st.st_mode &&
	    fchmodat(unpack->dir_fd, ".", (st.st_mode | S_IRWXU) & ALLPERMS, 0) == 0) {
		since->entries[found].mode |= S_IRWXU;
		clock_gettime(CLOCK_REALTIME, &st.st_mtim);
		/* finish_dirs() puts it back, but to what the archive says. */
		if (end == MANIFEST_NONE || !S_ISDIR(made->entries[end].mode))
			end = manifest_put(made, unpack->path, &st);
	} else {
		end = MANIFEST_ROOT;
	}
	unpack->path[len - 1] = '/';
	return end == MANIFEST_NONE ? fatal(unpack, ENOMEM) : OK;
}

/* An open file of what is about to lose a name, where that changes it under others. */
static int hold_replaced(struct unpack *unpack)
{
	if (!unpack->since || !unpack->is_there || unpack->found == MANIFEST_NONE ||
	    S_ISDIR(unpack->there.st_mode) || unpack->there.st_nlink < 2)
		return -1;
	return openat(unpack->dir_fd, unpack->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
}

static void note_replaced(struct unpack *unpack, int held)
{
	uint32_t first;
	struct stat st;

	if (held < 0)
		return;
	first = unpack->since->entries[unpack->found].first;
	if (fstat(held, &st) == 0 && st.st_ino == unpack->there.st_ino) {
		struct entry now;

		entry_set(&now, &st);
		unpack->since->entries[first].ctime_ns = now.ctime_ns;
	}
	close(held);
}

/* ---- making */

static enum verdict set_owner(struct unpack *unpack, const char *name)
{
	if (unpack->job->uid == (uid_t)-1 && unpack->job->gid == (gid_t)-1)
		return OK;
	if (fchownat(unpack->dir_fd, name, unpack->job->uid, unpack->job->gid,
		     AT_SYMLINK_NOFOLLOW) < 0)
		return refuse_errno(unpack, errno);
	return OK;
}

static void times_of(struct archive_entry *entry, struct timespec ret[2])
{
	ret[0] = (struct timespec){ .tv_nsec = UTIME_OMIT };
	ret[1] = (struct timespec){ .tv_nsec = UTIME_OMIT };
	if (archive_entry_mtime_is_set(entry))
		ret[1] = (struct timespec){ .tv_sec = archive_entry_mtime(entry),
					    .tv_nsec = archive_entry_mtime_nsec(entry) };
}

/* Without the bits that change who runs it. */
static mode_t take_mode(struct unpack *unpack)
{
	mode_t mode = archive_entry_perm(unpack->entry);

	if (mode & (S_ISUID | S_ISGID))
		ad_archive_note(unpack->job, AD_CARRY_DENIED, AD_CARRY_SET_ID, 0, unpack->path);
	return mode & (ACCESSPERMS | S_ISVTX);
}

/* Remember it with what it is to be in the end. */
static enum verdict note_made(struct unpack *unpack, mode_t mode)
{
	struct timespec times[2];
	struct stat st = { .st_mode = mode };

	times_of(unpack->entry, times);
	st.st_mtim = times[1];
	if (manifest_put(unpack->made, unpack->path, &st) == MANIFEST_NONE)
		return fatal(unpack, ENOMEM);
	unpack->job->entries++;
	return OK;
}

/* What was made under the other name takes its place, whatever has it now. */
static enum verdict put_in_place(struct unpack *unpack, mode_t mode)
{
	int held = hold_replaced(unpack), error = 0;

	if (renameat(unpack->dir_fd, unpack->temp, unpack->dir_fd, unpack->name) < 0)
		error = errno;
	note_replaced(unpack, held);
	return error ? refuse_errno(unpack, error) : note_made(unpack, mode);
}

static enum verdict read_failed(struct unpack *unpack)
{
	int error = archive_errno(unpack->archive);

	if (unpack->read_errno || error == ENOMEM)
		return fatal(unpack, unpack->read_errno ? unpack->read_errno : error);
	ad_archive_fail(unpack->job, AD_CARRY_FORMAT, unpack->path);
	return FATAL;
}

static int write_at(int fd, const char *data, size_t len, off_t at)
{
	while (len > 0) {
		ssize_t n = pwrite(fd, data, len, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		data += n;
		len -= (size_t)n;
		at += n;
	}
	return 0;
}

static enum verdict put_content(struct unpack *unpack, int fd)
{
	struct ad_archive_job *job = unpack->job;

	for (;;) {
		const void *data;
		size_t len;
		la_int64_t at;
		int r = archive_read_data_block(unpack->archive, &data, &len, &at);

		if (r == ARCHIVE_EOF)
			break;
		if (r != ARCHIVE_OK)
			return read_failed(unpack);
		if (len > job->max_bytes - job->bytes) {
			ad_archive_fail(job, AD_CARRY_BYTES, unpack->path);
			return FATAL;
		}
		r = write_at(fd, data, len, at);
		if (r < 0)
			return refuse_errno(unpack, -r);
		job->bytes += len;
	}
	return ftruncate(fd, archive_entry_size(unpack->entry)) < 0 ? refuse_errno(unpack, errno) :
								      OK;
}

static enum verdict make_file(struct unpack *unpack)
{
	enum { FLAGS = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC };
	int fd = openat(unpack->dir_fd, unpack->temp, FLAGS, FILE_MODE);
	mode_t mode = take_mode(unpack) & ACCESSPERMS;
	struct timespec times[2];
	enum verdict verdict;

	if (fd < 0)
		return refuse_errno(unpack, errno);
	times_of(unpack->entry, times);
	verdict = put_content(unpack, fd);
	if (verdict == OK)
		verdict = set_owner(unpack, unpack->temp);
	if (verdict == OK && (fchmod(fd, mode) < 0 || futimens(fd, times) < 0))
		verdict = refuse_errno(unpack, errno);
	close(fd);
	return verdict == OK ? put_in_place(unpack, S_IFREG | mode) : verdict;
}

static enum verdict make_link(struct unpack *unpack)
{
	const char *target = archive_entry_symlink(unpack->entry);
	struct timespec times[2];
	enum verdict verdict;

	if (!target || symlinkat(target, unpack->dir_fd, unpack->temp) < 0)
		return refuse_errno(unpack, target ? errno : EINVAL);
	verdict = set_owner(unpack, unpack->temp);
	times_of(unpack->entry, times);
	if (verdict == OK &&
	    utimensat(unpack->dir_fd, unpack->temp, times, AT_SYMLINK_NOFOLLOW) < 0)
		verdict = refuse_errno(unpack, errno);
	return verdict == OK ? put_in_place(unpack, S_IFLNK) : verdict;
}

/* Only to a file that was made here: of others the archive has not seen what they are
 * now. */
static enum verdict make_hard_link(struct unpack *unpack)
{
	const char *target = archive_entry_hardlink(unpack->entry), *name;
	uint32_t made = manifest_find(unpack->made, target);
	int dir_fd;

	if (made == MANIFEST_NONE || !S_ISREG(unpack->made->entries[made].mode))
		return refuse(unpack, AD_CARRY_DENIED, AD_CARRY_LINK);
	dir_fd = tree_parent(&unpack->targets, target, &name);
	if (dir_fd < 0)
		return refuse_errno(unpack, -dir_fd);
	if (linkat(dir_fd, name, unpack->dir_fd, unpack->temp, 0) < 0)
		return refuse_errno(unpack, errno);
	return put_in_place(unpack, unpack->made->entries[made].mode);
}

/* Its permissions and times come last: they may forbid, or change with, what is to be
 * made in it. */
static enum verdict make_dir(struct unpack *unpack)
{
	mode_t mode = take_mode(unpack);
	enum verdict verdict = OK;

	if (unpack->is_there && S_ISDIR(unpack->there.st_mode))
		return unpack->since && unpack->found == MANIFEST_NONE ?
			       OK :
			       note_made(unpack, S_IFDIR | mode);
	if (mkdirat(unpack->dir_fd, unpack->name, DIR_MODE) < 0)
		return refuse_errno(unpack, errno);
	verdict = set_owner(unpack, unpack->name);
	return verdict == OK ? note_made(unpack, S_IFDIR | mode) : verdict;
}

static enum verdict delete_there(struct unpack *unpack)
{
	bool dir = S_ISDIR(unpack->there.st_mode);
	int held = hold_replaced(unpack), error = 0;

	if (unlinkat(unpack->dir_fd, unpack->name, dir ? AT_REMOVEDIR : 0) < 0)
		error = errno;
	note_replaced(unpack, held);
	if (error == ENOTEMPTY || error == EEXIST)
		return refuse(unpack, AD_CARRY_CONFLICT, AD_CARRY_NOT_EMPTY);
	if (error)
		return refuse_errno(unpack, error);
	unpack->since->entries[unpack->found].flags |= ENTRY_ABSENT;
	unpack->job->entries++;
	/* One of that name may come. */
	if (dir) {
		uint32_t end = manifest_find(unpack->made, unpack->path);

		if (end != MANIFEST_NONE)
			unpack->made->entries[end].mode = 0;
		tree_close(&unpack->tree);
	}
	return OK;
}

/* ---- entries */

static enum verdict apply_deletion(struct unpack *unpack)
{
	enum verdict verdict;

	if (manifest_find(unpack->since, unpack->path) == MANIFEST_NONE)
		return OK;
	verdict = find_place(unpack);
	if (verdict != OK || !unpack->is_there)
		return verdict;
	verdict = compare(unpack, false);
	if (verdict == OK)
		verdict = open_parent(unpack);
	return verdict == OK ? delete_there(unpack) : verdict;
}

static enum verdict apply(struct unpack *unpack)
{
	enum verdict (*make)(struct unpack * unpack) = NULL;
	enum verdict verdict = take_path(unpack);

	if (verdict != OK)
		return verdict;
	if (is_deletion(unpack))
		return apply_deletion(unpack);
	if (archive_entry_hardlink(unpack->entry))
		make = make_hard_link;
	else if (archive_entry_filetype(unpack->entry) == AE_IFREG)
		make = make_file;
	else if (archive_entry_filetype(unpack->entry) == AE_IFLNK)
		make = make_link;
	else if (archive_entry_filetype(unpack->entry) == AE_IFDIR)
		make = make_dir;
	else
		return refuse(unpack, AD_CARRY_DENIED, AD_CARRY_KIND);
	verdict = find_place(unpack);
	if (verdict == OK)
		verdict = compare(unpack, make == make_dir);
	if (verdict == OK)
		verdict = open_parent(unpack);
	if (verdict != OK)
		return verdict;
	choose_temp(unpack);
	verdict = make(unpack);
	/* It is still there after a failure, and after a link took its own place. */
	if (make != make_dir)
		unlinkat(unpack->dir_fd, unpack->temp, 0);
	return verdict;
}

/* What is in a directory before it. */
static void finish_dirs(struct unpack *unpack)
{
	for (uint32_t i = unpack->made->count - 1; i > 0; i--) {
		const struct entry *entry = &unpack->made->entries[i];
		const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, entry_mtime(entry) };
		const char *name;
		int dir_fd;

		if (!S_ISDIR(entry->mode))
			continue;
		manifest_path(unpack->made, i, unpack->path);
		dir_fd = tree_parent(&unpack->tree, unpack->path, &name);
		if (dir_fd >= 0 &&
		    fchmodat(dir_fd, name, entry->mode & ALLPERMS, AT_SYMLINK_NOFOLLOW) == 0 &&
		    utimensat(dir_fd, name, times, AT_SYMLINK_NOFOLLOW) == 0)
			continue;
		ad_archive_note(unpack->job, AD_CARRY_ERROR, AD_CARRY_SYSTEM,
				dir_fd < 0 ? -dir_fd : errno, unpack->path);
	}
}

/* ---- the stream */

static la_ssize_t read_block(struct archive *archive, void *userdata, const void **ret)
{
	struct unpack *unpack = userdata;
	ssize_t n;

	do
		n = read(unpack->job->fd, unpack->block, sizeof(unpack->block));
	while (n < 0 && errno == EINTR);
	if (n < 0) {
		unpack->read_errno = errno;
		archive_set_error(archive, errno, "read");
	}
	if (n > 0)
		unpack->job->empty = false;
	*ret = unpack->block;
	return n;
}

static int open_archive(struct unpack *unpack)
{
	unpack->made = manifest_new();
	unpack->archive = archive_read_new();
	if (!unpack->made || !unpack->archive ||
	    archive_read_support_format_tar(unpack->archive) != ARCHIVE_OK)
		return ad_archive_fail_errno(unpack->job, ENOMEM, "");
	if (archive_read_open(unpack->archive, unpack, NULL, read_block, NULL) == ARCHIVE_OK)
		return 0;
	if (unpack->job->empty && !unpack->read_errno)
		return ad_archive_fail(unpack->job, AD_CARRY_CUT, "");
	read_failed(unpack);
	return -1;
}

/* Nothing may follow the end, but the writer may still have to get rid of its padding. */
static int drain(struct unpack *unpack)
{
	enum { PADDING_MAX = 16 };
	const void *block;
	la_ssize_t n = 1;

	for (int i = 0; i < PADDING_MAX && n > 0; i++)
		n = read_block(unpack->archive, unpack, &block);
	if (n < 0)
		return ad_archive_fail_errno(unpack->job, unpack->read_errno, "");
	return n == 0 ? 0 : ad_archive_fail(unpack->job, AD_CARRY_FORMAT, "");
}

static int unpack_all(struct unpack *unpack)
{
	bool complete = false;

	for (;;) {
		int r = archive_read_next_header(unpack->archive, &unpack->entry);

		if (r == ARCHIVE_EOF)
			break;
		if (r != ARCHIVE_OK && r != ARCHIVE_WARN) {
			read_failed(unpack);
			return -1;
		}
		if (complete)
			return ad_archive_fail(unpack->job, AD_CARRY_FORMAT, "");
		complete = is_end(unpack->entry);
		if (complete)
			continue;
		/* Each name may be deleted, and made anew. */
		if (unpack->seen++ == 2 * (uint64_t)unpack->job->max_entries)
			return ad_archive_fail(unpack->job, AD_CARRY_ENTRIES, unpack->path);
		if (apply(unpack) == FATAL)
			return -1;
	}
	return complete ? drain(unpack) : ad_archive_fail(unpack->job, AD_CARRY_CUT, "");
}

int ad_archive_unpack(struct ad_archive_job *job, struct ad_manifest *since)
{
	struct unpack *unpack = calloc(1, sizeof(*unpack));
	int r;

	job->entries = job->bytes = 0;
	job->empty = true;
	if (!unpack)
		return ad_archive_fail_errno(job, ENOMEM, "");
	unpack->job = job;
	unpack->since = since;
	tree_init(&unpack->tree, job->dir_fd);
	tree_init(&unpack->targets, job->dir_fd);
	r = open_archive(unpack);
	if (r == 0) {
		r = unpack_all(unpack);
		/* Also what it has come to so far. */
		finish_dirs(unpack);
	}
	tree_close(&unpack->tree);
	tree_close(&unpack->targets);
	archive_read_free(unpack->archive);
	ad_manifest_free(unpack->made);
	free(unpack);
	return r;
}
