/* SPDX-License-Identifier: MIT */
/* Layers in words: the receipt's lines, and why one could not be put up. */
#include "backend/sandbox/private.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <agentd/policy.h>
#include <agentd/result.h>

#include "policy/policy.h"
#include "proto/helper_msg.h"

/* ---- remedies: what the operator can do where a layer cannot be put up */

/* The number in a file of /proc/sys, or -1. */
static int sysctl(const char *name)
{
	char path[96], text[16] = "";
	ad_autoclose int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/sys/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	return n > 0 ? atoi(text) : -1;
}

static const char container_remedy[] =
	"inside of a container its system call filter may forbid this: run it with a profile that "
	"allows namespaces and mounts (Docker: --security-opt seccomp=unconfined --security-opt "
	"systempaths=unconfined)";

static const char *namespace_remedy(int os_errno)
{
	if (os_errno == 0)
		return "";
	if (sysctl("user/max_user_namespaces") == 0)
		return "user namespaces are switched off: sysctl user.max_user_namespaces=10000";
	if (sysctl("kernel/unprivileged_userns_clone") == 0)
		return "user namespaces are switched off: sysctl kernel.unprivileged_userns_clone=1";
	if (os_errno == ENOSPC)
		return "a limit on namespaces is reached: raise user.max_user_namespaces and the "
		       "other user.max_*_namespaces with sysctl";
	if (os_errno == EINVAL || os_errno == ENOSYS)
		return "this kernel was built without it";
	if (sysctl("kernel/apparmor_restrict_unprivileged_userns") == 1)
		return "AppArmor keeps user namespaces from programs it has no profile for: give "
		       "agentd-helper a profile with the rule \"userns,\", or sysctl "
		       "kernel.apparmor_restrict_unprivileged_userns=0";
	return container_remedy;
}

static const char *remedy_of(enum ad_layer layer, int os_errno)
{
	const char *shortage = ad_launch_shortage(layer, os_errno);

	if (shortage)
		return shortage;
	switch (layer) {
	case AD_LAYER_USERNS:
	case AD_LAYER_MOUNTNS:
	case AD_LAYER_PIDNS:
	case AD_LAYER_NETNS:
	case AD_LAYER_IPCNS:
	case AD_LAYER_UTSNS:
	case AD_LAYER_CGROUPNS:
		return namespace_remedy(os_errno);
	case AD_LAYER_LANDLOCK:
		return os_errno == EOPNOTSUPP ?
			       "Landlock is built into this kernel and not switched on: add "
			       "landlock to its lsm= boot parameter" :
			       "Landlock takes Linux 5.13 built with CONFIG_SECURITY_LANDLOCK";
	case AD_LAYER_SECCOMP:
		return "system call filters take a kernel built with CONFIG_SECCOMP_FILTER";
	case AD_LAYER_KEYRING:
		return os_errno == EDQUOT ?
			       "the quota of keys is used up: raise kernel.keys.maxkeys "
			       "with sysctl" :
			       container_remedy;
	case AD_LAYER_CGROUP:
		return "limits take a cgroup that groups can be made in: run the host program in "
		       "one that is delegated (systemd-run --user -p Delegate=yes, or Delegate=yes "
		       "in its unit)";
	case AD_LAYER_IDMAP:
		return "the file system of a writable path cannot show it under other ids: let the "
		       "host program run as the path's owner, give the path to the sandbox's user, "
		       "or set agentd_runner_opts.sandbox_uid to its owner";
	default:
		return "";
	}
}

static bool can_be_degraded(enum ad_layer layer)
{
	return layer != AD_LAYER_USERNS && layer != AD_LAYER_MOUNTNS && layer != AD_LAYER_PIDNS;
}

/* ---- receipt */

