/* SPDX-License-Identifier: MIT */
/* What would run, where and under which limits: decided without starting anything,
 * so that agentd_runner_explain() and agentd_exec_start() cannot disagree. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/core.h"
#include "json/json.h"
#include "sys/sys.h"

/* Of a single file, where nobody set file_bytes: a sandbox's files may be the host's. */
#define SANDBOX_FILE_BYTES (UINT64_C(2) << 30)

#define MOUNT_POINTER "/mounts/%zu"
enum { MOUNT_POINTER_SIZE = sizeof("/mounts/") + 20 };

extern char **environ;

static int refuse(struct ad_plan *plan, int cause, int code, const char *pointer,
		  const char *message)
{
	plan->refused_cause = cause;
	ad_fail(&plan->refusal, code, pointer, "%s", message);
	return agentd_error_code(plan->refusal) == code ? 0 : AGENTD_ERR_NOMEM;
}

static void names_of(const struct ad_registry *registry, struct ad_buf *text)
{
	for (struct ad_list *node = registry->backends.next; node != &registry->backends;
	     node = node->next) {
		const struct ad_backend *backend = AD_CONTAINER_OF(node, struct ad_backend, link);

		ad_buf_printf(text, "%s%s", text->len ? ", " : "", backend->name);
	}
}

/* The strongest that is not known to be unusable and is strong enough; a virtual machine,
 * which takes seconds and works on a copy, only where it is asked for. */
static struct ad_backend *strongest(const struct ad_registry *registry, int32_t min_isolation)
{
	struct ad_backend *best = NULL;

	for (struct ad_list *node = registry->backends.next; node != &registry->backends;
	     node = node->next) {
		struct ad_backend *backend = AD_CONTAINER_OF(node, struct ad_backend, link);

		if (backend->probe == AD_PROBE_UNUSABLE || backend->ops.isolation < min_isolation)
			continue;
		if (backend->ops.isolation >= AGENTD_ISOLATION_VM &&
		    min_isolation < AGENTD_ISOLATION_VM)
			continue;
		if (!best || backend->ops.isolation > best->ops.isolation)
			best = backend;
	}
	return best;
}

static int choose_backend(agentd_runner *runner, const struct ad_context_state *context,
			  struct ad_plan *plan, agentd_error **reterr)
{
	ad_autobuf struct ad_buf names = { 0 }, text = { 0 };
	int code = AGENTD_ERR_DENIED, r;

	if (context->backend) {
		r = ad_registry_find(&runner->registry, context->backend, &plan->backend);
		if (r == AGENTD_ERR_NOTFOUND) {
			names_of(&runner->registry, &names);
			return ad_fail(reterr, AGENTD_ERR_NOTFOUND, "/backend",
				       "no backend is called \"%s\"; this runner has: %s",
				       context->backend, names.data ? names.data : "");
		}
		if (r < 0)
			return r;
		if (plan->backend->ops.isolation >= plan->min_isolation)
			return 0;
		ad_buf_printf(
			&text,
			"the policies ask for isolation \"%s\" and the backend \"%s\" gives at "
			"most \"%s\"; name a stronger backend, or lower min_isolation in the "
			"runner's and the context's policy",
			ad_isolation_name(plan->min_isolation), plan->backend->name,
			ad_isolation_name(plan->backend->ops.isolation));
	} else {
		plan->backend = strongest(&runner->registry, plan->min_isolation);
		if (plan->backend)
			return 0;
		code = AGENTD_ERR_UNSUPPORTED;
		names_of(&runner->registry, &names);
		ad_buf_printf(
			&text,
			"the policies ask for isolation \"%s\" and no usable backend gives it; "
			"this runner has: %s",
			ad_isolation_name(plan->min_isolation), names.data ? names.data : "");
	}
	plan->backend = NULL;
	return text.failed ? AGENTD_ERR_NOMEM :
			     refuse(plan, AGENTD_CAUSE_ISOLATION, code, "/backend", text.data);
}

