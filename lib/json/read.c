/* SPDX-License-Identifier: MIT */
#include "json/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <json-c/json.h>

#include "json/private.h"

enum { SHOWN_MAX = 96 }; /* bytes of a string that a message quotes */

struct json_object *ad_json_null(void)
{
	static const char marker;

	return (struct json_object *)(uintptr_t)&marker;
}

/* json-c's readers take pointers to non-const and write nothing that shows. */
static struct json_object *writable(const struct json_object *value)
{
	return (struct json_object *)(uintptr_t)value;
}

int ad_json_parse(const char *text, size_t len, struct json_object **ret, agentd_error **reterr)
{
	struct json_object *value = NULL;
	int r = ad_json_scan(text, len, AD_JSON_MAX_DEPTH, &value, reterr);

	if (r == 0)
		*ret = value ? value : ad_json_null();
	return r;
}

/* Whether the text has a value other than an object; nonsense is left to the
 * scanner. */
static bool starts_otherwise(const char *text, size_t len)
{
	size_t i = 0;

	while (i < len && text[i] && strchr(" \t\r\n", text[i]))
		i++;
	return i < len && text[i] == '[';
}

int ad_json_parse_flat(const char *text, size_t len, struct json_object **ret,
		       agentd_error **reterr)
{
	struct json_object *value = NULL;
	char what[32];
	int r;

	/* An array's items are no members: check them, keep none. */
	r = ad_json_scan(text, len, starts_otherwise(text, len) ? 0 : 1, &value, reterr);
	if (r < 0)
		return r;
	if (!json_object_is_type(value, json_type_object)) {
		ad_json_describe(value, what, sizeof(what));
		ad_json_free(value);
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "invalid type: %s, expected an object", what);
	}
	*ret = value;
	return 0;
}

void ad_json_free(struct json_object *value)
{
	if (value != ad_json_null())
		json_object_put(value);
}

struct json_object *ad_json_ref(const struct json_object *value)
{
	struct json_object *shared = (struct json_object *)(uintptr_t)value;

	return value == ad_json_null() ? shared : json_object_get(shared);
}

enum ad_json_type ad_json_type_of(const struct json_object *value)
{
	if (!value || value == ad_json_null())
		return AD_JSON_NULL;
	switch (json_object_get_type(value)) {
	case json_type_boolean:
		return AD_JSON_BOOL;
	case json_type_double:
		return AD_JSON_FLOAT;
	case json_type_int:
		return AD_JSON_INT;
	case json_type_object:
		return AD_JSON_OBJECT;
	case json_type_array:
		return AD_JSON_ARRAY;
	case json_type_string:
		return AD_JSON_STRING;
	case json_type_null:
		break;
	}
	return AD_JSON_NULL;
}

/* ---- words about values */

void ad_json_cut(const char *text, size_t len, char *ret, size_t size)
{
	size_t keep = size - sizeof("...");

	if (len < size) {
		memcpy(ret, text, len);
		ret[len] = '\0';
		return;
	}
	while (keep > 0 && ((unsigned char)text[keep] & 0xc0) == 0x80)
		keep--;
	memcpy(ret, text, keep);
	memcpy(ret + keep, "...", sizeof("..."));
}

/* As Rust's {:?} does, in quotes. */
static void quote(struct ad_buf *buf, const char *text, size_t len)
{
	size_t keep = len;

	if (keep > SHOWN_MAX) {
		keep = SHOWN_MAX;
		while (keep > 0 && ((unsigned char)text[keep] & 0xc0) == 0x80)
			keep--;
	}
	ad_buf_puts(buf, "\"");
	for (size_t i = 0; i < keep; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c == '"' || c == '\\')
			ad_buf_printf(buf, "\\%c", c);
		else if (c == '\n')
			ad_buf_puts(buf, "\\n");
		else if (c == '\r')
			ad_buf_puts(buf, "\\r");
		else if (c == '\t')
			ad_buf_puts(buf, "\\t");
		else if (c == '\0')
			ad_buf_puts(buf, "\\0");
		else if (c < ' ' || c == 0x7f)
			ad_buf_printf(buf, "\\u{%x}", c);
		else
			ad_buf_append(buf, &text[i], 1);
	}
	ad_buf_puts(buf, keep < len ? "\"..." : "\"");
}

