/* SPDX-License-Identifier: MIT */
/* The file system view of a sandbox: a small read-only root with nothing in it but what
 * the policy names, the working directory, devices that are harmless, and an /etc of
 * the few files that programs cannot do without. Sources are resolved once, without
 * following symbolic links, and then only used by descriptor. */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "helper/mount.h"
#include "sys/sys.h"

/* ---- faults and layers */

bool fault_set(struct fault *fault, uint32_t stage, uint32_t index, int error, const char *fmt, ...)
{
	va_list args;

	fault->stage = stage;
	fault->index = index;
	fault->error = error;
	va_start(args, fmt);
	vsnprintf(fault->text, sizeof(fault->text), fmt, args);
	va_end(args);
	return false;
}

bool layer_wanted(const struct ad_profile *profile, enum ad_layer layer)
{
	return profile->strict[layer] != AD_STRICT_OFF;
}

bool layer_failed(struct ad_msg_receipt *layers, const struct ad_profile *profile,
		  enum ad_layer layer, int error, struct fault *fault, const char *what)
{
	if (profile->strict[layer] == AD_STRICT_REQUIRED)
		return fault_set(fault, AD_STAGE_LAYER, layer, error, "%s", what);
	layers->layers[layer] = AD_MSG_LAYER_DEGRADED;
	layers->layer_errno[layer] = (uint16_t)error;
	return true;
}

/* ---- entries */

static struct view_entry *add(struct view *view, const char *target, uint32_t index)
{
	struct view_entry *entry;

	if (view->count == view->cap) {
		size_t cap = view->cap ? view->cap * 2 : 64;
		struct view_entry *grown = reallocarray(view->entries, cap, sizeof(*grown));

		if (!grown)
			return NULL;
		view->entries = grown;
		view->cap = cap;
	}
	entry = &view->entries[view->count++];
	*entry = (struct view_entry){ .target = target, .index = index, .fd = -1 };
	return entry;
}

static bool nomem(struct fault *fault)
{
	return fault_set(fault, AD_STAGE_VIEW, 0, ENOMEM, "out of memory");
}

static bool path_fault(struct fault *fault, uint32_t index, int error, const char *fmt,
		       const char *detail)
{
	uint32_t stage = index == VIEW_WORKDIR ? AD_STAGE_WORKDIR :
			 index == VIEW_OWN     ? AD_STAGE_VIEW :
						 AD_STAGE_PATH;

	return fault_set(fault, stage, stage == AD_STAGE_PATH ? index : 0, error, fmt, detail);
}

/* Does the view show the host's path, with that access, under its own name? */
static bool covered(const struct template_spec *spec, const char *path, uint8_t access)
{
	const struct ad_profile *profile = &spec->profile;

	if (ad_path_beneath(path, spec->workdir) && (access & ~profile->workdir_access) == 0)
		return true;
	for (size_t i = 0; i < profile->path_count; i++) {
		const struct ad_profile_path *at = &profile->paths[i];

		if (at->access && (access & ~at->access) == 0 &&
		    ad_path_beneath(path, at->source) && strcmp(at->source, at->target) == 0)
			return true;
	}
	return false;
}

static int open_path(const char *path, uint64_t resolve)
{
	struct open_how how = { .flags = O_PATH | O_CLOEXEC, .resolve = resolve };

	return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
}

/* The path that the kernel came to, or NULL. */
static char *real_path(int fd, struct fault *fault)
{
	char link[64], text[PATH_MAX], *path = NULL;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, text, sizeof(text) - 1);
	if (n >= 0) {
		text[n] = '\0';
		path = strdup(text);
	}
	if (!path)
		fault_set(fault, AD_STAGE_VIEW, 0, errno, "%s", link);
	return path;
}

/* ---- identity mapping of writable sources */

/* A root host's files look the command's own, and what it makes is its owner's. */
static bool map_ids(int mount, const struct stat *st, struct sandbox *sandbox, struct fault *fault)
{
	const struct ad_profile *profile = &sandbox->spec->profile;
	int userns, r;

	if (sandbox->outer_uid == sandbox->spec->from_uid ||
	    (st->st_uid == sandbox->outer_uid && st->st_gid == sandbox->outer_gid) ||
	    !layer_wanted(profile, AD_LAYER_IDMAP))
		return true;
	if (!sandbox->privileged)
		return layer_failed(&sandbox->layers, profile, AD_LAYER_IDMAP, EPERM, fault,
				    "root without CAP_SYS_ADMIN cannot map ids");
	userns = userns_new(&(struct id_map){ .uid_inside = st->st_uid,
					      .uid_outside = sandbox->outer_uid,
					      .gid_inside = st->st_gid,
					      .gid_outside = sandbox->outer_gid });
	if (userns < 0)
		return layer_failed(&sandbox->layers, profile, AD_LAYER_IDMAP, -userns, fault,
				    "no user namespace for the mapping");
	r = mount_map_ids(mount, userns);
	close(userns);
	if (r < 0)
		return layer_failed(&sandbox->layers, profile, AD_LAYER_IDMAP, -r, fault,
				    "the file system of a writable path cannot map ids");
	if (!sandbox->layers.layers[AD_LAYER_IDMAP])
		sandbox->layers.layers[AD_LAYER_IDMAP] = AD_MSG_LAYER_ENFORCED;
	return true;
}

