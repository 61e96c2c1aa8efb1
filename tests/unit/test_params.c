/* SPDX-License-Identifier: MIT */
#include "unit.h"

#include <errno.h>
#include <unistd.h>

#include "core/params.h"
#include "corpus.h"
#include "json/json.h"

#define PREFIX "Failed to parse shell.exec parameters: "

static agentd_params *parse(const char *json)
{
	agentd_params *params = NULL;
	agentd_error *err = NULL;

	ck_assert_msg(agentd_params_parse(json, strlen(json), &params, &err) == 0, "%s: %s", json,
		      agentd_error_message(err));
	ck_assert_ptr_null(err);
	return params;
}

/* ---- what is accepted */

static const struct {
	const char *json, *script;
	uint64_t timeout_ms;
} good[] = {
	{ "{\"command\":\"echo hello\"}", "echo hello", 30000 },
	{ "{\"command\":\"sleep 5\",\"timeout_ms\":60000}", "sleep 5", 60000 },
	{ "{\"timeout_ms\":1,\"command\":\"x\"}", "x", 1 },
	{ "{\"command\":\"x\",\"timeout_ms\":0}", "x", 1 },
	{ "{\"command\":\"x\",\"timeout_ms\":4294967296}", "x", UINT64_C(1) << 32 },
	{ "{\"command\":\"x\",\"timeout_ms\":9223372036854775808}", "x", UINT64_C(1) << 63 },
	{ "{\"command\":\"x\",\"timeout_ms\":18446744073709551615}", "x", UINT64_MAX },
	{ "{\"command\":\"  x \\n\"}", "  x \n", 30000 },
	{ "{\"command\":\"\\u200b\"}", "\xe2\x80\x8b", 30000 },
	{ "{\"command\":\"\\ufeff\"}", "\xef\xbb\xbf", 30000 },
	{ "{\"command\":\"\\u00e4\\ud83d\\ude00\"}", "\xc3\xa4\xf0\x9f\x98\x80", 30000 },
	{ "{\"command\":\"x\",\"workdir\":\"/tmp\\u0000\",\"env\":{\"A=B\":null}}", "x", 30000 },
	{ "{\"command\":\"x\",\"Command\":7,\"TIMEOUT_MS\":\"x\"}", "x", 30000 },
	{ "{\"command\":\"x\",\"a\":{\"command\":1},\"b\":[{\"timeout_ms\":null}]}", "x", 30000 },
};

START_TEST(test_good)
{
	agentd_params *params = parse(good[_i].json), *again;
	char *text = NULL;
	size_t len;

	ck_assert_str_eq(params->script, good[_i].script);
	ck_assert_ptr_null(params->argv);
	ck_assert_uint_eq(params->timeout_ms, good[_i].timeout_ms);
	ck_assert_int_eq(agentd_params_to_json(params, &text, &len, NULL), 0);
	ck_assert_uint_eq(len, strlen(text));
	again = parse(text);
	ck_assert_str_eq(again->script, params->script);
	ck_assert_uint_eq(again->timeout_ms, params->timeout_ms);
	agentd_free(text);
	agentd_params_unref(again);
	agentd_params_unref(params);
}
END_TEST

/* ---- what is refused */

