/* SPDX-License-Identifier: MIT */
#include "unit.h"

#include <errno.h>
#include <locale.h>
#include <sys/resource.h>
#include <time.h>

#include "json/json.h"
#include "util/util.h"

static struct json_object *parse(const char *text)
{
	struct json_object *value = NULL;
	agentd_error *err = NULL;

	ck_assert_msg(ad_json_parse(text, strlen(text), &value, &err) == 0, "%s: %s", text,
		      agentd_error_message(err));
	ck_assert_ptr_null(err);
	ck_assert_ptr_nonnull(value);
	return value;
}

/* ---- the grammar */

static const char *const good[] = {
	"null",
	" true\n",
	"\tfalse\r",
	"0",
	"-1",
	"1.5",
	"1e5",
	"1E+5",
	"1.0e-5",
	"\"\"",
	"[]",
	"{}",
	"[ ]",
	"{ }",
	"[1,2]",
	"[1 , [ 2 ] ]",
	"{\"a\":{\"b\":[{}]}}",
	"{\"\":0}",
	"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\"",
	"\"\\ud83d\\ude00\"",
	"\"\x7f\"",
	"{\"a\":1,\"A\":2}",
	"{\"a\":{\"a\":1},\"b\":{\"a\":1}}",
	"\"\\u0000\"",
	"1e-400",
	"0e400",
	"0.0000",
	"[-0.0]",
};

START_TEST(test_good)
{
	ad_json_free(parse(good[_i]));
}
END_TEST

static const struct {
	const char *text, *pointer, *message;
} bad[] = {
	{ "", "", "unexpected end of text, expected a value at byte 0" },
	{ " \n", "", "unexpected end of text, expected a value at byte 2" },
	{ "\v1", "", "unexpected byte 0x0b, expected a value at byte 0" },
	{ "nul", "", "expected a value at byte 0" },
	{ "nulL", "", "expected a value at byte 0" },
	{ "True", "", "unexpected `T`, expected a value at byte 0" },
	{ "truefalse", "", "expected the end of the text at byte 4" },
	{ "{} x", "", "unexpected `x`, expected the end of the text at byte 3" },
	{ "{}{}", "", "expected the end of the text at byte 2" },
	{ "\xef\xbb\xbf{}", "", "byte order mark at byte 0" },
	{ "NaN", "", "unexpected `N`" },
	{ "Infinity", "", "unexpected `I`" },
	{ "-Infinity", "", "expected a digit at byte 1" },
	{ "[1,]", "/1", "unexpected `]`, expected a value at byte 3" },
	{ "[,1]", "/0", "expected a value at byte 1" },
	{ "[1 2]", "/0", "expected `,` or `]` at byte 3" },
	{ "[1", "/0", "unexpected end of text, expected `,` or `]`" },
	{ "[", "/0", "expected a value at byte 1" },
	{ "[1}", "/0", "unexpected `}`" },
	{ "{\"a\":1,}", "", "unexpected `}`, expected a key in quotes at byte 7" },
	{ "{a:1}", "", "unexpected `a`, expected a key in quotes" },
	{ "{'a':1}", "", "unexpected `'`" },
	{ "{\"a\" 1}", "", "expected `:` at byte 5" },
	{ "{\"a\":}", "/a", "expected a value at byte 5" },
	{ "{\"a\":1 \"b\":2}", "", "expected `,` or `}`" },
	{ "{\"a\":1", "", "unexpected end of text" },
	{ "{\"a\":[0,{\"b\":01}]}", "/a/1/b", "number with a leading zero at byte 13" },
	{ "00", "", "leading zero" },
	{ "-01", "", "leading zero" },
	{ "+1", "", "unexpected `+`" },
	{ ".5", "", "unexpected `.`" },
	{ "1.", "", "expected a digit at byte 2" },
	{ "1.e5", "", "expected a digit" },
	{ "1e", "", "expected a digit" },
	{ "1e+", "", "expected a digit" },
	{ "-", "", "expected a digit at byte 1" },
	{ "0x10", "", "expected the end of the text at byte 1" },
	{ "1_0", "", "expected the end" },
	{ "1e400", "", "number out of range at byte 0" },
	{ "-1e400", "", "number out of range" },
	{ "1e99999999999999999999999", "", "number out of range" },
	{ "[1.8e308]", "/0", "number out of range at byte 1" },
	{ "\"abc", "", "expected the end of a string at byte 4" },
	{ "\"a\\", "", "expected an escape character" },
	{ "\"\\x41\"", "", "expected an escape character at byte 2" },
	{ "\"\\\x01\"", "", "expected an escape character" },
	{ "\"\\u12\"", "", "four hexadecimal digits" },
	{ "\"\\u12g4\"", "", "four hexadecimal digits" },
	{ "\"\\U0041\"", "", "an escape character" },
	{ "\"\\ud800\"", "", "lone surrogate \\ud800 at byte 1" },
	{ "\"\\udc00\"", "", "lone surrogate \\udc00" },
	{ "\"\\ud800\\ud800\"", "", "lone surrogate \\ud800" },
	{ "\"\\ud800\\n\"", "", "lone surrogate" },
	{ "\"\\ud800x\"", "", "lone surrogate" },
	{ "\"a\tb\"", "", "control character 0x09 in a string at byte 2" },
	{ "\"a\nb\"", "", "control character 0x0a" },
	{ "\"\xff\"", "", "invalid UTF-8 at byte 1" },
	{ "\"\xc0\x80\"", "", "invalid UTF-8" },
	{ "\"\xed\xa0\x80\"", "", "invalid UTF-8" },
	{ "\"\xc3\"", "", "invalid UTF-8 at byte 2" },
	{ "\"\xc3\\u0041\"", "", "invalid UTF-8 at byte 2" },
	{ "\xc3\xa4", "", "unexpected byte 0xc3" },
	{ "1 // c", "", "unexpected `/`" },
	{ "/* c */ 1", "", "unexpected `/`" },
	{ "{\"a\":1,\"a\":2}", "/a", "duplicate field `a` at byte 7" },
	{ "{\"command\":1,\"\\u0063ommand\":2}", "/command",
	  "duplicate field `command` at byte 13" },
	{ "{\"a\":{\"~/\":1,\"b\":2,\"~/\":3}}", "/a/~0~1", "duplicate field `~/`" },
	{ "{\"\":1,\"\":2}", "/", "duplicate field ``" },
	{ "[{},{\"x\":null,\"x\":null}]", "/1/x", "duplicate field `x`" },
	{ "{\"a\\u0000b\":1}", "", "NUL in a key at byte 1" },
};

