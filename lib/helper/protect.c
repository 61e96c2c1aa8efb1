/* SPDX-License-Identifier: MIT */
/* Protected names: what a command must not leave behind in a writable directory, since
 * it would run later, outside of the sandbox: hooks of git, start-up files of shells.
 *
 * What is there when the command starts is mounted on itself, read-only. A mount point
 * can be neither removed nor renamed; its parents could be, so they are mounted on
 * themselves as well. Likewise the parents of what is hidden, and of what is mounted
 * into a writable directory: their names lead to the same things afterwards.
 *
 * What is not there cannot be protected that way, and programs may have good reasons to
 * make it and remove it again. It is looked at when all of the command is dead, and moved
 * aside. But where not even the directory was there (.git, for .git/hooks), the command
 * has made all of it, as git init and git clone do, and whoever uses it uses a thing of
 * the command's.
 *
 * A symbolic link cannot be mounted on: it is put back if it has changed. What it leads
 * to is protected where that is. */
#include "helper/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helper/mount.h"

/* To be looked at in the end: a path below a root where there was nothing, or a link. Texts by
 * where they are in protection.text. */
struct late {
	const char *root; /* a writable directory of the view */
	size_t name;      /* below it */
	size_t link;      /* where the symbolic link led; NO_TEXT: nothing was there */
};

/* What was there on the way to the names. */
struct known {
	size_t path;
	uint64_t mount; /* its id, being mounted on itself by now; 0: nothing is there */
};

#define NO_TEXT SIZE_MAX
enum {
	ENTRIES_MIN = 16,
	TEXT_MIN = PATH_MAX /* so that twice as much has room for another path */
};

struct guard {
	struct protection *protection;
	const struct sandbox *sandbox;
	const char *root;
	int root_fd;
	struct fault *fault;
};

static bool guard_fault(const struct guard *guard, int error, const char *name)
{
	return fault_set(guard->fault, AD_STAGE_VIEW, 0, error, "protecting %s/%s", guard->root,
			 name);
}

/* ---- bookkeeping */

/* The array with room for one more, or NULL. */
static void *with_room(void *array, size_t count, size_t size)
{
	bool full = count == 0 || (count >= ENTRIES_MIN && (count & (count - 1)) == 0);

	return full ? reallocarray(array, count ? 2 * count : ENTRIES_MIN, size) : array;
}

/* Copies of their own, on free pieces of memory that lie apart, would cost a page fault each. */
static size_t keep_text(struct protection *protection, const char *text)
{
	size_t size = strlen(text) + 1, at = protection->text_len;

	if (at + size > protection->text_cap) {
		size_t cap = protection->text_cap ? 2 * protection->text_cap : (size_t)TEXT_MIN;
		char *grown = realloc(protection->text, cap);

		if (!grown)
			return NO_TEXT;
		protection->text = grown;
		protection->text_cap = cap;
	}
	memcpy(protection->text + at, text, size);
	protection->text_len += size;
	return at;
}

static bool add_late(struct guard *guard, const char *name, const char *link)
{
	struct protection *protection = guard->protection;
	struct late *late;

	for (size_t i = 0; i < protection->count; i++) {
		late = &protection->late[i];
		if (strcmp(late->root, guard->root) == 0 &&
		    strcmp(protection->text + late->name, name) == 0)
			return true;
	}
	late = with_room(protection->late, protection->count, sizeof(*late));
	if (!late)
		return guard_fault(guard, ENOMEM, name);
	protection->late = late;
	late += protection->count;
	*late = (struct late){
		.root = guard->root,
		.name = keep_text(protection, name),
		.link = link ? keep_text(protection, link) : NO_TEXT,
	};
	if (late->name == NO_TEXT || (link && late->link == NO_TEXT))
		return guard_fault(guard, ENOMEM, name);
	protection->count++;
	protection->unsure |= link != NULL;
	return true;
}

static bool is_known(const struct guard *guard, const char *path, bool mounted)
{
	const struct protection *protection = guard->protection;

	for (size_t i = 0; i < protection->known_count; i++) {
		const struct known *known = &protection->known[i];

		if ((known->mount != 0) == mounted &&
		    strcmp(protection->text + known->path, path) == 0)
			return true;
	}
	return false;
}

static bool note(struct guard *guard, const char *path, uint64_t mount)
{
	struct protection *protection = guard->protection;
	struct known *known = with_room(protection->known, protection->known_count, sizeof(*known));

	if (!known)
		return guard_fault(guard, ENOMEM, path);
	protection->known = known;
	known += protection->known_count;
	*known = (struct known){ .path = keep_text(protection, path), .mount = mount };
	if (known->path == NO_TEXT)
		return guard_fault(guard, ENOMEM, path);
	protection->known_count++;
	return true;
}