bool ad_json_append_double(struct ad_buf *buf, double value)
{
	char text[48], digits[32];
	size_t count = 0;
	long point;

	for (int precision = 0; precision <= 16; precision++) {
		snprintf(text, sizeof(text), "%.*e", precision, value);
		if (strtod(text, NULL) == value)
			break;
	}
	for (const char *at = text; *at != 'e'; at++) {
		if (*at >= '0' && *at <= '9')
			digits[count++] = *at;
	}
	point = strtol(strchr(text, 'e') + 1, NULL, 10) + 1; /* digits before it */
	while (count > 1 && digits[count - 1] == '0')
		count--;
	if (text[0] == '-')
		ad_buf_puts(buf, "-");
	if (point <= 0)
		ad_buf_puts(buf, "0.");
	for (long i = point; i < 0; i++)
		ad_buf_puts(buf, "0");
	for (long i = 0; i < (long)count || i < point; i++) {
		if (i == point && i > 0)
			ad_buf_puts(buf, ".");
		ad_buf_append(buf, i < (long)count ? &digits[i] : "0", 1);
	}
	if (point >= (long)count)
		ad_buf_puts(buf, ".0");
	return !buf->failed;
}

static void describe(const struct json_object *value, struct ad_buf *buf)
{
	struct json_object *w = writable(value);

	switch (ad_json_type_of(value)) {
	case AD_JSON_NULL:
		ad_buf_puts(buf, "null");
		break;
	case AD_JSON_BOOL:
		ad_buf_printf(buf, "boolean `%s`", json_object_get_boolean(w) ? "true" : "false");
		break;
	case AD_JSON_INT:
		if (json_object_get_int64(w) < 0)
			ad_buf_printf(buf, "integer `%" PRId64 "`", json_object_get_int64(w));
		else
			ad_buf_printf(buf, "integer `%" PRIu64 "`", json_object_get_uint64(w));
		break;
	case AD_JSON_FLOAT:
		ad_buf_puts(buf, "floating point `");
		ad_json_append_double(buf, json_object_get_double(w));
		ad_buf_puts(buf, "`");
		break;
	case AD_JSON_STRING:
		ad_buf_puts(buf, "string ");
		quote(buf, json_object_get_string(w), (size_t)json_object_get_string_len(w));
		break;
	case AD_JSON_ARRAY:
		ad_buf_puts(buf, "sequence");
		break;
	case AD_JSON_OBJECT:
		ad_buf_puts(buf, "map");
		break;
	}
}

void ad_json_describe(const struct json_object *value, char *ret, size_t size)
{
	static const char unknown[] = "value";
	ad_autobuf struct ad_buf buf = { 0 };

	describe(value, &buf);
	if (buf.failed)
		ad_json_cut(unknown, strlen(unknown), ret, size);
	else
		ad_json_cut(buf.data, buf.len, ret, size);
}

static int fail_type(const struct json_object *value, const char *problem, const char *expected,
		     const char *pointer, agentd_error **reterr)
{
	ad_autobuf struct ad_buf what = { 0 };

	if (!reterr)
		return AGENTD_ERR_INVALID;
	describe(value, &what);
	if (what.failed)
		return ad_fail_nomem(reterr);
	return ad_fail(reterr, AGENTD_ERR_INVALID, pointer, "invalid %s: %s, expected %s", problem,
		       what.data, expected);
}

/* ---- typed reads */

