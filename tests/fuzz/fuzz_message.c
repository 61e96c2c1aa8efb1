/* SPDX-License-Identifier: MIT */
/* Messages between the library and its helper. */
#include "fuzz.h"

#include <string.h>

#include "proto/helper_msg.h"

static void fuzz_spawn(const uint8_t *data, size_t size)
{
	struct ad_msg_spawn spawn;
	const char **vectors;

	if (!ad_msg_spawn_decode(&spawn, data, size))
		return;
	vectors = calloc(spawn.argc + spawn.envc + 2, sizeof(*vectors));
	FUZZ_CHECK(vectors);
	ad_msg_spawn_vectors(&spawn, vectors, vectors + spawn.argc + 1);
	for (size_t i = 0; i < spawn.argc; i++)
		FUZZ_CHECK(strlen(vectors[i]) < size);
	free(vectors);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t again[AD_MSG_FIXED_MAX];
	struct ad_msg msg;

	fuzz_spawn(data, size);
	if (ad_msg_decode(&msg, data, size)) {
		FUZZ_CHECK(ad_msg_peek(data, size) == msg.type);
		FUZZ_CHECK(size <= sizeof(again) && ad_msg_encode(&msg, again) == size);
		FUZZ_CHECK(memcmp(again, data, size) == 0);
	}
	return 0;
}
