/* SPDX-License-Identifier: MIT */
/* Shared by the files of lib/json only. */
#ifndef AD_JSON_PRIVATE_H
#define AD_JSON_PRIVATE_H

#include "json/json.h"
#include "util/util.h"

/* json-c says NULL for a JSON null; outside this folder that is this object,
 * which is never counted nor freed. */
struct json_object *ad_json_null(void);

/* Strict reader of the whole text. Containers are kept down to keep_depth levels;
 * those below are checked in full and kept as empty ones. *ret may be NULL: null. */
int ad_json_scan(const char *text, size_t len, unsigned int keep_depth, struct json_object **ret,
		 agentd_error **reterr);

/* Add to an object with a key that is not in it yet; takes over value. */
bool ad_json_put_member(struct json_object *object, const char *key, struct json_object *value);

/* Copy text, cut at a character with "..." behind it when it does not fit. */
void ad_json_cut(const char *text, size_t len, char *ret, size_t size);

/* `pointer`/`key` as RFC 6901 escapes it. */
bool ad_json_pointer_append(struct ad_buf *pointer, const char *key);

/* Shortest decimal digits that read back as value, always with a point and never
 * with an exponent, whatever the locale. */
bool ad_json_append_double(struct ad_buf *buf, double value);

#endif