static const struct {
	const char *json, *pointer, *message;
} bad[] = {
	{ "{}", "/command", PREFIX "missing field `command`" },
	{ "{\"timeout_ms\":5000}", "/command", PREFIX "missing field `command`" },
	{ "{\"Command\":\"x\"}", "/command", PREFIX "missing field `command`" },
	{ "{\"command\":12345}", "/command",
	  PREFIX "invalid type: integer `12345`, expected a string" },
	{ "{\"command\":null}", "/command", PREFIX "invalid type: null, expected a string" },
	{ "{\"command\":[\"x\"]}", "/command", PREFIX "invalid type: sequence, expected a string" },
	{ "{\"command\":{}}", "/command", PREFIX "invalid type: map, expected a string" },
	{ "{\"command\":1.5}", "/command",
	  PREFIX "invalid type: floating point `1.5`, expected a string" },
	{ "{\"command\":\"x\",\"timeout_ms\":null}", "/timeout_ms",
	  PREFIX "invalid type: null, expected u64" },
	{ "{\"command\":\"x\",\"timeout_ms\":-1}", "/timeout_ms",
	  PREFIX "invalid value: integer `-1`, expected u64" },
	{ "{\"command\":\"x\",\"timeout_ms\":1.5}", "/timeout_ms",
	  PREFIX "invalid type: floating point `1.5`, expected u64" },
	{ "{\"command\":\"x\",\"timeout_ms\":5000.0}", "/timeout_ms",
	  PREFIX "invalid type: floating point `5000.0`, expected u64" },
	{ "{\"command\":\"x\",\"timeout_ms\":1e4}", "/timeout_ms",
	  PREFIX "invalid type: floating point `10000.0`, expected u64" },
	{ "{\"command\":\"x\",\"timeout_ms\":18446744073709551616}", "/timeout_ms",
	  PREFIX "invalid type: floating point `18446744073709552000.0`, expected u64" },
	{ "{\"command\":\"x\",\"timeout_ms\":\"5000\"}", "/timeout_ms",
	  PREFIX "invalid type: string \"5000\", expected u64" },
	{ "{\"command\":\"x\",\"timeout_ms\":true}", "/timeout_ms",
	  PREFIX "invalid type: boolean `true`, expected u64" },
	{ "{\"timeout_ms\":-1}", "/timeout_ms",
	  PREFIX "invalid value: integer `-1`, expected u64" },
	{ "{\"command\":\"a\",\"command\":\"b\"}", "/command",
	  PREFIX "duplicate field `command` at byte 15" },
	{ "{\"timeout_ms\":1,\"timeout_ms\":2,\"command\":\"x\"}", "/timeout_ms",
	  PREFIX "duplicate field `timeout_ms`" },
	{ "{\"command\":\"x\",\"u\":{\"k\":1,\"k\":1}}", "/u/k", PREFIX "duplicate field `k`" },
	{ "[\"x\"]", "", PREFIX "invalid type: sequence, expected an object" },
	{ "\"x\"", "", PREFIX "invalid type: string \"x\", expected an object" },
	{ "null", "", PREFIX "invalid type: null, expected an object" },
	{ "", "", PREFIX "unexpected end of text" },
	{ "{\"command\":\"a\\u0000b\"}", "/command",
	  PREFIX "invalid value: string \"a\\0b\", expected a string without NUL" },
	{ "{\"command\":\"\"}", "/command", "Shell command must not be empty" },
	{ "{\"command\":\"   \\t\\n   \"}", "/command", "Shell command must not be empty" },
};

START_TEST(test_bad)
{
	agentd_params *params = NULL;

	ck_refused(agentd_params_parse(bad[_i].json, strlen(bad[_i].json), &params, &refused),
		   AGENTD_ERR_INVALID, bad[_i].pointer, bad[_i].message);
	ck_assert_int_eq(agentd_params_parse(bad[_i].json, strlen(bad[_i].json), &params, NULL),
			 AGENTD_ERR_INVALID);
	ck_assert_ptr_null(params);
}
END_TEST

/* Word for word: nothing stands before or behind. */
START_TEST(test_whole_message)
{
	agentd_params *params = NULL;
	agentd_error *err = NULL;

	ck_assert_int_lt(agentd_params_parse("{}", 2, &params, &err), 0);
	ck_assert_str_eq(agentd_error_message(err), PREFIX "missing field `command`");
	agentd_error_unref(err);
	ck_assert_int_lt(agentd_params_parse("{\"command\":\" \"}", 15, &params, &err), 0);
	ck_assert_str_eq(agentd_error_message(err), "Shell command must not be empty");
	agentd_error_unref(err);
}
END_TEST

