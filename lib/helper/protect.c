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
 * to, link by link, is protected where that is: also if nothing is there yet.
 *
 * A part "*" of a name stands for all that is in that directory when the command starts. */
#include "helper/sandbox.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "helper/mount.h"

/* Paths are absolute and have no link on their way. Texts by where they are in
 * protection.text. */

/* To be looked at in the end: where there was nothing, or a link. */
struct late {
	uint32_t hash; /* of the path: there may be thousands */
	size_t path;
	size_t link; /* where the symbolic link led; NO_TEXT: nothing was there */
};

/* What was there on the way to the names. */
struct known {
	uint32_t hash;
	size_t path;
	uint64_t mount;      /* its id, being mounted on itself by now; 0: nothing is there */
	uint64_t attributes; /* it has them, or had them until it was removed */
};

#define NO_TEXT SIZE_MAX
enum {
	ENTRIES_MIN = 16,
	ENTRIES_MAX = 16384, /* of a repository with 500 submodules */
	TEXT_MIN = PATH_MAX, /* so that twice as much has room for another path */
	LINKS_MAX = 40       /* as the kernel's: more lead nowhere */
};

struct guard {
	struct protection *protection;
	const struct sandbox *sandbox;
	int view;       /* its root */
	bool look_only; /* what is passed is not mounted on itself */
	struct fault *fault;
};