static const char *const enforced[AD_LAYER_COUNT] = {
	[AD_LAYER_USERNS] = "a user namespace of its own",
	[AD_LAYER_MOUNTNS] = "a file system view of its own",
	[AD_LAYER_PIDNS] = "sees its own processes only",
	[AD_LAYER_NETNS] = "an empty network namespace",
	[AD_LAYER_IPCNS] = "an IPC namespace of its own",
	[AD_LAYER_UTSNS] = "a host name of its own",
	[AD_LAYER_CGROUPNS] = "a cgroup namespace of its own",
	[AD_LAYER_SECCOMP] = "only system calls of a reviewed list",
	[AD_LAYER_CAPABILITIES] = "none, and no_new_privs",
	[AD_LAYER_KEYRING] = "a session keyring of its own",
	[AD_LAYER_CGROUP] = "limits of the whole tree",
	[AD_LAYER_IDMAP] = "writable paths show their files as the command's own",
};

/* Why a layer that nobody switched off is not there. */
static const char *not_needed(const agentd_spec *spec, enum ad_layer layer)
{
	switch (layer) {
	case AD_LAYER_NETNS:
		return agentd_spec_net(spec) == AGENTD_NET_FULL ?
			       "the policy allows the host's network" :
			       "not put up";
	case AD_LAYER_IDMAP:
		return "not needed: the files are the command's user's";
	case AD_LAYER_CGROUP:
		return "not needed: no limit takes one";
	default:
		return "not put up";
	}
}

static void describe(struct ad_buf *text, const agentd_spec *spec, enum ad_layer layer,
		     const struct agentd_limits *limits, const struct ad_launch_receipt *receipt)
{
	static const char *const words[AD_STRICT_COUNT] = { "required", "degradable", "off" };
	int error = receipt->layer_errno[layer];

	ad_buf_puts(text, words[sandbox_strictness(spec, layer)]);
	ad_buf_puts(text, ": ");
	switch (receipt->layers[layer]) {
	case AD_LAUNCH_LAYER_ENFORCED:
		if (layer == AD_LAYER_LANDLOCK) {
			ad_buf_puts(text, "ABI ");
			ad_buf_decimal(text, receipt->landlock_abi);
		} else if (layer == AD_LAYER_RLIMITS) {
			ad_local_put_rlimits(text, limits);
		} else if (layer == AD_LAYER_NETNS && agentd_spec_netns(spec) >= 0) {
			ad_buf_puts(text, "the network namespace of the context");
		} else {
			ad_buf_puts(text, enforced[layer]);
		}
		break;
	case AD_LAUNCH_LAYER_DEGRADED:
		if (layer == AD_LAYER_CGROUP)
			ad_buf_puts(text, "the tree is polled; ");
		if (error)
			ad_buf_printf(text, "%s; ",
				      strerrordesc_np(error) ? strerrordesc_np(error) :
							       "unknown error");
		ad_buf_puts(text, remedy_of(layer, error));
		break;
	default:
		ad_buf_puts(text, sandbox_strictness(spec, layer) == AD_STRICT_OFF ?
					  "the policy does not want it" :
					  not_needed(spec, layer));
		break;
	}
}

static int32_t state_of(uint8_t layer)
{
	switch (layer) {
	case AD_LAUNCH_LAYER_ENFORCED:
		return AGENTD_LAYER_ENFORCED;
	case AD_LAUNCH_LAYER_DEGRADED:
		return AGENTD_LAYER_DEGRADED;
	default:
		return AGENTD_LAYER_ABSENT;
	}
}

static void report_network(agentd_task *task, const agentd_spec *spec, int32_t netns)
{
	if (agentd_spec_netns(spec) >= 0)
		agentd_task_protection(task, "network", netns,
				       "the network namespace of the context");
	else if (agentd_spec_net(spec) == AGENTD_NET_FULL)
		agentd_task_protection(task, "network", AGENTD_LAYER_ABSENT,
				       "the policy allows the host's network");
	else if (agentd_spec_net(spec) == AGENTD_NET_ALLOWLIST)
		agentd_task_protection(task, "network", netns,
				       "the policy's hosts, through a proxy that checks names and "
				       "addresses");
	else
		agentd_task_protection(task, "network", netns,
				       netns == AGENTD_LAYER_ENFORCED ?
					       "none" :
					       "the host's: there is no network namespace");
}