/* The backend of the session that the context names. plan->no_session says why there is none. */
static int choose_session(agentd_runner *runner, const struct ad_context_state *context,
			  struct ad_plan *plan, agentd_error **reterr)
{
	ad_autobuf struct ad_buf text = { 0 };
	struct ad_backend *named;
	int r;

	if (!runner->pool)
		return ad_fail(&plan->no_session, AGENTD_ERR_STATE, NULL,
			       "the runner has no pool of sessions");
	if (!ad_pool_enabled(runner->pool))
		return ad_fail(&plan->no_session, AGENTD_ERR_STATE, NULL,
			       "VM pool is disabled; no persistent environments available");
	r = ad_registry_find(&runner->registry, ad_pool_backend(runner->pool), &plan->backend);
	if (r < 0)
		return ad_fail(&plan->no_session, r, NULL, "no backend is called \"%s\"",
			       ad_pool_backend(runner->pool));
	if (context->backend) {
		r = ad_registry_find(&runner->registry, context->backend, &named);
		if (r < 0 || named != plan->backend)
			return ad_fail(reterr, r == AGENTD_ERR_NOMEM ? r : AGENTD_ERR_INVALID,
				       "/backend",
				       "the context names the backend \"%s\", and its session is "
				       "one of a pool with the backend \"%s\"",
				       context->backend, plan->backend->name);
	}
	if (plan->backend->ops.isolation >= plan->min_isolation) {
		plan->pool = agentd_pool_ref(runner->pool);
		return 0;
	}
	ad_buf_printf(&text,
		      "the policies ask for isolation \"%s\" and the pool's backend \"%s\" gives "
		      "at most \"%s\"",
		      ad_isolation_name(plan->min_isolation), plan->backend->name,
		      ad_isolation_name(plan->backend->ops.isolation));
	plan->backend = NULL;
	return text.failed ? AGENTD_ERR_NOMEM :
			     refuse(plan, AGENTD_CAUSE_ISOLATION, AGENTD_ERR_DENIED, "/session",
				    text.data);
}

/* A session's place is never taken by less than a sandbox. */
static int choose_place(agentd_runner *runner, const struct ad_context_state *context,
			struct ad_plan *plan, agentd_error **reterr)
{
	int r;

	if (context->session_id && !plan->no_session) {
		r = choose_session(runner, context, plan, reterr);
		if (!plan->no_session)
			return r;
		if (agentd_error_code(plan->no_session) == AGENTD_ERR_NOMEM)
			return AGENTD_ERR_NOMEM;
		plan->backend = NULL;
	}
	if (plan->no_session && runner->pool && !ad_pool_fallback(runner->pool)) {
		ad_autobuf struct ad_buf text = { 0 };

		ad_buf_printf(&text,
			      "the session cannot be had, and the pool allows nothing else: "
			      "%s",
			      agentd_error_message(plan->no_session));
		return text.failed ? AGENTD_ERR_NOMEM :
				     refuse(plan, AGENTD_CAUSE_ISOLATION, AGENTD_ERR_UNSUPPORTED,
					    "/session", text.data);
	}
	if (plan->no_session && plan->min_isolation < AGENTD_ISOLATION_SANDBOX)
		plan->min_isolation = AGENTD_ISOLATION_SANDBOX;
	r = choose_backend(runner, context, plan, reterr);
	if (r == 0 && plan->no_session && plan->refusal)
		ad_error_prefix(&plan->refusal, "the session cannot be had (%s), and ",
				agentd_error_message(plan->no_session));
	return r;
}

static bool expired(const struct ad_context_state *context)
{
	struct timespec now;

	if (!context->token || context->expires_unix_ms == 0)
		return false;
	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / AD_NS_PER_MS >=
	       context->expires_unix_ms;
}

static int32_t narrower_net(const agentd_runner *runner, const agentd_policy *policy)
{
	int32_t a = ad_policy_net(runner->policy), b = ad_policy_net(policy);

	return a < b ? a : b; /* NONE < ALLOWLIST < FULL */
}