int ad_json_get_u64(const struct json_object *value, const char *pointer, uint64_t *ret,
		    agentd_error **reterr)
{
	if (ad_json_type_of(value) != AD_JSON_INT)
		return fail_type(value, "type", "u64", pointer, reterr);
	if (json_object_get_int64(value) < 0)
		return fail_type(value, "value", "u64", pointer, reterr);
	*ret = json_object_get_uint64(value);
	return 0;
}

int ad_json_get_string(const struct json_object *value, const char *pointer, const char **ret,
		       agentd_error **reterr)
{
	const char *text;

	if (ad_json_type_of(value) != AD_JSON_STRING)
		return fail_type(value, "type", "a string", pointer, reterr);
	text = json_object_get_string(writable(value));
	if (memchr(text, '\0', (size_t)json_object_get_string_len(value)))
		return fail_type(value, "value", "a string without NUL", pointer, reterr);
	*ret = text;
	return 0;
}

int ad_json_get_bool(const struct json_object *value, const char *pointer, bool *ret,
		     agentd_error **reterr)
{
	if (ad_json_type_of(value) != AD_JSON_BOOL)
		return fail_type(value, "type", "a boolean", pointer, reterr);
	*ret = json_object_get_boolean(value);
	return 0;
}

/* ---- containers */

bool ad_json_member(const struct json_object *object, const char *key,
		    const struct json_object **ret)
{
	struct json_object *value = NULL;

	if (ad_json_type_of(object) != AD_JSON_OBJECT ||
	    !json_object_object_get_ex(object, key, &value))
		return false;
	*ret = value ? value : ad_json_null();
	return true;
}

bool ad_json_pointer_append(struct ad_buf *pointer, const char *key)
{
	ad_buf_puts(pointer, "/");
	for (; *key; key++) {
		if (*key == '~')
			ad_buf_puts(pointer, "~0");
		else if (*key == '/')
			ad_buf_puts(pointer, "~1");
		else
			ad_buf_append(pointer, key, 1);
	}
	return !pointer->failed;
}

int ad_json_each_member(const struct json_object *value, const char *pointer, ad_json_member_fn fn,
			void *userdata, agentd_error **reterr)
{
	struct lh_entry *entry;

	if (ad_json_type_of(value) != AD_JSON_OBJECT)
		return fail_type(value, "type", "an object", pointer, reterr);
	for (entry = json_object_get_object(value)->head; entry; entry = entry->next) {
		ad_autobuf struct ad_buf at = { 0 };
		const struct json_object *member = lh_entry_v(entry);
		const char *key = lh_entry_k(entry);
		int r;

		ad_buf_puts(&at, pointer);
		if (!ad_json_pointer_append(&at, key))
			return ad_fail_nomem(reterr);
		r = fn(key, member ? member : ad_json_null(), at.data, userdata, reterr);
		if (r != 0)
			return r;
	}
	return 0;
}

int ad_json_each_item(const struct json_object *value, const char *pointer, ad_json_item_fn fn,
		      void *userdata, agentd_error **reterr)
{
	size_t count;

	if (ad_json_type_of(value) != AD_JSON_ARRAY)
		return fail_type(value, "type", "an array", pointer, reterr);
	count = json_object_array_length(value);
	for (size_t i = 0; i < count; i++) {
		ad_autobuf struct ad_buf at = { 0 };
		const struct json_object *item = json_object_array_get_idx(value, i);
		int r;

		if (!ad_buf_printf(&at, "%s/%zu", pointer, i))
			return ad_fail_nomem(reterr);
		r = fn(item ? item : ad_json_null(), at.data, userdata, reterr);
		if (r != 0)
			return r;
	}
	return 0;
}

int ad_json_unknown_key(const char *key, const char *pointer, agentd_error **reterr)
{
	char shown[128];

	ad_json_cut(key, strlen(key), shown, sizeof(shown));
	return ad_fail(reterr, AGENTD_ERR_INVALID, pointer, "unknown key \"%s\"", shown);
}
