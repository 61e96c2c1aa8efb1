/* SPDX-License-Identifier: MIT */
#include "core/context.h"

#include <fcntl.h>
#include <string.h>

#include "core/params.h"
#include "policy/policy.h"
#include "pool/pool.h"

enum {
	ITEMS_MAX = 4096, /* of one kind: what is searched linearly stays short */
	TAG_MAX = 256,    /* bytes of a trace id or a label's key */
	LABEL_MAX = 4096,
	TOKEN_MAX = 65536,
	BACKEND_MAX = 64,
	SHELL_MAX = 64, /* arguments */
	FIRST_FD = 3,   /* never a standard stream, whatever the host closed */
};

struct agentd_context {
	ad_refcount refs;
	struct ad_context_state *state;
};

/* ---- states */

static struct ad_context_state *state_new(void)
{
	struct ad_context_state *state = calloc(1, sizeof(*state));

	if (!state)
		return NULL;
	atomic_init(&state->refs, 1);
	state->netns = -1;
	agentd_limits_init(&state->limits, sizeof(state->limits));
	return state;
}

static void free_token(char *token)
{
	if (token)
		explicit_bzero(token, strlen(token));
	free(token);
}

static void state_free(struct ad_context_state *state)
{
	AD_KEEP_ERRNO;

	for (size_t i = 0; i < state->env_count; i++) {
		free(state->env[i].name);
		free(state->env[i].value);
	}
	for (size_t i = 0; i < state->label_count; i++) {
		free(state->labels[i].key);
		free(state->labels[i].value);
	}
	for (size_t i = 0; i < state->mount_count; i++) {
		free(state->mounts[i].source);
		free(state->mounts[i].target);
	}
	free(state->env);
	free(state->labels);
	free(state->mounts);
	free(state->shell);
	free(state->backend);
	free(state->rootfs);
	free(state->workdir);
	free(state->trace_id);
	free(state->session_id);
	free(state->session_domain);
	free(state->session_profile);
	free_token(state->token);
	ad_util_closep(&state->netns);
	agentd_policy_unref(state->policy);
	ad_ask_state_unref(state->ask);
	free(state);
}

/* Only the count changes through a pointer to const. */
static struct ad_context_state *counted(const struct ad_context_state *state)
{
	return (struct ad_context_state *)(uintptr_t)state;
}

const struct ad_context_state *ad_context_state_ref(const struct ad_context_state *state)
{
	if (state)
		ad_ref(&counted(state)->refs);
	return state;
}

void ad_context_state_unref(const struct ad_context_state *state)
{
	if (state && ad_unref(&counted(state)->refs))
		state_free(counted(state));
}

static bool copy_text(char **to, const char *from)
{
	*to = from ? strdup(from) : NULL;
	return *to || !from;
}

/* Items with nothing in them yet; one more than asked for, so that never none. */
static void *new_items(size_t count, size_t size)
{
	return calloc(count + 1, size);
}

static bool copy_items(struct ad_context_state *to, const struct ad_context_state *from)
{
	bool ok = true;

	to->env = new_items(from->env_count, sizeof(*to->env));
	to->labels = new_items(from->label_count, sizeof(*to->labels));
	to->mounts = new_items(from->mount_count, sizeof(*to->mounts));
	if (!to->env || !to->labels || !to->mounts)
		return false;
	for (size_t i = 0; i < from->env_count && ok; i++) {
		to->env_count++;
		ok = copy_text(&to->env[i].name, from->env[i].name) &&
		     copy_text(&to->env[i].value, from->env[i].value);
	}
	for (size_t i = 0; i < from->label_count && ok; i++) {
		to->label_count++;
		ok = copy_text(&to->labels[i].key, from->labels[i].key) &&
		     copy_text(&to->labels[i].value, from->labels[i].value);
	}
	for (size_t i = 0; i < from->mount_count && ok; i++) {
		to->mount_count++;
		to->mounts[i].access = from->mounts[i].access;
		ok = copy_text(&to->mounts[i].source, from->mounts[i].source) &&
		     copy_text(&to->mounts[i].target, from->mounts[i].target);
	}
	return ok;
}

