/* SPDX-License-Identifier: MIT */
#include "util/util.h"

#include <assert.h>
#include <string.h>

enum { SIZED_LEAST = sizeof(uint32_t), SIZED_MOST = 4096 };

static uint32_t size_of(const void *sized)
{
	uint32_t size;

	memcpy(&size, sized, sizeof(size));
	return size;
}

int ad_sized_copy(void *dst, uint32_t dst_size, const void *src, uint32_t min_size,
		  const char *what, agentd_error **reterr)
{
	const uint8_t *bytes = src;
	uint32_t size = size_of(src);

	assert(min_size >= SIZED_LEAST && min_size <= dst_size && dst_size <= SIZED_MOST);
	if (size < min_size || size > SIZED_MOST)
		return ad_fail(reterr, AGENTD_ERR_ABI, NULL,
			       "%s: size is %u, must be at least %u and at most %u", what, size,
			       min_size, (uint32_t)SIZED_MOST);
	for (uint32_t i = dst_size; i < size; i++) {
		if (bytes[i])
			return ad_fail(reterr, AGENTD_ERR_ABI, NULL,
				       "%s: byte %u is set, but this library knows only %u bytes",
				       what, i, dst_size);
	}
	memset(dst, 0, dst_size);
	memcpy(dst, src, size < dst_size ? size : dst_size);
	memcpy(dst, &dst_size, sizeof(dst_size));
	return 0;
}

int ad_sized_store(void *dst, const void *src, uint32_t src_size)
{
	uint32_t size = size_of(dst);

	assert(src_size >= SIZED_LEAST && src_size <= SIZED_MOST);
	if (size < SIZED_LEAST || size > SIZED_MOST)
		return AGENTD_ERR_ABI;
	memset(dst, 0, size);
	memcpy(dst, src, size < src_size ? size : src_size);
	memcpy(dst, &size, sizeof(size));
	return 0;
}