START_TEST(test_bad)
{
	struct json_object *value = NULL;
	const char *text = bad[_i].text;

	ck_refused(ad_json_parse(text, strlen(text), &value, &refused), AGENTD_ERR_INVALID,
		   bad[_i].pointer, bad[_i].message);
	ck_assert_int_eq(ad_json_parse(text, strlen(text), &value, NULL), AGENTD_ERR_INVALID);
	ck_assert_ptr_null(value);
}
END_TEST

START_TEST(test_nul_byte)
{
	struct json_object *value = NULL;

	ck_refused(ad_json_parse("1\0", 2, &value, &refused), AGENTD_ERR_INVALID, "",
		   "unexpected byte 0x00, expected the end of the text at byte 1");
	ck_refused(ad_json_parse("\"a\0b\"", 5, &value, &refused), AGENTD_ERR_INVALID, "",
		   "control character 0x00");
	ck_refused(ad_json_parse("\"\\\0\"", 4, &value, &refused), AGENTD_ERR_INVALID, "",
		   "an escape character");
}
END_TEST

/* The text is read up to its length and no further. */
START_TEST(test_length)
{
	struct json_object *value = NULL;

	ck_assert_int_eq(ad_json_parse("12345", 2, &value, NULL), 0);
	uint64_t number;

	ck_assert_int_eq(ad_json_get_u64(value, "", &number, NULL), 0);
	ck_assert_uint_eq(number, 12);
	ad_json_free(value);
	ck_assert_int_eq(ad_json_parse("true", 3, &value, NULL), AGENTD_ERR_INVALID);
}
END_TEST

/* ---- values */

