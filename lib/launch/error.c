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
};

static void describe(struct ad_buf *message, uint32_t stage, int os_errno, const char *text)
{
	const char *reason = strerrordesc_np(os_errno);

	switch (stage) {
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
	if (os_errno)
		ad_buf_printf(message, ": %s (os error %d)", reason ? reason : "Unknown error",
			      os_errno);
	ad_buf_printf(message, " (%s%s)", stages[stage], text);
}

agentd_error *ad_launch_error(uint32_t stage, int os_errno, const char *text)
{
	ad_autobuf struct ad_buf message = { 0 };
	int code = os_errno == ENOMEM ? AGENTD_ERR_NOMEM : AGENTD_ERR_SYSTEM;

	if (stage == AD_STAGE_LIMIT)
		code = AGENTD_ERR_UNSUPPORTED;
	else if (os_errno == 0)
		code = AGENTD_ERR_BACKEND;
	describe(&message, stage, os_errno, text);
	if (message.failed)
		return agentd_error_create(AGENTD_ERR_NOMEM, ENOMEM, NULL);
	return agentd_error_create(code, os_errno, message.data);
}
