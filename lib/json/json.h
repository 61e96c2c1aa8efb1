/* SPDX-License-Identifier: MIT */
/* JSON in and out. The only folder that includes json-c.
 *
 * Reading is strict RFC 8259 over bounded input: valid UTF-8, no lone
 * surrogates, no duplicate keys, no NUL in keys, no trailing bytes; an integer
 * that neither int64 nor uint64 holds is read as a float. */
#ifndef AD_JSON_H
#define AD_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <agentd/error.h>

struct json_object; /* json-c's, opaque outside this folder */

enum {
	AD_JSON_MAX_BYTES = 1 << 20,
	AD_JSON_MAX_DEPTH = 64,
	AD_JSON_MAX_KEYS = 10000,     /* in the whole text */
	AD_JSON_MAX_KEY_BYTES = 4096, /* one key, decoded */
};

/* Parse. The error says what and at which byte, and for duplicate keys which. */
int ad_json_parse(const char *text, size_t len, struct json_object **ret, agentd_error **reterr);
/* The same for an object whose members are plain values, from somebody hostile:
 * arrays and objects in it are checked in full but kept as empty ones, so that
 * memory stays within a few times the text. Anything but an object fails. */
int ad_json_parse_flat(const char *text, size_t len, struct json_object **ret,
		       agentd_error **reterr);
void ad_json_free(struct json_object *value);
/* Another reference to a value or a part of one. */
struct json_object *ad_json_ref(const struct json_object *value);
static inline void ad_json_freep(struct json_object **value)
{
	ad_json_free(*value);
}
#define ad_autojson __attribute__((__cleanup__(ad_json_freep)))

enum ad_json_type {
	AD_JSON_NULL,
	AD_JSON_BOOL,
	AD_JSON_INT,
	AD_JSON_FLOAT,
	AD_JSON_STRING,
	AD_JSON_ARRAY,
	AD_JSON_OBJECT
};

enum ad_json_type ad_json_type_of(const struct json_object *value);
/* serde's words: "integer `1`", "string \"x\"", "null", "boolean `true`",
 * "floating point `1.5`", "sequence", "map". Long strings are cut. */
void ad_json_describe(const struct json_object *value, char *ret, size_t size);

/* Typed reads; each fails with `invalid type: <what it is>, expected <what>` (or
 * `invalid value`) and the pointer given. Strings with an embedded NUL are
 * refused. Strings are borrowed from value. */
int ad_json_get_u64(const struct json_object *value, const char *pointer, uint64_t *ret,
		    agentd_error **reterr);
int ad_json_get_string(const struct json_object *value, const char *pointer, const char **ret,
		       agentd_error **reterr);
int ad_json_get_bool(const struct json_object *value, const char *pointer, bool *ret,
		     agentd_error **reterr);

/* Member by key, or NULL (absent). A JSON null member returns a value of type
 * AD_JSON_NULL, never NULL. */
bool ad_json_member(const struct json_object *object, const char *key,
		    const struct json_object **ret);

/* Iterate; stops at the first non-zero return and returns it. pointer is the
 * element's JSON pointer. */
typedef int (*ad_json_member_fn)(const char *key, const struct json_object *value,
				 const char *pointer, void *userdata, agentd_error **reterr);
int ad_json_each_member(const struct json_object *value, const char *pointer, ad_json_member_fn fn,
			void *userdata, agentd_error **reterr); /* fails if not an object */
typedef int (*ad_json_item_fn)(const struct json_object *value, const char *pointer, void *userdata,
			       agentd_error **reterr);
int ad_json_each_item(const struct json_object *value, const char *pointer, ad_json_item_fn fn,
		      void *userdata, agentd_error **reterr); /* fails if not an array */
/* `unknown key "x"` at pointer. */
int ad_json_unknown_key(const char *key, const char *pointer, agentd_error **reterr);

/* Writing. A failed allocation anywhere makes ad_json_to_text() return NOMEM:
 * every call takes NULL objects and passes the failure on. */
struct json_object *ad_json_object(void);
struct json_object *ad_json_array(void);
/* Add to an object (key) or append to an array (key NULL). add_value takes over
 * the reference. Text that is not UTF-8 is written with U+FFFD. */
bool ad_json_add_value(struct json_object *to, const char *key, struct json_object *value);
bool ad_json_add_string(struct json_object *to, const char *key, const char *text);
bool ad_json_add_u64(struct json_object *to, const char *key, uint64_t value);
bool ad_json_add_i64(struct json_object *to, const char *key, int64_t value);
bool ad_json_add_null(struct json_object *to, const char *key);
bool ad_json_add_bool(struct json_object *to, const char *key, bool value);
/* Serialise compactly; ok: whether everything added was. Frees value. *ret is
 * malloc'ed, NUL-terminated. */
int ad_json_to_text(struct json_object *value, bool ok, char **ret, size_t *ret_len,
		    agentd_error **reterr);

#endif