static const struct {
	const char *text;
	enum ad_json_type type;
	const char *described;
} described[] = {
	{ "null", AD_JSON_NULL, "null" },
	{ "true", AD_JSON_BOOL, "boolean `true`" },
	{ "false", AD_JSON_BOOL, "boolean `false`" },
	{ "0", AD_JSON_INT, "integer `0`" },
	{ "-1", AD_JSON_INT, "integer `-1`" },
	{ "9223372036854775807", AD_JSON_INT, "integer `9223372036854775807`" },
	{ "9223372036854775808", AD_JSON_INT, "integer `9223372036854775808`" },
	{ "18446744073709551615", AD_JSON_INT, "integer `18446744073709551615`" },
	{ "18446744073709551616", AD_JSON_FLOAT, "floating point `18446744073709552000.0`" },
	{ "-9223372036854775808", AD_JSON_INT, "integer `-9223372036854775808`" },
	{ "-9223372036854775809", AD_JSON_FLOAT, "floating point `-9223372036854776000.0`" },
	{ "-0", AD_JSON_FLOAT, "floating point `-0.0`" },
	{ "1.5", AD_JSON_FLOAT, "floating point `1.5`" },
	{ "5000.0", AD_JSON_FLOAT, "floating point `5000.0`" },
	{ "1e4", AD_JSON_FLOAT, "floating point `10000.0`" },
	{ "0.1", AD_JSON_FLOAT, "floating point `0.1`" },
	{ "-0.00125", AD_JSON_FLOAT, "floating point `-0.00125`" },
	{ "0.30000000000000004", AD_JSON_FLOAT, "floating point `0.30000000000000004`" },
	{ "123456.75", AD_JSON_FLOAT, "floating point `123456.75`" },
	{ "\"5000\"", AD_JSON_STRING, "string \"5000\"" },
	{ "\"a\\n\\r\\t\\u0000\\\"\\\\\\u0001\x7f\"", AD_JSON_STRING,
	  "string \"a\\n\\r\\t\\0\\\"\\\\\\u{1}\\u{7f}\"" },
	{ "[1]", AD_JSON_ARRAY, "sequence" },
	{ "{\"a\":1}", AD_JSON_OBJECT, "map" },
};

START_TEST(test_describe)
{
	struct json_object *value = parse(described[_i].text);
	char text[128], small[8];

	ck_assert_int_eq(ad_json_type_of(value), described[_i].type);
	ad_json_describe(value, text, sizeof(text));
	ck_assert_str_eq(text, described[_i].described);
	ad_json_describe(value, small, sizeof(small));
	ck_assert_uint_lt(strlen(small), sizeof(small));
	ad_json_free(value);
}
END_TEST

/* Whatever room there is, no byte after it is written; also where all just fits. */
START_TEST(test_describe_room)
{
	struct json_object *value = parse(described[_i].text);
	char whole[128], text[140];

	ad_json_describe(value, whole, sizeof(whole));
	for (size_t size = 5; size < sizeof(text); size++) {
		memset(text, 0x55, sizeof(text));
		ad_json_describe(value, text, size);
		for (size_t i = size; i < sizeof(text); i++)
			ck_assert_msg(text[i] == 0x55, "room %zu, byte %zu", size, i);
		ck_assert_uint_lt(strnlen(text, size), size);
		if (strlen(whole) < size)
			ck_assert_str_eq(text, whole);
	}
	ad_json_free(value);
}
END_TEST

START_TEST(test_describe_long)
{
	char text[600] = "\"", what[256];
	struct json_object *value;

	for (size_t i = 0; i < 100; i++)
		strcat(text, "\xe2\x82\xac");
	strcat(text, "\"");
	value = parse(text);
	for (size_t size = 5; size < sizeof(what); size++) {
		ad_json_describe(value, what, size);
		ck_assert_uint_lt(strlen(what), size);
		ck_assert(ad_utf8_valid(what, strlen(what)));
		ck_assert_str_eq(what + strlen(what) - 3, "...");
	}
	ad_json_free(value);
}
END_TEST

