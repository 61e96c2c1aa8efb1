/* SPDX-License-Identifier: MIT */
/* The view's mounts and files, from what view.c took hold of, until it is the root. */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "helper/mount.h"
#include "sys/sys.h"

/* ---- files and places */

/* Where the new root grows, before it becomes the root. */
static const char *const sites[] = { "/tmp", "/usr", "/etc" };

/* A directory of the view, made if it is missing; -errno. Never through a link. */
static int make_dir(int root, const char *path)
{
	int dir = fcntl(root, F_DUPFD_CLOEXEC, 3);
	const char *at = path;

	if (dir < 0)
		return -errno;
	while (dir >= 0 && *at) {
		char name[NAME_MAX + 1];
		size_t len;
		int next;

		at += strspn(at, "/");
		len = strcspn(at, "/");
		if (len == 0)
			break;
		if (len > NAME_MAX) {
			close(dir);
			return -ENAMETOOLONG;
		}
		memcpy(name, at, len);
		name[len] = '\0';
		at += len;
		next = openat(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (next < 0 && errno == ENOENT && mkdirat(dir, name, 0755) == 0)
			next = openat(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (next < 0)
			next = -errno;
		close(dir);
		dir = next;
	}
	return dir;
}

/* The directory that holds path, and the last part of it. */
static int make_parent(int root, const char *path, const char **ret_name)
{
	const char *slash = strrchr(path, '/');
	char *parent = strndup(path, (size_t)(slash - path));
	int dir;

	if (!parent)
		return -ENOMEM;
	*ret_name = slash + 1;
	dir = make_dir(root, parent);
	free(parent);
	return dir;
}

int view_point(int root, const char *path, bool directory)
{
	const char *name;
	int dir, fd;

	if (directory)
		return make_dir(root, path);
	dir = make_parent(root, path, &name);
	if (dir < 0)
		return dir;
	fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT) {
		fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0444);
		if (fd >= 0) {
			close(fd);
			fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		}
	}
	if (fd < 0)
		fd = -errno;
	close(dir);
	return fd;
}

static int attach(int root, const struct view_entry *entry)
{
	int point = view_point(root, entry->target, entry->directory), r;

	if (point < 0)
		return point;
	r = mount_attach(entry->fd, point);
	close(point);
	return r;
}

/* A link whose place is reached through another link is there already. */
static int make_link(int root, const char *target, const char *link)
{
	const char *name;
	int dir = make_parent(root, target, &name), r = 0;

	if (dir < 0)
		return dir == -ENOTDIR || dir == -ELOOP ? 0 : dir;
	if (symlinkat(link, dir, name) < 0 && errno != EEXIST && errno != EROFS)
		r = -errno;
	close(dir);
	return r;
}

static int make_file(int root, const char *path, const char *text, size_t len)
{
	const char *name;
	int dir = make_parent(root, path, &name), fd, r = 0;

	if (dir < 0)
		return dir;
	fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0444);
	if (fd < 0)
		r = errno == EEXIST ? 0 : -errno;
	else if (write(fd, text, len) != (ssize_t)len)
		r = -EIO;
	if (fd >= 0)
		close(fd);
	close(dir);
	return r;
}

/* ---- /etc: made from nothing, and copies of a few small files */

static const char *const etc_copies[] = {
	"/etc/ld.so.cache",    "/etc/ld.so.conf",  "/etc/localtime",       "/etc/timezone",
	"/etc/mime.types",     "/etc/services",    "/etc/protocols",       "/etc/magic",
	"/etc/magic.mime",     "/etc/inputrc",     "/etc/locale.alias",    "/etc/os-release",
	"/etc/debian_version", "/etc/bash.bashrc", "/etc/ssl/openssl.cnf", "/etc/ethertypes",
};
enum { ETC_COPY_MAX = 1024 * 1024 };

/* From the host's root, which is still ours to read. */
static int copy_file(int root, const char *path)
{
	char *text = malloc(ETC_COPY_MAX);
	ssize_t n = text ? read_small(AT_FDCWD, path, text, ETC_COPY_MAX) : -ENOMEM;
	int r = 0;

	if (n >= 0)
		r = make_file(root, path, text, (size_t)n);
	free(text);
	return r;
}