static int state_copy(const struct ad_context_state *from, struct ad_context_state **ret,
		      agentd_error **reterr)
{
	struct ad_context_state *to = state_new();
	int r = 0;

	if (!to)
		return ad_fail_nomem(reterr);
	to->policy = agentd_policy_ref(from->policy);
	to->ask = ad_ask_state_ref(from->ask);
	to->limits = from->limits;
	to->expires_unix_ms = from->expires_unix_ms;
	if (!copy_items(to, from) || !copy_text(&to->backend, from->backend) ||
	    !copy_text(&to->rootfs, from->rootfs) || !copy_text(&to->workdir, from->workdir) ||
	    !copy_text(&to->trace_id, from->trace_id) || !copy_text(&to->token, from->token) ||
	    !copy_text(&to->session_id, from->session_id) ||
	    !copy_text(&to->session_domain, from->session_domain) ||
	    !copy_text(&to->session_profile, from->session_profile))
		r = ad_fail_nomem(reterr);
	if (r == 0 && from->shell) {
		to->shell = ad_strv_dup((const char *const *)from->shell);
		if (!to->shell)
			r = ad_fail_nomem(reterr);
	}
	if (r == 0 && from->netns >= 0) {
		to->netns = fcntl(from->netns, F_DUPFD_CLOEXEC, FIRST_FD);
		if (to->netns < 0)
			r = ad_fail_errno(reterr, errno,
					  "Failed to duplicate the network namespace");
	}
	if (r < 0) {
		state_free(to);
		return r;
	}
	*ret = to;
	return 0;
}

/* ---- contexts */

static int fail_null(agentd_error **reterr, const char *argument)
{
	return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s must not be NULL", argument);
}

int agentd_context_new(agentd_context **ret, agentd_error **reterr)
{
	AD_KEEP_ERRNO;
	agentd_context *ctx;

	if (!ret)
		return fail_null(reterr, "ret");
	ctx = malloc(sizeof(*ctx));
	if (!ctx)
		return ad_fail_nomem(reterr);
	atomic_init(&ctx->refs, 1);
	ctx->state = state_new();
	if (!ctx->state) {
		free(ctx);
		return ad_fail_nomem(reterr);
	}
	*ret = ctx;
	return 0;
}

agentd_context *agentd_context_ref(agentd_context *ctx)
{
	if (ctx)
		ad_ref(&ctx->refs);
	return ctx;
}

void agentd_context_unref(agentd_context *ctx)
{
	if (!ctx || !ad_unref(&ctx->refs))
		return;
	ad_context_state_unref(ctx->state);
	agentd_free(ctx);
}

const struct ad_context_state *ad_context_snapshot(agentd_context *ctx)
{
	return ad_context_state_ref(ctx->state);
}

/* The state to change: the context's own, not that of a snapshot. */
static int writable(agentd_context *ctx, struct ad_context_state **ret, agentd_error **reterr)
{
	struct ad_context_state *copy = NULL;
	int r;

	if (!ctx)
		return fail_null(reterr, "ctx");
	if (atomic_load_explicit(&ctx->state->refs, memory_order_acquire) > 1) {
		r = state_copy(ctx->state, &copy, reterr);
		if (r < 0)
			return r;
		ad_context_state_unref(ctx->state);
		ctx->state = copy;
	}
	*ret = ctx->state;
	return 0;
}

/* Put a copy of text (may be NULL) in the place of *to. */
static int replace_text(char **to, const char *text, agentd_error **reterr)
{
	char *copy;

	if (!copy_text(&copy, text))
		return ad_fail_nomem(reterr);
	free(*to);
	*to = copy;
	return 0;
}

