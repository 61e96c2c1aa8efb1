/* SPDX-License-Identifier: MIT */
/* The sandbox's part of a message: what a template is made from. */
#include "fuzz.h"

#include <string.h>

#include "proto/profile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ad_profile profile;
	struct ad_profile_path *paths;
	const char **names;
	uint8_t *again;

	if (!ad_profile_decode(&profile, data, size))
		return 0;
	paths = calloc(profile.path_count + 1, sizeof(*paths));
	names = calloc(profile.name_count + 1, sizeof(*names));
	FUZZ_CHECK(paths && names);
	ad_profile_fill(&profile, paths, names);
	FUZZ_CHECK(ad_profile_size(&profile) == size);
	again = malloc(size);
	FUZZ_CHECK(again && ad_profile_encode(&profile, again) == size);
	FUZZ_CHECK(memcmp(again, data, size) == 0);
	free(again);
	free(paths);
	free(names);
	return 0;
}
