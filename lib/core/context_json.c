/* SPDX-License-Identifier: MIT */
/* A context from JSON: each member by the setter that the host program would call. */
#include "core/context.h"

#include <string.h>

#include "core/params.h"
#include "json/json.h"
#include "policy/policy.h"

/* A string that may be a secret: what is wrong with it is not quoted. */
static int get_secret(const struct json_object *value, const char *pointer, const char **ret,
		      agentd_error **reterr)
{
	if (ad_json_get_string(value, pointer, ret, NULL) == 0)
		return 0;
	return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
		       "invalid value, expected a string without NUL");
}

/* ---- plain strings */

typedef int (*set_text_fn)(agentd_context *ctx, const char *text, agentd_error **reterr);

static int read_text(agentd_context *ctx, const struct json_object *value, const char *pointer,
		     set_text_fn set, agentd_error **reterr)
{
	const char *text;
	int r = ad_json_get_string(value, pointer, &text, reterr);

	return r < 0 ? r : ad_error_at(set(ctx, text, reterr), pointer, reterr);
}

static int read_workdir(const struct json_object *value, const char *pointer, agentd_context *ctx,
			agentd_error **reterr)
{
	return read_text(ctx, value, pointer, agentd_context_set_workdir, reterr);
}

static int read_backend(const struct json_object *value, const char *pointer, agentd_context *ctx,
			agentd_error **reterr)
{
	return read_text(ctx, value, pointer, agentd_context_set_backend, reterr);
}

static int read_rootfs(const struct json_object *value, const char *pointer, agentd_context *ctx,
		       agentd_error **reterr)
{
	return read_text(ctx, value, pointer, agentd_context_set_rootfs, reterr);
}

static int read_trace_id(const struct json_object *value, const char *pointer, agentd_context *ctx,
			 agentd_error **reterr)
{
	return read_text(ctx, value, pointer, agentd_context_set_trace_id, reterr);
}

/* ---- objects */

static int read_policy(const struct json_object *value, const char *pointer, agentd_context *ctx,
		       agentd_error **reterr)
{
	agentd_policy *policy;
	int r = ad_policy_from_json_value(value, pointer, &policy, reterr);

	if (r < 0)
		return r;
	r = ad_error_at(agentd_context_set_policy(ctx, policy, reterr), pointer, reterr);
	agentd_policy_unref(policy);
	return r;
}

static int read_limits(const struct json_object *value, const char *pointer, agentd_context *ctx,
		       agentd_error **reterr)
{
	struct agentd_limits limits;
	int r = ad_limits_from_json(value, pointer, &limits, reterr);

	return r < 0 ? r :
		       ad_error_at(agentd_context_set_limits(ctx, &limits, reterr), pointer,
				   reterr);
}

static int read_variable(const char *key, const struct json_object *value, const char *pointer,
			 void *userdata, agentd_error **reterr)
{
	const char *text = NULL;
	int r;

	if (ad_json_type_of(value) != AD_JSON_NULL) {
		r = get_secret(value, pointer, &text, reterr);
		if (r < 0)
			return r;
	}
	return ad_error_at(agentd_context_set_env(userdata, key, text, reterr), pointer, reterr);
}

static int read_env(const struct json_object *value, const char *pointer, agentd_context *ctx,
		    agentd_error **reterr)
{
	return ad_json_each_member(value, pointer, read_variable, ctx, reterr);
}

static int read_label(const char *key, const struct json_object *value, const char *pointer,
		      void *userdata, agentd_error **reterr)
{
	const char *text;
	int r = ad_json_get_string(value, pointer, &text, reterr);

	return r < 0 ? r :
		       ad_error_at(agentd_context_set_label(userdata, key, text, reterr), pointer,
				   reterr);
}

static int read_labels(const struct json_object *value, const char *pointer, agentd_context *ctx,
		       agentd_error **reterr)
{
	return ad_json_each_member(value, pointer, read_label, ctx, reterr);
}

struct credentials {
	const char *token;
	uint64_t expires_unix_ms;
};

static int read_credential(const char *key, const struct json_object *value, const char *pointer,
			   void *userdata, agentd_error **reterr)
{
	struct credentials *credentials = userdata;

	if (strcmp(key, "token") == 0)
		return get_secret(value, pointer, &credentials->token, reterr);
	if (strcmp(key, "expires_unix_ms") == 0)
		return ad_json_get_u64(value, pointer, &credentials->expires_unix_ms, reterr);
	return ad_json_unknown_key(key, pointer, reterr);
}

static int read_credentials(const struct json_object *value, const char *pointer,
			    agentd_context *ctx, agentd_error **reterr)
{
	struct credentials credentials = { 0 };
	int r;

	if (ad_json_type_of(value) != AD_JSON_OBJECT)
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
			       "invalid type, expected an object");
	r = ad_json_each_member(value, pointer, read_credential, &credentials, reterr);
	if (r < 0)
		return r;
	if (!credentials.token)
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer, "missing field `token`");
	return ad_error_at(agentd_context_set_credentials(ctx, credentials.token,
							  credentials.expires_unix_ms, reterr),
			   pointer, reterr);
}

struct session {
	const char *id, *domain, *profile;
};

static int read_session_member(const char *key, const struct json_object *value,
			       const char *pointer, void *userdata, agentd_error **reterr)
{
	struct session *session = userdata;
	const struct {
		const char *key;
		const char **to;
	} members[] = {
		{ "session_id", &session->id },
		{ "domain", &session->domain },
		{ "vm_profile", &session->profile },
	};

	for (size_t i = 0; i < AD_COUNT(members); i++) {
		if (strcmp(members[i].key, key) != 0)
			continue;
		return ad_json_type_of(value) == AD_JSON_NULL ?
			       0 :
			       ad_json_get_string(value, pointer, members[i].to, reterr);
	}
	return ad_json_unknown_key(key, pointer, reterr);
}