/* ---- white space: Unicode's list, each alone, and nothing else of the BMP */

static size_t utf8_of(unsigned int code, char *ret)
{
	if (code < 0x80) {
		ret[0] = (char)code;
		return 1;
	}
	if (code < 0x800) {
		ret[0] = (char)(0xc0 | code >> 6);
		ret[1] = (char)(0x80 | (code & 0x3f));
		return 2;
	}
	ret[0] = (char)(0xe0 | code >> 12);
	ret[1] = (char)(0x80 | (code >> 6 & 0x3f));
	ret[2] = (char)(0x80 | (code & 0x3f));
	return 3;
}

static bool listed(unsigned int code)
{
	static const unsigned int list[][2] = {
		{ 0x09, 0x0d },     { 0x20, 0x20 },     { 0x85, 0x85 },     { 0xa0, 0xa0 },
		{ 0x1680, 0x1680 }, { 0x2000, 0x200a }, { 0x2028, 0x2029 }, { 0x202f, 0x202f },
		{ 0x205f, 0x205f }, { 0x3000, 0x3000 },
	};

	for (size_t i = 0; i < AD_COUNT(list); i++) {
		if (code >= list[i][0] && code <= list[i][1])
			return true;
	}
	return false;
}

START_TEST(test_white_space)
{
	char text[16];

	for (unsigned int code = 1; code < 0x10000; code++) {
		size_t len;

		if (code >= 0xd800 && code <= 0xdfff)
			continue;
		len = utf8_of(code, text);
		text[len] = '\0';
		ck_assert_msg(ad_params_blank(text) == listed(code), "U+%04X", code);
		ck_assert_uint_eq(ad_params_trim_end(text, len), listed(code) ? 0 : len);
		memmove(text + 1, text, len + 1);
		text[0] = 'x';
		ck_assert(!ad_params_blank(text));
		ck_assert_uint_eq(ad_params_trim_end(text, len + 1), listed(code) ? 1 : len + 1);
	}
	ck_assert(ad_params_blank(""));
	ck_assert(ad_params_blank(" \t\xe3\x80\x80\xc2\xa0\r\n"));
	ck_assert_uint_eq(ad_params_trim_end("", 0), 0);
	ck_assert_uint_eq(ad_params_trim_end(" a \n\xe2\x80\xa8\n", 8), 2);
	ck_assert_uint_eq(ad_params_trim_end("a\0 ", 3), 2);
}
END_TEST

/* ---- lengths */

static char *letters(size_t count)
{
	char *text = malloc(count + 1);

	ck_assert_ptr_nonnull(text);
	memset(text, 'x', count);
	text[count] = '\0';
	return text;
}

START_TEST(test_lengths)
{
	size_t most = (size_t)sysconf(_SC_PAGESIZE) * 32 - 1;
	ad_autofree char *fits = letters(most), *long_one = letters(most + 1);
	const char *argv[] = { "true", fits, NULL }, *long_argv[] = { "true", long_one, NULL };
	const char *many[65];
	agentd_params *params = NULL;

	ck_assert_uint_eq(ad_params_arg_max(), most);
	ck_assert_int_eq(agentd_params_new_shell(fits, 0, &params, NULL), 0);
	ck_assert_uint_eq(strlen(params->script), most);
	agentd_params_unref(params);
	ck_refused(agentd_params_new_shell(long_one, 0, &params, &refused), AGENTD_ERR_INVALID, "",
		   "Shell command of 131072 bytes is too long, the system takes 131071");
	ck_assert_int_eq(agentd_params_new_argv(argv, 0, &params, NULL), 0);
	agentd_params_unref(params);
	ck_refused(agentd_params_new_argv(long_argv, 0, &params, &refused), AGENTD_ERR_INVALID, "",
		   "argv[1] of 131072 bytes is too long");
	for (size_t i = 0; i < 64; i++)
		many[i] = fits;
	many[64] = NULL;
	ck_refused(agentd_params_new_argv(many, 0, &params, &refused), AGENTD_ERR_INVALID, "",
		   "argv is too long");
}
END_TEST