/* serde's numbers, whatever the host made of the locale's decimal point. */
START_TEST(test_locale)
{
	struct json_object *value;
	char what[64];

	if (!setlocale(LC_NUMERIC, "de_DE.UTF-8") && !setlocale(LC_NUMERIC, "fr_FR.UTF-8"))
		setlocale(LC_NUMERIC, "C");
	value = parse("1234.5e-1");
	ad_json_describe(value, what, sizeof(what));
	ck_assert_str_eq(what, "floating point `123.45`");
	ad_json_free(value);
}
END_TEST

static const struct {
	const char *text, *message;
	uint64_t number;
} u64s[] = {
	{ "0", NULL, 0 },
	{ "9223372036854775808", NULL, UINT64_C(1) << 63 },
	{ "18446744073709551615", NULL, UINT64_MAX },
	{ "18446744073709551616",
	  "invalid type: floating point `18446744073709552000.0`, expected u64", 0 },
	{ "-1", "invalid value: integer `-1`, expected u64", 0 },
	{ "-0", "invalid type: floating point `-0.0`, expected u64", 0 },
	{ "1.5", "invalid type: floating point `1.5`, expected u64", 0 },
	{ "\"5000\"", "invalid type: string \"5000\", expected u64", 0 },
	{ "true", "invalid type: boolean `true`, expected u64", 0 },
	{ "null", "invalid type: null, expected u64", 0 },
	{ "[]", "invalid type: sequence, expected u64", 0 },
	{ "{}", "invalid type: map, expected u64", 0 },
};

START_TEST(test_get_u64)
{
	struct json_object *value = parse(u64s[_i].text);
	uint64_t number = 7;

	if (u64s[_i].message) {
		ck_refused(ad_json_get_u64(value, "/p", &number, &refused), AGENTD_ERR_INVALID,
			   "/p", u64s[_i].message);
		ck_assert_int_eq(ad_json_get_u64(value, "/p", &number, NULL), AGENTD_ERR_INVALID);
		ck_assert_uint_eq(number, 7);
	} else {
		ck_assert_int_eq(ad_json_get_u64(value, "/p", &number, NULL), 0);
		ck_assert_uint_eq(number, u64s[_i].number);
	}
	ad_json_free(value);
}
END_TEST

START_TEST(test_get_string)
{
	struct json_object *value = parse("\"\\ud83d\\ude00 \\u00e4\\u20ac\\/\"");
	const char *text = NULL;

	ck_assert_int_eq(ad_json_get_string(value, "", &text, NULL), 0);
	ck_assert_str_eq(text, "\xf0\x9f\x98\x80 \xc3\xa4\xe2\x82\xac/");
	ad_json_free(value);
	value = parse("12345");
	ck_refused(ad_json_get_string(value, "/command", &text, &refused), AGENTD_ERR_INVALID,
		   "/command", "invalid type: integer `12345`, expected a string");
	ad_json_free(value);
	value = parse("\"a\\u0000b\"");
	ck_refused(ad_json_get_string(value, "/command", &text, &refused), AGENTD_ERR_INVALID,
		   "/command", "invalid value: string \"a\\0b\", expected a string without NUL");
	ad_json_free(value);
}
END_TEST

START_TEST(test_get_bool)
{
	struct json_object *value = parse("true");
	bool truth = false;

	ck_assert_int_eq(ad_json_get_bool(value, "", &truth, NULL), 0);
	ck_assert(truth);
	ad_json_free(value);
	value = parse("1");
	ck_refused(ad_json_get_bool(value, "/b", &truth, &refused), AGENTD_ERR_INVALID, "/b",
		   "invalid type: integer `1`, expected a boolean");
	ad_json_free(value);
}
END_TEST

/* ---- containers */

static int note_member(const char *key, const struct json_object *value, const char *pointer,
		       void *userdata, agentd_error **reterr)
{
	ck_assert_ptr_nonnull(value);
	ad_buf_printf(userdata, "%s@%s=%d ", key, pointer, ad_json_type_of(value));
	return strcmp(key, "stop") == 0 ? ad_json_unknown_key(key, pointer, reterr) : 0;
}

static int note_item(const struct json_object *value, const char *pointer, void *userdata,
		     agentd_error **reterr)
{
	(void)reterr;
	ck_assert_ptr_nonnull(value);
	ad_buf_printf(userdata, "%s=%d ", pointer, ad_json_type_of(value));
	return ad_json_type_of(value) == AD_JSON_BOOL ? 5 : 0;
}

