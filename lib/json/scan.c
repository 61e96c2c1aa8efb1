/* SPDX-License-Identifier: MIT */
/* The gate: RFC 8259 to the letter, bounded, and the only maker of values from
 * text. json-c 0.16 gives the containers and their hash tables; its tokener is not
 * used: it merges duplicate keys, takes comments and NaN, saturates integers, and
 * ignores failed allocations, which cuts strings short. */
#include "json/private.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <json-c/json.h>

enum { EXPONENT_MAX = 100000000 };

struct level {
	const char *key; /* of the member being read; NULL in arrays */
	size_t items;    /* of an array, begun so far */
};

struct scan {
	const char *text;
	size_t len, at;
	size_t keys;
	unsigned int depth, keep_depth;
	struct level levels[AD_JSON_MAX_DEPTH];
	struct ad_buf scratch; /* the string or number read last, decoded */
	agentd_error **reterr;
};

static int read_value(struct scan *scan, struct json_object **ret);

/* ---- failing */

static int fail_at(struct scan *scan, size_t at, const char *fmt, ...) AD_PRINTF(3, 4);
static int fail_at(struct scan *scan, size_t at, const char *fmt, ...)
{
	ad_autobuf struct ad_buf pointer = { 0 };
	char what[256];
	va_list args;

	if (!scan->reterr)
		return AGENTD_ERR_INVALID;
	va_start(args, fmt);
	vsnprintf(what, sizeof(what), fmt, args);
	va_end(args);
	for (unsigned int i = 0; i < scan->depth; i++) {
		const struct level *level = &scan->levels[i];

		if (level->key)
			ad_json_pointer_append(&pointer, level->key);
		else if (level->items > 0)
			ad_buf_printf(&pointer, "/%zu", level->items - 1);
	}
	if (pointer.failed)
		return ad_fail_nomem(scan->reterr);
	return ad_fail(scan->reterr, AGENTD_ERR_INVALID, pointer.data, "%s at byte %zu", what, at);
}

static int fail_byte(struct scan *scan, const char *wanted)
{
	unsigned char byte;

	if (scan->at >= scan->len)
		return fail_at(scan, scan->at, "unexpected end of text, expected %s", wanted);
	byte = (unsigned char)scan->text[scan->at];
	if (byte > ' ' && byte < 0x7f)
		return fail_at(scan, scan->at, "unexpected `%c`, expected %s", byte, wanted);
	return fail_at(scan, scan->at, "unexpected byte 0x%02x, expected %s", byte, wanted);
}

/* ---- tokens */

static int peek(const struct scan *scan)
{
	return scan->at < scan->len ? (unsigned char)scan->text[scan->at] : -1;
}

static void skip_space(struct scan *scan)
{
	int c;

	while ((c = peek(scan)) == ' ' || c == '\t' || c == '\n' || c == '\r')
		scan->at++;
}

static bool is_digit(int c)
{
	return c >= '0' && c <= '9';
}

static int read_hex4(struct scan *scan, uint32_t *ret)
{
	uint32_t value = 0;

	for (int i = 0; i < 4; i++, scan->at++) {
		int c = peek(scan);

		if (is_digit(c))
			value = value << 4 | (uint32_t)(c - '0');
		else if (c >= 'a' && c <= 'f')
			value = value << 4 | (uint32_t)(c - 'a' + 10);
		else if (c >= 'A' && c <= 'F')
			value = value << 4 | (uint32_t)(c - 'A' + 10);
		else
			return fail_byte(scan, "four hexadecimal digits");
	}
	*ret = value;
	return 0;
}

static void append_code(struct ad_buf *buf, uint32_t code)
{
	char utf8[4];
	size_t len;

	if (code < 0x80) {
		utf8[0] = (char)code;
		len = 1;
	} else if (code < 0x800) {
		utf8[0] = (char)(0xc0 | code >> 6);
		utf8[1] = (char)(0x80 | (code & 0x3f));
		len = 2;
	} else if (code < 0x10000) {
		utf8[0] = (char)(0xe0 | code >> 12);
		utf8[1] = (char)(0x80 | (code >> 6 & 0x3f));
		utf8[2] = (char)(0x80 | (code & 0x3f));
		len = 3;
	} else {
		utf8[0] = (char)(0xf0 | code >> 18);
		utf8[1] = (char)(0x80 | (code >> 12 & 0x3f));
		utf8[2] = (char)(0x80 | (code >> 6 & 0x3f));
		utf8[3] = (char)(0x80 | (code & 0x3f));
		len = 4;
	}
	ad_buf_append(buf, utf8, len);
}

