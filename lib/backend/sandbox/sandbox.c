/* SPDX-License-Identifier: MIT */
#include "backend/sandbox/sandbox.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <agentd/policy.h>

#include "backend/backend.h"
#include "backend/sandbox/private.h"

struct sandbox {
	struct ad_local local; /* first */
	struct ad_sandbox_opts opts;
};

static const struct ad_local_kind kind = {
	.report = sandbox_report,
	.report_best = sandbox_report_best,
	.explain = ad_sandbox_explain,
	.denied = ad_sandbox_denied,
};

void ad_sandbox_defaults(const char *shell, struct ad_local_default ret[AD_SANDBOX_DEFAULTS])
{
	const struct ad_local_default defaults[AD_SANDBOX_DEFAULTS] = {
		{ "PATH", SANDBOX_PATH, false }, { "HOME", AD_PROFILE_HOME, false },
		{ "USER", "agent", false },      { "LOGNAME", "agent", false },
		{ "LANG", "C.UTF-8", false },    { "TMPDIR", "/tmp", false },
		{ "SHELL", shell, false },
	};

	memcpy(ret, defaults, sizeof(defaults));
}

static int init_environment(struct sandbox *sandbox)
{
	struct ad_local_default defaults[AD_SANDBOX_DEFAULTS];

	ad_sandbox_defaults(access("/bin/bash", X_OK) == 0 ? "/bin/bash" : "/bin/sh", defaults);
	return ad_local_init(&sandbox->local, &kind, sandbox->opts.launcher, defaults,
			     AD_COUNT(defaults));
}

int sandbox_check(const agentd_spec *spec, agentd_error **reterr)
{
	if (agentd_spec_rootfs(spec))
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, "/rootfs",
			       "the sandbox backend does not support a root file system of one's "
			       "own; allow the paths that commands need");
	if (agentd_spec_net(spec) == AGENTD_NET_ALLOWLIST && agentd_spec_netns(spec) >= 0)
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, "/netns",
			       "a network of allowed hosts is the sandbox's own: it cannot be a "
			       "network namespace of the context's");
	if (agentd_spec_discard_unfinished(spec))
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, NULL,
			       "the sandbox backend works in the directory itself: it cannot take "
			       "back what a stopped command has changed (discard_unfinished)");
	if (!agentd_spec_workdir(spec))
		return ad_fail(reterr, AGENTD_ERR_INVALID, "/workdir", "there is no workdir");
	if (agentd_spec_workdir_access(spec) == 0)
		return ad_fail(reterr, AGENTD_ERR_DENIED, "/workdir",
			       "the policy denies the working directory \"%s\"",
			       agentd_spec_workdir(spec));
	return 0;
}

/* How programs are told of the proxy. Not all of them know the same names. ALL_PROXY is HTTP
 * as well: Python's httpx fails at once where it cannot do SOCKS. */
#define PROXY "http://127.0.0.1:" AD_SANDBOX_PROXY_PORT_TEXT
static const char *const proxy_env[] = {
	"HTTP_PROXY=" PROXY, "http_proxy=" PROXY, "HTTPS_PROXY=" PROXY,   "https_proxy=" PROXY,
	"ALL_PROXY=" PROXY,  "all_proxy=" PROXY,  "NODE_USE_ENV_PROXY=1",
};
/* Servers inside are reached directly. What a rule names is the host program's machine. */
static const char *const inside[] = { "localhost", "127.0.0.1", "::1" };

const char *const *ad_sandbox_proxy_env(const agentd_spec *spec, struct ad_sandbox_proxy_env *ret)
{
	char list[sizeof("localhost,127.0.0.1,::1")] = "";
	int len = 0;

	for (size_t i = 0; i < AD_COUNT(inside); i++) {
		if (!ad_spec_names_host(spec, inside[i]))
			len += snprintf(list + len, sizeof(list) - (size_t)len, "%s%s",
					len ? "," : "", inside[i]);
	}
	snprintf(ret->no_proxy[0], sizeof(ret->no_proxy[0]), "NO_PROXY=%s", list);
	snprintf(ret->no_proxy[1], sizeof(ret->no_proxy[1]), "no_proxy=%s", list);
	_Static_assert(AD_COUNT(ret->vars) == AD_COUNT(proxy_env) + AD_COUNT(ret->no_proxy) + 1,
		       "each has its place");
	memcpy(ret->vars, proxy_env, sizeof(proxy_env));
	ret->vars[AD_COUNT(proxy_env)] = ret->no_proxy[0];
	ret->vars[AD_COUNT(proxy_env) + 1] = ret->no_proxy[1];
	ret->vars[AD_COUNT(proxy_env) + 2] = NULL;
	return ret->vars;
}

