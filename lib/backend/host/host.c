/* SPDX-License-Identifier: MIT */
#include "backend/host/host.h"

#include <stdlib.h>
#include <string.h>

#include <agentd/policy.h>
#include <agentd/result.h>

#include "backend/local/local.h"

static const struct ad_local_default defaults[] = {
	{ "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", false },
	{ "HOME", "/", true },
	{ "USER", NULL, true },
	{ "LOGNAME", NULL, true },
	{ "LANG", "C.UTF-8", false },
	{ "TMPDIR", "/tmp", false },
	{ "SHELL", "/bin/bash", false },
};

static const char confines_nothing[] = "the host backend confines nothing";
static const char *const absent_layers[] = { "paths", "network", "protected-names" };

static void host_report(agentd_task *task, const agentd_spec *spec,
			const struct agentd_limits *limits, const struct ad_launch_receipt *receipt)
{
	ad_autobuf struct ad_buf rlimits = { 0 }, ids = { 0 };

	ad_local_put_rlimits(&rlimits, limits);
	agentd_task_protection(task, "rlimits", AGENTD_LAYER_ENFORCED, rlimits.data);
	ad_local_put_ids(&ids, receipt);
	ad_buf_puts(&ids, ": the host program's");
	agentd_task_protection(task, "credentials", AGENTD_LAYER_ENFORCED, ids.data);
	for (size_t i = 0; i < AD_COUNT(absent_layers); i++)
		agentd_task_protection(task, absent_layers[i], AGENTD_LAYER_ABSENT,
				       confines_nothing);
	if (agentd_spec_net(spec) == AGENTD_NET_ALLOWLIST)
		agentd_task_protection(task, "network", AGENTD_LAYER_ABSENT,
				       "the host's: the allow-list is not enforced");
}

static void host_report_best(agentd_backend_report *report, const struct ad_launch_receipt *best)
{
	(void)best;
	agentd_backend_report_layer(report, "rlimits", AGENTD_LAYER_ENFORCED,
				    "core, file size, open files");
	for (size_t i = 0; i < AD_COUNT(absent_layers); i++)
		agentd_backend_report_layer(report, absent_layers[i], AGENTD_LAYER_ABSENT,
					    confines_nothing);
}

static const struct ad_local_kind kind = {
	.report = host_report,
	.report_best = host_report_best,
};

/* What of the specification this backend cannot honour, or NULL. */
static const char *unsupported(const agentd_spec *spec)
{
	struct agentd_limits limits = { .size = sizeof(limits) };
	const char *source, *target;
	uint32_t access;

	if (agentd_spec_rootfs(spec))
		return "a root file system";
	if (agentd_spec_netns(spec) >= 0)
		return "a network namespace";
	agentd_spec_limits(spec, &limits);
	if (limits.net_bytes && agentd_spec_net(spec) == AGENTD_NET_ALLOWLIST)
		return "the limit net_bytes";
	if (agentd_spec_discard_unfinished(spec))
		return "discard_unfinished: commands work in the directory itself";
	if (agentd_spec_credentials_fd(spec) >= 0)
		return "credentials as a private file";
	for (size_t i = 0; agentd_spec_mount_at(spec, i, &source, &target, &access) == 0; i++) {
		if (strcmp(source, target) != 0)
			return "mounts";
	}
	return NULL;
}

static int32_t host_task_start(void *self, agentd_task *task, const agentd_spec *spec,
			       void **ret_state, agentd_error **reterr)
{
	const char *missing = unsupported(spec);

	if (agentd_spec_net(spec) == AGENTD_NET_ALLOWLIST &&
	    agentd_spec_protection(spec, "netns") == AGENTD_PROTECTION_REQUIRED)
		return ad_fail(reterr, AGENTD_ERR_DENIED, NULL,
			       "the host backend cannot keep a command to the allowed hosts; use "
			       "the sandbox, or make the policy's protection \"netns\" degradable");
	if (missing)
		return ad_fail(reterr, AGENTD_ERR_UNSUPPORTED, NULL,
			       "the host backend does not support %s", missing);
	return ad_local_task_start(self, task, spec, NULL, NULL, NULL, ret_state, reterr);
}

static int32_t host_open(void *userdata, struct event_base *base, void **ret_self)
{
	struct ad_local *host = malloc(sizeof(*host));

	(void)base;
	if (!host || ad_local_init(host, &kind, userdata, defaults, AD_COUNT(defaults)) < 0) {
		free(host);
		return AGENTD_ERR_NOMEM;
	}
	*ret_self = host;
	return 0;
}

static void host_close(void *self)
{
	ad_local_clear(self);
	free(self);
}

const struct agentd_backend_ops *ad_host_backend_ops(void)
{
	static const char *const aliases[] = { "host-direct", "none", "workstation", NULL };
	static const struct agentd_backend_ops ops = {
		.size = sizeof(ops),
		.abi = AGENTD_BACKEND_ABI,
		.name = "host",
		.aliases = aliases,
		.isolation = AGENTD_ISOLATION_NONE,
		.open = host_open,
		.close = host_close,
		.probe_start = ad_local_probe_start,
		.task_start = host_task_start,
		.task_kill = ad_local_task_kill,
		.task_free = ad_local_task_free,
		.task_signal = ad_local_task_signal,
		.task_write = ad_local_task_write,
		.task_close_stdin = ad_local_task_close_stdin,
	};

	return &ops;
}