/* Behind "\u". */
static int read_unicode_escape(struct scan *scan, size_t start)
{
	uint32_t code = 0, low = 0;
	int r = read_hex4(scan, &code);

	if (r < 0)
		return r;
	if (code >= 0xdc00 && code <= 0xdfff)
		return fail_at(scan, start, "lone surrogate \\u%04x", code);
	if (code >= 0xd800 && code <= 0xdbff) {
		if (scan->len - scan->at < 2 || memcmp(scan->text + scan->at, "\\u", 2) != 0)
			return fail_at(scan, start, "lone surrogate \\u%04x", code);
		scan->at += 2;
		r = read_hex4(scan, &low);
		if (r < 0)
			return r;
		if (low < 0xdc00 || low > 0xdfff)
			return fail_at(scan, start, "lone surrogate \\u%04x", code);
		code = 0x10000 + ((code - 0xd800) << 10 | (low - 0xdc00));
	}
	append_code(&scan->scratch, code);
	return 0;
}

static int read_escape(struct scan *scan)
{
	static const char names[] = "\"\\/bfnrt", bytes[] = "\"\\/\b\f\n\r\t";
	size_t start = scan->at++;
	int c = peek(scan);
	const char *name;

	if (c == 'u') {
		scan->at++;
		return read_unicode_escape(scan, start);
	}
	name = c > 0 ? strchr(names, c) : NULL;
	if (!name)
		return fail_byte(scan, "an escape character");
	ad_buf_append(&scan->scratch, &bytes[name - names], 1);
	scan->at++;
	return 0;
}

/* A string, decoded into scratch, of at most `most` bytes. */
static int read_string(struct scan *scan, size_t most, const char *what)
{
	size_t start = scan->at++;
	int r;

	scan->scratch.len = 0;
	for (;;) {
		size_t from = scan->at;
		struct ad_utf8 utf8 = { 0 };
		int c;

		while ((c = peek(scan)) >= ' ' && c != '"' && c != '\\') {
			uint8_t byte = (uint8_t)c;

			if (!ad_utf8_feed(&utf8, &byte, 1))
				return fail_at(scan, scan->at, "invalid UTF-8");
			scan->at++;
		}
		if (c < 0)
			return fail_byte(scan, "the end of a string");
		if (!ad_utf8_done(&utf8))
			return fail_at(scan, scan->at, "invalid UTF-8");
		ad_buf_append(&scan->scratch, scan->text + from, scan->at - from);
		if (c == '\\') {
			r = read_escape(scan);
			if (r < 0)
				return r;
		} else if (c != '"') {
			return fail_at(scan, scan->at, "control character 0x%02x in a string", c);
		}
		if (scan->scratch.failed)
			return ad_fail_nomem(scan->reterr);
		if (scan->scratch.len > most)
			return fail_at(scan, start, "%s longer than %zu bytes", what, most);
		if (c == '"')
			break;
	}
	scan->at++;
	return 0;
}

/* ---- numbers */

struct number {
	size_t start; /* of the literal */
	bool negative, real;
	long fraction; /* digits behind the point */
	long exponent; /* written, cut to what cannot matter */
};

static long read_digits(struct scan *scan)
{
	long count = 0;

	for (; is_digit(peek(scan)); scan->at++, count++)
		ad_buf_append(&scan->scratch, scan->text + scan->at, 1);
	return count;
}

/* The grammar; digits go to scratch without point and exponent. */
static int read_literal(struct scan *scan, struct number *number)
{
	scan->scratch.len = 0;
	number->start = scan->at;
	if (peek(scan) == '-') {
		number->negative = true;
		scan->at++;
	}
	if (peek(scan) == '0') {
		ad_buf_append(&scan->scratch, "0", 1);
		scan->at++;
		if (is_digit(peek(scan)))
			return fail_at(scan, number->start, "number with a leading zero");
	} else if (read_digits(scan) == 0) {
		return fail_byte(scan, "a digit");
	}
	if (peek(scan) == '.') {
		number->real = true;
		scan->at++;
		number->fraction = read_digits(scan);
		if (number->fraction == 0)
			return fail_byte(scan, "a digit");
	}
	if (peek(scan) == 'e' || peek(scan) == 'E') {
		bool minus;

		number->real = true;
		scan->at++;
		minus = peek(scan) == '-';
		if (minus || peek(scan) == '+')
			scan->at++;
		if (!is_digit(peek(scan)))
			return fail_byte(scan, "a digit");
		for (; is_digit(peek(scan)); scan->at++) {
			if (number->exponent < EXPONENT_MAX)
				number->exponent = number->exponent * 10 + (peek(scan) - '0');
		}
		if (minus)
			number->exponent = -number->exponent;
	}
	return scan->scratch.failed ? ad_fail_nomem(scan->reterr) : 0;
}