START_TEST(test_each_member)
{
	struct json_object *value = parse("{\"b\":1,\"~a/\":null,\"stop\":[],\"never\":0}");
	ad_autobuf struct ad_buf seen = { 0 };
	const struct json_object *member;

	ck_refused(ad_json_each_member(value, "/top", note_member, &seen, &refused),
		   AGENTD_ERR_INVALID, "/top/stop", "unknown key \"stop\"");
	ck_assert_str_eq(seen.data, "b@/top/b=2 ~a/@/top/~0a~1=0 stop@/top/stop=5 ");
	ck_assert(ad_json_member(value, "~a/", &member));
	ck_assert_int_eq(ad_json_type_of(member), AD_JSON_NULL);
	ck_assert(!ad_json_member(value, "absent", &member));
	ck_assert(!ad_json_member(member, "absent", &member));
	ad_json_free(value);
	value = parse("[1]");
	ck_refused(ad_json_each_member(value, "/x", note_member, &seen, &refused),
		   AGENTD_ERR_INVALID, "/x", "invalid type: sequence, expected an object");
	ad_json_free(value);
}
END_TEST

START_TEST(test_each_item)
{
	struct json_object *value = parse("[1,null,\"x\",true,2]");
	ad_autobuf struct ad_buf seen = { 0 };

	ck_assert_int_eq(ad_json_each_item(value, "/l", note_item, &seen, NULL), 5);
	ck_assert_str_eq(seen.data, "/l/0=2 /l/1=0 /l/2=4 /l/3=1 ");
	ad_json_free(value);
	value = parse("null");
	ck_refused(ad_json_each_item(value, "/l", note_item, &seen, &refused), AGENTD_ERR_INVALID,
		   "/l", "invalid type: null, expected an array");
	ad_json_free(value);
}
END_TEST

/* ---- bounds */

static long peak_kib(void)
{
	struct rusage usage;

	ck_assert_int_eq(getrusage(RUSAGE_SELF, &usage), 0);
	return usage.ru_maxrss;
}

static uint64_t cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Repeat unit until the text has at least so many bytes. */
static char *repeat(const char *head, const char *unit, size_t bytes, const char *tail)
{
	struct ad_buf buf = { 0 };

	ad_buf_puts(&buf, head);
	unit_repeat(&buf, unit, (bytes - buf.len + strlen(unit) - 1) / strlen(unit));
	ad_buf_puts(&buf, tail);
	return ad_buf_steal(&buf);
}

static char *many_keys(size_t count)
{
	struct ad_buf buf = { 0 };

	ad_buf_puts(&buf, "{");
	for (size_t i = 0; i < count; i++)
		ad_buf_printf(&buf, "%s\"key%zu\":%zu", i ? "," : "", i, i);
	ad_buf_puts(&buf, "}");
	return ad_buf_steal(&buf);
}

START_TEST(test_depth)
{
	ad_autofree char *text = NULL;
	struct json_object *value = NULL;
	char levels[AD_JSON_MAX_DEPTH * 2 + 3];

	memset(levels, '[', AD_JSON_MAX_DEPTH);
	memset(levels + AD_JSON_MAX_DEPTH, ']', AD_JSON_MAX_DEPTH);
	levels[AD_JSON_MAX_DEPTH * 2] = '\0';
	ad_json_free(parse(levels));
	memset(levels, '[', AD_JSON_MAX_DEPTH + 1);
	memset(levels + AD_JSON_MAX_DEPTH + 1, ']', AD_JSON_MAX_DEPTH + 1);
	ck_assert_int_eq(ad_json_parse(levels, sizeof(levels) - 1, &value, NULL),
			 AGENTD_ERR_INVALID);
	text = repeat("", "[", 200000, "");
	ck_assert_int_eq(ad_json_parse(text, strlen(text), &value, NULL), AGENTD_ERR_INVALID);
	agentd_free(text);
	text = repeat("", "{\"a\":", 500000, "");
	ck_assert_int_eq(ad_json_parse(text, strlen(text), &value, NULL), AGENTD_ERR_INVALID);
}
END_TEST