static int make_etc(int root, const struct sandbox *sandbox)
{
	static const char group[] = "root:x:0:\ntty:x:5:\nagent:x:%u:\nnogroup:x:65534:\n";
	static const char passwd[] = "root:x:0:0:root:/root:/usr/sbin/nologin\n"
				     "agent:x:%u:%u:agent:" SANDBOX_HOME ":/bin/bash\n"
				     "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
	static const char hosts[] = "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost\n";
	static const char nsswitch[] =
		"passwd: files\ngroup: files\nshadow: files\nhosts: files%s\n"
		"services: files\nprotocols: files\n";
	char text[512];
	int r, n;

	n = snprintf(text, sizeof(text), passwd, SANDBOX_UID, SANDBOX_UID);
	r = make_file(root, "/etc/passwd", text, (size_t)n);
	n = snprintf(text, sizeof(text), group, SANDBOX_UID);
	if (r == 0)
		r = make_file(root, "/etc/group", text, (size_t)n);
	if (r == 0)
		r = make_file(root, "/etc/hosts", hosts, sizeof(hosts) - 1);
	n = snprintf(text, sizeof(text), nsswitch,
		     sandbox->spec->profile.host_net || sandbox->spec->netns >= 0 ? " dns" : "");
	if (r == 0)
		r = make_file(root, "/etc/nsswitch.conf", text, (size_t)n);
	if (r == 0 && (sandbox->spec->profile.host_net || sandbox->spec->netns >= 0))
		r = copy_file(root, "/etc/resolv.conf");
	for (size_t i = 0; r == 0 && i < AD_COUNT(etc_copies); i++)
		r = copy_file(root, etc_copies[i]);
	return r;
}

static int make_dev_links(int root)
{
	static const struct {
		const char *target, *link;
	} links[] = {
		{ "/dev/fd", "/proc/self/fd" },       { "/dev/stdin", "/proc/self/fd/0" },
		{ "/dev/stdout", "/proc/self/fd/1" }, { "/dev/stderr", "/proc/self/fd/2" },
		{ "/dev/ptmx", "pts/ptmx" },          { "/dev/shm", "/run/shm" },
	};
	int r = 0;

	for (size_t i = 0; r == 0 && i < AD_COUNT(links); i++)
		r = make_link(root, links[i].target, links[i].link);
	return r;
}

static int make_empty(int root, const char *path)
{
	int fd = make_dir(root, path);

	if (fd >= 0)
		close(fd);
	return fd < 0 ? fd : 0;
}

/* ---- hiding */

/* On the file system of /dev, which is always ours to write to until the end. */
static const char hidden_dir[] = "/dev/.hidden-dir", hidden_file[] = "/dev/.hidden-file";

static int hide(int root, const struct view_entry *entry)
{
	int cover, point, r;
	struct stat st;

	/* Of a mount that is shown as the root nothing would be left. */
	if (strcmp(entry->target, "/") == 0)
		return -EACCES;
	/* Only where the view shows it at all. */
	point = open_beneath(root, entry->target + 1, O_PATH);
	if (point < 0)
		return point == -ENOENT || point == -ENOTDIR ? 0 : point;
	if (fstat(point, &st) < 0) {
		r = -errno;
		close(point);
		return r;
	}
	cover = mount_copy(root, (S_ISDIR(st.st_mode) ? hidden_dir : hidden_file) + 1,
			   MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSUID |
				   MOUNT_ATTR_NODEV);
	r = cover < 0 ? cover : mount_attach(cover, point);
	if (cover >= 0)
		close(cover);
	close(point);
	return r;
}

static int hide_all(int root, const struct view *view)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < view->count; i++) {
		if (view_denies(&view->entries[i]))
			r = hide(root, &view->entries[i]);
	}
	return r;
}

/* ---- all together */

static int by_target(const void *a, const void *b)
{
	const struct view_entry *left = a, *right = b;
	size_t left_len = strlen(left->target), right_len = strlen(right->target);

	/* What contains another has a shorter path. */
	if (left_len != right_len)
		return left_len < right_len ? -1 : 1;
	return strcmp(left->target, right->target);
}

static struct view_entry *root_entry(struct view *view)
{
	for (size_t i = 0; i < view->count; i++) {
		if (strcmp(view->entries[i].target, "/") == 0 && view->entries[i].fd >= 0)
			return &view->entries[i];
	}
	return NULL;
}

static bool view_fault(struct fault *fault, int r, const char *what)
{
	return fault_set(fault, AD_STAGE_VIEW, 0, -r, "%s", what);
}