/* ---- collecting */

static uint64_t attributes(const struct view_entry *entry)
{
	uint64_t attr = MOUNT_ATTR_NOSUID;

	if (entry->device)
		return attr | MOUNT_ATTR_NOEXEC;
	attr |= MOUNT_ATTR_NODEV;
	if (!(entry->access & AD_ACCESS_WRITE))
		attr |= MOUNT_ATTR_RDONLY;
	if (!(entry->access & AD_ACCESS_EXEC))
		attr |= MOUNT_ATTR_NOEXEC;
	return attr;
}

/* A detached copy of the tree at fd, confined as the entry says. Takes fd. */
static bool take_tree(struct view_entry *entry, int fd, struct sandbox *sandbox,
		      struct fault *fault)
{
	struct stat st;
	int r = fstat(fd, &st) < 0 ? -errno : 0;

	if (r == 0) {
		entry->directory = S_ISDIR(st.st_mode);
		entry->fd = r = mount_copy(fd, NULL, attributes(entry));
	}
	close(fd);
	if (r < 0)
		return path_fault(fault, entry->index, -r, "%s", entry->target);
	if ((entry->access & AD_ACCESS_WRITE) && !entry->device)
		return map_ids(entry->fd, &st, sandbox, fault);
	return true;
}

static bool collect_link(struct view_entry *entry, const char *source, struct sandbox *sandbox,
			 struct fault *fault)
{
	int fd = open_path(source, 0);

	if (fd < 0)
		return path_fault(fault, entry->index, errno, "%s", source);
	entry->link = real_path(fd, fault);
	close(fd);
	if (!entry->link)
		return false;
	if (covered(sandbox->spec, entry->link, entry->access))
		return true;
	fault_set(fault, 0, 0, ELOOP, "%s is a symbolic link to %s, which is not allowed", source,
		  entry->link);
	fault->stage = entry->index == VIEW_WORKDIR ? AD_STAGE_WORKDIR : AD_STAGE_PATH;
	fault->index = entry->index == VIEW_WORKDIR ? 0 : entry->index;
	return false;
}

static bool collect(struct view *view, const char *source, const char *target, uint32_t index,
		    uint8_t access, struct sandbox *sandbox, struct fault *fault)
{
	struct view_entry *entry = add(view, target, index);
	int fd;

	if (!entry)
		return nomem(fault);
	entry->access = access;
	fd = open_path(source, RESOLVE_NO_SYMLINKS);
	if (fd >= 0)
		return take_tree(entry, fd, sandbox, fault);
	if (errno == ELOOP)
		return collect_link(entry, source, sandbox, fault);
	return path_fault(fault, index, errno, "%s", source);
}

bool view_shown(const struct template_spec *spec, size_t i, struct ad_profile_path *ret)
{
	if (i > spec->profile.path_count)
		return false;
	*ret = i == 0 ? (struct ad_profile_path){ .source = spec->workdir,
						  .target = spec->workdir,
						  .access = spec->profile.workdir_access } :
			spec->profile.paths[i - 1];
	if (i > 0 && strcmp(ret->target, spec->workdir) == 0)
		ret->access = 0;
	return true;
}

/* Where `by` shows the host's path, which is beneath its source. NULL: out of memory. */
static char *place_of(const char *path, const struct ad_profile_path *by)
{
	const char *rest = path + (strcmp(by->source, "/") == 0 ? 0 : strlen(by->source));
	const char *target = strcmp(by->target, "/") == 0 && *rest ? "" : by->target;
	char *ret;

	return asprintf(&ret, "%s%s", target, rest) < 0 ? NULL : ret;
}

/* In all that shows it, or a part of it, under another name. */
static bool collect_denied_places(struct view *view, const char *real, uint32_t index,
				  const struct template_spec *spec)
{
	struct ad_profile_path by;

	for (size_t i = 0; view_shown(spec, i, &by); i++) {
		char *place;

		if (!by.access || strcmp(by.source, by.target) == 0)
			continue;
		if (ad_path_beneath(by.source, real))
			place = strdup(by.target);
		else if (ad_path_beneath(real, by.source))
			place = place_of(real, &by);
		else
			continue;
		if (!place || !add(view, place, index))
			return false;
	}
	return true;
}

