/* SPDX-License-Identifier: MIT */
#include "core/params.h"

#include <string.h>
#include <unistd.h>

#include "json/json.h"

/* A quarter of the largest stack the kernel lends to arguments (6 MiB of 8):
 * beyond that no command line was ever meant. execve() has the last word. */
enum { ARGV_MAX_BYTES = 2 << 20, ARG_MAX_PAGES = 32 };

static const char parse_prefix[] = "Failed to parse shell.exec parameters: ";

/* ---- checks */

size_t ad_params_arg_max(void)
{
	return ARG_MAX_PAGES * (size_t)getpagesize() - 1; /* MAX_ARG_STRLEN of binfmts.h */
}

/* Bytes of the White_Space character (Unicode) that text starts with, or 0. */
static size_t white_space(const char *text, size_t len)
{
	static const char *const spaces[] = {
		"\t",       "\n",     "\v",     "\f",     "\r",     " ",      "\xc2\x85",
		"\xc2\xa0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004",
		"\u2005",   "\u2006", "\u2007", "\u2008", "\u2009", "\u200a", "\u2028",
		"\u2029",   "\u202f", "\u205f", "\u3000",
	};

	for (size_t i = 0; i < AD_COUNT(spaces); i++) {
		size_t size = strlen(spaces[i]);

		if (size <= len && memcmp(text, spaces[i], size) == 0)
			return size;
	}
	return 0;
}

bool ad_params_blank(const char *text)
{
	size_t len = strlen(text), size;

	while ((size = white_space(text, len)) > 0) {
		text += size;
		len -= size;
	}
	return len == 0;
}

size_t ad_params_trim_end(const char *text, size_t len)
{
	while (len > 0) {
		size_t last = len - 1;

		while (last > 0 && ((unsigned char)text[last] & 0xc0) == 0x80)
			last--;
		if (white_space(text + last, len - last) != len - last)
			break;
		len = last;
	}
	return len;
}

static int check_script(const char *script, const char *pointer, agentd_error **reterr)
{
	size_t len = strlen(script);

	if (ad_params_blank(script))
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
			       "Shell command must not be empty");
	if (len > ad_params_arg_max())
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
			       "Shell command of %zu bytes is too long, the system takes %zu", len,
			       ad_params_arg_max());
	return 0;
}

static int check_argv(const char *const *argv, agentd_error **reterr)
{
	size_t total = 0;

	if (!argv[0] || !*argv[0])
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "argv[0] must not be empty");
	for (size_t i = 0; argv[i]; i++) {
		size_t len = strlen(argv[i]);

		if (len > ad_params_arg_max())
			return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
				       "argv[%zu] of %zu bytes is too long, the system takes %zu",
				       i, len, ad_params_arg_max());
		total += len + 1 + sizeof(char *);
		if (total > ARGV_MAX_BYTES)
			return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
				       "argv is too long, at most %d bytes are accepted",
				       ARGV_MAX_BYTES);
	}
	return 0;
}

/* ---- making */

static int make(const char *script, const char *const *argv, uint64_t timeout_ms,
		agentd_params **ret, agentd_error **reterr)
{
	agentd_params *params = calloc(1, sizeof(*params));

	if (!params)
		return ad_fail_nomem(reterr);
	atomic_init(&params->refs, 1);
	params->timeout_ms = timeout_ms;
	if (script)
		params->script = strdup(script);
	else
		params->argv = ad_strv_dup(argv);
	if (!params->script && !params->argv) {
		agentd_params_unref(params);
		return ad_fail_nomem(reterr);
	}
	*ret = params;
	return 0;
}

static int fail_null(agentd_error **reterr, const char *argument)
{
	return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s must not be NULL", argument);
}

int agentd_params_new_shell(const char *script, uint64_t timeout_ms, agentd_params **ret,
			    agentd_error **reterr)
{
	AD_KEEP_ERRNO;
	int r;

	if (!script || !ret)
		return fail_null(reterr, script ? "ret" : "script");
	r = check_script(script, NULL, reterr);
	return r < 0 ? r :
		       make(script, NULL, timeout_ms ? timeout_ms : AD_PARAMS_TIMEOUT_MS, ret,
			    reterr);
}