/* By the ceiling as the context's policy is, and by that, if it says something about them: a
 * mount need not be shown under its own name as well. */
static int check_mounts(const agentd_runner *runner, const agentd_policy *policy,
			const struct ad_context_state *context, agentd_error **reterr)
{
	for (size_t i = 0; i < context->mount_count; i++) {
		const struct ad_context_mount *mount = &context->mounts[i];
		char pointer[MOUNT_POINTER_SIZE];
		uint32_t ruled;
		int r;

		snprintf(pointer, sizeof(pointer), MOUNT_POINTER, i);
		r = ad_policy_check_path(runner->policy, "runner's", mount->source, mount->access,
					 pointer, reterr);
		if (r == 0 && ad_policy_path_access(policy, mount->source, &ruled))
			r = ad_policy_check_path(policy, "context's", mount->source, mount->access,
						 pointer, reterr);
		if (r < 0)
			return r;
	}
	return 0;
}

static int make(agentd_runner *runner, const struct ad_context_state *context,
		const agentd_params *params, const struct agentd_limits *own_limits,
		agentd_error *no_session, struct ad_plan *ret, agentd_error **reterr)
{
	struct agentd_limits timeout = { .size = sizeof(timeout),
					 .timeout_ms = params->timeout_ms };
	agentd_policy *policy = context->policy ? context->policy : runner->no_policy;
	const struct agentd_limits *layers[] = { ad_policy_limits(runner->policy),
						 ad_policy_limits(policy), &context->limits,
						 own_limits, &timeout };
	struct ad_plan plan = { .context_policy = policy, .no_session = no_session };
	int32_t own = ad_policy_min_isolation(policy);
	int r;

	if (!context->workdir) {
		agentd_error_unref(no_session);
		return ad_fail(reterr, AGENTD_ERR_INVALID, "/workdir",
			       "the context has no workdir");
	}
	plan.min_isolation = ad_policy_min_isolation(runner->policy);
	if (own > plan.min_isolation)
		plan.min_isolation = own;
	/* The parameters may say "for ever" (2^64-1): that is their most, not a wish to be
	 * unlimited that a policy would have to grant. */
	if (timeout.timeout_ms == UINT64_MAX)
		timeout.timeout_ms = UINT64_MAX - 1;
	ad_limits_merge(layers, AD_COUNT(layers), 2, runner->machine_memory, &plan.limits,
			&plan.limits_requested);
	if (ad_policy_within(policy, runner->policy, &plan.refusal) < 0 ||
	    check_mounts(runner, policy, context, &plan.refusal) < 0)
		plan.refused_cause = AGENTD_CAUSE_POLICY;
	else if (plan.limits.net_bytes && narrower_net(runner, policy) == AGENTD_NET_FULL)
		refuse(&plan, AGENTD_CAUSE_POLICY, AGENTD_ERR_UNSUPPORTED, "/limits/net_bytes",
		       "bytes are counted in the network mode \"allow\" only, not in \"full\"");
	else if (expired(context))
		refuse(&plan, AGENTD_CAUSE_POLICY, AGENTD_ERR_DENIED, "/credentials",
		       "the credentials have expired");
	/* A refusal that could not be written down is not one. */
	if (agentd_error_code(plan.refusal) == AGENTD_ERR_NOMEM) {
		ad_plan_clear(&plan);
		return ad_fail_nomem(reterr);
	}
	/* Also when refused: a backend that does not exist is the caller's mistake. */
	r = plan.refused_cause && !context->backend ? 0 :
						      choose_place(runner, context, &plan, reterr);
	if (r < 0) {
		ad_plan_clear(&plan);
		return r == AGENTD_ERR_NOMEM ? ad_fail_nomem(reterr) : r;
	}
	if (plan.backend && plan.backend->ops.isolation >= AGENTD_ISOLATION_SANDBOX &&
	    !(plan.limits_requested >> ad_limit_index("file_bytes") & 1u))
		plan.limits.file_bytes = SANDBOX_FILE_BYTES;
	*ret = plan;
	return 0;
}

