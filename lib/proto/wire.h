/* SPDX-License-Identifier: MIT */
/* Little-endian integers and their bounds, and runs of strings; shared by the codecs of
 * this folder. */
#ifndef AD_PROTO_WIRE_H
#define AD_PROTO_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline uint8_t *put(uint8_t *at, uint64_t value, unsigned int bytes)
{
	for (unsigned int i = 0; i < bytes; i++)
		*at++ = (uint8_t)(value >> (8 * i));
	return at;
}

struct reader {
	const uint8_t *at;
	size_t left;
	bool bad;
};

static inline uint64_t get(struct reader *in, unsigned int bytes)
{
	uint64_t value = 0;

	if (in->left < bytes) {
		in->bad = true;
		in->left = 0;
		return 0;
	}
	for (unsigned int i = 0; i < bytes; i++)
		value |= (uint64_t)in->at[i] << (8 * i);
	in->at += bytes;
	in->left -= bytes;
	return value;
}

static inline uint64_t get_below(struct reader *in, unsigned int bytes, uint64_t bound)
{
	uint64_t value = get(in, bytes);

	if (value >= bound)
		in->bad = true;
	return value;
}

static inline uint32_t get_u32(struct reader *in)
{
	return (uint32_t)get(in, 4);
}

static inline uint8_t get_u8_below(struct reader *in, uint8_t bound)
{
	return (uint8_t)get_below(in, 1, bound);
}

static inline int32_t get_s32(struct reader *in)
{
	return (int32_t)get_u32(in);
}

/* Whether so many strings, each ended by a NUL, fill the bytes and no more. */
bool ad_wire_strings_check(const char *at, size_t bytes, uint64_t count);
/* Pointers to the next count strings, and a NULL; returns what follows them. */
const char *ad_wire_strings_fill(const char *at, const char **vector, size_t count);

#endif