/* ---- setters */

int agentd_context_set_policy(agentd_context *ctx, agentd_policy *policy, agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r < 0)
		return r;
	if (policy)
		(void)agentd_policy_freeze(policy);
	agentd_policy_ref(policy);
	agentd_policy_unref(state->policy);
	state->policy = policy;
	return 0;
}

int agentd_context_set_ask(agentd_context *ctx, const struct agentd_ask_opts *opts,
			   agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	struct ad_ask_state *ask = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r == 0 && opts)
		r = ad_ask_state_new(opts, &ask, reterr);
	if (r < 0)
		return r;
	ad_ask_state_unref(state->ask);
	state->ask = ask;
	return 0;
}

int agentd_context_set_limits(agentd_context *ctx, const struct agentd_limits *limits,
			      agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r < 0)
		return r;
	if (!limits)
		return fail_null(reterr, "limits");
	return ad_limits_copy(&state->limits, limits, reterr);
}

/* Which backends there are is the runner's to know. */
static int check_backend(const char *name, agentd_error **reterr)
{
	size_t blank = strspn(name, " \t\r\n"), len, end;

	len = strspn(name + blank, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				   "0123456789-_");
	end = blank + len + strspn(name + blank + len, " \t\r\n");
	if (len == 0 || len > BACKEND_MAX || name[end])
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "backend name must be 1 to %d letters, digits, \"-\" and \"_\": "
			       "\"%s\"",
			       BACKEND_MAX, name);
	return 0;
}

int agentd_context_set_backend(agentd_context *ctx, const char *name, agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r == 0 && name)
		r = check_backend(name, reterr);
	return r < 0 ? r : replace_text(&state->backend, name, reterr);
}

static int check_path(const char *what, const char *path, agentd_error **reterr)
{
	enum ad_path_verdict verdict = ad_path_check(path);

	if (verdict == AD_PATH_OK)
		return 0;
	return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s %s: \"%s\"", what,
		       ad_path_verdict_text(verdict), path);
}

int agentd_context_set_rootfs(agentd_context *ctx, const char *path_or_image, agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r == 0 && path_or_image)
		r = check_path("rootfs", path_or_image, reterr);
	return r < 0 ? r : replace_text(&state->rootfs, path_or_image, reterr);
}

int agentd_context_set_workdir(agentd_context *ctx, const char *path, agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r < 0)
		return r;
	if (!path)
		return fail_null(reterr, "path");
	r = check_path("workdir", path, reterr);
	return r < 0 ? r : replace_text(&state->workdir, path, reterr);
}

/* Room for one more item behind count. */
static int grow(void *items_ptr, size_t count, size_t size, const char *what, agentd_error **reterr)
{
	void **items = items_ptr, *grown;

	if (count >= ITEMS_MAX)
		return ad_fail(reterr, AGENTD_ERR_LIMIT, NULL, "more than %d %s", ITEMS_MAX, what);
	grown = reallocarray(*items, count + 1, size);
	if (!grown)
		return ad_fail_nomem(reterr);
	*items = grown;
	return 0;
}

/* Nothing but what shells can name: a shell would take a function definition from
 * a name like "BASH_FUNC_x%%". */
static int check_env(const char *name, const char *value, agentd_error **reterr)
{
	size_t len = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				  "0123456789_");

	if (len == 0 || name[len])
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "environment name must be letters, digits and \"_\": \"%s\"", name);
	if (value && len + 1 + strlen(value) > ad_params_arg_max())
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "environment variable is too long, the system takes %zu bytes: "
			       "\"%s\"",
			       ad_params_arg_max(), name);
	return 0;
}

