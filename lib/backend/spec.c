/* SPDX-License-Identifier: MIT */
/* agentd_spec_*: what a backend may know of the command it is to run. */
#include "backend/backend.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "policy/policy.h"

const char *const *agentd_spec_argv(const agentd_spec *spec)
{
	return spec ? spec->argv : NULL;
}

const char *const *agentd_spec_env(const agentd_spec *spec)
{
	return spec ? spec->env : NULL;
}

const char *agentd_spec_workdir(const agentd_spec *spec)
{
	return spec ? spec->workdir : NULL;
}

uint32_t agentd_spec_workdir_access(const agentd_spec *spec)
{
	return spec ? spec->workdir_access : 0;
}

const char *agentd_spec_rootfs(const agentd_spec *spec)
{
	return spec ? spec->rootfs : NULL;
}

uint32_t agentd_spec_flags(const agentd_spec *spec)
{
	return spec ? spec->flags : 0;
}

int agentd_spec_limits(const agentd_spec *spec, struct agentd_limits *out)
{
	if (!spec || !out)
		return AGENTD_ERR_INVALID;
	return ad_sized_store(out, &spec->limits, sizeof(spec->limits));
}

int32_t agentd_spec_limit_requested(const agentd_spec *spec, const char *limit)
{
	int index = limit ? ad_limit_index(limit) : -1;

	return spec && index >= 0 ? (int32_t)((spec->limits_requested >> index) & 1u) : 0;
}

int32_t agentd_spec_discard_unfinished(const agentd_spec *spec)
{
	return spec && (ad_policy_discard_unfinished(spec->policy[0]) ||
			ad_policy_discard_unfinished(spec->policy[1]));
}

int32_t agentd_spec_require_kvm(const agentd_spec *spec)
{
	return spec &&
	       (ad_policy_require_kvm(spec->policy[0]) || ad_policy_require_kvm(spec->policy[1]));
}

size_t agentd_spec_mount_count(const agentd_spec *spec)
{
	return spec ? spec->mount_count : 0;
}

int agentd_spec_mount_at(const agentd_spec *spec, size_t i, const char **ret_source,
			 const char **ret_target, uint32_t *ret_access)
{
	if (!spec || i >= spec->mount_count)
		return AGENTD_ERR_NOTFOUND;
	if (ret_source)
		*ret_source = spec->mounts[i].source;
	if (ret_target)
		*ret_target = spec->mounts[i].target;
	if (ret_access)
		*ret_access = spec->mounts[i].access;
	return 0;
}

const char *agentd_spec_mount_pointer(const agentd_spec *spec, size_t i)
{
	return spec && i < spec->mount_count ? spec->mounts[i].pointer : "";
}

/* A runner's policy often is the context's too: then its names count once. */
static size_t policy_count(const agentd_spec *spec)
{
	if (!spec)
		return 0;
	return spec->policy[0] == spec->policy[1] ? 1 : AD_COUNT(spec->policy);
}

size_t agentd_spec_protected_count(const agentd_spec *spec)
{
	size_t count = 0;

	for (size_t p = 0; p < policy_count(spec); p++)
		count += ad_policy_protected_count(spec->policy[p]);
	return count;
}

const char *agentd_spec_protected_at(const agentd_spec *spec, size_t i)
{
	for (size_t p = 0; p < policy_count(spec); p++) {
		size_t count = ad_policy_protected_count(spec->policy[p]);

		if (i < count)
			return ad_policy_protected_at(spec->policy[p], i);
		i -= count;
	}
	return NULL;
}

int32_t ad_spec_protection(const agentd_spec *spec, int layer)
{
	int32_t strictest = AGENTD_PROTECTION_OFF;

	for (size_t p = 0; p < AD_COUNT(spec->policy); p++) {
		int32_t one = ad_policy_protection(spec->policy[p], layer);

		if (one < strictest) /* REQUIRED < DEGRADABLE < OFF */
			strictest = one;
	}
	return strictest;
}

int32_t agentd_spec_protection(const agentd_spec *spec, const char *layer)
{
	return spec && layer ? ad_spec_protection(spec, ad_policy_layer(layer)) :
			       AGENTD_PROTECTION_REQUIRED;
}

int32_t agentd_spec_net(const agentd_spec *spec)
{
	return spec ? spec->net : AGENTD_NET_NONE;
}