START_TEST(test_key_bounds)
{
	ad_autofree char *text = many_keys(AD_JSON_MAX_KEYS),
			 *more = many_keys(AD_JSON_MAX_KEYS + 1), *longest, *longer, *huge;
	struct json_object *value = NULL;
	const struct json_object *member;
	uint64_t started = cpu_ns(), number;

	ck_assert_int_eq(ad_json_parse(text, strlen(text), &value, NULL), 0);
	if (!unit_instrumented())
		ck_assert_uint_lt(cpu_ns() - started, 50000000);
	ck_assert(ad_json_member(value, "key9999", &member));
	ck_assert_int_eq(ad_json_get_u64(member, "", &number, NULL), 0);
	ck_assert_uint_eq(number, 9999);
	ad_json_free(value);
	ck_refused(ad_json_parse(more, strlen(more), &value, &refused), AGENTD_ERR_INVALID, "",
		   "more than 10000 keys at byte");
	longest = repeat("{\"", "k", 2 + AD_JSON_MAX_KEY_BYTES, "\":1}");
	ad_json_free(parse(longest));
	longer = repeat("{\"", "k", 3 + AD_JSON_MAX_KEY_BYTES, "\":1}");
	ck_refused(ad_json_parse(longer, strlen(longer), &value, &refused), AGENTD_ERR_INVALID, "",
		   "key longer than 4096 bytes at byte 1");
	huge = repeat("{\"", "k", 1 << 20, "\":1}");
	ck_assert_int_eq(ad_json_parse(huge, strlen(huge), &value, NULL), AGENTD_ERR_INVALID);
}
END_TEST

START_TEST(test_text_bounds)
{
	ad_autofree char *most = repeat("\"", "x", AD_JSON_MAX_BYTES - 1, "\""),
			 *more = repeat("\"", "x", AD_JSON_MAX_BYTES, "\""),
			 *much = repeat("\"", "x", 5 << 20, "\"");
	struct json_object *value = NULL;
	long before;

	ad_json_free(parse(most));
	ck_refused(ad_json_parse(more, strlen(more), &value, &refused), AGENTD_ERR_INVALID, "",
		   "text of 1048577 bytes, at most 1048576 are accepted");
	before = peak_kib();
	ck_assert_int_eq(ad_json_parse(much, strlen(much), &value, NULL), AGENTD_ERR_INVALID);
	if (!unit_instrumented())
		ck_assert_int_le(peak_kib() - before, 1024);
}
END_TEST

/* Many digits cost no more than reading them. */
START_TEST(test_long_numbers)
{
	ad_autofree char *digits = repeat("0.", "123456789", 1000000, ""),
			 *integer = repeat("", "9", 1000000, ""),
			 *zeros = repeat("1e", "0", 1000000, "5");
	struct json_object *value = NULL;
	uint64_t started = cpu_ns();
	char what[64];

	value = parse(digits);
	ad_json_describe(value, what, sizeof(what));
	ck_assert_str_eq(what, "floating point `0.12345678912345678`");
	ad_json_free(value);
	ck_refused(ad_json_parse(integer, strlen(integer), &value, &refused), AGENTD_ERR_INVALID,
		   "", "number out of range");
	value = parse(zeros);
	ad_json_describe(value, what, sizeof(what));
	ck_assert_str_eq(what, "floating point `100000.0`");
	ad_json_free(value);
	if (!unit_instrumented())
		ck_assert_uint_lt(cpu_ns() - started, 150000000);
}
END_TEST

/* ---- flat */

START_TEST(test_flat)
{
	const char text[] =
		"{\"s\":\"x\",\"n\":5,\"o\":{\"a\":{\"b\":1}},\"l\":[[1],{}],\"z\":null}";
	const struct json_object *member;
	ad_autobuf struct ad_buf seen = { 0 };
	struct json_object *value = NULL;

	ck_assert_int_eq(ad_json_parse_flat(text, sizeof(text) - 1, &value, NULL), 0);
	ck_assert_int_eq(ad_json_each_member(value, "", note_member, &seen, NULL), 0);
	ck_assert_str_eq(seen.data, "s@/s=4 n@/n=2 o@/o=6 l@/l=5 z@/z=0 ");
	ck_assert(ad_json_member(value, "o", &member));
	ck_assert(!ad_json_member(member, "a", &member));
	ad_json_free(value);
}
END_TEST