int ad_plan_make(agentd_runner *runner, const struct ad_context_state *context,
		 const agentd_params *params, const struct agentd_limits *own_limits,
		 struct ad_plan *ret, agentd_error **reterr)
{
	return make(runner, context, params, own_limits, NULL, ret, reterr);
}

int ad_plan_fall_back(agentd_exec *exec, agentd_error *why, agentd_error **reterr)
{
	struct ad_plan plan;
	int r = make(exec->runner, exec->context, exec->params, &exec->own_limits, why, &plan,
		     reterr);

	if (r < 0)
		return r;
	ad_plan_clear(&exec->plan);
	exec->plan = plan;
	exec->spec.limits = plan.limits;
	return 0;
}

void ad_plan_clear(struct ad_plan *plan)
{
	agentd_error_unref(AD_STEAL(plan->refusal));
	agentd_error_unref(AD_STEAL(plan->no_session));
	agentd_pool_unref(AD_STEAL(plan->pool));
}

/* ---- environment: policies' share of the host program's, then the context's */

static const struct ad_context_env *context_env(const struct ad_context_state *context,
						const char *name, size_t len)
{
	for (size_t i = 0; i < context->env_count; i++)
		if (strlen(context->env[i].name) == len &&
		    memcmp(context->env[i].name, name, len) == 0)
			return &context->env[i];
	return NULL;
}

struct env_builder {
	struct ad_buf text; /* entries, each with its NUL */
	size_t count;
};

static void env_add(struct env_builder *env, const char *name, const char *value)
{
	ad_buf_puts(&env->text, name);
	if (value) {
		ad_buf_puts(&env->text, "=");
		ad_buf_puts(&env->text, value);
	}
	ad_buf_append(&env->text, "", 1);
	env->count++;
}

static void env_inherit(struct env_builder *env, const agentd_runner *runner,
			const agentd_policy *policy, const struct ad_context_state *context)
{
	for (char **entry = environ; entry && *entry; entry++) {
		const char *equals = strchr(*entry, '=');
		char name[256];
		size_t len = equals ? (size_t)(equals - *entry) : 0;

		if (len == 0 || len >= sizeof(name) || context_env(context, *entry, len))
			continue;
		memcpy(name, *entry, len);
		name[len] = '\0';
		if (ad_policy_env_allowed(runner->policy, name) &&
		    ad_policy_env_allowed(policy, name))
			env_add(env, name, equals + 1);
	}
}

/* Of the pool's, those that the context does not name. */
static void env_of_pool(struct env_builder *env, const agentd_pool *pool,
			const struct ad_context_state *context)
{
	for (const char *const *at = ad_pool_env(pool); *at; at += 2)
		if (!context_env(context, at[0], strlen(at[0])))
			env_add(env, at[0], at[1]);
}

static void env_build(struct env_builder *env, const agentd_runner *runner,
		      const struct ad_plan *plan, const struct ad_context_state *context)
{
	static const char trace_name[] = "SMITH_TRACE_ID";
	const agentd_policy *policy = plan->context_policy;

	if (ad_policy_env_any(runner->policy) && ad_policy_env_any(policy))
		env_inherit(env, runner, policy, context);
	if (plan->pool)
		env_of_pool(env, plan->pool, context);
	for (size_t i = 0; i < context->env_count; i++)
		if (!context->trace_id || strcmp(context->env[i].name, trace_name) != 0)
			env_add(env, context->env[i].name, context->env[i].value);
	if (context->trace_id)
		env_add(env, trace_name, context->trace_id);
}