static void path_of(const struct guard *guard, const char *name, char ret[static PATH_MAX])
{
	snprintf(ret, PATH_MAX, "%s%s%s", guard->root, name[0] ? "/" : "", name);
}

static bool note_absent(struct guard *guard, const char *name)
{
	char path[PATH_MAX];

	path_of(guard, name, path);
	return is_known(guard, path, false) || note(guard, path, 0);
}

/* Of what has another name by now, a command may find that it still is read-only. */
static void forget(struct protection *protection)
{
	for (size_t i = protection->known_count; i-- > 0;) {
		const struct known *known = &protection->known[i];
		const char *path = protection->text + known->path;

		if (known->mount && mount_id(AT_FDCWD, path) == known->mount)
			umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW);
	}
	free(protection->late);
	free(protection->known);
	free(protection->text);
	*protection = (struct protection){ 0 };
}

/* ---- mounts */

/* Mount on itself what fd is, unless it is already. */
static bool mount_on_itself(struct guard *guard, int fd, const char *name, uint64_t attributes)
{
	char path[PATH_MAX];
	uint64_t mount;
	int copy, r;

	path_of(guard, name, path);
	if (is_known(guard, path, true))
		return true;
	copy = mount_copy(fd, NULL, attributes);
	if (copy < 0)
		return guard_fault(guard, -copy, name);
	r = mount_attach(copy, fd);
	mount = mount_id(copy, "");
	close(copy);
	if (r < 0)
		return guard_fault(guard, -r, name);
	guard->protection->unsure |= mount == 0;
	return note(guard, path, mount);
}

/* ---- the way to a name */

enum met {
	MET_IT,      /* all of it, and no link */
	MET_NOTHING, /* it ends before the last part */
	MET_MISSING, /* all but the last part */
	MET_LINK,
	MET_FILE, /* where a directory would have to be */
	MET_ERROR
};

/* Go from the root to name and mount all directories in between on themselves.
 * Afterwards `at` has the part of name that was reached, and *ret_fd is what is there,
 * or -1. */
static enum met walk(struct guard *guard, const char *name, char at[static PATH_MAX], int *ret_fd)
{
	const char *rest = name;

	at[0] = '\0';
	for (;;) {
		size_t len = strcspn(rest, "/"), have = strlen(at);
		bool last = rest[len] == '\0';
		struct stat st;
		int fd;

		if (have + len + 2 > PATH_MAX) {
			guard_fault(guard, ENAMETOOLONG, name);
			return MET_ERROR;
		}
		snprintf(at + have, PATH_MAX - have, "%s%.*s", have ? "/" : "", (int)len, rest);
		*ret_fd = fd = open_beneath(guard->root_fd, at, O_PATH | O_NOFOLLOW);
		if (fd == -ENOENT && !note_absent(guard, at))
			return MET_ERROR;
		if (fd == -ENOENT)
			return last ? MET_MISSING : MET_NOTHING;
		if (fd < 0 || fstat(fd, &st) < 0) {
			guard_fault(guard, fd < 0 ? -fd : errno, at);
			return MET_ERROR;
		}
		if (S_ISLNK(st.st_mode))
			return MET_LINK;
		if (last)
			return MET_IT;
		if (!S_ISDIR(st.st_mode))
			return MET_FILE;
		if (!mount_on_itself(guard, fd, at, 0)) {
			close(fd);
			return MET_ERROR;
		}
		close(fd);
		rest += len + 1;
	}
}

/* The directories between a writable directory and what is mounted in it. */
static bool pin_parents(struct guard *guard, const char *path)
{
	size_t len = strlen(guard->root);
	char at[PATH_MAX];
	enum met met;
	int fd = -1;

	if (strncmp(path, guard->root, len) != 0 || path[len] != '/')
		return true;
	met = walk(guard, path + len + 1, at, &fd);
	if (fd >= 0)
		close(fd);
	return met != MET_ERROR;
}

static bool writable_root(const struct sandbox *sandbox, size_t i, const char **ret);
static bool protect_name(struct guard *guard, const char *name);