static bool guard_fault(const struct guard *guard, int error, const char *path)
{
	return fault_set(guard->fault, AD_STAGE_VIEW, 0, error, "protecting %s", path);
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

/* FNV-1a */
static uint32_t hash_of(const char *path)
{
	uint32_t hash = 2166136261;

	while (*path)
		hash = (hash ^ (uint8_t)*path++) * 16777619;
	return hash;
}

/* A command may have made so many, to keep the next ones busy for ever. */
static bool has_room(const struct guard *guard, size_t count, const char *path)
{
	return count < ENTRIES_MAX ||
	       fault_set(guard->fault, AD_STAGE_VIEW, 0, E2BIG,
			 "there are more than %d protected names, one is %s", ENTRIES_MAX, path);
}

static bool add_late(struct guard *guard, const char *path, const char *link)
{
	struct protection *protection = guard->protection;
	uint32_t hash = hash_of(path);
	struct late *late;

	for (size_t i = 0; i < protection->count; i++) {
		late = &protection->late[i];
		if (late->hash == hash && strcmp(protection->text + late->path, path) == 0)
			return true;
	}
	if (!has_room(guard, protection->count, path))
		return false;
	late = with_room(protection->late, protection->count, sizeof(*late));
	if (!late)
		return guard_fault(guard, ENOMEM, path);
	protection->late = late;
	late += protection->count;
	*late = (struct late){
		.hash = hash,
		.path = keep_text(protection, path),
		.link = link ? keep_text(protection, link) : NO_TEXT,
	};
	if (late->path == NO_TEXT || (link && late->link == NO_TEXT))
		return guard_fault(guard, ENOMEM, path);
	protection->count++;
	return true;
}

static struct known *find_known(const struct guard *guard, const char *path, bool mounted)
{
	const struct protection *protection = guard->protection;
	uint32_t hash = hash_of(path);

	for (size_t i = 0; i < protection->known_count; i++) {
		struct known *known = &protection->known[i];

		if (known->hash == hash && (known->mount != 0) == mounted &&
		    strcmp(protection->text + known->path, path) == 0)
			return known;
	}
	return NULL;
}

static bool note(struct guard *guard, const char *path, uint64_t mount, uint64_t attributes)
{
	struct protection *protection = guard->protection;
	struct known *known;

	if (!has_room(guard, protection->known_count, path))
		return false;
	known = with_room(protection->known, protection->known_count, sizeof(*known));
	if (!known)
		return guard_fault(guard, ENOMEM, path);
	protection->known = known;
	known += protection->known_count;
	*known = (struct known){
		.hash = hash_of(path),
		.path = keep_text(protection, path),
		.mount = mount,
		.attributes = attributes,
	};
	if (known->path == NO_TEXT)
		return guard_fault(guard, ENOMEM, path);
	protection->known_count++;
	return true;
}

static bool note_absent(struct guard *guard, const char *path)
{
	return find_known(guard, path, false) || note(guard, path, 0, 0);
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

/* What path is called in dir ("": the root), or NULL: it is not in there. */
static const char *name_in(const char *dir, const char *path)
{
	size_t len = strlen(dir);

	return strncmp(path, dir, len) == 0 && path[len] == '/' ? path + len + 1 : NULL;
}

bool protect_reaches(const struct sandbox *sandbox, const char *path)
{
	struct ad_profile_path shown;

	for (size_t i = 0; view_shown(sandbox->spec, i, &shown); i++) {
		if ((shown.access & AD_ACCESS_WRITE) &&
		    name_in(shown.target[1] ? shown.target : "", path))
			return true;
	}
	return false;
}

/* Mount on itself what fd is, if a command could change that place, and unless it is already. */
static bool mount_on_itself(struct guard *guard, int fd, const char *path, uint64_t attributes)
{
	struct known *known = find_known(guard, path, true);
	uint64_t mount;
	int copy, r;

	if (guard->look_only)
		return true;
	if (known) {
		r = (known->attributes & attributes) == attributes ? 0 :
								     mount_set_tree(fd, attributes);
		known->attributes |= attributes;
		return r < 0 ? guard_fault(guard, -r, path) : true;
	}
	if (!protect_reaches(guard->sandbox, path))
		return true;
	copy = mount_copy(fd, NULL, attributes);
	if (copy < 0)
		return guard_fault(guard, -copy, path);
	r = mount_attach(copy, fd);
	mount = mount_id(copy, "");
	close(copy);
	if (r < 0)
		return guard_fault(guard, -r, path);
	guard->protection->unsure |= mount == 0;
	return note(guard, path, mount, attributes);
}

/* ---- the way to a name */

enum met {
	MET_DIRECTORY,
	MET_FILE,    /* anything else, perhaps where a directory would have to be */
	MET_NOTHING, /* it ends before the last part, or the links lead nowhere */
	MET_MISSING, /* the last part, or what that leads to */
	MET_ERROR
};

/* A path that is gone along. */
struct way {
	char at[PATH_MAX];   /* so far; "": the root of the view */
	char rest[PATH_MAX]; /* from there */
	unsigned int links;  /* followed until here */
};

static void go_up(struct way *way)
{
	char *slash = strrchr(way->at, '/');

	if (slash)
		*slash = '\0';
}

/* To the next part of the rest. False: it would be too long. */
static bool go_on(struct way *way)
{
	const char *part = way->rest + strspn(way->rest, "/");
	size_t len = strcspn(part, "/"), have = strlen(way->at);
	const char *next = part + len + strspn(part + len, "/");

	if (len == 2 && strncmp(part, "..", 2) == 0) {
		go_up(way);
	} else if (len > 0 && !(len == 1 && part[0] == '.')) {
		if (have + len + 2 > sizeof(way->at))
			return false;
		snprintf(way->at + have, sizeof(way->at) - have, "/%.*s", (int)len, part);
	}
	memmove(way->rest, next, strlen(next) + 1);
	return true;
}

/* fd is a link: it is to stay what it is, and what it leads to comes before the rest. */
static bool go_by_link(struct guard *guard, struct way *way, int fd)
{
	char text[PATH_MAX];
	size_t rest = strlen(way->rest);
	ssize_t n = readlinkat(fd, "", text, sizeof(text) - 1);

	if (n < 0)
		return guard_fault(guard, errno, way->at);
	text[n] = '\0';
	if ((size_t)n + rest + 2 > sizeof(way->rest))
		return guard_fault(guard, ENAMETOOLONG, way->at);
	guard->protection->unsure = true;
	if (protect_reaches(guard->sandbox, way->at) && !add_late(guard, way->at, text))
		return false;
	memmove(way->rest + n + 1, way->rest, rest + 1);
	memcpy(way->rest, text, (size_t)n);
	way->rest[n] = rest ? '/' : '\0';
	if (text[0] == '/')
		way->at[0] = '\0';
	else
		go_up(way);
	return true;
}

/* Go all of way, and mount the directories in between on themselves. *ret_fd is what is
 * there, or -1. */
static enum met go(struct guard *guard, struct way *way, int *ret_fd)
{
	for (;;) {
		struct stat st;
		bool ok;
		int fd;

		*ret_fd = -1;
		if (!go_on(way)) {
			guard_fault(guard, ENAMETOOLONG, way->at);
			return MET_ERROR;
		}
		/* Many names begin alike. */
		if (find_known(guard, way->at, false))
			return MET_MISSING;
		fd = open_beneath(guard->view, way->at[0] ? way->at + 1 : ".", O_PATH | O_NOFOLLOW);
		if (fd == -ENOENT)
			return note_absent(guard, way->at) ? MET_MISSING : MET_ERROR;
		if (fd < 0 || fstat(fd, &st) < 0) {
			guard_fault(guard, fd < 0 ? -fd : errno, way->at);
			return MET_ERROR;
		}
		*ret_fd = fd;
		if (!S_ISLNK(st.st_mode) && !S_ISDIR(st.st_mode))
			return MET_FILE;
		if (S_ISDIR(st.st_mode) && !way->rest[0])
			return MET_DIRECTORY;
		ok = S_ISDIR(st.st_mode) ? mount_on_itself(guard, fd, way->at, 0) :
					   go_by_link(guard, way, fd);
		close(fd);
		*ret_fd = -1;
		if (!ok)
			return MET_ERROR;
		if (S_ISLNK(st.st_mode) && ++way->links > LINKS_MAX)
			return MET_NOTHING;
	}
}

/* The same from base along name, part by part: what is missing before the last is not there
 * to have that name in it. */
static enum met walk(struct guard *guard, const char *base, const char *name, struct way *way,
		     int *ret_fd)
{
	way->links = 0;
	snprintf(way->at, sizeof(way->at), "%s", base);
	for (;;) {
		size_t len = strcspn(name, "/");
		bool last = name[len] == '\0', ok;
		enum met met;

		snprintf(way->rest, sizeof(way->rest), "%.*s", (int)len, name);
		met = go(guard, way, ret_fd);
		if (met == MET_MISSING && !last)
			return MET_NOTHING;
		if (met != MET_DIRECTORY || last)
			return met;
		ok = mount_on_itself(guard, *ret_fd, way->at, 0);
		close(*ret_fd);
		*ret_fd = -1;
		if (!ok)
			return MET_ERROR;
		name += len + 1;
	}
}

/* The directories between a writable directory and what is mounted in it. */
static bool pin_parents(struct guard *guard, const char *base, const char *path)
{
	const char *name = name_in(base, path);
	struct way way;
	enum met met;
	int fd = -1;

	if (!name)
		return true;
	met = walk(guard, base, name, &way, &fd);
	if (fd >= 0)
		close(fd);
	return met != MET_ERROR;
}

static bool protect_name(struct guard *guard, const char *base, const char *name, size_t plain);

/* What each directory in fd, which is at base, has of that name; name begins with a slash, or is
 * empty: then each of all that is there. */
static bool protect_each(struct guard *guard, int fd, const char *base, const char *name)
{
	int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = own < 0 ? NULL : fdopendir(own);
	const struct dirent *entry;
	bool ok = dir || guard_fault(guard, errno, base);

	if (!dir && own >= 0)
		close(own);
	/* That another one has come in there is seen by reading it only. */
	guard->protection->unsure = true;
	while (ok && (errno = 0, entry = readdir(dir))) {
		char below[PATH_MAX];
		size_t plain = strlen(entry->d_name);
		struct stat st;

		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		/* A link would let a command have this go anywhere. */
		if (name[0] && (fstatat(own, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
				!S_ISDIR(st.st_mode)))
			continue;
		if ((size_t)snprintf(below, sizeof(below), "%s%s", entry->d_name, name) >=
		    sizeof(below))
			ok = guard_fault(guard, ENAMETOOLONG, base);
		else
			ok = protect_name(guard, base, below, plain);
	}
	if (ok && errno)
		ok = guard_fault(guard, errno, base);
	if (dir)
		closedir(dir);
	return ok;
}

/* The first part that is "*", or NULL. */
static const char *find_star(const char *name)
{
	const char *star = name;

	while ((star = strchr(star, '*')) &&
	       ((star > name && star[-1] != '/') || (star[1] != '\0' && star[1] != '/')))
		star++;
	return star;
}

/* In the first bytes of name, so many, no "*" stands for others. */
static bool protect_name(struct guard *guard, const char *base, const char *name, size_t plain)
{
	const char *star = find_star(name + plain);
	size_t len = star ? (size_t)(star - name) : strlen(name);
	char before[PATH_MAX];
	struct way way;
	enum met met;
	int fd = -1;
	bool ok;

	snprintf(before, sizeof(before), "%.*s", (int)len, name);
	/* A "*" also stands for directories that have nothing of that name, and that the command
	 * may have to remove. */
	guard->look_only = plain > 0 && !star;
	met = walk(guard, base, before, &way, &fd);
	if (guard->look_only && fd >= 0) {
		close(fd);
		guard->look_only = false;
		met = walk(guard, base, before, &way, &fd);
	}
	guard->look_only = false;
	switch (met) {
	case MET_DIRECTORY:
		ok = star ? protect_each(guard, fd, way.at, star + 1) :
			    mount_on_itself(guard, fd, way.at, MOUNT_ATTR_RDONLY);
		break;
	case MET_FILE:
		ok = mount_on_itself(guard, fd, way.at, MOUNT_ATTR_RDONLY);
		break;
	case MET_MISSING:
		ok = star || !protect_reaches(guard->sandbox, way.at) ||
		     add_late(guard, way.at, NULL);
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

/* What else is mounted in this one. */
static bool pin_all(struct guard *guard, const char *base)
{
	const struct sandbox *sandbox = guard->sandbox;
	const struct ad_profile *profile = &sandbox->spec->profile;
	bool ok = pin_parents(guard, base, sandbox->spec->workdir);

	/* Also of what is denied and not there. */
	for (size_t i = 0; ok && i < profile->path_count; i++)
		ok = pin_parents(guard, base, profile->paths[i].target);
	for (size_t i = 0; ok && i < sandbox->hidden_count; i++)
		ok = pin_parents(guard, base, sandbox->hidden[i]);
	return ok;
}

/* The same in what this one shows of another one. */
static bool protect_aliases(struct guard *guard, const char *base, const char *name)
{
	char path[PATH_MAX];
	bool ok = true;

	for (size_t i = 0; ok && i < guard->sandbox->alias_count; i++) {
		const char *alias = name_in(base, guard->sandbox->aliases[i]);

		if (!alias)
			continue;
		if ((size_t)snprintf(path, sizeof(path), "%s/%s", alias, name) >= sizeof(path))
			return guard_fault(guard, ENAMETOOLONG, name);
		ok = protect_name(guard, base, path, 0);
	}
	return ok;
}

static bool protect_root(struct guard *guard, const char *root)
{
	const struct ad_profile *profile = &guard->sandbox->spec->profile;
	struct way way;
	int fd = -1;
	/* It may be a link to, or into, what another entry shows. */
	enum met met = walk(guard, "", root + 1, &way, &fd);
	bool ok = met != MET_ERROR;

	if (met == MET_DIRECTORY) {
		ok = (strcmp(way.at, root) == 0 || mount_on_itself(guard, fd, way.at, 0)) &&
		     pin_all(guard, way.at);
		for (size_t i = 0; ok && i < profile->name_count; i++)
			ok = protect_name(guard, way.at, profile->names[i], 0) &&
			     protect_aliases(guard, way.at, profile->names[i]);
	} else if (met == MET_FILE) {
		guard->protection->unsure = true;
	}
	if (fd >= 0)
		close(fd);
	return ok;
}

bool protect_begin(struct protection *protection, const struct sandbox *sandbox,
		   struct fault *fault)
{
	struct guard guard = {
		.protection = protection,
		.sandbox = sandbox,
		.view = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC),
		.fault = fault,
	};
	struct ad_profile_path shown;
	bool ok = guard.view >= 0 || guard_fault(&guard, errno, "/");

	forget(protection);
	for (size_t i = 0; ok && view_shown(sandbox->spec, i, &shown); i++) {
		if (shown.access & AD_ACCESS_WRITE)
			ok = protect_root(&guard, shown.target);
	}
	if (guard.view >= 0)
		close(guard.view);
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

/* ---- in a session, whose commands live on what is mounted */

bool protect_share(struct protection *protection)
{
	size_t size = (protection->known_count + 1) * sizeof(*protection->known);
	struct known *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
				    -1, 0);

	if (shared == MAP_FAILED)
		return false;
	if (protection->known_count > 0)
		memcpy(shared, protection->known, size - sizeof(*shared));
	free(protection->known);
	protection->known = shared;
	return true;
}

static bool is_kept(const struct protection *protection, const struct known *known)
{
	return !known->mount || mount_id(AT_FDCWD, protection->text + known->path) == known->mount;
}

bool protect_kept(const struct protection *protection)
{
	for (size_t i = 0; i < protection->known_count; i++) {
		if (!is_kept(protection, &protection->known[i]))
			return false;
	}
	return true;
}

/* fd is what is there now. */
static bool mount_anew(struct known *known, int fd)
{
	struct stat st;
	int copy = fstat(fd, &st) < 0 || S_ISLNK(st.st_mode) ?
			   -ELOOP :
			   mount_copy(fd, NULL, known->attributes);
	bool ok = copy >= 0 && mount_attach(copy, fd) == 0;

	known->mount = ok ? mount_id(copy, "") : 0;
	if (copy >= 0)
		close(copy);
	return known->mount != 0;
}

bool protect_renew(const struct protection *protection)
{
	int view = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	bool ok = view >= 0;

	/* Those above others come before them. */
	for (size_t i = 0; i < protection->known_count && ok; i++) {
		struct known *known = &protection->known[i];
		int fd;

		if (is_kept(protection, known))
			continue;
		fd = open_beneath(view, protection->text + known->path + 1, O_PATH | O_NOFOLLOW);
		if (fd >= 0)
			ok = mount_anew(known, fd);
		else if (fd == -ENOENT || fd == -ENOTDIR)
			known->mount = 0;
		else
			ok = false;
		if (fd >= 0)
			close(fd);
	}
	if (view >= 0)
		close(view);
	return ok;
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

static enum outcome set_right(int dir, const char *name, const char *link)
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

/* Those of one directory are beside each other. */
struct looking {
	int view, dir;
	char parent[PATH_MAX];
	void (*told)(const char *path, bool moved, void *userdata);
	void *userdata;
};

static void look_at(struct looking *looking, const char *path, const char *link)
{
	const char *name = strrchr(path, '/') + 1;
	size_t len = (size_t)(name - path);
	enum outcome outcome;

	if (strncmp(looking->parent, path, len) != 0 || looking->parent[len] != '\0') {
		if (looking->dir >= 0)
			close(looking->dir);
		snprintf(looking->parent, sizeof(looking->parent), "%.*s", (int)len, path);
		looking->dir = open_beneath(looking->view, len > 1 ? looking->parent + 1 : ".",
					    O_PATH | O_DIRECTORY);
	}
	if (looking->dir >= 0)
		outcome = set_right(looking->dir, name, link);
	else
		outcome = !link && (looking->dir == -ENOENT || looking->dir == -ENOTDIR) ? RIGHT :
											   LEFT;
	if (outcome != RIGHT)
		looking->told(path, outcome == SET_RIGHT, looking->userdata);
}

void protect_end(const struct protection *protection,
		 void (*told)(const char *path, bool moved, void *userdata), void *userdata)
{
	struct looking looking = {
		.view = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC),
		.dir = -EBADF,
		.told = told,
		.userdata = userdata,
	};

	for (size_t i = 0; i < protection->count; i++) {
		const struct late *late = &protection->late[i];

		look_at(&looking, protection->text + late->path,
			late->link == NO_TEXT ? NULL : protection->text + late->link);
	}
	/* What the host has removed is missing as well. */
	for (size_t i = 0; i < protection->known_count; i++) {
		const struct known *known = &protection->known[i];

		if (!known->mount && (known->attributes & MOUNT_ATTR_RDONLY))
			look_at(&looking, protection->text + known->path, NULL);
	}
	if (looking.dir >= 0)
		close(looking.dir);
	if (looking.view >= 0)
		close(looking.view);
}