static bool integer_of(const struct ad_buf *digits, uint64_t *ret)
{
	uint64_t value = 0;

	for (size_t i = 0; i < digits->len; i++) {
		if (__builtin_mul_overflow(value, (uint64_t)10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(digits->data[i] - '0'), &value))
			return false;
	}
	*ret = value;
	return true;
}

static int read_number(struct scan *scan, struct json_object **ret)
{
	const uint64_t least = (uint64_t)INT64_MAX + 1;
	struct number number = { 0 };
	uint64_t integer;
	double real;
	int saved = errno, r;

	r = read_literal(scan, &number);
	if (r < 0)
		return r;
	/* serde_json reads -0, and what fits neither type, as a float. */
	if (!number.real && integer_of(&scan->scratch, &integer) &&
	    (number.negative ? integer != 0 && integer <= least : true)) {
		if (!number.negative)
			*ret = json_object_new_uint64(integer);
		else
			*ret = json_object_new_int64(integer == least ? INT64_MIN :
									-(int64_t)integer);
		return *ret ? 0 : ad_fail_nomem(scan->reterr);
	}
	/* Without a point the locale does not matter to strtod(). */
	if (!ad_buf_printf(&scan->scratch, "e%ld", number.exponent - number.fraction))
		return ad_fail_nomem(scan->reterr);
	real = strtod(scan->scratch.data, NULL);
	errno = saved;
	if (isinf(real))
		return fail_at(scan, number.start, "number out of range");
	*ret = json_object_new_double(number.negative ? -real : real);
	return *ret ? 0 : ad_fail_nomem(scan->reterr);
}

/* ---- containers */

static int enter(struct scan *scan)
{
	if (scan->depth == AD_JSON_MAX_DEPTH)
		return fail_at(scan, scan->at, "nested deeper than %d levels", AD_JSON_MAX_DEPTH);
	scan->levels[scan->depth++] = (struct level){ 0 };
	scan->at++;
	return 0;
}

static int read_items(struct scan *scan, struct json_object *array)
{
	struct level *level = &scan->levels[scan->depth - 1];
	struct json_object *item;
	int r;

	skip_space(scan);
	if (peek(scan) == ']') {
		scan->at++;
		return 0;
	}
	for (;;) {
		level->items++;
		item = NULL;
		r = read_value(scan, &item);
		if (r < 0)
			return r;
		if (array && json_object_array_add(array, item) < 0) {
			json_object_put(item);
			return ad_fail_nomem(scan->reterr);
		}
		if (!array)
			json_object_put(item);
		skip_space(scan);
		if (peek(scan) == ']')
			break;
		if (peek(scan) != ',')
			return fail_byte(scan, "`,` or `]`");
		scan->at++;
	}
	scan->at++;
	return 0;
}

static int read_array(struct scan *scan, struct json_object **ret)
{
	struct json_object *array = NULL;
	int r;

	r = enter(scan);
	if (r < 0)
		return r;
	/* At most one level of empty ones below what is kept. */
	if (scan->depth <= scan->keep_depth + 1) {
		array = json_object_new_array_ext(1);
		if (!array)
			return ad_fail_nomem(scan->reterr);
	}
	r = read_items(scan, scan->depth <= scan->keep_depth ? array : NULL);
	if (r < 0) {
		json_object_put(array);
		return r;
	}
	scan->depth--;
	*ret = array;
	return 0;
}

/* A key that is not in the set yet, copied to *ret. */
static int read_key(struct scan *scan, struct json_object *set, char **ret)
{
	struct level *level = &scan->levels[scan->depth - 1];
	ad_autofree char *key = NULL;
	size_t start = scan->at;
	int r;

	if (peek(scan) != '"')
		return fail_byte(scan, "a key in quotes");
	if (++scan->keys > AD_JSON_MAX_KEYS)
		return fail_at(scan, start, "more than %d keys", AD_JSON_MAX_KEYS);
	r = read_string(scan, AD_JSON_MAX_KEY_BYTES, "key");
	if (r < 0)
		return r;
	if (memchr(scan->scratch.data, '\0', scan->scratch.len))
		return fail_at(scan, start, "NUL in a key");
	key = strdup(scan->scratch.data);
	if (!key)
		return ad_fail_nomem(scan->reterr);
	if (json_object_object_get_ex(set, key, NULL)) {
		char shown[128];

		ad_json_cut(key, strlen(key), shown, sizeof(shown));
		level->key = key;
		r = fail_at(scan, start, "duplicate field `%s`", shown);
		level->key = NULL;
		return r;
	}
	*ret = AD_STEAL(key);
	return 0;
}

