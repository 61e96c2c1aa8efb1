/* SPDX-License-Identifier: MIT */
#include "json/json.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include <json-c/json.h>

#include "json/private.h"

struct json_object *ad_json_object(void)
{
	return json_object_new_object();
}

struct json_object *ad_json_array(void)
{
	return json_object_new_array_ext(4);
}

bool ad_json_put_member(struct json_object *object, const char *key, struct json_object *value)
{
	struct lh_table *table = json_object_get_object(object);

	/* json-c 0.16 leaks the key's copy when growing fails inside the add. */
	if ((table->count >= table->size * LH_LOAD_FACTOR &&
	     (table->size > INT_MAX / 2 || lh_table_resize(table, table->size * 2) < 0)) ||
	    json_object_object_add_ex(object, key, value, JSON_C_OBJECT_ADD_KEY_IS_NEW) < 0) {
		json_object_put(value);
		return false;
	}
	return true;
}

bool ad_json_add_value(struct json_object *to, const char *key, struct json_object *value)
{
	if (!to || !value) {
		ad_json_free(value);
		return false;
	}
	if (value == ad_json_null())
		value = NULL;
	if (key)
		return ad_json_put_member(to, key, value);
	if (json_object_array_add(to, value) < 0) {
		json_object_put(value);
		return false;
	}
	return true;
}

/* Every malformed sequence becomes one U+FFFD. */
static void append_repaired(struct ad_buf *buf, const char *text)
{
	static const char replacement[] = "\xef\xbf\xbd";
	size_t from = 0, i = 0;
	struct ad_utf8 state = { 0 };

	while (text[i]) {
		uint8_t byte = (uint8_t)text[i];

		if (ad_utf8_feed(&state, &byte, 1)) {
			i++;
			if (ad_utf8_done(&state)) {
				ad_buf_append(buf, text + from, i - from);
				from = i;
			}
			continue;
		}
		ad_buf_puts(buf, replacement);
		/* What broke a sequence may begin the next one. */
		if (i == from || (byte & 0xc0) == 0x80)
			i++;
		from = i;
		state = (struct ad_utf8){ 0 };
	}
	if (from < i)
		ad_buf_puts(buf, replacement);
}

bool ad_json_add_string(struct json_object *to, const char *key, const char *text)
{
	ad_autobuf struct ad_buf repaired = { 0 };

	if (!to || !text)
		return false;
	if (!ad_utf8_valid(text, strlen(text))) {
		append_repaired(&repaired, text);
		if (repaired.failed)
			return false;
		text = repaired.data;
	}
	return ad_json_add_value(to, key, json_object_new_string(text));
}

bool ad_json_add_u64(struct json_object *to, const char *key, uint64_t value)
{
	return ad_json_add_value(to, key, json_object_new_uint64(value));
}

bool ad_json_add_i64(struct json_object *to, const char *key, int64_t value)
{
	return ad_json_add_value(to, key, json_object_new_int64(value));
}

bool ad_json_add_null(struct json_object *to, const char *key)
{
	return ad_json_add_value(to, key, ad_json_null());
}

bool ad_json_add_bool(struct json_object *to, const char *key, bool value)
{
	return ad_json_add_value(to, key, json_object_new_boolean(value));
}

/* ---- text: json-c 0.16's own writer ignores failed allocations */

static void write_string(struct ad_buf *buf, const char *text, size_t len)
{
	size_t from = 0;

	ad_buf_puts(buf, "\"");
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c >= ' ' && c != '"' && c != '\\')
			continue;
		ad_buf_append(buf, text + from, i - from);
		from = i + 1;
		if (c == '"' || c == '\\')
			ad_buf_printf(buf, "\\%c", c);
		else if (c == '\n')
			ad_buf_puts(buf, "\\n");
		else if (c == '\t')
			ad_buf_puts(buf, "\\t");
		else
			ad_buf_printf(buf, "\\u%04x", c);
	}
	ad_buf_append(buf, text + from, len - from);
	ad_buf_puts(buf, "\"");
}

static void write_value(struct ad_buf *buf, struct json_object *value)
{
	switch (ad_json_type_of(value)) {
	case AD_JSON_NULL:
		ad_buf_puts(buf, "null");
		break;
	case AD_JSON_BOOL:
		ad_buf_puts(buf, json_object_get_boolean(value) ? "true" : "false");
		break;
	case AD_JSON_INT:
		if (json_object_get_int64(value) < 0)
			ad_buf_printf(buf, "%" PRId64, json_object_get_int64(value));
		else
			ad_buf_printf(buf, "%" PRIu64, json_object_get_uint64(value));
		break;
	case AD_JSON_FLOAT:
		ad_json_append_double(buf, json_object_get_double(value));
		break;
	case AD_JSON_STRING:
		write_string(buf, json_object_get_string(value),
			     (size_t)json_object_get_string_len(value));
		break;
	case AD_JSON_ARRAY:
		ad_buf_puts(buf, "[");
		for (size_t i = 0; i < json_object_array_length(value); i++) {
			if (i > 0)
				ad_buf_puts(buf, ",");
			write_value(buf, json_object_array_get_idx(value, i));
		}
		ad_buf_puts(buf, "]");
		break;
	case AD_JSON_OBJECT:
		ad_buf_puts(buf, "{");
		for (struct lh_entry *entry = json_object_get_object(value)->head; entry;
		     entry = entry->next) {
			const char *key = lh_entry_k(entry);

			if (entry->prev)
				ad_buf_puts(buf, ",");
			write_string(buf, key, strlen(key));
			ad_buf_puts(buf, ":");
			write_value(buf, lh_entry_v(entry));
		}
		ad_buf_puts(buf, "}");
		break;
	}
}

int ad_json_to_text(struct json_object *value, bool ok, char **ret, size_t *ret_len,
		    agentd_error **reterr)
{
	ad_autobuf struct ad_buf buf = { 0 };
	size_t len;
	char *text;

	if (!value)
		ok = false;
	if (ok)
		write_value(&buf, value);
	ad_json_free(value);
	len = buf.len;
	text = ok ? ad_buf_steal(&buf) : NULL;
	if (!text)
		return ad_fail_nomem(reterr);
	*ret = text;
	if (ret_len)
		*ret_len = len;
	return 0;
}