static int read_session(const struct json_object *value, const char *pointer, agentd_context *ctx,
			agentd_error **reterr)
{
	struct session session = { 0 };
	int r = ad_json_each_member(value, pointer, read_session_member, &session, reterr);

	if (r < 0)
		return r;
	if (!session.id)
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer, "missing field `session_id`");
	return ad_error_at(agentd_context_set_session(ctx, session.id, session.domain,
						      session.profile, reterr),
			   pointer, reterr);
}

/* ---- arrays */

static int read_argument(const struct json_object *value, const char *pointer, void *userdata,
			 agentd_error **reterr)
{
	struct ad_strlist *list = userdata;
	const char *text;
	int r = ad_json_get_string(value, pointer, &text, reterr);

	if (r < 0)
		return r;
	return ad_strlist_add(list, text) < 0 ? ad_fail_nomem(reterr) : 0;
}

static int read_shell(const struct json_object *value, const char *pointer, agentd_context *ctx,
		      agentd_error **reterr)
{
	__attribute__((__cleanup__(ad_strlist_free))) struct ad_strlist list = { 0 };
	ad_autofree const char **argv = NULL;
	int r = ad_json_each_item(value, pointer, read_argument, &list, reterr);

	if (r < 0)
		return r;
	argv = calloc(list.count + 1, sizeof(*argv));
	if (!argv)
		return ad_fail_nomem(reterr);
	for (size_t i = 0; i < list.count; i++)
		argv[i] = list.items[i];
	return ad_error_at(agentd_context_set_shell(ctx, argv, reterr), pointer, reterr);
}

struct mount {
	const char *source, *target;
	uint32_t access;
};

static int read_access(const struct json_object *value, const char *pointer, void *userdata,
		       agentd_error **reterr)
{
	struct mount *mount = userdata;
	char what[128];
	const char *text;
	int r = ad_json_get_string(value, pointer, &text, reterr);

	if (r < 0)
		return r;
	if (strcmp(text, "read") == 0) {
		mount->access |= AGENTD_ACCESS_READ;
	} else if (strcmp(text, "write") == 0) {
		mount->access |= AGENTD_ACCESS_WRITE;
	} else if (strcmp(text, "exec") == 0) {
		mount->access |= AGENTD_ACCESS_EXEC;
	} else {
		ad_json_describe(value, what, sizeof(what));
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer,
			       "invalid value: %s, expected \"read\", \"write\" or \"exec\"", what);
	}
	return 0;
}

static int read_mount_member(const char *key, const struct json_object *value, const char *pointer,
			     void *userdata, agentd_error **reterr)
{
	struct mount *mount = userdata;

	if (strcmp(key, "source") == 0)
		return ad_json_get_string(value, pointer, &mount->source, reterr);
	if (strcmp(key, "target") == 0)
		return ad_json_get_string(value, pointer, &mount->target, reterr);
	if (strcmp(key, "access") == 0)
		return ad_json_each_item(value, pointer, read_access, mount, reterr);
	return ad_json_unknown_key(key, pointer, reterr);
}

static int read_mount(const struct json_object *value, const char *pointer, void *userdata,
		      agentd_error **reterr)
{
	struct mount mount = { 0 };
	int r = ad_json_each_member(value, pointer, read_mount_member, &mount, reterr);

	if (r < 0)
		return r;
	if (!mount.source || !mount.target || !mount.access)
		return ad_fail(reterr, AGENTD_ERR_INVALID, pointer, "missing field `%s`",
			       !mount.source ? "source" :
			       !mount.target ? "target" :
					       "access");
	return ad_error_at(agentd_context_add_mount(userdata, mount.source, mount.target,
						    mount.access, reterr),
			   pointer, reterr);
}

static int read_mounts(const struct json_object *value, const char *pointer, agentd_context *ctx,
		       agentd_error **reterr)
{
	return ad_json_each_item(value, pointer, read_mount, ctx, reterr);
}

/* ---- all of it */

static int read_member(const char *key, const struct json_object *value, const char *pointer,
		       void *userdata, agentd_error **reterr)
{
	static const struct {
		const char *key;
		int (*read)(const struct json_object *value, const char *pointer,
			    agentd_context *ctx, agentd_error **reterr);
	} members[] = {
		{ "workdir", read_workdir },
		{ "backend", read_backend },
		{ "policy", read_policy },
		{ "limits", read_limits },
		{ "env", read_env },
		{ "shell", read_shell },
		{ "trace_id", read_trace_id },
		{ "rootfs", read_rootfs },
		{ "mounts", read_mounts },
		{ "labels", read_labels },
		{ "credentials", read_credentials },
		{ "session", read_session },
	};

	for (size_t i = 0; i < AD_COUNT(members); i++) {
		if (strcmp(members[i].key, key) == 0)
			return members[i].read(value, pointer, userdata, reterr);
	}
	return ad_json_unknown_key(key, pointer, reterr);
}

int agentd_context_from_json(const char *json, size_t len, agentd_context **ret,
			     agentd_error **reterr)
{
	ad_autojson struct json_object *value = NULL;
	agentd_context *ctx;
	AD_KEEP_ERRNO;
	int r;

	if (!json || !ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s must not be NULL",
			       json ? "ret" : "json");
	r = ad_json_parse(json, len, &value, reterr);
	if (r == 0)
		r = agentd_context_new(&ctx, reterr);
	if (r < 0)
		return r;
	r = ad_json_each_member(value, "", read_member, ctx, reterr);
	if (r < 0) {
		agentd_context_unref(ctx);
		return r;
	}
	*ret = ctx;
	return 0;
}