static int fill_env(agentd_exec *exec)
{
	struct env_builder env = { .count = 0 };
	const char **vector;
	char *text;

	env_build(&env, exec->runner, &exec->plan, exec->context);
	if (env.text.failed) {
		ad_buf_free(&env.text);
		return AGENTD_ERR_NOMEM;
	}
	vector = malloc((env.count + 1) * sizeof(*vector) + env.text.len);
	if (!vector) {
		ad_buf_free(&env.text);
		return AGENTD_ERR_NOMEM;
	}
	text = (char *)(vector + env.count + 1);
	if (env.text.len)
		memcpy(text, env.text.data, env.text.len);
	ad_buf_free(&env.text);
	for (size_t i = 0; i < env.count; i++) {
		vector[i] = text;
		text += strlen(text) + 1;
	}
	vector[env.count] = NULL;
	exec->spec.env = vector;
	exec->spec_memory[1] = vector;
	return 0;
}

/* ---- argv: the shell and the script, or the parameters' own */

static int fill_argv(agentd_exec *exec)
{
	static const char *const bash[] = { "bash", "-lc", NULL };
	const char *const *shell = exec->context->shell ?
					   (const char *const *)exec->context->shell :
				   exec->plan.pool ? ad_pool_shell(exec->plan.pool) :
						     bash;
	size_t count = ad_strv_len(shell);
	const char **argv;

	if (exec->params->argv) {
		exec->spec.argv = (const char *const *)exec->params->argv;
		return 0;
	}
	argv = calloc(count + 2, sizeof(*argv));
	if (!argv)
		return AGENTD_ERR_NOMEM;
	memcpy(argv, shell, count * sizeof(*argv));
	argv[count] = exec->params->script;
	exec->spec.argv = argv;
	exec->spec_memory[0] = argv;
	return 0;
}

static void add_mount(agentd_exec *exec, const char *source, const char *target, uint32_t access,
		      const char *pointer)
{
	exec->spec.mounts[exec->spec.mount_count++] = (struct ad_spec_mount){ source, target,
									      pointer, access };
}

static void add_paths(agentd_exec *exec, const agentd_policy *policy, bool denied)
{
	for (size_t i = 0; i < ad_policy_path_count(policy); i++) {
		const struct ad_policy_path *path = ad_policy_path_at(policy, i);

		if ((path->access == 0) == denied)
			add_mount(exec, path->path, path->path, path->access,
				  path->pointer ? path->pointer : "");
	}
}

/* The context's policy is within the runner's, so its paths are those that hold;
 * what either denies stays denied. */
static int fill_mounts(agentd_exec *exec)
{
	const struct ad_context_state *context = exec->context;
	size_t most = context->mount_count + ad_policy_path_count(exec->plan.context_policy) +
		      ad_policy_path_count(exec->runner->policy);
	char *pointer;

	if (most == 0)
		return 0;
	exec->spec.mounts = malloc(most * sizeof(*exec->spec.mounts) +
				   context->mount_count * MOUNT_POINTER_SIZE);
	if (!exec->spec.mounts)
		return AGENTD_ERR_NOMEM;
	exec->spec_memory[2] = exec->spec.mounts;
	pointer = (char *)(exec->spec.mounts + most);
	add_paths(exec, exec->plan.context_policy, false);
	for (size_t i = 0; i < context->mount_count; i++) {
		snprintf(pointer, MOUNT_POINTER_SIZE, MOUNT_POINTER, i);
		add_mount(exec, context->mounts[i].source, context->mounts[i].target,
			  context->mounts[i].access, pointer);
		pointer += MOUNT_POINTER_SIZE;
	}
	if (exec->runner->policy != exec->plan.context_policy)
		add_paths(exec, exec->runner->policy, true);
	add_paths(exec, exec->plan.context_policy, true);
	return 0;
}

/* Everything, unless rules are about it; of both policies the less. */
static uint32_t workdir_access(const agentd_exec *exec)
{
	const agentd_policy *policies[] = { exec->runner->policy, exec->plan.context_policy };
	uint32_t access = AGENTD_ACCESS_READ | AGENTD_ACCESS_WRITE | AGENTD_ACCESS_EXEC, one;

	for (size_t i = 0; i < AD_COUNT(policies); i++) {
		if (ad_policy_path_access(policies[i], exec->spec.workdir, &one))
			access &= one;
	}
	return access;
}

