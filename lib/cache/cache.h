/* SPDX-License-Identifier: MIT */
/* What was found out about this machine, kept for other processes until it restarts: a
 * JSON value in a file of a directory that nobody else may write to, and the key it was
 * found under. Whatever is wrong with it, there is none. */
#ifndef AD_CACHE_H
#define AD_CACHE_H

#include "util/util.h"

struct json_object;

/* Parts of a key. What a small file says, such as the id of this boot. */
void ad_cache_key_text(struct ad_buf *key, const char *path);
/* Which file it is, as far as can be told without reading it. */
void ad_cache_key_file(struct ad_buf *key, const char *path);

/* The value kept in dir (NULL: the default, for root /run/agentd) as file under this key;
 * to be freed. NULL: none. */
struct json_object *ad_cache_load(const char *dir, const char *file, const char *key);
/* Keep it, if that can be done; replaces the file as a whole. Takes value. */
void ad_cache_store(const char *dir, const char *file, const char *key, struct json_object *value);

#endif
