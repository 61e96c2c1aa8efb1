/* SPDX-License-Identifier: MIT */
#include "proto/wire.h"

#include <string.h>

bool ad_wire_strings_check(const char *at, size_t bytes, uint64_t count)
{
	if (bytes == 0 || at[bytes - 1] != '\0')
		return false;
	for (uint64_t i = 0; i < count; i++) {
		size_t size;

		if (bytes == 0)
			return false;
		size = strlen(at) + 1;
		at += size;
		bytes -= size;
	}
	return bytes == 0;
}

const char *ad_wire_strings_fill(const char *at, const char **vector, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		vector[i] = at;
		at += strlen(at) + 1;
	}
	vector[count] = NULL;
	return at;
}