/* What is denied is hidden where it really is. What does not exist needs no hiding. */
static bool collect_denied(struct view *view, const struct ad_profile_path *path, uint32_t index,
			   const struct template_spec *spec, struct fault *fault)
{
	int fd = open_path(path->source, 0);
	char *real;

	if (fd < 0)
		return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ?
			       true :
			       path_fault(fault, index, errno, "%s", path->source);
	real = real_path(fd, fault);
	close(fd);
	if (!real)
		return false;
	return add(view, real, index) && collect_denied_places(view, real, index, spec) ?
		       true :
		       nomem(fault);
}

/* /bin and the like, where they are links into what the policy shows. */
static bool collect_usr_links(struct view *view, struct sandbox *sandbox, struct fault *fault)
{
	static const char *const links[] = {
		"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"
	};

	for (size_t i = 0; i < AD_COUNT(links); i++) {
		struct view_entry *entry;
		bool known = false;
		struct stat st;
		char *real;
		int fd;

		for (size_t j = 0; j < view->count; j++)
			known |= strcmp(view->entries[j].target, links[i]) == 0 ||
				 strcmp(view->entries[j].target, "/") == 0;
		if (known || lstat(links[i], &st) < 0 || !S_ISLNK(st.st_mode))
			continue;
		fd = open_path(links[i], 0);
		if (fd < 0)
			continue;
		real = real_path(fd, fault);
		close(fd);
		if (!real)
			return false;
		if (!covered(sandbox->spec, real, AD_ACCESS_READ)) {
			free(real);
			continue;
		}
		entry = add(view, links[i], VIEW_OWN);
		if (!entry)
			return nomem(fault);
		entry->link = real;
	}
	return true;
}

static const char *const devices[] = { "/dev/null",   "/dev/zero",    "/dev/full",
				       "/dev/random", "/dev/urandom", "/dev/tty" };

static bool collect_devices(struct view *view, struct sandbox *sandbox, struct fault *fault)
{
	for (size_t i = 0; i < AD_COUNT(devices); i++) {
		struct view_entry *entry = add(view, devices[i], VIEW_OWN);
		int fd = open_path(devices[i], 0);

		if (!entry)
			return nomem(fault);
		entry->device = true;
		entry->access = AD_ACCESS_READ | AD_ACCESS_WRITE;
		if (fd < 0)
			return path_fault(fault, VIEW_OWN, errno, "%s", devices[i]);
		if (!take_tree(entry, fd, sandbox, fault))
			return false;
	}
	return true;
}

/* Directories of /etc that programs read and that hold no secrets. */
static const char *const etc_dirs[] = {
	"/etc/alternatives",    "/etc/ssl/certs",  "/etc/ca-certificates", "/etc/pki",
	"/etc/ld.so.conf.d",    "/etc/terminfo",   "/etc/fonts",           "/etc/perl",
	"/etc/python3",         "/etc/python3.11", "/etc/java-17-openjdk", "/etc/java-21-openjdk",
	"/etc/java-11-openjdk",
};

static bool covers_target(const struct view *view, const char *target)
{
	for (size_t i = 0; i < view->count; i++) {
		if (view->entries[i].access && ad_path_beneath(target, view->entries[i].target))
			return true;
	}
	return false;
}

static bool collect_etc(struct view *view, struct sandbox *sandbox, struct fault *fault)
{
	for (size_t i = 0; i < AD_COUNT(etc_dirs); i++) {
		int fd = open_path(etc_dirs[i], RESOLVE_NO_SYMLINKS);
		struct view_entry *entry;

		if (fd < 0)
			continue;
		entry = covers_target(view, etc_dirs[i]) ? NULL : add(view, etc_dirs[i], VIEW_OWN);
		if (!entry) {
			close(fd);
			continue;
		}
		entry->access = AD_ACCESS_READ | AD_ACCESS_EXEC;
		if (!take_tree(entry, fd, sandbox, fault))
			return false;
	}
	return true;
}

/* Not with more rights than the host program has now. */
static void as_host(const struct sandbox *sandbox, bool begin)
{
	if (!sandbox->privileged || sandbox->spec->from_uid == 0)
		return;
	setfsgid(begin ? sandbox->spec->from_gid : 0);
	setfsuid(begin ? sandbox->spec->from_uid : 0);
}