void sandbox_report(agentd_task *task, const agentd_spec *spec, const struct agentd_limits *limits,
		    const struct ad_launch_receipt *receipt)
{
	size_t names = agentd_spec_protected_count(spec);
	ad_autobuf struct ad_buf ids = { 0 };

	for (size_t i = 0; i < AD_LAYER_COUNT; i++) {
		ad_autobuf struct ad_buf reason = { 0 };

		describe(&reason, spec, (enum ad_layer)i, limits, receipt);
		agentd_task_protection(task, ad_policy_layers[i], state_of(receipt->layers[i]),
				       reason.data);
	}
	ad_local_put_ids(&ids, receipt);
	ad_buf_puts(&ids, " outside");
	agentd_task_protection(task, "credentials", AGENTD_LAYER_ENFORCED, ids.data);
	agentd_task_protection(task, "paths", AGENTD_LAYER_ENFORCED,
			       "nothing but the policy's paths and the working directory");
	report_network(task, spec, state_of(receipt->layers[AD_LAYER_NETNS]));
	if (names > 0)
		agentd_task_protection(task, "protected-names", AGENTD_LAYER_ENFORCED,
				       "read-only where they are, moved aside where they appear");
	else
		agentd_task_protection(task, "protected-names", AGENTD_LAYER_ABSENT,
				       "the policy has none");
}

void sandbox_report_best(agentd_backend_report *report, const struct ad_launch_receipt *best)
{
	for (size_t i = 0; i < AD_LAYER_COUNT; i++) {
		uint8_t state = best->layers[i];
		const char *reason = state == AD_LAUNCH_LAYER_ENFORCED ?
					     enforced[i] :
					     remedy_of((enum ad_layer)i, best->layer_errno[i]);

		if (state != AD_LAUNCH_LAYER_NONE)
			agentd_backend_report_layer(report, ad_policy_layers[i], state_of(state),
						    reason);
	}
}

/* ---- failures */

static void put_reason(struct ad_buf *text, int os_errno)
{
	const char *reason = os_errno ? strerrordesc_np(os_errno) : NULL;

	if (os_errno)
		ad_buf_printf(text, ": %s (os error %d)", reason ? reason : "Unknown error",
			      os_errno);
}

static void explain_layer(struct ad_buf *text, const struct ad_launch_failure *failure)
{
	enum ad_layer layer = (enum ad_layer)failure->index;
	const char *remedy = remedy_of(layer, failure->os_errno);

	ad_buf_printf(text, "the layer \"%s\" of the sandbox cannot be put up",
		      ad_policy_layers[layer]);
	if (failure->text[0])
		ad_buf_printf(text, ": %s", failure->text);
	put_reason(text, failure->os_errno);
	if (*remedy)
		ad_buf_printf(text, "; %s", remedy);
	/* Of what ran out there is more another time. */
	if (can_be_degraded(layer) && !ad_launch_shortage(layer, failure->os_errno))
		ad_buf_printf(text, "; or make the policy's protection \"%s\" degradable",
			      ad_policy_layers[layer]);
}

static int explain_path(struct ad_buf *text, const char *source,
			const struct ad_launch_failure *failure)
{
	ad_buf_printf(text, "the path \"%s\" cannot be shown in the sandbox", source);
	if (failure->text[0] && strcmp(failure->text, source) != 0)
		ad_buf_printf(text, ": %s", failure->text);
	else
		put_reason(text, failure->os_errno);
	switch (failure->os_errno) {
	case ENOMEM:
		return AGENTD_ERR_NOMEM;
	case ENOSPC:
	case EMFILE:
	case ENFILE:
		/* What the machine lacks is not the policy's fault. */
		return AGENTD_ERR_SYSTEM;
	default:
		return AGENTD_ERR_INVALID;
	}
}