/* What a link leads to, if that is in a writable directory. */
static bool protect_where_it_is(struct guard *guard, const char *name)
{
	char path[PATH_MAX], real[PATH_MAX], link[64];
	const char *root;
	bool ok = true;
	ssize_t n;
	int fd;

	path_of(guard, name, path);
	fd = open(path, O_PATH | O_CLOEXEC);
	/* It leads nowhere. */
	if (fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == ELOOP))
		return true;
	if (fd < 0)
		return guard_fault(guard, errno, name);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, real, sizeof(real) - 1);
	if (n < 0)
		ok = guard_fault(guard, errno, name);
	real[n < 0 ? 0 : n] = '\0';
	for (size_t i = 0; ok && writable_root(guard->sandbox, i, &root); i++) {
		size_t len = root ? strlen(root) : 0;
		struct guard other = *guard;

		if (!root || strncmp(real, root, len) != 0 || real[len] != '/')
			continue;
		other.root = root;
		other.root_fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
		ok = other.root_fd >= 0 ? protect_name(&other, real + len + 1) :
					  guard_fault(guard, errno, name);
		if (other.root_fd >= 0)
			close(other.root_fd);
	}
	close(fd);
	return ok;
}

static bool protect_link(struct guard *guard, int fd, const char *at, const char *name)
{
	char text[PATH_MAX];
	ssize_t n = readlinkat(fd, "", text, sizeof(text) - 1);

	if (n < 0)
		return guard_fault(guard, errno, at);
	text[n] = '\0';
	return add_late(guard, at, text) && protect_where_it_is(guard, name);
}

static bool protect_name(struct guard *guard, const char *name)
{
	char at[PATH_MAX];
	int fd = -1;
	bool ok;

	switch (walk(guard, name, at, &fd)) {
	case MET_IT:
	case MET_FILE:
		ok = mount_on_itself(guard, fd, at, MOUNT_ATTR_RDONLY);
		break;
	case MET_LINK:
		ok = protect_link(guard, fd, at, name);
		break;
	case MET_MISSING:
		ok = add_late(guard, name, NULL);
		break;
	case MET_NOTHING:
		ok = true;
		break;
	default:
		ok = false;
		break;
	}
	if (fd >= 0)
		close(fd);
	return ok;
}

/* ---- all writable directories */

/* The i-th place that may be one: the working directory, then the policy's paths. NULL:
 * this is none. False: there are no more. */
static bool writable_root(const struct sandbox *sandbox, size_t i, const char **ret)
{
	const struct template_spec *spec = sandbox->spec;
	const struct ad_profile *profile = &spec->profile;

	if (i > profile->path_count)
		return false;
	if (i == 0)
		*ret = profile->workdir_access & AD_ACCESS_WRITE ? spec->workdir : NULL;
	else if ((profile->paths[i - 1].access & AD_ACCESS_WRITE) &&
		 strcmp(profile->paths[i - 1].target, spec->workdir) != 0)
		*ret = profile->paths[i - 1].target;
	else
		*ret = NULL;
	return true;
}

/* What else is mounted in this one. */
static bool pin_all(struct guard *guard)
{
	const struct sandbox *sandbox = guard->sandbox;
	const struct ad_profile *profile = &sandbox->spec->profile;
	bool ok = pin_parents(guard, sandbox->spec->workdir);

	/* Also of what is denied and not there. */
	for (size_t i = 0; ok && i < profile->path_count; i++)
		ok = pin_parents(guard, profile->paths[i].target);
	for (size_t i = 0; ok && i < sandbox->hidden_count; i++)
		ok = pin_parents(guard, sandbox->hidden[i]);
	return ok;
}

/* The same in what this one shows of another one. */
static bool protect_aliases(struct guard *guard, const char *name)
{
	size_t len = strlen(guard->root);
	char path[PATH_MAX];
	bool ok = true;

	for (size_t i = 0; ok && i < guard->sandbox->alias_count; i++) {
		const char *alias = guard->sandbox->aliases[i];

		if (strncmp(alias, guard->root, len) != 0 || alias[len] != '/')
			continue;
		if ((size_t)snprintf(path, sizeof(path), "%s/%s", alias + len + 1, name) >=
		    sizeof(path))
			return guard_fault(guard, ENAMETOOLONG, name);
		ok = protect_name(guard, path);
	}
	return ok;
}