static bool collect_paths(struct view *view, struct sandbox *sandbox, struct fault *fault)
{
	const struct template_spec *spec = sandbox->spec;
	const struct ad_profile *profile = &spec->profile;

	for (size_t i = 0; i < profile->path_count; i++) {
		const struct ad_profile_path *path = &profile->paths[i];

		if (path->access && strcmp(path->target, spec->workdir) != 0 &&
		    !collect(view, path->source, path->target, (uint32_t)i, path->access, sandbox,
			     fault))
			return false;
	}
	if (!collect(view, spec->workdir, spec->workdir, VIEW_WORKDIR, profile->workdir_access,
		     sandbox, fault))
		return false;
	if (!view->entries[view->count - 1].directory && !view->entries[view->count - 1].link)
		return path_fault(fault, VIEW_WORKDIR, ENOTDIR, "%s", spec->workdir);
	for (size_t i = 0; i < profile->path_count; i++) {
		if (!profile->paths[i].access &&
		    !collect_denied(view, &profile->paths[i], (uint32_t)i, spec, fault))
			return false;
	}
	return true;
}

bool view_collect(struct view *view, struct sandbox *sandbox, struct fault *fault)
{
	bool ok;

	as_host(sandbox, true);
	ok = collect_paths(view, sandbox, fault);
	as_host(sandbox, false);
	return ok && collect_usr_links(view, sandbox, fault) &&
	       collect_devices(view, sandbox, fault) && collect_etc(view, sandbox, fault);
}

/* ---- building */

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

static bool is_denied(const struct view_entry *entry)
{
	return entry->fd < 0 && !entry->link && !entry->access;
}

static int hide_all(int root, const struct view *view)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < view->count; i++) {
		if (is_denied(&view->entries[i]))
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
	if (r == 0 && !covers_target(view, "/etc/passwd"))
		r = make_etc(root, sandbox);
	return r;
}

/* What each command's own /run and /tmp would cover. */
static bool note_nested(const struct view *view, struct sandbox *sandbox)
{
	sandbox->own_tmp = !covers_target(view, "/tmp");
	sandbox->nested = reallocarray(NULL, view->count + 1, sizeof(*sandbox->nested));
	if (!sandbox->nested)
		return false;
	for (size_t i = 0; i < view->count; i++) {
		const struct view_entry *entry = &view->entries[i];

		if (entry->fd >= 0 &&
		    (ad_path_beneath(entry->target, "/run") ||
		     (sandbox->own_tmp && ad_path_beneath(entry->target, "/tmp"))))
			sandbox->nested[sandbox->nested_count++] = entry->target;
	}
	return true;
}

static bool note_hidden(const struct view *view, struct sandbox *sandbox)
{
	sandbox->hidden = reallocarray(NULL, view->count + 1, sizeof(*sandbox->hidden));
	if (!sandbox->hidden)
		return false;
	for (size_t i = 0; i < view->count; i++) {
		if (is_denied(&view->entries[i]))
			sandbox->hidden[sandbox->hidden_count++] = view->entries[i].target;
	}
	return true;
}

/* A mount has other names for what is also shown by itself: what is protected there is
 * protected by those, too. */
static bool note_alias(struct sandbox *sandbox, const struct ad_profile_path *path,
		       const struct ad_profile_path *by)
{
	char *place;
	const char **grown;

	if (!(by->access & AD_ACCESS_WRITE) || strcmp(path->source, by->source) == 0 ||
	    !ad_path_beneath(path->source, by->source))
		return true;
	place = place_of(path->source, by);
	if (place && strcmp(place, path->target) == 0) {
		free(place);
		return true;
	}
	grown = reallocarray(sandbox->aliases, sandbox->alias_count + 1, sizeof(*grown));
	if (!place || !grown)
		return false;
	sandbox->aliases = grown;
	grown[sandbox->alias_count++] = place;
	return true;
}

static bool note_aliases(struct sandbox *sandbox)
{
	struct ad_profile_path path, by;

	for (size_t i = 0; view_shown(sandbox->spec, i, &path); i++) {
		for (size_t j = 0;
		     (path.access & AD_ACCESS_WRITE) && view_shown(sandbox->spec, j, &by); j++) {
			if (!note_alias(sandbox, &path, &by))
				return false;
		}
	}
	return true;
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
			return path_fault(fault, entry->index, -r, "%s", entry->target);
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
	if (!note_nested(view, sandbox) || !note_hidden(view, sandbox) || !note_aliases(sandbox))
		return nomem(fault);
	r = attach_proc(root, proc);
	close(proc);
	if (r == 0)
		r = become_root(root);
	close(root);
	return r < 0 ? view_fault(fault, r, "making it the root") : true;
}