/* ---- the object */

START_TEST(test_shell)
{
	agentd_params *params = NULL;
	char *text = NULL;

	errno = EDOM;
	ck_assert_int_eq(agentd_params_new_shell("echo \"x\"", 0, &params, NULL), 0);
	ck_assert_uint_eq(params->timeout_ms, 30000);
	ck_assert_int_eq(agentd_params_to_json(params, &text, NULL, NULL), 0);
	ck_assert_str_eq(text, "{\"command\":\"echo \\\"x\\\"\",\"timeout_ms\":30000}");
	agentd_free(text);
	ck_assert_ptr_eq(agentd_params_ref(params), params);
	agentd_params_unref(params);
	agentd_params_unref(params);
	ck_refused(agentd_params_new_shell(" ", 0, &params, &refused), AGENTD_ERR_INVALID, "",
		   "Shell command must not be empty");
	ck_assert_int_eq(agentd_params_new_shell("\xff", 7, &params, NULL), 0);
	ck_assert_uint_eq(params->timeout_ms, 7);
	ck_refused(agentd_params_to_json(params, &text, NULL, &refused), AGENTD_ERR_INVALID, "",
		   "the command is not UTF-8");
	agentd_params_unref(params);
	ck_assert_int_eq(errno, EDOM);
}
END_TEST

START_TEST(test_argv)
{
	const char *argv[] = { "printf", "", "a b", NULL }, *empty[] = { "", NULL },
		   *none[] = { NULL }, *bytes[] = { "x", "\xff", NULL };
	agentd_params *params = NULL;
	char *text = NULL;

	ck_assert_int_eq(agentd_params_new_argv(argv, UINT64_MAX, &params, NULL), 0);
	ck_assert_ptr_null(params->script);
	ck_assert_str_eq(params->argv[2], "a b");
	ck_assert_ptr_null(params->argv[3]);
	ck_assert_int_eq(agentd_params_to_json(params, &text, NULL, NULL), 0);
	ck_assert_str_eq(text, "{\"argv\":[\"printf\",\"\",\"a b\"],"
			       "\"timeout_ms\":18446744073709551615}");
	agentd_free(text);
	agentd_params_unref(params);
	ck_refused(agentd_params_new_argv(empty, 0, &params, &refused), AGENTD_ERR_INVALID, "",
		   "argv[0] must not be empty");
	ck_refused(agentd_params_new_argv(none, 0, &params, &refused), AGENTD_ERR_INVALID, "",
		   "argv[0] must not be empty");
	ck_assert_int_eq(agentd_params_new_argv(bytes, 0, &params, NULL), 0);
	ck_refused(agentd_params_to_json(params, &text, NULL, &refused), AGENTD_ERR_INVALID, "",
		   "not UTF-8");
	agentd_params_unref(params);
}
END_TEST

START_TEST(test_null)
{
	const char *argv[] = { "x", NULL };
	agentd_params *params = NULL;
	char *text = NULL;

#define NULLS(call, message) ck_refused(call, AGENTD_ERR_INVALID, "", message)
	NULLS(agentd_params_parse(NULL, 0, &params, &refused), "json must not be NULL");
	NULLS(agentd_params_parse("{}", 2, NULL, &refused), "ret must not be NULL");
	NULLS(agentd_params_new_shell(NULL, 0, &params, &refused), "script must not be NULL");
	NULLS(agentd_params_new_shell("x", 0, NULL, &refused), "ret must not be NULL");
	NULLS(agentd_params_new_argv(NULL, 0, &params, &refused), "argv must not be NULL");
	NULLS(agentd_params_new_argv(argv, 0, NULL, &refused), "ret must not be NULL");
	NULLS(agentd_params_to_json(NULL, &text, NULL, &refused), "params must not be NULL");
	ck_assert_int_eq(agentd_params_new_shell("x", 0, &params, NULL), 0);
	NULLS(agentd_params_to_json(params, NULL, NULL, &refused), "ret must not be NULL");
#undef NULLS
	agentd_params_unref(params);
	agentd_params_unref(NULL);
	ck_assert_ptr_null(agentd_params_ref(NULL));
}
END_TEST

