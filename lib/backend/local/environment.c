/* SPDX-License-Identifier: MIT */
#include "backend/local/local.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int ad_local_environment_init(struct ad_local_environment *environment,
			      const struct ad_local_default *defaults, size_t count)
{
	*environment = (struct ad_local_environment){ .count = 0 };
	assert(count <= AD_COUNT(environment->vars));
	for (size_t i = 0; i < count; i++) {
		const char *value = defaults[i].from_host ? secure_getenv(defaults[i].name) : NULL;
		ad_autobuf struct ad_buf var = { 0 };

		if (!value)
			value = defaults[i].value;
		if (!value)
			continue;
		ad_buf_printf(&var, "%s=%s", defaults[i].name, value);
		environment->vars[environment->count] = ad_buf_steal(&var);
		if (!environment->vars[environment->count]) {
			ad_local_environment_free(environment);
			return AGENTD_ERR_NOMEM;
		}
		environment->count++;
	}
	return 0;
}

void ad_local_environment_free(struct ad_local_environment *environment)
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

const char **ad_local_environment_merge(const struct ad_local_environment *environment,
					const char *const *extra, const char *const *wanted)
{
	static const char *const none[] = { NULL };
	const char *const *theirs = wanted ? wanted : none;
	const char *const *more = extra ? extra : none;
	size_t count = ad_strv_len(theirs), at = 0;
	const char **ret = reallocarray(NULL, environment->count + ad_strv_len(more) + count + 1,
					sizeof(*ret));

	if (!ret)
		return NULL;
	for (size_t i = 0; i < environment->count; i++) {
		if (!named(theirs, environment->vars[i]))
			ret[at++] = environment->vars[i];
	}
	for (; *more; more++) {
		if (!named(theirs, *more))
			ret[at++] = *more;
	}
	for (; *theirs; theirs++) {
		if (strchr(*theirs, '='))
			ret[at++] = *theirs;
	}
	ret[at] = NULL;
	return ret;
}