static bool protect_root(struct guard *guard)
{
	const struct ad_profile *profile = &guard->sandbox->spec->profile;
	bool ok;

	guard->root_fd = open(guard->root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (guard->root_fd < 0 && errno == ENOENT)
		return note_absent(guard, "");
	/* A file, or a link to what another entry shows. */
	if (guard->root_fd < 0 && errno == ENOTDIR) {
		guard->protection->unsure = true;
		return true;
	}
	if (guard->root_fd < 0)
		return guard_fault(guard, errno, "");
	ok = pin_all(guard);
	for (size_t i = 0; ok && i < profile->name_count; i++)
		ok = protect_name(guard, profile->names[i]) &&
		     protect_aliases(guard, profile->names[i]);
	close(guard->root_fd);
	return ok;
}

bool protect_begin(struct protection *protection, const struct sandbox *sandbox,
		   struct fault *fault)
{
	struct guard guard = { .protection = protection, .sandbox = sandbox, .fault = fault };
	bool ok = true;

	forget(protection);
	for (size_t i = 0; ok && writable_root(sandbox, i, &guard.root); i++) {
		if (guard.root)
			ok = protect_root(&guard);
	}
	return ok;
}

bool protect_holds(const struct protection *protection)
{
	for (size_t i = 0; i < protection->known_count && !protection->unsure; i++) {
		const struct known *known = &protection->known[i];

		errno = 0;
		if (mount_id(AT_FDCWD, protection->text + known->path) != known->mount ||
		    (known->mount == 0 && errno != ENOENT))
			return false;
	}
	return !protection->unsure;
}

bool protect_kept(const struct protection *protection)
{
	for (size_t i = 0; i < protection->known_count; i++) {
		const struct known *known = &protection->known[i];

		if (known->mount &&
		    mount_id(AT_FDCWD, protection->text + known->path) != known->mount)
			return false;
	}
	return true;
}

/* ---- afterwards */

static bool same_link(int dir, const char *name, const char *link)
{
	char text[PATH_MAX];
	ssize_t n = readlinkat(dir, name, text, sizeof(text) - 1);

	if (n < 0)
		return false;
	text[n] = '\0';
	return strcmp(text, link) == 0;
}

static bool move_aside(int dir, const char *name)
{
	char aside[NAME_MAX + 1];

	/* A name that somebody has already, on purpose: another one. */
	for (int attempt = 0; attempt < 16; attempt++) {
		uint32_t random = 0;

		if (getrandom(&random, sizeof(random), 0) < 0)
			return false;
		snprintf(aside, sizeof(aside), "%.200s.agentd-denied-%08" PRIx32, name, random);
		if (renameat2(dir, name, dir, aside, RENAME_NOREPLACE) == 0)
			return true;
		if (errno != EEXIST)
			return false;
	}
	return false;
}

enum state { AS_BEFORE, OTHERWISE, UNKNOWN };

/* Is it as it was: absent, or that link? */
static enum state state_of(int dir, const char *name, const char *link)
{
	struct stat st;

	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
		return link && same_link(dir, name, link) ? AS_BEFORE : OTHERWISE;
	if (errno != ENOENT)
		return UNKNOWN;
	return link ? OTHERWISE : AS_BEFORE;
}

enum outcome { RIGHT, SET_RIGHT, LEFT };

static enum outcome set_right_in(int dir, const char *name, const char *link)
{
	switch (state_of(dir, name, link)) {
	case AS_BEFORE:
		return RIGHT;
	case OTHERWISE:
		/* Of a link nothing may be left to move. */
		if (!move_aside(dir, name) && (!link || errno != ENOENT))
			return LEFT;
		return link && symlinkat(link, dir, name) < 0 ? LEFT : SET_RIGHT;
	case UNKNOWN:
		break;
	}
	return LEFT;
}

static enum outcome set_right(int root, const char *path, const char *link)
{
	char parent[PATH_MAX];
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	enum outcome outcome;
	int dir = root;

	if (slash) {
		snprintf(parent, sizeof(parent), "%.*s", (int)(slash - path), path);
		dir = open_beneath(root, parent, O_PATH | O_DIRECTORY);
		if (dir < 0)
			return !link && (dir == -ENOENT || dir == -ENOTDIR) ? RIGHT : LEFT;
	}
	outcome = set_right_in(dir, name, link);
	if (dir != root)
		close(dir);
	return outcome;
}

void protect_end(const struct protection *protection,
		 void (*told)(const char *path, bool moved, void *userdata), void *userdata)
{
	const char *open_root = NULL;
	int root = -1;

	for (size_t i = 0; i < protection->count; i++) {
		const struct late *late = &protection->late[i];
		const char *name = protection->text + late->name;
		const char *link = late->link == NO_TEXT ? NULL : protection->text + late->link;
		enum outcome outcome;
		char path[PATH_MAX];

		/* Those of one root are beside each other. */
		if (late->root != open_root) {
			if (root >= 0)
				close(root);
			open_root = late->root;
			root = open(open_root, O_PATH | O_DIRECTORY | O_CLOEXEC);
		}
		outcome = root < 0 ? LEFT : set_right(root, name, link);
		if (outcome != RIGHT) {
			snprintf(path, sizeof(path), "%s/%s", late->root, name);
			told(path, outcome == SET_RIGHT, userdata);
		}
	}
	if (root >= 0)
		close(root);
}
