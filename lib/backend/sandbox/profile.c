/* SPDX-License-Identifier: MIT */
#include "backend/sandbox/private.h"

#include <string.h>

#include <agentd/policy.h>

#include "backend/backend.h"
#include "policy/policy.h"

_Static_assert((int)AD_LAYER_COUNT == (int)AD_POLICY_LAYER_COUNT, "the same layers");
_Static_assert((int)AD_STRICT_REQUIRED == AGENTD_PROTECTION_REQUIRED &&
		       (int)AD_STRICT_DEGRADABLE == AGENTD_PROTECTION_DEGRADABLE &&
		       (int)AD_STRICT_OFF == AGENTD_PROTECTION_OFF,
	       "the protocol's numbers are the interface's");
_Static_assert((int)AD_ACCESS_READ == AGENTD_ACCESS_READ &&
		       (int)AD_ACCESS_WRITE == AGENTD_ACCESS_WRITE &&
		       (int)AD_ACCESS_EXEC == AGENTD_ACCESS_EXEC,
	       "the protocol's bits are the interface's");

uint8_t sandbox_strictness(const agentd_spec *spec, enum ad_layer layer)
{
	/* Without a network of its own a command would have the host's, and all of it. */
	if (layer == AD_LAYER_NETNS && agentd_spec_net(spec) == AGENTD_NET_ALLOWLIST)
		return AD_STRICT_REQUIRED;
	if (layer == AD_LAYER_USERNS || layer == AD_LAYER_MOUNTNS || layer == AD_LAYER_PIDNS)
		return AD_STRICT_REQUIRED;
	return (uint8_t)ad_spec_protection(spec, (int)layer);
}

static int compare(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* In order and without doubles, so that equal policies make equal profiles. */
static size_t sort_names(const char **names, size_t count)
{
	size_t kept = count > 0;

	while (kept < count && strcmp(names[kept - 1], names[kept]) < 0)
		kept++;
	if (kept == count)
		return count; /* as a policy has them by default */
	qsort(names, count, sizeof(*names), compare);
	kept = 0;
	for (size_t i = 0; i < count; i++) {
		if (kept == 0 || strcmp(names[kept - 1], names[i]) != 0)
			names[kept++] = names[i];
	}
	return kept;
}

int sandbox_profile_init(struct sandbox_profile *ret, const agentd_spec *spec,
			 const struct ad_sandbox_opts *opts)
{
	size_t paths = agentd_spec_mount_count(spec), names = agentd_spec_protected_count(spec);

	*ret = (struct sandbox_profile){
		.profile = {
			.uid = opts->uid,
			.gid = opts->gid,
			.prewarm = opts->prewarm,
			.tmp_bytes = opts->tmp_bytes,
			.host_net = agentd_spec_net(spec) == AGENTD_NET_FULL &&
				    agentd_spec_netns(spec) < 0,
			.proxy_port = agentd_spec_net(spec) == AGENTD_NET_ALLOWLIST ?
					      AD_SANDBOX_PROXY_PORT :
					      0,
			.workdir_access = (uint8_t)agentd_spec_workdir_access(spec),
			.path_count = paths,
		},
		.paths = reallocarray(NULL, paths + 1, sizeof(*ret->paths)),
		.names = reallocarray(NULL, names + 1, sizeof(*ret->names)),
	};
	if (!ret->paths || !ret->names) {
		sandbox_profile_free(ret);
		return AGENTD_ERR_NOMEM;
	}
	for (size_t i = 0; i < paths; i++) {
		struct ad_profile_path *path = &ret->paths[i];
		uint32_t access;

		agentd_spec_mount_at(spec, i, &path->source, &path->target, &access);
		path->access = (uint8_t)access;
	}
	for (size_t i = 0; i < names; i++)
		ret->names[i] = agentd_spec_protected_at(spec, i);
	for (size_t i = 0; i < AD_LAYER_COUNT; i++)
		ret->profile.strict[i] = sandbox_strictness(spec, (enum ad_layer)i);
	/* Limits have substitutes, and the one that has none is what
	 * ad_launch_request.cgroup_required is about: as on the host backend. */
	if (ret->profile.strict[AD_LAYER_CGROUP] == AD_STRICT_REQUIRED)
		ret->profile.strict[AD_LAYER_CGROUP] = AD_STRICT_DEGRADABLE;
	ret->profile.paths = ret->paths;
	ret->profile.names = ret->names;
	ret->profile.name_count = sort_names(ret->names, names);
	return 0;
}

void sandbox_profile_free(struct sandbox_profile *profile)
{
	free(AD_STEAL(profile->paths));
	free(AD_STEAL(profile->names));
}