int agentd_context_set_env(agentd_context *ctx, const char *name, const char *value,
			   agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	ad_autofree char *copy = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r < 0)
		return r;
	if (!name)
		return fail_null(reterr, "name");
	r = check_env(name, value, reterr);
	if (r < 0)
		return r;
	for (size_t i = 0; i < state->env_count; i++) {
		if (strcmp(state->env[i].name, name) == 0)
			return replace_text(&state->env[i].value, value, reterr);
	}
	r = grow(&state->env, state->env_count, sizeof(*state->env), "variables", reterr);
	if (r < 0)
		return r;
	copy = strdup(name);
	state->env[state->env_count] = (struct ad_context_env){ .name = copy };
	if (!copy || !copy_text(&state->env[state->env_count].value, value))
		return ad_fail_nomem(reterr);
	state->env[state->env_count++].name = AD_STEAL(copy);
	return 0;
}

int agentd_context_add_mount(agentd_context *ctx, const char *source, const char *target,
			     uint32_t access, agentd_error **reterr)
{
	const uint32_t all = AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE | AGENTD_ACCESS_EXEC;
	ad_autofree char *source_copy = NULL, *target_copy = NULL;
	struct ad_context_state *state = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r < 0)
		return r;
	if (!source || !target)
		return fail_null(reterr, source ? "target" : "source");
	if (access == 0 || (access & ~all) != 0)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "access 0x%x is not valid",
			       access);
	r = check_path("source", source, reterr);
	if (r == 0)
		r = check_path("target", target, reterr);
	if (r < 0)
		return r;
	for (size_t i = 0; i < state->mount_count; i++) {
		if (strcmp(state->mounts[i].target, target) == 0)
			return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
				       "target has a mount already: \"%s\"", target);
	}
	r = grow(&state->mounts, state->mount_count, sizeof(*state->mounts), "mounts", reterr);
	if (r < 0)
		return r;
	if (!copy_text(&source_copy, source) || !copy_text(&target_copy, target))
		return ad_fail_nomem(reterr);
	state->mounts[state->mount_count++] = (struct ad_context_mount){
		.source = AD_STEAL(source_copy), .target = AD_STEAL(target_copy), .access = access
	};
	return 0;
}

/* Text for one line of a log: UTF-8 without control characters. */
static int check_tag(const char *what, const char *text, size_t least, size_t most,
		     agentd_error **reterr)
{
	size_t len = strnlen(text, most + 1);
	bool printable = len <= most && ad_utf8_valid(text, len);

	for (size_t i = 0; i < len && printable; i++) {
		unsigned char c = (unsigned char)text[i], next = (unsigned char)text[i + 1];

		/* C1 controls are C2 80 to C2 9F. */
		printable = c >= ' ' && c != 0x7f && !(c == 0xc2 && next >= 0x80 && next <= 0x9f);
	}
	if (printable && len >= least)
		return 0;
	return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
		       "%s must be %zu to %zu bytes of UTF-8 without control characters", what,
		       least, most);
}

int agentd_context_set_trace_id(agentd_context *ctx, const char *trace_id, agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r == 0 && trace_id)
		r = check_tag("trace_id", trace_id, 1, TAG_MAX, reterr);
	return r < 0 ? r : replace_text(&state->trace_id, trace_id, reterr);
}

int agentd_context_set_session(agentd_context *ctx, const char *id, const char *domain,
			       const char *profile, agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	char folded[AD_POOL_ID_SIZE];
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r == 0 && id && !ad_pool_id_fold(id, folded))
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
			       "session id is not a UUID of 36 hexadecimal digits and dashes: "
			       "\"%s\"",
			       id);
	if (r == 0 && domain)
		r = check_tag("domain", domain, 1, TAG_MAX, reterr);
	if (r == 0 && profile)
		r = check_tag("profile", profile, 1, TAG_MAX, reterr);
	if (r == 0)
		r = replace_text(&state->session_id, id ? folded : NULL, reterr);
	if (r == 0)
		r = replace_text(&state->session_domain, id ? domain : NULL, reterr);
	return r < 0 ? r : replace_text(&state->session_profile, id ? profile : NULL, reterr);
}

