/* SPDX-License-Identifier: MIT */
#include "proto/profile.h"

#include <string.h>

#include "proto/wire.h"

enum { FIXED = 3 * 4 + 8 + 2 + 2 + AD_LAYER_COUNT + 2 * 4 };

size_t ad_profile_size(const struct ad_profile *profile)
{
	size_t size = FIXED + profile->path_count;

	for (size_t i = 0; i < profile->path_count; i++)
		size += strlen(profile->paths[i].source) + strlen(profile->paths[i].target) + 2;
	for (size_t i = 0; i < profile->name_count; i++)
		size += strlen(profile->names[i]) + 1;
	return size;
}

static uint8_t *put_string(uint8_t *at, const char *text)
{
	size_t size = strlen(text) + 1;

	memcpy(at, text, size);
	return at + size;
}

size_t ad_profile_encode(const struct ad_profile *profile, uint8_t *buf)
{
	uint8_t *at = put(buf, profile->uid, 4);

	at = put(at, profile->gid, 4);
	at = put(at, profile->prewarm, 4);
	at = put(at, profile->tmp_bytes, 8);
	at = put(at, profile->host_net, 1);
	at = put(at, profile->proxy_port, 2);
	at = put(at, profile->workdir_access, 1);
	for (size_t i = 0; i < AD_LAYER_COUNT; i++)
		at = put(at, profile->strict[i], 1);
	at = put(at, profile->path_count, 4);
	at = put(at, profile->name_count, 4);
	for (size_t i = 0; i < profile->path_count; i++)
		at = put(at, profile->paths[i].access, 1);
	for (size_t i = 0; i < profile->path_count; i++) {
		at = put_string(at, profile->paths[i].source);
		at = put_string(at, profile->paths[i].target);
	}
	for (size_t i = 0; i < profile->name_count; i++)
		at = put_string(at, profile->names[i]);
	return (size_t)(at - buf);
}

/* One string more, that starts with '/' or does not; NULL if it is not there. */
static const char *skip_string(struct reader *in, bool absolute)
{
	const char *text = (const char *)in->at;
	size_t size;

	if (in->left == 0 || !memchr(text, '\0', in->left) || text[0] == '\0' ||
	    (text[0] == '/') != absolute)
		return NULL;
	size = strlen(text) + 1;
	in->at += size;
	in->left -= size;
	return text;
}

bool ad_profile_decode(struct ad_profile *ret, const uint8_t *buf, size_t len)
{
	struct reader in = { .at = buf, .left = len };

	*ret = (struct ad_profile){ .uid = get_u32(&in) };
	ret->gid = get_u32(&in);
	ret->prewarm = get_u32(&in);
	ret->tmp_bytes = get(&in, 8);
	ret->host_net = get_below(&in, 1, 2) == 1;
	ret->proxy_port = (uint16_t)get_below(&in, 2, UINT16_MAX + 1);
	ret->workdir_access = get_u8_below(&in, AD_ACCESS_ALL + 1);
	for (size_t i = 0; i < AD_LAYER_COUNT; i++)
		ret->strict[i] = get_u8_below(&in, AD_STRICT_COUNT);
	ret->path_count = (size_t)get_below(&in, 4, AD_PROFILE_PATHS_MAX);
	ret->name_count = (size_t)get_below(&in, 4, AD_PROFILE_NAMES_MAX);
	ret->access = in.at;
	for (size_t i = 0; i < ret->path_count && !in.bad; i++)
		get_u8_below(&in, AD_ACCESS_ALL + 1);
	ret->strings = (const char *)in.at;
	if (in.bad)
		return false;
	for (size_t i = 0; i < ret->path_count * 2; i++) {
		if (!skip_string(&in, true))
			return false;
	}
	for (size_t i = 0; i < ret->name_count; i++) {
		if (!skip_string(&in, false))
			return false;
	}
	return in.left == 0;
}

static const char *take(const char **at)
{
	const char *text = *at;

	*at += strlen(text) + 1;
	return text;
}

void ad_profile_fill(struct ad_profile *profile, struct ad_profile_path *paths, const char **names)
{
	const char *at = profile->strings;

	for (size_t i = 0; i < profile->path_count; i++) {
		paths[i].access = profile->access[i];
		paths[i].source = take(&at);
		paths[i].target = take(&at);
	}
	for (size_t i = 0; i < profile->name_count; i++)
		names[i] = take(&at);
	profile->paths = paths;
	profile->names = names;
}
