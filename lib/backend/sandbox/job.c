/* SPDX-License-Identifier: MIT */
#include "backend/sandbox/private.h"

#include <string.h>

/* More than any archive takes, but for files: those of a tmpfs count as the memory of who writes
 * them. */
#define MEMORY_BYTES (UINT64_C(512) << 20)
enum { TASKS = 8 };

/* The program is to be seen; where a path of the policy covers it, as that allows. */
static bool add_program(struct sandbox_profile *profile, const char *program)
{
	size_t count = profile->profile.path_count;
	struct ad_profile_path *grown = reallocarray(profile->paths, count + 1,
						     sizeof(*profile->paths));

	if (!grown)
		return false;
	grown[count] = (struct ad_profile_path){ program, program,
						 AD_ACCESS_READ | AD_ACCESS_EXEC };
	profile->paths = grown;
	profile->profile.paths = grown;
	profile->profile.path_count = count + 1;
	return true;
}

int ad_sandbox_job_start(const struct ad_sandbox_opts *opts, const agentd_spec *spec,
			 const char *const *argv, uint64_t file_bytes,
			 const struct ad_job_events *events, void *userdata, struct ad_job **ret,
			 agentd_error **reterr)
{
	static const char *const env[] = { "LANG=C.UTF-8", NULL };
	struct sandbox_profile profile;
	const struct ad_launch_sandbox sandbox = {
		.profile = &profile.profile,
		.credentials_fd = -1,
		.netns_fd = -1,
	};
	const struct ad_launch_request request = {
		.argv = argv,
		.env = env,
		.workdir = agentd_spec_workdir(spec),
		.stdin_open = true,
		.limits = { .size = sizeof(request.limits),
			    .mem_bytes = file_bytes < UINT64_MAX - MEMORY_BYTES ?
						 MEMORY_BYTES + file_bytes :
						 0,
			    .pids_max = TASKS },
		.sandbox = &sandbox,
	};
	int r;

	if (sandbox_profile_init(&profile, spec, opts) < 0)
		return ad_fail_nomem(reterr);
	profile.profile.host_net = false;
	profile.profile.proxy_port = 0;
	profile.profile.prewarm = 0;
	r = add_program(&profile, argv[0]) ?
		    ad_job_start(opts->launcher, &request, events, userdata, ret, reterr) :
		    ad_fail_nomem(reterr);
	sandbox_profile_free(&profile);
	return r;
}