START_TEST(test_schema)
{
	const char *schema = agentd_params_schema();
	const struct json_object *member;
	struct json_object *value = NULL;

	ck_assert_int_eq(ad_json_parse(schema, strlen(schema), &value, NULL), 0);
	ck_assert(ad_json_member(value, "properties", &member));
	ck_assert(ad_json_member(member, "timeout_ms", &member));
	ck_assert(ad_json_member(member, "maximum", &member));
	uint64_t most;

	ck_assert_int_eq(ad_json_get_u64(member, "", &most, NULL), 0);
	ck_assert_uint_eq(most, UINT64_MAX);
	ad_json_free(value);
}
END_TEST

/* ---- the corpus */

static const struct {
	const char *name;
	const char *message; /* NULL: accepted */
	const char *pointer;
} corpus[] = {
	{ "01_empty", PREFIX "unexpected end of text", "" },
	{ "02_ws", PREFIX "unexpected end of text", "" },
	{ "03_truncated", PREFIX "unexpected end of text", "" },
	{ "04_trailing", "expected the end of the text at byte 22", "" },
	{ "05_array_top", "invalid type: sequence, expected an object", "" },
	{ "06_null", "invalid type: null, expected an object", "" },
	{ "07_dup_keys", PREFIX "duplicate field `command`", "/command" },
	{ "08_dup_escaped_key", PREFIX "duplicate field `command`", "/command" },
	{ "09_deep_array", "nested deeper than 64 levels", NULL },
	{ "10_deep_object", "nested deeper than 64 levels", NULL },
	{ "11_command_5mib", "at most 1048576 are accepted", "" },
	{ "12_argmax", "Shell command of 131077 bytes is too long", "/command" },
	{ "13_nul_escape", "expected a string without NUL", "/command" },
	{ "14_raw_nul", "control character 0x00 in a string at byte 18", "/command" },
	{ "15_bad_utf8", "invalid UTF-8", "/command" },
	{ "16_lone_surrogate", "lone surrogate \\ud800", "/command" },
	{ "17_overlong", "invalid UTF-8", "/command" },
	{ "18_neg_timeout", "invalid value: integer `-1`, expected u64", "/timeout_ms" },
	{ "19_zero_timeout", NULL, NULL },
	{ "20_frac_timeout", "invalid type: floating point `1.5`, expected u64", "/timeout_ms" },
	{ "21_exp_timeout", "number out of range at byte 31", "/timeout_ms" },
	{ "22_over_timeout", NULL, NULL },
	{ "23_u32wrap", NULL, NULL },
	{ "24_str_timeout", "invalid type: string \"100\", expected u64", "/timeout_ms" },
	{ "25_bool_timeout", "invalid type: boolean `true`, expected u64", "/timeout_ms" },
	{ "26_cmd_number", "invalid type: integer `123`, expected a string", "/command" },
	{ "27_cmd_null", "invalid type: null, expected a string", "/command" },
	{ "28_cmd_empty", "Shell command must not be empty", "/command" },
	{ "29_cmd_missing", "missing field `command`", "/command" },
	{ "30_unknown_field", NULL, NULL },
	{ "31_args_type", NULL, NULL },
	{ "32_workdir_missing", NULL, NULL },
	{ "33_workdir_file", NULL, NULL },
	{ "34_workdir_rel", NULL, NULL },
	{ "35_workdir_procfd", NULL, NULL },
	{ "36_workdir_dotdot", NULL, NULL },
	{ "37_workdir_nul", NULL, NULL },
	{ "38_workdir_4097", NULL, NULL },
	{ "39_env_ld", NULL, NULL },
	{ "40_env_eq", NULL, NULL },
	{ "41_env_nul", NULL, NULL },
	{ "42_env_empty", NULL, NULL },
	{ "43_env_bashfunc", NULL, NULL },
	{ "44_lim_neg", NULL, NULL },
	{ "45_lim_huge", NULL, NULL },
	{ "46_lim_pids0", NULL, NULL },
	{ "47_scope_escape", NULL, NULL },
	{ "48_scope_root", NULL, NULL },
	{ "49_allow_ip", NULL, NULL },
	{ "50_bom", "unexpected byte order mark at byte 0", "" },
	{ "51_nan", "unexpected `N`, expected a value", "/timeout_ms" },
	{ "52_comment", "unexpected `/`", "" },
	{ "53_key_1mib", "at most 1048576 are accepted", "" },
	{ "53_key_short_of_1mib", "key longer than 4096 bytes at byte 18", "" },
	{ "54_keys_100000", "at most 1048576 are accepted", "" },
	{ "54_keys_short_of_1mib", "more than 10000 keys", "" },
	{ "55_proto", NULL, NULL },
};