static int read_member(struct scan *scan, struct json_object *set, bool keep)
{
	struct level *level = &scan->levels[scan->depth - 1];
	struct json_object *value = NULL;
	ad_autofree char *key = NULL;
	int r;

	skip_space(scan);
	r = read_key(scan, set, &key);
	if (r < 0)
		return r;
	skip_space(scan);
	if (peek(scan) != ':')
		return fail_byte(scan, "`:`");
	scan->at++;
	level->key = key;
	r = read_value(scan, &value);
	level->key = NULL;
	if (r < 0)
		return r;
	if (!keep) {
		json_object_put(value);
		value = NULL;
	}
	return ad_json_put_member(set, key, value) ? 0 : ad_fail_nomem(scan->reterr);
}

static int read_members(struct scan *scan, struct json_object **set, bool keep)
{
	int r;

	skip_space(scan);
	if (peek(scan) == '}') {
		scan->at++;
		return 0;
	}
	if (!*set)
		*set = json_object_new_object();
	if (!*set)
		return ad_fail_nomem(scan->reterr);
	for (;;) {
		r = read_member(scan, *set, keep);
		if (r < 0)
			return r;
		skip_space(scan);
		if (peek(scan) == '}')
			break;
		if (peek(scan) != ',')
			return fail_byte(scan, "`,` or `}`");
		scan->at++;
	}
	scan->at++;
	return 0;
}

/* Of an object that is not kept, one with the keys alone is made while it is
 * open: they must be known to find duplicates. */
static int read_object(struct scan *scan, struct json_object **ret)
{
	struct json_object *set = NULL;
	bool keep;
	int r;

	r = enter(scan);
	if (r < 0)
		return r;
	keep = scan->depth <= scan->keep_depth;
	if (keep) {
		set = json_object_new_object();
		if (!set)
			return ad_fail_nomem(scan->reterr);
	}
	r = read_members(scan, &set, keep);
	if (r == 0 && !keep) {
		json_object_put(set);
		set = NULL;
		if (scan->depth == scan->keep_depth + 1) {
			set = json_object_new_object();
			r = set ? 0 : ad_fail_nomem(scan->reterr);
		}
	}
	if (r < 0) {
		json_object_put(set);
		return r;
	}
	scan->depth--;
	*ret = set;
	return 0;
}

/* ---- values */

static int read_word(struct scan *scan, const char *word, struct json_object *value,
		     struct json_object **ret)
{
	size_t len = strlen(word);

	if (scan->len - scan->at < len || memcmp(scan->text + scan->at, word, len) != 0) {
		json_object_put(value);
		return fail_byte(scan, "a value");
	}
	scan->at += len;
	*ret = value;
	return 0;
}

static int read_bool(struct scan *scan, const char *word, bool truth, struct json_object **ret)
{
	struct json_object *value = json_object_new_boolean(truth);

	return value ? read_word(scan, word, value, ret) : ad_fail_nomem(scan->reterr);
}

static int read_text(struct scan *scan, struct json_object **ret)
{
	int r = read_string(scan, AD_JSON_MAX_BYTES, "string");

	if (r < 0)
		return r;
	*ret = json_object_new_string_len(scan->scratch.data, (int)scan->scratch.len);
	return *ret ? 0 : ad_fail_nomem(scan->reterr);
}

static int read_value(struct scan *scan, struct json_object **ret)
{
	int c;

	skip_space(scan);
	c = peek(scan);
	if (c == '{')
		return read_object(scan, ret);
	if (c == '[')
		return read_array(scan, ret);
	if (c == '"')
		return read_text(scan, ret);
	if (c == '-' || is_digit(c))
		return read_number(scan, ret);
	if (c == 't')
		return read_bool(scan, "true", true, ret);
	if (c == 'f')
		return read_bool(scan, "false", false, ret);
	if (c == 'n')
		return read_word(scan, "null", NULL, ret);
	return fail_byte(scan, "a value");
}

int ad_json_scan(const char *text, size_t len, unsigned int keep_depth, struct json_object **ret,
		 agentd_error **reterr)
{
	struct scan scan = { .text = text, .len = len, .keep_depth = keep_depth, .reterr = reterr };
	struct json_object *value = NULL;
	int r;

	if (len > AD_JSON_MAX_BYTES)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "text of %zu bytes, at most %d are accepted", len,
			       AD_JSON_MAX_BYTES);
	if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
		return fail_at(&scan, 0, "unexpected byte order mark");
	r = read_value(&scan, &value);
	if (r == 0) {
		skip_space(&scan);
		if (scan.at < scan.len) {
			json_object_put(value);
			r = fail_byte(&scan, "the end of the text");
		}
	}
	ad_buf_free(&scan.scratch);
	if (r == 0)
		*ret = value;
	return r;
}