/* Whether something of path may be there, in a rule's file system or the sandbox's own. */
static bool may_be_shown(const agentd_spec *spec, const char *path)
{
	static const char *const own[] = { "/tmp", "/run", "/dev", "/proc", "/etc" };
	const char *workdir = agentd_spec_workdir(spec), *target;
	uint32_t access;

	for (size_t i = 0; i < AD_COUNT(own); i++) {
		if (ad_path_beneath(path, own[i]))
			return true;
	}
	for (size_t i = 0; agentd_spec_mount_at(spec, i, NULL, &target, &access) == 0; i++) {
		if (access && (ad_path_beneath(path, target) || ad_path_beneath(target, path)))
			return true;
	}
	return ad_path_beneath(path, workdir) || ad_path_beneath(workdir, path);
}

/* The command's program is looked for where no path of the policy leads. */
static bool program_is_hidden(const agentd_spec *spec, const char *program)
{
	const char *const *argv = agentd_spec_argv(spec), *const *env = agentd_spec_env(spec);
	const char *dirs = SANDBOX_PATH;
	char dir[PATH_MAX];

	/* What carries files is shown whatever the policy says. */
	if (!argv || strcmp(argv[0], program) != 0)
		return false;
	if (strchr(program, '/'))
		return *program == '/' && !may_be_shown(spec, program);
	for (; env && *env; env++) {
		if (strncmp(*env, "PATH=", 5) == 0)
			dirs = *env + 5;
	}
	do {
		size_t len = strcspn(dirs, ":");

		snprintf(dir, sizeof(dir), "%.*s", (int)len, dirs);
		if (*dir != '/' || may_be_shown(spec, dir))
			return false;
		dirs += len;
	} while (*dirs++ == ':');
	return true;
}

agentd_error *ad_sandbox_explain(const agentd_spec *spec, const struct ad_launch_failure *failure,
				 agentd_error *err)
{
	ad_autobuf struct ad_buf text = { 0 };
	const char *source, *pointer = "";
	agentd_error *ret;
	int code;

	if (failure->stage == AD_STAGE_LAYER && failure->index < AD_LAYER_COUNT) {
		explain_layer(&text, failure);
		code = agentd_error_code(err);
	} else if (failure->stage == AD_STAGE_PATH &&
		   agentd_spec_mount_at(spec, failure->index, &source, NULL, NULL) == 0) {
		code = explain_path(&text, source, failure);
		pointer = agentd_spec_mount_pointer(spec, failure->index);
	} else if (failure->stage == AD_STAGE_EXEC && failure->os_errno == ENOENT &&
		   program_is_hidden(spec, failure->text)) {
		ad_buf_printf(&text, "%s; no path of the policy shows it",
			      agentd_error_message(err));
		code = agentd_error_code(err);
	} else {
		return err;
	}
	if (text.failed)
		return err;
	ret = agentd_error_create(code, failure->os_errno, text.data);
	if (*pointer)
		ad_error_prefix_pointer(&ret, pointer);
	agentd_error_unref(err);
	return ret;
}

void ad_sandbox_denied(agentd_task *task, const char *kind, const char *target)
{
	if (strcmp(kind, "syscall") == 0)
		agentd_task_denied(task, kind, target, "seccomp",
				   "a command that cannot do without this system call needs a "
				   "policy whose protection \"seccomp\" is off");
	else if (strcmp(kind, "left") == 0)
		agentd_task_denied(task, "path", target, "protected name",
				   "this could not be looked at, moved aside or put back: look at "
				   "it before anything uses it");
	else
		agentd_task_denied(
			task, kind, target, "protected name",
			"what appeared was moved aside; commands that may make it need a "
			"policy whose protect_names lack it");
}
