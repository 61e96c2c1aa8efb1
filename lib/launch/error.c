/* SPDX-License-Identifier: MIT */
#include "launch/private.h"

#include <errno.h>
#include <string.h>

#include <agentd/backend.h>

/* What was being done, with the report's text after it. */
static const char *const stages[AD_STAGE_COUNT] = {
	[AD_STAGE_REQUEST] = "handing over the request",
	[AD_STAGE_SUPERVISOR] = "starting its supervisor",
	[AD_STAGE_PIPE] = "making its pipes",
	[AD_STAGE_STDIN] = "opening /dev/null",
	[AD_STAGE_CGROUP] = "entering its cgroup",
	[AD_STAGE_FORK] = "making a process",
	[AD_STAGE_SESSION] = "starting a session",
	[AD_STAGE_STDIO] = "setting up its descriptors",
	[AD_STAGE_RLIMIT] = "setting a resource limit",
	[AD_STAGE_CREDENTIALS] = "taking on the host program's user and group",
	[AD_STAGE_WORKDIR] = "working directory ",
	[AD_STAGE_EXEC] = "program ",
	[AD_STAGE_LAYER] = "putting up its sandbox: ",
	[AD_STAGE_PATH] = "path of the policy: ",
	[AD_STAGE_VIEW] = "making its file system view: ",
};

static void describe(struct ad_buf *message, const struct ad_launch_failure *failure)
{
	const char *reason = strerrordesc_np(failure->os_errno), *text = failure->text;

	switch (failure->stage) {
	case AD_STAGE_LIMIT:
		ad_buf_printf(message,
			      "the limit %s cannot be enforced here: it takes a cgroup with the "
			      "cpu controller that this process may make groups in; run with "
			      "one delegated, do without the limit, or make the policy's "
			      "protection \"cgroup\" degradable",
			      text);
		return;
	case AD_STAGE_LOST:
		ad_buf_printf(message,
			      "the supervisor of the command died (%s); the command was killed",
			      text);
		return;
	default:
		break;
	}
	ad_buf_puts(message, "Failed to spawn shell command");
	if (failure->os_errno)
		ad_buf_printf(message, ": %s (os error %d)", reason ? reason : "Unknown error",
			      failure->os_errno);
	ad_buf_printf(message, " (%s%s)", stages[failure->stage], text);
}

const char *ad_launch_shortage(enum ad_layer layer, int os_errno)
{
	switch (os_errno) {
	case ENOMEM:
		return "memory ran out: raise the command's limit mem_bytes, or free memory of "
		       "the machine";
	case EMFILE:
		return "the helper has no descriptor left: raise the host program's limit on open "
		       "files (RLIMIT_NOFILE, ulimit -n), or run fewer commands at once";
	case ENFILE:
		return "the machine has no open file left: raise fs.file-max with sysctl";
	case EAGAIN:
		return "no more processes may be made: raise the user's limit on them "
		       "(RLIMIT_NPROC, ulimit -u) or pids.max of the host program's cgroup, or run "
		       "fewer commands at once";
	case ENOSPC:
		return layer == AD_LAYER_IDMAP ?
			       "the limit on mounts is reached: raise fs.mount-max with sysctl" :
			       NULL;
	default:
		return NULL;
	}
}

static int code_of(const struct ad_launch_failure *failure)
{
	switch (failure->stage) {
	case AD_STAGE_LIMIT:
		return AGENTD_ERR_UNSUPPORTED;
	case AD_STAGE_LAYER:
		/* The isolation that was asked for is not to be had. */
		if (!ad_launch_shortage((enum ad_layer)failure->index, failure->os_errno))
			return AGENTD_ERR_DENIED;
		break;
	default:
		break;
	}
	if (failure->os_errno == 0)
		return AGENTD_ERR_BACKEND;
	return failure->os_errno == ENOMEM ? AGENTD_ERR_NOMEM : AGENTD_ERR_SYSTEM;
}

agentd_error *ad_launch_error(const struct ad_launch_failure *failure)
{
	ad_autobuf struct ad_buf message = { 0 };
	agentd_error *err;

	describe(&message, failure);
	if (message.failed)
		return agentd_error_create(AGENTD_ERR_NOMEM, ENOMEM, NULL);
	err = agentd_error_create(code_of(failure), failure->os_errno, message.data);
	if (failure->stage == AD_STAGE_WORKDIR)
		ad_error_prefix_pointer(&err, "/workdir");
	return err;
}
