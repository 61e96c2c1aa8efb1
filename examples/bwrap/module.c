/* SPDX-License-Identifier: MIT */
/* The backend as a module for agentd-conformance(1). BWRAP_FIRST in the environment is the path
 * of the program that first.c makes. */
#include <stdlib.h>

#include <agentd/backend.h>

#include "bwrap.h"

int agentd_conformance_add_backend(agentd_runner *runner, const char **ret_name,
				   agentd_error **reterr);

int agentd_conformance_add_backend(agentd_runner *runner, const char **ret_name,
				   agentd_error **reterr)
{
	const char *first = getenv("BWRAP_FIRST");

	if (!first) {
		*reterr = agentd_error_create(AGENTD_ERR_INVALID, 0, "BWRAP_FIRST is not set");
		return AGENTD_ERR_INVALID;
	}
	*ret_name = "bwrap";
	return bwrap_add(runner, first, reterr);
}