int agentd_context_set_credentials(agentd_context *ctx, const char *token, uint64_t expires_unix_ms,
				   agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	AD_KEEP_ERRNO;
	char *copy;
	int r = writable(ctx, &state, reterr);

	if (r < 0)
		return r;
	if (token && (!*token || strnlen(token, TOKEN_MAX + 1) > TOKEN_MAX))
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "token must be 1 to %d bytes",
			       TOKEN_MAX);
	if (!copy_text(&copy, token))
		return ad_fail_nomem(reterr);
	free_token(state->token);
	state->token = copy;
	state->expires_unix_ms = token ? expires_unix_ms : 0;
	return 0;
}

int agentd_context_set_netns(agentd_context *ctx, int32_t fd, agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr), copy = -1;

	if (r < 0)
		return r;
	if (fd < -1)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "descriptor %d is not valid", fd);
	if (fd >= 0) {
		copy = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FD);
		if (copy < 0)
			return ad_fail_errno(reterr, errno, "Failed to duplicate descriptor %d",
					     fd);
	}
	ad_util_closep(&state->netns);
	state->netns = copy;
	return 0;
}

static int check_shell(const char *const *argv, agentd_error **reterr)
{
	if (!argv[0] || !*argv[0])
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "shell must not be empty");
	for (size_t i = 0; argv[i]; i++) {
		if (i == SHELL_MAX)
			return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
				       "shell has more than %d arguments", SHELL_MAX);
		if (strlen(argv[i]) > ad_params_arg_max())
			return ad_fail(reterr, AGENTD_ERR_INVALID, NULL,
				       "shell argument %zu is too long, the system takes %zu bytes",
				       i, ad_params_arg_max());
	}
	return 0;
}

int agentd_context_set_shell(agentd_context *ctx, const char *const *argv, agentd_error **reterr)
{
	struct ad_context_state *state = NULL;
	char **copy = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r == 0 && argv)
		r = check_shell(argv, reterr);
	if (r < 0)
		return r;
	if (argv) {
		copy = ad_strv_dup(argv);
		if (!copy)
			return ad_fail_nomem(reterr);
	}
	free(state->shell);
	state->shell = copy;
	return 0;
}

static void remove_label(struct ad_context_state *state, size_t i)
{
	free(state->labels[i].key);
	free(state->labels[i].value);
	state->label_count--;
	memmove(&state->labels[i], &state->labels[i + 1],
		(state->label_count - i) * sizeof(*state->labels));
}

int agentd_context_set_label(agentd_context *ctx, const char *key, const char *value,
			     agentd_error **reterr)
{
	ad_autofree char *key_copy = NULL, *value_copy = NULL;
	struct ad_context_state *state = NULL;
	AD_KEEP_ERRNO;
	int r = writable(ctx, &state, reterr);

	if (r < 0)
		return r;
	if (!key)
		return fail_null(reterr, "key");
	r = check_tag("label key", key, 1, TAG_MAX, reterr);
	if (r == 0 && value)
		r = check_tag("label value", value, 0, LABEL_MAX, reterr);
	if (r < 0)
		return r;
	for (size_t i = 0; i < state->label_count; i++) {
		if (strcmp(state->labels[i].key, key) != 0)
			continue;
		if (value)
			return replace_text(&state->labels[i].value, value, reterr);
		remove_label(state, i);
		return 0;
	}
	if (!value)
		return 0;
	r = grow(&state->labels, state->label_count, sizeof(*state->labels), "labels", reterr);
	if (r < 0)
		return r;
	if (!copy_text(&key_copy, key) || !copy_text(&value_copy, value))
		return ad_fail_nomem(reterr);
	state->labels[state->label_count++] = (struct ad_context_label){
		.key = AD_STEAL(key_copy), .value = AD_STEAL(value_copy)
	};
	return 0;
}
