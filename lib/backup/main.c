/* SPDX-License-Identifier: MIT */
/* Slow work for pools, as a process that the helper starts and ends:
 *
 *	agentd-backup pack DIR PART FILE    DIR/volume as FILE, a tar.zst; PART is where it
 *	                                    grows, in the same directory
 *	agentd-backup remove DIR            with all that is in it
 *
 * A failure is one line on stderr and exit status 1. FILE is there whole or not at all.
 * Symbolic links are stored and removed as such, never followed. */
#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEPTH_MAX = 64 }; /* descriptors that are open at once */

static bool fail(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what, why ? why : "unknown error");
	return false;
}

/* ---- pack */

/* Of a hole; the writer leaves out what the entry's map says is one. */
static bool write_zeroes(struct archive *out, la_int64_t count)
{
	static const char zeroes[65536];

	while (count > 0) {
		size_t size = count < (la_int64_t)sizeof(zeroes) ? (size_t)count : sizeof(zeroes);

		if (archive_write_data(out, zeroes, size) < 0)
			return false;
		count -= (la_int64_t)size;
	}
	return true;
}

static bool write_data(struct archive *disk, struct archive *out, struct archive_entry *entry)
{
	const char *path = archive_entry_pathname(entry);
	la_int64_t written = 0, at = 0;
	const void *data;
	size_t size;
	int r;

	while ((r = archive_read_data_block(disk, &data, &size, &at)) == ARCHIVE_OK) {
		if (!write_zeroes(out, at - written) ||
		    archive_write_data(out, data, size) != (la_ssize_t)size)
			return fail(path, archive_error_string(out));
		written = at + (la_int64_t)size;
	}
	if (r != ARCHIVE_EOF)
		return fail(path, archive_error_string(disk));
	return write_zeroes(out, archive_entry_size(entry) - written) ?
		       true :
		       fail(path, archive_error_string(out));
}

/* libarchive 3.6 cuts the name of a file with holes that is not ASCII to what a tar header takes. */
static bool loses_name(const char *path)
{
	enum { HEADER_NAME = 100 };
	bool ascii = true;

	for (const char *at = path; *at; at++)
		ascii = ascii && (unsigned char)*at < 0x80;
	return !ascii && strlen(path) > HEADER_NAME;
}

static bool pack_entry(struct archive *disk, struct archive *out,
		       struct archive_entry_linkresolver *links, struct archive_entry *entry)
{
	struct archive_entry *kept = NULL;

	/* There is nothing in a socket, and no place for one in the format. */
	if (archive_entry_filetype(entry) == AE_IFSOCK)
		return true;
	if (loses_name(archive_entry_pathname(entry)))
		archive_entry_sparse_clear(entry); /* its holes are zeroes, then */
	archive_entry_linkify(links, &entry, &kept);
	if (archive_write_header(out, entry) < ARCHIVE_WARN)
		return fail(archive_entry_pathname(entry), archive_error_string(out));
	return archive_entry_size(entry) > 0 ? write_data(disk, out, entry) : true;
}

static bool pack_tree(struct archive *disk, struct archive *out,
		      struct archive_entry_linkresolver *links)
{
	struct archive_entry *entry = archive_entry_new();
	bool ok = true;

	while (ok && entry) {
		int r = archive_read_next_header2(disk, entry);

		if (r == ARCHIVE_EOF)
			break;
		ok = r == ARCHIVE_OK ? pack_entry(disk, out, links, entry) :
				       fail("volume", archive_error_string(disk));
		if (archive_read_disk_can_descend(disk))
			archive_read_disk_descend(disk);
		archive_entry_clear(entry);
	}
	ok = ok && entry;
	archive_entry_free(entry);
	return ok;
}

/* *ret_unread: it failed because the volume cannot be read. */
static bool pack_to(int fd, bool *ret_unread)
{
	struct archive *disk = archive_read_disk_new(), *out = archive_write_new();
	struct archive_entry_linkresolver *links = archive_entry_linkresolver_new();
	bool ok = disk && out && links;

	ok = ok && archive_write_set_format_pax_restricted(out) == ARCHIVE_OK &&
	     archive_write_add_filter_zstd(out) == ARCHIVE_OK &&
	     archive_write_open_fd(out, fd) == ARCHIVE_OK &&
	     archive_read_disk_set_symlink_physical(disk) == ARCHIVE_OK &&
	     archive_read_disk_open(disk, "volume") == ARCHIVE_OK;
	if (!ok) {
		fail("volume", disk && archive_error_string(disk) ? archive_error_string(disk) :
			       out                                ? archive_error_string(out) :
								    "out of memory");
	} else {
		archive_entry_linkresolver_set_strategy(links, archive_format(out));
		ok = pack_tree(disk, out, links);
		*ret_unread = !ok && archive_errno(disk) != 0;
		if (ok && archive_write_close(out) != ARCHIVE_OK)
			ok = fail("the archive", archive_error_string(out));
	}
	archive_entry_linkresolver_free(links);
	archive_read_free(disk);
	archive_write_free(out);
	return ok;
}