/* The session's files take the place of the workdir. */
static int fill_session(agentd_exec *exec)
{
	agentd_spec *spec = &exec->spec;
	char *volume = ad_pool_volume(exec->plan.pool, exec->context->session_id);

	exec->spec_memory[3] = volume;
	spec->workdir = spec->volume = volume;
	spec->session_id = exec->context->session_id;
	spec->options = ad_pool_options(exec->plan.pool);
	return volume ? 0 : AGENTD_ERR_NOMEM;
}

int ad_spec_fill(agentd_exec *exec, agentd_error **reterr)
{
	agentd_spec *spec = &exec->spec;
	const struct ad_context_state *context = exec->context;

	spec->workdir = context->workdir;
	if (exec->plan.pool && fill_session(exec) < 0)
		return ad_fail_nomem(reterr);
	spec->workdir_access = workdir_access(exec);
	spec->rootfs = context->rootfs;
	spec->flags = exec->flags;
	spec->grace_ms = (uint32_t)(exec->grace_ns / AD_NS_PER_MS);
	spec->log_level = ad_log_most(exec->runner);
	spec->net = narrower_net(exec->runner, exec->plan.context_policy);
	spec->netns = context->netns;
	spec->limits_requested = exec->plan.limits_requested;
	spec->policy[0] = agentd_policy_ref(exec->runner->policy);
	spec->policy[1] = agentd_policy_ref(exec->plan.context_policy);
	if (fill_argv(exec) < 0 || fill_env(exec) < 0 || fill_mounts(exec) < 0)
		return ad_fail_nomem(reterr);
	if (context->token) {
		spec->credentials_fd = ad_sys_memfd_sealed("agentd-token", context->token,
							   strlen(context->token));
		if (spec->credentials_fd < 0)
			return ad_fail_errno(reterr, -spec->credentials_fd,
					     "the credentials' file could not be made");
	}
	return 0;
}

void ad_spec_close(agentd_exec *exec)
{
	if (exec->spec.credentials_fd >= 0)
		close(exec->spec.credentials_fd);
	exec->spec.credentials_fd = exec->spec.netns = -1;
}

void ad_spec_clear(agentd_exec *exec)
{
	ad_spec_close(exec);
	for (size_t i = 0; i < AD_COUNT(exec->spec_memory); i++)
		free(AD_STEAL(exec->spec_memory[i]));
	for (size_t i = 0; i < AD_COUNT(exec->spec.policy); i++)
		agentd_policy_unref(AD_STEAL(exec->spec.policy[i]));
	exec->spec.session_id = exec->spec.volume = exec->spec.options = NULL;
	exec->spec.mounts = NULL;
	exec->spec.mount_count = 0;
}

/* ---- explain */

static const char *probe_name(enum ad_backend_probe probe)
{
	static const char *const names[] = { "pending", "usable", "unusable" };

	return names[probe];
}

static struct json_object *backends_json(const struct ad_registry *registry, bool *ok)
{
	struct json_object *list = ad_json_array();

	for (struct ad_list *node = registry->backends.next; node != &registry->backends;
	     node = node->next) {
		const struct ad_backend *backend = AD_CONTAINER_OF(node, struct ad_backend, link);
		struct json_object *entry = ad_json_object(), *layers = ad_json_array();

		*ok &= ad_json_add_string(entry, "name", backend->name);
		*ok &= ad_json_add_string(entry, "isolation",
					  ad_isolation_name(backend->ops.isolation));
		*ok &= ad_json_add_string(entry, "probe", probe_name(backend->probe));
		*ok &= ad_json_add_string(entry, "reason",
					  agentd_error_message(backend->probe_error));
		for (size_t i = 0; i < backend->layer_count; i++) {
			struct json_object *layer = ad_json_object();

			*ok &= ad_json_add_string(layer, "layer", backend->layers[i].layer);
			*ok &= ad_json_add_string(layer, "state",
						  ad_layer_state_name(backend->layers[i].state));
			*ok &= ad_json_add_string(layer, "reason", backend->layers[i].reason);
			*ok &= ad_json_add_value(layers, NULL, layer);
		}
		*ok &= ad_json_add_value(entry, "layers", layers);
		*ok &= ad_json_add_value(list, NULL, entry);
	}
	return list;
}