int agentd_params_new_argv(const char *const *argv, uint64_t timeout_ms, agentd_params **ret,
			   agentd_error **reterr)
{
	AD_KEEP_ERRNO;
	int r;

	if (!argv || !ret)
		return fail_null(reterr, argv ? "ret" : "argv");
	r = check_argv(argv, reterr);
	return r < 0 ? r :
		       make(NULL, argv, timeout_ms ? timeout_ms : AD_PARAMS_TIMEOUT_MS, ret,
			    reterr);
}

struct fields {
	const char *script;
	uint64_t timeout_ms;
};

/* In the order of the text, as serde does: the first error counts. */
static int read_field(const char *key, const struct json_object *value, const char *pointer,
		      void *userdata, agentd_error **reterr)
{
	struct fields *fields = userdata;

	if (strcmp(key, "command") == 0)
		return ad_json_get_string(value, pointer, &fields->script, reterr);
	if (strcmp(key, "timeout_ms") == 0)
		return ad_json_get_u64(value, pointer, &fields->timeout_ms, reterr);
	return 0;
}

static int read_fields(const struct json_object *object, struct fields *fields,
		       agentd_error **reterr)
{
	int r = ad_json_each_member(object, "", read_field, fields, reterr);

	if (r == 0 && !fields->script)
		r = ad_fail(reterr, AGENTD_ERR_INVALID, "/command", "missing field `command`");
	return r;
}

int agentd_params_parse(const char *json, size_t len, agentd_params **ret, agentd_error **reterr)
{
	ad_autojson struct json_object *object = NULL;
	struct fields fields = { .timeout_ms = AD_PARAMS_TIMEOUT_MS };
	AD_KEEP_ERRNO;
	int r;

	if (!json || !ret)
		return fail_null(reterr, json ? "ret" : "json");
	r = ad_json_parse_flat(json, len, &object, reterr);
	if (r == 0)
		r = read_fields(object, &fields, reterr);
	if (r < 0) {
		ad_error_prefix(reterr, "%s", parse_prefix);
		return r;
	}
	r = check_script(fields.script, "/command", reterr);
	if (r < 0)
		return r;
	return make(fields.script, NULL, fields.timeout_ms ? fields.timeout_ms : 1, ret, reterr);
}

agentd_params *agentd_params_ref(agentd_params *params)
{
	if (params)
		ad_ref(&params->refs);
	return params;
}

void agentd_params_unref(agentd_params *params)
{
	if (!params || !ad_unref(&params->refs))
		return;
	agentd_free(params->script);
	agentd_free(params->argv);
	agentd_free(params);
}

/* ---- writing */

/* What is not text has no JSON form, and a repaired command is another one. */
static bool add_text(struct json_object *to, const char *key, const char *text, bool *is_text)
{
	*is_text = *is_text && ad_utf8_valid(text, strlen(text));
	return *is_text && ad_json_add_string(to, key, text);
}

int agentd_params_to_json(const agentd_params *params, char **ret, size_t *ret_len,
			  agentd_error **reterr)
{
	struct json_object *object, *argv;
	AD_KEEP_ERRNO;
	bool ok = true, is_text = true;

	if (!params || !ret)
		return fail_null(reterr, params ? "ret" : "params");
	object = ad_json_object();
	if (params->script) {
		ok = add_text(object, "command", params->script, &is_text);
	} else {
		argv = ad_json_array();
		for (size_t i = 0; params->argv[i] && ok; i++)
			ok = add_text(argv, NULL, params->argv[i], &is_text);
		ok = ad_json_add_value(object, "argv", argv) && ok;
	}
	if (!is_text) {
		ad_json_free(object);
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "the command is not UTF-8, so it has no JSON form");
	}
	ok = ok && ad_json_add_u64(object, "timeout_ms", params->timeout_ms);
	return ad_json_to_text(object, ok, ret, ret_len, reterr);
}

const char *agentd_params_schema(void)
{
	return "{\"$schema\":\"https://json-schema.org/draft/2020-12/schema\","
	       "\"title\":\"shell.exec parameters\","
	       "\"type\":\"object\","
	       "\"properties\":{"
	       "\"command\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":131071,"
	       "\"description\":\"Shell command to run. Must hold more than white space and no "
	       "NUL.\"},"
	       "\"timeout_ms\":{\"type\":\"integer\",\"minimum\":0,"
	       "\"maximum\":18446744073709551615,\"default\":30000,"
	       "\"description\":\"Milliseconds after which the command is killed; 0 counts "
	       "as 1.\"}},"
	       "\"required\":[\"command\"]}";
}