static const struct {
	const char *text, *pointer, *message;
} flat_bad[] = {
	{ "[{\"a\":1}]", "", "invalid type: sequence, expected an object" },
	{ " \n[1,[2]]", "", "invalid type: sequence, expected an object" },
	{ "null", "", "invalid type: null, expected an object" },
	{ "\"x\"", "", "invalid type: string \"x\", expected an object" },
	{ "7", "", "invalid type: integer `7`, expected an object" },
	{ "{\"o\":{\"a\":1,\"b\":[],\"a\":2}}", "/o/a", "duplicate field `a`" },
	{ "{\"o\":[{\"x\":{\"a\":1,\"a\":2}}]}", "/o/0/x/a", "duplicate field `a`" },
	{ "{\"o\":{\"a\":\"\xff\"}}", "/o/a", "invalid UTF-8" },
	{ "{\"o\":[1e999]}", "/o/0", "number out of range" },
	{ "[{\"a\":1,\"a\":2}]", "/0/a", "duplicate field `a`" },
};

START_TEST(test_flat_bad)
{
	struct json_object *value = NULL;
	const char *text = flat_bad[_i].text;

	ck_refused(ad_json_parse_flat(text, strlen(text), &value, &refused), AGENTD_ERR_INVALID,
		   flat_bad[_i].pointer, flat_bad[_i].message);
	ck_assert_ptr_null(value);
}
END_TEST

/* What costs json-c most for a byte of text. */
static const char *const heavy[] = { "{},", "[],", "0,", "[{}],", "\"\"," };

START_TEST(test_flat_memory)
{
	ad_autofree char *text = repeat("{\"x\":[", heavy[_i], 1000000, "0]}");
	struct json_object *value = NULL;
	uint64_t started = cpu_ns();
	long before = peak_kib();

	ck_assert_int_eq(ad_json_parse_flat(text, strlen(text), &value, NULL), 0);
	ad_json_free(value);
	if (!unit_instrumented()) {
		ck_assert_int_lt(peak_kib() - before, 1024);
		ck_assert_uint_lt(cpu_ns() - started, 100000000);
	}
}
END_TEST

/* ---- writing */

static const char *const round_trips[] = {
	"null",
	"true",
	"false",
	"0",
	"-5",
	"18446744073709551615",
	"-9223372036854775808",
	"1.5",
	"-0.0",
	"\"a\\\"\\\\/\\n\\t\\u0001\\u0000\x7f\xc3\xa4\"",
	"[]",
	"{}",
	"[1,[],{\"a\":[null]}]",
	"{\"b\":1,\"a\":\"x\",\"\\u0007\":{}}",
};

START_TEST(test_to_text)
{
	char *text = NULL;
	size_t len = 0;

	ck_assert_int_eq(ad_json_to_text(parse(round_trips[_i]), true, &text, &len, NULL), 0);
	ck_assert_str_eq(text, round_trips[_i]);
	ck_assert_uint_eq(len, strlen(text));
	free(text);
}
END_TEST

START_TEST(test_build)
{
	struct json_object *object = ad_json_object(), *array = ad_json_array();
	char *text = NULL, key[16];
	bool ok = true;

	ok = ad_json_add_u64(array, NULL, UINT64_MAX) && ok;
	ok = ad_json_add_i64(array, NULL, INT64_MIN) && ok;
	ok = ad_json_add_bool(array, NULL, true) && ok;
	ok = ad_json_add_string(array, NULL, "x/y") && ok;
	ok = ad_json_add_value(object, "list", array) && ok;
	ok = ad_json_add_value(object, "none", parse("null")) && ok;
	ck_assert_int_eq(ad_json_to_text(object, ok, &text, NULL, NULL), 0);
	ck_assert_str_eq(text, "{\"list\":[18446744073709551615,-9223372036854775808,true,"
			       "\"x/y\"],\"none\":null}");
	free(text);
	/* Enough members to grow the table some times. */
	object = ad_json_object();
	for (int i = 0; i < 1000 && ok; i++) {
		snprintf(key, sizeof(key), "k%d", i);
		ok = ad_json_add_i64(object, key, i);
	}
	ck_assert_int_eq(ad_json_to_text(object, ok, &text, NULL, NULL), 0);
	ck_assert_ptr_nonnull(strstr(text, "\"k999\":999}"));
	free(text);
}
END_TEST

