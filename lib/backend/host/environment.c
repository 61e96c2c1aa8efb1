/* SPDX-License-Identifier: MIT */
#include "backend/host/private.h"

#include <stdlib.h>
#include <string.h>

#include "util/util.h"

static const struct {
	const char *name, *value; /* NULL: only if the host program has it */
	bool from_host;
} defaults[] = {
	{ "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", false },
	{ "HOME", "/", true },
	{ "USER", NULL, true },
	{ "LOGNAME", NULL, true },
	{ "LANG", "C.UTF-8", false },
	{ "TMPDIR", "/tmp", false },
	{ "SHELL", "/bin/bash", false },
};

int host_environment_init(struct host_environment *environment)
{
	*environment = (struct host_environment){ .count = 0 };
	_Static_assert(AD_COUNT(defaults) <= AD_COUNT(environment->vars), "room for all");
	for (size_t i = 0; i < AD_COUNT(defaults); i++) {
		const char *value = defaults[i].from_host ? secure_getenv(defaults[i].name) : NULL;
		ad_autobuf struct ad_buf var = { 0 };

		if (!value)
			value = defaults[i].value;
		if (!value)
			continue;
		ad_buf_printf(&var, "%s=%s", defaults[i].name, value);
		environment->vars[environment->count] = ad_buf_steal(&var);
		if (!environment->vars[environment->count]) {
			host_environment_free(environment);
			return AGENTD_ERR_NOMEM;
		}
		environment->count++;
	}
	return 0;
}

void host_environment_free(struct host_environment *environment)
{
	for (size_t i = 0; i < environment->count; i++)
		free(environment->vars[i]);
	environment->count = 0;
}

/* With a value, or bare: without it. */
static bool named(const char *const *strv, const char *var)
{
	size_t len = strcspn(var, "=");

	for (; *strv; strv++) {
		if (strcspn(*strv, "=") == len && strncmp(*strv, var, len) == 0)
			return true;
	}
	return false;
}

const char **host_environment_merge(const struct host_environment *environment,
				    const char *const *wanted)
{
	static const char *const none[] = { NULL };
	const char *const *theirs = wanted ? wanted : none;
	size_t count = ad_strv_len(theirs), at = 0;
	const char **ret = reallocarray(NULL, environment->count + count + 1, sizeof(*ret));

	if (!ret)
		return NULL;
	for (size_t i = 0; i < environment->count; i++) {
		if (!named(theirs, environment->vars[i]))
			ret[at++] = environment->vars[i];
	}
	for (; *theirs; theirs++) {
		if (strchr(*theirs, '='))
			ret[at++] = *theirs;
	}
	ret[at] = NULL;
	return ret;
}