/* The new root: the policy's, or an empty file system. The descriptor, or -errno. */
static int make_root(struct view *view)
{
	struct view_entry *entry = root_entry(view);
	const char *site = NULL;
	int fd, r = -ENOENT;

	for (size_t i = 0; i < AD_COUNT(sites) && !site; i++) {
		struct stat st;

		if (lstat(sites[i], &st) == 0 && S_ISDIR(st.st_mode))
			site = sites[i];
	}
	if (!site)
		return r;
	if (entry) {
		int point = open(site, O_PATH | O_CLOEXEC);

		r = point < 0 ? -errno : mount_attach(entry->fd, point);
		if (r < 0)
			return r;
		close(point);
		close(entry->fd);
		entry->fd = -1;
		entry->access = AD_ACCESS_ALL; /* not to be hidden */
	} else if (mount("tmpfs", site, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=16m") < 0) {
		return -errno;
	}
	fd = open(site, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* The policy's root has a /dev, /run and /tmp of the host's in it. */
static int cover_with_tmpfs(int root, const char *path)
{
	int point = make_dir(root, path), r, fs;

	if (point < 0)
		return point;
	fs = mount_new_tmpfs("mode=755,size=1m");
	r = fs < 0 ? fs : mount_attach(fs, point);
	if (fs >= 0)
		close(fs);
	close(point);
	return r;
}

static int attach_proc(int root, int proc)
{
	int point = make_dir(root, "/proc"), r;

	if (point < 0)
		return point;
	r = mount_attach(proc, point);
	close(point);
	return r;
}

static int make_own(int root, struct view *view, const struct sandbox *sandbox, bool own_root)
{
	int r = 0;

	if (!own_root)
		r = cover_with_tmpfs(root, "/dev");
	for (size_t i = 0; r == 0 && i < view->count; i++) {
		if (view->entries[i].device)
			r = attach(root, &view->entries[i]);
	}
	if (r == 0)
		r = make_empty(root, "/dev/pts");
	if (r == 0)
		r = make_dev_links(root);
	if (r == 0)
		r = make_empty(root, "/run");
	if (r == 0)
		r = make_empty(root, "/tmp");
	if (r == 0 && own_root)
		r = make_link(root, "/var/tmp", "/tmp");
	if (r == 0 && !view_covers(view, "/etc/passwd"))
		r = make_etc(root, sandbox);
	return r;
}

static int make_hidden_pair(int root)
{
	int fd;

	if (mkdirat(root, hidden_dir + 1, 0) < 0)
		return -errno;
	fd = openat(root, hidden_file + 1, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

static void remove_hidden_pair(int root)
{
	unlinkat(root, hidden_dir + 1, AT_REMOVEDIR);
	unlinkat(root, hidden_file + 1, 0);
}

static int become_root(int root)
{
	int r = mount_set(root, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);

	if (r < 0)
		return r;
	if (fchdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 ||
	    umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return -errno;
	return 0;
}

bool view_build(struct view *view, struct sandbox *sandbox, struct fault *fault)
{
	bool own_root = !root_entry(view);
	int root, proc, r;

	/* The host's /proc stays beneath each command's own: without one that can be seen
	 * whole the kernel lets nobody in a user namespace mount another. */
	proc = mount_copy(AT_FDCWD, "/proc", 0);
	if (proc < 0)
		return view_fault(fault, proc, "/proc");
	root = make_root(view);
	if (root < 0)
		return view_fault(fault, root, "the new root");
	qsort(view->entries, view->count, sizeof(*view->entries), by_target);
	for (size_t i = 0; i < view->count; i++) {
		const struct view_entry *entry = &view->entries[i];

		if (entry->device || (entry->fd < 0 && !entry->link))
			continue;
		r = entry->link ? make_link(root, entry->target, entry->link) : attach(root, entry);
		if (r < 0)
			return view_path_fault(fault, entry->index, -r, "%s", entry->target);
	}
	r = make_own(root, view, sandbox, own_root);
	if (r < 0)
		return view_fault(fault, r, "the sandbox's own directories");
	r = make_hidden_pair(root);
	if (r == 0)
		r = hide_all(root, view);
	if (r < 0)
		return view_fault(fault, r, "hiding what is denied");
	remove_hidden_pair(root);
	if (!view_note(view, sandbox, fault))
		return false;
	r = attach_proc(root, proc);
	close(proc);
	if (r == 0)
		r = become_root(root);
	close(root);
	return r < 0 ? view_fault(fault, r, "making it the root") : true;
}