/* The context's rules alone: the runner's policy covers each of them. */
bool ad_spec_names_host(const agentd_spec *spec, const char *host)
{
	for (size_t i = 0; i < ad_policy_host_count(spec->policy[1]); i++) {
		const struct ad_policy_host *rule = ad_policy_host_at(spec->policy[1], i);

		if (!rule->deny && strcmp(rule->pattern, host) == 0)
			return true;
	}
	return false;
}

int32_t agentd_spec_netns(const agentd_spec *spec)
{
	return spec ? spec->netns : -1;
}

int32_t agentd_spec_credentials_fd(const agentd_spec *spec)
{
	return spec ? spec->credentials_fd : -1;
}

const char *agentd_spec_session_id(const agentd_spec *spec)
{
	return spec ? spec->session_id : NULL;
}

const char *agentd_spec_volume(const agentd_spec *spec)
{
	return spec ? spec->volume : NULL;
}

const char *agentd_spec_options(const agentd_spec *spec)
{
	return spec && spec->options ? spec->options : "{}";
}

void *agentd_spec_session(const agentd_spec *spec)
{
	return spec ? spec->session : NULL;
}

uint32_t agentd_spec_grace_ms(const agentd_spec *spec)
{
	return spec ? spec->grace_ms : 0;
}

int32_t agentd_spec_log_level(const agentd_spec *spec)
{
	return spec ? spec->log_level : AGENTD_LOG_ERROR;
}

/* ---- copies */

static const char *keep(struct ad_spec_copy *copy, const char *text, bool *ok)
{
	if (!text || !*ok)
		return NULL;
	if (ad_strlist_add(&copy->texts, text) < 0) {
		*ok = false;
		return NULL;
	}
	return copy->texts.items[copy->texts.count - 1];
}

static bool copy_texts(struct ad_spec_copy *copy, const agentd_spec *from)
{
	agentd_spec *spec = &copy->spec;
	size_t vars = from->env ? ad_strv_len(from->env) : 0;
	bool ok = true;

	copy->env = calloc(vars + 1, sizeof(*copy->env));
	spec->mounts = calloc(from->mount_count + 1, sizeof(*spec->mounts));
	if (!copy->env || !spec->mounts)
		return false;
	for (size_t i = 0; i < vars; i++)
		copy->env[i] = keep(copy, from->env[i], &ok);
	for (size_t i = 0; i < from->mount_count; i++) {
		const struct ad_spec_mount *mount = &from->mounts[i];

		spec->mounts[i] = (struct ad_spec_mount){ keep(copy, mount->source, &ok),
							  keep(copy, mount->target, &ok),
							  keep(copy, mount->pointer, &ok),
							  mount->access };
	}
	spec->workdir = keep(copy, from->workdir, &ok);
	spec->rootfs = keep(copy, from->rootfs, &ok);
	spec->session_id = keep(copy, from->session_id, &ok);
	spec->volume = keep(copy, from->volume, &ok);
	spec->options = keep(copy, from->options, &ok);
	return ok;
}

int ad_spec_copy(struct ad_spec_copy *ret, const agentd_spec *from, agentd_error **reterr)
{
	static const char *const no_argv[] = { NULL };

	*ret = (struct ad_spec_copy){ .spec = *from };
	ret->spec.argv = no_argv;
	ret->spec.netns = ret->spec.credentials_fd = -1;
	ret->spec.session = NULL;
	for (size_t i = 0; i < AD_COUNT(ret->spec.policy); i++)
		agentd_policy_ref(from->policy[i]);
	if (!copy_texts(ret, from)) {
		ad_spec_copy_free(ret);
		return ad_fail_nomem(reterr);
	}
	ret->spec.env = ret->env;
	if (from->netns >= 0) {
		ret->spec.netns = fcntl(from->netns, F_DUPFD_CLOEXEC, 3);
		if (ret->spec.netns < 0) {
			int error = errno;

			ad_spec_copy_free(ret);
			return ad_fail_errno(reterr, error, "no descriptor for the network");
		}
	}
	return 0;
}

void ad_spec_copy_free(struct ad_spec_copy *copy)
{
	if (!copy->spec.argv)
		return;
	if (copy->spec.netns >= 0)
		close(copy->spec.netns);
	for (size_t i = 0; i < AD_COUNT(copy->spec.policy); i++)
		agentd_policy_unref(copy->spec.policy[i]);
	free(copy->spec.mounts);
	free(copy->env);
	ad_strlist_free(&copy->texts);
	*copy = (struct ad_spec_copy){ 0 };
}
