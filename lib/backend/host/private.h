/* SPDX-License-Identifier: MIT */
#ifndef AD_BACKEND_HOST_PRIVATE_H
#define AD_BACKEND_HOST_PRIVATE_H

#include <agentd/backend.h>

#include "launch/launch.h"

/* Variables every command has unless its specification says otherwise. */
struct host_environment {
	char *vars[8];
	size_t count;
};

/* From the environment of the host program as it is now. AGENTD_ERR_NOMEM or 0. */
int host_environment_init(struct host_environment *environment);
void host_environment_free(struct host_environment *environment);
/* Those of ours that wanted does not name, then wanted: a vector to be freed, that
 * borrows its strings. NULL: out of memory. */
const char **host_environment_merge(const struct host_environment *environment,
				    const char *const *wanted);

/* Lines of the receipt for a command that runs. */
void host_receipt_report(agentd_task *task, const struct agentd_limits *limits,
			 const struct ad_launch_receipt *receipt);
/* What this machine allows, for a probe. */
void host_receipt_probe(agentd_backend_report *report, const struct ad_launch_receipt *best);

#endif