START_TEST(test_build_failed)
{
	struct json_object *object = ad_json_object();
	char *text = NULL;

	ck_assert(!ad_json_add_value(object, "a", NULL));
	ck_assert(!ad_json_add_value(NULL, "a", ad_json_array()));
	ck_assert(!ad_json_add_string(NULL, "a", "x"));
	ck_assert(!ad_json_add_string(object, "a", NULL));
	ck_assert(!ad_json_add_u64(NULL, NULL, 1));
	ck_refused(ad_json_to_text(object, false, &text, NULL, &refused), AGENTD_ERR_NOMEM, "",
		   "out of memory");
	ck_refused(ad_json_to_text(NULL, true, &text, NULL, &refused), AGENTD_ERR_NOMEM, "",
		   "out of memory");
	ck_assert_ptr_null(text);
}
END_TEST

static const struct {
	const char *text, *written;
} repaired[] = {
	{ "plain", "plain" },
	{ "a\xff"
	  "b",
	  "a\xef\xbf\xbd"
	  "b" },
	{ "\xff\xfe", "\xef\xbf\xbd\xef\xbf\xbd" },
	{ "\xc3", "\xef\xbf\xbd" },
	{ "\xc3(", "\xef\xbf\xbd(" },
	{ "\xe2\x82", "\xef\xbf\xbd" },
	{ "\xe2\x82\xe2\x82\xac", "\xef\xbf\xbd\xe2\x82\xac" },
	{ "\xed\xa0\x80x", "\xef\xbf\xbdx" },
	{ "ok\xc3\xa4\x80", "ok\xc3\xa4\xef\xbf\xbd" },
};

START_TEST(test_repair)
{
	struct json_object *array = ad_json_array();
	bool ok = ad_json_add_string(array, NULL, repaired[_i].text);
	ad_autobuf struct ad_buf want = { 0 };
	char *text = NULL;

	ad_buf_printf(&want, "[\"%s\"]", repaired[_i].written);
	ck_assert_int_eq(ad_json_to_text(array, ok, &text, NULL, NULL), 0);
	ck_assert_str_eq(text, want.data);
	free(text);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("json");

	tcase_add_loop_test(tc, test_good, 0, (int)AD_COUNT(good));
	tcase_add_loop_test(tc, test_bad, 0, (int)AD_COUNT(bad));
	tcase_add_test(tc, test_nul_byte);
	tcase_add_test(tc, test_length);
	tcase_add_loop_test(tc, test_describe, 0, (int)AD_COUNT(described));
	tcase_add_loop_test(tc, test_describe_room, 0, (int)AD_COUNT(described));
	tcase_add_test(tc, test_describe_long);
	tcase_add_test(tc, test_locale);
	tcase_add_loop_test(tc, test_get_u64, 0, (int)AD_COUNT(u64s));
	tcase_add_test(tc, test_get_string);
	tcase_add_test(tc, test_get_bool);
	tcase_add_test(tc, test_each_member);
	tcase_add_test(tc, test_each_item);
	tcase_add_test(tc, test_depth);
	tcase_add_test(tc, test_key_bounds);
	tcase_add_test(tc, test_text_bounds);
	tcase_add_test(tc, test_long_numbers);
	tcase_add_test(tc, test_flat);
	tcase_add_loop_test(tc, test_flat_bad, 0, (int)AD_COUNT(flat_bad));
	tcase_add_loop_test(tc, test_flat_memory, 0, (int)AD_COUNT(heavy));
	tcase_add_loop_test(tc, test_to_text, 0, (int)AD_COUNT(round_trips));
	tcase_add_test(tc, test_build);
	tcase_add_test(tc, test_build_failed);
	tcase_add_loop_test(tc, test_repair, 0, (int)AD_COUNT(repaired));
	return unit_run("json", tc);
}
