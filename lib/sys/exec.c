/* SPDX-License-Identifier: MIT */
#include "sys/sys.h"

#include <errno.h>
#include <limits.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char default_path[] = "/usr/local/bin:/usr/bin:/bin";

AD_SYS_NO_SANITIZE int ad_sys_lower_limit(int resource, uint64_t value)
{
	struct rlimit limit;

	if (syscall(SYS_prlimit64, 0, resource, NULL, &limit) < 0)
		return -1;
	if (limit.rlim_max == RLIM_INFINITY || limit.rlim_max > value)
		limit.rlim_max = value;
	limit.rlim_cur = limit.rlim_max;
	return (int)syscall(SYS_prlimit64, 0, resource, &limit, NULL);
}

AD_SYS_NO_SANITIZE static bool has_slash(const char *text)
{
	for (; *text; text++) {
		if (*text == '/')
			return true;
	}
	return false;
}

AD_SYS_NO_SANITIZE static const char *path_of(const char *const *env)
{
	for (; *env; env++) {
		const char *at = *env;

		if (at[0] == 'P' && at[1] == 'A' && at[2] == 'T' && at[3] == 'H' && at[4] == '=')
			return at + 5;
	}
	return default_path;
}

AD_SYS_NO_SANITIZE int ad_sys_exec(const char *const *argv, const char *const *env)
{
	const char *name = argv[0], *dir;
	bool denied = false;

	if (has_slash(name) || name[0] == '\0') {
		syscall(SYS_execve, name, argv, env);
		return errno;
	}
	for (dir = path_of(env);; dir++) {
		char path[PATH_MAX];
		size_t len = 0;

		for (; *dir && *dir != ':'; dir++) {
			if (len < sizeof(path))
				path[len++] = *dir;
		}
		/* An empty entry is the current directory. */
		if (len > 0 && len < sizeof(path))
			path[len++] = '/';
		for (size_t i = 0; len < sizeof(path); i++) {
			path[len++] = name[i];
			if (name[i] == '\0')
				break;
		}
		if (path[len - 1] == '\0') {
			syscall(SYS_execve, path, argv, env);
			if (errno == EACCES)
				denied = true;
			else if (errno != ENOENT && errno != ENOTDIR)
				return errno;
		}
		if (*dir == '\0')
			return denied ? EACCES : ENOENT;
	}
}