/* Names only: values may be secrets. */
static struct json_object *env_json(const agentd_runner *runner, const struct ad_plan *plan,
				    const struct ad_context_state *context, bool *ok)
{
	struct json_object *list = ad_json_array();
	struct env_builder env = { .count = 0 };
	const char *entry;

	env_build(&env, runner, plan, context);
	*ok &= !env.text.failed;
	entry = env.text.data;
	for (size_t i = 0; *ok && i < env.count; i++) {
		ad_autofree char *name = strndup(entry, strcspn(entry, "="));

		if (strchr(entry, '='))
			*ok &= ad_json_add_string(list, NULL, name);
		entry += strlen(entry) + 1;
	}
	ad_buf_free(&env.text);
	return list;
}

static int explain_json(const agentd_runner *runner, const struct ad_plan *plan,
			const struct ad_context_state *context, char **ret, size_t *ret_len,
			agentd_error **reterr)
{
	struct json_object *json = ad_json_object(), *limits, *refusal;
	const agentd_error *error = plan->refusal;
	int cause = plan->refused_cause;
	bool any, ok = true;

	if (!cause && plan->backend->probe == AD_PROBE_UNUSABLE) {
		error = plan->backend->probe_error;
		cause = AGENTD_CAUSE_SPAWN;
	}
	ok &= ad_json_add_bool(json, "would_run", cause == 0);
	ok &= plan->backend ? ad_json_add_string(json, "backend", plan->backend->name) :
			      ad_json_add_null(json, "backend");
	ok &= ad_json_add_string(json, "min_isolation", ad_isolation_name(plan->min_isolation));
	if (cause) {
		refusal = ad_json_object();
		ok &= ad_json_add_string(refusal, "cause", agentd_cause_name(cause));
		ok &= ad_json_add_string(refusal, "message", agentd_error_message(error));
		ok &= ad_json_add_string(refusal, "pointer", agentd_error_pointer(error));
		ok &= ad_json_add_value(json, "refusal", refusal);
	} else {
		ok &= ad_json_add_null(json, "refusal");
	}
	limits = ad_limits_to_json(&plan->limits, &any);
	ok &= ad_json_add_value(json, "limits", limits);
	ok &= ad_json_add_value(json, "env", env_json(runner, plan, context, &ok));
	ok &= ad_json_add_value(json, "backends", backends_json(&runner->registry, &ok));
	return ad_json_to_text(json, ok, ret, ret_len, reterr);
}

int agentd_runner_explain(agentd_runner *runner, agentd_context *ctx, agentd_params *params,
			  char **ret, size_t *ret_len, agentd_error **reterr)
{
	struct agentd_limits none = { .size = sizeof(none) };
	const struct ad_context_state *context;
	struct ad_plan plan;
	int r;

	if (!runner || !ctx || !params || !ret)
		return ad_fail(reterr, AGENTD_ERR_INVALID, NULL, "%s is NULL",
			       !runner ? "runner" :
			       !ctx    ? "ctx" :
			       !params ? "params" :
					 "ret");
	if (runner->in_log)
		return ad_fail(reterr, AGENTD_ERR_REENTRANT, NULL,
			       "a log callback may not ask the runner");
	context = ad_context_snapshot(ctx);
	r = ad_plan_make(runner, context, params, &none, &plan, reterr);
	if (r == 0) {
		r = explain_json(runner, &plan, context, ret, ret_len, reterr);
		ad_plan_clear(&plan);
	}
	ad_context_state_unref(context);
	return r;
}