/* Variables that depend on what is asked for, NULL-terminated. */
static void extra_env(const agentd_spec *spec, struct ad_sandbox_proxy_env *proxy,
		      const char *ret[AD_COUNT(proxy->vars) + 1])
{
	size_t count = 0;

	if (agentd_spec_credentials_fd(spec) >= 0)
		ret[count++] = "AGENTD_TOKEN_FILE=" AD_PROFILE_TOKEN;
	ret[count] = NULL;
	if (agentd_spec_net(spec) == AGENTD_NET_ALLOWLIST)
		memcpy(ret + count, ad_sandbox_proxy_env(spec, proxy), sizeof(proxy->vars));
}

static int32_t sandbox_task_start(void *self, agentd_task *task, const agentd_spec *spec,
				  void **ret_state, agentd_error **reterr)
{
	struct sandbox *sandbox = self;
	struct sandbox_profile profile;
	struct ad_launch_sandbox request = {
		.profile = &profile.profile,
		.credentials_fd = agentd_spec_credentials_fd(spec),
		.netns_fd = agentd_spec_netns(spec),
	};
	const struct sandbox_session *session = agentd_spec_session(spec);
	struct ad_local_session in;
	struct ad_sandbox_proxy_env proxy;
	const char *extra[AD_COUNT(proxy.vars) + 1];
	int r = sandbox_check(spec, reterr);

	if (r < 0)
		return r;
	extra_env(spec, &proxy, extra);
	if (sandbox_profile_init(&profile, spec, &sandbox->opts) < 0)
		return ad_fail_nomem(reterr);
	if (session)
		r = sandbox_session_enter(session, spec, &profile, &in, reterr);
	if (r == 0)
		r = ad_local_task_start(&sandbox->local, task, spec, session ? NULL : &request,
					session ? &in : NULL, extra, ret_state, reterr);
	sandbox_profile_free(&profile);
	return r;
}

static int32_t session_start(void *self, agentd_task *task, const agentd_spec *spec,
			     void **ret_session, agentd_error **reterr)
{
	const struct sandbox *sandbox = self;
	struct sandbox_session *session = NULL;
	int r = sandbox_check(spec, reterr);

	if (r == 0)
		r = sandbox_session_start(&sandbox->opts, task, spec, &session, reterr);
	*ret_session = session;
	return r;
}

static int32_t sandbox_open(void *userdata, struct event_base *base, void **ret_self)
{
	const struct ad_sandbox_opts *opts = userdata;
	struct sandbox *sandbox = malloc(sizeof(*sandbox));

	(void)base;
	if (!sandbox)
		return AGENTD_ERR_NOMEM;
	sandbox->opts = *opts;
	if (init_environment(sandbox) < 0) {
		free(sandbox);
		return AGENTD_ERR_NOMEM;
	}
	*ret_self = sandbox;
	return 0;
}

static void sandbox_close(void *self)
{
	struct sandbox *sandbox = self;

	ad_local_clear(&sandbox->local);
	free(sandbox);
}

const struct agentd_backend_ops *ad_sandbox_backend_ops(void)
{
	static const char *const aliases[] = { "linux-native", "linux",     "native",   "landlock",
					       "container",    "namespace", "mount-ns", NULL };
	static const struct agentd_backend_ops ops = {
		.size = sizeof(ops),
		.abi = AGENTD_BACKEND_ABI,
		.name = "sandbox",
		.aliases = aliases,
		.isolation = AGENTD_ISOLATION_SANDBOX,
		.open = sandbox_open,
		.close = sandbox_close,
		.probe_start = ad_local_probe_start,
		.task_start = sandbox_task_start,
		.task_kill = ad_local_task_kill,
		.task_free = ad_local_task_free,
		.task_signal = ad_local_task_signal,
		.task_write = ad_local_task_write,
		.task_close_stdin = ad_local_task_close_stdin,
		.session_start = session_start,
		.session_stop = sandbox_session_stop,
		.session_free = sandbox_session_free,
	};

	return &ops;
}
