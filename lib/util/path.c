/* SPDX-License-Identifier: MIT */
#include "util/util.h"

#include <limits.h>
#include <string.h>

enum ad_path_verdict ad_path_check(const char *path)
{
	const char *at = path;

	if (!*path)
		return AD_PATH_EMPTY;
	if (*path != '/')
		return AD_PATH_RELATIVE;
	if (strnlen(path, PATH_MAX) >= PATH_MAX)
		return AD_PATH_LONG;
	if (!path[1])
		return AD_PATH_OK;
	while (*at) {
		size_t len;

		at++; /* the slash */
		len = strcspn(at, "/");
		if (len == 0 || (len == 1 && at[0] == '.') ||
		    (len == 2 && at[0] == '.' && at[1] == '.'))
			return AD_PATH_DOTS;
		at += len;
	}
	return AD_PATH_OK;
}

const char *ad_path_verdict_text(enum ad_path_verdict verdict)
{
	switch (verdict) {
	case AD_PATH_OK:
		return "is a valid path";
	case AD_PATH_EMPTY:
		return "must not be empty";
	case AD_PATH_RELATIVE:
		return "must be an absolute path";
	case AD_PATH_DOTS:
		return "must have no empty, \".\" or \"..\" component and no trailing slash";
	case AD_PATH_LONG:
		return "is longer than a path can be";
	}
	return "is not a valid path";
}

bool ad_path_beneath(const char *path, const char *dir)
{
	size_t len = strlen(dir);

	if (len == 1)
		return true;
	return strncmp(path, dir, len) == 0 && (path[len] == '\0' || path[len] == '/');
}
