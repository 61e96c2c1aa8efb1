/* SPDX-License-Identifier: MIT */
/* The file system view of a sandbox: a small read-only root with nothing in it but what
 * the policy names, the working directory, devices that are harmless, and an /etc of
 * the few files that programs cannot do without. Sources are resolved once, without
 * following symbolic links, and then only used by descriptor, by view_build.c. */
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

bool view_path_fault(struct fault *fault, uint32_t index, int error, const char *fmt,
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
		return view_path_fault(fault, entry->index, -r, "%s", entry->target);
	if ((entry->access & AD_ACCESS_WRITE) && !entry->device)
		return map_ids(entry->fd, &st, sandbox, fault);
	return true;
}

static bool collect_link(struct view_entry *entry, const char *source, struct sandbox *sandbox,
			 struct fault *fault)
{
	int fd = open_path(source, 0);

	if (fd < 0)
		return view_path_fault(fault, entry->index, errno, "%s", source);
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
	return view_path_fault(fault, index, errno, "%s", source);
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
			       view_path_fault(fault, index, errno, "%s", path->source);
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
			return view_path_fault(fault, VIEW_OWN, errno, "%s", devices[i]);
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

bool view_covers(const struct view *view, const char *target)
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
		entry = view_covers(view, etc_dirs[i]) ? NULL : add(view, etc_dirs[i], VIEW_OWN);
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
		return view_path_fault(fault, VIEW_WORKDIR, ENOTDIR, "%s", spec->workdir);
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

/* ---- what commands have to know of it */

bool view_denies(const struct view_entry *entry)
{
	return entry->fd < 0 && !entry->link && !entry->access;
}

/* What each command's own /run and /tmp would cover. */
static bool note_nested(const struct view *view, struct sandbox *sandbox)
{
	sandbox->own_tmp = !view_covers(view, "/tmp");
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
		if (view_denies(&view->entries[i]))
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

bool view_note(const struct view *view, struct sandbox *sandbox, struct fault *fault)
{
	return note_nested(view, sandbox) && note_hidden(view, sandbox) && note_aliases(sandbox) ?
		       true :
		       nomem(fault);
}
