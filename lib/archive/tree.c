/* SPDX-License-Identifier: MIT */
/* openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS) in single steps: a command in a sandbox
 * does not have that call. */
#include "archive/private.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

void tree_init(struct tree *tree, int root)
{
	*tree = (struct tree){ .root = root };
}

static void pop(struct tree *tree)
{
	close(tree->fds[--tree->open]);
}

void tree_close(struct tree *tree)
{
	while (tree->open > 0)
		pop(tree);
}

static void push(struct tree *tree, int fd, size_t len)
{
	if (tree->open == TREE_OPEN_MAX) {
		close(tree->fds[0]);
		tree->open--;
		memmove(tree->fds, tree->fds + 1, tree->open * sizeof(tree->fds[0]));
		memmove(tree->lens, tree->lens + 1, tree->open * sizeof(tree->lens[0]));
	}
	tree->fds[tree->open] = fd;
	tree->lens[tree->open++] = len;
}

/* Close what is not on the way to path. Returns how much of it is left to go. */
static size_t rewind_to(struct tree *tree, const char *path, size_t len)
{
	while (tree->open > 0) {
		size_t have = tree->lens[tree->open - 1];

		if (have <= len && memcmp(tree->path, path, have) == 0 &&
		    (have == len || path[have] == '/'))
			return have;
		pop(tree);
	}
	return 0;
}

int tree_dir(struct tree *tree, const char *path, size_t len)
{
	size_t at;

	if (len >= sizeof(tree->path))
		return -ENAMETOOLONG;
	at = rewind_to(tree, path, len);
	while (at < len) {
		size_t from = at > 0 ? at + 1 : 0, part = strcspn(path + from, "/");
		int above = tree->open > 0 ? tree->fds[tree->open - 1] : tree->root, fd;

		if (part > len - from)
			part = len - from;
		memcpy(tree->path, path, from + part);
		tree->path[from + part] = '\0';
		fd = openat(above, tree->path + from,
			    O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0)
			return -errno;
		at = from + part;
		push(tree, fd, at);
	}
	return tree->open > 0 ? tree->fds[tree->open - 1] : tree->root;
}

int tree_parent(struct tree *tree, const char *path, const char **ret_name)
{
	const char *slash = strrchr(path, '/');

	*ret_name = slash ? slash + 1 : path;
	return tree_dir(tree, path, slash ? (size_t)(slash - path) : 0);
}