START_TEST(test_corpus)
{
	size_t len = 0;
	ad_autofree char *text = corpus_text(corpus[_i].name, &len);
	agentd_params *params = NULL;
	struct corpus_cost before = corpus_cost();
	agentd_error *err = NULL;
	int r = agentd_params_parse(text, len, &params, &err);

	corpus_check_cost(before);
	if (!corpus[_i].message) {
		ck_assert_msg(r == 0, "%s: %s", corpus[_i].name, agentd_error_message(err));
		ck_assert_ptr_null(strstr(params->script, "EVIL"));
		agentd_params_unref(params);
		return;
	}
	ck_assert_int_eq(r, AGENTD_ERR_INVALID);
	ck_assert_ptr_null(params);
	ck_assert_msg(strstr(agentd_error_message(err), corpus[_i].message) != NULL, "%s: %s",
		      corpus[_i].name, agentd_error_message(err));
	if (corpus[_i].pointer)
		ck_assert_str_eq(agentd_error_pointer(err), corpus[_i].pointer);
	agentd_error_unref(err);
}
END_TEST

START_TEST(test_corpus_values)
{
	static const struct {
		const char *name;
		uint64_t timeout_ms;
	} values[] = {
		{ "19_zero_timeout", 1 },
		{ "22_over_timeout", UINT64_C(1) << 63 },
		{ "23_u32wrap", UINT64_C(1) << 32 },
		{ "30_unknown_field", 30000 },
	};

	for (size_t i = 0; i < AD_COUNT(values); i++) {
		size_t len = 0;
		ad_autofree char *text = corpus_text(values[i].name, &len);
		agentd_params *params = NULL;

		ck_assert_int_eq(agentd_params_parse(text, len, &params, NULL), 0);
		ck_assert_uint_eq(params->timeout_ms, values[i].timeout_ms);
		agentd_params_unref(params);
	}
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("params");

	tcase_add_loop_test(tc, test_good, 0, (int)AD_COUNT(good));
	tcase_add_loop_test(tc, test_bad, 0, (int)AD_COUNT(bad));
	tcase_add_test(tc, test_whole_message);
	tcase_add_test(tc, test_white_space);
	tcase_add_test(tc, test_lengths);
	tcase_add_test(tc, test_shell);
	tcase_add_test(tc, test_argv);
	tcase_add_test(tc, test_null);
	tcase_add_test(tc, test_schema);
	tcase_add_loop_test(tc, test_corpus, 0, (int)AD_COUNT(corpus));
	tcase_add_test(tc, test_corpus_values);
	return unit_run("params", tc);
}