static bool put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

static bool map_id(const char *path, unsigned int id)
{
	char text[64];

	snprintf(text, sizeof(text), "%u %u 1", id, id);
	return put(path, text);
}

/* The files are ours, whatever a command has left of their permissions: these are not asked in
 * a user namespace of one's own. Its ids are the same. */
static bool open_all(void)
{
	uid_t uid = geteuid();
	gid_t gid = getegid();

	return uid != 0 && unshare(CLONE_NEWUSER) == 0 && put("/proc/self/setgroups", "deny") &&
	       map_id("/proc/self/uid_map", uid) && map_id("/proc/self/gid_map", gid);
}

/* What the first try had to say is told if the second fails as well. */
static bool pack_all(int fd)
{
	bool unread = false;

	return pack_to(fd, &unread) || (unread && open_all() && ftruncate(fd, 0) == 0 &&
					lseek(fd, 0, SEEK_SET) == 0 && pack_to(fd, &unread));
}

static bool sync_dir(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	bool ok = fd >= 0 && fsync(fd) == 0;

	if (fd >= 0)
		close(fd);
	return ok;
}

static bool pack(const char *dir, const char *part, const char *file)
{
	char *copy = strdup(file), *dest = copy ? dirname(copy) : NULL;
	bool ok = dest && (mkdir(dest, 0700) == 0 || errno == EEXIST);
	int fd = ok ? open(part, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600) : -1;

	if (fd < 0)
		ok = fail(ok ? part : dest ? dest : file, strerror(errno));
	else if (chdir(dir) < 0)
		ok = fail(dir, strerror(errno));
	else
		ok = pack_all(fd);
	if (ok && (fsync(fd) < 0 || rename(part, file) < 0 || !sync_dir(dest)))
		ok = fail(file, strerror(errno));
	if (!ok && fd >= 0)
		unlink(part);
	if (fd >= 0)
		close(fd);
	free(copy);
	return ok;
}

/* ---- remove */

static bool is_directory(int dir, const char *name)
{
	struct stat st;

	return fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
}

static int open_directory(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	/* It is ours, and what its mode forbids it forbids us too. */
	if (fd < 0 && errno == EACCES && fchmodat(dir, name, 0700, 0) == 0)
		fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0)
		(void)fchmod(fd, 0700);
	return fd;
}

/* Empty the directory and close it. What lies too deep is put on top, for the next round. */
static bool empty_directory(int top, int fd, unsigned int depth)
{
	static unsigned int moved;
	DIR *list = fdopendir(fd);
	struct dirent *entry;
	bool ok = list;

	if (!list)
		close(fd);
	while (ok && (entry = readdir(list))) {
		const char *name = entry->d_name;
		char up[32];
		int below;

		if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
			continue;
		if (!is_directory(dirfd(list), name)) {
			ok = unlinkat(dirfd(list), name, 0) == 0;
		} else if (depth >= DEPTH_MAX) {
			snprintf(up, sizeof(up), ".deep-%u-%u", (unsigned int)getpid(), moved++);
			ok = renameat(dirfd(list), name, top, up) == 0;
		} else {
			below = open_directory(dirfd(list), name);
			ok = below >= 0 && empty_directory(top, below, depth + 1) &&
			     unlinkat(dirfd(list), name, AT_REMOVEDIR) == 0;
		}
		/* Another process may be removing the same. */
		ok = ok || errno == ENOENT;
	}
	if (list)
		closedir(list);
	return ok;
}

static bool remove_tree(const char *path)
{
	int top = open_directory(AT_FDCWD, path), again;

	if (top < 0)
		return errno == ENOENT ? true : fail(path, strerror(errno));
	do {
		again = openat(top, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (again < 0 ? errno != ENOENT : !empty_directory(top, again, 0))
			return fail(path, strerror(errno));
	} while (rmdir(path) < 0 && errno == ENOTEMPTY);
	return access(path, F_OK) < 0 ? true : fail(path, strerror(errno));
}

int main(int argc, char **argv)
{
	bool ok = false;

	if (argc == 5 && strcmp(argv[1], "pack") == 0)
		ok = pack(argv[2], argv[3], argv[4]);
	else if (argc == 3 && strcmp(argv[1], "remove") == 0)
		ok = remove_tree(argv[2]);
	else
		fputs("usage: agentd-backup pack DIR PART FILE | remove DIR\n", stderr);
	return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
